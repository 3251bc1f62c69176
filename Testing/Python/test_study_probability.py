"""Signed maps of several channels, attribution outside of a mask, and the study that uses both."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import DeepLift, IntegratedGradients
from monai.transforms import CropForeground, ScaleIntensityRange, Spacing
from torch import nn

import SaliencyExplainLib as sx
from SaliencyExplainLib.errors import Cancelled, StudyError
from SaliencyExplainLib.model.inferer import Windows
from SaliencyExplainLib.model.preprocess import Preprocess
from SaliencyExplainLib.studies import StudyResult, attribution_outside, signed_maps, studies
from SaliencyExplainLib.studies.heads import synthetic_head
from SaliencyExplainLib.studies.probability_maps import pipeline, scans, sentences, tables
from SaliencyExplainLib.studies.probability_maps.classifiers import KINDS, Classifier
from SaliencyExplainLib.studies.training import seeded

AFFINE = np.array([[2.0, 0, 0, -9], [0, 3, 0, 4], [0, 0, 4, 11], [0, 0, 0, 1]])
SHAPE = (8, 8, 8)


class _Linear(nn.Module):
    """The sum over channels and voxels of a channel's weight times the input, plus 5."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1, 1)
        return (x * weights).sum(dim=(1, 2, 3, 4))[:, None] + 5


def _model(network: nn.Module, channels=("GM", "WM"), **more) -> sx.Model:
    return sx.Model(
        network=network.eval(),
        task="classification",
        labels=("patient",),
        channels=tuple(channels),
        activation="sigmoid",
        **more,
    )


def _image(channels=2, shape=SHAPE, seed=0):
    voxels = np.random.default_rng(seed).uniform(0.1, 1, (channels, *shape))
    return sx.make_image(voxels, AFFINE)


def _halves(shape=SHAPE):
    labels = np.zeros(shape)
    labels[:3] = 1
    labels[3:5] = 2
    return sx.make_image(labels, AFFINE)


@pytest.fixture(scope="module")
def classifier() -> sx.Model:
    network = seeded(lambda: Classifier(3), 4)
    with torch.no_grad():
        network(torch.rand(4, 3, 16, 16, 16))  # statistics of the norms
    return _model(network, ("CSF", "grey matter", "white matter"))


# -- Signed maps of one image


def test_the_maps_of_a_linear_network_are_its_terms():
    image = _image()
    found = signed_maps(_model(_Linear()), image, labelmap=_halves(), names={1: "a", 2: "b"})
    terms = image.as_tensor().numpy() * np.array([1.0, -2.0])[:, None, None, None]
    assert list(found.explanations) == [
        "integrated_gradients",
        "input_x_gradient",
        "deep_lift",
        "gradient_shap",
    ]
    for one in found.explanations.values():
        assert one.maps.as_tensor().numpy() == pytest.approx(terms, abs=1e-5)
        assert one.value == pytest.approx(terms.sum() + 5, rel=1e-5)
    everything = np.abs(terms).sum()
    for (channel, name), (region, part) in itertools.product(
        enumerate(("GM", "WM")),
        (("outside", slice(5, 8)), ("a", slice(0, 3)), ("b", slice(3, 5))),
    ):
        row = found.row("integrated_gradients", region, name)
        here = terms[channel, part]
        assert row.net == pytest.approx(here.sum(), rel=1e-4)
        assert row.share == pytest.approx(np.abs(here).sum() / everything, rel=1e-4)
        assert row.positive == pytest.approx(here.clip(0).sum() / everything, abs=1e-5)
        assert row.negative == pytest.approx((-here).clip(0).sum() / everything, abs=1e-5)
        assert row.voxels == here.size


def test_the_row_of_all_channels_is_that_of_their_sum():
    image = _image()
    found = signed_maps(
        _model(_Linear()), image, methods=["deep_lift"], labelmap=_halves(), names={1: "a"}
    )
    summed = (image.as_tensor().numpy() * np.array([1.0, -2.0])[:, None, None, None]).sum(0)
    row = found.row("deep_lift", "a")
    assert row.share == pytest.approx(np.abs(summed[:3]).sum() / np.abs(summed).sum(), rel=1e-4)
    assert row.net == pytest.approx(summed[:3].sum(), rel=1e-4)
    for channels in (["all channels"], ["GM", "WM"]):
        rows = [one for one in found.shares if one.channel in channels]
        assert sum(one.share for one in rows) == pytest.approx(1)
        assert [one.region for one in rows[:3]] == ["outside", "a", "segment 2"]


