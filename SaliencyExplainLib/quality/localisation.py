"""Whether a map lies where the evidence is known to be. No pass of the network.

With e the evidence of the map (:mod:`.maps`) on the scan's grid and r the ground truth::

    pointing game   is the highest voxel of e in r, or nearer to it than a tolerance in mm?
    mass            sum_{v in r} e(v) / sum_v e(v)
    rank            part of the |r| highest voxels of e that lies in r
    VxAP            area under the voxel precision-recall curve, sum_n (R_n - R_{n-1}) P_n
    MaxF1           best harmonic mean of precision and recall over all thresholds

Pointing game: Zhang et al. 2018, doi:10.1007/s11263-017-1059-x. Mass and rank accuracy: Arras et
al. 2022, doi:10.1016/j.inffus.2021.11.008. VxAP and MaxF1: Wisniewski et al. 2024,
arXiv:2405.14584; differs from it: every value of the map is a threshold, not 256 or 100 steps.
Voxels of equal value are taken together, so that no order of memory decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..volume import spacing_mm, to_ras
from .base import Measured, Metric, metric, param
from .maps import evidence, part_param

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .trial import Trial

__all__ = [
    "MaxF1",
    "PointingGame",
    "RelevanceMass",
    "RelevanceRank",
    "VoxelPrecision",
    "mass_inside",
    "precision_recall",
    "rank_inside",
]


@dataclass(frozen=True)
class _Localised(Metric):
    """A metric of the evidence against a ground truth."""

    part: str = part_param()

    def pair(self, trial: Trial) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Evidence and ground truth, both of shape (I, J, K)."""
        return evidence(trial.values, trial.explanation, self.part), trial.truth_mask


@metric(
    "pointing_game",
    title="Pointing game",
    family="localisation",
    summary="Does the highest voxel hit the ground truth?",
    paper="Zhang et al. 2018, doi:10.1007/s11263-017-1059-x",
    direction="higher",
    scale="1: hit; 0: miss; between: part of several equal maxima that hit",
    needs=("truth",),
)
@dataclass(frozen=True)
class PointingGame(_Localised):
    """Whether the maximum lies in the ground truth."""

    tolerance_mm: float = param(
        0.0, low=0.0, high=100.0, unit="mm", help="a maximum this near to the truth is a hit, too"
    )

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return one value, 0 to 1."""
        from scipy.ndimage import distance_transform_edt

        found, truth = self.pair(trial)
        affine = trial.explanation.map.affine
        distance = distance_transform_edt(~truth, sampling=spacing_mm(affine))
        peaks = np.argwhere(found == found.max())
        apart = distance[tuple(peaks.T)]
        hits = float((apart <= self.tolerance_mm).mean())
        place = to_ras(affine, peaks[0]).round(1).tolist()
        reading = f"The highest voxel lies at {place} (RAS, mm), " + (
            "inside the ground truth."
            if apart[0] == 0
            else f"{apart[0]:.1f} mm from the ground truth."
        )
        details = {"peak_ras_mm": place, "distance_mm": float(apart[0]), "maxima": len(peaks)}
        return [Measured(hits, reading, details=details)]


@metric(
    "relevance_mass",
    title="Relevance mass accuracy",
    family="localisation",
    summary="How much of the evidence lies in the ground truth?",
    paper="Arras et al. 2022, doi:10.1016/j.inffus.2021.11.008",
    direction="higher",
    scale="1: all; the truth's part of the volume: no preference",
    needs=("truth",),
)
@dataclass(frozen=True)
class RelevanceMass(_Localised):
    """Share of the evidence inside the ground truth."""

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return one value, 0 to 1."""
        found, truth = self.pair(trial)
        mass, chance = mass_inside(found, truth), float(truth.mean())
        reading = (
            f"{mass:.1%} of the evidence lies in the ground truth, which is {chance:.1%} of the "
            f"volume: {mass / chance:.2g} times an even map."
        )
        return [Measured(mass, reading, details={"even_map": chance})]


