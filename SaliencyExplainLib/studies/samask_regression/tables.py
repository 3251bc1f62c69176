"""The tables of the study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..heads import SyntheticHead
from ..results import StudyTable
from ..statistics import Estimate, bootstrap, intraclass_correlation, sign_flip
from .measures import METHODS, NEAR_MM, SMOOTH_MM, SMOOTHED, Found
from .network import OUTPUTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["asymmetry_index", "method_names", "tables"]

#: Names of the compared methods for people.
method_names = {
    "SAMASK": "SAMASK",
    "deconvnet": "DeconvNet",
    "gradient": "Gradient",
    "guided_backprop": "Guided backpropagation",
    SMOOTHED: f"Gradient, smoothed ({SMOOTH_MM:g} mm)",
}


def tables(found: Found) -> tuple[StudyTable, ...]:
    """All tables."""
    return (
        _accuracy(found),
        _layers(found),
        _attention(found),
        _regions(found),
        _methods(found),
        _asymmetry(found),
        _sides(found),
        _stability(found),
    )


def asymmetry_index(volumes: Any) -> Any:
    """Right less left, as a part of their mean, in percent; the last axis is (left, right)."""
    left, right = volumes[..., 0], volumes[..., 1]
    return 100 * (right - left) / ((right + left) / 2)


def _correlation(pairs: NDArray[np.float64]) -> float:
    return float(np.corrcoef(pairs[:, 0], pairs[:, 1])[0, 1])


def _cells(one: Estimate, factor: float = 1.0) -> tuple[float, str]:
    """A figure and its interval, for two cells."""
    if not np.isfinite(one.low):
        return factor * one.value, ""
    return factor * one.value, f"{factor * one.low:.3g} to {factor * one.high:.3g}"


def _accuracy(found: Found) -> StudyTable:
    rows = []
    for output in OUTPUTS:
        pairs = np.array([case[output] for case in found.tested])
        error = bootstrap(np.abs(pairs[:, 1] - pairs[:, 0]), seed=found.seed)
        icc = bootstrap(pairs, found.seed, of=intraclass_correlation)
        correlation = bootstrap(pairs, found.seed, of=_correlation)
        relative = 100 * error.value / pairs[:, 0].mean()
        cells = [output, pairs[:, 0].mean(), found.deviations[output], *_cells(error), relative]
        rows.append((*cells, *_cells(icc), *_cells(correlation)))
    return StudyTable(
        "accuracy",
        "Error of the network on heads it has not seen",
        (
            "output",
            "mean volume (ml)",
            "deviation in training (ml)",
            "mean absolute error (ml)",
            "95 % interval",
            "error (% of mean)",
            "intraclass correlation",
            "95 % interval ",
            "correlation",
            "95 % interval  ",
        ),
        tuple(rows),
        f"{len(found.tested)} heads. Intraclass correlation: absolute agreement with the truth, "
        "ICC(A, 1). Intervals: bootstrap over heads, in all tables.",
    )


def _layers(found: Found) -> StudyTable:
    rows = []
    for layer, masks in found.by_layer.items():
        mean = {
            key: float(np.mean([one[key] for one in masks]))
            for key in ("share", "leakage", "mask_mean")
        }
        effect = np.median([abs(one["effect"] / one["value"]) for one in masks])
        change = max(one["prediction_change"] for one in masks)
        seconds = float(np.median([one["seconds"] for one in masks]))
        chosen = "yes" if layer == found.layer else ""
        rows.append((layer, chosen, 100 * float(effect), 100 * change, *mean.values(), seconds))
    return StudyTable(
        "layers",
        "The layer that is masked",
        (
            "layer",
            "chosen",
            "effect of hiding all (% of the output)",
            "largest prediction change with the mask (%)",
            "share in the structure",
            "leakage",
            "mean of the mask",
            "time of a mask (s)",
        ),
        tuple(rows),
        "Chosen: of the layers where hiding everything changes the output by at least "
        f"{100 * found.telling:g} % (median) and whose masks change it by less than "
        f"{100 * found.tolerated:g} %, the one with the least leakage, on heads that serve for "
        "nothing else. Where hiding everything changes little, any mask keeps the prediction.",
    )


def _attention(found: Found) -> StudyTable:
    rows = []
    for mode in ("keep", "delete"):
        for output in OUTPUTS:
            if output not in found.explained[0][mode]:
                continue
            cells: list[Any] = [output, mode]
            for key in ("share", "density_ratio", "near_share", "leakage"):
                cells += _cells(bootstrap(found.masks(mode, output, key), seed=found.seed))
            change = found.masks(mode, output, "prediction_change")
            cells += [100 * float(np.mean(change)), 100 * max(change)]
            cells.append(float(np.mean(found.masks(mode, output, "effect_part"))))
            cells.append(float(np.median(found.masks(mode, output, "seconds"))))
            rows.append(tuple(cells))
    interval = "95 % interval"
    return StudyTable(
        "attention",
        "Where the masks lie",
        (
            "output",
            "mask",
            "share in the structure",
            interval,
            "density ratio",
            f"{interval} ",
            f"share within {NEAR_MM:g} mm",
            f"{interval}  ",
            "leakage",
            f"{interval}   ",
            "prediction change (%)",
            "largest (%)",
            "change as part of hiding all",
            "time (s, median)",
        ),
        tuple(rows),
        f"{len(found.explained)} heads. Share and density ratio (1 = no preference) are those of "
        "the structure that the output measures; leakage is what lies neither in it nor near it. "
        "A keeping mask should change the prediction little, a deleting one much.",
    )


def _regions(found: Found) -> StudyTable:
    rows = []
    names = ("outside", *SyntheticHead.NAMES.values())
    for output in OUTPUTS:
        for name in names:
            pairs = [case["keep"][output]["regions"].get(name) for case in found.explained]
            shares = [one[0] for one in pairs if one is not None and one[0] is not None]
            density = [one[1] for one in pairs if one is not None and one[1] is not None]
            if not shares or not np.isfinite(density).any():
                continue
            share = bootstrap(shares, seed=found.seed)
            rows.append((output, name, *_cells(share), float(np.nanmean(density))))
    return StudyTable(
        "regions",
        "Attention in every region, keeping masks",
        ("output", "region", "share", "95 % interval", "density ratio"),
        tuple(rows),
        "The shares of one output sum to 1.",
    )


def _methods(found: Found) -> StudyTable:
    rows = []
    for output in OUTPUTS:
        chance = float(np.mean(found.masks("keep", output, "chance")))
        for method, title in method_names.items():
            cells: list[Any] = [output, title]
            for key in ("rank", "mass", "near"):
                mine = found.method(method, output, key)
                cells += _cells(bootstrap(mine, seed=found.seed))
            if method == "SAMASK":
                cells += [None, "", None]
            else:
                first = np.array(found.masks("keep", output, "rank"))
                less = first - np.array(found.method(method, output, "rank"))
                less = less[np.isfinite(less)]
                cells += [*_cells(bootstrap(less, seed=found.seed)), sign_flip(less, found.seed)]
            rows.append((*cells, chance))
    interval = "95 % interval"
    return StudyTable(
        "methods",
        "SAMASK beside the other methods",
        (
            "output",
            "method",
            "rank accuracy",
            interval,
            "mass in the structure",
            f"{interval} ",
            f"mass in or within {NEAR_MM:g} mm",
            f"{interval}  ",
            "rank accuracy of SAMASK above it",
            f"{interval}   ",
            "p (sign flips)",
            "chance",
        ),
        tuple(rows),
        "Rank accuracy: part of the highest voxels, as many as the structure has, that lie in it. "
        "Of signed maps the magnitude counts. The smoothed gradient is a control: what smoothness "
        f"alone gives. Pairs are the same {len(found.explained)} heads; "
        f"{len(METHODS) + 1} comparisons an output, p not corrected.",
    )


def _asymmetry(found: Found) -> StudyTable:
    rows = []
    for degree in sorted(set(found.degrees)):
        volumes = found.volumes(degree)
        truth, said = volumes[..., 0], volumes[..., 1]
        left, right = (np.abs(said - truth)[:, side] for side in (0, 1))
        cells = [degree, "yes" if degree <= found.trained_asymmetry else "no"]
        cells += [*truth.mean(0), *said.mean(0)]
        cells += [*_cells(bootstrap(left, seed=found.seed))]
        cells += [*_cells(bootstrap(right, seed=found.seed))]
        cells.append(float(asymmetry_index(truth).mean()))
        rows.append((*cells, *_cells(bootstrap(asymmetry_index(said), seed=found.seed))))
    return StudyTable(
        "asymmetry",
        "Error where the left hippocampus is smaller than the right",
        (
            "asymmetry",
            "as in training",
            "left (ml)",
            "right (ml)",
            "left, predicted (ml)",
            "right, predicted (ml)",
            "absolute error left (ml)",
            "95 % interval",
            "absolute error right (ml)",
            "95 % interval ",
            "asymmetry index (%)",
            "predicted (%)",
            "95 % interval  ",
        ),
        tuple(rows),
        "Asymmetry a: the factors of the volumes are 1 - a (left) and 1 + a (right), in the same "
        f"{len(set(found.heads))} heads each time. In training each side differed by up to 15 % "
        "from what both had in common. Index: (right - left) / their mean.",
    )


def _sides(found: Found) -> StudyTable:
    rows = []
    groups = (
        ("as in training", [case["keep"] for case in found.explained]),
        ("left much smaller", found.sides),
    )
    for kind, cases in groups:
        for output in OUTPUTS[:2]:
            cells: list[Any] = [kind, output]
            for name in OUTPUTS[:2]:
                shares = [case[output]["regions"][name][0] for case in cases]
                cells += _cells(bootstrap(shares, seed=found.seed))
            for key in ("leakage", "left_half"):
                values = [case[output][key] for case in cases]
                cells += _cells(bootstrap(values, seed=found.seed))
            change = 100 * float(np.mean([case[output]["prediction_change"] for case in cases]))
            rows.append((*cells, change))
    interval = "95 % interval"
    return StudyTable(
        "sides",
        "Separate masks of the left and the right volume",
        (
            "heads",
            "output",
            "share in left hippocampus",
            interval,
            "share in right hippocampus",
            f"{interval} ",
            "leakage",
            f"{interval}  ",
            "share in the left half of the head",
            f"{interval}   ",
            "prediction change (%)",
        ),
        tuple(rows),
        f"{len(found.sides)} heads with a left hippocampus of about 1.1 ml and a right one of "
        "about 6.6 ml.",
    )


def _stability(found: Found) -> StudyTable:
    rows = tuple(
        (number + 1, output, row["stability"], 100 * row["prediction_change"], row["seconds"])
        for number, case in enumerate(found.stable)
        for output, row in case.items()
    )
    return StudyTable(
        "stability",
        "Masks from three random starts",
        (
            "head",
            "output",
            "smallest correlation of two starts",
            "prediction change (%)",
            "time of three masks (s)",
        ),
        rows,
        "The first start is even, the others have noise of deviation 1 (before the sigmoid).",
    )
