"""The study itself: training, templates, test heads, and one head for the scene."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..results import Case, StudyResult
from ..training import seeded, train
from .align import Placement, align_template
from .enhance import enhance_log_normal, normal_fit, standard_scores
from .magnitude import METHODS, magnitude_of_outputs
from .measures import centre_mm, mask_scores
from .network import STRIDE, as_model, loss_over, make_network
from .register import register_template
from .removal import Template, make_template, remove_background
from .scans import ARTEFACTS, TISSUES, Scan, masked_brain, whole_head

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from ...model import Model
    from ..work import Work
    from .removal import BackgroundRemoval

__all__ = ["CHOICES", "Example", "Setup", "conduct"]

_GUIDED = METHODS[0]
#: What the paper leaves open, done otherwise; each changes one thing.
CHOICES = ("as chosen", "offset 1/255", "zeros counted", "template without gradient", "no f")


@dataclass(frozen=True)
class Setup:
    """All numbers of the study."""

    size: int
    brains: int
    steps: int
    learning_rate: float
    template_brains: int
    heads: int

    @classmethod
    def of(cls, quick: bool) -> Setup:
        """Return the small or the standard version."""
        if quick:
            return cls(32, 10, 110, 1e-2, 3, 8)
        return cls(48, 24, 260, 8e-3, 6, 24)


@dataclass(frozen=True)
class _Tools:
    """What every test head is measured with."""

    setup: Setup
    model: Model
    random: Model
    templates: dict[str, Template]
    random_template: Template


@dataclass(frozen=True)
class Example:
    """One test head with everything that was made of it."""

    scan: Scan
    removal: BackgroundRemoval
    registered: MetaTensor
    after_registration: MetaTensor
    manual: MetaTensor


def conduct(work: Work) -> StudyResult:
    """Run the study."""
    from .figure import figures, plots
    from .findings import answers, comparisons, differences
    from .tables import tables

    setup = Setup.of(work.quick)
    base = 100_000 * work.seed
    with work.part(0.0, 0.4):
        work.tell(0.0, "making masked brains")
        brains = [masked_brain(setup.size, base + one) for one in range(setup.brains)]
        network = seeded(make_network, work.seed)
        with work.part(0.03, 1.0):
            train(
                work,
                "network",
                network,
                loss_over(brains),
                steps=setup.steps,
                learning_rate=setup.learning_rate,
            )
    random = seeded(make_network, work.seed + 1)
    with work.part(0.4, 0.5):
        tools = _tools(work, setup, as_model(network), as_model(random), brains)
    keys = [base + 50_000 + one for one in range(setup.heads)]
    with work.part(0.5, 0.95):
        found = work.cases("test_heads", keys, partial(_measure, work, tools, keys[0]))
    with work.part(0.95, 1.0):
        example = _example(work, tools, keys, found)
    table_list = tables(found, work.seed)
    return StudyResult(
        name="",
        title="",
        paper="",
        question="",
        answer=answers(found, work.seed),
        comparisons=comparisons(found, work.seed),
        differs=differences(setup),
        tables=table_list,
        figures=figures(example, found, work.seed),
        plots=plots(example, found),
        cases=(_case(example),),
        settings={
            "voxels a side": setup.size,
            "masked brains in training": setup.brains,
            "training steps": setup.steps,
            "learning rate": setup.learning_rate,
            "brains in the mean gradient": setup.template_brains,
            "test heads": setup.heads,
        },
    )


def _tools(work: Work, setup: Setup, model: Model, random: Model, brains: list[Scan]) -> _Tools:
    """Make one template a method, of the brain with the median volume among those of training."""
    volumes = [float(one.brain.sum()) for one in brains]
    middle = brains[int(np.argsort(volumes)[len(volumes) // 2])]
    images = [one.image for one in brains[: setup.template_brains]]
    jobs = [(model, method, f"mean_{method}") for method in METHODS]
    jobs.append((random, _GUIDED, "mean_of_random_weights"))
    made = []
    for number, (one, method, name) in enumerate(jobs):
        with work.part(number / len(jobs), (number + 1) / len(jobs)):
            made.append(_template(work, name, one, middle, images, method))
    return _Tools(setup, model, random, dict(zip(METHODS, made[:-1], strict=True)), made[-1])


def _template(
    work: Work,
    name: str,
    model: Model,
    brain: Scan,
    images: list[MetaTensor],
    method: str,
) -> Template:
    """Make a template, or read its mean map if it was made."""
    from ...image import make_image
    from ...volume import read_volume, write_volume

    path = work.path(f"{name}.nrrd")
    if path is not None and path.is_file():
        kept = read_volume(path)
        return Template(brain.brain, make_image(kept.voxels, brain.brain.affine), brain.image)
    made = make_template(
        model,
        brain.brain,
        images,
        image=brain.image,
        method=method,
        progress=lambda fraction, _: work.tell(fraction, f"template, {method.replace('_', ' ')}"),
        cancelled=work.cancelled,
    )
    if path is not None and made.gradient is not None:
        write_volume(made.gradient, path)
    return made


def _head(tools: _Tools, first: int, key: int) -> Scan:
    return whole_head(tools.setup.size, key, ARTEFACTS[(key - first) % len(ARTEFACTS)])


def _measure(work: Work, tools: _Tools, first: int, key: int) -> dict[str, Any]:
    """All figures of one test head, as JSON values."""
    from ...run import predict

    scan = _head(tools, first, key)
    guided = tools.templates[_GUIDED]
    away = centre_mm(scan.brain) - centre_mm(guided.mask)
    brain = scan.brain.numpy()[0] > 0
    arms: dict[str, Any] = {}

    def note(name: str, placement: Placement, segmentation: MetaTensor | None) -> None:
        mask = placement.place(guided.mask, scan.image).numpy()[0] > 0
        arms[name] = {
            "brain": mask_scores(mask, brain),
            "shift_error_mm": float(np.linalg.norm(np.asarray(placement.shift_mm) - away)),
            "tissues": None if segmentation is None else _tissues(segmentation, scan),
        }

    removals = {}
    for number, method in enumerate(METHODS):
        work.tell(number / 5, f"head {key}: {method.replace('_', ' ')}")
        removals[method] = remove_background(
            tools.model, scan.image, tools.templates[method], method=method,
            cancelled=work.cancelled,
        )  # fmt: skip
        note(method, removals[method].placement, removals[method].after)
    work.tell(0.6, f"head {key}: registration and controls")
    removal = removals[_GUIDED]
    registered = _registered(tools, scan, removal.placement)
    note("registration", registered, _after(tools, scan, registered))
    no_shift = Placement.shifted((0.0, 0.0, 0.0))
    note("no shift", no_shift, None)
    note("registration from no shift", _registered(tools, scan, no_shift), None)
    note("image itself", align_template(_by_image(guided), _floor(scan.image)), None)
    note("random weights", _by_random(work, tools, scan, removal), None)
    note("best shift", align_template(guided.mask, scan.brain), None)
    before = removal.before
    arms["before"] = {
        "brain": mask_scores(before.numpy()[0] > 0, brain),
        "shift_error_mm": None,
        "tissues": _tissues(before, scan),
    }
    manual = predict(tools.model, _cleared(scan.image, scan.brain))
    arms["manual"] = {
        "brain": None, "shift_error_mm": None, "tissues": _tissues(manual, scan)
    }  # fmt: skip
    return {
        "artefact": scan.artefact,
        "arms": arms,
        "fits": {method: _fits(one, brain) for method, one in removals.items()},
        "choices": _choices(scan, removal, guided, brain),
        "moved_mm": float(np.linalg.norm(away)),
        "equivariance": _equivariance(tools, scan, removal),
    }


def _fits(removal: BackgroundRemoval, brain: np.ndarray) -> dict[str, Any]:
    """Goodness of fit over all voxels, and over those of the brain and the others apart."""
    scores, counted = standard_scores(removal.explanation)
    return {
        **vars(removal.fit),
        "ks_brain": normal_fit(scores[counted & brain]).ks_distance,
        "ks_background": normal_fit(scores[counted & ~brain]).ks_distance,
    }


def _tissues(segmentation: MetaTensor, scan: Scan) -> dict[str, dict[str, float]]:
    found, truth = segmentation.numpy()[0], scan.tissues.numpy()[0]
    return {
        name: mask_scores(found == label, truth == label)
        for label, name in enumerate(TISSUES)
        if label > 0
    }


def _registered(tools: _Tools, scan: Scan, start: Placement) -> Placement:
    """Registration of the template's image; where it fails, the start is kept."""
    from ...errors import MethodError

    template = tools.templates[_GUIDED]
    assert template.image is not None  # noqa: S101 - made with one
    try:
        return register_template(template.mask, template.image, scan.image, start)
    except MethodError:
        return start


