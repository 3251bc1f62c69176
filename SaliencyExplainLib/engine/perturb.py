"""Scores of perturbed images, computing only what can change.

Of the windows that reach the region, only those that hold a changed voxel are run again; the others
answer from the outputs of the unperturbed image.
"""

from __future__ import annotations

import torch

from .engine import Engine
from .region import Box, RegionOutput, overlap

__all__ = ["Perturber"]


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
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.region = RegionOutput(engine)
        self.start_value = engine.start_value
        self.computed = 0
        self.brute_force = 0
        self._padded = engine.plan.pad(engine.x)
        self._kept: dict[int, torch.Tensor] = {}

    def runs_for(self, changed: Box) -> int:
        """Windows that have to be computed when that box of the volume has changed."""
        box = self.region.padded(changed)
        return sum(overlap(window, box) is not None for window in self.region.windows)

    def value(self, x: torch.Tensor, changed: Box | None = None) -> float:
        """S of a perturbed image.

        Parameters
        ----------
        x : Tensor, shape (1, C, I, J, K)
        changed : tuple of three slices, optional
            Box outside which `x` is the unperturbed image; found by comparison when left out.
        """
        padded = self.engine.plan.pad(x)
        box = None if changed is None else self.region.padded(changed)
        self.brute_force += len(self.engine.plan.windows)
        fused = self.region.fused(
            (window, self._part(index, window, padded, box))
            for index, window in enumerate(self.region.windows)
        )
        return float(self.region.target.value(fused))

    def cost(self) -> dict[str, int]:
        """Windows that were computed, and that brute force would have computed."""
        return {"windows_computed": self.computed, "windows_brute_force": self.brute_force}

    def _part(self, index: int, window: Box, padded: torch.Tensor, box: Box | None) -> torch.Tensor:
        if box is not None:
            changed = overlap(window, box) is not None
        else:
            place = (slice(None), slice(None), *window)
            changed = not torch.equal(padded[place], self._padded[place])
        if changed:
            self.computed += 1
            return self._run(padded, window)
        if index not in self._kept:
            self.computed += 1
            self._kept[index] = self._run(self._padded, window)
        return self._kept[index]

    def _run(self, padded: torch.Tensor, window: Box) -> torch.Tensor:
        with torch.no_grad():
            return self.region.cut(window, self.engine.run_window(padded, window))
