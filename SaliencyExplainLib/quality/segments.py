"""How much evidence lies in each segment, with confidence; and how much off target.

    density ratio of r   ( sum_{v in r} |a| / sum_v |a| ) / ( |r| / N )        1 = no preference
    leakage              1 - sum_{v in M} |a| / sum_v |a|,   M the explained region

Voxels of a map are not independent, so single voxels must not be drawn for a confidence interval:
it would be far too narrow. The volume is cut into blocks of some mm and whole blocks are drawn with
replacement (block bootstrap, Kuensch 1989, doi:10.1214/aos/1176347265), 1000 times; the interval
holds the middle 95 percent. Blocks smaller than the patterns of the map make it too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MetricError
from ..volume import spacing_mm
from .base import Measured, Metric, metric, param

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .trial import Trial

__all__ = ["DensityRatio", "Leakage", "blocks_of", "bootstrap_density", "density_ratios"]

#: Draws that are held in memory together; each is a count for every block.
_AT_ONCE = 100
#: Fewer blocks, in the volume or in a segment, are too few to draw from.
_FEWEST_BLOCKS, _FEWEST_HELD = 10, 5


@metric(
    "density_ratio",
    title="Density ratio of segments",
    family="localisation",
    summary="Is the attribution denser in some structures than in others?",
    paper="share of relevance over share of volume; block bootstrap: doi:10.1214/aos/1176347265",
    direction="none",
    scale="1: no preference; 2: twice as dense as the volume's mean",
    needs=("labelmap",),
)
@dataclass(frozen=True)
class DensityRatio(Metric):
    """Share of |a| over share of the volume, a row a segment; the first is the densest."""

    block_mm: float = param(
        16.0, low=0.5, high=500.0, unit="mm", help="edge of the blocks that are drawn"
    )
    draws: int = param(1000, low=20, high=100000, help="draws of the bootstrap")
    seed: int = param(0, low=0, high=2**31 - 1, help="seed of the draws")

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return one value a segment, 0 or more, densest first."""
        like = trial.explanation.map
        labels = trial.labels_on(like)
        found = [label for label in np.unique(labels).tolist() if label > 0]
        if not found:
            raise MetricError(
                "No segment lies inside the map. Check that the label map belongs to the scan."
            )
        sizes = np.abs(trial.values)
        if not sizes.any():
            raise MetricError("The map is zero everywhere, so no segment has a share of it.")
        blocks = blocks_of(labels.shape, self.block_mm / spacing_mm(like.affine))
        ratios = density_ratios(sizes, labels, found)
        lows, highs = bootstrap_density(sizes, labels, found, blocks, self.draws, self.seed)
        rows = [
            self._row(trial.names.get(label, f"segment {label}"), *values)
            for label, *values in zip(found, ratios, lows, highs, strict=True)
        ]
        rows.sort(key=lambda row: -(row.value or 0.0))
        first = rows[0]
        return [
            Measured(
                first.value,
                f"Densest: {first.reading}",
                interval=first.interval,
                details={"segment": first.part, "blocks": int(blocks.max()) + 1},
            ),
            *rows,
        ]

    def _row(self, name: str, ratio: float, low: float, high: float) -> Measured:
        if np.isnan(low):
            told = f"blocks of {self.block_mm:g} mm are too few for an interval"
            return Measured(ratio, f"{name}: {ratio:.2f} ({told}).", part=name)
        if low > 1:
            told = "denser than the volume's mean"
        elif high < 1:
            told = "less dense than the volume's mean"
        else:
            told = "not told apart from the volume's mean"
        reading = f"{name}: {ratio:.2f} (95 %: {low:.2f} to {high:.2f}), {told}."
        return Measured(ratio, reading, part=name, interval=(low, high))


