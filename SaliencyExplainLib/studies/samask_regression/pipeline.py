"""The steps of the study: train, test, choose a layer, explain, vary the asymmetry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..heads import SyntheticHead
from ..results import Case, StudyResult
from ..work import Work
from .findings import answers, comparisons, differences
from .measures import NEAR_MM, Found, Setting
from .network import OUTPUTS, Heads, trained_model
from .pictures import asymmetry_figure, methods_figure, plots
from .tables import tables

__all__ = ["PLANS", "Plan", "chosen_layer", "conduct"]

#: Layers that are compared, from the image on.
LAYERS = ("stem", "stage2", "wide")
#: Outputs whose masks choose the layer, are deleted too, and show how stable masks are.
PROBES = ("left hippocampus", "right ventricle")
#: Parameters of the mask, tried on one head that is used for nothing else but the choice of the
#: layer: blurred features leave scalp, skull and air as the network knows them (with zeros a volume
#: changes by up to twelve times itself), and over 10 mm they hide what is as small as a hippocampus
#: (over 25 mm, and with a lower price of the mask's mean, masks leaked more).
OPTIONS: dict[str, Any] = {
    "fill": "blurred",
    "blur_mm": 10.0,
    "area": 0.005,
    "sparsity": 10.0,
    "learning_rate": 0.7,
}
#: How much smaller (left) and larger (right) the hippocampi are made; trained on up to 0.15.
ASYMMETRIES = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75)
TRAINED_ASYMMETRY = 0.15
#: Volume of 1.12 ml on the left, as in the poster, and a large one on the right.
_POSTER = (0.24, 1.5)
#: Prediction change that a mask may cause.
TOLERATED = 0.05
#: Least change by hiding the whole layer, for its masks to tell something.
TELLING = 0.2
#: First seeds of the heads of each part, so that none is used twice.
_TESTED, _LAYERS, _EXPLAINED, _VARIED, _STABLE = 50_000, 60_000, 70_000, 80_000, 90_000


@dataclass(frozen=True)
class Plan:
    """How large everything is.

    Attributes
    ----------
    size, channels, train, steps : int
        Voxels a side, channels of the network, heads and updates of the training.
    tested, layer_heads, explained, stable_heads, varied : int
        Heads of the test, of the choice of the layer, with masks, with masks from three starts,
        and of each degree of asymmetry.
    asymmetric : int
        Strongly asymmetric heads with masks.
    mask_steps : int
        Steps of a mask at most.
    """

    size: int
    channels: int
    train: int
    steps: int
    tested: int
    layer_heads: int
    explained: int
    stable_heads: int
    varied: int
    asymmetric: int
    mask_steps: int


PLANS = {
    False: Plan(48, 6, 240, 400, 60, 2, 10, 2, 10, 5, 80),
    True: Plan(32, 6, 64, 120, 12, 1, 3, 1, 4, 3, 40),
}


def conduct(work: Work) -> StudyResult:
    """Run the study."""
    plan = PLANS[work.quick]
    base = 1_000_000 * work.seed
    with work.part(0.0, 0.5):
        heads = Heads(work, plan.size, plan.train, base)
        model, losses = trained_model(
            work, heads, plan.size, steps=plan.steps, channels=plan.channels
        )
    deviations = dict(zip(OUTPUTS, model.network.get_buffer("deviation_ml").tolist(), strict=True))
    setting = Setting(model, plan.size, deviations, {**OPTIONS, "steps": plan.mask_steps})
    with work.part(0.5, 0.54):
        tested = work.cases(
            "test", _seeds(base + _TESTED, plan.tested), lambda seed: setting.subject(seed).error()
        )
    with work.part(0.54, 0.62):
        layers = work.cases(
            "layers",
            [
                f"{layer} {seed}"
                for layer in LAYERS
                for seed in _seeds(base + _LAYERS, plan.layer_heads)
            ],
            lambda key: _at_layer(work, setting, key),
        )
        by_layer = _by_layer(layers)
        layer = chosen_layer(by_layer)
    with work.part(0.62, 0.86):
        explained = work.cases(
            "attention",
            _seeds(base + _EXPLAINED, plan.explained),
            lambda seed: _explained(work, setting, seed, layer),
        )
    with work.part(0.86, 0.92):
        stable = work.cases(
            "stability",
            _seeds(base + _STABLE, plan.stable_heads),
            lambda seed: setting.subject(seed).attention(work, PROBES, layer, starts=3),
        )
    with work.part(0.92, 0.95):
        keys = [
            f"{degree} {seed}"
            for degree in ASYMMETRIES
            for seed in _seeds(base + _VARIED, plan.varied)
        ]
        varied = work.cases("asymmetry", keys, lambda key: _asymmetric(setting, key))
    with work.part(0.95, 0.99):
        sides = work.cases(
            "sides",
            _seeds(base + _VARIED, plan.asymmetric),
            lambda seed: setting.subject(seed, _POSTER).attention(work, OUTPUTS[:2], layer),
        )
    found = Found(
        tested=tested,
        by_layer=by_layer,
        layer=layer,
        explained=explained,
        stable=stable,
        degrees=[float(key.split()[0]) for key in keys],
        heads=[key.split()[1] for key in keys],
        varied=varied,
        sides=sides,
        deviations=deviations,
        losses=losses,
        trained_asymmetry=TRAINED_ASYMMETRY,
        tolerated=TOLERATED,
        telling=TELLING,
        seed=work.seed,
    )
    return _result(work, plan, setting, found, base)


def chosen_layer(by_layer: dict[str, list[dict[str, Any]]]) -> str:
    """Of the layers where a mask tells something and keeps the prediction, the least leaking one.

    A mask tells something where hiding everything would change the output by far more than the
    mask may: behind the last non-linearity a blurred map has the sum of the sharp one.

    Parameters
    ----------
    by_layer : mapping of str to list of dict
        Rows of masks by layer, with "value", "effect", "prediction_change" and "leakage".

    Returns
    -------
    str
        Where no layer fits: the one where hiding everything changes most.
    """
    effect = {
        name: float(np.median([abs(row["effect"] / row["value"]) for row in rows]))
        for name, rows in by_layer.items()
    }
    leak = {
        name: float(np.mean([row["leakage"] for row in rows])) for name, rows in by_layer.items()
    }
    fitting = [
        name
        for name, rows in by_layer.items()
        if effect[name] >= TELLING and max(row["prediction_change"] for row in rows) < TOLERATED
    ]
    if not fitting:
        return max(effect, key=lambda name: effect[name])
    return min(fitting, key=lambda name: leak[name])


def _seeds(first: int, count: int) -> list[int]:
    return list(range(first, first + count))


def _at_layer(work: Work, setting: Setting, key: str) -> dict[str, Any]:
    layer, seed = key.split()
    return {"layer": layer, **setting.subject(int(seed)).attention(work, PROBES, layer)}


def _by_layer(cases: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        rows.setdefault(case["layer"], []).extend(case[output] for output in PROBES)
    return rows


def _explained(work: Work, setting: Setting, seed: int, layer: str) -> dict[str, Any]:
    subject = setting.subject(seed)
    with work.part(0.0, 0.5):
        keep = subject.attention(work, OUTPUTS, layer)
    with work.part(0.5, 0.9):
        delete = subject.attention(work, PROBES, layer, mode="delete")
    with work.part(0.9, 1.0):
        others = subject.compared(OUTPUTS, work)
    return {"keep": keep, "delete": delete, "others": others, "error": subject.error()}


def _asymmetric(setting: Setting, key: str) -> dict[str, Any]:
    degree, seed = key.split()
    found = setting.subject(int(seed), (1 - float(degree), 1 + float(degree))).error()
    return {output: found[output] for output in OUTPUTS[:2]}


def _result(work: Work, plan: Plan, setting: Setting, found: Found, base: int) -> StudyResult:
    work.tell(0.99, "drawing")
    usual = setting.subject(base + _EXPLAINED)
    one_sided = setting.subject(base + _VARIED, _POSTER)
    left, right = OUTPUTS[:2]
    masks = {output: usual.mask(output, found.layer) for output in (left, "right ventricle")}
    maps = {name: usual.map(left, name) for name in ("deconvnet", "gradient", "guided_backprop")}
    sides = {output: one_sided.mask(output, found.layer) for output in (left, right)}
    work.check()
    names = SyntheticHead.NAMES
    return StudyResult(
        "",
        "",
        "",
        "",
        answer=answers(found),
        comparisons=comparisons(found),
        differs=differences(found),
        tables=tables(found),
        figures=(
            methods_figure(usual.head, left, {"SAMASK": masks[left], **_titled(maps)}),
            asymmetry_figure(one_sided.head, sides, found),
        ),
        plots=plots(found),
        cases=(
            Case(
                "usual head",
                usual.head.image,
                {"structures": (usual.head.labels, names)},
                (*masks.values(), *maps.values()),
            ),
            Case(
                "asymmetric head",
                one_sided.head.image,
                {"structures": (one_sided.head.labels, names)},
                tuple(sides.values()),
            ),
        ),
        settings={
            **vars(plan),
            "voxel (mm)": 208 / plan.size,
            "batch": 8,
            "outputs": len(OUTPUTS),
            "near (mm)": NEAR_MM,
            "layer": found.layer,
            **{f"mask {key}": value for key, value in OPTIONS.items()},
        },
    )


def _titled(maps: dict[str, Any]) -> dict[str, Any]:
    return {one.title: one for one in maps.values()}
