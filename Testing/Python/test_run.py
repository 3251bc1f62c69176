"""explain(): pure whatever happens, honest progress, and no picture without a meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet
from monai.transforms import Orientation
from references import cheap, for_method

import SaliencyExplainLib as sx
from SaliencyExplainLib.engine import Engine
from SaliencyExplainLib.errors import (
    Cancelled,
    ImageError,
    LayerNotFoundError,
    MethodError,
    ModelError,
    SaliencyExplainError,
    TargetError,
)
from SaliencyExplainLib.image import make_image

METHODS = sorted(sx.methods())
SHAPE = (12, 8, 8)
#: Two windows on SHAPE.
WINDOWS = SlidingWindowInferer((8, 8, 8), overlap=0.5, mode="gaussian")
TARGET = sx.Target(1, "everywhere")
SCORES = ["logit", "probability"]
INFERERS = {"whole": None, "windows": WINDOWS}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small volumes are faster without a second thread, many times so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def a_model(
    inferer: Any = None, network: torch.nn.Module | None = None, method: str = "gradient"
) -> sx.Model:
    """A small U-Net with batch norm (whose statistics would tell of a training mode)."""
    torch.manual_seed(0)
    network = network or UNet(3, 1, 3, (4, 8, 16), (2, 2), norm="batch")
    network = for_method(method, network)
    return sx.load_model(network, task="segmentation", inferer=inferer)


@pytest.fixture
def scan() -> MetaTensor:
    values = np.random.default_rng(0).normal(size=SHAPE)
    return make_image(values, np.diag([-1.0, 2, 3, 1]), "scan.nrrd")


class State:
    """Everything about a network and an image that a run must leave alone."""

    def __init__(self, model: sx.Model, image: MetaTensor) -> None:
        self.network, self.image = model.network, image
        for index, module in enumerate(model.network.modules()):
            module.training = index % 3 == 0
        for index, parameter in enumerate(model.network.parameters()):
            parameter.requires_grad_(index % 2 == 0)
        self.before = self._now()
        self.threads = torch.get_rng_state()

    def _now(self) -> dict[str, Any]:
        network = self.network
        return {
            "training": [module.training for module in network.modules()],
            "trainable": [one.requires_grad for one in network.parameters()],
            "gradients": [one.grad for one in network.parameters()],
            "hooks": [
                {key: len(value) for key, value in vars(module).items() if key.endswith("hooks")}
                for module in network.modules()
            ],
            "patched": [
                [key for key in vars(module) if key in ("forward", "__call__")]
                for module in network.modules()
            ],
            "types": [type(module) for module in network.modules()],
            "weights": {name: one.clone() for name, one in network.state_dict().items()},
            "voxels": self.image.as_tensor().clone(),
            "affine": self.image.affine.clone(),
            "operations": list(self.image.applied_operations),
            "grad mode": torch.is_grad_enabled(),
            "image grad": self.image.requires_grad,
        }

    def check(self) -> None:
        after = self._now()
        for key in self.before:
            if key == "weights":
                for name, value in self.before[key].items():
                    assert torch.equal(value, after[key][name]), name
            elif isinstance(self.before[key], torch.Tensor):
                assert torch.equal(self.before[key], after[key]), key
            else:
                assert self.before[key] == after[key], key


def all_hook_counts_zero(model: sx.Model) -> bool:
    return not any(
        value
        for module in model.network.modules()
        for key, value in vars(module).items()
        if key.endswith("hooks")
    )


# Purity


@pytest.mark.parametrize("inferer", INFERERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_no_trace(method, inferer, scan):
    model = a_model(INFERERS[inferer], method=method)
    state = State(model, scan)
    sx.explain(model, scan, TARGET, method, **cheap(method))
    state.check()
    assert all_hook_counts_zero(model)


@pytest.mark.parametrize("method", METHODS)
def test_a_wrong_target_leaves_no_trace(method, scan):
    model = a_model(WINDOWS)
    state = State(model, scan)
    with pytest.raises(TargetError, match="no output 7"):
        sx.explain(model, scan, sx.Target(7), method, **cheap(method))
    state.check()


class Failing(torch.nn.Module):
    """Identity that raises in its nth call."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after, self.calls = after, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls >= self.after:
            raise RuntimeError("tensor trouble")
        return x


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_raises_leaves_no_trace(method, after, scan, monkeypatch):
    model = a_model(WINDOWS)
    # Tracing the layers is no pass of the run; the failure comes in the passes.
    layers = model.layers(scan)
    monkeypatch.setattr(sx.Model, "layers", lambda self, *args, **kwargs: layers)
    # Eigen-CAM runs the whole network only once a window; its other passes end at the layer.
    after = min(after, 2) if method == "eigen_cam" else after
    model.network.model.add_module("failing", Failing(after))
    state = State(model, scan)
    message = r"network failed on an input of shape \(1, 1, 8, 8, 8\).*tensor trouble"
    with pytest.raises(ModelError, match=message):
        sx.explain(model, scan, TARGET, method, **cheap(method))
    state.check()
    assert all_hook_counts_zero(model)