@metric(
    "relevance_rank",
    title="Relevance rank accuracy",
    family="localisation",
    summary="Are the highest voxels those of the ground truth?",
    paper="Arras et al. 2022, doi:10.1016/j.inffus.2021.11.008",
    direction="higher",
    scale="1: exactly those; the truth's part of the volume: chance",
    needs=("truth",),
)
@dataclass(frozen=True)
class RelevanceRank(_Localised):
    """Part of the |r| highest voxels that lies in r."""

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return one value, 0 to 1."""
        found, truth = self.pair(trial)
        rank, chance = rank_inside(found, truth), float(truth.mean())
        reading = (
            f"{rank:.1%} of the {int(truth.sum())} highest voxels lie in the ground truth of that "
            f"size (chance: {chance:.1%})."
        )
        return [Measured(rank, reading, details={"chance": chance})]


@metric(
    "vxap",
    title="Voxel average precision (VxAP)",
    family="localisation",
    summary="Over all thresholds, how well does the map separate truth from the rest?",
    paper="Wisniewski et al. 2024, arXiv:2405.14584",
    direction="higher",
    scale="1: perfectly; the truth's part of the volume: chance",
    needs=("truth",),
)
@dataclass(frozen=True)
class VoxelPrecision(_Localised):
    """Area under the voxel precision-recall curve."""

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return one value, 0 to 1."""
        found, truth = self.pair(trial)
        precision, recall, _ = precision_recall(found, truth)
        area = float((np.diff(recall, prepend=0.0) * precision).sum())
        chance = float(truth.mean())
        reading = f"Precision {area:.1%} on average over all thresholds (chance: {chance:.1%})."
        return [Measured(area, reading, details={"chance": chance})]


@metric(
    "max_f1",
    title="Best voxel F1 (MaxF1)",
    family="localisation",
    summary="At its best threshold, how well does the map draw the ground truth?",
    paper="Wisniewski et al. 2024, arXiv:2405.14584",
    direction="higher",
    scale="1: exactly; 2 p / (1 + p) with p the truth's part of the volume: chance",
    needs=("truth",),
)
@dataclass(frozen=True)
class MaxF1(_Localised):
    """Best Dice overlap of a thresholded map with the ground truth."""

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return one value, 0 to 1."""
        found, truth = self.pair(trial)
        precision, recall, thresholds = precision_recall(found, truth)
        scores = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        best = int(scores.argmax())
        relative = float(thresholds[best] / found.max())
        reading = (
            f"Cut at {relative:.0%} of its maximum, the map has precision {precision[best]:.1%} "
            f"and recall {recall[best]:.1%}."
        )
        details = {
            "threshold": relative,
            "precision": float(precision[best]),
            "recall": float(recall[best]),
        }
        return [Measured(float(scores[best]), reading, details=details)]


def mass_inside(values: NDArray[Any], mask: NDArray[np.bool_]) -> float:
    """Share of non-negative values that lies in a mask."""
    return float(values[mask].sum() / values.sum())


def rank_inside(values: NDArray[Any], mask: NDArray[np.bool_]) -> float:
    """Part of the highest voxels, as many as the mask has, that lies in the mask.

    Of voxels with equal value at the limit the mean over all their orders is taken.
    """
    size = int(mask.sum())
    limit = np.partition(values.ravel(), values.size - size)[values.size - size]
    above, tied = values > limit, values == limit
    left = size - int(above.sum())
    hits = (above & mask).sum() + left * (tied & mask).sum() / tied.sum()
    return float(hits / size)


def precision_recall(
    values: NDArray[Any], mask: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Precision, recall and threshold for every value of a map, highest threshold first."""
    order = np.argsort(-values.ravel(), kind="stable")
    ordered = values.ravel()[order]
    hits = np.cumsum(mask.ravel()[order])
    # The last voxel of each run of equal values.
    last = np.flatnonzero(np.append(np.diff(ordered) != 0, True))
    return hits[last] / (last + 1.0), hits[last] / float(mask.sum()), ordered[last]
