"""One case: the maps of all layer sets and methods, and what the metrics say of each.

A layer's map is made once and serves all sets that it is in. The masked images of all maps go
through the network two at a time where it takes the whole volume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ...engine import Engine
from ...errors import MetricError, StudyError
from ...image import as_image, make_image
from ...methods import Method, make_method
from ...methods.cam_pass import OnePassCam
from ...methods.layer import LayerMethod
from ...quality import make_metric
from ...quality.localisation import rank_inside
from ...quality.maps import evidence
from ...quality.outputs import probability_map
from ...quality.shares import Shares
from ...quality.trial import Trial
from ...run import explain, explain_layers
from ...target import Target
from .combining import combine_layers

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from ...explanation import Explanation
    from ...model import Model
    from .layer_sets import LayerSet

__all__ = ["METRICS", "layer_set_maps", "made_methods", "measured", "published_target"]

#: Measured of each map: name, heading, and whether more is better.
METRICS: dict[str, tuple[str, bool]] = {
    "attribution_quality": ("AQ", True),
    "prediction_preserved": ("PP", True),
    "relative_entropy": ("RE", False),
    "relative_foreground": ("RFA", True),
    "external_peaks": ("EPA", True),
    "image_preserved": ("IP", False),
    "excess_prediction": ("EP", False),
    "evidence_rank": ("rank", True),
    "outside_rank": ("rank outside", True),
}
#: Images that go through the network together: on a CPU two cost less than one by one.
_TOGETHER = 2


def published_target(output: int | str | None = None) -> Target:
    """What the publication explains: the output's probability, summed over all voxels."""
    return Target(output=output, region="everywhere", score="probability", reduce="sum")


def made_methods(methods: Sequence[str | Method]) -> list[LayerMethod]:
    """Methods from their names.

    Raises
    ------
    StudyError
        If one has no layer, or there is none.
    """
    made = [one if isinstance(one, Method) else make_method(one) for one in methods]
    found = [one for one in made if isinstance(one, LayerMethod)]
    if not made or len(found) < len(made):
        wrong = next((one.title for one in made if not isinstance(one, LayerMethod)), "none")
        raise StudyError(
            f"Layer sets can be compared for methods that look at a layer; {wrong} was given. "
            "Choose among those that sx.methods() lists with needs_layer."
        )
    return found


