"""The study: four classifiers, their accuracies on three designs, and the signed maps of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...image import make_image
from ..results import Case, StudyResult
from .classifiers import KINDS, Group, Kind, trained
from .figures import Shown, accuracy_figure, maps_figure
from .scans import REGIONS, Person, person
from .sentences import answers, comparisons
from .signed import METHODS, signed_maps
from .tables import DESIGNS, plots, tables

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from ...explanation import Explanation
    from ...model import Model
    from ..work import Work

__all__ = ["conduct"]

#: First seeds of the persons of the training and of the test: no person is in both.
_TRAINING, _TEST = 1_000_000, 2_000_000
_NAMES = {0: "air", **REGIONS}


@dataclass(frozen=True)
class _Plan:
    """All numbers of a run."""

    size: int
    training_persons: int
    test_persons: int
    mapped_persons: int
    steps: int
    lesions: tuple[int, int] = (12, 24)


_STANDARD = _Plan(32, 400, 200, 24, 500)
_QUICK = _Plan(24, 64, 24, 4, 100)


def conduct(work: Work) -> StudyResult:
    """Train, measure, tell."""
    plan = _QUICK if work.quick else _STANDARD
    first = _TRAINING + 10_000 * work.seed
    models: dict[str, Model] = {}
    with work.part(0.0, 0.05):
        group = Group(
            plan.size, range(first, first + plan.training_persons), plan.lesions, work.tell
        )
        references = {kind.key: _reference(work, kind, group) for kind in KINDS}
    for number, kind in enumerate(KINDS):
        with work.part(0.05 + 0.14 * number, 0.05 + 0.14 * (number + 1)):
            models[kind.key] = trained(work, kind, group, plan.steps)
    del group
    first = _TEST + 10_000 * work.seed
    seeds = range(first, first + plan.test_persons)
    make = partial(_person, plan)
    with work.part(0.61, 0.68):
        told = work.cases("answers", seeds, lambda seed: _answers(make(seed), models))
    with work.part(0.68, 0.97):
        mapped = work.cases(
            "maps",
            seeds[: plan.mapped_persons],
            lambda seed: _measured(work, make(seed), models, references),
        )
    with work.part(0.97, 1.0):
        shown = [_shown(work, make(seed), models) for seed in _examples(seeds, told, plan)]
    found = tables(told, mapped)
    return StudyResult(
        name="",
        title="",
        paper="",
        question="",
        answer=answers(told, mapped),
        comparisons=comparisons(told, mapped),
        differs=_differs(plan),
        tables=found,
        figures=(accuracy_figure(told, mapped), maps_figure(shown)),
        plots=plots(told, mapped),
        cases=tuple(case for one in shown for case in _cases(one)),
        settings={**asdict(plan), "lesions": "{} to {}".format(*plan.lesions)},
    )


def _person(plan: _Plan, seed: int) -> Person:
    return person(plan.size, seed, patient=seed % 2 == 1, lesions=plan.lesions)


def _reference(work: Work, kind: Kind, group: Group) -> np.ndarray[Any, Any]:
    """Mean of the healthy as the classifier saw them, made once."""
    path = work.path(f"healthy_{kind.key}.npy")
    if path is not None and path.is_file():
        return np.asarray(np.load(path))
    mean = group.healthy_mean(kind)
    if path is not None:
        part = path.with_suffix(".part.npy")
        np.save(part, mean)
        part.replace(path)
    return mean


def _answers(one: Person, models: Mapping[str, Model]) -> dict[str, Any]:
    """Logits of all classifiers for a person on the scanner of each design."""
    logits: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        with torch.inference_mode():
            both = np.stack([one.given(kind.what, scanner) for scanner in "AB"])
            found = models[kind.key].network(torch.from_numpy(both))[:, 0].tolist()
        logits[kind.key] = {design: found["AB".index(one.scanner(design))] for design in DESIGNS}
    return {"patient": one.patient, "logits": logits}


def _measured(
    work: Work,
    one: Person,
    models: Mapping[str, Model],
    references: Mapping[str, np.ndarray[Any, Any]],
) -> dict[str, Any]:
    """Shares of the maps of a person; on the scanner of the group."""
    affine = one.head.labels.affine
    labels = make_image(one.regions, affine)
    rows: list[dict[str, Any]] = []
    runs = [(kind, name) for kind in KINDS for name in ("zero", "healthy mean")]
    for number, (kind, name) in enumerate(runs):
        with work.part(number / len(runs), (number + 1) / len(runs)):
            found = signed_maps(
                models[kind.key],
                _image(one, kind),
                methods=METHODS if name == "zero" else METHODS[:1],
                labelmap=labels,
                names=_NAMES,
                reference=make_image(references[kind.key], affine)
                if name == "healthy mean"
                else None,
                progress=work.tell,
                cancelled=work.cancelled,
            )
        errors = {key: got.completeness_error for key, got in found.explanations.items()}
        for row in found.shares:
            rows.append(
                {
                    "kind": kind.key,
                    "reference": name,
                    **asdict(row),
                    "error": errors[row.method],
                }
            )
    return {"patient": one.patient, "rows": rows}


def _image(one: Person, kind: Kind) -> MetaTensor:
    """What a classifier gets of a person on the scanner of the group."""
    return make_image(
        one.given(kind.what, one.scanner("follows")),
        one.head.labels.affine,
        f"head {one.head.seed}",
    )


def _examples(seeds: range, told: list[dict[str, Any]], plan: _Plan) -> list[int]:
    """First patient and first healthy person of the mapped ones that most classifiers know."""
    chosen = []
    for patient in (True, False):
        right = {
            seed: sum((one["logits"][kind.key]["follows"] > 0) == patient for kind in KINDS)
            for seed, one in zip(seeds[: plan.mapped_persons], told, strict=False)
            if one["patient"] == patient
        }
        chosen.append(max(right, key=lambda seed: (right[seed], -seed)))
    return chosen


def _shown(work: Work, one: Person, models: Mapping[str, Model]) -> Shown:
    """Maps of a person for figure and scene."""
    maps: dict[str, Explanation] = {}
    for kind in KINDS:
        found = signed_maps(
            models[kind.key],
            _image(one, kind),
            methods=METHODS[:1],
            progress=work.tell,
            cancelled=work.cancelled,
        )
        maps[kind.key] = found.explanations[METHODS[0]]
    return Shown(
        "patient" if one.patient else "healthy person",
        {kind.what: _image(one, kind) for kind in KINDS},
        make_image(one.regions, one.head.labels.affine),
        maps,
    )


def _cases(shown: Shown) -> list[Case]:
    """For the scene: the image with its maps, and a patient's tissue maps with theirs."""
    labels = {"regions": (shown.regions, REGIONS)}
    titled = {"image": [], "maps": []}  # type: dict[str, list[Explanation]]
    for kind in KINDS:
        if kind.what in titled:
            titled[kind.what].append(shown.maps[kind.key])
    cases = [Case(f"{shown.name}, image", shown.images["image"], labels, tuple(titled["image"]))]
    if shown.name == "patient":
        name = f"{shown.name}, tissue maps"
        cases.append(Case(name, shown.images["maps"], labels, tuple(titled["maps"])))
    return cases


def _differs(plan: _Plan) -> tuple[str, ...]:
    side = 208 / plan.size
    return (
        "Heads, lesions and scanners are made up (multiple sclerosis of OFSEP and healthy persons "
        f"of IXI in the talk), with voxels of {side:.1f} mm and lesions of 4 to 9 mm radius that "
        "look like grey matter, so that what a classifier should look at is known.",
        "The bias is planted: patients were on scanner B, whose foam behind the head shines a "
        "little and whose images are 4 % brighter, healthy persons on scanner A. In the published "
        "data patients and healthy persons come from different studies.",
        "Tissue maps are made from the biased scans by fitting three normal distributions within "
        "the brain; the brain mask is the true one, and no lesion class is among them. Whether "
        "the published maps had one is not known.",
        "The published network, its size and training are not known to us; ours has three "
        "convolutions, and the same training for each input.",
        "A control is added: the scan with everything outside of the brain set to zero, which "
        "tells what removing skull and air does without probabilities.",
        "The later constraint on gradients during training (IEEE TMI 2023) is not repeated.",
    )