@metric(
    "off_target_leakage",
    title="Off-target leakage",
    family="localisation",
    summary="How much of the attribution lies outside the explained region?",
    paper="1 - relevance mass of the target; Sakib et al. 2026, arXiv:2603.22624",
    direction="lower",
    scale="0: all inside; the part of the volume outside the region: no preference",
    needs=("model",),
)
@dataclass(frozen=True)
class Leakage(Metric):
    """Share of |a| outside the explained region; some of it is context that the network needs."""

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return one value, 0 to 1, and the density ratio of the region."""
        mask = trial.frozen.mask
        if mask is None:
            raise MetricError(
                "This target has no region, so nothing can leak out of it. Use density_ratio with "
                "segments."
            )
        inside = mask.cpu().numpy()
        sizes = np.abs(trial.network_values)
        if not sizes.any():
            raise MetricError("The map is zero everywhere, so nothing leaks.")
        if inside.all():
            raise MetricError("The explained region is the whole volume: nothing is outside.")
        share, part = float(sizes[inside].sum() / sizes.sum()), float(inside.mean())
        ratio = share / part
        reading = (
            f"{1 - share:.1%} of |attribution| lies outside the explained region; inside it is "
            f"{ratio:.2g} times as dense as on average."
        )
        return [
            Measured(1 - share, reading, details={"region_part": part}),
            Measured(
                ratio,
                f"{ratio:.2g} times the volume's mean density.",
                part="density_ratio",
                direction="higher",
            ),
        ]


def density_ratios(
    sizes: NDArray[Any], labels: NDArray[np.int64], wanted: Sequence[int]
) -> list[float]:
    """Density ratio of each wanted label; `sizes` are magnitudes, of the shape of `labels`."""
    mean = float(sizes.mean())
    return [float(sizes[labels == label].mean() / mean) for label in wanted]


def bootstrap_density(
    sizes: NDArray[Any],
    labels: NDArray[np.int64],
    wanted: Sequence[int],
    blocks: NDArray[np.int64],
    draws: int,
    seed: int,
) -> tuple[list[float], list[float]]:
    """Ends of the 95 percent intervals of the density ratios, by drawing blocks.

    Parameters
    ----------
    sizes : array, shape (I, J, K)
        Magnitudes.
    labels, blocks : array of int, shape (I, J, K)
        Segment and block of each voxel.
    wanted : sequence of int
        Labels.

    Returns
    -------
    lows, highs : list of float
        NaN where there are fewer than 10 blocks, or the segment lies in fewer than 5.
    """
    count = int(blocks.max()) + 1
    if count < _FEWEST_BLOCKS:
        unknown = [float("nan")] * len(wanted)
        return unknown, list(unknown)
    flat, where = sizes.ravel(), blocks.ravel()
    mass, voxels = np.bincount(where, flat, count), np.bincount(where, minlength=count)
    inside = np.stack(
        [
            [
                np.bincount(where[chosen], flat[chosen], count),
                np.bincount(where[chosen], minlength=count),
            ]
            for chosen in ((labels.ravel() == label) for label in wanted)
        ]
    )
    generator, parts = np.random.default_rng(seed), []
    for start in range(0, draws, _AT_ONCE):
        size = min(_AT_ONCE, draws - start)
        drawn = generator.multinomial(count, np.full(count, 1.0 / count), size).astype(float)
        with np.errstate(divide="ignore", invalid="ignore"):
            means = (drawn @ inside[:, 0].T) / (drawn @ inside[:, 1].T)
            parts.append(means / ((drawn @ mass) / (drawn @ voxels))[:, None])
    lows, highs = [], []
    for column, held in zip(np.concatenate(parts).T, inside[:, 1], strict=True):
        kept = column[np.isfinite(column)]
        enough = (held > 0).sum() >= _FEWEST_HELD and kept.size
        low, high = np.percentile(kept, [2.5, 97.5]) if enough else (np.nan, np.nan)
        lows.append(float(low))
        highs.append(float(high))
    return lows, highs


def blocks_of(shape: tuple[int, ...], edges: NDArray[Any]) -> NDArray[np.int64]:
    """Number of the block of each voxel."""
    index = [
        np.arange(size) // max(1, round(float(edge)))
        for size, edge in zip(shape, edges, strict=True)
    ]
    counts = [int(one.max()) + 1 for one in index]
    grid = np.meshgrid(*index, indexing="ij")
    return np.asarray((grid[0] * counts[1] + grid[1]) * counts[2] + grid[2])