def test_without_a_label_map_the_image_is_one_region_and_one_channel_has_one_row():
    network = nn.Sequential(nn.Flatten(), nn.Linear(512, 1))
    found = signed_maps(_model(network, ["T1"]), _image(1), methods=["input_x_gradient"])
    assert [(one.channel, one.region, one.voxels) for one in found.shares] == [
        ("all channels", "image", 512)
    ]
    assert found.shares[0].share == pytest.approx(1)


def test_channels_without_names_are_numbered():
    found = signed_maps(_model(_Linear(), ()), _image(), methods=["input_x_gradient"])
    assert [one.channel for one in found.shares] == ["all channels", "channel 0", "channel 1"]


def test_a_map_that_is_zero_has_no_shares():
    image = sx.make_image(np.zeros((2, *SHAPE)), AFFINE)
    row = signed_maps(_model(_Linear()), image, methods=["input_x_gradient"]).shares[0]
    assert math.isnan(row.share)
    assert row.net == 0


@pytest.mark.parametrize("compared", [False, True])
def test_integrated_gradients_are_those_of_captum(classifier, compared):
    image, reference = _image(3, (16, 16, 16), 1), _image(3, (16, 16, 16), 2)
    method = sx.make_method("integrated_gradients", {"steps": 40, "baseline": "zero"})
    found = signed_maps(
        classifier, image, methods=[method], reference=reference if compared else None
    ).explanations["integrated_gradients"]
    start = reference.as_tensor()[None] if compared else torch.zeros(1, 3, 16, 16, 16)
    expected = IntegratedGradients(classifier.network).attribute(
        image.as_tensor()[None], start, target=0, n_steps=40, method="gausslegendre"
    )[0]
    scale = float(expected.abs().max())
    assert found.maps.as_tensor().numpy() == pytest.approx(expected.numpy(), abs=1e-4 * scale)
    assert found.parameters["baseline"] == ("reference image" if compared else "zero")
    with torch.no_grad():
        score, before = classifier.network(torch.cat([image.as_tensor()[None], start]))[:, 0]
    assert found.value == pytest.approx(float(score), rel=1e-4, abs=1e-5)
    change = float(score - before)
    error = abs(float(found.maps.as_tensor().double().sum()) - change) / abs(change)
    assert found.completeness_error == pytest.approx(error, rel=0.05)


def test_deep_lift_from_a_reference_is_that_of_captum(classifier):
    image, reference = _image(3, (16, 16, 16), 1), _image(3, (16, 16, 16), 2)
    # Without pooling: Captum's rule for MaxPool3d does not add up (0.0045 for a change of 0.0019).
    flat = nn.Sequential(*list(classifier.network.features)[:3], nn.Flatten())
    flat.append(seeded(lambda: nn.Linear(8 * 16**3, 1), 2)).eval()
    model = _model(flat, classifier.channels)
    found = signed_maps(model, image, methods=["deep_lift"], reference=reference)
    expected = DeepLift(flat).attribute(
        image.as_tensor()[None].requires_grad_(), reference.as_tensor()[None], target=0
    )
    values = found.explanations["deep_lift"].maps.as_tensor().numpy()
    scale = float(expected.abs().max())
    assert values == pytest.approx(expected[0].detach().numpy(), abs=1e-4 * scale)
    pooled = signed_maps(classifier, image, methods=["deep_lift"], reference=reference)
    assert pooled.explanations["deep_lift"].completeness_error < 1e-3


