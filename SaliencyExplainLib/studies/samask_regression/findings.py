"""What the study says: sentences made from what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..results import Comparison
from ..statistics import Estimate, bootstrap, intraclass_correlation, sign_flip
from .measures import METHODS, NEAR_MM, SMOOTHED, Found
from .network import OUTPUTS
from .tables import asymmetry_index, method_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["answers", "comparisons", "differences"]

_PUBLISHED_S = 40.0
_STABLE = 0.9
_SIGNIFICANT = 0.05


def answers(found: Found) -> tuple[str, ...]:
    """Findings, the most important first."""
    return (
        _place(found),
        _methods(found),
        _errors_with_asymmetry(found),
        _sides(found),
        _faith(found),
        _network(found),
    )


def comparisons(found: Found) -> tuple[Comparison, ...]:
    """Published figures beside ours."""
    seconds = _seconds(found)
    covered = float(np.mean([_share(found, output, "near") for output in OUTPUTS[:4]]))
    inside = float(np.mean([_share(found, output, "mass") for output in OUTPUTS[:4]]))
    wrong = _misjudged(found)
    ours = _above(found)
    return (
        Comparison(
            "time of a mask",
            f"{_PUBLISHED_S:g} s (hardware not stated)",
            f"{np.median(seconds):.1f} s (median), {max(seconds):.1f} s (longest)",
            "not comparable",
            "Small network and volume on a CPU; the published size and hardware are not stated.",
        ),
        Comparison(
            "the mask covers the region of interest and its neighbours",
            "shown in pictures, no figures",
            f"{100 * inside:.0f} % of the mask in the structure, {100 * covered:.0f} % in it or "
            f"within {NEAR_MM:g} mm (mean of hippocampi and ventricles)",
            "confirmed" if covered > 0.5 else "differs",
            "More than half of the mask lies there."
            if covered > 0.5
            else "Less than half of the mask lies there: this network also uses what is further "
            "away, such as the size of the head.",
        ),
        Comparison(
            "the network misjudges strongly asymmetric brains",
            "stated for brains that are rare in training, no figures",
            f"mean absolute error {wrong.beyond.in_words('.2f')} ml beyond the trained asymmetry, "
            f"{wrong.within.in_words('.2f')} ml within it (p = {wrong.p:.2g})",
            wrong.verdict,
            f"The error {wrong.words} beyond the asymmetry of the training; of each percent of "
            f"true asymmetry the network says {wrong.slope:.2f}.",
        ),
        Comparison(
            "separate masks for left and right volume",
            "shown in pictures for one patient",
            _sides_in_words(found),
            "confirmed" if _sides_apart(found) else "differs",
            "The masks lie on opposite sides."
            if _sides_apart(found)
            else "In these heads the masks of the two sides do not lie on opposite sides.",
        ),
        Comparison(
            "SAMASK beside DeconvNet, gradient and guided backpropagation",
            "compared by eye, SAMASK preferred",
            ours[0],
            ours[1],
            "Rank accuracy against the known structure instead of an opinion.",
        ),
        Comparison(
            "agreement of the volumes",
            "HerstonNet: intraclass correlation with FreeSurfer 24.30 % above earlier networks",
            f"intraclass correlation with the truth {_icc(found):.2f} (mean of six outputs)",
            "not comparable",
            "Made-up heads with a known truth, a small network, no FreeSurfer.",
        ),
    )


def differences(found: Found) -> tuple[str, ...]:
    """What is done otherwise than published."""
    return (
        "The heads are made up: simple shapes with known volumes. The authors used T1-weighted "
        "scans of people and volumes by FreeSurfer.",
        "The network is a small residual network whose training also told it which kind of tissue "
        "is where; the authors' has heads at several scales and learned from volumes alone.",
        "The network begins as a count of each kind on each side. So it is partly built in that "
        "the masks of a left and a right volume lie on their own sides.",
        f"The mask lies on the layer {found.layer!r}, chosen by its masks' leakage on heads of "
        "their own; the publication does not state the depth.",
        "What the mask hides is replaced by features blurred over 10 mm, not by zeros. A volume "
        "comes from the whole head, and zeros change what the network says of air and scalp.",
        "Weights of the loss, optimiser and number of steps are own choices; the publication does "
        "not state them. As published, sigma is the deviation of the output over the training.",
        "Leakage, rank accuracy, deleting masks and the smoothed gradient are additions.",
    )


def _share(found: Found, output: str, key: str) -> float:
    return float(np.mean(found.masks("keep", output, key)))


def _place(found: Found) -> str:
    parts = []
    for output in OUTPUTS:
        near = bootstrap(found.masks("keep", output, "near"), seed=found.seed)
        density = float(np.mean(found.masks("keep", output, "density_ratio")))
        parts.append(f"{output} {near.in_words('.0f', 100)} %, density {density:.0f}")
    return (
        f"Part of the keeping mask in the structure or within {NEAR_MM:g} mm of it, and density "
        f"in the structure (1 = no preference): {'; '.join(parts)}."
    )


def _above(found: Found) -> tuple[str, str]:
    """How SAMASK's rank accuracy stands to that of the other methods, over small structures."""
    words, better = [], []
    for method in (*METHODS, SMOOTHED):
        less = _differences(found, method)
        p = sign_flip(less, found.seed)
        by = bootstrap(less, seed=found.seed)
        words.append(f"{method_names[method]} {by.in_words('+.2f')}, p = {p:.2g}")
        if method != SMOOTHED:
            better.append(bool(by.value > 0 and p < _SIGNIFICANT))
    verdict = "confirmed" if all(better) else "differs" if any(better) else "refuted"
    return "rank accuracy of SAMASK less that of: " + "; ".join(words), verdict


