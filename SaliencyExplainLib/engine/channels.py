"""Outputs of a network with changed features at a layer, by replaying what follows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from .engine import Engine, main_output
from .region import Box, RegionOutput
from .replay import Replay

__all__ = ["LayerChanges"]

#: Memory for one more change in a batch: features of the layers behind it, generously.
_BYTES_A_FEATURE = 4 * 16

#: Records of so many windows are kept; of more, each is made again for every group of changes.
_KEPT_WINDOWS = 8
#: Memory for the fused outputs of one group of changes, in bytes.
_GROUP_BYTES = 512 * 2**20


class LayerChanges:
    """Fused outputs, inside the region, of a network with changed features at one layer.

    Parameters
    ----------
    engine : Engine
        Running; its target is frozen here.
    layer : str
        Qualified module name.

    Attributes
    ----------
    exact : bool or None
        Whether the replay skipped what came before the layer; None before the first run.
    """

    def __init__(self, engine: Engine, layer: str) -> None:
        self.engine = engine
        self.layer = layer
        self.region = RegionOutput(engine)
        self.exact: bool | None = None
        self._padded = engine.plan.pad(engine.x)
        self._records: dict[int, Replay] = {}

    def outputs(
        self, change: Callable[[torch.Tensor, int], torch.Tensor], count: int
    ) -> Iterator[torch.Tensor]:
        """Fused output in the region's box, shape (1, O, I, J, K), of each change in turn.

        Parameters
        ----------
        change : callable
            Takes the layer's features, shape (1, K, i, j, k), and the number of the change; returns
            changed features.
        count : int
            Number of changes.
        """
        size = self._group_size()
        for start in range(0, count, size):
            numbers = range(start, min(start + size, count))
            totals: list[torch.Tensor | None] = [None] * len(numbers)
            for index, window in enumerate(self.region.windows):
                record = self.record(index)

                def work(
                    group: list[int],
                    record: Replay = record,
                    window: Box = window,
                    totals: list[torch.Tensor | None] = totals,
                    start: int = start,
                ) -> None:
                    outputs = self._outputs(record, change, group)
                    for number, output in zip(group, outputs.split(1), strict=True):
                        part = self.region.cut(window, output)
                        slot = number - start
                        totals[slot] = self.region.add(totals[slot], window, part)
                        self.engine.progress.step(f"change {number + 1} of {count}")

                for group in self.engine.batch.groups(numbers):
                    self.engine.batch.run(group, work)
            for total in totals:
                assert total is not None  # noqa: S101 - a region is reached by a window
                yield self.region.normalised(total)

    def _outputs(
        self,
        record: Replay,
        change: Callable[[torch.Tensor, int], torch.Tensor],
        group: list[int],
    ) -> torch.Tensor:
        """Output of a window for a group of changes, shape (B, O, i, j, k) or (B, O)."""
        self.engine.progress.check()
        if len(group) > 1 and not self.engine.separate(self._padded):
            self.engine.batch.limit(1, full=False)
            return torch.cat([self._outputs(record, change, [number]) for number in group])
        features = torch.cat([change(record.features, number) for number in group])
        with torch.no_grad(), self.engine.calling(record.features):
            return record.run(features).float()

    def values(
        self, change: Callable[[torch.Tensor, int], torch.Tensor], count: int
    ) -> list[float]:
        """S of each change."""
        return [float(self.region.target.value(output)) for output in self.outputs(change, count)]

    def record(self, index: int) -> Replay:
        """The record of a window that reaches the region."""
        if index in self._records:
            return self._records[index]
        window = self.region.windows[index]
        part = self._padded[(slice(None), slice(None), *window)]
        with self.engine.calling(part):
            record = Replay(self.engine.model.network, part, self.layer, main_output)
        if self.engine.x.device.type != "cpu":
            # On a CPU batches of what follows a layer were slower than one by one.
            self.engine.batch.learn(_BYTES_A_FEATURE * record.features.numel())
        self.exact = record.exact if self.exact is None else (self.exact and record.exact)
        if len(self.region.windows) <= _KEPT_WINDOWS:
            self._records[index] = record
        return record

    def _group_size(self) -> int:
        """Changes whose fused outputs fit into the memory set aside for them."""
        if len(self.region.windows) == 1 or self.region.shape is None:
            return self.engine.batch.size
        voxels = 1
        for side in self.region.shape:
            voxels *= side
        return max(1, _GROUP_BYTES // (4 * voxels * len(self.engine.frozen.names)))
