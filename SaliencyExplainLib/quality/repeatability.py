"""Whether a map stays when nothing that matters changes. The method is run again.

    sensitivity            max and mean over noise d of || Out(x + d) - Out(x) || / || Out(x) ||
    repeatability, noise   Spearman of Out(x + d) and Out(x), d a hundredth of the image's spread
    repeatability, shift   Spearman of Out(T x), moved back, and Out(x), T a shift by one voxel

Sensitivity-max: Yeh et al. 2019, arXiv:1901.09392, section 3; d is uniform in a cube of half edge r
times the standard deviation of the image. The region stays the one of the unperturbed image (and
moves with it). A shift of one voxel changes nothing for an observer; a network with strides sees
another lattice. Voxels that enter at a border repeat the border and are left out of the comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MetricError
from .base import Measured, Metric, metric, param
from .similarity import spearman

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from ..engine import Progress
    from .trial import Trial

__all__ = ["NoiseRepeatability", "Sensitivity", "ShiftRepeatability"]


def _first_map(trial: Trial) -> NDArray[np.float64]:
    if not trial.network_values.any():
        raise MetricError("The map is zero everywhere, so there is nothing to repeat.")
    return trial.network_values


def _noisy(trial: Trial, draw: torch.Tensor, progress: Progress) -> NDArray[np.float64]:
    """Map of the image with noise, in units of each channel's standard deviation."""
    x = trial.engine.x
    noise = draw.to(x) * x.std(dim=(2, 3, 4), keepdim=True)
    return trial.map_of(x + noise, progress)


@metric(
    "sensitivity",
    title="Sensitivity",
    family="robustness",
    summary="How much does the map change at most under small noise?",
    paper="Yeh et al. 2019, arXiv:1901.09392, section 3",
    direction="lower",
    scale="0: not at all; 1: by as much as the map itself",
    needs=("model",),
    reruns=True,
)
@dataclass(frozen=True)
class Sensitivity(Metric):
    """Largest relative change of the map over a few noisy images."""

    samples: int = param(3, low=1, high=1000, help="noisy images")
    radius: float = param(
        0.05, low=1e-6, high=10.0, help="largest noise, in standard deviations of the image"
    )
    seed: int = param(0, low=0, high=2**31 - 1, help="seed of the noise")

    def passes(self) -> int:
        """Runs of the method."""
        return self.samples

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return the largest and the mean relative change, 0 or more."""
        import torch

        first = _first_map(trial)
        generator = torch.Generator().manual_seed(self.seed)
        changes = []
        for index in range(self.samples):
            draw = (2 * torch.rand(trial.engine.x.shape, generator=generator) - 1) * self.radius
            other = _noisy(trial, draw, trial.part(index, self.samples))
            changes.append(float(np.linalg.norm(other - first) / np.linalg.norm(first)))
        largest, mean = max(changes), float(np.mean(changes))
        told = f"Noise of at most {self.radius:g} standard deviations changes the map by"
        return [
            Measured(largest, f"{told} up to {largest:.1%}.", details={"changes": changes}),
            Measured(mean, f"{told} {mean:.1%} on average.", part="mean"),
        ]


@dataclass(frozen=True)
class _Repeated(Metric):
    """A metric of runs of the method on images that say the same."""

    @staticmethod
    def summary_of(values: list[float], what: str) -> Measured:
        """Mean rank correlation with its range."""
        known = [0.0 if np.isnan(value) else value for value in values]
        mean = float(np.mean(known))
        level = "repeats well" if mean >= 0.9 else "repeats in part" if mean >= 0.6 else "does not"
        tail = "" if mean >= 0.6 else " repeat"
        reading = (
            f"Under {what} the map {level}{tail}: rank correlation {mean:.2f} "
            f"(worst {min(known):.2f})."
        )
        return Measured(mean, reading, details={"spearman": values})


@metric(
    "repeatability_noise",
    title="Repeatability under noise",
    family="robustness",
    summary="Does the map come back when the scan has a little more noise?",
    paper="Spearman rank correlation of maps; Yeh et al. 2019, arXiv:1901.09392, for noise",
    direction="higher",
    scale="1: the same order of voxels; 0: another order",
    needs=("model",),
    reruns=True,
)
@dataclass(frozen=True)
class NoiseRepeatability(_Repeated):
    """Mean rank correlation with maps of slightly noisy images."""

    samples: int = param(3, low=1, high=1000, help="noisy images")
    noise: float = param(
        0.01, low=1e-6, high=10.0, help="standard deviation of the noise, in those of the image"
    )
    seed: int = param(0, low=0, high=2**31 - 1, help="seed of the noise")

    def passes(self) -> int:
        """Runs of the method."""
        return self.samples

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return one value, -1 to 1."""
        import torch

        first = _first_map(trial)
        generator = torch.Generator().manual_seed(self.seed)
        values = []
        for index in range(self.samples):
            draw = self.noise * torch.randn(trial.engine.x.shape, generator=generator)
            other = _noisy(trial, draw, trial.part(index, self.samples))
            values.append(spearman(first, other))
        return [self.summary_of(values, f"noise of {self.noise:g} standard deviations")]


@metric(
    "repeatability_shift",
    title="Repeatability under a shift",
    family="robustness",
    summary="Does the map move along when the scan is shifted by one voxel?",
    paper="equivariance to translation, of maps; this project",
    direction="higher",
    scale="1: the same order of voxels; 0: another order",
    needs=("model",),
    reruns=True,
)
@dataclass(frozen=True)
class ShiftRepeatability(_Repeated):
    """Mean rank correlation with maps of the image shifted by one voxel along i, j and k."""

    voxels: int = param(1, low=1, high=64, unit="voxels", help="length of the shift")

    def passes(self) -> int:
        """Runs of the method, one an axis."""
        return 3

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return one value, -1 to 1."""
        first = _first_map(trial)
        x, mask = trial.engine.x, trial.frozen.mask
        if min(first.shape) <= 2 * self.voxels:
            raise MetricError(
                f"The image has {first.shape} voxels; a shift of {self.voxels} leaves nothing to "
                "compare."
            )
        values = []
        for axis in range(3):
            region = None if mask is None else _shifted(mask, axis, self.voxels)
            other = trial.map_of(
                _shifted(x, axis + 2, self.voxels), trial.part(axis, 3), mask=region
            )
            kept = [slice(None)] * 3
            kept[axis] = slice(0, first.shape[axis] - self.voxels)
            moved = [slice(None)] * 3
            moved[axis] = slice(self.voxels, None)
            values.append(spearman(first[tuple(kept)], other[tuple(moved)]))
        return [self.summary_of(values, f"a shift by {self.voxels} voxel")]


def _shifted(volume: torch.Tensor, axis: int, voxels: int) -> Any:
    """A volume moved towards higher indices; the border is repeated."""
    import torch

    size = volume.shape[axis]
    source = (torch.arange(size, device=volume.device) - voxels).clamp(min=0)
    return volume.index_select(axis, source)