def _after(tools: _Tools, scan: Scan, placement: Placement) -> MetaTensor:
    from ...run import predict

    mask = placement.place(tools.templates[_GUIDED].mask, scan.image)
    return predict(tools.model, _cleared(scan.image, mask))


def _cleared(image: MetaTensor, mask: MetaTensor) -> MetaTensor:
    from ...image import make_image

    return make_image(image.as_tensor() * (mask.as_tensor() > 0), image.affine)


def _floor(image: MetaTensor) -> MetaTensor:
    from ...image import make_image

    return make_image(image.as_tensor().clamp(min=0), image.affine)


def _by_image(template: Template) -> MetaTensor:
    """Weights that know no network: the template's intensities."""
    from ...image import make_image

    assert template.image is not None  # noqa: S101 - made with one
    voxels = template.image.as_tensor().clamp(min=0) * (template.mask.as_tensor() > 0)
    return make_image(voxels, template.mask.affine)


def _by_random(work: Work, tools: _Tools, scan: Scan, removal: BackgroundRemoval) -> Placement:
    """Guided maps of a network that learned nothing, of the same voxels and outputs."""
    from ...image import make_image

    voxels = removal.before.as_tensor()
    masks = {
        label: make_image(voxels == label, scan.image.affine)
        for label in range(1, len(TISSUES))
        if bool((voxels == label).any())
    }
    found = magnitude_of_outputs(
        tools.random, scan.image, list(masks), _GUIDED, masks=masks, cancelled=work.cancelled
    )
    enhanced, _ = enhance_log_normal(found)
    return align_template(tools.random_template.weights, enhanced)