def layer_set_maps(
    model: Model,
    image: MetaTensor,
    sets: Sequence[LayerSet],
    methods: Sequence[str | Method],
    target: Target | None = None,
    *,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[tuple[str, str], Explanation]:
    """Explain an image by several methods, each over several sets of layers.

    Parameters
    ----------
    model : Model
    image : MetaTensor, shape (C, I, J, K)
    sets : sequence of LayerSet
        From :func:`layer_sets`, or of your own.
    methods : sequence of str or Method
        Methods that look at a layer.
    target : Target, optional
        As published when left out: the output's probability, summed over all voxels. Score-CAM
        takes its mean over the prediction in any case: its softmax needs scores of order 1.
    progress, cancelled : callable, optional
        As for :func:`SaliencyExplainLib.explain`.

    Returns
    -------
    dict of (name of the set, name of the method) to Explanation
        How layers are joined: :func:`combine_layers`.
    """
    target = target or published_target()
    layers = list(dict.fromkeys(layer for one in sets for layer in one.layers))
    chosen = made_methods(methods)
    shares = Shares(progress, cancelled)
    single: dict[tuple[str, str], Explanation] = {}
    one_pass = [one for one in chosen if isinstance(one, OnePassCam)]
    if one_pass:
        found = explain_layers(model, image, target, one_pass, layers, None, cancelled)
        names = [(one.name, layer) for one in one_pass for layer in layers]
        single |= dict(zip(names, found, strict=True))
    slow = [one for one in chosen if not isinstance(one, OnePassCam)]
    steps = [(one, layer) for one in slow for layer in layers]
    for number, (one, layer) in enumerate(steps):
        single[one.name, layer] = explain(
            model,
            image,
            _own_target(one, target),
            replace(one, layer=layer),
            shares.teller(number / len(steps), 1 / len(steps), f"{one.title} at {layer}"),
            cancelled,
            batch_size=_TOGETHER,
        )
    return {
        (group.name, one.name): combine_layers([single[one.name, layer] for layer in group.layers])
        for group in sets
        for one in chosen
    }


def _own_target(method: LayerMethod, target: Target) -> Target:
    """Score-CAM's softmax over channels needs scores of order 1: the mean over the prediction."""
    if method.name != "score_cam" or target.score != "probability":
        return target
    return replace(target, region="prediction", reduce="mean")


def measured(
    model: Model,
    image: MetaTensor,
    labels: MetaTensor,
    maps: Mapping[Any, Explanation],
    target: Target,
    *,
    target_label: int,
    evidence_label: int | None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[Any, dict[str, float]]:
    """Measure maps of one image.

    Parameters
    ----------
    model, image, target
        What was explained.
    labels : MetaTensor, shape (1, I, J, K)
        0 background, the explained structure, and evidence outside of it.
    maps : mapping of any key to Explanation
    target_label : int
        The explained structure.
    evidence_label : int or None
        Evidence outside of it; None where none is known.
    cancelled : callable, optional

    Returns
    -------
    dict of key to {name of METRICS: value}
        NaN where a value is not defined: a map that is zero everywhere, no evidence outside.
    """
    shares = Shares(None, cancelled)
    outside = -1 if evidence_label is None else evidence_label
    inside = labels.as_tensor()
    truth = make_image((inside == target_label) | (inside == outside), labels.affine)
    beyond = (inside == outside)[0].numpy()
    quality = make_metric(
        "attribution_quality",
        # A label that no voxel has: every peak outside of the structure is a miss.
        {"target_label": target_label, "evidence_label": outside if outside > 0 else 65535},
    )
    others = [make_metric(name) for name in ("image_preserved", "excess_prediction")]
    rank = make_metric("relevance_rank")
    engine = Engine(model, model.prepare(as_image(image)), target, shares.part(0, 1, "metrics"))
    found: dict[Any, dict[str, float]] = {}
    with engine.running():
        p = probability_map(engine.output(engine.x), engine.frozen, quality.title).cpu().double()
        if not bool(p.sum() > 0):
            raise StudyError("The network predicts nothing in this case. Leave the case out.")
        trials = {
            key: Trial(one, engine, truth=truth, labelmap=labels, shares=shares)
            for key, one in maps.items()
        }
        for trial in trials.values():
            trial.begin(0, 1, "metrics")
            trial.kept["p"] = p
        _look_through(trials.values(), engine, quality)
        for key, trial in trials.items():
            shares.check()
            values = dict.fromkeys(METRICS, math.nan)
            found[key] = values
            try:
                for one in quality.measure(trial):
                    values[one.part or quality.name] = _number(one.value)
                for metric in others:
                    values[metric.name] = _number(metric.measure(trial)[0].value)
                values["evidence_rank"] = _number(rank.measure(trial)[0].value)
                if beyond.any():
                    high = evidence(trial.values, trial.explanation)
                    values["outside_rank"] = rank_inside(high, beyond)
            except MetricError:
                continue  # a map that is zero everywhere names no evidence
    return found


def _look_through(trials: Iterable[Trial], engine: Engine, quality: Any) -> None:
    """Run the network on the masked images of all maps, two at a time where it allows that."""
    together = len(engine.plan.windows) == 1 and not any(map(any, engine.plan.padding))
    if not together or not engine.separate(engine.x):
        return  # each metric runs its own
    key = ("masked", quality.part, quality.fill, quality.blur_mm)
    waiting = []
    for trial in trials:
        try:
            waiting.append((trial, quality.images(trial)[0]))
        except MetricError:
            continue
    for start in range(0, len(waiting), _TOGETHER):
        group = waiting[start : start + _TOGETHER]
        outputs = engine.output(torch.cat([image for _, image in group])).split(1)
        for (trial, _), output in zip(group, outputs, strict=True):
            trial.kept[key] = probability_map(output, engine.frozen, quality.title).cpu().double()


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
