"""Tables, plots and sentences of the study, all made from the numbers that were found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..results import Comparison, StudyPlot, StudyTable
from ..statistics import Estimate, bootstrap, holm, proportion
from .networks import BACKBONES, Contender, Setting, contenders
from .published import (
    DIFFERS,
    accuracy_comparisons,
    augmentation_comparisons,
    claim_comparisons,
)
from .sentences import (
    METRICS,
    NAMES,
    Maps,
    Pair,
    accuracy_words,
    attention_words,
    augmentation_words,
    case_words,
    ceiling_words,
    even_map,
    paired_words,
    similarity_words,
    used_words,
    value_of,
)
from .tables import PAIRED_NOTE, models_table, paired_rows

__all__ = ["Summary", "summarise"]

Answers = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Summary:
    """What the result says, and the paired tests that a figure draws."""

    answer: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    differs: tuple[str, ...]
    tables: tuple[StudyTable, ...]
    plots: tuple[StudyPlot, ...]
    paired: StudyTable


def summarise(setting: Setting, answers: Answers, maps: Maps) -> Summary:
    """Make tables, plots and sentences.

    Parameters
    ----------
    setting : Setting
    answers : sequence of mapping
        By test volume: logits of each network, with the spicules and without.
    maps : mapping of str to sequence of mapping
        By backbone: what was measured on the maps of each explained volume.
    """
    pairs = [
        (kinds[at], kinds[at + 1])
        for kinds in (contenders(setting, backbone) for backbone in BACKBONES)
        for at in range(0, len(kinds), 2)
    ]
    accuracy = _accuracy(answers, pairs)
    paired = _paired(maps, pairs)
    similarity = _similarity(maps, pairs)
    attention = _attention(maps, answers, pairs)
    used = _used(answers, pairs)
    gains = [_gain(answers, pair) for pair in pairs]
    augmented = {
        one.backbone: _gain(answers, (one, replace(one, augmented=True)))
        for one, _ in pairs
        if not one.augmented and True in setting.augmentation
    }
    answer = (
        *accuracy_words(accuracy, gains, pairs),
        *augmentation_words(augmented),
        used_words(used),
        *paired_words(paired),
        *ceiling_words(maps, setting.curve_steps),
        *similarity_words(similarity),
        *attention_words(attention, maps, pairs),
        *case_words(maps),
    )
    return Summary(
        answer=answer,
        comparisons=(
            *accuracy_comparisons(accuracy, gains, pairs),
            *augmentation_comparisons(augmented),
            claim_comparisons(accuracy, gains),
        ),
        differs=DIFFERS,
        tables=(accuracy, used, paired, similarity, attention),
        plots=_plots(accuracy, answers, paired, pairs),
        paired=paired,
    )


def _truth(answers: Answers) -> list[int]:
    return [int(one["spiculated"]) for one in answers]


def _called(answers: Answers, variant: Contender) -> list[int]:
    return [int(one[variant.name][0] > 0) for one in answers]


def _accuracy(answers: Answers, pairs: Sequence[Pair]) -> StudyTable:
    truth = _truth(answers)
    rows: list[tuple[Any, ...]] = []
    for pair in pairs:
        one = models_table(truth, {variant.name: _called(answers, variant) for variant in pair})
        rows += one.rows
    adjusted = holm([math.nan if row[-1] is None else row[-1] for row in rows])
    return StudyTable(
        "accuracy",
        "Answers on the test volumes",
        (
            "network",
            *[f"{name} (95 % interval)" for name in ("accuracy", "precision", "recall", "F1")],
            "p, block against baseline (McNemar)",
            "p (Holm)",
        ),
        tuple((*row, None if math.isnan(p) else p) for row, p in zip(rows, adjusted, strict=True)),
        f"{len(truth)} volumes that were not trained on, half of them with spicules. Precision, "
        "recall and F1 are those of spiculated nodules. Intervals: Wilson, F1 bootstrap.",
    )


def _gain(answers: Answers, pair: Pair) -> Estimate:
    """Accuracy of the second network minus that of the first, on the same volumes."""
    truth = np.array(_truth(answers))
    right = [(np.array(_called(answers, one)) == truth).astype(float) for one in pair]
    return bootstrap((right[1] - right[0]).tolist())


def _used(answers: Answers, pairs: Sequence[Pair]) -> StudyTable:
    rows: list[tuple[Any, ...]] = []
    spiculated = [one for one in answers if one["spiculated"]]
    for variant in (one for pair in pairs for one in pair):
        found = [one[variant.name] for one in spiculated]
        right = [pair for pair in found if pair[0] > 0]
        drop = bootstrap([one - erased for one, erased in found])
        turned = proportion(sum(erased <= 0 for _, erased in right), len(right))
        rows.append((variant.name, len(found), drop.value, drop.low, drop.high, turned.in_words()))
    return StudyTable(
        "evidence_used",
        "What the networks use: answers with the spicules erased",
        (
            "network",
            "spiculated volumes",
            "mean fall of the logit",
            "low",
            "high",
            "part of the right answers that turn (95 % interval)",
        ),
        tuple(rows),
        "The erased volume differs from the tested one by its spicules alone. Logits of different "
        "networks have no common scale; the part that turns has.",
    )


def _paired(maps: Maps, pairs: Sequence[Pair]) -> StudyTable:
    found: dict[str, tuple[str, str, list[float], list[float]]] = {}
    kinds: list[tuple[str, str]] = []
    for pair in pairs:
        cases = maps[pair[0].backbone]
        for method in NAMES:
            for metric, (title, _) in METRICS.items():
                values = [
                    [value_of(one, method, metric, variant) for one in cases] for variant in pair
                ]
                key = f"{pair[0].name}, {method}, {metric}"
                found[key] = (pair[0].name, pair[1].name, values[0], values[1])
                kinds.append((NAMES[method], title))
    rows = [(row[1], *kind, *row[3:]) for kind, row in zip(kinds, paired_rows(found), strict=True)]
    return StudyTable(
        "paired",
        "Maps with the block against maps without",
        (
            "baseline",
            "method",
            "metric",
            "cases",
            "baseline's mean",
            "block's mean",
            "mean difference",
            "low",
            "high",
            "p (sign flip)",
            "p (Holm)",
        ),
        tuple(rows),
        f"{PAIRED_NOTE} Higher is better but for the deletion area. Evidence: the spicules; an "
        f"even map has the mass and the rank accuracy {even_map(maps):.4f}. Areas: under the "
        "probability of spicules, while the highest voxels are replaced by 0 or put into it; they "
        "also follow the probability of the whole volume, which differs between networks.",
    )


def _similarity(maps: Maps, pairs: Sequence[Pair]) -> StudyTable:
    rows: list[tuple[Any, ...]] = []
    for backbone in BACKBONES:
        own = [pair for pair in pairs if pair[0].backbone == backbone]
        compared = [(f"{pair[0].name} / {pair[1].name}", *pair) for pair in own]
        if len(own) > 1:
            names = f"{own[0][0].name} / {own[1][0].name}"
            compared.append((names, own[0][0], own[1][0]))
        for method in NAMES:
            for words, one, other in compared:
                scored = []
                for measure in ("spearman", "top_k_iou"):
                    alike = [_pair(found[method], measure, one, other) for found in maps[backbone]]
                    scored.append(bootstrap(alike))
                kind = "block" if other.block else "other training"
                cells = [cell for score in scored for cell in (score.value, score.low, score.high)]
                rows.append((words, kind, NAMES[method], len(maps[backbone]), *cells))
    return StudyTable(
        "similarity",
        "How alike the maps of two networks are",
        (
            "networks",
            "differ by",
            "method",
            "cases",
            "rank correlation",
            "low",
            "high",
            "overlap of the highest tenth",
            "low ",
            "high ",
        ),
        tuple(rows),
        "1: equal; two random maps have a rank correlation of 0 and an overlap of 0.053.",
    )


def _pair(found: Mapping[str, Any], measure: str, one: Contender, other: Contender) -> float:
    names = found["names"]
    value = found["pairs"][measure][names.index(one.name)][names.index(other.name)]
    return math.nan if value is None else float(value)


def _attention(maps: Maps, answers: Answers, pairs: Sequence[Pair]) -> StudyTable:
    rows: list[tuple[Any, ...]] = []
    for _, variant in pairs:
        found = [one["attention"][variant.name] for one in maps[variant.backbone]]
        evidence = bootstrap([one["relevance_mass"] / one["spicules"] for one in found])
        nodule = bootstrap([one["nodule_mass"] / one["nodule"] for one in found])
        tokens = bootstrap([one["tokens"] for one in found])
        like = [bootstrap([one["like"][method] for one in found]).value for method in NAMES]
        sizes = np.array([one[f"{variant.name} branches"] for one in answers]).mean(0)
        rows.append(
            (
                variant.name,
                evidence.in_words(".2f"),
                nodule.in_words(".2f"),
                f"{tokens.value:.1f} of {found[0]['all_tokens']}",
                *like,
                *[float(one) for one in sizes],
            )
        )
    return StudyTable(
        "attention",
        "The blocks' own attention (mean of the rows of E, on the grid of the features)",
        (
            "network",
            "mass in the spicules, times an even map (95 % interval)",
            "mass in the whole nodule, times an even map (95 % interval)",
            "voxels attended to, exp(entropy)",
            *[f"rank correlation with {name}" for name in NAMES.values()],
            "position term / V",
            "channel term / X",
        ),
        tuple(rows),
        "An even map has 1. The last columns: |E V| / |V| and |X G| / |X|, means over the test "
        "volumes; how much each branch changes what it is added to.",
    )


def _plots(
    accuracy: StudyTable, answers: Answers, paired: StudyTable, pairs: Sequence[Pair]
) -> tuple[StudyPlot, ...]:
    truth = np.array(_truth(answers))
    bars = tuple(
        tuple(float((np.array(_called(answers, pair[at])) == truth).mean()) for pair in pairs)
        for at in (0, 1)
    )
    rank = METRICS["relevance_rank"][0]
    rows = [row for row in paired.rows if row[2] == rank]
    return (
        StudyPlot(
            "accuracy",
            accuracy.title,
            "network",
            "accuracy",
            tuple(pair[0].name for pair in pairs),
            {"baseline": bars[0], "with the block": bars[1]},
            "bar",
        ),
        StudyPlot(
            "rank accuracy",
            "Highest voxels of the maps that are spicules",
            "network and method",
            rank,
            tuple(f"{row[0]}, {row[1]}" for row in rows),
            {
                "baseline": tuple(float(row[4]) for row in rows),
                "with the block": tuple(float(row[5]) for row in rows),
            },
            "bar",
        ),
    )
