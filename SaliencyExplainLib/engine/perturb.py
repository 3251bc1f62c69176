"""Scores of perturbed images, computing only what can change.

Of the windows that reach the region, only those that hold a changed voxel are run again; the others
answer from the outputs of the unperturbed image. Inside a window only what the changed voxels reach
and the region needs is computed (:mod:`.incremental`), where the network allows it. The first such
result, the 100th, 1000th and so on are compared with a whole pass; should one differ by more than
1e-5 of the largest output, whole passes are run from there on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch

from .batch import free_bytes
from .engine import Engine, network_errors
from .incremental import IncrementalPass, Spans, full, where_true, within
from .region import Box, RegionOutput, overlap

__all__ = ["Perturber"]

#: Memory for records: at most this, and at most this part of what is free.
_RECORD_BYTES, _RECORD_PART = 4 * 2**30, 0.25
#: Memory for outputs of windows that may come again.
_SEEN_BYTES = 256 * 2**20
#: Memory of one more window in a batch: 32 features a voxel that live at the same time.
_BYTES_A_VOXEL = 4 * 32
#: Beyond this share of a pass, whole windows two at a time cost less (0.86 of one by one).
_WORTH = 0.9
#: Largest difference to a whole pass, as a part of the largest output.
_EXACT = 1e-5
#: Which results are compared with a whole pass.
_CHECKED = frozenset((1, *(10**power for power in range(2, 12))))


class Perturber:
    """Scores of images that differ from the engine's in some voxels.

    Parameters
    ----------
    engine : Engine
        Running; its target is frozen here.

    Attributes
    ----------
    start_value : float
        S of the unperturbed image.
    computed, brute_force : int
        Windows that were computed, and that running every window would have computed, so far.
    passes : float
        The same as `computed`, with windows that were computed in part counted by that part of
        their multiply-adds.
    deviation : float or None
        Largest difference to a whole pass that was found, as a part of the window's largest
        output; None if none was compared.
    reason : str
        Why windows are computed as a whole; "" where they are not.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.region = RegionOutput(engine)
        self.start_value = engine.start_value
        self.computed = 0
        self.brute_force = 0
        self.passes = 0.0
        self.deviation: float | None = None
        self.reason = "it computes in bfloat16" if engine.fast else ""
        self._padded = engine.plan.pad(engine.x)
        self._kept: dict[int, torch.Tensor] = {}
        self._records: dict[int, IncrementalPass] = {}
        self._seen: OrderedDict[tuple[int, Hashable], torch.Tensor] = OrderedDict()
        self._in_part = 0

    def runs_for(self, changed: Box) -> int:
        """Windows that have to be computed when that box of the volume has changed."""
        box = self.region.padded(changed)
        return sum(overlap(window, box) is not None for window in self.region.windows)

    def value(
        self,
        x: torch.Tensor,
        changed: Box | None = None,
        *,
        alike: Callable[[Box], Hashable] | None = None,
    ) -> float:
        """S of a perturbed image.

        Parameters
        ----------
        x : Tensor, shape (1, C, I, J, K)
        changed : tuple of three slices, optional
            Box outside which `x` is the unperturbed image; found by comparison when left out.
        alike : callable, optional
            Takes a window (slices on the padded volume) and says what is in it: where it gives
            what it gave before for that window, the window is not computed again.
        """
        if changed is not None and not self.runs_for(changed):
            self.brute_force += len(self.engine.plan.windows)
            return self.start_value
        return float(self.region.target.value(self.output(x, changed, alike=alike)))

    def output(
        self,
        x: torch.Tensor,
        changed: Box | None = None,
        *,
        alike: Callable[[Box], Hashable] | None = None,
    ) -> torch.Tensor:
        """Fused output of a perturbed image inside the region's box.

        Parameters
        ----------
        x, changed, alike
            As for :meth:`value`.

        Returns
        -------
        Tensor, shape (1, O, I, J, K) or (1, O)
        """
        self.brute_force += len(self.engine.plan.windows)
        padded = self.engine.plan.pad(x)
        box = None if changed is None else self.region.padded(changed)
        together = self._together(padded, box, alike)
        return self.region.fused(
            (
                window,
                together[index]
                if index in together
                else self._once(index, window, padded, box, alike),
            )
            for index, window in enumerate(self.region.windows)
        )

    def cost(self) -> dict[str, Any]:
        """What was computed, and what brute force would have computed, as JSON values.

        ``share_computed`` is the first divided by the second in multiply-adds; it includes the
        records and the comparisons with whole passes, so it can exceed 1 after very few images.
        """
        found: dict[str, Any] = {
            "windows_computed": self.computed,
            "windows_brute_force": self.brute_force,
            "share_computed": float(f"{self.passes / max(1, self.brute_force):.4g}"),
        }
        if self.deviation is not None:
            found["largest_deviation"] = float(f"{self.deviation:.2g}")
        if self._records:
            kept = sum(record.nbytes for record in self._records.values())
            found["record_mb"] = round(kept / 1e6, 1)
        if self.reason:
            found["whole_windows_because"] = self.reason
        return found

    def _once(
        self,
        index: int,
        window: Box,
        padded: torch.Tensor,
        box: Box | None,
        alike: Callable[[Box], Hashable] | None,
    ) -> torch.Tensor:
        """As :meth:`_part`, from what was seen before where it is alike."""
        if alike is None:
            return self._part(index, window, padded, box)
        key = (index, alike(window))
        part = self._seen.pop(key, None)
        if part is None:
            part = self._part(index, window, padded, box)
        self._remember(key, part)
        return part

    def _together(
        self, padded: torch.Tensor, box: Box | None, alike: Callable[[Box], Hashable] | None
    ) -> dict[int, torch.Tensor]:
        """Weighted outputs of windows that are computed as a whole, in batches."""
        if not self.reason:
            return {}
        wanted = [
            (index, window)
            for index, window in enumerate(self.region.windows)
            if (alike is None or (index, alike(window)) not in self._seen)
            and self._changed(window, padded, box) is not None
        ]
        found: dict[int, torch.Tensor] = {}
        if len(wanted) < 2 or not self.engine.separate(self._padded):
            return found
        batch = self.engine.batch
        first = padded[(slice(None), slice(None), *wanted[0][1])]
        batch.learn(_BYTES_A_VOXEL * first.numel())

        def work(group: list[tuple[int, Box]]) -> None:
            parts = [padded[(slice(None), slice(None), *window)] for _, window in group]
            with torch.no_grad():
                outputs = self.engine.run_window(torch.cat(parts), None).split(1)
            for (index, window), output in zip(group, outputs, strict=True):
                found[index] = self.region.cut(window, output)
                if alike is not None:
                    self._remember((index, alike(window)), found[index])
            self.computed += len(group)
            self.passes += float(len(group))

        for group in batch.groups(wanted):
            batch.run(group, work)
        return found

    def _remember(self, key: tuple[int, Hashable], part: torch.Tensor) -> None:
        """Keep an output for the next time; the one that was not used for longest goes."""
        self._seen[key] = part
        while sum(one.nbytes for one in self._seen.values()) > _SEEN_BYTES:
            self._seen.popitem(last=False)

    def _part(self, index: int, window: Box, padded: torch.Tensor, box: Box | None) -> torch.Tensor:
        """Weighted output of a window inside the region's box."""
        changed = self._changed(window, padded, box)
        if changed is None:
            return self._unperturbed(index, window)
        record = self._record(index, window)
        if record is None:
            return self._whole(padded, window)
        return self._run(record, padded, window, changed)

    def _changed(self, window: Box, padded: torch.Tensor, box: Box | None) -> Spans | None:
        """Smallest box inside a window that holds every changed voxel; None without any."""
        inside = window if box is None else overlap(window, box)
        if inside is None:
            return None
        if self.engine.plan.padding_mode != "constant":
            # The padding repeats voxels of the volume: what changed may lie outside the box too.
            inside = tuple(
                side if any(pair) else part
                for side, part, pair in zip(window, inside, self.engine.plan.padding, strict=True)
            )
        place = (slice(None), slice(None), *inside)
        found = where_true((padded[place] != self._padded[place]).any(dim=1)[0])
        if found is None:
            return None
        return tuple(
            (low + side.start - zero.start, high + side.start - zero.start)
            for (low, high), side, zero in zip(found, inside, window, strict=True)
        )

    def _unperturbed(self, index: int, window: Box) -> torch.Tensor:
        record = None if index in self._kept else self._record(index, window)
        if index not in self._kept:
            self._kept[index] = (
                self._whole(self._padded, window)
                if record is None
                else self._weighted(record.output, window)
            )
        return self._kept[index]

    def _record(self, index: int, window: Box) -> IncrementalPass | None:
        """The record of a window; None where windows are computed as a whole."""
        if index in self._records:
            record = self._records[index]
            return None if record.reason else record
        room = self._room()
        if self.reason or room <= 0:
            return None
        self.computed += 1
        self.passes += 1.0
        part = self._padded[(slice(None), slice(None), *window)].contiguous()
        record = IncrementalPass(
            self.engine.model.network,
            lambda x: self.engine.run_window(x, None),
            part,
            self._inner(window),
            most_bytes=room,
        )
        middle: Spans = tuple((size // 2, size // 2 + 1) for size in part.shape[2:])
        if not record.reason and record.share(middle) > _WORTH:
            record.drop(f"every part depends on every voxel ({record.widest})")
        self._records[index] = record
        if record.reason:
            self.reason = record.reason
            self._kept[index] = self._weighted(record.output, window)
            return None
        return record

    def _room(self) -> int:
        """Memory that is left for records."""
        free = free_bytes(self.engine.x.device)
        most = _RECORD_BYTES if free is None else min(_RECORD_BYTES, int(_RECORD_PART * free))
        return most - sum(record.nbytes for record in self._records.values())

    def _run(
        self, record: IncrementalPass, padded: torch.Tensor, window: Box, changed: Spans
    ) -> torch.Tensor:
        """Compute a window in part; now and then as a whole as well."""
        self.engine.progress.check()
        part = padded[(slice(None), slice(None), *window)]
        with network_errors(part):
            output = record.run(part, changed)
        self.computed += 1
        self.passes += record.done / record.work
        self.engine.progress.step("changed part of a window")
        self._in_part += 1
        if self._in_part not in _CHECKED:
            return self._weighted(output, window)
        with torch.no_grad():
            whole = self.engine.run_window(padded, window)
        self.computed += 1
        self.passes += 1.0
        difference = float((output - whole[within(record.region, full(whole.shape))]).abs().max())
        scale = max(float(whole.abs().max()), torch.finfo(whole.dtype).tiny)
        self.deviation = max(self.deviation or 0.0, difference / scale)
        if self.deviation <= _EXACT:
            return self._weighted(output, window)
        self.reason = (
            f"a part differed from the whole by {self.deviation:.1g} of the largest output"
        )
        for one in self._records.values():
            one.drop(self.reason)
        return self.region.cut(window, whole)

    def _whole(self, padded: torch.Tensor, window: Box) -> torch.Tensor:
        self.computed += 1
        self.passes += 1.0
        with torch.no_grad():
            return self.region.cut(window, self.engine.run_window(padded, window))

    def _inner(self, window: Box) -> Spans:
        """The region's box inside a window; () for outputs without voxels."""
        if self.region.box is None:
            return ()
        inside = overlap(window, self.region.box)
        assert inside is not None  # noqa: S101 - only windows that reach the region are used
        return tuple(
            (side.start - zero.start, side.stop - zero.start)
            for side, zero in zip(inside, window, strict=True)
        )

    def _weighted(self, output: torch.Tensor, window: Box) -> torch.Tensor:
        """What :meth:`RegionOutput.cut` gives, of an output that is cut already."""
        inner = tuple(slice(low, high) for low, high in self._inner(window))
        importance = self.engine.plan.importance
        return output * importance[inner] if inner and importance.ndim else output
