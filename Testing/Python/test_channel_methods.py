"""Ablation-CAM, Score-CAM, Eigen-CAM and KWC against brute force and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet
from torch import nn

import SaliencyExplainLib as sx
from SaliencyExplainLib.engine import Engine, LayerChanges

LAYER = "model.1.submodule.adn.A"
INFERER = SlidingWindowInferer((16, 16, 16), overlap=0.5, mode="gaussian")


@pytest.fixture
def a_network() -> UNet:
    torch.manual_seed(0)
    return UNet(3, 1, 3, (4, 6), (2,), num_res_units=0).eval()


@pytest.fixture
def an_image() -> MetaTensor:
    voxels = torch.randn(1, 24, 16, 16, generator=torch.Generator().manual_seed(1))
    return sx.make_image(voxels, np.eye(4))


class Changed:
    """The network with a layer's channels multiplied by a mask: brute force."""

    def __init__(self, network: nn.Module, mask: torch.Tensor) -> None:
        self.network, self.mask = network, mask

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.network.get_submodule(LAYER)
        hook = layer.register_forward_hook(lambda _m, _i, out: out * self.mask)
        try:
            return self.network(x)
        finally:
            hook.remove()


def masks(count: int, only: bool) -> list[torch.Tensor]:
    eye = torch.eye(count)[:, None, :, None, None, None]
    return list(eye if only else 1 - eye)


def features_of(network: nn.Module, x: torch.Tensor) -> np.ndarray:
    kept = []
    hook = network.get_submodule(LAYER).register_forward_hook(lambda _m, _i, o: kept.append(o))
    with torch.no_grad():
        network(x)
    hook.remove()
    return kept[0][0].numpy()


