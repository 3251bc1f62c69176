"""Class activation maps: equations, peers, sliding windows, layers, and the place of the map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from captum.attr import LayerGradCam, LayerGradientXActivation
from monai.networks.nets import DenseNet121, HighResNet, SegResNet, UNet
from monai.visualize import GradCAM as MonaiGradCAM
from references import (
    BatchNormNet,
    Classifier,
    ScalarOf,
    StridedNet,
    as_model,
    features_and_gradients,
    fused,
    grad_cam_map,
    grad_cam_plus_plus_map,
    hires_cam_map,
    layer_cam_map,
    run_engine,
    score,
    windowed_cam,
)
from torch import nn

from SaliencyExplainLib.errors import LayerNotFoundError, MethodError, ModelError
from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.methods import make_method
from SaliencyExplainLib.methods.layer import default_layer
from SaliencyExplainLib.model import Grid, LayerInfo, Model, Windows, trace_layers
from SaliencyExplainLib.run import explain
from SaliencyExplainLib.target import Target

CAMS = ["grad_cam", "grad_cam_plus_plus", "hires_cam", "layer_cam"]
EQUATIONS = {
    "grad_cam": grad_cam_map,
    "grad_cam_plus_plus": grad_cam_plus_plus_map,
    "hires_cam": hires_cam_map,
    "layer_cam": layer_cam_map,
}
EVERYWHERE = Target(output=1, region="everywhere")


def scalar(output: torch.Tensor) -> torch.Tensor:
    return score(output, 1, torch.ones(output.shape[2:]))


def cam(network: nn.Module, image, name: str, layer: str, target: Target = EVERYWHERE, **options):
    model = as_model(network, **options)
    return run_engine(model, image, target, make_method(name, {"layer": layer}).attribute)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.fixture
def strided():
    """A network with a layer on a grid of twice the spacing (``act``)."""
    return StridedNet().eval()


# ------------------------------------------------------------------------------------------------
# Equations


@pytest.mark.parametrize("layer", ["down", "act", "mix", "act2"])
@pytest.mark.parametrize("name", CAMS)
def test_the_map_on_the_layers_grid_is_its_equation(strided, a_volume, name, layer):
    image = a_volume(1, 12, 8, 10)
    a, g = features_and_gradients(strided, layer, image.as_tensor()[None], scalar)
    wanted = EQUATIONS[name](a, g)
    found = cam(strided, image, name, layer).layer_map[0].numpy()
    assert np.abs(wanted).max() > 0
    assert found == pytest.approx(wanted, abs=1e-5 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("name", CAMS)
def test_a_nonlinear_score_is_pulled_back_to_the_layer_too(strided, a_volume, name):
    image = a_volume(1, 8, 8, 8)

    def probability(output: torch.Tensor) -> torch.Tensor:
        return score(output, 1, torch.ones(8, 8, 8), kind="probability")

    a, g = features_and_gradients(strided, "act", image.as_tensor()[None], probability)
    wanted = EQUATIONS[name](a, g)
    target = Target(output=1, region="everywhere", score="probability")
    found = cam(strided, image, name, "act", target).layer_map[0].numpy()
    assert found == pytest.approx(wanted, abs=1e-5 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("name", CAMS)
def test_a_gradient_of_zero_gives_a_map_of_zero_and_no_nan(a_volume, name):
    class Deaf(StridedNet):
        def forward(self, x):
            return super().forward(x) * 0 + x.mean(1, keepdim=True).expand(-1, 2, -1, -1, -1)

    found = cam(Deaf(), a_volume(1, 8, 8, 8), name, "act")
    assert not found.maps.any()


def test_in_place_activations_behind_the_layer_do_not_overwrite_what_was_recorded(a_volume):
    network = BatchNormNet(act=lambda: nn.ReLU(inplace=True)).eval()
    image = a_volume(1, 8, 8, 8)
    separate = BatchNormNet(act=nn.ReLU).eval()
    a, g = features_and_gradients(separate, "body.1", image.as_tensor()[None], scalar)
    found = cam(network, image, "hires_cam", "body.1").layer_map[0].numpy()
    assert (a < 0).any()
    assert found == pytest.approx(hires_cam_map(a, g), abs=1e-7)


def test_hires_cam_before_a_linear_head_sums_to_the_score(strided, a_volume):
    # What HiResCAM is faithful to: the features of the last layer times the head's weights.
    nn.init.zeros_(strided.head.bias)
    image = a_volume(1, 8, 8, 8)
    explanation = explain(as_model(strided), image, EVERYWHERE, "hires_cam", layer="act2")
    assert float(explanation.layer_map.sum()) == pytest.approx(explanation.value, rel=1e-4)


# ------------------------------------------------------------------------------------------------
# Peers, at the layer's grid


@pytest.fixture(scope="module")
def densenet():
    torch.manual_seed(0)
    return DenseNet121(3, 1, 3).eval()


@pytest.mark.parametrize("layer", ["features.transition2.conv", "features.denseblock2"])
def test_grad_cam_is_captums_layer_grad_cam(densenet, a_volume, layer):
    image = a_volume(1, 32, 32, 32)
    peer = LayerGradCam(densenet, densenet.get_submodule(layer))
    wanted = peer.attribute(image.as_tensor()[None], target=1, relu_attributions=True)[0].detach()
    found = cam(densenet, image, "grad_cam", layer, Target(output=1), task="classification")
    assert relative(found.layer_map, wanted) < 1e-5


def test_grad_cam_is_monais_without_its_inverting_postprocessing(densenet, a_volume):
    image, layer = a_volume(1, 32, 32, 32), "features.transition2.conv"
    peer = MonaiGradCAM(
        densenet, layer, upsampler=lambda _size: lambda x: x, postprocessing=lambda x: x
    )
    wanted = torch.as_tensor(peer(image.as_tensor()[None].clone(), class_idx=2)[0]).detach()
    found = cam(densenet, image, "grad_cam", layer, Target(output=2), task="classification")
    assert relative(found.layer_map, wanted) < 1e-5


@pytest.mark.parametrize("layer", ["down", "act", "act2"])
def test_grad_cam_of_a_segmentation_is_captums(strided, a_volume, layer):
    image = a_volume(1, 8, 8, 8)
    peer = LayerGradCam(ScalarOf(strided, scalar), strided.get_submodule(layer))
    wanted = peer.attribute(image.as_tensor()[None], relu_attributions=True)[0].detach()
    assert relative(cam(strided, image, "grad_cam", layer).layer_map, wanted) < 1e-5


@pytest.mark.parametrize("layer", ["down", "act", "act2"])
def test_hires_cam_is_captums_gradient_times_activation_summed(strided, a_volume, layer):
    image = a_volume(1, 8, 8, 8)
    peer = LayerGradientXActivation(ScalarOf(strided, scalar), strided.get_submodule(layer))
    wanted = peer.attribute(image.as_tensor()[None])[0].detach().sum(0, keepdim=True)
    assert relative(cam(strided, image, "hires_cam", layer).layer_map, wanted) < 1e-5


# ------------------------------------------------------------------------------------------------
# Sliding windows


@pytest.mark.parametrize("name", CAMS)
def test_one_window_gives_the_map_of_the_whole_volume(strided, a_volume, name):
    image = a_volume(1, 8, 8, 8)
    whole = cam(strided, image, name, "act")
    window = cam(strided, image, name, "act", inferer=Windows((8, 8, 8), mode="gaussian"))
    torch.testing.assert_close(window.maps, whole.maps)
    torch.testing.assert_close(window.layer_map, whole.layer_map)


@pytest.mark.parametrize("layer", ["act", "act2"])
@pytest.mark.parametrize("name", CAMS)
def test_two_windows_that_share_their_half_are_fused_as_defined(strided, a_volume, name, layer):
    image = a_volume(1, 12, 8, 8)
    model = as_model(strided, inferer=Windows((8, 8, 8), (0.5,) * 3))
    placing = {"act": (0.0, 2.0), "act2": (-0.5, 1.0)}[layer]
    wanted = windowed_cam(model, image, layer, placing, scalar, name)
    found = cam(strided, image, name, layer, inferer=model.inferer).maps[0].numpy()
    assert np.abs(wanted).max() > 0
    assert found == pytest.approx(wanted, abs=2e-5 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("name", CAMS)
def test_eight_windows_and_a_region_in_a_corner_are_fused_as_defined(strided, a_volume, name):
    image = a_volume(1, 12, 12, 12)
    model = as_model(strided, inferer=Windows((8, 8, 8), (0.5,) * 3))
    mask = torch.zeros(12, 12, 12)
    mask[1:4, 7:10, 2:5] = 1
    target = Target(output=1, region="roi", roi_ras_mm=((1, 7, 2), (3, 9, 4)))

    def corner(output: torch.Tensor) -> torch.Tensor:
        return score(output, 1, mask)

    wanted = windowed_cam(model, image, "act", (0.0, 2.0), corner, name)
    found = cam(strided, image, name, "act", target, inferer=model.inferer).maps[0].numpy()
    assert found == pytest.approx(wanted, abs=2e-5 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_features_times_gradients_of_all_windows_sum_to_the_whole_pull_back(
    strided, a_volume, mode
):
    # With a linear head behind the layer and no bias, that sum is the fused score itself.
    nn.init.zeros_(strided.head.bias)
    image = a_volume(1, 12, 12, 8)
    windows = Windows((8, 8, 8), (0.5,) * 3, mode)

    def products(engine) -> float:
        passes = [found["act2"] for found in engine.layer_passes(("act2",))]
        assert len(passes) == 4
        return sum(float((one.features * one.gradient).sum()) for one in passes)

    model = as_model(strided, inferer=windows)
    with torch.no_grad():
        wanted = float(scalar(fused(model, image.as_tensor()[None])))
    assert run_engine(model, image, EVERYWHERE, products) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", CAMS)
def test_a_padded_volume_gets_a_map_of_its_own_size_in_its_own_place(strided, a_volume, name):
    image = a_volume(1, 6, 8, 7)
    windows = Windows((8, 8, 8), padding_mode="constant")
    padded = make_image(F.pad(image.as_tensor(), (0, 1, 0, 0, 1, 1)), np.eye(4))
    target = Target(output=1, region="roi", roi_ras_mm=((0, 0, 0), (5, 7, 6)))
    shifted = Target(output=1, region="roi", roi_ras_mm=((1, 0, 0), (6, 7, 6)))
    whole = cam(strided, padded, name, "act", shifted).maps[:, 1:7, :, :7]
    found = cam(strided, image, name, "act", target, inferer=windows)
    torch.testing.assert_close(found.maps, whole)
    assert found.layer_grid.origin == (-1.0, 0.0, 0.0)


# ------------------------------------------------------------------------------------------------
# Instance norm


@pytest.fixture
def instance_norm_network():
    torch.manual_seed(0)
    return UNet(3, 1, 2, (4, 8, 16), (2, 2), num_res_units=1).eval()


def test_grad_cam_at_a_convolution_that_feeds_an_instance_norm_is_rounding_and_says_so(
    instance_norm_network, a_volume
):
    image, layer = a_volume(1, 16, 16, 16), "model.0.conv.unit0.conv"
    found = cam(instance_norm_network, image, "grad_cam", layer)
    assert len(found.warnings) == 1
    assert "this map is rounding noise" in found.warnings[0]
    assert "HiResCAM" in found.warnings[0]
    _, g = features_and_gradients(instance_norm_network, layer, image.as_tensor()[None], scalar)
    assert np.abs(g.mean((1, 2, 3))).max() < 1e-5 * np.abs(g).max()


def test_such_a_map_in_single_precision_is_not_that_in_double_precision(
    instance_norm_network, a_volume
):
    x, layer = a_volume(1, 16, 16, 16).as_tensor()[None], "model.0.conv.unit0.conv"
    maps = []
    for precision in (torch.float32, torch.float64):
        network = instance_norm_network.to(precision)
        a, g = features_and_gradients(network, layer, x.to(precision), scalar)
        maps.append(grad_cam_map(a, g))
    # Zero in theory: what is left shrinks with the precision (here 1e-11 and 3e-20).
    assert 0 < np.abs(maps[1]).max() < 1e-6 * np.abs(maps[0]).max()


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("grad_cam", "model.0.conv.unit0.adn.A"),
        ("hires_cam", "model.0.conv.unit0.conv"),
        ("layer_cam", "model.0.conv.unit0.conv"),
    ],
)
def test_the_activation_behind_it_and_elementwise_maps_need_no_warning(
    instance_norm_network, a_volume, name, layer
):
    assert cam(instance_norm_network, a_volume(1, 16, 16, 16), name, layer).warnings == ()


def test_grad_cam_through_windows_warns_at_such_a_layer_too(instance_norm_network, a_volume):
    windows = Windows((16, 16, 16), (0.5,) * 3)
    layer = "model.0.conv.unit0.conv"
    # One window whole inside the region: its gradient is constant, so the norm kills its mean.
    found = cam(instance_norm_network, a_volume(1, 24, 16, 16), "grad_cam", layer, inferer=windows)
    assert any("this map is rounding noise" in warning for warning in found.warnings)


# ------------------------------------------------------------------------------------------------
# Which layer


def default_of(network: nn.Module, task: str = "segmentation", shape=(1, 32, 32, 32)) -> LayerInfo:
    return default_layer(trace_layers(network, shape), task)


DEFAULTS = {
    "UNet": (
        lambda: UNet(3, 1, 2, (4, 8, 16), (2, 2), num_res_units=2),
        "segmentation",
        "model.1.submodule.2.1.conv.unit0.adn.A",
    ),
    "SegResNet": (lambda: SegResNet(3, 8, 1, 2), "segmentation", "up_layers.1.0.act"),
    "no coarse layer": (BatchNormNet, "segmentation", "body.5"),
    "its own output is no layer": (
        lambda: HighResNet(3, 1, 2),
        "segmentation",
        "blocks.10.adn.A",
    ),
    "classifier": (Classifier, "classification", "features.3"),
    "plain Sequential": (
        lambda: nn.Sequential(nn.Conv3d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv3d(4, 4, 3)),
        "segmentation",
        "1",
    ),
    "no activation": (
        lambda: nn.Sequential(nn.Conv3d(1, 4, 3, 1, 1), nn.Conv3d(4, 2, 1)),
        "segmentation",
        "0",
    ),
    "regression": (Classifier, "regression", "features.3"),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_layer_that_is_chosen_when_none_is_named(name):
    make, task, wanted = DEFAULTS[name]
    assert default_of(make(), task).name == wanted


def test_densenet121_is_looked_at_where_its_last_features_still_have_voxels(densenet):
    assert default_of(densenet, "classification", (1, 64, 64, 64)).name == "class_layers.relu"
    assert default_of(densenet, "classification").name == "features.transition3.relu"


def test_a_layer_that_feeds_an_instance_norm_is_not_chosen():
    class Functional(nn.Module):
        """Two convolutions, norm and activation behind them written as functions."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 4, 3, padding=1)
            self.head = nn.Conv3d(4, 2, 1)

        def forward(self, x):
            return self.head(F.relu(F.instance_norm(self.two(self.one(x)))))

    assert default_of(Functional()).name == "one"


