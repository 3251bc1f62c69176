"""A mask on a layer: its score and gradient against brute force, and which layers carry all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from monai.data import MetaTensor
from monai.networks.nets import DenseNet121, SegResNet, UNet
from references import Classifier, StridedNet, as_model, counted_runs, fused, score
from scipy.ndimage import gaussian_filter
from torch import nn

from SaliencyExplainLib.engine import Engine, MaskedLayer, main_output, sole_carriers
from SaliencyExplainLib.errors import Cancelled, ModelError
from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.model import LayerInfo, Model, WholeVolume, Windows
from SaliencyExplainLib.target import Target

#: Windows that start on the layer's grid, between its voxels, and beyond the volume.
INFERERS = {
    "whole": WholeVolume(),
    "windows": Windows((8, 8, 8), (0.5,) * 3, "gaussian"),
    "windows off the layer's grid": Windows((6, 8, 6), (0.5,) * 3, "constant"),
    "padded window": Windows((16, 10, 10), (0.5,) * 3, "gaussian"),
}
AFFINE = np.diag([2.0, -1.0, 3.0, 1.0])


@pytest.fixture
def a_scan(a_volume: Callable[..., MetaTensor]) -> MetaTensor:
    return make_image(a_volume(1, 12, 8, 8).as_tensor(), AFFINE)


def layer_of(model: Model, image: MetaTensor, name: str) -> LayerInfo:
    window = model.inferer.window_shape(tuple(image.shape[1:]))
    return next(one for one in model.layers(shape=(1, *window)) if one.name == name)


def masked(
    model: Model,
    image: MetaTensor,
    target: Target,
    name: str,
    work: Callable[[MaskedLayer], Any],
    fill: str = "zero",
    grid_mm: float = 0.0,
) -> Any:
    engine = Engine(model, image, target)
    with engine.running():
        info = layer_of(model, image, name)
        return work(MaskedLayer(engine, info, fill, 4.0, grid_mm))


def read(mask: torch.Tensor, points: np.ndarray) -> torch.Tensor:
    """Trilinear values of a mask (1, i, j, k) at points (..., 3) in its voxels; differentiable."""
    sizes = np.array(mask.shape[1:])
    scaled = torch.from_numpy(2 * points / np.maximum(sizes - 1, 1) - 1).to(mask)
    return F.grid_sample(
        mask[None], scaled.flip(-1)[None], align_corners=True, padding_mode="border"
    )[0]


class BruteForce:
    """MONAI's inference with a layer's features multiplied by the mask, all windows in one graph.

    The layer's voxels lie `spacing` voxels apart, from the first voxel of a window on; so do the
    mask's, from the first voxel of the padded volume on.
    """

    def __init__(self, model: Model, name: str, spacing: int, shape: tuple[int, ...]) -> None:
        self.model, self.name, self.spacing = model, name, spacing
        self.starts = self._starts(shape)

    def _starts(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """First voxel of each window, in the order in which MONAI runs them."""
        if isinstance(self.model.inferer, WholeVolume):
            return [(0, 0, 0)]
        roi = self.model.inferer.roi_size
        axes = []
        for size, window in zip(shape, roi, strict=True):
            step = max(1, window // 2)
            last = max(size - window, 0)
            axes.append([min(start, last) for start in range(0, last + step, step)])
            axes[-1] = sorted(set(axes[-1]))
        return [(i, j, k) for i in axes[0] for j in axes[1] for k in axes[2]]

    def output(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        calls = iter(self.starts)

        def hide(_module: nn.Module, _inputs: Any, features: torch.Tensor) -> torch.Tensor:
            sizes = features.shape[2:]
            steps = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), -1)
            points = steps + np.array(next(calls)) / self.spacing
            return features * read(mask, points)

        hook = self.model.network.get_submodule(self.name).register_forward_hook(hide)
        try:
            output = fused(self.model, x)
        finally:
            hook.remove()
        assert next(calls, None) is None
        return output


# ------------------------------------------------------------------------------------------------
# Score and gradient


@pytest.mark.parametrize("name", ["act", "act2"])
@pytest.mark.parametrize("kind", ["logit", "probability", "soft_volume"])
@pytest.mark.parametrize("inferer", INFERERS.values(), ids=INFERERS.keys())
def test_value_and_gradient_equal_autograd_through_the_whole_fused_inference(
    inferer: Any, kind: str, name: str, a_scan: MetaTensor
) -> None:
    model = as_model(StridedNet(), inferer=inferer)
    x = a_scan.as_tensor()[None]
    with torch.no_grad():
        region = (fused(model, x)[0].argmax(0) == 1).float()
    assert 50 < region.sum() < 700

    def work(layer: MaskedLayer) -> tuple[float, float, torch.Tensor, torch.Tensor]:
        mask = torch.rand((1, *layer.shape), generator=torch.Generator().manual_seed(3))
        value, gradient = layer.value_and_gradient(mask)
        return value, layer.value(mask), gradient, mask

    target = Target(output=1, score=kind)
    value, again, gradient, mask = masked(model, a_scan, target, name, work)
    brute = BruteForce(model, name, 2 if name == "act" else 1, tuple(x.shape[2:]))
    leaf = mask.clone().requires_grad_()
    expected = score(brute.output(x, leaf), 1, region, kind=kind, voxel_ml=0.006)
    (slope,) = torch.autograd.grad(expected, leaf)
    assert value == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-6)
    assert again == pytest.approx(value, rel=1e-5, abs=1e-7)
    assert float((gradient - slope).norm() / slope.norm()) < 1e-5


def test_the_mask_of_a_classification_is_pulled_back(a_scan: MetaTensor) -> None:
    model = as_model(Classifier(), task="classification")
    x = a_scan.as_tensor()[None]
    mask = torch.rand(1, 6, 4, 4, generator=torch.Generator().manual_seed(3))
    target = Target(output=2, score="probability")
    value, gradient = masked(
        model, a_scan, target, "features.1", lambda layer: layer.value_and_gradient(mask)
    )
    brute = BruteForce(model, "features.1", 2, tuple(x.shape[2:]))
    leaf = mask.clone().requires_grad_()
    expected = brute.output(x, leaf).softmax(1)[0, 2]
    (slope,) = torch.autograd.grad(expected, leaf)
    assert value == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("fill", ["zero", "mean", "blurred"])
def test_what_a_mask_of_zero_leaves_is_the_fill(fill: str, a_scan: MetaTensor) -> None:
    network = StridedNet().eval()
    x = a_scan.as_tensor()[None]
    with torch.no_grad():
        features = network.act(network.down(x))
    if fill == "zero":
        shown = torch.zeros_like(features)
    elif fill == "mean":
        shown = features.mean((2, 3, 4), keepdim=True).expand_as(features)
    else:
        # 4 mm; the layer's voxels are twice as large as the scan's 2 x 1 x 3 mm.
        blurred = gaussian_filter(features.numpy(), (0, 0, 1.0, 2.0, 4 / 6), mode="nearest")
        shown = torch.from_numpy(blurred)
    with torch.no_grad():
        output = network.head(network.act2(network.mix(network.up(shown))))
    target = Target(output=1, region="everywhere")
    found = masked(
        as_model(network),
        a_scan,
        target,
        "act",
        lambda layer: layer.value(torch.zeros((1, *layer.shape))),
        fill,
    )
    assert found == pytest.approx(float(output[0, 1].mean()), rel=1e-5)


@pytest.mark.parametrize("fill", ["zero", "mean", "blurred"])
@pytest.mark.parametrize("inferer", INFERERS.values(), ids=INFERERS.keys())
def test_a_mask_of_one_changes_nothing(inferer: Any, fill: str, a_scan: MetaTensor) -> None:
    model = as_model(StridedNet(), inferer=inferer)

    def work(layer: MaskedLayer) -> tuple[float, float]:
        return layer.value(torch.ones((1, *layer.shape))), layer.engine.start_value

    found, start = masked(model, a_scan, Target(output=1), "act", work, fill)
    assert found == pytest.approx(start, rel=1e-5)


@pytest.mark.parametrize(
    ("region", "kind", "windows", "runs"),
    [
        ("roi", "logit", 1, 1),
        ("roi", "probability", 1, 1),
        ("everywhere", "logit", 2, 2),
        ("everywhere", "probability", 2, 4),
    ],
)
def test_a_gradient_runs_the_windows_that_reach_the_region_as_often_as_the_score_needs(
    region: str, kind: str, windows: int, runs: int, a_scan: MetaTensor
) -> None:
    network = StridedNet()
    model = as_model(network, inferer=INFERERS["windows"])
    # Voxels i = 0 to 2; the second window starts at i = 4.
    target = Target(output=1, region=region, roi_ras_mm=((0, -7, 0), (4.0, 0, 21)), score=kind)

    def work(layer: MaskedLayer) -> tuple[int, int, int]:
        mask = torch.full((1, *layer.shape), 0.5)
        layer.value(mask)
        with counted_runs(network) as counted:
            layer.value_and_gradient(mask)
        return layer.windows, len(counted), layer.sweeps

    assert masked(model, a_scan, target, "act", work) == (windows, runs, runs)


# ------------------------------------------------------------------------------------------------
# The mask's grid


class Flipped(StridedNet):
    """Runs its layer on the mirrored volume."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flip(2)).flip(2)


