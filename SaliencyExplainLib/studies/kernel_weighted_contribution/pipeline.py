"""The study itself: a network, its cases, the public code's reading, and another network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ...errors import StudyError
from ...model import load_model
from ...model.shipped import shipped_bundle
from ..nodules import SpiculatedNodules, spiculated_nodules
from ..results import Case, StudyResult
from .compare import METHODS, LayerSetComparison
from .controls import SumOfFeatures, as_explanation
from .layer_sets import LayerSet, layer_sets
from .measures import layer_set_maps, made_methods, measured, published_target
from .network import as_model, dice, trained_network

if TYPE_CHECKING:
    from ...explanation import Explanation
    from ...methods import Method
    from ...model import Model
    from ..work import Work

__all__ = ["Found", "Setup", "conduct"]

#: Figure and scene show these sets.
_SHOWN = ("both", "decoder_without_transposed")
_SEEDS = 1000
_OUTPUT = "spiculated nodule"
_NOTHING = {"skipped": "the network predicts nothing"}
#: The committed model was trained on scenes of this size.
_SHIPPED, _SHIPPED_SIZE = "SpiculatedNodules", 64


@dataclass(frozen=True)
class Setup:
    """All numbers of the study."""

    size: int
    channels: tuple[int, ...]
    scenes: int
    steps: int
    cases: int
    at_convolutions: int
    second_network: int

    @classmethod
    def of(cls, quick: bool) -> Setup:
        """Return the small or the standard version."""
        if quick:
            return cls(32, (4, 8, 16), 24, 100, 6, 2, 0)
        return cls(48, (4, 8, 16), 120, 600, 100, 25, 10)


@dataclass(frozen=True)
class Found:
    """All that was measured.

    Attributes
    ----------
    main : LayerSetComparison
        Features read behind the activation of each convolution.
    at_convolutions : LayerSetComparison
        The same methods with the features of the convolutions themselves, on some of the cases.
    sums : LayerSetComparison
        Score-CAM of the public code: the sum of features.
    second : LayerSetComparison or None
        The committed network.
    controls : mapping of str to mapping
        Values of the even map and of the truth, a list over the cases each.
    scores : list of mapping
        Dice, part of plain nodules called and of bodies called once spicules are erased, a case.
    skipped : int
        Cases in which the network predicts nothing.
    losses : list of float
        Of the training.
    """

    main: LayerSetComparison
    at_convolutions: LayerSetComparison
    sums: LayerSetComparison
    second: LayerSetComparison | None
    controls: Mapping[str, Mapping[str, list[float]]]
    scores: list[Mapping[str, float]]
    skipped: int
    losses: list[float]


def conduct(work: Work) -> StudyResult:
    """Run the study."""
    setup = Setup.of(work.quick)
    with work.part(0.0, 0.25):
        network, losses = trained_network(
            work,
            channels=setup.channels,
            size=setup.size,
            scenes=setup.scenes,
            steps=setup.steps,
        )
    model = as_model(network)
    seeds = [work.seed * _SEEDS + number for number in range(setup.cases)]
    scene = spiculated_nodules(setup.size, seeds[0])
    sets = layer_sets(model, scene.image)
    raw = layer_sets(model, scene.image, reading="convolution")
    with work.part(0.25, 0.8):
        rows = work.cases(
            "cases", seeds, lambda seed: _case(work, model, sets, setup.size, int(seed))
        )
    with work.part(0.8, 0.9):
        some = seeds[:: max(1, setup.cases // setup.at_convolutions)][: setup.at_convolutions]
        convolved = work.cases(
            "at_convolutions",
            some,
            lambda seed: _plain_case(work, model, raw, setup.size, int(seed)),
        )
    with work.part(0.9, 0.97):
        second = _second(work, seeds[: setup.second_network])
    kept = [row for row in rows if "skipped" not in row]
    if not kept:
        raise StudyError(
            f"The network predicts nothing in any of {len(rows)} cases, so there is nothing to "
            "explain. Choose another seed."
        )
    names = {one.name: one.title for one in made_methods(METHODS)}
    found = Found(
        main=LayerSetComparison(sets, names, tuple(row["maps"] for row in kept)),
        at_convolutions=LayerSetComparison(
            raw, names, tuple(row["maps"] for row in convolved if "skipped" not in row)
        ),
        sums=LayerSetComparison(
            sets, {SumOfFeatures.name: SumOfFeatures.title}, tuple(row["sums"] for row in kept)
        ),
        second=second,
        controls={
            name: {
                metric: [row["controls"][name][metric] for row in kept]
                for metric in kept[0]["controls"][name]
            }
            for name in kept[0]["controls"]
        },
        scores=[row["scores"] for row in rows],
        skipped=len(rows) - len(kept),
        losses=losses,
    )
    from .figure import figures, plots
    from .findings import answers, comparisons, differences
    from .tables import tables

    work.tell(0.97, "one case for the figure")
    shown = _shown(seeds, rows)
    scene = spiculated_nodules(setup.size, shown)
    maps = _explained(work, model, scene, sets, METHODS)
    return StudyResult(
        name="",
        title="",
        paper="",
        question="",
        answer=answers(found),
        comparisons=comparisons(found),
        differs=differences(setup),
        tables=tables(found, setup),
        figures=figures(found, scene, maps, values=rows[seeds.index(shown)]["maps"]),
        plots=plots(found),
        cases=(_scene_case(scene, sets, maps),),
        settings={
            "size": setup.size,
            "channels": list(setup.channels),
            "training_scenes": setup.scenes,
            "training_steps": setup.steps,
            "cases": setup.cases,
            "cases_at_convolutions": setup.at_convolutions,
            "cases_of_the_second_network": setup.second_network,
            "first_test_seed": seeds[0],
            "shown_seed": shown,
        },
    )


def _case(
    work: Work, model: Model, sets: tuple[LayerSet, ...], size: int, seed: int
) -> dict[str, Any]:
    """Everything of one case behind the activations."""
    scene = spiculated_nodules(size, seed)
    scores = _scores(model.network, scene)
    if not scores["predicted"]:
        return {**_NOTHING, "scores": scores}
    maps = _explained(work, model, scene, sets, (*METHODS, SumOfFeatures()))
    like = next(iter(maps.values()))
    ones = torch.ones_like(scene.image.as_tensor())
    controls = {
        "even map": as_explanation(ones, like, "even map"),
        "truth": as_explanation(scene.evidence.as_tensor(), like, "truth"),
    }
    found = _judged(work, model, scene, {**maps, **controls})
    sums = {key for key in maps if key[1] == SumOfFeatures.name}
    return {
        "scores": scores,
        "maps": {"/".join(key): found[key] for key in maps if key not in sums},
        "sums": {"/".join(key): found[key] for key in sums},
        "controls": {name: found[name] for name in controls},
    }


def _plain_case(
    work: Work, model: Model, sets: tuple[LayerSet, ...], size: int, seed: int
) -> dict[str, Any]:
    """Only the methods of one case."""
    scene = spiculated_nodules(size, seed)
    if not _scores(model.network, scene)["predicted"]:
        return dict(_NOTHING)
    found = _judged(work, model, scene, _explained(work, model, scene, sets, METHODS))
    return {"maps": {"/".join(key): values for key, values in found.items()}}


def _explained(
    work: Work,
    model: Model,
    scene: SpiculatedNodules,
    sets: tuple[LayerSet, ...],
    methods: Sequence[str | Method],
) -> dict[tuple[str, str], Explanation]:
    return layer_set_maps(
        model,
        scene.image,
        sets,
        methods,
        published_target(_OUTPUT),
        # It also stops the run, and says what is kept.
        progress=lambda part, what: work.tell(0.8 * part, f"scene {scene.seed}, {what}"),
    )


def _judged(
    work: Work, model: Model, scene: SpiculatedNodules, maps: Mapping[Any, Explanation]
) -> dict[Any, dict[str, float]]:
    work.tell(0.8, f"scene {scene.seed}, metrics")
    return measured(
        model,
        scene.image,
        scene.labels,
        maps,
        published_target(_OUTPUT),
        target_label=scene.TARGET,
        evidence_label=scene.SPICULES,
    )


def _second(work: Work, seeds: list[int]) -> LayerSetComparison | None:
    """The same with the committed network, over the layer sets that it has."""
    if not seeds:
        return None
    model = load_model(shipped_bundle(_SHIPPED))
    sets = layer_sets(model, spiculated_nodules(_SHIPPED_SIZE, seeds[0]).image)
    rows = work.cases(
        "second_network",
        seeds,
        lambda seed: _plain_case(work, model, sets, _SHIPPED_SIZE, int(seed)),
    )
    names = {one.name: one.title for one in made_methods(METHODS)}
    return LayerSetComparison(
        sets, names, tuple(row["maps"] for row in rows if "skipped" not in row)
    )


def _scores(network: torch.nn.Module, scene: SpiculatedNodules) -> dict[str, float]:
    """What the network makes of a scene, of its bait, and of it without spicules."""
    labels = scene.labels.numpy()[0]
    body, bait = labels == scene.TARGET, labels == scene.PLAIN
    with torch.no_grad():
        both = torch.stack([scene.image.as_tensor(), scene.erased.as_tensor()])
        found, erased = network(both).argmax(1).numpy() == 1
    return {
        "dice": dice(found, body),
        "bait_called": float(found[bait].mean()) if bait.any() else float("nan"),
        "called_without_spicules": float(erased[body].mean()),
        "predicted": int(found.sum()),
    }


def _shown(seeds: list[int], rows: list[dict[str, Any]]) -> int:
    """The case whose Dice is the median: neither the best nor the worst."""
    known = [
        (row["scores"]["dice"], seed)
        for row, seed in zip(rows, seeds, strict=True)
        if "maps" in row
    ]
    return sorted(known)[len(known) // 2][1]


def _scene_case(
    scene: SpiculatedNodules,
    sets: tuple[LayerSet, ...],
    maps: Mapping[tuple[str, str], Explanation],
) -> Case:
    titles = {one.name: one.title for one in sets}
    shown = [name for name in _SHOWN if name in titles]
    return Case(
        name="nodules",
        image=scene.image,
        labels={"truth": (scene.labels, scene.names)},
        maps=tuple(
            replace(maps[name, method], title=f"{maps[name, method].title}, {titles[name]}")
            for name in shown
            for method in METHODS
        ),
    )
