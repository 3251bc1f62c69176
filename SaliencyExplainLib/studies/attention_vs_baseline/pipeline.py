"""The study from its networks to its result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ...image import make_image
from ...model import Model
from ...target import Target
from ..results import Case, StudyResult
from .attach import DualAttentionNetwork
from .compare import CaseComparison, compare_case
from .networks import (
    BACKBONES,
    Contender,
    Setting,
    Volumes,
    branch_sizes,
    case,
    contenders,
    scores,
    trained,
)

if TYPE_CHECKING:
    from ...methods import Method
    from ..work import Work

__all__ = ["METHODS", "QUICK", "STANDARD", "conduct"]

STANDARD = Setting(
    size=48,
    width_mm=84.0,
    noise=0.4,
    training=320,
    test=160,
    steps=160,
    batch=8,
    learning_rate=3e-3,
    augmentation=(False, True),
    explained=12,
    path_steps=8,
    samples=8,
    curve_steps=6,
)
QUICK = Setting(
    size=32,
    width_mm=64.0,
    noise=0.2,
    training=64,
    test=24,
    steps=60,
    batch=8,
    learning_rate=3e-3,
    augmentation=(True,),
    explained=3,
    path_steps=6,
    samples=4,
    curve_steps=4,
)
#: Methods whose maps are compared; the first is the published one.
METHODS = ("gradient", "integrated_gradients", "smooth_grad", "grad_cam")
#: Metrics of a map.
METRICS = ("relevance_mass", "relevance_rank", "deletion", "insertion")


def conduct(work: Work) -> StudyResult:
    """Train, test, compare maps of what all get right, and sum up."""
    from .figure import draw_figures
    from .summary import summarise

    setting = QUICK if work.quick else STANDARD
    networks = _networks(work, setting)
    with work.part(0.5, 0.6):
        answers = work.cases(
            "test_answers", range(setting.test), lambda number: _answers(networks, setting, number)
        )
    maps: dict[str, list[dict[str, Any]]] = {}
    shown: dict[str, CaseComparison] = {}
    cases: list[Case] = []
    for place, backbone in enumerate(BACKBONES):
        chosen, right = _explained(setting, backbone, answers)
        models = _models(networks, backbone)
        start, end = 0.6 + 0.2 * place, 0.8 + 0.2 * place
        with work.part(start, end - 0.02):
            found = work.cases(
                f"maps_of_{backbone.lower()}",
                chosen,
                partial(_measured, work, models, setting),
            )
        maps[backbone] = [
            one | {"case": number, "all_right": right}
            for number, one in zip(chosen, found, strict=True)
        ]
        with work.part(end - 0.02, end):
            shown[backbone] = _shown(work, models, setting, chosen[0])
            cases.append(_case(setting, backbone, chosen[0], shown[backbone]))
    summary = summarise(setting, answers, maps)
    figures = draw_figures(cases, shown, summary)
    work.tell(1.0, "done")
    return StudyResult(
        name="",
        title="",
        paper="",
        question="",
        answer=summary.answer,
        comparisons=summary.comparisons,
        differs=summary.differs,
        tables=summary.tables,
        figures=figures,
        plots=summary.plots,
        cases=tuple(cases),
        settings=asdict(setting),
    )


def _networks(work: Work, setting: Setting) -> dict[Contender, torch.nn.Module]:
    wanted = [one for backbone in BACKBONES for one in contenders(setting, backbone)]
    volumes = Volumes(setting)
    found = {}
    for number, variant in enumerate(wanted):
        with work.part(0.5 * number / len(wanted), 0.5 * (number + 1) / len(wanted)):
            found[variant] = trained(work, volumes, variant)
    return found


def _answers(
    networks: Mapping[Contender, torch.nn.Module], setting: Setting, number: int
) -> dict[str, Any]:
    """Logits of each network for a test volume, as it is and with its spicules erased."""
    scene = case(setting, number, test=True)
    both = torch.stack([scene.image.as_tensor(), scene.erased.as_tensor()])
    found: dict[str, Any] = {"spiculated": number % 2}
    for variant, network in networks.items():
        found[variant.name] = scores(network, both)
        if isinstance(network, DualAttentionNetwork):
            found[f"{variant.name} branches"] = branch_sizes(network, both[:1])
    return found


def _explained(
    setting: Setting, backbone: str, answers: Sequence[Mapping[str, Any]]
) -> tuple[list[int], bool]:
    """Spiculated test volumes that all networks of a backbone get right, and whether any is.

    Where none is (a network that was hardly trained) the first ones are taken.
    """
    names = [one.name for one in contenders(setting, backbone)]
    spiculated = [number for number, one in enumerate(answers) if one["spiculated"]]
    right = [number for number in spiculated if all(answers[number][name][0] > 0 for name in names)]
    return (right or spiculated)[: setting.explained], bool(right)


def _models(
    networks: Mapping[Contender, torch.nn.Module], backbone: str
) -> dict[str, tuple[Contender, Model]]:
    return {
        variant.name: (
            variant,
            Model(network, "classification", ("spiculated",), activation="sigmoid"),
        )
        for variant, network in networks.items()
        if variant.backbone == backbone
    }


def _method(setting: Setting, name: str, variant: Contender) -> Method:
    from ...methods import make_method

    parameters: dict[str, dict[str, Any]] = {
        "integrated_gradients": {"steps": setting.path_steps},
        "smooth_grad": {"samples": setting.samples},
        # The last features with voxels: those that are pooled.
        "grad_cam": {"layer": _last_layer(variant)},
    }
    return make_method(name, parameters.get(name))


def _last_layer(variant: Contender) -> str:
    if variant.backbone == "DenseNet":
        return "head.relu" if variant.block else "class_layers.relu"
    return "attention" if variant.block else "layer4"


def _target(method: str) -> Target:
    """As published for the gradient, the probability; else the logit, which does not saturate."""
    return Target(output=0, score="probability" if method == "gradient" else "logit")


def _compared(
    work: Work,
    models: Mapping[str, tuple[Contender, Model]],
    setting: Setting,
    number: int,
    method: str,
    metrics: Sequence[Any],
) -> CaseComparison:
    scene = case(setting, number, test=True)
    truth = make_image(scene.labels.as_tensor() == scene.SPICULES, scene.labels.affine)
    return compare_case(
        {name: model for name, (_, model) in models.items()},
        scene.image,
        {name: _method(setting, method, variant) for name, (variant, _) in models.items()},
        _target(method),
        truth,
        metrics,
        work.tell,  # which also stops it when the caller wants
    )


def _measured(
    work: Work, models: Mapping[str, tuple[Contender, Model]], setting: Setting, number: int
) -> dict[str, Any]:
    """Metrics and similarity of the maps of all methods, and of the blocks' own attention."""
    from ...quality import compare, make_metric, spearman

    # Bounded, unlike a logit that is normalised between volume and baseline.
    curves = {"control": False, "steps": setting.curve_steps, "ordinate": "probability"}
    metrics = [
        make_metric(name, curves if name in ("deletion", "insertion") else None) for name in METRICS
    ]
    found: dict[str, Any] = {"attention": {}}
    sizes: dict[str, Any] = {}
    for place, method in enumerate(METHODS):
        with work.part(place / len(METHODS), (place + 1) / len(METHODS)):
            one = _compared(work, models, setting, number, method, metrics)
        matrix = compare(one.maps, ("spearman", "top_k_iou"))
        found[method] = {
            "metrics": one.metrics,
            "pairs": {measure: values.tolist() for measure, values in matrix.matrices.items()},
            "names": list(one.maps),
        }
        sizes[method] = {
            name: abs(found_map.map.as_tensor()[0].numpy()) for name, found_map in one.maps.items()
        }
    for name, (variant, model) in models.items():
        if variant.block:
            seen = _attended(model, setting, number)
            own = seen.pop("map")
            seen["like"] = {method: spearman(own, sizes[method][name]) for method in METHODS}
            found["attention"][name] = seen
    return found