def test_a_network_without_features_that_have_voxels_is_refused():
    with pytest.raises(MethodError, match="no layer whose features have voxels"):
        default_of(nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten()), "classification")


def test_the_layer_that_was_used_is_told(strided, a_volume):
    explanation = explain(as_model(strided), a_volume(1, 8, 8, 8), EVERYWHERE, "grad_cam")
    assert explanation.layers == ("act",)


@pytest.mark.parametrize("name", CAMS)
def test_an_unknown_layer_is_refused_with_the_nearest_names(strided, a_volume, name):
    with pytest.raises(LayerNotFoundError, match=r"no layer 'actt'\. Nearest: act"):
        explain(as_model(strided), a_volume(1, 8, 8, 8), EVERYWHERE, name, layer="actt")


def test_a_layer_without_voxels_is_refused(a_volume):
    model = as_model(Classifier(), task="classification")
    with pytest.raises(MethodError, match=r"'head' does not run on this image, or does not"):
        explain(model, a_volume(1, 8, 8, 8), Target(output=1), "grad_cam", layer="head")


def test_a_torchscript_network_is_refused_before_it_is_run(strided, a_volume):
    network = torch.jit.script(strided)
    with pytest.raises(MethodError, match="TorchScript network does not allow"):
        explain(Model(network, "segmentation"), a_volume(1, 8, 8, 8), EVERYWHERE, "grad_cam")