@pytest.mark.parametrize("inferer", [None, INFERER], ids=["whole", "windows"])
@pytest.mark.parametrize("score", ["logit", "probability"])
@torch.no_grad()
def test_scores_without_a_channel_equal_brute_force_through_the_inferer(
    a_network: UNet, an_image: MetaTensor, inferer: object, score: str
) -> None:
    model = sx.load_model(a_network, task="segmentation", inferer=inferer)
    engine = Engine(model, an_image, sx.Target(output=1, score=score))
    with engine.running():
        frozen = engine.frozen
        changes = LayerChanges(engine, LAYER)
        found = changes.values(lambda f, k: f * masks(6, only=False)[k], 6)
        run = inferer or (lambda x, network: network(x))
        expected = [
            float(frozen.value(run(engine.x, Changed(a_network, mask))))
            for mask in masks(6, only=False)
        ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert changes.exact


def test_ablation_cam_is_its_equation(a_network: UNet, an_image: MetaTensor) -> None:
    model = sx.load_model(a_network, task="segmentation")
    target = sx.Target(output=1, region="everywhere")
    found = sx.explain(model, an_image, target, "ablation_cam", layer=LAYER)
    x = an_image.as_tensor()[None]
    with torch.no_grad():
        start = a_network(x)[0, 1].mean()
        drops = [float(start - Changed(a_network, m)(x)[0, 1].mean()) for m in masks(6, only=False)]
    expected = np.maximum(np.einsum("k,kijl->ijl", drops, features_of(a_network, x)), 0)
    assert found.layer_map is not None
    np.testing.assert_allclose(found.layer_map.numpy()[0], expected, rtol=1e-3, atol=1e-6)


def test_kernel_weighted_contribution_is_its_equation(
    a_network: UNet, an_image: MetaTensor
) -> None:
    model = sx.load_model(a_network, task="segmentation")
    target = sx.Target(output=1, region="everywhere")
    found = sx.explain(model, an_image, target, "kernel_weighted_contribution", layer=LAYER)
    x = an_image.as_tensor()[None]
    with torch.no_grad():
        p = a_network(x).softmax(1)[0, 1].double().numpy()
        without = [
            Changed(a_network, m)(x).softmax(1)[0, 1].double().numpy() for m in masks(6, False)
        ]
        alone = [Changed(a_network, m)(x).softmax(1)[0, 1].double().numpy() for m in masks(6, True)]
    lost = np.array([(p - np.minimum(q, p)).sum() for q in without])
    kept = np.array([np.minimum(q, p).sum() for q in alone])
    assert (lost >= 0).all()
    assert (lost <= p.sum()).all()
    assert (kept >= 0).all()
    assert (kept <= p.sum()).all()
    features = np.abs(features_of(a_network, x))
    expected = np.einsum("k,kijl->ijl", lost * kept / p.sum(), features) / features.max()
    assert found.layer_map is not None
    np.testing.assert_allclose(found.layer_map.numpy()[0], expected, rtol=1e-3)


def test_several_layers_are_added(a_network: UNet, an_image: MetaTensor) -> None:
    model = sx.load_model(a_network, task="segmentation")
    names = [LAYER, "model.0.adn.A"]
    target = sx.Target(output=1, region="everywhere")
    alone = [
        sx.explain(model, an_image, target, "kernel_weighted_contribution", layer=name)
        for name in names
    ]
    both = sx.explain(
        model, an_image, target, "kernel_weighted_contribution", layer=", ".join(names)
    )
    expected = alone[0].maps.as_tensor() + alone[1].maps.as_tensor()
    torch.testing.assert_close(both.maps.as_tensor(), expected)
    assert both.layers == tuple(names)


def test_eigen_cam_is_the_first_principal_component(a_network: UNet, an_image: MetaTensor) -> None:
    model = sx.load_model(a_network, task="segmentation")
    found = sx.explain(model, an_image, sx.Target(output=1), "eigen_cam", layer=LAYER)
    features = features_of(a_network, an_image.as_tensor()[None]).astype(float)
    flat = features.reshape(len(features), -1).T
    centred = flat - flat.mean(0)
    projected = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    projected *= 1 if projected.max() > -projected.min() else -1
    expected = np.maximum(projected, 0).reshape(features.shape[1:])
    assert found.layer_map is not None
    np.testing.assert_allclose(found.layer_map.numpy()[0], expected, atol=1e-4)


def test_eigen_cam_is_the_same_for_every_output(a_network: UNet, an_image: MetaTensor) -> None:
    model = sx.load_model(a_network, task="segmentation", inferer=INFERER)
    maps = [
        sx.explain(model, an_image, sx.Target(output=one, region="everywhere"), "eigen_cam").maps
        for one in (0, 1)
    ]
    assert torch.equal(maps[0].as_tensor(), maps[1].as_tensor())


def test_score_cam_is_its_equation(a_network: UNet, an_image: MetaTensor) -> None:
    model = sx.load_model(a_network, task="segmentation")
    target = sx.Target(output=1, region="everywhere")
    found = sx.explain(model, an_image, target, "score_cam", layer=LAYER, baseline="zero")
    x = an_image.as_tensor()[None]
    features = torch.from_numpy(features_of(a_network, x))
    scores = []
    for channel in features:
        # Stride 2 and padding 1: feature voxel i sits at input voxel 2 i.
        line = [
            torch.arange(n).clamp(max=2 * (m - 1)) / 2
            for n, m in zip(x.shape[2:], channel.shape, strict=True)
        ]
        grid = torch.stack(torch.meshgrid(*line, indexing="ij"), -1)
        size = torch.tensor([side - 1 for side in channel.shape])
        mask = nn.functional.grid_sample(
            channel[None, None], (2 * grid / size - 1).flip(-1)[None], align_corners=True
        )
        mask = (mask - mask.min()) / (mask.max() - mask.min())
        with torch.no_grad():
            scores.append(float(a_network(x * mask)[0, 1].mean()))
    weights = np.exp(scores) / np.exp(scores).sum()
    expected = np.maximum(np.einsum("k,kijl->ijl", weights, features.numpy()), 0)
    assert found.layer_map is not None
    np.testing.assert_allclose(found.layer_map.numpy()[0], expected, rtol=1e-3, atol=1e-5)


def test_a_target_without_probability_is_refused(an_image: MetaTensor) -> None:
    class Never(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv3d(1, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = self.features(x)
            return torch.cat([found[:, :1] * 0 + 1e4, found[:, 1:2] * 0 - 1e4], 1)

    model = sx.load_model(Never(), task="segmentation")
    target = sx.Target(output=1, region="everywhere")
    with pytest.raises(sx.errors.MethodError, match="probability is zero"):
        sx.explain(model, an_image, target, "kernel_weighted_contribution", layer="features")


def test_seg_xres_cam_is_hires_cam_and_grad_cam_at_its_limits(
    a_network: UNet, an_image: MetaTensor
) -> None:
    model = sx.load_model(a_network, task="segmentation")
    target = sx.Target(output=1, region="everywhere")

    def layer_map(name: str, **parameters: object) -> np.ndarray:
        found = sx.explain(model, an_image, target, name, layer=LAYER, **parameters)
        assert found.layer_map is not None
        return found.layer_map.numpy()

    # A block of one position is the clipped HiResCAM; a block of everything is Grad-CAM.
    np.testing.assert_allclose(
        layer_map("seg_xres_cam", block=1), np.maximum(layer_map("hires_cam"), 0), atol=1e-9
    )
    np.testing.assert_allclose(
        layer_map("seg_xres_cam", block=64), layer_map("grad_cam"), rtol=1e-3, atol=1e-10
    )


def test_guided_grad_cam_is_the_product(a_network: UNet, an_image: MetaTensor) -> None:
    model = sx.load_model(a_network, task="segmentation")
    target = sx.Target(output=1)
    product = sx.explain(model, an_image, target, "guided_grad_cam").network_maps.as_tensor()
    guided = sx.explain(model, an_image, target, "guided_backprop").network_maps.as_tensor()
    coarse = sx.explain(model, an_image, target, "grad_cam").network_maps.as_tensor()
    torch.testing.assert_close(product, guided * coarse)


def test_xgrad_cam_is_its_equation(a_network: UNet, an_image: MetaTensor) -> None:
    model = sx.load_model(a_network, task="segmentation")
    target = sx.Target(output=1, region="everywhere")
    found = sx.explain(model, an_image, target, "xgrad_cam", layer=LAYER)
    kept: list[torch.Tensor] = []
    hook = a_network.get_submodule(LAYER).register_forward_hook(lambda _m, _i, o: kept.append(o))
    score = a_network(an_image.as_tensor()[None])[0, 1].mean()
    hook.remove()
    slope = torch.autograd.grad(score, kept[0])[0][0].numpy()
    features = kept[0][0].detach().numpy()
    weights = (slope * features).sum((1, 2, 3)) / features.sum((1, 2, 3))
    expected = np.maximum(np.einsum("k,kijl->ijl", weights, features), 0)
    assert found.layer_map is not None
    assert expected.max() > 0
    np.testing.assert_allclose(
        found.layer_map.numpy()[0], expected, rtol=1e-3, atol=1e-4 * expected.max()
    )


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_magnitude_of_eigen_cam_is_shown_whatever_its_sign(sign: float) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 3, 1, bias=False), nn.Conv3d(3, 2, 1))
    network[0].weight.data *= sign
    voxels = torch.zeros(1, 8, 8, 8)
    voxels[0, 2, 5, 3] = 10
    model = sx.load_model(network, task="segmentation")
    target = sx.Target(output=1, region="everywhere")
    found = sx.explain(model, sx.make_image(voxels, np.eye(4)), target, "eigen_cam", layer="0")
    peak = np.unravel_index(int(found.maps.as_tensor()[0].argmax()), (8, 8, 8))
    assert peak == (2, 5, 3)


@pytest.mark.parametrize(
    "name",
    sorted(
        name
        for name, one in sx.methods().items()
        if one.family == "layer" and name not in ("grad_cam_plus_plus", "seg_xres_cam")
    ),
)
def test_windows_change_nothing_for_a_network_that_looks_at_single_voxels(
    name: str, an_image: MetaTensor
) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv3d(1, 5, 1), nn.ReLU(), nn.Conv3d(5, 3, 1))
    target = sx.Target(output=1, region="everywhere")
    parameters = {"baseline": "zero"} if name == "score_cam" else {}
    whole, windows = (
        sx.explain(
            sx.load_model(network, task="segmentation", inferer=inferer),
            an_image,
            target,
            name,
            layer="1",
            **parameters,
        ).maps.as_tensor()
        for inferer in (None, INFERER)
    )
    assert whole.any()
    torch.testing.assert_close(windows, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))
