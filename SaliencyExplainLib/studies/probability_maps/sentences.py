"""What the study found, in sentences made from the numbers, and beside the published claims."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..results import Comparison
from ..statistics import Estimate, bootstrap, mcnemar, sign_flip
from .tables import ALL, SIGNS, TITLES, TOLERATED, Told, accuracy, apart, gathered, right

__all__ = ["answers", "comparisons"]

_SIGNIFICANT = 0.05
#: Figures that are named in a sentence; the table has all.
_LISTED = 3


def answers(told: Told, mapped: Told) -> tuple[str, ...]:
    """The findings, as the numbers have them."""
    return (*_about_accuracy(told), *_about_bias(told, mapped), *_about_lesions(mapped))


def _about_accuracy(told: Told) -> list[str]:
    maps, image = (accuracy(told, kind, "mixed") for kind in ("maps_biased", "image_mixed"))
    p = mcnemar(right(told, "maps_biased", "mixed"), right(told, "image_mixed", "mixed"))
    better = _claim("more accurate than", maps.value - image.value, p)
    brain, same, other = (
        accuracy(told, "brain_biased", one) for one in ("mixed", "follows", "swapped")
    )
    return [
        f"Fed with probability maps the classifier is {better} fed with the image: "
        f"{_percent(maps)} against {_percent(image)} of {len(told)} persons (scanners mixed, "
        f"McNemar {_p(p)}), although the scanner told the group in its training and not in the "
        "image's.",
        f"The image without skull and air reaches {_percent(brain)} after the same biased training "
        f"({100 * same.value:.1f} % with the same bias, {100 * other.value:.1f} % with scanners "
        f"the other way round): {_gain(maps.value, brain.value, image.value)}",
    ]


def _gain(maps: float, brain: float, image: float) -> str:
    if maps <= image:
        return "there is no gain of the probability maps to explain."
    part = (brain - image) / (maps - image)
    if part >= 0.8:
        return "the gain comes from removing what is not brain, not from probabilities."
    if part <= 0.2:
        return "the gain comes from the probabilities, not from removing what is not brain."
    return (
        f"removing what is not brain gives {100 * part:.0f} % of the gain of probability maps, the "
        "probabilities the rest."
    )


def _about_bias(told: Told, mapped: Told) -> list[str]:
    inside, outside = (accuracy(told, "image_biased", one) for one in ("follows", "swapped"))
    clean = accuracy(told, "image_mixed", "mixed")
    seen = "does not see the bias" if inside.value >= clean.value else "falls with the bias"
    said = [
        f"Accuracy {seen}: the image classifier whose training had it is right in "
        f"{_percent(inside)} of persons with the same bias, the one without in {_percent(clean)} "
        f"of its own; with scanners the other way round the biased one is right in "
        f"{_percent(outside)}.",
    ]
    air = {kind: gathered(mapped, kind, "air") for kind in TITLES}
    area = apart(air["image_biased"], air["image_mixed"])
    reveal = "reveal" if area > 0.9 else "do not clearly reveal"
    said.append(
        f"The signed maps {reveal} it: in patients {_mean(air['image_biased'])} of the biased "
        f"classifier's |attribution| lies in the air, where the scanner's foam is, against "
        f"{_mean(air['image_mixed'])} without bias and {_mean(air['maps_biased'])} with "
        f"probability maps (ROC area {area:.2f}, biased against mixed)."
    )
    told_apart = []
    for reference in ("zero", "healthy mean"):
        for sign in SIGNS:
            pair = [
                gathered(mapped, kind, sign.key, reference=reference)
                for kind in ("image_biased", "image_mixed")
            ]
            told_apart.append((abs(apart(*pair) - 0.5), apart(*pair), sign.title, reference))
    known = [one for one in told_apart if not math.isnan(one[0])]
    best = [one for one in known if one[0] >= max(entry[0] for entry in known) - 1e-9]
    listed = [f"{one[2]} (reference {one[3]}, ROC area {one[1]:.2f})" for one in best[:_LISTED]]
    more = f"; and {len(best) - _LISTED} more as well" if len(best) > _LISTED else ""
    said.append(f"What tells the biased image classifier best: {'; '.join(listed)}{more}.")
    healthy = bootstrap(gathered(mapped, "image_biased", "air", patient=False))
    said.append(
        "A zero reference hides the bias where the signature is missing: in healthy persons, who "
        f"were scanned without foam, {100 * healthy.value:.1f} % of the biased classifier's "
        f"|attribution| lies in the air, from the healthy mean "
        f"{_mean(gathered(mapped, 'image_biased', 'air', reference='healthy mean', patient=False))}"
        "."
        if healthy.value < bootstrap(air["image_biased"]).value / 2
        else "The bias shows in healthy persons, too: "
        f"{100 * healthy.value:.1f} % of the |attribution| lies in the air."
    )
    return said


def _about_lesions(mapped: Told) -> list[str]:
    density = {kind: gathered(mapped, kind, "density") for kind in TITLES}
    pairs = [a - b for a, b in zip(density["maps_biased"], density["image_mixed"], strict=True)]
    signs = {
        (kind, reference): gathered(mapped, kind, "positive", reference=reference)
        for kind in ("image_mixed", "maps_biased")
        for reference in ("zero", "healthy mean")
    }
    nearer = _claim("nearer to", bootstrap(pairs).value, sign_flip(pairs))
    return [
        f"The maps of the classifier fed with probabilities are {nearer} the lesions: there the "
        f"|attribution| is {_mean(density['maps_biased'], 1, '')} times as dense as on average, "
        f"fed with the image {_mean(density['image_mixed'], 1, '')} times (sign-flip "
        f"{_p(sign_flip(pairs))}). {_owed(density)}",
        'In lesions, this part of the attribution speaks for "patient", as it should: '
        + "; ".join(
            f"{'image' if kind == 'image_mixed' else 'probability maps'} from {reference} "
            f"{_mean(values)}"
            for (kind, reference), values in signs.items()
        )
        + ".",
        _about_completeness(mapped),
    ]


def _owed(density: dict[str, list[float]]) -> str:
    """Whether probabilities bring the maps nearer, or the missing skull and air do."""
    brain, maps = density["brain_biased"], density["maps_biased"]
    pairs = [a - b for a, b in zip(maps, brain, strict=True)]
    p = sign_flip(pairs)
    told = f"With skull and air removed from the image it is {_mean(brain, 1, '')} times: "
    if bootstrap(pairs).value > 0 and p < _SIGNIFICANT:
        return told + f"the probabilities add to that ({_p(p)})."
    return told + f"no less than with probabilities, as far as can be told ({_p(p)})."


def _about_completeness(mapped: Told) -> str:
    """How many maps add up, and of what the one that does so least is a part."""
    maps: dict[tuple[int, str, str, str], tuple[float, float]] = {}
    for number, one in enumerate(mapped):
        for row in one["rows"]:
            if row["error"] is not None and row["channel"] == ALL:
                key = (number, row["kind"], row["reference"], row["method"])
                maps[key] = (row["error"], maps.get(key, (0.0, 0.0))[1] + row["net"])
    within = sum(error <= TOLERATED for error, _ in maps.values())
    worst = max(maps, key=lambda key: maps[key][0])
    error, change = maps[worst]
    return (
        f"{within} of {len(maps)} maps that promise completeness add up within "
        f"{100 * TOLERATED:.0f} %; the largest error is {100 * error:.2g} % ({worst[3]} of "
        f'"{TITLES[worst[1]]}", whose map sums to {change:.2g}).'
    )


def comparisons(told: Told, mapped: Told) -> tuple[Comparison, ...]:
    """Published claims beside ours."""
    maps, image = (accuracy(told, kind, "mixed") for kind in ("maps_biased", "image_mixed"))
    p = mcnemar(right(told, "maps_biased", "mixed"), right(told, "image_mixed", "mixed"))
    density = [gathered(mapped, kind, "density") for kind in ("maps_biased", "image_mixed")]
    pairs = [a - b for a, b in zip(*density, strict=True)]
    inside, clean = (
        accuracy(told, "image_biased", "follows"),
        accuracy(told, "image_mixed", "mixed"),
    )
    outside = accuracy(told, "image_biased", "swapped")
    area = apart(*(gathered(mapped, one, "air") for one in ("image_biased", "image_mixed")))
    hidden = inside.value >= clean.value and outside.high < inside.low
    return (
        Comparison(
            "accuracy, probability maps against image (talk)",
            "95 % against 85 %",
            f"{_percent(maps)} against {_percent(image)}",
            _direction(maps.value - image.value, p),
            "Made-up heads and a small network: the direction can be compared, the figures cannot.",
        ),
        Comparison(
            "maps nearer to lesions with probability maps (ISBI 2021)",
            "more lesion-driven; no figure known to us",
            f"density ratio {bootstrap(density[0]).value:.1f} against "
            f"{bootstrap(density[1]).value:.1f}",
            _direction(bootstrap(pairs).value, sign_flip(pairs)),
            "Integrated gradients from zero in both; our lesions are known voxel by voxel. An "
            "input that is zero outside of the brain has no attribution there: see the control.",
        ),
        Comparison(
            "the test error cannot reveal a bias of the data, attribution can (talk)",
            "stated, no figure",
            f"accuracy {_percent(inside)} with the bias, {_percent(outside)} the other way round; "
            f"share in the air: ROC area {area:.2f}",
            "confirmed" if hidden and area > 0.9 else "differs",
            "Our bias is planted outside of the head, so that a map can show it; one that lies in "
            "the brain would not be seen by its place.",
        ),
    )


def _claim(words: str, difference: float, p: float) -> str:
    if difference <= 0:
        return f"not {words}"
    return words if p < _SIGNIFICANT else f"not clearly {words}"


def _direction(difference: float, p: float) -> str:
    if not p < _SIGNIFICANT:
        return "differs"
    return "confirmed" if difference > 0 else "refuted"


def _percent(score: Estimate) -> str:
    return f"{100 * score.value:.1f} % ({100 * score.low:.1f} to {100 * score.high:.1f})"


def _mean(values: Sequence[float], digits: int = 1, unit: str = " %") -> str:
    score = bootstrap(values)
    factor = 100 if unit else 1
    low, high = factor * score.low, factor * score.high
    return f"{factor * score.value:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def _p(p: float) -> str:
    if math.isnan(p):
        return "p not defined"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
