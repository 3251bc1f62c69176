"""Log-normal enhancement of an attribution map, and how well its hypothesis holds.

Matos et al. 2019, doi:10.1007/978-3-030-19823-7_25. With G the magnitude of the map::

    u = offset + scale * (G - min G) / (max G - min G)      linear expansion, u > 0
    y = log(u)                                              hypothesis: G is log-normal, y normal
    z = (y - mean y) / std y
    f = exp(-((z - peak) / width)^2)                        a soft threshold about z = 2

Very large gradients, which the paper takes for artefacts, are damped like small ones. What the
paper leaves open is a parameter: offset and scale, and whether voxels where G is zero count for
mean and deviation (here they do not: they would collapse the mean; f is zero there).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import MethodError

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from numpy.typing import NDArray

    from ...explanation import Explanation

__all__ = ["CHANNELS", "LogNormalFit", "enhance_log_normal", "normal_fit", "standard_scores"]

CHANNELS = ("max", "l2")
#: Beyond this Kolmogorov-Smirnov distance z is said not to be normal.
_FAR = 0.05


@dataclass(frozen=True)
class LogNormalFit:
    """How far the logarithm of a map is from a normal distribution.

    Attributes
    ----------
    mean, std : float
        Of y.
    ks_distance : float
        Largest distance between the distributions of z and N(0, 1), 0 to 1 (Kolmogorov-Smirnov).
    skewness, kurtosis : float
        Of y; both 0 for a normal distribution (excess kurtosis).
    voxels : int
        Voxels that were counted.
    share : float
        Part of the volume that they are.
    """

    mean: float
    std: float
    ks_distance: float
    skewness: float
    kurtosis: float
    voxels: int
    share: float

    @property
    def sentence(self) -> str:
        """What this says, for people."""
        holds = "holds" if self.ks_distance <= _FAR else "does not hold"
        return (
            f"That the map is log-normal {holds}: KS distance {self.ks_distance:.3f}, skewness "
            f"{self.skewness:.2f}, excess kurtosis {self.kurtosis:.2f} over {self.voxels:,} voxels."
        )


def enhance_log_normal(
    map: MetaTensor | Explanation,
    *,
    offset: float = 1e-3,
    scale: float = 1.0,
    peak: float = 2.0,
    width: float = 0.5,
    channels: str = "max",
    zeros: bool = False,
) -> tuple[MetaTensor, LogNormalFit]:
    """Bring out where a map is high but not extreme, as if its values were log-normal.

    Parameters
    ----------
    map : MetaTensor or Explanation, shape (C, I, J, K)
        Its magnitude is taken.
    offset, scale : float
        Linear expansion of the magnitude before the logarithm, both above 0. (1, 255) and
        (1/255, 1) are the same.
    peak, width : float
        Standard score that f favours, and how far from it f falls to 1/e.
    channels : {"max", "l2"}
        How the magnitudes of several channels become one.
    zeros : bool
        Count voxels where the map is zero, too.

    Returns
    -------
    MetaTensor, shape (1, I, J, K)
        f, 0 to 1, on the map's grid.
    LogNormalFit
        Read it first: f means nothing where the hypothesis is far off.

    Raises
    ------
    MethodError
        If a parameter is out of range, or the map is constant.

    Examples
    --------
    >>> from SaliencyExplainLib.image import make_image
    >>> values = np.exp(np.random.default_rng(0).normal(size=(9, 9, 9)))
    >>> enhanced, fit = enhance_log_normal(make_image(values, np.eye(4)))
    >>> fit.ks_distance < 0.05
    True
    """
    from ...image import make_image

    if not (offset > 0 and scale > 0 and width > 0):
        raise MethodError(
            "Offset, scale and width of the log-normal enhancement must lie above 0; "
            f"{offset}, {scale} and {width} were given."
        )
    if channels not in CHANNELS:
        raise MethodError(f"channels is one of {', '.join(CHANNELS)}; {channels!r} was given.")
    logs, counted = _logarithm(map, offset, scale, channels, zeros)
    fit = normal_fit(logs[counted], float(counted.mean()))
    scores = (logs - fit.mean) / fit.std
    enhanced = np.exp(-(((scores - peak) / width) ** 2)) * counted
    grid: Any = getattr(map, "maps", map)
    return make_image(enhanced, grid.affine), fit


def standard_scores(
    map: MetaTensor | Explanation,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return z with the usual parameters, and which voxels count; both of shape (I, J, K)."""
    logs, counted = _logarithm(map, 1e-3, 1.0, CHANNELS[0], zeros=False)
    fit = normal_fit(logs[counted], float(counted.mean()))
    return (logs - fit.mean) / fit.std, counted


def _logarithm(
    map_: MetaTensor | Explanation, offset: float, scale: float, channels: str, zeros: bool
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return y and which voxels count."""
    from ...image import as_image

    voxels = as_image(getattr(map_, "maps", map_)).as_tensor().numpy().astype(np.float64)
    size = np.abs(voxels).max(0) if channels == "max" else np.sqrt((voxels**2).sum(0))
    low, high = float(size.min()), float(size.max())
    if high <= low:
        raise MethodError(
            f"The map has the same magnitude ({high:.4g}) everywhere, so there is nothing to "
            "enhance. Choose another target or method."
        )
    logs = np.log(offset + scale * (size - low) / (high - low))
    return logs, np.ones(size.shape, dtype=bool) if zeros else size > 0


def normal_fit(values: NDArray[np.float64], share: float = 1.0) -> LogNormalFit:
    """Say how far values are from a normal distribution of their own mean and deviation.

    Raises
    ------
    MethodError
        If all are the same.
    """
    from scipy.special import ndtr

    mean, std = float(values.mean()), float(values.std())
    if std <= 1e-12 * max(1.0, abs(mean)):
        raise MethodError(
            "The map has one magnitude wherever it is not zero, so there is nothing to enhance. "
            "Choose another target or method."
        )
    scores = np.sort((values - mean) / std, axis=None)
    below, steps = ndtr(scores), np.arange(scores.size + 1) / scores.size
    return LogNormalFit(
        mean=mean,
        std=std,
        ks_distance=float(max((steps[1:] - below).max(), (below - steps[:-1]).max())),
        skewness=float((scores**3).mean()),
        kurtosis=float((scores**4).mean() - 3.0),
        voxels=int(scores.size),
        share=share,
    )