def _differences(found: Found, method: str) -> NDArray[Any]:
    """Rank accuracy of SAMASK less that of a method, a mean over small structures a head."""
    mine = np.array([found.masks("keep", output, "rank") for output in OUTPUTS[:4]])
    other = np.array([found.method(method, output, "rank") for output in OUTPUTS[:4]])
    return np.asarray(np.nanmean(mine - other, axis=0))


def _methods(found: Found) -> str:
    means = {
        method: float(np.nanmean([found.method(method, output, "rank") for output in OUTPUTS[:4]]))
        for method in method_names
    }
    listed = ", ".join(f"{method_names[method]} {mean:.2f}" for method, mean in means.items())
    words, _ = _above(found)
    best = max(means, key=lambda method: means[method])
    return (
        f"Over hippocampi and ventricles the rank accuracy is {listed}; {method_names[best]} is "
        f"highest. Paired, {words}."
    )


@dataclass(frozen=True)
class _Misjudged:
    """Mean absolute error in ml of both hippocampi, within and beyond the trained asymmetry."""

    within: Estimate
    beyond: Estimate
    more: Estimate
    p: float
    slope: float

    @property
    def verdict(self) -> str:
        if self.more.value > 0 and self.p < _SIGNIFICANT:
            return "confirmed"
        return "differs" if self.more.low > 0 else "refuted"

    @property
    def words(self) -> str:
        few = "seems to grow, in too few heads to be certain,"
        return {"confirmed": "grows", "differs": few}.get(self.verdict, "does not grow for certain")


def _misjudged(found: Found) -> _Misjudged:
    degrees = sorted(set(found.degrees))
    error = {
        degree: np.abs(volumes[..., 1] - volumes[..., 0]).mean(1)
        for degree in degrees
        for volumes in (found.volumes(degree),)
    }
    limit = found.trained_asymmetry
    within = np.mean([error[degree] for degree in degrees if degree <= limit], axis=0)
    beyond = np.mean([error[degree] for degree in degrees if degree > limit], axis=0)
    volumes = np.concatenate([found.volumes(degree) for degree in degrees])
    true, said = asymmetry_index(volumes[..., 0]), asymmetry_index(volumes[..., 1])
    return _Misjudged(
        within=bootstrap(within, seed=found.seed),
        beyond=bootstrap(beyond, seed=found.seed),
        more=bootstrap(beyond - within, seed=found.seed),
        p=sign_flip(beyond - within, found.seed),
        slope=float(np.polyfit(true, said, 1)[0]),
    )