def test_every_method_of_a_classifier_adds_up_within_one_percent(classifier):
    found = signed_maps(classifier, _image(3, (16, 16, 16), 1))
    errors = {name: one.completeness_error for name, one in found.explanations.items()}
    assert errors.pop("input_x_gradient") is None
    assert max(errors.values()) <= 0.01
    note = found.table().note
    assert note.startswith("Completeness error: integrated_gradients")
    assert "input_x_gradient not promised" in note
    assert len(found.table().rows) == len(found.shares)


class _Steep(nn.Module):
    """Needs many points on the path: waves along it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x.sum(dim=(1, 2, 3, 4)))[:, None]


def test_the_steps_are_doubled_until_the_map_adds_up():
    image = sx.make_image(np.full((1, *SHAPE), 0.2), AFFINE)  # 102 rad along the path
    model = _model(_Steep(), ["T1"])
    found = signed_maps(model, image, methods=["integrated_gradients"])
    one = found.explanations["integrated_gradients"]
    assert one.parameters["steps"] == 64
    assert one.completeness_error <= 0.01
    fixed = sx.make_method("integrated_gradients", {"steps": 32, "baseline": "zero"})
    one = signed_maps(model, image, methods=[fixed]).explanations["integrated_gradients"]
    assert one.parameters["steps"] == 32
    assert one.completeness_error > 0.01
    assert "1.0% is tolerated" in one.warnings[-1]


def test_steps_end_where_they_do_not_help():
    image = sx.make_image(np.full((1, *SHAPE), 3.0), AFFINE)
    found = signed_maps(_model(_Steep(), ["T1"]), image, methods=["integrated_gradients"])
    one = found.explanations["integrated_gradients"]
    assert one.parameters["steps"] == 256
    assert "is tolerated" in one.warnings[-1]


def test_a_reference_goes_through_the_models_preprocessing_and_maps_come_back():
    spacing = Spacing(pixdim=(4.0, 4.0, 4.0))
    scaling = ScaleIntensityRange(a_min=0, a_max=2, b_min=-1, b_max=1)

    def both(image):
        return scaling(spacing(image))

    image, reference = _image(2, (12, 10, 9), 1), _image(2, (12, 10, 9), 2)
    model = _model(_Linear(), preprocess=Preprocess(both))
    found = signed_maps(model, image, methods=["integrated_gradients"], reference=reference)
    one = found.explanations["integrated_gradients"]
    assert one.maps.shape == image.shape
    assert torch.equal(one.maps.affine, image.affine)
    assert one.network_maps.shape[1:] != image.shape[1:]
    weights = torch.tensor([1.0, -2.0]).view(2, 1, 1, 1)
    expected = (both(image) - both(reference)).as_tensor() * weights
    assert one.network_maps.as_tensor().numpy() == pytest.approx(expected.numpy(), abs=1e-5)


def test_the_model_is_left_as_it_was_and_a_run_can_be_stopped(classifier):
    before = {name: one.clone() for name, one in classifier.network.state_dict().items()}
    seen: list[float] = []
    image = _image(3, (16, 16, 16))
    signed_maps(
        classifier,
        image,
        methods=["input_x_gradient", "deep_lift"],
        reference=_image(3, (16, 16, 16), 5),
        progress=lambda fraction, message: seen.append(fraction),
    )
    assert seen[-1] == 1
    assert seen == sorted(seen)
    assert 0.45 < min(one for one in seen if one >= 0.45) <= 0.75
    assert not classifier.network.training
    for name, one in classifier.network.state_dict().items():
        assert torch.equal(one, before[name])
    assert all(one.grad is None for one in classifier.network.parameters())
    with pytest.raises(Cancelled):
        signed_maps(classifier, image, cancelled=lambda: True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"methods": []}, "Give a list of methods, for example"),
        ({"methods": "deep_lift"}, "'deep_lift' was given"),
        ({"methods": ["deep_lift", "deep_lift"]}, "Each method can be named once"),
        ({"methods": ["deep_lift", "score_cam"]}, "gives maps without a sign. Choose among"),
        ({"reference": _image(2, (8, 8, 7))}, "The reference has the shape"),
        (
            {"reference": sx.make_image(np.ones((2, *SHAPE)), np.eye(4))},
            "or they lie on other grids",
        ),
        (
            {
                "reference": _image(),
                "methods": [sx.make_method("deep_lift", {"baseline": "blurred"})],
            },
            "starts from the blurred image, and a reference was given as well",
        ),
    ],
)
def test_what_cannot_be_explained_is_told(options, sentence):
    with pytest.raises(StudyError, match=sentence):
        signed_maps(_model(_Linear()), _image(), **options)


def test_a_reference_does_not_go_with_windows():
    model = _model(_Linear(), inferer=Windows((4, 4, 4)))
    with pytest.raises(StudyError, match="takes the whole volume; this model runs in windows"):
        signed_maps(model, _image(), reference=_image())


def test_a_reference_that_is_cropped_otherwise_is_refused():
    image, reference = _image(), _image()
    image.as_tensor()[:, :3] = 0
    model = _model(_Linear(), preprocess=Preprocess(CropForeground()))
    with pytest.raises(StudyError, match="Give a model that does not crop by content"):
        signed_maps(model, image, methods=["input_x_gradient"], reference=reference)


def test_a_row_that_is_not_there_is_told_with_those_that_are():
    found = signed_maps(_model(_Linear()), _image(), methods=["input_x_gradient"])
    with pytest.raises(StudyError, match="Regions: image; channels: all channels, GM, WM; methods"):
        found.row("input_x_gradient", "lesion")


# -- Attribution outside of a mask


def _maps(*values: float) -> list[sx.Volume]:
    """Maps of two channels: 1 and -1 inside (first half), the value and its negative outside."""
    made = []
    for value in values:
        voxels = np.ones((2, 4, 4, 4))
        voxels[1] = -1
        voxels[:, 2:] *= value
        made.append(sx.Volume(voxels, np.eye(4)))
    return made


def _first_half() -> sx.Volume:
    voxels = np.zeros((4, 4, 4))
    voxels[:2] = 1
    return sx.Volume(voxels, np.eye(4))


def test_the_share_outside_of_a_mask_is_exact():
    found = attribution_outside(_maps(1, 3, 0), _first_half(), inside="the brain")
    assert found.shares == pytest.approx((0.5, 0.75, 0.0))
    assert found.mean == pytest.approx(1.25 / 3)
    assert found.volumes == pytest.approx((0.5, 0.5, 0.5))
    assert 0 <= found.low < found.mean < found.high <= 0.75
    assert found.sentence == (
        f"41.7 % ({100 * found.low:.1f} to {100 * found.high:.1f}) of the attribution lies outside "
        "of the brain, which is 50 % of the volume (3 maps)."
    )


def test_one_sign_can_be_counted_alone():
    (one,) = _maps(1)
    voxels = np.array(one.voxels)
    voxels[0, 2:] = 4
    mixed = [sx.Volume(voxels, np.eye(4))]
    shares = {
        part: attribution_outside(mixed, _first_half(), part=part).shares[0]
        for part in ("absolute", "positive", "negative")
    }
    assert shares == pytest.approx({"absolute": 5 / 7, "positive": 0.8, "negative": 0.5})
    told = attribution_outside(mixed, _first_half(), part="negative").sentence
    assert told == (
        "50.0 % of the negative attribution lies outside of the mask, which is 50 % of the volume "
        "(1 map)."
    )


def test_maps_that_are_zero_are_left_out_and_told():
    zero = sx.Volume(np.zeros((1, 4, 4, 4)), np.eye(4))
    found = attribution_outside([*_maps(1, 1), zero], _first_half())
    assert math.isnan(found.shares[2])
    assert found.mean == pytest.approx(0.5)
    assert "(2 maps; 1 that are zero were left out)" in found.sentence
    assert attribution_outside([zero], _first_half()).sentence == "No map has any attribution."


def test_masks_are_taken_by_world_position_one_a_person():
    fine = np.zeros((8, 8, 8))
    fine[:2] = 1
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] = -0.25
    quarter = sx.Volume(fine, affine)  # the first of four layers of the map's voxels
    found = attribution_outside(_maps(1, 1), [_first_half(), quarter])
    assert found.shares == pytest.approx((0.5, 0.75))
    assert found.volumes == pytest.approx((0.5, 0.75))


def test_the_interval_is_that_of_the_mean_over_persons():
    values = np.random.default_rng(0).uniform(0, 3, 40)
    found = attribution_outside(_maps(*values), _first_half())
    shares = values / (1 + values)
    half = 1.96 * shares.std() / math.sqrt(40)
    assert found.low == pytest.approx(shares.mean() - half, abs=0.01)
    assert found.high == pytest.approx(shares.mean() + half, abs=0.01)


def test_explanations_are_taken_with_all_their_channels():
    image = _image()
    explanation = sx.explain(_model(_Linear()), image, method="input_x_gradient")
    terms = np.abs(image.as_tensor().numpy() * np.array([1.0, -2.0])[:, None, None, None])
    found = attribution_outside([explanation], _halves())
    assert found.shares[0] == pytest.approx(terms[:, 5:].sum() / terms.sum(), rel=1e-4)


@pytest.mark.parametrize(
    ("maps", "masks", "part", "sentence"),
    [
        ([], _first_half(), "absolute", "There is no map to check"),
        (_maps(1), _first_half(), "red", "The part is one of absolute, positive, negative; 'red'"),
        (_maps(1, 1), [_first_half()], "absolute", "2 maps and 1 masks were given"),
        (_maps(1), _maps(1)[0], "absolute", r"\(2, 4, 4, 4\) was given for map 0"),
        (
            _maps(1),
            sx.Volume(np.zeros((4, 4, 4)), np.eye(4)),
            "absolute",
            "The mask of map 0 is empty on the map's grid",
        ),
    ],
)
def test_a_group_that_cannot_be_checked_is_told(maps, masks, part, sentence):
    with pytest.raises(StudyError, match=sentence):
        attribution_outside(maps, masks, part=part)


# -- Persons


@pytest.fixture(scope="module")
def patient() -> scans.Person:
    return scans.person(32, 1, patient=True, lesions=(12, 24))


def test_both_scanners_see_one_head_and_only_b_has_foam(patient):
    ratio = patient.scans["B"] / patient.scans["A"]
    air = patient.head.labels.numpy() == 0
    assert ratio[~air] == pytest.approx(1.04, rel=1e-5)
    more = patient.scans["B"] - 1.04 * patient.scans["A"]
    shining = scans.foam(32)[None] * air > 0.5
    assert 0.05 < shining[air].mean() < 0.2
    assert 0.05 < more[shining].mean() < 0.14
    assert np.abs(more[scans.foam(32)[None] == 0]).max() < 1e-6


def test_tissue_maps_are_probabilities_near_the_truth_and_zero_outside(patient):
    brain = patient.head.brain.numpy()[0] > 0
    found, truth = patient.maps["A"], patient.head.tissues.numpy()
    assert found[:, ~brain].max() == 0
    assert found[:, brain].min() >= 0
    assert found[:, brain].sum(0) == pytest.approx(1, abs=1e-5)
    agree = found.argmax(0)[brain] == truth.argmax(0)[brain]
    assert agree.mean() > 0.8
    for channel in range(3):
        assert np.corrcoef(found[channel, brain], truth[channel, brain])[0, 1] > 0.7
    lesion = patient.head.labels.numpy()[0] == 8
    assert found[1][lesion].mean() > 0.6


def test_tissue_maps_do_not_depend_on_brightness(patient):
    brain = patient.head.brain.numpy() > 0
    bright = scans.tissue_maps(3 * patient.scans["A"], brain)
    assert bright == pytest.approx(patient.maps["A"], abs=1e-4)
    assert patient.maps["B"] == pytest.approx(patient.maps["A"], abs=1e-4)


def test_a_scanner_belongs_to_a_group_or_to_chance(patient):
    healthy = [scans.person(16, seed, patient=False, lesions=(1, 2)) for seed in range(20)]
    assert (patient.scanner("follows"), patient.scanner("swapped")) == ("B", "A")
    assert {one.scanner("follows") for one in healthy} == {"A"}
    assert {one.scanner("swapped") for one in healthy} == {"B"}
    assert {one.scanner("mixed") for one in healthy} == {"A", "B"}
    assert not any((one.regions == 1).any() for one in healthy)
    assert (patient.regions == 1).sum() == (patient.head.labels.numpy() == 8).sum() > 20


def test_what_a_classifier_gets_is_image_brain_or_maps(patient):
    brain = patient.head.brain.numpy() > 0
    assert np.array_equal(patient.given("image", "B"), patient.scans["B"])
    assert np.array_equal(patient.given("brain", "B"), patient.scans["B"] * brain)
    assert np.array_equal(patient.given("maps", "A"), patient.maps["A"])
    for kind in KINDS:
        assert len(scans.channels_of(kind.what)) == len(patient.given(kind.what, "A"))


def test_a_person_is_the_head_of_its_seed():
    one = scans.person(16, 3, patient=False, lesions=(1, 2))
    same = synthetic_head(16, 3)
    assert torch.equal(one.head.image, same.image)


# -- Sentences are those of the numbers


def _told(right: dict[str, dict[str, float]], count: int = 40) -> list[dict]:
    """Answers of test persons; `right`: part of them that each classifier knows, by design."""
    made = []
    for number in range(count):
        patient = number % 2 == 1
        logits = {
            kind: {
                design: (1.0 if patient else -1.0) * (1 if number < part * count else -1)
                for design, part in parts.items()
            }
            for kind, parts in right.items()
        }
        made.append({"patient": patient, "logits": logits})
    return made


def _mapped(air: dict[str, float], lesion: dict[str, float], count: int = 12) -> list[dict]:
    """Shares of maps; each person differs a little."""
    made = []
    for number in range(count):
        rows = []
        for kind, reference in itertools.product(tables.TITLES, ("zero", "healthy mean")):
            parts = {"air": air[kind] * (1 + 0.01 * number), "lesion": lesion[kind]}
            parts["skull and scalp"] = 0.05
            parts["brain outside lesions"] = 1 - sum(parts.values())
            for (region, share), channel in itertools.product(
                parts.items(), ("all channels", "CSF", "grey matter", "white matter")
            ):
                rows.append(
                    {
                        "kind": kind,
                        "reference": reference,
                        "method": "integrated_gradients",
                        "channel": channel,
                        "region": region,
                        "voxels": 10 if region == "lesion" else 330,
                        "share": share,
                        "positive": 0.75 * share,
                        "negative": 0.25 * share,
                        "net": 0.5 * share,
                        "error": 0.002 + 0.0001 * number,
                    }
                )
        made.append({"patient": number % 2 == 1, "rows": rows})
    return made


def _everywhere(part: float) -> dict[str, float]:
    return dict.fromkeys(tables.DESIGNS, part)


REVEALED = {"image_mixed": 0.05, "image_biased": 0.4, "brain_biased": 0.0, "maps_biased": 0.0}
NEAR = {"image_mixed": 0.03, "image_biased": 0.01, "brain_biased": 0.05, "maps_biased": 0.2}
KNOWN = {
    "image_mixed": _everywhere(0.7),
    "image_biased": {"follows": 1.0, "mixed": 0.5, "swapped": 0.1},
    "brain_biased": _everywhere(0.7),
    "maps_biased": _everywhere(0.95),
}


def test_what_was_found_as_published_is_confirmed():
    told, mapped = _told(KNOWN), _mapped(REVEALED, NEAR)
    said = sentences.answers(told, mapped)
    assert "is more accurate than fed with the image: 95.0 %" in said[0]
    assert (
        "against 70.0 % (54.6 to 81.9) of 40 persons (scanners mixed, McNemar p = 0.002)" in said[0]
    )
    assert "the gain comes from the probabilities, not from removing" in said[1]
    assert said[2].startswith("Accuracy does not see the bias")
    assert "the biased one is right in 10.0 %" in said[2]
    assert said[3].startswith("The signed maps reveal it: in patients 42.4 %")
    assert "(ROC area 1.00, biased against mixed)" in said[3]
    assert "share of |attribution| in the air (reference zero, ROC area 1.00)" in said[4]
    assert "are nearer to the lesions" in said[6]
    assert said[6].endswith(
        "it is 5.0 (5.0 to 5.0) times: the probabilities add to that (p = 0.031)."
    )
    assert "probability maps from zero 75.0 %" in said[7]
    assert said[-1].startswith("96 of 96 maps that promise completeness add up within 1 %")
    assert "the largest error is 0.31 % (integrated_gradients of" in said[-1]
    assert said[-1].endswith("whose map sums to 0.5).")
    verdicts = [one.verdict for one in sentences.comparisons(told, mapped)]
    assert verdicts == ["confirmed", "confirmed", "confirmed"]


def test_what_was_found_otherwise_is_refuted():
    told = _told(KNOWN | {"maps_biased": _everywhere(0.3), "image_biased": _everywhere(0.6)})
    flat = dict.fromkeys(REVEALED, 0.05)
    mapped = _mapped(flat, NEAR | {"maps_biased": 0.01})
    said = sentences.answers(told, mapped)
    assert "is not more accurate" in said[0]
    assert "no gain of the probability maps to explain" in said[1]
    assert said[2].startswith("Accuracy falls with the bias")
    assert said[3].startswith("The signed maps do not clearly reveal it")
    assert "not nearer" in said[6]
    assert "no less than with probabilities" in said[6]
    verdicts = [one.verdict for one in sentences.comparisons(told, mapped)]
    assert verdicts == ["refuted", "refuted", "differs"]
    # Maps that show the bias say nothing about accuracy, where accuracy shows it, too.
    shown = sentences.comparisons(told, _mapped(REVEALED, NEAR))
    assert shown[2].verdict == "differs"


def test_what_may_be_chance_is_not_claimed():
    told = _told(KNOWN | {"maps_biased": _everywhere(0.75)})
    near = NEAR | {"maps_biased": 0.031}
    mapped = _mapped(REVEALED, near)
    for number, one in enumerate(mapped):
        for row in one["rows"]:
            if row["kind"] == "maps_biased" and row["region"] == "lesion" and number < 6:
                row["share"] = 0.0299
    said = sentences.answers(told, mapped)
    assert "is not clearly more accurate than fed with the image: 75.0 %" in said[0]
    assert "are not clearly nearer to the lesions" in said[6]
    verdicts = [one.verdict for one in sentences.comparisons(told, mapped)]
    assert verdicts[:2] == ["differs", "differs"]


@pytest.mark.parametrize(
    ("brain", "sentence"),
    [
        (0.95, "the gain comes from removing what is not brain"),
        (0.825, "removing what is not brain gives 50 % of the gain"),
    ],
)
def test_the_control_tells_where_the_gain_comes_from(brain, sentence):
    told = _told(KNOWN | {"brain_biased": _everywhere(brain)})
    assert sentence in sentences.answers(told, _mapped(REVEALED, NEAR))[1]


def test_the_figures_of_a_map_are_those_of_its_rows():
    mapped = _mapped(REVEALED, NEAR)
    found = {sign.key: tables.gathered(mapped, "image_mixed", sign.key)[0] for sign in tables.SIGNS}
    assert found == pytest.approx(
        {
            "air": 0.0505,
            "positive air": 0.0505,
            "outside": 0.1005,
            "lesion": 0.03,
            "density": 3.0,
            "positive": 0.75,
            "net": 0.03,
        }
    )
    assert len(tables.gathered(mapped, "image_mixed", "air", patient=False)) == 6
    assert tables.apart([1, 2, math.nan], [0, 2]) == pytest.approx(2.5 / 4)
    assert math.isnan(tables.apart([], [1]))


# -- The study


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[StudyResult, Path, list[str]]:
    """The quick study, stopped in its second training and in its maps, then ended."""
    folder = tmp_path_factory.mktemp("probability_maps")
    study = studies()["probability_maps"]
    said: list[str] = []

    def stop_at(text: str):
        return lambda: bool(said) and said[-1].startswith(text)

    def note(fraction: float, message: str) -> None:
        assert 0 <= fraction <= 1
        said.append(message)

    for text in ("training image biased, loss", "maps, case 2"):
        with pytest.raises(Cancelled):
            study(folder, quick=True, progress=note, cancelled=stop_at(text))
    before = len(said)
    found = study(folder, quick=True, progress=note)
    return found, folder, said[before:]


def test_the_study_goes_on_where_it_was_stopped(run):
    _, folder, said = run
    assert not any(one.startswith(("training", "making person")) for one in said)
    kept = folder / "work"
    assert (
        len((kept / "maps.jsonl").read_text(encoding="utf-8").splitlines())
        == pipeline._QUICK.mapped_persons
    )
    assert (
        len((kept / "answers.jsonl").read_text(encoding="utf-8").splitlines())
        == pipeline._QUICK.test_persons
    )
    assert {one.stem for one in kept.glob("*.pt")} == {kind.key for kind in KINDS}


def test_the_study_answers_with_tables_and_figures(run):
    found, folder, _ = run
    assert found.name == "probability_maps"
    assert [one.name for one in found.tables] == [
        "accuracy",
        "regions",
        "channels",
        "signs_of_bias",
        "completeness",
    ]
    assert len(found.table("accuracy").rows) == 12
    for row in found.table("accuracy").rows:
        assert 0 <= row[4] <= row[3] <= row[5] <= 1
    page = (folder / "probability_maps.md").read_text(encoding="utf-8")
    for text in (*found.answer, "probability_maps-maps.png", "published"):
        assert text in page
    for one in found.figures:
        assert (folder / f"{one.name}.png").stat().st_size < 250_000


def test_every_map_of_the_study_adds_up_within_one_percent(run):
    rows = {(row[0], row[1]): row for row in run[0].table("completeness").rows}
    assert set(rows) == {
        *((method, "zero") for method in ("integrated_gradients", "input_x_gradient")),
        *((method, "zero") for method in ("deep_lift", "gradient_shap")),
        ("integrated_gradients", "healthy mean"),
    }
    for (method, _), row in rows.items():
        assert row[2] == len(KINDS) * pipeline._QUICK.mapped_persons
        if method != "input_x_gradient":
            assert row[3] == row[2]
            assert row[5] <= 0.01


def test_the_bias_shows_in_the_air_of_the_biased_image_alone(run):
    rows = run[0].table("regions").rows
    air = {row[1]: row[4] for row in rows if row[0] == "patients" and row[2:4] == ("zero", "air")}
    titles = tables.TITLES
    assert air[titles["image_biased"]] > air[titles["image_mixed"]]
    assert air[titles["brain_biased"]] == air[titles["maps_biased"]] == 0


def test_no_test_person_was_in_a_training():
    for plan in (pipeline._QUICK, pipeline._STANDARD):
        assert plan.training_persons < 10_000
        assert plan.test_persons < 10_000
        assert plan.mapped_persons <= plan.test_persons
    assert pipeline._TEST - pipeline._TRAINING >= 100 * 10_000


def test_the_figure_has_a_row_a_person_and_outlines_lesions(run):
    figure = next(one.figure for one in run[0].figures if one.name.endswith("maps"))
    panels = {axes.get_gid(): axes for axes in figure.axes}
    assert set(panels) == {f"{row}-{column}" for row in (0, 1) for column in range(7)}
    assert all(panels[f"0-{column}"].collections for column in range(7))
    assert not any(panels[f"1-{column}"].collections for column in range(7))


def test_the_study_becomes_a_scene_that_comes_back(run, tmp_path):
    scene = sx.scene.new_scene()
    try:
        nodes = sx.scene.publish_study(StudyResult.load(run[1]), scene)
        # Two images, three tissue maps; biased and mixed map on each image, one on the tissue maps.
        assert len(nodes.volumes) == 5
        assert len(nodes.maps) == 5
        assert len(nodes.charts) == 2
        sx.scene.save_mrb(scene, tmp_path / "study.mrb")
    finally:
        sx.scene.release_scene(scene)
    back = sx.scene.load_mrb(tmp_path / "study.mrb")
    try:
        table = back.GetFirstNodeByName("Accuracy on persons of no training").GetTable()
        assert table.GetNumberOfRows() == 12
    finally:
        sx.scene.release_scene(back)