def test_the_layers_of_a_torchscript_network_are_refused(strided):
    with pytest.raises(ModelError, match="cannot be looked into"):
        Model(torch.jit.script(strided), "segmentation").layers(shape=(1, 8, 8, 8))


def test_a_layer_that_runs_several_times_is_used_at_its_last_call_and_says_so(a_volume):
    class Twice(StridedNet):
        def forward(self, x):
            return self.head(
                self.act2(self.mix(self.act2(self.mix(self.up(self.act(self.down(x)))))))
            )

    image = a_volume(1, 8, 8, 8)
    network = Twice().eval()
    found = cam(network, image, "hires_cam", "act2")
    assert any("runs 2 times" in warning for warning in found.warnings)
    a, g = features_and_gradients(network, "act2", image.as_tensor()[None], scalar)
    assert found.layer_map[0].numpy() == pytest.approx(hires_cam_map(a, g), abs=1e-7)


def test_a_layer_that_could_not_be_followed_is_used_with_a_warning(a_volume):
    class Shuffled(nn.Module):
        """Voxels go through a matrix: nobody can say where they went."""

        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv3d(1, 4, 2, stride=2)
            self.act = nn.ReLU()
            self.head = nn.Conv3d(4, 2, 1)

        def forward(self, x):
            y = self.down(x).flatten(2).transpose(1, 2).transpose(1, 2).reshape(1, 4, 4, 4, 4)
            return self.head(F.interpolate(self.act(y), scale_factor=2.0))

    found = cam(Shuffled(), a_volume(1, 8, 8, 8), "layer_cam", "act")
    assert any("could not be followed" in warning for warning in found.warnings)
    assert found.layer_grid.origin == (0.5, 0.5, 0.5)


