"""What the figures say, in sentences made from them; the published ones beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..results import Comparison
from ..statistics import bootstrap, sign_flip
from .magnitude import METHODS
from .scans import TISSUES
from .tables import PLACED, arm_values, tissue_values

if TYPE_CHECKING:
    from .pipeline import Setup

__all__ = ["PUBLISHED", "answers", "comparisons", "differences"]

#: Dice in percent: after removal by guided backpropagation, after manual removal.
PUBLISHED = {
    "brain": (99.12, None),
    "white matter": (86.05, 91.05),
    "grey matter": (76.76, 84.65),
    "CSF": (60.15, 77.61),
}
_HEADS = "made-up human heads that differ in size and shape instead of rodents that are alike"
_SURE = 0.05
#: A Kolmogorov-Smirnov distance beyond this: not log-normal.
_KS = 0.05


def answers(found: Sequence[dict[str, Any]], seed: int) -> tuple[str, ...]:
    """Return the findings, the most important first."""
    return (
        _restored(found),
        _mark(found, seed),
        _against_controls(found),
        _registered(found, seed),
        _log_normal(found),
        _open_choices(found),
        _moves(found),
    )


def comparisons(found: Sequence[dict[str, Any]], seed: int) -> tuple[Comparison, ...]:
    """Return the published figures beside ours."""
    rows = [
        _dice_row(
            "brain mask",
            PUBLISHED["brain"][0],
            arm_values(found, "guided_backprop"),
            "its template is one animal's mask moved; ours has to fit",
            seed,
            mark=True,
        )
    ]
    for tissue in TISSUES[:0:-1]:
        after, manual = PUBLISHED[tissue]
        for arm, figure, what in (
            ("guided_backprop", after, "after removal"),
            ("manual", manual, "manual removal"),
        ):
            rows.append(
                _dice_row(
                    f"{tissue}, {what}",
                    figure,
                    tissue_values(found, arm, tissue, "Dice"),
                    "other anatomy, contrast, resolution and network",
                    seed,
                )
            )
    return (*rows, _gap_row(found), _specificity_row(found), _fit_row(found), _edges_row(found))


def differences(setup: Setup) -> tuple[str, ...]:
    """Return what is done otherwise than published."""
    return (
        f"Data: {_HEADS}; T1-like contrast, {setup.size} voxels a side of 208 mm, and "
        f"{setup.heads} test heads. Published: 144 rodent scans (diffusion b0, 11.7 T).",
        "Test heads are moved by up to 18, 22 and 18 mm and carry made-up artefacts (none, blob, "
        "stripe, ghost in turn), so that the true place of each brain is known.",
        "Everything is in 3D: network, map, cross-correlation; published: slices.",
        "The network: 3D U-Net (ReLU, instance norm), Dice loss and cross entropy, AdamW; "
        "published: 2D U-Net, Dice loss, SGD.",
        "The paper leaves open which scalar is explained: here the sum of logits over the "
        "predicted mask of each tissue, magnitudes added over the three tissues.",
        "The paper leaves open the expansion before the logarithm and whether zeros count: here "
        "offset 0.001, zeros left out; the table of open choices does otherwise.",
        "The template is the training brain of median volume; its mean gradient is that of "
        f"{setup.template_brains} training brains.",
        "Added: controls (plain gradient, random weights, the image itself, no shift, the best "
        "shift there is) and registration.",
    )


def _restored(found: Sequence[dict[str, Any]]) -> str:
    parts, gains = [], []
    for tissue in TISSUES[:0:-1]:
        before, after, registered, manual = (
            tissue_values(found, arm, tissue, "Dice")
            for arm in ("before", "guided_backprop", "registration", "manual")
        )
        means = [100 * float(np.mean(one)) for one in (before, after, registered, manual)]
        parts.append(f"{tissue} " + ", ".join(f"{one:.1f}" for one in means))
        gains.append(
            (float(np.mean(after) - np.mean(before)), sign_flip(np.subtract(after, before)), tissue)
        )
    better = [tissue for gain, p, tissue in gains if gain > 0 and p < _SURE]
    verdict = (
        f"Removal by guided backpropagation raises the Dice of {_and(better)}"
        if better
        else "Removal by guided backpropagation raises the Dice of no tissue beyond chance"
    )
    return (
        f"{verdict} (sign-flip test over {len(found)} heads). Dice in percent on the unmasked "
        f"scan, after the shift, after registration, with the true mask: {'; '.join(parts)}."
    )


def _mark(found: Sequence[dict[str, Any]], seed: int) -> str:
    guided = arm_values(found, "guided_backprop")
    best = arm_values(found, "best shift")
    mark = PUBLISHED["brain"][0]
    lost = mark - 100 * float(np.mean(guided))
    shape = mark - 100 * float(np.mean(best))
    reached = "reaches" if 100 * bootstrap(guided, seed).high >= mark else "does not reach"
    reason = (
        f" Of the {lost:.1f} points that are missing {max(0.0, min(shape, lost)):.1f} are the "
        f"shape of the template: the best shift there is gives {_percent(best, seed)} %."
        if lost > 0
        else ""
    )
    error = [one["arms"]["guided_backprop"]["shift_error_mm"] for one in found]
    return (
        f"The brain's mask {reached} the published {mark:.2f} %: Dice {_percent(guided, seed)} %, "
        f"shift error {bootstrap(error, seed).in_words('.1f')} mm.{reason}"
    )


def _against_controls(found: Sequence[dict[str, Any]]) -> str:
    guided = arm_values(found, "guided_backprop")
    mean = 100 * float(np.mean(guided))
    said = []
    for arm in ("gradient", "deconvnet", "image itself", "random weights", "no shift"):
        other = arm_values(found, arm)
        p = sign_flip(np.subtract(guided, other))
        gap = 100 * float(np.mean(other)) - mean
        word = "not told apart from" if p >= _SURE else ("better than" if gap > 0 else "worse than")
        said.append((word, f"{PLACED[arm]} ({100 * float(np.mean(other)):.1f}, p = {p:.2g})"))
    parts = [
        f"{word} it: {', '.join(text for one, text in said if one == word)}"
        for word in ("better than", "not told apart from", "worse than")
        if any(one == word for one, _ in said)
    ]
    return (
        f"Is guided backpropagation needed? Its shift gives a brain Dice of {mean:.1f} %; "
        f"{'; '.join(parts)}."
    )


def _registered(found: Sequence[dict[str, Any]], seed: int) -> str:
    guided, moved, alone = (
        arm_values(found, arm)
        for arm in ("guided_backprop", "registration", "registration from no shift")
    )
    p, own = sign_flip(np.subtract(moved, guided)), sign_flip(np.subtract(moved, alone))
    change = 100 * float(np.mean(moved) - np.mean(guided))
    what = "changes nothing beyond chance" if p >= _SURE else f"changes it by {change:+.1f} points"
    needed = (
        "started without that shift it is no different"
        if own >= _SURE
        else (
            "started without that shift it is worse"
            if np.mean(moved) > np.mean(alone)
            else "started without that shift it is better"
        )
    )
    failed = sum(one < 0.85 for one in moved)
    return (
        f"Affine registration from the guided shift {what} (brain Dice "
        f"{_percent(moved, seed)} %, p = {p:.2g}): its median is "
        f"{100 * float(np.median(moved)):.1f} % (shift alone "
        f"{100 * float(np.median(guided)):.1f} %), and {failed} of {len(moved)} heads stay below "
        f"85 %; {needed} ({_percent(alone, seed)} %, p = {own:.2g})."
    )


def _log_normal(found: Sequence[dict[str, Any]]) -> str:
    parts, held = [], []
    for method in METHODS:
        distances = [one["fits"][method]["ks_distance"] for one in found]
        mean = float(np.mean(distances))
        held.append(mean <= _KS)
        parts.append(f"{method.replace('_', ' ')} {mean:.3f}")
    which = [method.replace("_", " ") for method, one in zip(METHODS, held, strict=True) if one]
    verdict = f"holds for {_and(which)} only" if which else "holds for none of the maps"
    return (
        f"That the map is log-normal {'holds for all maps' if all(held) else verdict}: mean KS "
        f"distance of the standardised logarithm {', '.join(parts)}.{_mixture(found)}"
    )


def _mixture(found: Sequence[dict[str, Any]]) -> str:
    """Whether brain and background, each alone, are nearer to log-normal than both together."""
    fits = [one["fits"]["guided_backprop"] for one in found]
    both, brain, rest = (
        float(np.mean([one[key] for one in fits]))
        for key in ("ks_distance", "ks_brain", "ks_background")
    )
    if max(brain, rest) >= both:
        return (
            f" Brain and background apart are no better (guided: {brain:.3f} and {rest:.3f}), so "
            "a mixture of both is not the reason."
        )
    return (
        f" Brain and background apart are nearer to it (guided: {brain:.3f} and {rest:.3f}): the "
        "map is a mixture of both."
    )


def _open_choices(found: Sequence[dict[str, Any]]) -> str:
    base = [one["choices"]["as chosen"] for one in found]
    parts = []
    for name in list(found[0]["choices"])[1:]:
        other = [one["choices"][name] for one in found]
        p = sign_flip(np.subtract(other, base))
        change = 100 * float(np.mean(other) - np.mean(base))
        sure = f"p = {p:.2g}" if p < _SURE else "within chance"
        parts.append(f"{name} {change:+.1f} points ({sure})")
    return (
        f"What the paper leaves open, done otherwise, changes the brain's Dice: {', '.join(parts)}."
    )


def _moves(found: Sequence[dict[str, Any]]) -> str:
    values = [one["equivariance"] for one in found]
    return (
        "When the scan moves by the network's stride the guided map moves with it: correlation "
        f"{float(np.mean(values)):.3f} on average, {min(values):.3f} at least."
    )


def _dice_row(
    what: str,
    published: float | None,
    values: Sequence[float],
    why: str,
    seed: int,
    *,
    mark: bool = False,
) -> Comparison:
    mean, low, high = bootstrap(values, seed).ends(100)
    assert published is not None  # noqa: S101 - a row is made for published figures only
    inside = low <= published <= high
    verdict = "confirmed" if inside else "differs"
    if not mark:
        # Other heads, another contrast: that figures agree or not says nothing of the method.
        verdict = "not comparable"
    return Comparison(
        f"Dice, {what}", f"{published:.2f} %", f"{mean:.1f} % ({low:.1f} to {high:.1f})", verdict,
        f"{_HEADS.capitalize()}; {why}.",
    )  # fmt: skip


def _gap_row(found: Sequence[dict[str, Any]]) -> Comparison:
    theirs, ours = {}, {}
    for tissue in TISSUES[:0:-1]:
        after, manual = PUBLISHED[tissue]
        theirs[tissue] = (after or 0.0) - (manual or 0.0)
        ours[tissue] = 100 * float(
            np.mean(tissue_values(found, "guided_backprop", tissue, "Dice"))
            - np.mean(tissue_values(found, "manual", tissue, "Dice"))
        )
    same = sorted(theirs, key=theirs.__getitem__) == sorted(ours, key=ours.__getitem__)
    return Comparison(
        "what removal loses against manual removal, Dice points",
        ", ".join(f"{tissue} {gap:.1f}" for tissue, gap in theirs.items()),
        ", ".join(f"{tissue} {gap:.1f}" for tissue, gap in ours.items()),
        "confirmed" if same else "differs",
        ("The order is the same" if same else "The order is another")
        + ": a misplaced border costs most where a tissue lies at the border and is thin.",
    )


def _specificity_row(found: Sequence[dict[str, Any]]) -> Comparison:
    gaps = []
    for tissue in TISSUES[1:]:
        for one in found:
            scores = one["arms"]["guided_backprop"]["tissues"][tissue]
            both = scores["precision"] + scores["sensitivity"]
            if both > 0:
                mean = 2 * scores["precision"] * scores["sensitivity"] / both
                gaps.append(abs(mean - scores["Dice"]))
    return Comparison(
        '"specificity"',
        "87.90, 81.83, 53.61 % for WM, GM, CSF",
        ", ".join(
            f"{100 * float(np.mean(tissue_values(found, 'guided_backprop', one, 'precision'))):.1f}"
            for one in TISSUES[:0:-1]
        )
        + " % (as precision)",
        "not comparable",
        "2ps/(p+s) of the printed specificity and sensitivity is the printed Dice to 0.6 points, "
        "so it is precision; for ours this holds to "
        f"{max(gaps):.1g} by definition.",
    )


def _fit_row(found: Sequence[dict[str, Any]]) -> Comparison:
    fits = [one["fits"]["guided_backprop"] for one in found]
    mean = {
        key: float(np.mean([one[key] for one in fits]))
        for key in ("ks_distance", "skewness", "kurtosis")
    }
    return Comparison(
        "guided gradients are log-normal",
        "assumed, no test stated",
        f"KS distance {mean['ks_distance']:.3f}, skewness {mean['skewness']:.2f}, excess kurtosis "
        f"{mean['kurtosis']:.2f}",
        "confirmed" if mean["ks_distance"] <= _KS else "refuted",
        "Measured here over all voxels with a gradient; a KS distance of up to "
        f"{_KS} is called log-normal.",
    )


def _edges_row(found: Sequence[dict[str, Any]]) -> Comparison:
    guided = arm_values(found, "guided_backprop")
    random = arm_values(found, "random weights")
    p = sign_flip(np.subtract(guided, random))
    gap = 100 * float(np.mean(guided) - np.mean(random))
    return Comparison(
        "the map knows where the brain is because the network learned it",
        "implied",
        f"brain Dice {100 * float(np.mean(guided)):.1f} % with the trained weights, "
        f"{100 * float(np.mean(random)):.1f} % with random ones (p = {p:.2g})",
        "confirmed" if p < _SURE and gap > 0 else "refuted",
        "Random weights see the same voxels and masks of the trained network's prediction, which "
        "alone tell much about the place; the difference is what the weights add.",
    )


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _percent(values: Sequence[float], seed: int) -> str:
    """Mean and interval in words, in percent."""
    return bootstrap(values, seed).in_words(".1f", 100)
