"""What the figures say, in sentences made from them; the published claims beside ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..results import Comparison
from ..statistics import median, signed_rank
from .compare import LEVEL, LayerSetComparison
from .controls import SumOfFeatures
from .measures import METRICS

if TYPE_CHECKING:
    from .pipeline import Found, Setup

__all__ = ["answers", "comparisons", "differences"]

_AQ, _RANK = "attribution_quality", "evidence_rank"
_PARTS = (
    "prediction_preserved",
    "relative_entropy",
    "relative_foreground",
    "external_peaks",
)
_KWC, _CAMPP, _GRADCAM, _SCORE = (
    "kernel_weighted_contribution",
    "grad_cam_plus_plus",
    "grad_cam",
    "score_cam",
)
_PLAIN, _BOTH = "decoder_without_transposed", "both"
#: The example notebook of the public code: KWC over encoder and decoder, case nodule_199.
_NOTEBOOK_AQ = 1.2977
#: A network that calls more of the bait, or of bodies without spicules, goes by something else.
_MUCH = 0.1


def answers(found: Found) -> tuple[str, ...]:
    """Return the findings, the most important first."""
    parts = (
        _ordering(found.main),
        _layers(found.main),
        _truth(found.main),
        _why(found),
        _controls(found),
        _at_convolutions(found),
        _second(found),
        _beware(found),
    )
    return tuple(one for one in parts if one)


def comparisons(found: Found) -> tuple[Comparison, ...]:
    """Return the published claims beside ours."""
    main = found.main
    return (
        _claim_wins(main),
        _claim_layers(main),
        _claim_plain(main),
        _claim_notebook(main),
        _claim_parts(main),
    )


def differences(setup: Setup) -> tuple[str, ...]:
    """Return what is done otherwise than published."""
    return (
        f"Scenes of {setup.size} voxels a side (128 mm) of a generator without an unseeded warp "
        "(sx.studies.spiculated_nodules); published: 128.",
        f"The network has nnU-Net's form with {len(setup.channels)} stages of "
        f"{', '.join(map(str, setup.channels))} channels in the place of 6 of 32 to 320: "
        "10 convolutions are looked at, not 25. A fifth of its training volumes has no spicules "
        "and nothing to find.",
        "Which five layer sets were published is not stated in what we could read: the abstract "
        "names two; the public code has a list of encoder and decoder layers and a switch for "
        "transposed convolutions. Ours are all that these can make.",
        "Features are read, and taken away, at the activation behind each convolution; the public "
        "code reads the convolution and takes away the block behind it. The table at the "
        "convolutions reads and takes away there.",
        "Score-CAM has a softmax over channels of the mean probability in the predicted region; "
        "in the public code all its weights are 1 (row sum of features).",
        "Attribution Quality: masks have 256 steps, images are compressed as 16-bit integers, and "
        "a peak that touches evidence and fails the test is a miss.",
        "Tests: Wilcoxon, corrected by Holm over all; the published test is not stated in what we "
        "could read.",
    )


def _outcomes(main: LayerSetComparison) -> dict[str, dict[str, str]]:
    """On each set: how the first method compares with each other one."""
    found: dict[str, dict[str, str]] = {}
    for one in main.tests():
        if one.set == one.other_set:
            found.setdefault(one.set, {})[one.other_method] = one.outcome
    return found


def _wins(main: LayerSetComparison) -> list[str]:
    """Sets on which the first method is better than every other one."""
    return [
        name
        for name, others in _outcomes(main).items()
        if all(one == "first" for one in others.values())
    ]


def _best(main: LayerSetComparison, metric: str = _AQ) -> str:
    group, method = main.order(metric)[0]
    titles = _titles(main)
    value = main.median(group, method, metric)
    return f"{main.methods[method]} over {titles[group]} ({value})"


def _titles(main: LayerSetComparison) -> dict[str, str]:
    return {one.name: one.title for one in main.sets}


def _and(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _ordering(main: LayerSetComparison) -> str:
    titles, wins = _titles(main), _wins(main)
    where = f" ({_and([titles[one] for one in wins])})" if wins else ""
    lost = {
        main.methods[other]: [
            titles[group]
            for group, others in _outcomes(main).items()
            if others.get(other) == "second"
        ]
        for other in list(main.methods)[1:]
    }
    beaten = [f"{name} beats it on {len(at)} ({_and(at)})" for name, at in lost.items() if at]
    verdict = "confirmed" if len(wins) >= 4 else "refuted"
    told = (
        f"The published ordering is {verdict} here: over {len(main.rows)} cases KWC has a higher "
        f"Attribution Quality than all three others on {len(wins)} of {len(main.sets)} layer "
        f"sets{where}; published: 4 of 5."
    )
    return told + (f" {'; '.join(beaten)} (paired tests, Holm's p < {LEVEL})." if beaten else "")


def _layers(main: LayerSetComparison) -> str:
    order = [group for group, method in main.order(_AQ) if method == _KWC]
    titles = _titles(main)
    told = "; ".join(f"{titles[one]} {main.median(one, _KWC)}" for one in order)
    return f"KWC by layer set, median AQ, best first: {told}. Best of all maps: {_best(main)}."


def _truth(main: LayerSetComparison) -> str:
    rho = main.agreement()
    titles = _titles(main)
    alike = [
        titles[group.name]
        for group in main.sets
        if main.order(_AQ, group.name)[0] == main.order(_RANK, group.name)[0]
    ]
    same = (
        "agrees with" if rho.low > 0.5 else "does not follow" if rho.low <= 0 else "follows weakly"
    )
    return (
        f"AQ {same} the truth: over all {len(main.sets) * len(main.methods)} maps Spearman's "
        f"correlation of median AQ and median evidence rank is {rho.value:+.2f} ({rho.low:+.2f} to "
        f"{rho.high:+.2f}). On {len(alike)} of {len(main.sets)} sets both name the same best "
        f"method. The map that shows the evidence best is {_best(main, _RANK)}; the spicules "
        f"alone are found best by {_best(main, 'outside_rank')}."
    )


def _why(found: Found) -> str:
    """Which part makes the differences of AQ."""
    main = found.main
    keys = [(group.name, method) for group in main.sets for method in main.methods]
    rho = {part: main.agreement(_AQ, part).value for part in _PARTS}
    strongest = max(_PARTS, key=lambda part: abs(np.nan_to_num(rho[part])))
    terms = np.array([_terms(main, *key) for key in keys])
    spans = np.ptp(terms, axis=0)
    kept, left = (
        np.ptp([main.median(*key, part).value for key in keys])
        for part in ("prediction_preserved", "relative_entropy")
    )
    peaks = np.concatenate([main.values(*key, "external_peaks") for key in keys])
    whole = float(np.mean((peaks == 0) | (peaks == 1)))
    return (
        f"Why: between maps the median of PP / RE differs by up to {spans[0]:.2f} (PP by "
        f"{kept:.2f}, RE by {left:.2f}), that of RFA (1 + EPA) by {spans[1]:.2f}. Of the parts, AQ "
        f"goes with {METRICS[strongest][0]} most (Spearman's correlation of medians "
        f"{rho[strongest]:+.2f}); none of them asks where in the background a map is high, but "
        f"EPA, which is 0 or 1 in {whole:.0%} of all maps: a few peaks decide a factor of two."
    )


def _terms(main: LayerSetComparison, group: str, method: str) -> tuple[float, float]:
    """Medians of the two terms of AQ: PP / RE, and RFA (1 + EPA)."""
    kept, left, inside, peaks = (main.values(group, method, part) for part in _PARTS)
    return float(np.nanmedian(kept / left)), float(np.nanmedian(inside * (1 + peaks)))


def _controls(found: Found) -> str:
    main = found.main
    keys = [(group.name, method) for group in main.sets for method in main.methods]
    above = sum(main.median(*key).low > 1 for key in keys)
    even, truth = (median(found.controls[name][_AQ]) for name in ("even map", "truth"))
    score = main.median(_BOTH, _SCORE) if _BOTH in _titles(main) else None
    plain = found.sums.median(found.main.sets[-1].name, SumOfFeatures.name)
    told = (
        f"An even map has AQ {even.value:.3f}, the truth itself {truth}; {above} of {len(keys)} "
        f"maps are above the even one (interval above 1)."
    )
    if score is not None and _BOTH in _titles(found.sums):
        plain = found.sums.median(_BOTH, SumOfFeatures.name)
        apart = signed_rank(
            main.values(_BOTH, _SCORE, _AQ), found.sums.values(_BOTH, SumOfFeatures.name, _AQ)
        )
        told += (
            f" The sum of features, which is Score-CAM in the public code, has {plain} over "
            f"encoder + decoder, Score-CAM with its softmax {score} "
            f"(paired difference {apart.difference})."
        )
    return told


def _at_convolutions(found: Found) -> str:
    raw = found.at_convolutions
    if not raw.rows:
        return ""
    wins = _wins(raw)
    titles = _titles(raw)
    names = [group.name for group in raw.sets]
    there = np.nanmedian([raw.values(name, _GRADCAM, _RANK) for name in names])
    here = np.nanmedian(
        [found.main.values(name, _GRADCAM, _RANK) for name in names if name in _titles(found.main)]
    )
    where = f" ({_and([titles[one] for one in wins])})" if wins else ""
    return (
        f"Read at the convolutions, as the public code does ({len(raw.rows)} cases), KWC is "
        f"better than all three on {len(wins)} of {len(raw.sets)} sets{where}. Nearly "
        "all of these feed an instance normalisation, where the weights of Grad-CAM are zero "
        "in theory and rounding "
        f"noise in practice: its median evidence rank over all sets is {there:.2f} there and "
        f"{here:.2f} behind the activations."
    )


def _second(found: Found) -> str:
    other = found.second
    if other is None or not other.rows:
        return ""
    wins = _wins(other)
    keys = [(group.name, method) for group in other.sets for method in other.methods]
    kept = [other.median(*key, "prediction_preserved").value for key in keys]
    return (
        f"With the committed network (batch norm, {len(other.rows)} cases, the "
        f"{len(other.sets)} sets that it has) KWC is better than all three on {len(wins)}; best "
        f"there: {_best(other)}. Median PP goes from {min(kept):.2f} to {max(kept):.2f} over its "
        "maps: dimmed volumes are unlike those it was trained on, and it has no instance "
        "normalisation to brighten them again."
    )


def _beware(found: Found) -> str:
    """Say where the evidence of the scenes is not that of the network."""
    bait, bare = (
        median([score[key] for score in found.scores])
        for key in ("bait_called", "called_without_spicules")
    )
    if not (bait.value > _MUCH or bare.value > _MUCH):
        return ""
    return (
        f"Beware: this network calls {bait.value:.0%} of the plain nodules and {bare.value:.0%} of "
        "the bodies whose spicules were erased (medians), so the spicules are not all of its "
        "evidence, and the ranks say less of a map."
    )


def _claim_wins(main: LayerSetComparison) -> Comparison:
    wins = _wins(main)
    verdict = "confirmed" if len(wins) >= 4 else "refuted"
    lost = sorted(
        {
            main.methods[other]
            for others in _outcomes(main).values()
            for other, one in others.items()
            if one == "second"
        }
    )
    why = f"{_and(lost)} beat it on some set" if lost else "no other method beats it on any set"
    return Comparison(
        "layer sets on which KWC is better than the other three",
        "4 of 5 (p < 0.0005)",
        f"{len(wins)} of {len(main.sets)} (Holm's p < {LEVEL})",
        verdict,
        f"{why}; other network, resolution, place where features are read, and a Score-CAM with "
        "its softmax",
    )


def _claim_layers(main: LayerSetComparison) -> Comparison:
    mine = [one for one in main.tests() if one.set != one.other_set]
    better = [one for one in mine if one.outcome == "first"]
    titles = _titles(main)
    lost = [titles[one.other_set] for one in mine if one.outcome == "second"]
    widest = mine[0].set
    best = next(group for group, method in main.order(_AQ) if method == _KWC and group != widest)
    (kept, inside), (kept_there, inside_there) = (_terms(main, one, _KWC) for one in (widest, best))
    return Comparison(
        "KWC over encoder + decoder against its other layer sets",
        "better than all (p < 0.0005)",
        f"better than {len(better)} of {len(mine)}"
        + (f", worse than {_and(lost)}" if lost else ""),
        "confirmed" if len(better) == len(mine) else "refuted" if lost else "differs",
        f"PP / RE is {kept:.2f} over {titles[widest]} and {kept_there:.2f} over {titles[best]}, "
        f"RFA (1 + EPA) {inside:.2f} and {inside_there:.2f}",
    )


def _claim_plain(main: LayerSetComparison) -> Comparison:
    what = "KWC and Grad-CAM++ over the decoder without transposed convolutions"
    published = "equivalent, jointly best (p = 0.008)"
    found = _outcomes(main).get(_PLAIN)
    if found is None:
        return Comparison(what, published, "no such layers", "not comparable", "no such layers")
    values = {method: main.median(_PLAIN, method) for method in main.methods}
    best = main.order(_AQ, _PLAIN)[0][1]
    ours = f"KWC {values[_KWC]}, Grad-CAM++ {values[_CAMPP]}; best {main.methods[best]}"
    equal = found[_CAMPP] == "alike" and best in (_KWC, _CAMPP)
    verdict = "confirmed" if equal else "refuted"
    side = {"first": "KWC is better", "second": "Grad-CAM++ is better", "alike": "not told apart"}
    return Comparison(what, published, ours, verdict, f"{side[found[_CAMPP]]} in the paired test")


def _claim_notebook(main: LayerSetComparison) -> Comparison:
    values = main.values(_BOTH, _KWC, _AQ) if _BOTH in _titles(main) else np.array([np.nan])
    known = values[np.isfinite(values)]
    part = float((known > _NOTEBOOK_AQ).mean()) if known.size else float("nan")
    return Comparison(
        "AQ of KWC over encoder + decoder, one example case",
        f"{_NOTEBOOK_AQ}",
        f"median {median(values)}, above it in {part:.0%} of the cases",
        "not comparable",
        "one case of another network at 128 voxels a side; AQ is compared with 1, an even map",
    )


def _claim_parts(main: LayerSetComparison) -> Comparison:
    """SPIE 2022: image and prediction preserved, KWC against the other three."""
    told = {}
    for metric in ("image_preserved", "prediction_preserved"):
        apart = [
            100 * (main.values(group.name, _KWC, metric) - main.values(group.name, other, metric))
            for group in main.sets
            for other in main.methods
            if other != _KWC
        ]
        middle = [float(np.nanmedian(one)) for one in apart]
        told[metric] = f"{min(middle):+.1f} to {max(middle):+.1f}"
    return Comparison(
        "KWC minus the other methods, image preserved and prediction preserved (percent points)",
        "-2 to -12 and +12 to +21 (SPIE 2022, percent)",
        f"{told['image_preserved']} and {told['prediction_preserved']}",
        "not comparable",
        "published for a 2D network, brain tumours and an older KWC (weights rescaled a layer)",
    )
