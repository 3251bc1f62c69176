"""The tables of the study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..results import StudyTable
from ..statistics import bootstrap
from .magnitude import METHODS
from .measures import SCORES
from .scans import ARTEFACTS, TISSUES

__all__ = ["ARMS", "PLACED", "arm_values", "tables", "tissue_values"]

#: What the network is run on, and how that is called.
ARMS = {
    "before": "unmasked scan",
    "guided_backprop": "after removal by guided backpropagation (shift)",
    "deconvnet": "after removal by DeconvNet (shift)",
    "gradient": "after removal by the plain gradient (shift)",
    "registration": "after removal by guided backpropagation and registration",
    "manual": "true mask (manual removal)",
}
#: How the template was placed, and how that is called.
PLACED = {
    "guided_backprop": "shift by guided backpropagation",
    "deconvnet": "shift by DeconvNet",
    "gradient": "shift by the plain gradient",
    "random weights": "shift by guided backpropagation of random weights",
    "image itself": "shift by the image itself (no network)",
    "no shift": "no shift",
    "registration": "registration from the guided shift (affine)",
    "registration from no shift": "registration from no shift (affine)",
    "best shift": "best shift there is (truth known)",
}
_SHARE = "Mean over the test heads, with the 95 % interval of a bootstrap over heads."


def tissue_values(
    found: Sequence[dict[str, Any]], arm: str, tissue: str, score: str
) -> list[float]:
    """Return one score of one tissue, a value a head."""
    return [one["arms"][arm]["tissues"][tissue][score] for one in found]


def arm_values(found: Sequence[dict[str, Any]], arm: str, score: str = "Dice") -> list[float]:
    """Return one score of the brain's mask, a value a head."""
    return [one["arms"][arm]["brain"][score] for one in found]


def tables(found: Sequence[dict[str, Any]], seed: int) -> tuple[StudyTable, ...]:
    """Return all tables."""
    return (
        _tissue_table(found, seed),
        _brain_table(found, seed),
        _fit_table(found),
        _choice_table(found, seed),
        _artefact_table(found),
    )


def _with_interval(values: Sequence[float], seed: int, factor: float = 100.0) -> list[float]:
    return list(bootstrap(values, seed).ends(factor))


def _tissue_table(found: Sequence[dict[str, Any]], seed: int) -> StudyTable:
    rows = []
    for tissue in TISSUES[:0:-1]:
        for arm, title in ARMS.items():
            means = [
                100 * bootstrap(tissue_values(found, arm, tissue, one), seed).value
                for one in SCORES[:-1]
            ]
            dice = _with_interval(tissue_values(found, arm, tissue, "Dice"), seed)
            rows.append((tissue, title, *means, *dice))
    return StudyTable(
        "tissues",
        "Segmentation before and after removal, and with the true mask",
        (
            "tissue",
            "segmented",
            "accuracy %",
            "precision %",
            "sensitivity %",
            "Dice %",
            "Dice low %",
            "Dice high %",
        ),
        tuple(rows),
        f"{_SHARE} Over the whole volume, so accuracy is mostly that of the air. Precision is what "
        "Matos et al. print as specificity.",
    )


def _brain_table(found: Sequence[dict[str, Any]], seed: int) -> StudyTable:
    rows = []
    for arm, title in PLACED.items():
        means = [100 * bootstrap(arm_values(found, arm, one), seed).value for one in SCORES[:-1]]
        error = _with_interval([one["arms"][arm]["shift_error_mm"] for one in found], seed, 1.0)
        rows.append((title, *means, *_with_interval(arm_values(found, arm), seed), *error))
    return StudyTable(
        "brain",
        "Where the template was placed: the brain's mask",
        (
            "placed by",
            "accuracy %",
            "precision %",
            "sensitivity %",
            "Dice %",
            "Dice low %",
            "Dice high %",
            "shift error mm",
            "error low mm",
            "error high mm",
        ),
        tuple(rows),
        f"{_SHARE} Shift error: distance between the middles of the placed template and of the "
        "true brain. No shift of this template can have a higher Dice than the last row.",
    )


def _fit_table(found: Sequence[dict[str, Any]]) -> StudyTable:
    rows = []
    for method in METHODS:
        fits = [one["fits"][method] for one in found]
        mean = {
            key: sum(one[key] for one in fits) / len(fits)
            for key in ("ks_distance", "ks_brain", "ks_background", "skewness", "kurtosis")
        }
        rows.append(
            (
                method.replace("_", " "),
                mean["ks_distance"],
                mean["ks_brain"],
                mean["ks_background"],
                mean["skewness"],
                mean["kurtosis"],
            )
        )
    return StudyTable(
        "log_normal",
        "Is the map log-normal?",
        (
            "map",
            "KS distance",
            "KS distance in the brain",
            "KS distance outside",
            "skewness",
            "excess kurtosis",
        ),
        tuple(rows),
        "Of the standardised logarithm against the normal distribution; all 0 if the hypothesis "
        "held. In the brain and outside: each with its own mean and deviation. Means over the test "
        "heads.",
    )


def _choice_table(found: Sequence[dict[str, Any]], seed: int) -> StudyTable:
    names = {
        "as chosen": "as chosen: offset 0.001, zeros left out, template times mean gradient, f",
        "offset 1/255": "offset 1/255 before the logarithm",
        "zeros counted": "voxels without gradient counted for mean and deviation",
        "template without gradient": "template is the mask alone",
        "no f": "magnitude itself instead of f",
    }
    rows = [
        (names[key], *_with_interval([one["choices"][key] for one in found], seed))
        for key in found[0]["choices"]
    ]
    return StudyTable(
        "open_choices",
        "What the paper leaves open, done otherwise",
        ("guided backpropagation, shift", "brain Dice %", "low %", "high %"),
        tuple(rows),
        f"{_SHARE} Each row changes one thing.",
    )


def _artefact_table(found: Sequence[dict[str, Any]]) -> StudyTable:
    rows = []
    for artefact in ARTEFACTS:
        some = [one for one in found if one["artefact"] == artefact]
        if not some:
            continue
        values = [
            100 * sum(arm_values(some, arm)) / len(some)
            for arm in ("guided_backprop", "gradient", "image itself", "registration", "best shift")
        ]
        rows.append((artefact, len(some), *values))
    return StudyTable(
        "artefacts",
        "Brain Dice by artefact",
        (
            "artefact",
            "heads",
            "guided %",
            "gradient %",
            "image itself %",
            "guided + registration %",
            "best shift %",
        ),
        tuple(rows),
        "Few heads a row: read as examples.",
    )