def _errors_with_asymmetry(found: Found) -> str:
    wrong = _misjudged(found)
    return (
        f"The error {wrong.words} beyond the asymmetry of the training: "
        f"{wrong.beyond.in_words('.2f')} ml there, {wrong.within.in_words('.2f')} ml within it, "
        f"paired difference {wrong.more.in_words('+.2f')} ml (p = {wrong.p:.2g}). Of each percent "
        f"of true asymmetry the network says {wrong.slope:.2f}."
    )


def _side_shares(found: Found) -> dict[str, Estimate]:
    """Part of each hippocampus' mask in the left half of strongly asymmetric heads."""
    return {
        output: bootstrap([case[output]["left_half"] for case in found.sides], seed=found.seed)
        for output in OUTPUTS[:2]
    }


def _sides_in_words(found: Found) -> str:
    return "; ".join(
        f"{output}: {one.in_words('.0f', 100)} % of its mask in the left half of the head"
        for output, one in _side_shares(found).items()
    )


def _sides_apart(found: Found) -> bool:
    left, right = _side_shares(found).values()
    return left.value > 0.5 > right.value


def _sides(found: Found) -> str:
    end = "" if _sides_apart(found) else "; so they do not lie on opposite sides"
    return (
        f"In {len(found.sides)} heads whose left hippocampus is much the smaller one: "
        f"{_sides_in_words(found)}{end}."
    )


def _seconds(found: Found) -> list[float]:
    return [
        seconds
        for mode in ("keep", "delete")
        for output in OUTPUTS
        if output in found.explained[0][mode]
        for seconds in found.masks(mode, output, "seconds")
    ]


def _faith(found: Found) -> str:
    changes = [
        one for output in OUTPUTS for one in found.masks("keep", output, "prediction_change")
    ]
    effects = [
        abs(case["keep"][output]["effect"] / case["keep"][output]["value"])
        for case in found.explained
        for output in OUTPUTS
    ]
    kept = sum(one < found.tolerated for one in changes)
    stable = [row["stability"] for case in found.stable for row in case.values()]
    known = [one for one in stable if one is not None]
    fine = sum(one > _STABLE for one in known)
    lowest = f", lowest {min(known):.2f}" if known else ""
    seconds = _seconds(found)
    return (
        f"{kept} of {len(changes)} keeping masks change the prediction by less than "
        f"{100 * found.tolerated:g} % (largest {100 * max(changes):.1f} %; hiding the whole layer "
        f"changes it by {100 * float(np.median(effects)):.0f} %, median). {fine} of {len(stable)} "
        f"masks have random starts that correlate by more than {_STABLE:g}{lowest}. A mask takes "
        f"{np.median(seconds):.1f} s (median; published {_PUBLISHED_S:g} s)."
    )


def _icc(found: Found) -> float:
    return float(
        np.mean(
            [
                intraclass_correlation(np.array([case[output] for case in found.tested]))
                for output in OUTPUTS
            ]
        )
    )


def _network(found: Found) -> str:
    parts = []
    for output in OUTPUTS:
        pairs = np.array([case[output] for case in found.tested])
        error = bootstrap(np.abs(pairs[:, 1] - pairs[:, 0]), seed=found.seed)
        parts.append(f"{output} {error.in_words('.2g')} ml, {intraclass_correlation(pairs):.2f}")
    return (
        f"Mean absolute error and intraclass correlation on {len(found.tested)} new heads: "
        f"{'; '.join(parts)}."
    )
