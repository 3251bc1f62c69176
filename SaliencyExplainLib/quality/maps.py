"""What a map claims, as arrays: evidence, the order of its voxels, a random map as smooth as it.

Torch-free. A slope (unit "score / intensity") has a sign that says in which direction the intensity
matters, not whether the voxel speaks for the target: its evidence is |a|. Of every other map it is
max(a, 0).

The control of a perturbation metric is a Gaussian random field of the same shape that is as smooth
as the map: a Gaussian filter of standard deviation s makes a field whose squared differences
between neighbours are var(a) * 2 (1 - exp(-1 / (4 s^2))), which gives s from the map. Smoothness
alone moves such metrics (arXiv:2304.13836), so a map has to beat it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MetricError
from .base import param

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..explanation import Explanation

__all__ = [
    "PARTS",
    "SLOPE",
    "evidence",
    "part_param",
    "ranking",
    "relative_mask",
    "smooth_random",
    "smoothness",
]

PARTS = ("automatic", "positive", "absolute")
#: Unit of maps whose values are slopes.
SLOPE = "score / intensity"
#: A field rougher than this, in voxels, is white noise.
_ROUGHEST, _SMOOTHEST = 0.3, 50.0


def part_param() -> Any:
    """Parameter that says which part of a signed map counts as evidence."""
    return param(
        "automatic",
        choices=PARTS,
        help="what counts as evidence; automatic: |a| of slopes, else the positive part",
    )


def is_slope(explanation: Explanation) -> bool:
    """Whether the map's values are slopes of the score, not parts of it."""
    return explanation.unit == SLOPE


def evidence(
    values: NDArray[Any], explanation: Explanation, part: str = "automatic"
) -> NDArray[np.float64]:
    """Evidence for the target, at least 0, of a map's values; shape as given.

    Raises
    ------
    MetricError
        If nothing is left: the map is zero everywhere, or nowhere positive.
    """
    if part == "automatic":
        part = "absolute" if is_slope(explanation) else "positive"
    raw = np.asarray(values, dtype=np.float64)
    found = np.abs(raw) if part == "absolute" else np.maximum(raw, 0.0)
    if not found.any():
        raise MetricError(
            f"The map of {explanation.title} has no {part} value, so it names no evidence."
        )
    return found


def relative_mask(
    values: NDArray[Any], explanation: Explanation, part: str = "automatic"
) -> NDArray[np.float64]:
    """Evidence divided by its maximum, in [0, 1], in steps of 1/255."""
    found = evidence(values, explanation, part)
    return np.asarray(np.round(found / found.max() * 255.0) / 255.0)


def ranking(values: NDArray[Any], seed: int) -> NDArray[np.int64]:
    """Flat voxel numbers, highest value first; equal values in random order.

    Most maps have many equal voxels (zeros): in the order of memory they would be taken slice by
    slice.
    """
    shuffled = np.random.default_rng(seed).permutation(values.size)
    return np.asarray(shuffled[np.argsort(-values.ravel()[shuffled], kind="stable")])


def smoothness(values: NDArray[Any]) -> NDArray[np.float64]:
    """Standard deviation, in voxels along i, j, k, of the filter that makes noise as smooth."""
    raw = np.asarray(values, dtype=np.float64)
    variance = raw.var()
    found = np.full(3, _ROUGHEST)
    for axis in range(3):
        if raw.shape[axis] < 2 or variance == 0:
            continue
        # 1 - correlation of neighbours.
        apart = float((np.diff(raw, axis=axis) ** 2).mean()) / (2.0 * variance)
        if apart <= 0:
            found[axis] = _SMOOTHEST
        elif apart < 1:
            found[axis] = np.sqrt(-1.0 / (4.0 * np.log1p(-apart)))
    return np.asarray(found.clip(_ROUGHEST, _SMOOTHEST))


def smooth_random(
    shape: tuple[int, ...], sigma: NDArray[Any], seed: int = 0
) -> NDArray[np.float64]:
    """Gaussian random field of that shape, filtered with `sigma` voxels along i, j, k."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).standard_normal(shape)
    return np.asarray(gaussian_filter(noise, sigma=sigma, mode="wrap"))
