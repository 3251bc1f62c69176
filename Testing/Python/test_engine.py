"""The engine: exact gradients through windows, no wasted pass, nothing left behind."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from monai.networks.nets import UNETR, DenseNet121, SegResNet
from references import (
    BatchNormNet,
    Classifier,
    LinearNet,
    Raising,
    StridedNet,
    as_model,
    counted_runs,
    for_method,
    fused,
    fused_gradient,
    is_fake,
    quick_parameters,
    run_engine,
    score,
    state_of,
)
from torch import nn

from SaliencyExplainLib.engine import Engine, Progress
from SaliencyExplainLib.errors import (
    Cancelled,
    ModelError,
    OutOfMemoryError,
    SaliencyExplainError,
)
from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.methods import make_method, methods
from SaliencyExplainLib.model import WholeVolume, Windows
from SaliencyExplainLib.run import explain
from SaliencyExplainLib.target import Target

HALVES = Windows((16, 16, 16), (0.5, 0.5, 0.5), "gaussian")
#: Boxes and points in RAS mm, as `mask_of` writes them by hand for a volume of 1 mm.
ROI = ((3.0, 4.0, 5.0), (9.0, 12.0, 11.0))
POINT = (4.0, 15.0, 10.0)
NAMES = sorted(methods())


def mask_of(region: str, output: torch.Tensor, segment: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros(output.shape[2:])
    if region == "prediction":
        mask = (output[0].argmax(0) == 1).float()
    elif region == "segment":
        mask = segment[0]
    elif region == "roi":
        mask[3:10, 4:13, 5:12] = 1
    elif region == "point":
        mask[4, 15, 10] = 1
    else:
        mask += 1
    return mask


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.fixture
def a_segment():
    """A ball of 7 voxels across, as a mask on the grid of the volume."""
    i, j, k = np.indices((20, 20, 16))
    ball = (i - 8) ** 2 + (j - 9) ** 2 + (k - 12) ** 2 < 12
    return make_image(ball[None].astype(np.float32), np.eye(4))


def check_against_autograd(model, image, target_facts, a_segment):
    """Compare the engine with autograd through MONAI's fused inference."""
    facts = dict(target_facts)
    region, kind = facts.pop("region"), facts.pop("score", "logit")
    reduce, contrast = facts.pop("reduce", "mean"), facts.pop("contrast", None)
    weight = facts.pop("contrast_weight", 1.0)
    with torch.no_grad():
        start = fused(model, image.as_tensor()[None])
    mask = mask_of(region, start, a_segment)
    other = contrast
    if contrast == "runner_up":
        means = (start[0] * mask).sum((1, 2, 3))
        means[1] = -torch.inf
        other = int(means.argmax())
    voxel_ml = float(np.abs(np.linalg.det(image.affine[:3, :3]))) / 1000
    wanted = fused_gradient(
        model,
        image,
        lambda output: score(
            output,
            1,
            mask,
            kind=kind,
            reduce=reduce,
            other=other,
            weight=weight,
            voxel_ml=voxel_ml,
        ),
    )
    target = Target(
        output=1,
        region=region,
        score=kind,
        reduce=reduce,
        contrast=contrast,
        contrast_weight=weight,
        segment=a_segment,
        roi_ras_mm=ROI,
        point_ras_mm=POINT,
    )
    found = run_engine(model, image, target, lambda engine: engine.gradient())
    # 1e-5: float32 sums in another order. A wrong fusion weight or region gives more than 1e-2.
    assert relative(found, wanted) < 1e-5


REGIONS = ["prediction", "segment", "roi", "point", "everywhere"]


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("kind", ["logit", "probability", "soft_volume"])
def test_the_windowed_gradient_is_autograd_through_the_whole_fused_inference(
    unet, a_volume, a_segment, region, kind
):
    model = as_model(unet, inferer=HALVES)
    facts = {"region": region, "score": kind}
    check_against_autograd(model, a_volume(1, 20, 20, 16), facts, a_segment)