@pytest.mark.parametrize("method", METHODS)
def test_cancelling_at_any_moment_leaves_no_trace(method, scan):
    model = a_model(WINDOWS, method=method)
    state = State(model, scan)
    asked = 0

    def count() -> bool:
        nonlocal asked
        asked += 1
        return False

    sx.explain(model, scan, TARGET, method, cancelled=count, **cheap(method))
    assert asked >= 2
    for moment in range(1, asked + 1):
        left = iter(range(moment))
        with pytest.raises(Cancelled, match="cancelled"):
            sx.explain(
                model,
                scan,
                TARGET,
                method,
                cancelled=lambda left=left, moment=moment: next(left) == moment - 1,
                **cheap(method),
            )
        state.check()


@pytest.mark.parametrize("method", METHODS)
def test_a_progress_callback_that_raises_leaves_no_trace(method, scan):
    model = a_model(WINDOWS)
    state = State(model, scan)

    def broken(fraction: float, message: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sx.explain(model, scan, TARGET, method, progress=broken, **cheap(method))
    state.check()


class InPlace(torch.nn.Module):
    """Centres its input in place, as networks that normalise by themselves do."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.nn.Conv3d(1, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x -= x.mean() + 1
        return self.last(x)


@pytest.mark.parametrize("method", ["gradient", "smooth_grad"])
def test_a_network_that_changes_its_input_does_not_change_the_scan(method, scan):
    model = a_model(network=InPlace())
    before = scan.as_tensor().clone()
    sx.explain(model, scan, TARGET, method, **cheap(method))
    assert torch.equal(scan.as_tensor(), before)


def test_random_numbers_of_the_caller_are_not_used_up(scan):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global state is what must not move
    expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    models = {method: a_model(method=method) for method in METHODS}
    torch.manual_seed(5)
    for method, model in models.items():
        sx.explain(model, scan, TARGET, method, **cheap(method))
    assert torch.equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.rand(3), expected[1])  # noqa: NPY002


@pytest.mark.parametrize("method", METHODS)
def test_the_same_parameters_give_the_same_map(method, scan):
    model = a_model(WINDOWS, method=method)
    first = sx.explain(model, scan, TARGET, method, **cheap(method))
    again = sx.explain(model, scan, TARGET, method, **first.parameters)
    assert torch.equal(first.maps.as_tensor(), again.maps.as_tensor())
    assert again.parameters == first.parameters


# Progress


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("inferer", INFERERS)
@pytest.mark.parametrize("method", METHODS)
def test_progress_never_goes_back_and_ends_at_one(method, inferer, score, scan):
    fractions: list[float] = []

    def note(fraction: float, message: str) -> None:
        assert message
        fractions.append(fraction)

    target = sx.Target(1, "everywhere", score)
    model = a_model(INFERERS[inferer], method=method)
    sx.explain(model, scan, target, method, progress=note, **cheap(method))
    assert fractions == sorted(fractions)
    assert fractions[0] > 0
    assert fractions[-1] == pytest.approx(1)
    if inferer == "whole":
        # One that is at its end before the run is lies as much as one that never gets there.
        assert fractions.count(fractions[-1]) == 1


# Results that show nothing


class Constant(torch.nn.Module):
    """Gives the same gradient everywhere, or none."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.last = torch.nn.Conv3d(1, 3, 1)
        self.last.weight.data[:] = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x)


