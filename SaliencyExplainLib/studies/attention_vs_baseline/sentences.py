"""The study's findings as sentences, made from its tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..results import StudyTable
from ..statistics import Estimate, bootstrap
from .networks import Contender

__all__ = [
    "METRICS",
    "NAMES",
    "Maps",
    "Pair",
    "accuracy_words",
    "attention_words",
    "augmentation_words",
    "case_words",
    "ceiling_words",
    "even_map",
    "paired_words",
    "similarity_words",
    "used_words",
    "value_of",
]

#: Methods and metrics for people; of a metric, whether higher is better.
NAMES = {
    "gradient": "gradient of the probability",
    "integrated_gradients": "integrated gradients",
    "smooth_grad": "SmoothGrad",
    "grad_cam": "Grad-CAM",
}
METRICS = {
    "relevance_mass": ("mass in the spicules", True),
    "relevance_rank": ("rank accuracy", True),
    "deletion": ("deletion area", False),
    "insertion": ("insertion area", True),
}
_SIGNIFICANT = 0.05
Maps = Mapping[str, Sequence[Mapping[str, Any]]]
Pair = tuple[Contender, Contender]


def value_of(one: Mapping[str, Any], method: str, metric: str, variant: Contender) -> float:
    """Return a metric of a volume's map of one network; NaN where it is not defined."""
    value = one[method]["metrics"][metric][variant.name]
    return math.nan if value is None else float(value)


def even_map(maps: Maps) -> float:
    """Part of the volume that spicules fill, on average."""
    parts = [
        found["spicules"]
        for cases in maps.values()
        for one in cases
        for found in one["attention"].values()
    ]
    return float(np.mean(parts))


def accuracy_words(
    table: StudyTable, gains: Sequence[Estimate], pairs: Sequence[Pair]
) -> tuple[str, ...]:
    """Whether the block changes the accuracy."""
    parts = []
    for number, (gain, pair) in enumerate(zip(gains, pairs, strict=True)):
        one, other = table.rows[2 * number], table.rows[2 * number + 1]
        p = f"p = {other[6]:.2g}" if other[6] is not None else "no test"
        parts.append(
            f"{pair[0].name}: accuracy {one[1]} without and {other[1]} with the block, "
            f"difference {gain.in_words()}, {p} (McNemar, Holm)"
        )
    better = [row for row in table.rows if row[6] is not None and row[6] < _SIGNIFICANT]
    ups = sum(
        gain.value > 0 for number, gain in enumerate(gains) if table.rows[2 * number + 1] in better
    )
    if not better:
        verdict = f"In none of {len(pairs)} pairs does the block change the accuracy clearly"
    else:
        verdict = (
            f"The block changes the accuracy clearly in {len(better)} of {len(pairs)} pairs "
            f"({ups} up, {len(better) - ups} down)"
        )
    return (f"{verdict}. " + "; ".join(parts) + ".",)


def augmentation_words(gains: Mapping[str, Estimate]) -> tuple[str, ...]:
    """What augmentation alone does, for scale."""
    if not gains:
        return ()
    parts = [f"{backbone} by {gain.in_words()}" for backbone, gain in gains.items()]
    return (
        f"For scale: augmentation alone changes the accuracy of {', of '.join(parts)}, without "
        "the block.",
    )


def used_words(table: StudyTable) -> str:
    """What the networks use."""
    parts = [f"{row[0]} {row[5]}" for row in table.rows]
    return (
        "With the spicules erased and nothing else changed, this part of the right answers turns: "
        + "; ".join(parts)
        + "."
    )


