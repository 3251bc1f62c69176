"""The one number that is explained: every region, score and reduction against plain NumPy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

import SaliencyExplainLib as sx
from SaliencyExplainLib.errors import MethodError, ModelError, TargetError
from SaliencyExplainLib.image import make_image, to_ras

SHAPE = (4, 5, 6)
LABELS = ("background", "Liver", "spleen")
AFFINE = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -7], [0, 0, 3.0, 11], [0, 0, 0, 1]])


def a_model(task="segmentation", labels=LABELS, activation="softmax") -> sx.Model:
    return sx.load_model(torch.nn.Identity(), task=task, labels=labels, activation=activation)


def frozen(target: sx.Target, output: torch.Tensor, model: sx.Model | None = None):
    image = make_image(np.zeros(SHAPE), AFFINE)
    return target.freeze(output, model or a_model(), image)


def softmax(z: np.ndarray) -> np.ndarray:
    powers = np.exp(z - z.max(0))
    return powers / powers.sum(0)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


@pytest.fixture
def output() -> torch.Tensor:
    """Made-up logits (1, O, I, J, K) of three outputs."""
    return torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, *SHAPE)) * 2).float()


@pytest.fixture
def mask() -> MetaTensor:
    return make_image(np.random.default_rng(1).integers(0, 2, SHAPE), AFFINE)


def regions(mask: MetaTensor) -> dict[str, dict]:
    centre = to_ras(AFFINE, (2, 3, 1))
    return {
        "prediction": {},
        "segment": {"segment": mask},
        "roi": {"roi_ras_mm": to_ras(AFFINE, [(0.6, 3.4, -0.4), (2.4, 0.6, 3.4)])},
        "point": {"point_ras_mm": centre + np.array((0.9, -0.7, 1.4))},
        "everywhere": {},
    }


def expected_region(region: str, z: np.ndarray, index: int, mask: MetaTensor) -> np.ndarray:
    inside = np.zeros(SHAPE, dtype=bool)
    if region == "prediction":
        return z.argmax(0) == index
    if region == "segment":
        return mask[0].numpy() > 0
    if region == "roi":
        inside[1:3, 1:4, 0:4] = True
    elif region == "point":
        inside[2, 3, 1] = True
    else:
        inside[:] = True
    return inside


@pytest.mark.parametrize("region", ["prediction", "segment", "roi", "point", "everywhere"])
@pytest.mark.parametrize("score", ["logit", "probability", "soft_volume"])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("contrast", [None, 0, "spleen", "runner_up"])
def test_the_score_is_that_of_plain_numpy(region, score, reduce, contrast, output, mask):
    weight = 0.6
    target = sx.Target("Liver", region, score, reduce, contrast, weight, **regions(mask)[region])
    found = frozen(target, output)
    z = output[0].double().numpy()
    inside = expected_region(region, z, 1, mask)
    field = z if score == "logit" else softmax(z)
    rival = {None: None, 0: 0, "spleen": 2}.get(contrast)
    if contrast == "runner_up":
        rival = 0 if z[0][inside].mean() > z[2][inside].mean() else 2
    values = field[1] if rival is None else field[1] - weight * field[rival]
    if score == "soft_volume":
        expected = values[inside].sum() * 1.5 * 2 * 3 / 1000
    else:
        expected = values[inside].sum() if reduce == "sum" else values[inside].mean()
    assert float(found.value(output)) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert int(found.mask.sum()) == inside.sum()
    assert np.array_equal(found.mask, inside)
    assert found.contrast == rival


def test_softmax_predicts_the_largest_output(output):
    found = frozen(sx.Target(2), output)
    assert np.array_equal(found.mask, output[0].numpy().argmax(0) == 2)


def test_sigmoid_predicts_what_is_above_one_half(output):
    found = frozen(sx.Target(2), output, a_model(activation="sigmoid"))
    assert np.array_equal(found.mask, output[0, 2].numpy() > 0)
    probability = frozen(sx.Target(2, score="probability"), output, a_model(activation="sigmoid"))
    expected = sigmoid(output[0, 2].numpy())[output[0, 2].numpy() > 0].mean()
    assert float(probability.value(output)) == pytest.approx(expected, rel=1e-5)


def test_without_activation_the_outputs_are_probabilities(output):
    p = output.softmax(1)
    found = frozen(sx.Target(2, score="probability"), p, a_model(activation="none"))
    assert np.array_equal(found.mask, p[0, 2] > 0.5)
    assert float(found.value(p)) == pytest.approx(float(p[0, 2][p[0, 2] > 0.5].mean()))


def test_a_single_output_means_its_sigmoid(output):
    # Softmax over one channel is 1 everywhere: every voxel predicted, every gradient zero.
    model = a_model(labels=(), activation="softmax")
    found = frozen(sx.Target(score="probability"), output[:, :1], model)
    assert np.array_equal(found.mask, output[0, 0] > 0)
    assert float(found.cotangent(output[:, :1]).abs().max()) > 0


def test_the_region_stays_when_the_output_changes(output):
    found = frozen(sx.Target(1), output)
    before = found.mask.clone()
    changed = torch.randn(output.shape, generator=torch.manual_seed(5))
    value = found.value(changed)
    assert torch.equal(found.mask, before)
    assert float(value) == pytest.approx(float(changed[0, 1][before].mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "index"), [("spleen", 2), ("SPLEEN", 2), ("liver", 1), ("2", 2), (0, 0)]
)
def test_an_output_is_found_by_label_letter_case_number_and_digits(name, index, output):
    assert frozen(sx.Target(name, region="everywhere"), output).output == index


def test_an_index_from_numpy_is_an_index(output):
    assert frozen(sx.Target(np.int64(2), region="everywhere"), output).output == 2


def test_a_label_that_is_a_number_goes_before_the_index(output):
    found = frozen(sx.Target("0", region="everywhere"), output, a_model(labels=("2", "1", "0")))
    assert found.output == 2


def test_labels_that_differ_in_letter_case_only_are_told_apart(output):
    model = a_model(labels=("Vein", "vein", "x"))
    assert frozen(sx.Target("vein", region="everywhere"), output, model).output == 1
    with pytest.raises(TargetError, match="no output 'VEIN'"):
        frozen(sx.Target("VEIN", region="everywhere"), output, model)


@pytest.mark.parametrize("wrong", ["kidney", 3, -1, "3", "²", True, 1.5, ""])
def test_an_unknown_output_is_refused_with_the_known_ones(wrong, output):
    with pytest.raises(TargetError, match=r"has no output .*0 background, 1 Liver, 2 spleen"):
        frozen(sx.Target(wrong), output)


def test_unnamed_outputs_are_listed_by_number(output):
    with pytest.raises(TargetError, match="0 output 0, 1 output 1, 2 output 2"):
        frozen(sx.Target(7), output, a_model(labels=()))


def test_labels_of_another_number_are_refused(output):
    with pytest.raises(ModelError, match="gives 3 outputs but 2 labels were declared"):
        frozen(sx.Target(0), output, a_model(labels=("a", "b")))


# What is taken when nothing is said


def test_the_only_foreground_class_is_taken(output):
    assert frozen(sx.Target(), output[:, :2], a_model(labels=("background", "liver"))).output == 1


def test_of_several_foreground_classes_one_must_be_named(output):
    with pytest.raises(TargetError, match=r"has 3 outputs: .* Name the one to explain"):
        frozen(sx.Target(), output)


def test_the_predicted_class_is_taken():
    output = torch.tensor([[0.1, 3.0, -1.0]])
    found = frozen(sx.Target(), output, a_model("classification"))
    assert (found.output, found.region, found.mask) == (1, None, None)
    assert float(found.value(output)) == 3.0


def test_of_several_regression_outputs_one_must_be_named():
    with pytest.raises(TargetError, match="Name the one to explain"):
        frozen(sx.Target(), torch.zeros(1, 3), a_model("regression", activation="none"))


def test_a_segmentation_takes_the_predicted_region_and_its_mean_logit(output):
    found = frozen(sx.Target("Liver"), output)
    assert (found.region, found.score, found.reduce) == ("prediction", "logit", "mean")


def test_a_regression_takes_its_value():
    output = torch.tensor([[41.5]])
    found = frozen(sx.Target(), output, a_model("regression", ("age",), "none"))
    assert (found.score, float(found.value(output))) == ("value", 41.5)


def test_a_dense_regression_takes_every_voxel(output):
    found = frozen(sx.Target(0), output, a_model("regression", activation="none"))
    assert (found.region, found.score) == ("everywhere", "value")
    assert float(found.value(output)) == pytest.approx(float(output[0, 0].mean()), rel=1e-5)


def test_a_class_probability_is_the_softmax():
    output = torch.tensor([[0.1, 3.0, -1.0]])
    found = frozen(sx.Target(0, score="probability"), output, a_model("classification"))
    assert float(found.value(output)) == pytest.approx(softmax(output[0].numpy())[0])


def test_a_contrast_of_classes_is_their_difference():
    output = torch.tensor([[0.1, 3.0, -1.0]])
    found = frozen(sx.Target(contrast="runner_up"), output, a_model("classification"))
    assert (found.output, found.contrast) == (1, 0)
    assert float(found.value(output)) == pytest.approx(2.9)


# Combinations that make no sense


@pytest.mark.parametrize(
    ("task", "score", "message"),
    [
        ("segmentation", "value", "'value' does not fit a segmentation network"),
        ("classification", "value", "'value' does not fit a classification network"),
        ("regression", "logit", "'logit' does not fit a regression network. Choose 'value'"),
        ("regression", "probability", "'probability' does not fit a regression"),
        ("regression", "soft_volume", "'soft_volume' does not fit a regression"),
        ("classification", "soft_volume", "soft volume needs a segmentation network"),
    ],
)
def test_a_score_that_does_not_fit_the_task_is_refused(task, score, message):
    with pytest.raises(TargetError, match=message):
        frozen(sx.Target(0, score=score), torch.zeros(1, 3), a_model(task))


@pytest.mark.parametrize("region", ["prediction", "segment", "roi", "point"])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_one_number_for_the_volume_has_no_region(region, task, mask):
    target = sx.Target(0, region=region, **regions(mask)[region])
    with pytest.raises(TargetError, match=f"one number an output, so it has no region '{region}'"):
        frozen(target, torch.zeros(1, 3), a_model(task))


def test_everywhere_is_allowed_for_one_number_a_volume():
    found = frozen(sx.Target(0, region="everywhere"), torch.ones(1, 3), a_model("classification"))
    assert found.region is None


def test_a_regression_predicts_no_region(output):
    with pytest.raises(TargetError, match="regression network predicts no region"):
        frozen(sx.Target(0, "prediction"), output, a_model("regression", activation="none"))


def test_a_class_that_is_predicted_nowhere_is_refused(output):
    output[:, 1] = -100
    with pytest.raises(TargetError, match="predicts no voxel as 'Liver'"):
        frozen(sx.Target(1), output)


def test_an_empty_segment_is_refused(output):
    empty = make_image(np.zeros(SHAPE), AFFINE)
    with pytest.raises(TargetError, match="segment has no voxel inside the image"):
        frozen(sx.Target(1, "segment", segment=empty), output)


def test_a_segment_elsewhere_is_refused(output):
    far = AFFINE.copy()
    far[0, 3] += 500
    with pytest.raises(TargetError, match="segment has no voxel inside the image"):
        frozen(sx.Target(1, "segment", segment=make_image(np.ones(SHAPE), far)), output)


def test_a_segment_on_another_grid_is_taken_by_world_position(output, mask):
    flip = np.diag([1.0, -1, 1, 1])
    flip[1, 3] = SHAPE[1] - 1
    turned = make_image(mask.as_tensor().flip(2), AFFINE @ flip)
    found = frozen(sx.Target(1, "segment", segment=turned), output)
    assert np.array_equal(found.mask, mask[0] > 0)


def test_a_box_without_a_voxel_is_refused(output):
    box = (to_ras(AFFINE, (1.2, 1.2, 1.2)), to_ras(AFFINE, (1.8, 1.8, 1.8)))
    with pytest.raises(TargetError, match="ROI holds no voxel centre"):
        frozen(sx.Target(1, "roi", roi_ras_mm=box), output)


def test_a_point_outside_is_refused(output):
    with pytest.raises(TargetError, match=r"point \(100\.0, 0\.0, 0\.0\) \(RAS, mm\) lies outside"):
        frozen(sx.Target(1, "point", point_ras_mm=(100, 0, 0)), output)


def test_a_point_is_taken_up_to_half_a_voxel_beyond_the_border(output):
    near, far = (to_ras(AFFINE, (edge, 0, 0)) for edge in (-0.45, -0.55))
    assert frozen(sx.Target(1, "point", point_ras_mm=near), output).mask[0, 0, 0]
    with pytest.raises(TargetError, match="lies outside"):
        frozen(sx.Target(1, "point", point_ras_mm=far), output)


def test_a_contrast_needs_a_second_output(output):
    model = a_model(labels=("lesion",), activation="sigmoid")
    with pytest.raises(TargetError, match="needs a second output; this model has one"):
        frozen(sx.Target(0, "everywhere", contrast="runner_up"), output[:, :1], model)


def test_a_contrast_with_itself_is_refused(output):
    with pytest.raises(TargetError, match="contrast 'Liver' is the explained output itself"):
        frozen(sx.Target(1, contrast="liver"), output)


def test_an_unknown_contrast_is_refused(output):
    with pytest.raises(TargetError, match="has no contrast 'kidney'"):
        frozen(sx.Target(1, contrast="kidney"), output)


@pytest.mark.parametrize("shape", [(3,), (1, 3, 4), (1, 3, 4, 4)])
def test_an_output_of_another_form_is_refused(shape):
    with pytest.raises(TargetError, match=r"output has the shape .*\(1, O\) or \(1, O, I, J, K\)"):
        frozen(sx.Target(1), torch.zeros(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_refused(bad, output):
    output[0, 1, 0, 0, 0] = bad
    with pytest.raises(ModelError, match=f"'Liver' gives the score {bad}"):
        frozen(sx.Target(1, "everywhere"), output)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"region": "organ"}, "region must be one of 'prediction', .*'organ' was given"),
        ({"score": "dice"}, "score must be one of 'logit', .*'dice' was given"),
        ({"reduce": "max"}, "reduce must be one of 'mean', 'sum'; 'max' was given"),
        ({"contrast_weight": -0.1}, "between 0 and 10; -0.1 was given"),
        ({"contrast_weight": 11}, "between 0 and 10; 11 was given"),
        ({"contrast_weight": np.nan}, "between 0 and 10; nan was given"),
        ({"region": "segment"}, "'segment' needs segment=<mask image>"),
        ({"region": "roi"}, r"'roi' needs roi_ras_mm=\(corner, corner\)"),
        ({"region": "point"}, r"'point' needs point_ras_mm=\(r, a, s\)"),
        ({"roi_ras_mm": (1, 2, 3)}, "two corners of three RAS coordinates"),
        ({"roi_ras_mm": ((1, 2), (1, 2, 3))}, "two corners of three RAS coordinates"),
        ({"point_ras_mm": (1, 2)}, "three RAS coordinates in mm"),
        ({"point_ras_mm": ("a", "b", "c")}, "three RAS coordinates in mm"),
        ({"segment": np.zeros(SHAPE)}, "mask with its affine .*ndarray was given"),
    ],
)
def test_a_target_that_cannot_be_is_refused_when_it_is_made(wrong, message):
    with pytest.raises(TargetError, match=message):
        sx.Target(1, **wrong)


def test_places_given_as_arrays_are_kept_as_numbers():
    one = sx.Target(1, "point", point_ras_mm=np.array((1, 2, 3)), roi_ras_mm=np.zeros((2, 3)))
    assert one == sx.Target(1, "point", point_ras_mm=(1, 2, 3), roi_ras_mm=((0,) * 3, [0] * 3))


# Its gradient


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("contrast", [None, 2])
@pytest.mark.parametrize("region", ["prediction", "roi", "everywhere"])
def test_the_cotangent_known_beforehand_is_that_of_autograd(reduce, contrast, region, output, mask):
    target = sx.Target(1, region, None, reduce, contrast, 0.3, **regions(mask)[region])
    found = frozen(target, output)
    known = found.linear_cotangent(output.shape, found.weights())
    torch.testing.assert_close(known, found.cotangent(output))


def test_the_cotangent_of_one_number_is_one():
    output = torch.tensor([[0.1, 3.0, -1.0]])
    found = frozen(sx.Target(contrast=2, contrast_weight=0.5), output, a_model("classification"))
    assert found.weights() is None
    known = found.linear_cotangent(output.shape, torch.ones(()))
    assert known.tolist() == [[0, 1, -0.5]]
    torch.testing.assert_close(known, found.cotangent(output))


@pytest.mark.parametrize("score", ["probability", "soft_volume"])
def test_the_cotangent_is_the_finite_difference(score, output):
    output = output.double()
    found = frozen(sx.Target(1, score=score), output)
    gradient = found.cotangent(output)
    for place in [(0, 0, 1, 2, 3), (0, 1, 0, 0, 0), (0, 2, 3, 4, 5)]:
        step = torch.zeros_like(output)
        step[place] = 1e-4
        change = (found.value(output + step) - found.value(output - step)) / 2e-4
        assert float(gradient[place]) == pytest.approx(float(change), rel=1e-5, abs=1e-10)


def test_only_logits_and_values_are_linear(output):
    scores = {"logit": True, "probability": False, "soft_volume": False}
    found = {score: frozen(sx.Target(1, score=score), output).linear for score in scores}
    assert found == scores


def test_the_target_says_what_it_explains(output):
    told = frozen(sx.Target("liver", score="soft_volume", contrast=0), output).to_dict()
    size = int((output[0].argmax(0) == 1).sum())
    assert told == {
        "output": 1,
        "output_name": "Liver",
        "region": "prediction",
        "region_voxels": size,
        "region_ml": round(size * 0.009, 4),
        "score": "soft_volume",
        "unit": "ml",
        "reduce": "sum",
        "contrast": 0,
        "contrast_name": "background",
        "contrast_weight": 1.0,
        "instance": None,
    }


# Through a network


class Classifier(torch.nn.Module):
    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = torch.nn.Conv3d(1, 4, 3, padding=1)
        self.last = torch.nn.Linear(4, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.features(x).relu().mean((2, 3, 4)))


@pytest.mark.parametrize(
    ("task", "outputs", "target"),
    [
        ("classification", 3, sx.Target()),
        ("classification", 3, sx.Target(0, score="probability", contrast=2)),
        ("regression", 1, sx.Target()),
        ("regression", 2, sx.Target("output 1")),
    ],
)
def test_one_number_a_volume_is_explained_by_its_gradient(task, outputs, target):
    network = Classifier(outputs)
    image = make_image(np.random.default_rng(0).normal(size=SHAPE), AFFINE)
    made = sx.explain(sx.load_model(network, task=task), image, target, "gradient")
    x = image.as_tensor()[None].clone().requires_grad_()
    output = network(x)
    found = target.freeze(output.detach(), sx.load_model(network, task=task), image)
    found.value(output).backward()
    torch.testing.assert_close(made.maps.as_tensor(), x.grad[0])
    assert made.value == pytest.approx(float(found.value(output.detach())))
    assert made.target["region"] is None


@pytest.mark.parametrize("method", ["grad_cam", "hires_cam", "layer_cam", "grad_cam_plus_plus"])
def test_a_class_is_explained_by_a_layer(method):
    model = sx.load_model(Classifier(), task="classification")
    image = make_image(np.random.default_rng(0).normal(size=SHAPE), AFFINE)
    made = sx.explain(model, image, sx.Target(1), method, layer="features")
    assert made.maps.shape == (1, *SHAPE)
    np.testing.assert_array_equal(made.maps.affine, AFFINE)


def test_a_dense_regression_is_explained_everywhere_and_at_a_point():
    network = torch.nn.Conv3d(1, 1, 3, padding=1, bias=False)
    model = sx.load_model(network, task="regression")
    image = make_image(np.random.default_rng(0).normal(size=SHAPE), AFFINE)
    target = sx.Target(region="point", point_ras_mm=tuple(to_ras(AFFINE, (1, 2, 3))))
    made = sx.explain(model, image, target, "gradient")
    expected = torch.zeros(SHAPE)
    expected[0:3, 1:4, 2:5] = network.weight[0, 0].detach()
    torch.testing.assert_close(made.maps[0].as_tensor(), expected)
    everywhere = sx.explain(model, image, sx.Target(), "gradient")
    assert everywhere.target["region_voxels"] == np.prod(SHAPE)


def test_an_error_of_the_target_says_where_it_happened():
    model = sx.load_model(Classifier(), task="classification")
    image = make_image(np.zeros(SHAPE), AFFINE, "head.nrrd")
    with pytest.raises(TargetError, match=r"no output 9.*While running Gradient on head\.nrrd"):
        sx.explain(model, image, sx.Target(9), "gradient")


def test_windows_cannot_fuse_one_number_a_volume():
    from monai.inferers import SlidingWindowInferer

    inferer = SlidingWindowInferer((2, 3, 3))
    model = sx.load_model(Classifier(), task="classification", inferer=inferer)
    with pytest.raises(ModelError, match="sliding windows cannot fuse"):
        sx.explain(model, make_image(np.zeros(SHAPE), AFFINE), sx.Target(0), "gradient")


def test_every_region_score_and_reduction_is_tested(mask):
    from SaliencyExplainLib import target

    # Instances need parts to choose from: they have tests of their own.
    assert {*regions(mask), "instance"} == set(target.REGIONS)
    assert set(product(target.SCORES, target.REDUCTIONS)) == set(
        product(("logit", "probability", "soft_volume", "value"), ("mean", "sum"))
    )


def test_a_method_instance_explains_like_its_name():
    model = sx.load_model(Classifier(), task="classification")
    image = make_image(np.random.default_rng(0).normal(size=SHAPE), AFFINE)
    one = sx.explain(model, image, sx.Target(0), sx.make_method("smooth_grad", {"samples": 2}))
    other = sx.explain(model, image, sx.Target(0), "smooth_grad", samples=2)
    assert torch.equal(one.maps.as_tensor(), other.maps.as_tensor())
    with pytest.raises(MethodError, match="SmoothGrad was made already"):
        sx.explain(model, image, sx.Target(0), sx.make_method("smooth_grad"), samples=2)


# ------------------------------------------------------------------------------------------------
# Instances: one connected part of the prediction


@pytest.fixture
def three_lesions() -> tuple[sx.Model, MetaTensor]:
    """A network that predicts where the image is bright, and parts of 8, 27 and 1 voxels."""
    voxels = torch.full((1, 12, 12, 12), -1.0)
    voxels[0, 1:3, 1:3, 1:3] = 1
    voxels[0, 6:9, 6:9, 6:9] = 1
    voxels[0, 11, 0, 0] = 1
    network = torch.nn.Conv3d(1, 2, 1, bias=False)
    network.weight.data = torch.tensor([[0.0], [1.0]]).reshape(2, 1, 1, 1, 1)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (10, 20, 30)
    return sx.Model(network, "segmentation", labels=("rest", "lesion")), make_image(voxels, affine)


@pytest.mark.parametrize(
    ("asked", "voxels", "number", "centre"),
    [
        ({"instance": 1}, 27, 1, [24, 34, 44]),
        ({"region": "instance"}, 27, 1, [24, 34, 44]),
        ({"instance": 2}, 8, 2, [13, 23, 33]),
        ({"instance": 3}, 1, 3, [32, 20, 30]),
        ({"region": "instance", "point_ras_mm": (12.4, 22, 32)}, 8, 2, [13, 23, 33]),
    ],
)
def test_an_instance_is_one_connected_part_by_size_or_by_point(
    three_lesions, asked, voxels, number, centre
):
    model, image = three_lesions
    made = sx.explain(model, image, sx.Target(output="lesion", reduce="sum", **asked), "gradient")
    assert made.target["region"] == "instance"
    assert made.target["region_voxels"] == voxels
    assert made.target["instance"] == {"number": number, "of": 3, "centre_ras_mm": centre}
    assert float(made.maps.sum()) == voxels
    assert made.value == voxels


def test_parts_that_touch_at_a_corner_are_one(three_lesions):
    model, image = three_lesions
    image[0, 3, 3, 3] = 1
    made = sx.explain(model, image, sx.Target(output="lesion", instance=2), "gradient")
    assert made.target["region_voxels"] == 9


def test_an_instance_that_is_not_there_is_counted_out(three_lesions):
    model, image = three_lesions
    with pytest.raises(TargetError, match=r"'lesion' has 3 connected parts; number 4 was asked"):
        sx.explain(model, image, sx.Target(output="lesion", instance=4), "gradient")


def test_a_point_beside_every_part_is_told_where_the_nearest_lies(three_lesions):
    model, image = three_lesions
    target = sx.Target(output="lesion", region="instance", point_ras_mm=(22, 32, 38))
    with pytest.raises(
        TargetError, match=r"in no part .* 4\.0 mm away, at \(22\.0, 32\.0, 42\.0\)"
    ):
        sx.explain(model, image, target, "gradient")


@pytest.mark.parametrize("number", [0, -1, 1.0, True, "1"])
def test_a_number_of_an_instance_that_is_none_is_refused(number):
    with pytest.raises(TargetError, match="instance is the number of a connected part"):
        sx.Target(output=1, instance=number)


def test_an_instance_and_a_point_without_a_region_are_two_questions():
    with pytest.raises(TargetError, match="Say which one is meant"):
        sx.Target(output=1, instance=1, point_ras_mm=(0, 0, 0))