def test_a_zero_map_is_warned_of(scan):
    made = sx.explain(a_model(network=Constant(0.0)), scan, TARGET, "gradient")
    assert any("zero everywhere" in warning for warning in made.warnings)


def test_a_constant_map_is_warned_of(scan):
    made = sx.explain(a_model(network=Constant(1.0)), scan, TARGET, "gradient")
    assert any(f"same value ({1 / 768:.4g}) everywhere" in warning for warning in made.warnings)


def test_a_map_with_structure_is_not_warned_of(scan):
    assert sx.explain(a_model(), scan, TARGET, "gradient").warnings == ()


class Spoiled(Constant):
    """Its output has a NaN, its gradient has none."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x) + torch.full_like(x, float("nan"))


class Rooted(Constant):
    """Its output is finite, its gradient is not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last((0 * x).sqrt())


@pytest.mark.parametrize("method", METHODS)
def test_an_output_that_is_not_finite_is_refused(method, scan):
    model = a_model(network=Spoiled(1.0))
    layer = {"layer": "last"} if sx.methods()[method].needs_layer else {}
    with pytest.raises(SaliencyExplainError, match=r"score nan|are NaN or infinite"):
        sx.explain(model, scan, TARGET, method, **layer, **cheap(method))


def test_a_map_that_is_not_finite_is_refused(scan):
    with pytest.raises(MethodError, match=r"Gradient gave \d+ values that are NaN or infinite"):
        sx.explain(a_model(network=Rooted(1.0)), scan, TARGET, "gradient")


def test_a_scan_that_is_not_finite_is_refused(scan):
    scan[0, 1, 2, 3] = np.nan
    with pytest.raises(ImageError, match="1 values that are NaN or infinite"):
        sx.explain(a_model(), scan, TARGET, "gradient")


def test_preprocessing_that_fails_is_refused(scan):
    def fail(image: MetaTensor) -> MetaTensor:
        raise ValueError("no head in here")

    model = sx.load_model(torch.nn.Identity(), task="regression", preprocess=fail)
    with pytest.raises(ImageError, match=r"preprocessing failed.*While running Gradient on scan"):
        sx.explain(model, scan, sx.Target(), "gradient")


# What is asked


def test_a_bare_array_is_refused():
    with pytest.raises(ImageError, match="MetaTensor"):
        sx.explain(a_model(), np.zeros(SHAPE), TARGET, "gradient")


def test_an_unknown_method_is_refused_with_the_nearest(scan):
    with pytest.raises(MethodError, match=r"no method 'gradcam'\. Did you mean 'grad_cam'"):
        sx.explain(a_model(), scan, TARGET, "gradcam")


def test_an_unknown_parameter_is_refused(scan):
    with pytest.raises(MethodError, match=r"no parameter 'stepps'\. Did you mean 'steps'"):
        sx.explain(a_model(), scan, TARGET, "integrated_gradients", stepps=3)


def test_a_method_that_was_made_takes_no_parameters(scan):
    made = sx.make_method("smooth_grad", {"samples": 2})
    with pytest.raises(MethodError, match=r"SmoothGrad was made already.*samples"):
        sx.explain(a_model(), scan, TARGET, made, samples=3)


def test_an_unknown_layer_is_refused_with_the_nearest(scan):
    with pytest.raises(LayerNotFoundError, match=r"no layer 'modle\.0'.*While running Grad-CAM"):
        sx.explain(a_model(), scan, TARGET, "grad_cam", layer="modle.0")


def test_without_a_target_the_foreground_is_explained(scan):
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 2, 3, padding=1)
    made = sx.explain(a_model(network=network), scan)
    assert (made.method, made.target["output"]) == ("gradient", 1)
    assert made.target["region"] == "prediction"


def test_a_network_on_another_grid_is_refused(scan):
    network = torch.nn.Conv3d(1, 3, 3)
    with pytest.raises(ModelError, match="gives 10 x 6 x 6 voxels for an input of 12 x 8 x 8"):
        sx.explain(a_model(network=network), scan, TARGET, "gradient")


def test_a_network_without_a_gradient_is_refused(scan):
    class Rounded(Constant):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(x).detach()

    with pytest.raises(ModelError, match="can be differentiated"):
        sx.explain(a_model(network=Rounded(1.0)), scan, TARGET, "gradient")