# ------------------------------------------------------------------------------------------------
# The place of the map


class Blobs(nn.Module):
    """Three strides of 2 that only pick voxels: the bottleneck holds every eighth voxel."""

    def __init__(self) -> None:
        super().__init__()
        self.downs = nn.Sequential(*[nn.Conv3d(1, 1, 3, 2, 1, bias=False) for _ in range(3)])
        self.bottleneck = nn.ReLU()
        for conv in self.downs:
            nn.init.zeros_(conv.weight)
            conv.weight.data[0, 0, 1, 1, 1] = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.interpolate(self.bottleneck(self.downs(x)), scale_factor=8.0)
        return torch.cat([-y, y], 1)


CENTRE = np.array([24.0, 32.0, 40.0])


@pytest.fixture
def blob():
    """A Gaussian ball of 12 voxels' width in a 64^3 volume, its middle known, 1.5 mm voxels."""
    i, j, k = np.indices((64, 64, 64))
    distance = (i - CENTRE[0]) ** 2 + (j - CENTRE[1]) ** 2 + (k - CENTRE[2]) ** 2
    affine = np.diag([-1.5, 1.5, 1.5, 1.0])
    affine[:3, 3] = 90, -60, 10
    return make_image(np.exp(-distance / 72)[None].astype(np.float32), affine)


