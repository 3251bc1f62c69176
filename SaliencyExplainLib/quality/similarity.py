"""How alike two maps are: rank correlation, overlap of the highest voxels, structural similarity.

Torch-free: only numpy, scipy and, for SSIM, scikit-image. Each returns 1 for equal maps and NaN
where it is not defined (a map that is constant has no order and no structure).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MetricError, MissingPackageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MEASURES", "available_measures", "pearson", "spearman", "ssim", "top_k_iou"]

#: Edge of the window of SSIM in voxels, as in Wang et al. 2004 without Gaussian weights.
_WINDOW = 7
#: Maps are scaled by this percentile of their magnitude, so that one voxel flattens nothing.
_SCALE_PERCENTILE = 99.9


def spearman(
    one: NDArray[Any],
    other: NDArray[Any],
    mask: NDArray[np.bool_] | None = None,
    *,
    absolute: bool = False,
) -> float:
    """Spearman's rank correlation; ties get their mean rank.

    Parameters
    ----------
    one, other : array, same shape
    mask : array of bool, optional
        Voxels that count; all when left out.
    absolute : bool
        Of the magnitudes.

    Returns
    -------
    float
        -1 to 1; NaN where a map is constant.
    """
    from scipy.stats import rankdata

    a, b = _pair(one, other, mask)
    if absolute:
        a, b = np.abs(a), np.abs(b)
    return _correlation(rankdata(a), rankdata(b))


def pearson(one: NDArray[Any], other: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> float:
    """Pearson's correlation, -1 to 1; NaN where a map is constant."""
    return _correlation(*_pair(one, other, mask))


def top_k_iou(
    one: NDArray[Any],
    other: NDArray[Any],
    mask: NDArray[np.bool_] | None = None,
    *,
    fraction: float = 0.1,
) -> float:
    """Overlap (intersection over union) of the voxels of largest magnitude.

    Parameters
    ----------
    one, other, mask
        As for :func:`spearman`.
    fraction : float
        Part of the voxels that counts as "highest", above 0, at most 1. Where a tie crosses the
        limit all of its voxels are taken, but voxels of value 0 never.

    Returns
    -------
    float
        0 to 1; NaN where a map is zero everywhere. Two random maps have fraction / (2 - fraction).

    Raises
    ------
    MetricError
        If `fraction` is out of range.
    """
    if not 0 < fraction <= 1:
        raise MetricError(f"The fraction must lie above 0 and at most at 1; {fraction} was given.")
    a, b = (np.abs(values) for values in _pair(one, other, mask))
    if not a.any() or not b.any():
        return float("nan")
    first, second = _highest(a, fraction), _highest(b, fraction)
    return float((first & second).sum() / (first | second).sum())


def ssim(one: NDArray[Any], other: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> float:
    """Mean structural similarity (Wang et al. 2004, doi:10.1109/TIP.2003.819861) of the magnitudes.

    Each map is divided by the 99.9th percentile of its magnitude and clipped to [0, 1] first; the
    window has 7 voxels a side, fewer where the volume is smaller.

    Returns
    -------
    float
        -1 to 1; NaN where a map is zero everywhere.

    Raises
    ------
    MissingPackageError
        If scikit-image is not installed.
    MetricError
        If the volume has fewer than 3 voxels along an axis.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise MissingPackageError(
            "Structural similarity (SSIM) needs the package scikit-image. Install it (pip install "
            "scikit-image), or leave ssim out of the measures."
        ) from error
    first, second = _volume(one), _volume(other)
    _same_shape(first, second)
    edge = min(_WINDOW, *first.shape)
    if edge < 3:
        raise MetricError(
            f"SSIM needs at least 3 voxels along each axis; the map has {first.shape}. Leave it "
            "out."
        )
    scaled = [_scaled(values) for values in (first, second)]
    if scaled[0] is None or scaled[1] is None:
        return float("nan")
    mean, full = structural_similarity(
        *scaled, data_range=1.0, win_size=edge - (edge + 1) % 2, full=True
    )
    return float(mean if mask is None else full[_volume(mask).astype(bool)].mean())


#: name -> (function, title)
MEASURES: dict[str, tuple[Callable[..., float], str]] = {
    "spearman": (spearman, "Spearman rank correlation"),
    "top_k_iou": (top_k_iou, "overlap of the highest tenth"),
    "ssim": (ssim, "structural similarity"),
}


def available_measures() -> tuple[str, ...]:
    """Names of :data:`MEASURES` that can be computed with the packages that are installed."""
    has = importlib.util.find_spec("skimage") is not None
    return tuple(name for name in MEASURES if has or name != "ssim")


def check_measures(names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the measures to use; None means those that can be computed.

    Raises
    ------
    MetricError
        If one is unknown.
    """
    if names is None:
        return available_measures()
    unknown = [name for name in names if name not in MEASURES]
    if unknown:
        raise MetricError(f"There is no measure {unknown[0]!r}. There are: {', '.join(MEASURES)}.")
    return tuple(names)


def _pair(
    one: NDArray[Any], other: NDArray[Any], mask: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    _same_shape(a, b)
    if mask is None:
        return a.ravel(), b.ravel()
    chosen = np.broadcast_to(np.asarray(mask, dtype=bool), a.shape)
    return a[chosen], b[chosen]


def _same_shape(a: NDArray[Any], b: NDArray[Any]) -> None:
    if a.shape != b.shape:
        raise MetricError(
            f"Two maps of one shape are needed; {a.shape} and {b.shape} were given. Bring them "
            "onto one grid first."
        )


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if a.size < 2:
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float(np.clip((a * b).sum() / scale, -1.0, 1.0)) if scale > 0 else float("nan")


def _highest(values: NDArray[np.float64], fraction: float) -> NDArray[np.bool_]:
    count = max(1, round(fraction * values.size))
    limit = np.partition(values, values.size - count)[values.size - count]
    return np.asarray((values >= limit) & (values > 0))


def _volume(values: NDArray[Any]) -> NDArray[Any]:
    array = np.asarray(values)
    return array[0] if array.ndim == 4 and array.shape[0] == 1 else array


def _scaled(values: NDArray[Any]) -> NDArray[np.float64] | None:
    size = np.abs(values.astype(np.float64))
    top = float(np.percentile(size, _SCALE_PERCENTILE)) or float(size.max())
    return np.clip(size / top, 0.0, 1.0) if top > 0 else None