def paired_words(table: StudyTable) -> tuple[str, ...]:
    """Which maps are nearer to the evidence, and which more faithful."""
    found = []
    for words, metrics in (
        ("nearer to the evidence", ("relevance_mass", "relevance_rank")),
        ("more faithful to its network", ("deletion", "insertion")),
    ):
        titles = {METRICS[one][0]: METRICS[one][1] for one in metrics}
        rows = [row for row in table.rows if row[2] in titles and not math.isnan(row[9])]
        clear = [row for row in rows if row[10] < _SIGNIFICANT]
        for_block = [row for row in clear if (row[6] > 0) == titles[row[2]]]
        sentence = (
            f"Which map is {words}? Paired tests that are clear (Holm, 5 %): for the network with "
            f"the block {len(for_block)}, for the baseline {len(clear) - len(for_block)}, of "
            f"{len(rows)}"
        )
        if clear:
            largest = max(clear, key=lambda row: abs(row[6]) / max(abs(row[4]), 1e-9))
            sentence += (
                f"; the largest: {largest[1]} of {largest[0]}, {largest[2]} {largest[4]:.3f} "
                f"without and {largest[5]:.3f} with the block"
            )
        found.append(sentence + ".")
    return tuple(found)


def ceiling_words(maps: Maps, steps: int) -> tuple[str, ...]:
    """Whether deletion and insertion can tell maps apart here."""
    ceiling = 1 - 1 / (2 * steps)
    areas = np.array(
        [
            math.nan if value is None else value
            for cases in maps.values()
            for one in cases
            for method in NAMES
            for metric in ("deletion", "insertion")
            for value in one[method]["metrics"][metric].values()
        ],
        dtype=np.float64,
    )
    areas = areas[np.isfinite(areas)]
    if not len(areas):
        return ()
    share = float((areas >= ceiling - 0.02).mean())
    sentence = (
        f"{share:.0%} of the deletion and insertion areas lie at their ceiling of about "
        f"{ceiling:.3f}, where the probability of spicules stays at 1 while anything of the volume "
        "is there"
    )
    if share > 0.25:
        sentence += ", holes and single voxels included: these curves can hardly tell maps apart"
    return (sentence + ".",)


def similarity_words(table: StudyTable) -> tuple[str, ...]:
    """How alike the maps are."""
    means = {
        kind: [row[4] for row in table.rows if row[1] == kind and not math.isnan(row[4])]
        for kind in ("block", "other training")
    }
    if not means["block"]:
        return ()
    low, high = min(means["block"]), max(means["block"])
    sentence = (
        f"Maps with and without the block have a rank correlation of {low:.2f} to {high:.2f}, "
        "by network and method"
    )
    if means["other training"]:
        low, high = min(means["other training"]), max(means["other training"])
        more = np.mean(means["block"]) < np.mean(means["other training"])
        sentence += (
            f"; two baselines that differ by augmentation alone {low:.2f} to {high:.2f}, so the "
            f"block changes maps {'more' if more else 'no more'} than another training does, on "
            "average"
        )
    return (sentence + ".",)


def attention_words(table: StudyTable, maps: Maps, pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Where the blocks' own attention lies, and what their branches do."""
    best = {}
    for _, variant in pairs:
        cases = maps[variant.backbone]
        scored = {
            method: bootstrap(
                [value_of(one, method, "relevance_mass", variant) for one in cases]
            ).value
            for method in NAMES
        }
        known = [one for one in scored.items() if not math.isnan(one[1])]
        best[variant.name] = max(known, key=lambda one: one[1], default=("gradient", math.nan))
    even = even_map(maps)
    parts = [
        f"{row[0]} {row[1]} (its {NAMES[best[row[0]][0]]}: {best[row[0]][1] / even:.1f})"
        for row in table.rows
    ]
    positions = ", ".join(f"{row[8]:.2f}" for row in table.rows)
    channels = ", ".join(f"{row[9]:.3g}" for row in table.rows)
    return (
        "The blocks' own attention lies in the spicules so many times as much as an even map: "
        + "; ".join(parts)
        + f". It has {table.rows[0][3].split(' of ')[1]} voxels, too few to show spicules.",
        f"In the blocks the position term is {positions} times as large as the features that it "
        f"is added to, the channel term {channels} times (no softmax, as published).",
    )


def case_words(maps: Maps) -> tuple[str, ...]:
    """What was done where no volume is right in all networks."""
    lost = [backbone for backbone, cases in maps.items() if not cases[0]["all_right"]]
    if not lost:
        return ()
    return (
        f"No spiculated volume is right in all networks of {' and '.join(lost)}: maps of the first "
        "ones were compared instead, which says little.",
    )