def _attended(model: Model, setting: Setting, number: int) -> dict[str, Any]:
    """Where a block's attention goes: the mean of the rows of E, on the volume's grid."""
    from ...quality import localisation

    scene = case(setting, number, test=True)
    shown = _attention_map(model, scene.image)
    values = shown.map.as_tensor()[0].numpy().astype(float)
    labels = scene.labels.as_tensor()[0].numpy()
    spicules = labels == scene.SPICULES
    assert shown.layer_map is not None  # noqa: S101 - the network takes the whole volume
    tokens = shown.layer_map.as_tensor().flatten().double()
    share = tokens / tokens.sum()
    entropy = float(-(share * share.clamp(min=1e-30).log()).sum())
    return {
        "map": values,
        "relevance_mass": localisation.mass_inside(values, spicules),
        "relevance_rank": localisation.rank_inside(values, spicules),
        "nodule_mass": localisation.mass_inside(values, labels > 0),
        "spicules": float(spicules.mean()),
        "nodule": float((labels > 0).mean()),
        "tokens": math.exp(entropy),
        "all_tokens": len(share),
    }


def _attention_map(model: Model, image: Any) -> Any:
    from ...run import explain

    return explain(model, image, Target(output=0), "attention_rows", query="mean")


def _shown(
    work: Work, models: Mapping[str, tuple[Contender, Model]], setting: Setting, number: int
) -> CaseComparison:
    """Maps for the scene and the figure: the published method on the last pair, and attention."""
    pair = dict(list(models.items())[-2:])
    maps: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    for place, method in enumerate(METHODS[:2]):
        with work.part(place / 2, (place + 1) / 2):
            found = _compared(work, pair, setting, number, method, ())
        maps |= {f"{name} {method}": one for name, one in found.maps.items()}
        differences |= {f"{name} {method}": one for name, one in found.differences.items()}
    name, (_, model) = list(pair.items())[1]
    attention = _attention_map(model, case(setting, number, test=True).image)
    maps["attention"] = replace(attention, title=f"{name}: its own attention, mean of the rows")
    return CaseComparison(number, maps, differences, {}, {})


def _case(setting: Setting, backbone: str, number: int, shown: CaseComparison) -> Case:
    scene = case(setting, number, test=True)
    return Case(
        name=f"{backbone}, test volume {number}",
        image=scene.image,
        labels={"truth": (scene.labels, scene.names)},
        maps=(*shown.maps.values(), *shown.differences.values()),
    )