@pytest.mark.parametrize("grid_mm", [0.0, 9.0])
@pytest.mark.parametrize("kind", [StridedNet, Flipped])
@pytest.mark.parametrize("inferer", INFERERS.values(), ids=INFERERS.keys())
def test_a_mask_that_is_linear_in_space_is_read_where_each_voxel_lies(
    inferer: Any, kind: type[nn.Module], grid_mm: float, a_scan: MetaTensor
) -> None:
    model = as_model(kind(), inferer=inferer)

    def work(layer: MaskedLayer) -> None:
        def ramp(points: list[np.ndarray]) -> torch.Tensor:
            i, j, k = np.meshgrid(*points, indexing="ij")
            return torch.from_numpy(0.1 * i + 0.03 * j - 0.02 * k)[None].float()

        lines = [
            origin + step * np.arange(size)
            for origin, step, size in zip(
                layer.grid.origin, layer.grid.spacing, layer.shape, strict=True
            )
        ]
        mask = ramp(lines)
        for window in layer.engine.plan.windows:
            places = [
                side.start + origin + step * np.arange(size)
                for side, origin, step, size in zip(
                    window,
                    layer.info.grid.origin,
                    layer.info.grid.spacing,
                    layer.info.shape[1:],
                    strict=True,
                )
            ]
            torch.testing.assert_close(layer.at_layer(mask, window), ramp(places))
        # On the volume, where the mask's outermost points go on as they are.
        voxels = [
            np.clip(np.arange(size) + before, line[0], line[-1])
            for size, (before, _), line in zip(
                a_scan.shape[1:], layer.engine.plan.padding, lines, strict=True
            )
        ]
        torch.testing.assert_close(layer.at_voxels(mask), ramp(voxels))
        millimetres = np.array(layer.spacing_mm)
        np.testing.assert_allclose(millimetres, np.maximum([4, 2, 6], grid_mm))

    masked(model, a_scan, Target(output=1), "act", work, grid_mm=grid_mm)


