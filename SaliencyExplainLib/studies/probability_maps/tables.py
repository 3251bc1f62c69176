"""Tables and plots of the study, from what was measured. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..results import StudyPlot, StudyTable
from ..statistics import Estimate, bootstrap, mcnemar, proportion, sign_flip

__all__ = [
    "DESIGNS",
    "IG",
    "SIGNS",
    "TITLES",
    "TOLERATED",
    "Sign",
    "Told",
    "accuracy",
    "apart",
    "gathered",
    "plots",
    "right",
    "tables",
]

#: Scanners of the test persons: as in a biased training, the other way round, by chance.
DESIGNS = ("follows", "swapped", "mixed")
_DESIGN_TITLES = ("scanner follows group", "scanner the other way round", "scanners mixed")
TITLES = {
    "image_mixed": "image, scanners mixed",
    "image_biased": "image, scanner follows group",
    "brain_biased": "brain only, scanner follows group",
    "maps_biased": "probability maps, scanner follows group",
}
_REGIONS = ("lesion", "brain outside lesions", "skull and scalp", "air")
IG = "integrated_gradients"
ALL = "all channels"
#: Largest completeness error that counts as adding up.
TOLERATED = 0.01

Told = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Sign:
    """A figure of a map that may tell a biased classifier."""

    key: str
    title: str


SIGNS = (
    Sign("air", "share of |attribution| in the air"),
    Sign("positive air", "share of positive attribution in the air"),
    Sign("outside", "share of |attribution| outside of the brain"),
    Sign("lesion", "share of |attribution| in lesions"),
    Sign("density", "density ratio of lesions"),
    Sign("positive", "positive part of the lesions' attribution"),
    Sign("net", "part of the change of the score that comes from lesions"),
)


# -- Accuracy


def right(told: Told, kind: str, design: str) -> list[bool]:
    """Whether a classifier is right about each test person."""
    return [bool((one["logits"][kind][design] > 0) == one["patient"]) for one in told]


def accuracy(told: Told, kind: str, design: str) -> Estimate:
    """Part of the test persons that a classifier is right about, with Wilson's interval."""
    found = right(told, kind, design)
    return proportion(sum(found), len(found))


# -- Maps


def gathered(
    mapped: Told,
    kind: str,
    sign: str,
    *,
    method: str = IG,
    reference: str = "zero",
    patient: bool = True,
) -> list[float]:
    """One figure of the maps of a classifier, a value a person; see :data:`SIGNS`."""
    found = []
    for one in mapped:
        if one["patient"] != patient:
            continue
        rows = {
            row["region"]: row
            for row in one["rows"]
            if (row["kind"], row["method"], row["reference"], row["channel"])
            == (kind, method, reference, ALL)
        }
        found.append(_sign(rows, sign))
    return found


def _sign(rows: Mapping[str, Mapping[str, float]], sign: str) -> float:
    lesion = rows["lesion"]
    voxels = sum(row["voxels"] for row in rows.values())
    if sign == "air":
        return rows["air"]["share"]
    if sign == "positive air":
        return _ratio(rows["air"]["positive"], sum(row["positive"] for row in rows.values()))
    if sign == "outside":
        return rows["air"]["share"] + rows["skull and scalp"]["share"]
    if sign in rows:
        return rows[sign]["share"]
    if sign == "density":
        return _ratio(lesion["share"], lesion["voxels"] / voxels)
    if sign == "positive":
        return _ratio(lesion["positive"], lesion["share"])
    return _ratio(lesion["net"], sum(row["net"] for row in rows.values()))


def apart(one: Sequence[float], other: Sequence[float]) -> float:
    """Probability that a value of the first group lies above one of the second (ROC area)."""
    a, b = (np.asarray(group)[np.isfinite(group)] for group in (one, other))
    if not len(a) or not len(b):
        return math.nan
    above = (a[:, None] > b).mean() + 0.5 * (a[:, None] == b).mean()
    return float(above)


def tables(told: Told, mapped: Told) -> tuple[StudyTable, ...]:
    """All tables of the study."""
    return (_accuracies(told), _regions(mapped), _channels(mapped), _signs(mapped), _adding(mapped))


def _accuracies(told: Told) -> StudyTable:
    rows: list[tuple[Any, ...]] = []
    for kind, title in TITLES.items():
        for design, name in zip(DESIGNS, _DESIGN_TITLES, strict=True):
            score = accuracy(told, kind, design)
            base = right(told, "image_mixed", design)
            p = None if kind == "image_mixed" else mcnemar(right(told, kind, design), base)
            rows.append((title, name, len(told), score.value, score.low, score.high, p))
    return StudyTable(
        "accuracy",
        "Accuracy on persons of no training",
        ("classifier", "test", "persons", "accuracy", "low", "high", "p against image, mixed"),
        tuple(rows),
        "Low and high: Wilson's 95 % interval. p: exact McNemar test on the same persons. All "
        "three tests are of the same heads; only the scanner differs.",
    )


