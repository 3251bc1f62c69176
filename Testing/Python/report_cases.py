"""Made-up findings, one of each kind, that the tests of the report share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from quality_cases import an_explanation

import SaliencyExplainLib as sx
from SaliencyExplainLib.quality import Comparison, Evaluation, Ranking, Row, SanityCheck, Stage
from SaliencyExplainLib.quality.method_ranking import RankedMethod

SHAPE = (12, 14, 10)
NAMES = {1: "liver", 2: "spleen"}


def a_scan():
    voxels = np.random.default_rng(0).normal(100, 20, SHAPE)
    return sx.make_image(voxels, np.diag([-2.0, 2.0, 3.0, 1.0]), "scan.nii.gz")


def a_labelmap():
    labels = np.zeros(SHAPE)
    labels[2:5, 2:6, 2:6], labels[7:10, 4:9, 3:8] = 1, 2
    return sx.make_image(labels, np.diag([-2.0, 2.0, 3.0, 1.0]))


def a_map(**facts: Any) -> sx.Explanation:
    """A signed map with a peak in the spleen."""
    voxels = 1e-3 * np.random.default_rng(1).normal(size=SHAPE)
    voxels[8, 6, 5] = 1.0
    told = {
        "value": 7.2875,
        "warnings": ("The layer feeds an instance norm.",),
        "image": {"name": "scan.nii.gz", "shape_cijk": [1, *SHAPE], "ijk_to_ras": _AFFINE},
        "model": {"name": "tissue", "format": "MONAI bundle", "sha256": "19547882c1b5" * 4},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "seconds": 3.2,
        "peak_memory_mb": 431.0,
    }
    return an_explanation(voxels, affine=np.diag([-2.0, 2.0, 3.0, 1.0]), **{**told, **facts})


_AFFINE = [[-2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]]


def a_row(metric: str, value: float | None, **facts: Any) -> Row:
    """One row; what is left out comes from the declared metric."""
    made = sx.quality.metrics()[metric.partition(".")[0]]
    part = metric.partition(".")[2]
    told = {
        "title": f"{made.title}: {part}" if part else made.title,
        "interval": None,
        "unit": made.unit,
        "direction": made.direction,
        "passes": 0.0 if part else 3.0,
        "seconds": 0.5,
        "reading": f"What {metric} found.",
        "details": {},
    }
    return Row(metric=metric, value=value, **{**told, **facts})


def curve(metric: str, own: float, random: float) -> list[Row]:
    details = {
        "percent": [0.0, 50.0, 100.0],
        "ordinate": "score",
        "curve": [1.0, own, 0.0],
        "control": [1.0, random, 0.0],
    }
    return [a_row(metric, own, details=details), a_row(f"{metric}.control", random)]


def an_evaluation(*rows: Row, skipped: Any = (("vxap", "needs --truth"),)) -> Evaluation:
    made = rows or (
        *curve("deletion", 0.21, 0.48),
        a_row("faithfulness_correlation", 0.64, interval=(0.41, 0.79)),
        a_row("completeness", None, reading="There is no sum to keep."),
        a_row("density_ratio", 3.5, interval=(2.9, 4.1)),
        a_row("density_ratio.liver", 1.2, interval=(0.8, 1.6)),
        a_row("density_ratio.spleen", 3.5, interval=(2.9, 4.1)),
        a_row("complexity", 11.9),
    )
    return Evaluation(tuple(made), "gradient", "Gradient", {}, 12.0, tuple(skipped))


def a_sanity(verdict: str = "sensitive", sentence: str = "Made up passes.") -> SanityCheck:
    stages = tuple(
        Stage(
            layers=(f"layer{number}.conv", f"layer{number}.norm"),
            randomised=part,
            similarity={"spearman_absolute": like, "spearman": like - 0.1, "everywhere": 0.9},
            gradient=like / 2,
            score=3.0 - number,
        )
        for number, (part, like) in enumerate(((0.25, 0.6), (0.5, 0.31), (0.75, 0.2), (1.0, -0.0)))
    )
    return SanityCheck(
        "gradient", "Gradient", "cascading", verdict, sentence, 0.255, 0.1275, stages,
        "inside the region (400 voxels)", {}, 20.0, {"draws": 2, "seed": 0},
    )  # fmt: skip


def a_ranking(names: tuple[str, ...] = ("gradient", "grad_cam")) -> Ranking:
    maps = {name: replace(a_map(), method=name, title=name.title()) for name in names}
    ranked = tuple(
        RankedMethod(
            name=name,
            title=name.title(),
            mean_rank=1.25 + place,
            interval=(1.0 + place, 1.5 + place),
            best_share=0.75 / (1 + place),
            tied=place == 1,
            ranks={"deletion": 1.0 + place},
            rows={"deletion": a_row("deletion", 0.2 + place)},
            seconds=2.0,
            passes=1.0,
        )
        for place, name in enumerate(names)
    )
    answer = f"Best here: {names[0]}."
    failed = (("score_cam", "It ran out of memory."),)
    return Ranking(ranked, ("deletion",), answer, failed, maps, {})


def a_comparison(names: tuple[str, ...] = ("gradient", "grad_cam")) -> Comparison:
    matrix = np.full((len(names), len(names)), 0.37)
    np.fill_diagonal(matrix, 1.0)
    matrix[0, -1] = matrix[-1, 0] = np.nan if len(names) > 2 else 0.37
    return Comparison(names, {"spearman": matrix}, ("Without scikit-image SSIM was left out.",))


def everything(labels: dict[int, str] | None = None) -> dict[str, Any]:
    """One of each finding, as arguments of write_report."""
    explanation = a_map()
    return {
        "explanation": explanation,
        "image": a_scan(),
        "regions": sx.region_table(explanation, a_labelmap(), labels or NAMES),
        "evaluation": an_evaluation(),
        "sanity": a_sanity(),
        "ranking": a_ranking(),
        "comparison": a_comparison(),
    }
