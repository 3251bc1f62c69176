"""Every method on the networks that people use, for all three tasks."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import DenseNet, DynUNet, SegResNet, SwinUNETR, UNet, ViT
from references import as_model, counted_runs, quick_parameters, state_of
from torch import nn

import SaliencyExplainLib as sx
from SaliencyExplainLib.engine import Engine, LayerChanges
from SaliencyExplainLib.errors import MethodError
from SaliencyExplainLib.methods import make_method
from SaliencyExplainLib.model import Model, Windows


class FirstOutput(nn.Module):
    """A ViT returns its hidden states as well."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)[0]


def segmenting(name: str) -> tuple[nn.Module, int]:
    """A small network and the side of an input that it takes."""
    torch.manual_seed(0)
    kernels, strides = [[3] * 3] * 3, [[1] * 3, [2] * 3, [2] * 3]
    made = {
        "UNet": lambda: (UNet(3, 1, 2, (4, 8, 8), (2, 2), num_res_units=1), 16),
        "UNet, batch norm": lambda: (UNet(3, 1, 2, (4, 8, 8), (2, 2), norm="batch"), 16),
        "SegResNet": lambda: (
            SegResNet(3, 4, 1, 2, norm="instance", blocks_down=(1, 1, 1), blocks_up=(1, 1)),
            16,
        ),
        "DynUNet": lambda: (
            DynUNet(3, 1, 2, kernels, strides, strides[1:], filters=(4, 8, 8)),
            16,
        ),
        "SwinUNETR": lambda: (
            SwinUNETR(
                1,
                2,
                feature_size=12,
                depths=(1,) * 4,
                num_heads=(1, 1, 2, 2),
                window_size=2,
                norm_name="batch",
            ),
            32,
        ),
    }
    return made[name]()


SEGMENTING = ["UNet", "UNet, batch norm", "SegResNet", "DynUNet", "SwinUNETR"]
ANSWERING = {
    "DenseNet, classification": "classification",
    "DenseNet, regression": "regression",
    "ViT, classification": "classification",
}
#: Those that need a network with attention.
ATTENTION = {"attention_rollout", "attention_rows"}


def answering(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name.startswith("ViT"):
        sizes = {"hidden_size": 8, "mlp_dim": 16, "num_layers": 2, "num_heads": 2}
        return FirstOutput(ViT(1, (16,) * 3, (8,) * 3, classification=True, num_classes=3, **sizes))
    outputs = 1 if name.endswith("regression") else 3
    return DenseNet(3, 1, outputs, init_features=4, growth_rate=4, block_config=(2, 2))


def check(model: Model, image, target: sx.Target, name: str) -> None:
    """The map is finite, on the image's grid, not empty, and the network is as it was."""
    method = make_method(name, quick_parameters(sx.methods()[name]))
    before = state_of(model.network)
    made = sx.explain(model, image, target, method)
    assert made.maps.shape[1:] == image.shape[1:]
    assert bool(torch.isfinite(made.maps).all())
    # A rectified map may be empty, which it then says.
    assert bool(made.maps.any()) or any("zero everywhere" in note for note in made.warnings)
    assert state_of(model.network) == before


@pytest.mark.parametrize("name", list(sx.methods()))
@pytest.mark.parametrize("architecture", SEGMENTING)
def test_every_method_explains_a_segmentation(a_volume, architecture, name):
    network, side = segmenting(architecture)
    model, image = as_model(network), a_volume(1, side, side, side)
    target = sx.Target(output=1, region="everywhere")
    if name in ATTENTION and architecture != "SwinUNETR":
        with pytest.raises(MethodError, match="no attention"):
            sx.explain(model, image, target, name)
        return
    check(model, image, target, name)


@pytest.mark.parametrize("name", list(sx.methods()))
@pytest.mark.parametrize("answer", ANSWERING)
def test_every_method_explains_a_classification_and_a_regression(a_volume, answer, name):
    task = ANSWERING[answer]
    model = as_model(answering(answer), task=task)
    image, target = a_volume(1, 16, 16, 16), sx.Target(output=0)
    if name in ATTENTION and not answer.startswith("ViT"):
        with pytest.raises(MethodError, match="no attention"):
            sx.explain(model, image, target, name)
        return
    check(model, image, target, name)


@pytest.mark.parametrize("score", ["logit", "probability"])
@pytest.mark.parametrize(
    "name",
    [
        one
        for one, cls in sx.methods().items()
        if cls.family == "layer" and "layer" in cls.__dataclass_fields__
    ],
)
def test_every_layer_method_explains_a_contrast_with_the_runner_up(a_volume, name, score):
    network, side = segmenting("UNet, batch norm")
    if name == "kernel_weighted_contribution":
        pytest.skip("it is made from the probability of one class")
    model, image = as_model(network), a_volume(1, side, side, side)
    parameters = quick_parameters(sx.methods()[name])
    maps = {}
    for weight in (0.0, 1.0):
        target = sx.Target(
            output=1, region="everywhere", score=score, contrast="runner_up", contrast_weight=weight
        )
        maps[weight] = sx.explain(model, image, target, make_method(name, parameters)).maps
    plain = sx.Target(output=1, region="everywhere", score=score)
    alone = sx.explain(model, image, plain, make_method(name, parameters)).maps
    torch.testing.assert_close(maps[0.0].as_tensor(), alone.as_tensor())
    changed = float((maps[1.0] - maps[0.0]).abs().max())
    # Eigen-CAM knows nothing of the target, and says so.
    assert (changed > 1e-6 * float(alone.abs().max())) == (name != "eigen_cam")


@pytest.mark.parametrize("architecture", [*SEGMENTING, "DenseNet, classification"])
def test_changes_of_a_layer_are_replayed_bit_for_bit(a_volume, architecture):
    if architecture in SEGMENTING:
        network, side = segmenting(architecture)
        model, target = as_model(network), sx.Target(output=1, region="everywhere")
    else:
        network, side = answering(architecture), 16
        model, target = as_model(network, task="classification"), sx.Target(output=1)
    image = a_volume(1, side, side, side)
    known = model.layers(shape=(1, side, side, side))
    layers = [one for one in known if one.leaf and one.calls == 1]
    chosen = layers[2 * len(layers) // 3].name
    engine = Engine(model, image, target)
    with engine.running():
        changes = LayerChanges(engine, chosen)
        (replayed,) = changes.values(lambda features, _: 0.5 * features, 1)
        module = network.get_submodule(chosen)
        hook = module.register_forward_hook(lambda _m, _i, output: 0.5 * output)
        whole = engine.value(engine.x)
        hook.remove()
    assert changes.exact
    assert replayed == whole


@pytest.mark.parametrize("architecture", ["UNet, batch norm", "SwinUNETR"])
@pytest.mark.parametrize(
    "name", ["gradient", "grad_cam", "lrp", "deep_lift", "smooth_attention_mask"]
)
def test_windows_that_do_not_reach_the_region_are_not_run(a_volume, architecture, name):
    network, side = segmenting(architecture)
    model = as_model(network, inferer=Windows((side,) * 3, (0.0,) * 3))
    image = a_volume(1, side, side, 3 * side)
    target = sx.Target(output=1, point_ras_mm=(2, 2, 2))
    method = make_method(name, quick_parameters(sx.methods()[name]))
    with counted_runs(network) as runs:
        made = sx.explain(model, image, target, method)
    assert sum(runs) <= 1 + (name == "smooth_attention_mask") * 3
    if name in ("gradient", "lrp", "deep_lift"):
        assert not bool(made.maps[..., 2 * side :].any())