def middle(map_: np.ndarray) -> np.ndarray:
    return np.array([(index * map_).sum() / map_.sum() for index in np.indices(map_.shape)])


@pytest.mark.parametrize("name", CAMS)
def test_the_map_of_a_bottleneck_stands_on_the_blob_that_it_saw(blob, name):
    found = cam(Blobs(), blob, name, "bottleneck")
    assert middle(found.maps[0].numpy()) == pytest.approx(CENTRE, abs=0.2)


def test_resizing_the_map_as_peers_do_puts_it_three_and_a_half_voxels_away(blob):
    layer_map = cam(Blobs(), blob, "layer_cam", "bottleneck").layer_map
    resized = F.interpolate(layer_map[None], (64, 64, 64), mode="trilinear", align_corners=False)
    off = middle(resized[0, 0].numpy()) - CENTRE
    assert off == pytest.approx([3.5, 3.5, 3.5], abs=0.2)


def test_the_layer_map_lies_at_the_blob_in_ras(blob):
    explanation = explain(as_model(Blobs()), blob, EVERYWHERE, "layer_cam", layer="bottleneck")
    layer_map = explanation.layer_map
    assert layer_map.shape == (1, 8, 8, 8)
    found = layer_map.affine.numpy() @ np.append(middle(layer_map[0].numpy()), 1)
    assert found[:3] == pytest.approx((blob.affine.numpy() @ np.append(CENTRE, 1))[:3], abs=0.3)


@pytest.mark.parametrize("name", CAMS)
def test_the_map_stands_on_the_blob_through_windows_too(blob, name):
    windows = Windows((32, 32, 32), (0.5,) * 3)
    found = cam(Blobs(), blob, name, "bottleneck", inferer=windows)
    # A window's last layer voxel lies 7 voxels before its edge; what is continued over that gap
    # draws the middle by about 1 voxel.
    assert middle(found.maps[0].numpy()) == pytest.approx(CENTRE, abs=1.5)


def test_the_grid_of_the_bottleneck_is_every_eighth_voxel():
    layers = {one.name: one for one in trace_layers(Blobs(), (1, 64, 64, 64))}
    assert layers["bottleneck"].grid == Grid((0.0, 0.0, 0.0), (8.0, 8.0, 8.0))