# ------------------------------------------------------------------------------------------------
# Failures


class Rounded(StridedNet):
    """Cuts the graph behind its layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).detach()


@pytest.mark.parametrize("inferer", [WholeVolume(), INFERERS["windows"]], ids=["whole", "windows"])
def test_an_output_that_cannot_be_differentiated_is_refused(
    inferer: Any, a_scan: MetaTensor
) -> None:
    def work(layer: MaskedLayer) -> None:
        layer.value_and_gradient(torch.ones((1, *layer.shape)))

    with pytest.raises(ModelError, match="does not depend on the layer 'act' in a way that can"):
        masked(as_model(Rounded(), inferer=inferer), a_scan, Target(output=1), "act", work)


def test_every_pass_can_be_cancelled(a_scan: MetaTensor) -> None:
    def work(layer: MaskedLayer) -> None:
        mask = torch.ones((1, *layer.shape))
        layer.value(mask)
        layer.engine.progress.cancelled = lambda: True
        with pytest.raises(Cancelled):
            layer.value(mask)
        with pytest.raises(Cancelled):
            layer.value_and_gradient(mask)

    masked(as_model(StridedNet()), a_scan, Target(output=1), "act", work)


# ------------------------------------------------------------------------------------------------
# Layers that carry everything


class InPlace(nn.Module):
    """Adds to its input, and to its features, in place; one branch is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 3, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Conv3d(3, 3, 3, padding=1)
        self.unused = nn.Conv3d(3, 1, 1)
        self.last = nn.Conv3d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        x = self.act(self.first(x))
        self.unused(x)
        y = self.second(x)
        y += x
        return self.last(y)


NETWORKS = {
    "UNet": lambda: UNet(3, 1, 3, (4, 8, 16), (2, 2), num_res_units=1),
    "SegResNet": lambda: SegResNet(init_filters=8, out_channels=2),
    "DenseNet": lambda: DenseNet121(3, 1, 2, block_config=(2, 2)),
    "in place": InPlace,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_layer_carries_all_if_its_features_alone_decide_the_output(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    one, other = (torch.randn(1, 1, 16, 16, 16, generator=generator) for _ in range(2))
    with torch.no_grad():
        # A batch's mean and spread must not tell one from the other.
        wanted = network(other.clone())
    expected = set()
    for layer, module in network.named_modules():
        kept: list[torch.Tensor] = []
        hook = module.register_forward_hook(lambda _m, _i, out, kept=kept: kept.append(out.clone()))
        with torch.no_grad():
            network(other.clone())
        hook.remove()
        if not layer or not kept:
            continue
        hook = module.register_forward_hook(lambda _m, _i, _o, kept=kept: kept[0].clone())
        with torch.no_grad():
            found = network(one.clone())
        hook.remove()
        if torch.equal(found, wanted):
            expected.add(layer)
    carriers = sole_carriers(network, one, main_output)
    assert carriers == expected
    assert len(carriers) > 2
    if name != "DenseNet":
        assert len(carriers) < sum(1 for _ in network.named_modules()) - 2


def test_a_network_that_cannot_be_differentiated_has_no_carriers(a_scan: MetaTensor) -> None:
    assert sole_carriers(Rounded().eval(), a_scan.as_tensor()[None], main_output) == frozenset()


def test_looking_for_carriers_leaves_network_and_image_as_they_were(a_scan: MetaTensor) -> None:
    network = InPlace().eval()
    x = a_scan.as_tensor()[None]
    before = x.clone()
    sole_carriers(network, x, main_output)
    assert torch.equal(x, before)
    assert not any(module._forward_hooks for module in network.modules())
    assert all(one.grad is None for one in network.parameters())