def _regions(mapped: Told) -> StudyTable:
    rows: list[tuple[Any, ...]] = []
    for patient in (True, False):
        for kind, title in TITLES.items():
            for reference in ("zero", "healthy mean"):
                for region in _REGIONS if patient else _REGIONS[1:]:
                    score = bootstrap(
                        gathered(mapped, kind, region, reference=reference, patient=patient)
                    )
                    group = "patients" if patient else "healthy"
                    rows.append(
                        (group, title, reference, region, score.value, score.low, score.high)
                    )
    return StudyTable(
        "regions",
        "Share of |attribution| by region",
        ("group", "classifier", "reference", "region", "share", "low", "high"),
        tuple(rows),
        'Integrated gradients of the logit of "patient", persons on the scanner of their group; '
        "mean over persons with its 95 % bootstrap interval. Channels are summed first.",
    )


def _channels(mapped: Told) -> StudyTable:
    rows: list[tuple[Any, ...]] = []
    for channel in ("CSF", "grey matter", "white matter"):
        for region in _REGIONS[:2]:
            found = [
                row
                for one in mapped
                if one["patient"]
                for row in one["rows"]
                if (row["kind"], row["method"], row["reference"], row["channel"], row["region"])
                == ("maps_biased", IG, "zero", channel, region)
            ]
            cells = [
                bootstrap([row[key] for row in found]).value
                for key in ("share", "positive", "negative", "net")
            ]
            rows.append((channel, region, *cells))
    return StudyTable(
        "channels",
        "Probability maps: what each channel adds, patients",
        ("channel", "region", "share", "positive", "negative", "net (logit)"),
        tuple(rows),
        "Integrated gradients from zero. Share, and its positive and negative part, of the "
        "|attribution| of all channels; net: what region and channel add to the logit.",
    )


def _signs(mapped: Told) -> StudyTable:
    rows: list[tuple[Any, ...]] = []
    for reference in ("zero", "healthy mean"):
        for sign in SIGNS:
            biased, clean = (
                gathered(mapped, kind, sign.key, reference=reference)
                for kind in ("image_biased", "image_mixed")
            )
            pairs = [a - b for a, b in zip(biased, clean, strict=True)]
            rows.append(
                (
                    sign.title,
                    reference,
                    bootstrap(biased).value,
                    bootstrap(clean).value,
                    apart(biased, clean),
                    sign_flip(pairs),
                )
            )
    return StudyTable(
        "signs_of_bias",
        "Which figure of the maps tells the biased image classifier from the other one",
        ("figure", "reference", "biased", "mixed", "ROC area", "p"),
        tuple(rows),
        "Patients, integrated gradients. ROC area: how probably the figure is larger for the "
        "biased classifier than for the other (0 or 1: they never overlap; 0.5: it tells nothing). "
        "p: sign-flip test over the same patients.",
    )


def _adding(mapped: Told) -> StudyTable:
    rows: list[tuple[Any, ...]] = []
    seen: dict[tuple[str, str], dict[Any, float | None]] = {}
    for number, one in enumerate(mapped):
        for row in one["rows"]:
            key = (row["method"], row["reference"])
            seen.setdefault(key, {})[(number, row["kind"])] = row["error"]
    for (method, reference), errors in seen.items():
        known = [one for one in errors.values() if one is not None]
        within = sum(one <= TOLERATED for one in known)
        worst = (None,) * 3 if not known else (within, float(np.median(known)), max(known))
        positive = bootstrap(
            gathered(mapped, "maps_biased", "positive", method=method, reference=reference)
        )
        rows.append((method, reference, len(errors), *worst, positive.value))
    return StudyTable(
        "completeness",
        "Do the maps add up to the change of the score?",
        (
            "method",
            "reference",
            "maps",
            "within 1 %",
            "median error",
            "largest error",
            "positive part in lesions (probability maps)",
        ),
        tuple(rows),
        "Error: |sum of the map - change of the score| / |change of the score|. Input x gradient "
        "promises no completeness. Steps were doubled up to 256 where the error was above 1 %.",
    )


def plots(told: Told, mapped: Told) -> tuple[StudyPlot, ...]:
    """Plots for the scene."""
    titles = tuple(TITLES.values())
    return (
        StudyPlot(
            "accuracy",
            "Accuracy",
            "classifier",
            "accuracy",
            titles,
            {
                name: tuple(accuracy(told, kind, design).value for kind in TITLES)
                for design, name in zip(DESIGNS, _DESIGN_TITLES, strict=True)
            },
            "bar",
        ),
        StudyPlot(
            "share_by_region",
            "Share of |attribution|, patients",
            "classifier",
            "share",
            titles,
            {
                region: tuple(bootstrap(gathered(mapped, kind, region)).value for kind in TITLES)
                for region in _REGIONS
            },
            "bar",
        ),
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