@pytest.mark.parametrize(
    "facts",
    [
        {"contrast": 2},
        {"contrast": "runner_up"},
        {"contrast": 0, "contrast_weight": 0.5, "score": "probability"},
        {"contrast": 2, "reduce": "sum"},
        {"reduce": "sum"},
        {"reduce": "sum", "score": "probability"},
    ],
)
def test_contrasts_and_sums_pull_back_exactly_too(unet, a_volume, a_segment, facts):
    model = as_model(unet, inferer=HALVES)
    check_against_autograd(model, a_volume(1, 20, 20, 16), {"region": "roi", **facts}, a_segment)


NETWORKS = {
    "batch norm and ReLU": lambda: BatchNormNet(),
    "SegResNet, in-place": lambda: SegResNet(3, 8, 1, 3, blocks_down=(1, 1), blocks_up=(1,)),
    "UNETR, attention": lambda: UNETR(1, 3, (16, 16, 16), 4, 32, 64, 4),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", ["logit", "probability"])
def test_other_architectures_pull_back_exactly_too(name, kind, a_volume, a_segment):
    torch.manual_seed(0)
    model = as_model(NETWORKS[name](), inferer=HALVES)
    facts = {"region": "segment", "score": kind}
    check_against_autograd(model, a_volume(1, 20, 20, 16), facts, a_segment)


@pytest.mark.parametrize("inferer", [WholeVolume(), Windows((24, 24, 24), mode="gaussian")])
@pytest.mark.parametrize("kind", ["logit", "soft_volume"])
def test_one_window_pulls_back_exactly_with_and_without_padding(
    unet, a_volume, a_segment, inferer, kind
):
    model = as_model(unet, inferer=inferer)
    facts = {"region": "prediction", "score": kind}
    check_against_autograd(model, a_volume(1, 20, 20, 16), facts, a_segment)


@pytest.mark.parametrize("padding", ["reflect", "replicate"])
def test_padding_that_copies_voxels_pulls_back_their_copies_too(unet, a_volume, a_segment, padding):
    model = as_model(unet, inferer=Windows((24, 16, 16), (0.5,) * 3, padding_mode=padding))
    facts = {"region": "everywhere", "reduce": "sum"}
    check_against_autograd(model, a_volume(1, 20, 20, 16), facts, a_segment)


def test_several_input_channels_each_get_their_gradient(a_volume, a_segment):
    model = as_model(BatchNormNet(channels=3), inferer=HALVES)
    check_against_autograd(model, a_volume(3, 20, 20, 16), {"region": "roi"}, a_segment)


def test_the_soft_volume_is_in_ml_of_oblique_and_anisotropic_voxels(unet, a_segment):
    affine = np.diag([1.5, 2.0, -3.0, 1.0])
    image = make_image(torch.randn(1, 20, 20, 16, generator=torch.manual_seed(5)), affine)
    model = as_model(unet, inferer=HALVES)
    facts = {"region": "everywhere", "score": "soft_volume"}
    check_against_autograd(model, image, facts, a_segment)


@pytest.mark.parametrize("kind", ["logit", "probability"])
def test_a_classifier_pulls_back_its_score(a_volume, kind):
    torch.manual_seed(0)
    model = as_model(DenseNet121(3, 1, 3), task="classification")
    image = a_volume(1, 32, 32, 32)
    wanted = fused_gradient(model, image, lambda output: score(output, 2, None, kind=kind))
    target = Target(output=2, score=kind)
    assert relative(run_engine(model, image, target, lambda e: e.gradient()), wanted) < 1e-5


def test_a_regression_pulls_back_its_value(a_volume):
    model = as_model(Classifier(outputs=1), task="regression", activation="none")
    image = a_volume(1, 12, 12, 12)
    wanted = fused_gradient(model, image, lambda output: output[0, 0])
    assert relative(run_engine(model, image, Target(), lambda e: e.gradient()), wanted) < 1e-6


def test_the_gradient_of_a_linear_network_is_a_finite_difference(a_volume):
    network = LinearNet()
    model = as_model(network, inferer=Windows((8, 8, 8), (0.5,) * 3, "gaussian"))
    image = a_volume(1, 12, 12, 12)
    target = Target(output=1, region="roi", roi_ras_mm=((2, 2, 2), (7, 7, 7)))
    gradient = run_engine(model, image, target, lambda e: e.gradient())
    # Linear: a step of 1 has no error of its own; rounding of float32 sums is about 1e-6.
    for place in [(4, 4, 4), (2, 7, 3), (8, 5, 5), (11, 11, 11)]:
        moved = image.as_tensor().clone()
        moved[(0, *place)] += 1
        change = run_engine(model, image, target, lambda e, x=moved: e.value(x[None])) - run_engine(
            model, image, target, lambda e: e.start_value
        )
        assert change == pytest.approx(float(gradient[(0, *place)]), abs=2e-6)


def test_the_gradient_of_a_smooth_network_is_a_central_difference_in_double_precision(a_volume):
    network = BatchNormNet(act=nn.SiLU).eval()
    image = a_volume(1, 8, 8, 8)
    target = Target(output=1, region="everywhere", score="probability")
    gradient = run_engine(as_model(network), image, target, lambda e: e.gradient())[0]
    network.double()
    x = image.as_tensor()[None].double()
    mask = torch.ones(8, 8, 8)
    for place in [(0, 0, 0), (4, 3, 2), (7, 7, 1)]:
        step = torch.zeros_like(x)
        step[(0, 0, *place)] = 1e-4
        with torch.no_grad():
            above, below = (
                score(network(x + sign * step), 1, mask, kind="probability") for sign in (1, -1)
            )
        assert float(above - below) / 2e-4 == pytest.approx(float(gradient[place]), rel=1e-4)


# ------------------------------------------------------------------------------------------------
# The region is fixed once


def test_the_region_stays_that_of_the_unperturbed_image(a_volume):
    image = a_volume(1, 10, 10, 10)
    model = as_model(BatchNormNet())

    def regions(engine: Engine) -> tuple[torch.Tensor, torch.Tensor]:
        before = engine.frozen.mask.clone()
        engine.gradient(-engine.x)
        engine.value(engine.x * 3)
        return before, engine.frozen.mask

    before, after = run_engine(model, image, Target(output=1), regions)
    assert torch.equal(before, after)


def test_a_gradient_elsewhere_first_still_fixes_the_region_on_the_image(a_volume):
    image = a_volume(1, 10, 10, 10)
    model = as_model(BatchNormNet())
    wanted = run_engine(model, image, Target(output=1), lambda e: e.frozen.mask)
    noise = torch.randn(1, 1, 10, 10, 10, generator=torch.manual_seed(1)) * 4

    def mask(engine: Engine) -> torch.Tensor:
        engine.gradient(noise)
        return engine.frozen.mask

    assert torch.equal(run_engine(model, image, Target(output=1), mask), wanted)


# ------------------------------------------------------------------------------------------------
# No pass too many


@pytest.mark.parametrize("kind", ["logit", "probability"])
def test_windows_that_do_not_reach_the_region_are_not_run(a_volume, kind):
    network = BatchNormNet()
    model = as_model(network, inferer=Windows((8, 8, 8), (0.5,) * 3))
    target = Target(output=1, region="point", point_ras_mm=(1, 1, 9), score=kind)
    with counted_runs(network) as runs:
        run_engine(model, a_volume(1, 16, 16, 16), target, lambda e: e.gradient())
    # Windows start at 0, 4 and 8: (1, 1) lies in the first along i and j, 9 in two along k.
    assert runs == [False] * 27 + [True] * 2


def test_windows_that_do_not_reach_the_region_have_no_gradient(a_volume):
    model = as_model(BatchNormNet(), inferer=Windows((8, 8, 8), (0.0,) * 3))
    target = Target(output=1, region="point", point_ras_mm=(1, 1, 9), score="probability")
    gradient = run_engine(model, a_volume(1, 16, 16, 16), target, lambda e: e.gradient())
    assert gradient[0, :8, :8, 8:].abs().sum() > 0
    gradient[0, :8, :8, 8:] = 0
    assert gradient.abs().sum() == 0


#: Forward sweeps and sweeps with gradient on a whole volume; the second ones are in the first.
FLOORS = {
    "gradient": (1, 1),
    "input_x_gradient": (1, 1),
    "deconvnet": (1, 1),
    "guided_backprop": (1, 1),
    "integrated_gradients": (3 + 2, 3),
    "smooth_grad": (3 + 1, 3),
    "grad_cam": (1, 1),
    "grad_cam_plus_plus": (1, 1),
    "hires_cam": (1, 1),
    "layer_cam": (1, 1),
}
#: The same through windows, where a sweep of its own fixes the region and gives Y; `unlike` where
#: the score is not linear in the output and the image is not the first one.
WINDOWED = {
    "gradient": (2, 2),
    "input_x_gradient": (2, 2),
    "deconvnet": (2, 2),
    "guided_backprop": (2, 2),
    "integrated_gradients": (3 + 2, 2 * 3 + 2),
    "smooth_grad": (3 + 1, 2 * 3 + 1),
    "grad_cam": (3, 3),
    "grad_cam_plus_plus": (4, 4),
    "hires_cam": (2, 2),
    "layer_cam": (2, 2),
}


@pytest.fixture
def counted_backward(monkeypatch):
    """List with one entry for each backward pass."""
    calls, original = [], torch.autograd.grad

    def counting(outputs, *arguments, **keywords):
        # The derivative of the score by the output is not a pass through the network.
        network_pass = keywords.get("grad_outputs") is not None
        calls.extend([1] * network_pass)
        return original(outputs, *arguments, **keywords)

    monkeypatch.setattr(torch.autograd, "grad", counting)
    return calls


@pytest.mark.parametrize("kind", ["logit", "probability"])
@pytest.mark.parametrize("name", FLOORS)
def test_a_whole_volume_costs_no_pass_more_than_its_floor(name, kind, a_volume, counted_backward):
    network = StridedNet()
    method = make_method(name, quick_parameters(methods()[name]))
    target = Target(output=1, score=kind)
    with counted_runs(network) as runs:
        explain(as_model(network), a_volume(1, 8, 8, 8), target, method, batch_size=1)
    forward, backward = FLOORS[name]
    assert (len(runs), sum(runs), len(counted_backward)) == (forward, backward, backward)
    assert method.passes() == forward


@pytest.mark.parametrize("kind", ["logit", "probability"])
@pytest.mark.parametrize("name", WINDOWED)
def test_windows_cost_no_pass_more_than_their_floor(name, kind, a_volume):
    network = StridedNet()
    model = as_model(network, inferer=Windows((8, 8, 8), (0.5,) * 3))
    method = make_method(name, quick_parameters(methods()[name]))
    target = Target(output=1, score=kind, region="everywhere")
    engine = Engine(model, a_volume(1, 12, 8, 8), target, batch_size=1)
    with counted_runs(network) as runs, engine.running():
        method.attribute(engine)
    sweeps = WINDOWED[name][kind != "logit"]
    assert len(runs) == 2 * sweeps
    assert engine.progress.done == 2 * sweeps
    assert method.window_passes(linear=kind == "logit") == sweeps


@pytest.mark.parametrize("name", NAMES)
def test_the_progress_of_every_method_ends_at_one_and_not_before(name, a_volume):
    told: list[float] = []
    explain(
        as_model(for_method(name, StridedNet())),
        a_volume(1, 8, 8, 8),
        Target(output=1),
        name,
        lambda fraction, _: told.append(fraction),
        **quick_parameters(methods()[name]),
    )
    # Some methods learn on the way how much there is to do.
    assert told == sorted(told) or methods()[name]().passes() is None
    assert told[-1] == 1.0
    assert told.count(1.0) == 1


# ------------------------------------------------------------------------------------------------
# One window's memory


@pytest.fixture
def alive_between_windows():
    """Watch a network: how many layer outputs of earlier windows live when the next one starts."""

    def watch(network: nn.Module) -> list[int]:
        found: list[int] = []
        outputs: list[weakref.ref] = []

        def start(_module, inputs):
            if not is_fake(inputs[0]) and torch.is_grad_enabled():
                found.append(sum(one() is not None for one in outputs))
                outputs.clear()

        def keep(_module, _inputs, output):
            if torch.is_grad_enabled():
                outputs.append(weakref.ref(output))

        for module in network.modules():
            module.register_forward_hook(keep)
        network.register_forward_pre_hook(start)
        return found

    return watch


@pytest.mark.parametrize("kind", ["logit", "probability"])
def test_no_layer_of_one_window_is_alive_when_the_next_one_starts(
    a_volume, alive_between_windows, kind
):
    network = BatchNormNet()
    alive = alive_between_windows(network)
    model = as_model(network, inferer=Windows((8, 8, 8), (0.5,) * 3))
    target = Target(output=1, region="everywhere", score=kind)
    run_engine(model, a_volume(1, 12, 12, 8), target, lambda e: e.gradient(), batch_size=1)
    assert alive == [0] * 4


@pytest.mark.parametrize("name", ["hires_cam", "layer_cam", "grad_cam", "grad_cam_plus_plus"])
def test_layer_methods_keep_one_window_alive_too(a_volume, alive_between_windows, name):
    network = StridedNet()
    alive = alive_between_windows(network)
    model = as_model(network, inferer=Windows((8, 8, 8), (0.5,) * 3))
    target = Target(output=1, region="everywhere")
    method = make_method(name, {"layer": "act"})
    run_engine(model, a_volume(1, 12, 12, 8), target, method.attribute)
    assert alive == [0] * 4


def test_integration_keeps_one_point_of_the_path_alive(a_volume, alive_between_windows):
    network = BatchNormNet()
    alive = alive_between_windows(network)
    method = make_method("integrated_gradients", {"steps": 5})
    image, target = a_volume(1, 8, 8, 8), Target(output=1)
    run_engine(as_model(network), image, target, method.attribute, batch_size=1)
    assert alive == [0] * 5


def test_no_gradient_of_a_weight_is_computed(a_volume, monkeypatch):
    network = BatchNormNet()
    seen = []
    for parameter in network.parameters():
        parameter.register_hook(seen.append)
    run_engine(as_model(network), a_volume(1, 8, 8, 8), Target(output=1), lambda e: e.gradient())
    assert seen == []
    assert all(parameter.grad is None for parameter in network.parameters())


# ------------------------------------------------------------------------------------------------
# Nothing is left behind


@pytest.fixture
def a_mixed_network():
    """A network in training mode with one frozen block, hooks of its owner's and a gradient."""

    def make(raising_at: int = 0) -> nn.Module:
        network = StridedNet()
        network.spoiler = Raising(raising_at)
        network.mix = nn.Sequential(network.mix, network.spoiler)
        network.train()
        network.mix.eval()
        network.head.weight.requires_grad_(False)
        network.act.register_forward_hook(lambda _m, _i, _o: None)
        return network

    return make


def explain_mixed(network, image, name, target=None, inferer=None, **callbacks):
    # Not `as_model`: that would put the network in eval mode.
    from SaliencyExplainLib.model import Model

    model = Model(for_method(name, network), "segmentation", inferer=inferer or WholeVolume())
    parameters = quick_parameters(methods()[name])
    return explain(model, image, target or Target(output=1), name, **callbacks, **parameters)


SPLIT = [None, Windows((8, 8, 8), (0.5,) * 3)]


@pytest.mark.parametrize("inferer", SPLIT, ids=["whole", "windows"])
@pytest.mark.parametrize("name", NAMES)
def test_a_finished_run_leaves_the_network_as_it_was(name, inferer, a_mixed_network, a_volume):
    network = a_mixed_network()
    before = state_of(network)
    explain_mixed(network, a_volume(1, 12, 8, 8), name, inferer=inferer)
    assert state_of(network) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_refused_target_leaves_the_network_as_it_was(name, a_mixed_network, a_volume):
    network = a_mixed_network()
    before = state_of(network)
    with pytest.raises(SaliencyExplainError, match="no output 99"):
        explain_mixed(network, a_volume(1, 8, 8, 8), name, Target(output=99))
    assert state_of(network) == before


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_layer_that_raises_leaves_the_network_as_it_was(name, at, a_mixed_network, a_volume):
    network = a_mixed_network(raising_at=at)
    before = state_of(network)
    inferer = Windows((8, 8, 8), (0.5,) * 3)
    with pytest.raises(ModelError, match="this layer is broken"):
        explain_mixed(network, a_volume(1, 12, 8, 8), name, inferer=inferer)
    assert state_of(network) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_run_cancelled_at_any_pass_leaves_the_network_as_it_was(name, a_mixed_network, a_volume):
    network, image = a_mixed_network(), a_volume(1, 8, 8, 8)
    before = state_of(network)
    asked: list[int] = []
    explain_mixed(network, image, name, cancelled=lambda: bool(asked.append(1)))
    assert asked, "the method never asks whether it is cancelled"
    for last in range(min(len(asked), 12)):
        answers = iter([False] * last + [True])
        with pytest.raises(Cancelled, match="was cancelled"):
            explain_mixed(network, image, name, cancelled=lambda answers=answers: next(answers))
        assert state_of(network) == before


@pytest.mark.parametrize("name", NAMES)
def test_the_image_is_not_changed(name, a_volume):
    image = a_volume(1, 8, 8, 8)
    voxels, affine = image.as_tensor().clone(), image.affine.clone()
    explain_mixed(StridedNet(), image, name)
    assert torch.equal(image.as_tensor(), voxels)
    assert torch.equal(image.affine, affine)


# ------------------------------------------------------------------------------------------------
# Refusals


class Returning(nn.Module):
    """A network that returns what a function makes of its input."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def two(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, -x], 1)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: two(x)[..., ::2], "Only outputs on the input's grid"),
        (lambda x: "text", "returns str; a tensor"),
        (lambda x: [], "returns list; a tensor"),
        (lambda x: two(x).detach(), "cannot be differentiated|that can be differentiated"),
        (lambda x: two(x)[:, :, 0], r"\(1, O\) or \(1, O, I, J, K\) was expected"),
    ],
)
def test_a_network_whose_output_cannot_be_explained_is_refused(function, message, a_volume):
    with pytest.raises(SaliencyExplainError, match=message):
        explain(as_model(Returning(function)), a_volume(1, 8, 8, 8), Target(output=1))


def test_a_classifier_behind_windows_is_refused(a_volume):
    model = as_model(
        Classifier(), task="classification", inferer=Windows((8, 8, 8), (0.5, 0.5, 0.5))
    )
    with pytest.raises(ModelError, match="which sliding windows cannot fuse"):
        explain(model, a_volume(1, 12, 8, 8), Target(output=1))


def test_a_network_that_fails_names_the_shape_that_it_was_given(a_volume):
    with pytest.raises(ModelError, match=r"failed on an input of shape \(1, 2, 8, 8, 8\)"):
        explain(as_model(BatchNormNet()), a_volume(2, 8, 8, 8), Target(output=1))


def test_too_little_memory_is_told_in_words(a_volume):
    def full(_x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutOfMemoryError, match="memory is not enough for a window of 8 x 8 x 8"):
        explain(as_model(Returning(full)), a_volume(1, 8, 8, 8), Target(output=1))


@pytest.mark.parametrize(
    "wrap", [lambda y: [y, y * 9], lambda y: (y, None), lambda y: {"out": y, "aux": y * 9}]
)
def test_the_first_of_several_outputs_is_explained(wrap, a_volume):
    image = a_volume(1, 8, 8, 8)
    plain = run_engine(as_model(LinearNet()), image, Target(output=1), lambda e: e.gradient())
    inner = LinearNet()
    network = Returning(lambda x: wrap(inner(x)))
    found = run_engine(as_model(network), image, Target(output=1), lambda e: e.gradient())
    assert torch.equal(found, plain)


def test_progress_says_that_all_is_done_only_at_the_end():
    told = []
    progress = Progress(lambda fraction, message: told.append((fraction, message)))
    progress.total = 2
    for message in ("one", "two", "three"):
        progress.step(message)
    progress.finish()
    assert told == [(0.5, "one"), (0.99, "two"), (0.99, "three"), (1.0, "done")]