def _choices(
    scan: Scan, removal: BackgroundRemoval, template: Template, brain: np.ndarray
) -> dict[str, float]:
    """Dice of the brain's mask when one of the open choices is made otherwise."""
    map_, weights = removal.explanation, template.weights
    tries = (
        (removal.enhanced, weights),
        (enhance_log_normal(map_, offset=1 / 255)[0], weights),
        (enhance_log_normal(map_, zeros=True)[0], weights),
        (removal.enhanced, template.mask),
        (map_.map, weights),
    )
    found = {}
    for name, (enhanced, one) in zip(CHOICES, tries, strict=True):
        placed = align_template(one, enhanced).place(template.mask, scan.image)
        found[name] = mask_scores(placed.numpy()[0] > 0, brain)["Dice"]
    return found


def _equivariance(tools: _Tools, scan: Scan, removal: BackgroundRemoval) -> float:
    """Correlation of the map with that of the image moved by the stride, moved back.

    Two strides of voxels at each face, which the move fills or loses, do not count.
    """
    from ...image import make_image

    moved = scan.image.as_tensor().roll(STRIDE, 1)
    voxels = removal.before.as_tensor().roll(STRIDE, 1)
    labels = [one for one in range(1, len(TISSUES)) if bool((voxels == one).any())]
    affine = scan.image.affine
    masks = {label: make_image(voxels == label, affine) for label in labels}
    again = magnitude_of_outputs(
        tools.model, make_image(moved, affine), labels, _GUIDED, masks=masks
    )
    back = again.map.as_tensor().roll(-STRIDE, 1).numpy()[0]
    inner = (slice(2 * STRIDE, -2 * STRIDE),) * 3
    pair = removal.explanation.map.numpy()[0][inner], back[inner]
    return float(np.corrcoef(pair[0].ravel(), pair[1].ravel())[0, 1])


def _example(work: Work, tools: _Tools, keys: list[int], found: list[dict[str, Any]]) -> Example:
    """The test head whose brain's mask has the median Dice, made again."""
    from ...run import predict

    work.tell(0.1, "making the example for the scene")
    scores = [one["arms"][_GUIDED]["brain"]["Dice"] for one in found]
    scan = _head(tools, keys[0], keys[int(np.argsort(scores)[len(scores) // 2])])
    template = tools.templates[_GUIDED]
    removal = remove_background(tools.model, scan.image, template, cancelled=work.cancelled)
    work.tell(0.6, "making the example for the scene")
    placement = _registered(tools, scan, removal.placement)
    return Example(
        scan,
        removal,
        placement.place(template.mask, scan.image),
        _after(tools, scan, placement),
        predict(tools.model, _cleared(scan.image, scan.brain)),
    )


def _case(example: Example) -> Case:
    scan, removal = example.scan, example.removal
    names = {label: name for label, name in enumerate(TISSUES) if label > 0}
    return Case(
        name=f"{scan.image.meta['filename_or_obj']}, {_called(scan.artefact)}",
        image=scan.image,
        labels={
            "true tissues": (scan.tissues, names),
            "segmentation before": (removal.before, names),
            "segmentation after": (removal.after, names),
            "segmentation after registration": (example.after_registration, names),
            "segmentation with the true mask": (example.manual, names),
            "placed template": (removal.mask, {1: "template, moved"}),
            "registered template": (example.registered, {1: "template, registered"}),
        },
        maps=(replace(removal.explanation, title="Guided backpropagation, all tissues"),),
        volumes={"enhanced map": removal.enhanced, "background removed": removal.image},
    )


def _called(artefact: str) -> str:
    return "no artefact" if artefact == "none" else artefact