# What is given back


def test_the_facts_of_a_run_are_json_and_can_repeat_it(scan):
    model = a_model(WINDOWS)
    made = sx.explain(model, scan, TARGET, "integrated_gradients", steps=2)
    told = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert told["parameters"] == made.parameters
    assert told["image"]["name"] == "scan.nrrd"
    assert told["image"]["shape_cijk"] == [1, *SHAPE]
    np.testing.assert_allclose(told["image"]["ijk_to_ras"], scan.affine)
    assert told["model"]["class"] == "UNet"
    assert set(told["versions"]) >= {"python", "torch", "monai", "numpy", "SimpleITK"}
    assert told["seconds"] > 0
    again = sx.explain(model, scan, TARGET, told["method"], **told["parameters"])
    assert torch.equal(again.maps.as_tensor(), made.maps.as_tensor())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_facts_that_are_json(method, scan):
    made = sx.explain(a_model(method=method), scan, TARGET, method, **cheap(method))
    assert json.loads(json.dumps(made.to_dict(), allow_nan=False))["method"] == method
    assert made.maps.shape[1:] == scan.shape[1:]
    np.testing.assert_array_equal(made.maps.affine, scan.affine)
    assert made.maps.dtype == torch.float32


def test_a_run_is_saved_with_its_layer(scan, tmp_path):
    made = sx.explain(a_model(), scan, TARGET, "hires_cam")
    names = {file.name for file in made.save(tmp_path)}
    assert names == {"map.nrrd", "map_layer_grid.nrrd", "explanation.json"}
    assert {file.name for file in tmp_path.iterdir()} == names


def test_the_value_is_the_score_of_the_scan(scan):
    model = a_model(WINDOWS)
    with torch.no_grad():
        output = WINDOWS(scan.as_tensor()[None], model.network)
    made = sx.explain(model, scan, sx.Target(2, "everywhere"), "gradient")
    assert made.value == pytest.approx(float(output[0, 2].mean()), rel=1e-5)


def test_the_gradient_through_windows_is_that_of_the_fused_output(scan):
    model = a_model(WINDOWS)
    x = scan.as_tensor()[None].clone().requires_grad_()
    WINDOWS(x, model.network)[0, 2].mean().backward()
    made = sx.explain(model, scan, sx.Target(2, "everywhere"), "gradient")
    torch.testing.assert_close(made.maps.as_tensor(), x.grad[0], rtol=1e-4, atol=1e-9)


# The prediction


@pytest.mark.parametrize("inferer", list(INFERERS))
def test_the_prediction_is_the_largest_output_on_the_scans_grid(inferer, scan):
    model = a_model(INFERERS[inferer])
    found = sx.predict(model, scan)
    engine = Engine(model, scan, TARGET)
    with engine.running():
        expected = engine.output(engine.x)[0].argmax(0)
    assert torch.equal(found.as_tensor()[0], expected.float())
    assert torch.equal(found.affine, scan.affine)


def test_the_prediction_comes_back_from_another_grid(scan):
    model = sx.load_model(
        a_model().network, task="segmentation", preprocess=Orientation("LPI", labels=None)
    )
    found = sx.predict(model, scan)
    assert found.shape == scan.shape
    assert torch.equal(found.affine, scan.affine)
    prepared = model.prepare(scan)
    with torch.no_grad():
        labels = model.network(prepared.as_tensor()[None])[0].argmax(0, keepdim=True)
    back = model.preprocess.invert(labels.float(), prepared, scan)
    assert torch.equal(found.as_tensor(), back.as_tensor())


def test_overlapping_outputs_are_predicted_as_masks(scan):
    model = sx.load_model(a_model().network, task="segmentation", activation="sigmoid")
    found = sx.predict(model, scan)
    assert found.shape == (3, *scan.shape[1:])
    assert set(found.as_tensor().unique().tolist()) <= {0.0, 1.0}


def test_only_segmentation_networks_predict_a_label_map(scan):
    model = sx.load_model(a_model().network, task="regression")
    with pytest.raises(TargetError, match="Only a segmentation network"):
        sx.predict(model, scan)
