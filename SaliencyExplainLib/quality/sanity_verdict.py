"""What a sanity check found, and its verdict in words.

The mean rank correlation is read of the stages at which 0.3 to 0.8 of the layers are random (the
lowest layers change every map, guided backpropagation too); in the independent mode of the upper
groups that change the gradient. Insensitive: at least 0.5, and 0.15 above the gradient's.
Sensitive: below 0.5. Otherwise unclear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .base import finite

__all__ = ["SanityCheck", "Stage", "mean_of", "verdict_of", "words_of"]

#: Stages that the verdict reads, by the part of the layers that is random.
_FIRST, _LAST = 0.3, 0.8
_ALIKE, _ABOVE_GRADIENT = 0.5, 0.15


@dataclass(frozen=True)
class Stage:
    """One randomised network.

    Attributes
    ----------
    layers : tuple of str
        Layers that were given new weights at this stage; cascading keeps those of earlier stages.
    randomised : float
        Part of all layers that is random, 0 to 1.
    similarity : mapping of str to float
        With the trained network's map: "spearman_absolute", "spearman", "ssim" (where scikit-image
        is installed), inside the compared voxels; "everywhere": the first in the whole volume. Mean
        over the draws; NaN where the map became constant in all of them.
    gradient : float
        "spearman_absolute" of the plain gradient.
    score : float
        S of the randomised network.
    """

    layers: tuple[str, ...]
    randomised: float
    similarity: dict[str, float]
    gradient: float
    score: float


@dataclass(frozen=True)
class SanityCheck:
    """Whether a method's map depends on the network's weights.

    Attributes
    ----------
    verdict : {"sensitive", "insensitive", "unclear"}
    sentence : str
        The verdict in words, with its numbers.
    alike, gradient : float
        Mean rank correlation of the stages that the verdict reads: the method's, the gradient's.
    stages : tuple of Stage
    compared : str
        Which voxels were compared.
    details : dict
        Similarity that the verdict reads ("measure"), seed, draws, size of the network's copy in
        MB.
    """

    method: str
    title: str
    mode: str
    verdict: str
    sentence: str
    alike: float
    gradient: float
    stages: tuple[Stage, ...]
    compared: str
    target: dict[str, Any]
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "method": self.method,
            "title": self.title,
            "mode": self.mode,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "alike": finite(self.alike),
            "gradient": finite(self.gradient),
            "compared": self.compared,
            "target": self.target,
            "seconds": round(self.seconds, 3),
            "details": self.details,
            "stages": [
                {
                    "layers": list(stage.layers),
                    "randomised": stage.randomised,
                    "similarity": {key: finite(one) for key, one in stage.similarity.items()},
                    "gradient": finite(stage.gradient),
                    "score": stage.score,
                }
                for stage in self.stages
            ],
        }

    def to_text(self) -> str:
        """Return the stages as a table for a terminal, with the verdict."""
        names = list(self.stages[0].similarity)
        lines = [
            "".join([f"{'random':>8}", *(f"{name:>20}" for name in names), "  gradient  from"])
        ]
        lines += [
            "".join(
                [
                    f"{stage.randomised:>8.0%}",
                    *(f"{stage.similarity[name]:>20.2f}" for name in names),
                    f"{stage.gradient:>10.2f}  {stage.layers[0]}",
                ]
            )
            for stage in self.stages
        ]
        return "\n".join([*lines, self.sentence])


def verdict_of(stages: Sequence[Stage], mode: str, measure: str) -> tuple[str, float, float]:
    """Verdict, and the mean similarities of method and gradient that it rests on."""
    if mode == "cascading":
        read = [one for one in stages if _FIRST <= one.randomised <= _LAST] or list(stages)
    else:
        # Groups that the gradient does not notice need not change any map; the lowest ones do.
        upper = stages[: max(1, round(_LAST * len(stages)))]
        read = [one for one in upper if one.gradient < _ALIKE]
    if not read:
        return "unclear", float("nan"), float("nan")
    alike = mean_of([one.similarity[measure] for one in read])
    gradient = mean_of([one.gradient for one in read])
    if np.isnan(alike):
        return "sensitive", alike, gradient
    if alike < _ALIKE:
        return "sensitive", alike, gradient
    return (
        "insensitive" if alike - gradient >= _ABOVE_GRADIENT else "unclear",
        alike,
        gradient,
    )


def words_of(title: str, verdict: str, alike: float, gradient: float, compared: str) -> str:
    """Say the verdict, with its numbers, in words for people."""
    if np.isnan(alike) and verdict == "sensitive":
        return (
            f"{title} passes: its map vanishes when the network's weights are randomised, so it "
            "depends on what the network has learned."
        )
    if np.isnan(alike):
        return (
            f"{title}: unclear. No single group of layers changes even the gradient. Use the "
            "cascading mode."
        )
    numbers = f"(rank correlation {compared}: {alike:.2f}, plain gradient {gradient:.2f})"
    if verdict == "sensitive":
        return (
            f"{title} passes: its map changes when the network's weights are randomised {numbers}, "
            "so it depends on what the network has learned."
        )
    if verdict == "insensitive":
        return (
            f"{title} fails: its map stays alike when most of the network is randomised {numbers}. "
            "It shows the image rather than what the network has learned; do not read it as "
            "evidence."
        )
    return (
        f"{title}: unclear. Its map stays alike {numbers}, but so does that of the gradient, which "
        "must change: place and image alone decide here. Try another image or a larger region."
    )


def mean_of(values: Sequence[float]) -> float:
    """Mean of the values that are known; a constant map has no order to compare."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
