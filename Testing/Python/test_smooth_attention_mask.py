"""The smooth attention mask: its loss, what it finds where the evidence is known, what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet
from references import Classifier, StridedNet, as_model, state_of
from scipy.ndimage import binary_dilation
from torch import nn

import SaliencyExplainLib as sx
from SaliencyExplainLib.engine import Engine, MaskedLayer, main_output, sole_carriers
from SaliencyExplainLib.errors import Cancelled, LayerNotFoundError
from SaliencyExplainLib.methods.mask_objective import Objective, loss_and_gradient
from SaliencyExplainLib.methods.smooth_attention_mask import masked_layer
from SaliencyExplainLib.model import Windows

NAME = "smooth_attention_mask"
SIZE = 16
WINDOWS = Windows((8, 8, 8), (0.5,) * 3, "gaussian")


class HalfSum(nn.Module):
    """S = the mean of the image's positive part over the first half along i, plus a constant."""

    def __init__(self, constant: float = 0.0, factor: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Conv3d(1, 2, 1, bias=False)
        self.act = nn.ReLU()
        nn.init.ones_(self.layer.weight)
        self.constant, self.factor = constant, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = self.act(self.layer(x))[:, :, : x.shape[2] // 2]
        return self.constant + self.factor * half.mean((1, 2, 3, 4))[:, None]


class Skipped(nn.Module):
    """Two ways to the output; one goes past the layer `deep`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv3d(1, 4, 3, 2, 1), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv3d(4, 4, 3, 1, 1), nn.ReLU())
        self.up = nn.Upsample(scale_factor=2, mode="trilinear")
        self.last = nn.Conv3d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(self.up(torch.cat([x, self.deep(x)], 1)))


def scenes(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a bright ball in one half and a dark box in the other; images, balls."""
    at = torch.stack(torch.meshgrid(*[torch.arange(SIZE)] * 3, indexing="ij"), -1).float()
    images = 0.2 * torch.randn(count, 1, SIZE, SIZE, SIZE, generator=generator)
    balls = []
    for image in images:
        radius = 1.5 + 1.5 * torch.rand((), generator=generator)
        ball, box = 3 + torch.rand((2, 3), generator=generator) * torch.tensor([3.0, 9, 9])
        box[0] += 7
        if torch.rand((), generator=generator) < 0.5:
            ball[0], box[0] = SIZE - 1 - ball[0], SIZE - 1 - box[0]
        balls.append((at - ball).norm(dim=-1) < radius)
        image[0][balls[-1]] += 2
        image[0][((at - box).abs() < 2).all(-1)] -= 1.5
    return images, torch.stack(balls)


def trained(
    network: nn.Module, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], steps: int
) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    adam = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(steps):
        images, balls = scenes(8, generator)
        adam.zero_grad()
        loss(network(images), balls).backward()
        adam.step()
    return network.eval()


def segmenter(norm: str) -> nn.Module:
    """A U-Net that finds the ball; trained in a second."""
    torch.manual_seed(0)
    weight = torch.tensor([1.0, 5.0])
    network = UNet(3, 1, 2, (8, 16), (2,), num_res_units=1, norm=norm)
    return trained(
        network, lambda out, ball: nn.functional.cross_entropy(out, ball.long(), weight), 60
    )


def measurer() -> nn.Module:
    """A regression network that measures the ball's volume; trained in a second."""
    torch.manual_seed(0)
    layers = [nn.Conv3d(1, 8, 3, 2, 1), nn.BatchNorm3d(8), nn.ReLU()]
    layers += [nn.Conv3d(8, 8, 3, 1, 1), nn.BatchNorm3d(8), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 1))
    return trained(
        network, lambda out, ball: ((out[:, 0] - ball.sum((1, 2, 3)) / 50) ** 2).mean(), 150
    )


NETWORKS = {
    "U-Net, batch norm": lambda: (segmenter("batch"), "segmentation"),
    "U-Net, instance norm": lambda: (segmenter("instance"), "segmentation"),
    "regression": lambda: (measurer(), "regression"),
}


@pytest.fixture(scope="module", params=list(NETWORKS))
def a_trained(request: pytest.FixtureRequest) -> tuple[nn.Module, str]:
    return NETWORKS[request.param]()


@pytest.fixture
def a_scene() -> tuple[MetaTensor, np.ndarray]:
    images, balls = scenes(1, torch.Generator().manual_seed(6))
    return sx.make_image(images[0], np.eye(4)), balls[0].numpy()


@pytest.fixture
def a_scan(a_volume: Callable[..., MetaTensor]) -> MetaTensor:
    return a_volume(1, 12, 8, 8)


def regression(network: nn.Module) -> sx.Model:
    return as_model(network, task="regression")


# ------------------------------------------------------------------------------------------------
# What it finds


def test_the_kept_mask_of_a_sum_over_one_half_is_that_half(a_scan: MetaTensor) -> None:
    positive = sx.make_image(a_scan.as_tensor().abs() + 0.5, np.eye(4))
    found = sx.explain(regression(HalfSum()), positive, None, NAME, layer="act", area=0.5)
    mask = found.maps.numpy()[0]
    assert mask[:5].min() > 0.9
    assert mask[7:].max() < 0.05
    assert found.details["prediction_change"] < 0.05
    assert found.warnings == ()


def test_the_deleted_mask_of_a_sum_over_one_half_is_that_half(a_scan: MetaTensor) -> None:
    positive = sx.make_image(a_scan.as_tensor().abs() + 0.5, np.eye(4))
    found = sx.explain(
        regression(HalfSum()), positive, None, NAME, layer="act", mode="delete", area=0.5
    )
    mask = found.maps.numpy()[0]
    assert mask[:5].mean() > 0.9
    assert mask[7:].max() < 0.05
    assert found.details["effect_part"] > 0.9


@pytest.mark.parametrize("mode", ["keep", "delete"])
@pytest.mark.parametrize("windows", [False, True], ids=["whole", "windows"])
def test_the_mask_finds_planted_evidence_and_repeats_itself(
    mode: str, windows: bool, a_trained: Any, a_scene: Any
) -> None:
    network, task = a_trained
    if windows and task == "regression":
        return  # one answer a volume cannot be fused from windows
    inferer = SlidingWindowInferer((12, 12, 12), overlap=0.5, mode="gaussian")
    model = sx.load_model(network, task=task, inferer=inferer if windows else None)
    image, ball = a_scene
    target = sx.Target() if task == "regression" else sx.Target(1)
    # The usual 12 mm would blur all of 16 mm into one value.
    found = sx.explain(model, image, target, NAME, mode=mode, starts=3, blur_mm=4.0)
    mask = found.maps.numpy()[0]
    far = ~binary_dilation(ball, iterations=4)
    assert mask[ball].mean() > 0.6
    assert mask[far].mean() < 0.25 * mask[ball].mean()
    assert found.details["stability"] > 0.9
    if mode == "keep":
        assert found.details["change_in_sigma"] < 0.05
        assert found.details["prediction_change"] < 0.05
    else:
        assert found.details["effect_part"] > 0.8


@pytest.mark.parametrize("score", ["logit", "probability", "soft_volume"])
def test_every_score_has_a_mask_that_keeps_it(score: str, a_scene: Any) -> None:
    image, ball = a_scene
    model = sx.load_model(segmenter("batch"), task="segmentation")
    found = sx.explain(model, image, sx.Target(1, score=score), NAME)
    mask = found.maps.numpy()[0]
    assert mask[ball].mean() > 0.6
    assert found.details["change_in_sigma"] < 0.05


def test_a_classification_has_a_mask_that_keeps_it(a_scan: MetaTensor) -> None:
    model = as_model(Classifier(), task="classification")
    found = sx.explain(model, a_scan, sx.Target(2, score="probability"), NAME)
    assert found.layers == ("features.3",)
    assert found.details["change_in_sigma"] < 0.05


# ------------------------------------------------------------------------------------------------
# The loss


def price(mask: np.ndarray, weights: tuple[float, float, float, float], spacing: Any) -> float:
    """s mean(m) + w max(0, |m| / sqrt(N) - sqrt(a))^2 + g mean |grad m|^2, as it stands."""
    sparsity, budget, area, smoothness = weights
    norm = np.sqrt((mask**2).sum()) / np.sqrt(mask.size)
    mean = np.prod(spacing) ** (1 / 3)
    rough = sum(
        (np.diff(mask, axis=axis) ** 2).sum() * (mean / spacing[axis]) ** 2 for axis in range(3)
    )
    over = max(0.0, norm - np.sqrt(area)) ** 2
    return float(sparsity * mask.mean() + budget * over + smoothness * rough / mask.size)


@pytest.mark.parametrize(("mode", "budget"), [("keep", 0.05), ("delete", 1.0)])
@pytest.mark.parametrize(("area", "value"), [(0.9, 3.0), (0.1, 3.0), (0.1, 9.0), (0.1, -9.0)])
def test_the_loss_is_its_equation(mode: str, budget: float, area: float, value: float) -> None:
    objective = Objective(mode, 5.0, 8.0, 2.0, area, 0.2, 0.7, (1.0, 2.0, 4.0), 1.5)
    mask = torch.rand((1, 5, 4, 3), generator=torch.Generator().manual_seed(0))
    # Hidden, the layer leaves 5 - 8 = -3; below that nothing is gained.
    distance = {"keep": 1.5 * ((value - 5) / 2) ** 2, "delete": (max(0.0, value - -3) / 2) ** 2}
    expected = distance[mode] + price(mask.double().numpy()[0], (0.2, budget, area, 0.7), (1, 2, 4))
    assert objective.loss(value, mask) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mode", ["keep", "delete"])
@pytest.mark.parametrize("score", ["logit", "soft_volume"])
@pytest.mark.parametrize("inferer", [None, WINDOWS], ids=["whole", "windows"])
def test_the_gradient_is_the_slope_of_the_loss(
    inferer: Any, score: str, mode: str, a_scan: MetaTensor
) -> None:
    network = StridedNet()
    # Smooth, so that differences are slopes.
    network.act2 = nn.Softplus()
    # The layer decides most of the score, so that float32 has digits left for its differences.
    network.head.weight.data *= 20
    model = as_model(network, **({} if inferer is None else {"inferer": inferer}))
    engine = Engine(model, a_scan, sx.Target(1, "everywhere", score))
    window = model.inferer.window_shape((12, 8, 8))
    with engine.running():
        info = next(one for one in model.layers(shape=(1, *window)) if one.name == "act")
        layer = MaskedLayer(engine, info, "zero", 4.0)
        start = engine.start_value
        effect = start - layer.value(torch.zeros((1, *layer.shape)))
        sigma = abs(effect)
        objective = Objective(mode, start, effect, sigma, 0.1, 0.03, 0.06, layer.spacing_mm)
        generator = torch.Generator().manual_seed(2)
        theta = torch.randn((1, *layer.shape), generator=generator)
        loss, _, gradient = loss_and_gradient(layer, objective, theta)
        assert loss > 0.01
        for _ in range(3):
            way = torch.randn(theta.shape, generator=generator)
            ahead, behind = (
                loss_and_gradient(layer, objective, theta + sign * 0.02 * way)[0]
                for sign in (1, -1)
            )
            # float32 losses: about 1e-4 of the slope is rounding, and as much is curvature.
            slope = (ahead - behind) / 0.04
            scale = float(gradient.norm() * way.norm()) / way.numel() ** 0.5
            assert float((gradient * way).sum()) == pytest.approx(slope, abs=5e-3 * scale)


def test_the_reported_loss_is_that_of_the_map(a_scan: MetaTensor) -> None:
    model = regression(HalfSum(constant=1.0))
    found = sx.explain(model, a_scan, None, NAME, layer="act", steps=5)
    assert found.layer_map is not None
    mask = found.layer_map.numpy()[0].astype(float)
    half = a_scan.numpy()[0, :6].clip(min=0)
    value, start = 1 + (mask[:6] * half).mean(), 1 + half.mean()
    facts = found.details
    assert facts["value_with_mask"] == pytest.approx(value, rel=1e-5)
    assert facts["effect"] == pytest.approx(half.mean(), rel=1e-5)
    assert facts["prediction_change"] == pytest.approx((start - value) / start, rel=1e-3)
    assert facts["effect_part"] == pytest.approx((start - value) / half.mean(), rel=1e-3)
    assert facts["mask_mean"] == pytest.approx(mask.mean(), rel=1e-5)
    assert facts["area"] == pytest.approx((mask**2).mean(), rel=1e-5)
    expected = ((value - start) / found.parameters["sigma"]) ** 2
    expected += price(mask, (0.03, 0.05, 0.1, 0.06), (1, 1, 1))
    assert facts["loss"] == pytest.approx(expected, rel=1e-4)
    json.dumps(facts)


@pytest.mark.parametrize(
    ("constant", "mode", "parts"),
    [
        (0.0, "keep", 1.0),
        (50.0, "keep", 1.0),  # no more than what the layer does
        (-0.5, "keep", 0.5),  # |S|
        (-0.999, "keep", 0.1),  # S near 0: a tenth of the effect
        (-0.5, "delete", 1.0),
    ],
)
def test_sigma_comes_from_the_score_and_from_what_the_layer_does(
    constant: float, mode: str, parts: float
) -> None:
    # All ones: the layer adds 1 to the constant.
    image = sx.make_image(torch.ones(1, 8, 8, 8), np.eye(4))
    model = regression(HalfSum(constant))
    found = sx.explain(model, image, None, NAME, layer="act", mode=mode, steps=1)
    assert found.details["effect"] == pytest.approx(1, rel=1e-4)
    assert found.parameters["sigma"] == pytest.approx(parts, rel=1e-4)


def test_a_given_sigma_is_used(a_scan: MetaTensor) -> None:
    model = regression(HalfSum())
    found = sx.explain(model, a_scan, None, NAME, layer="act", steps=1, sigma=7.0)
    assert found.parameters["sigma"] == 7
    change = abs(found.details["value_with_mask"] - found.value)
    assert found.details["change_in_sigma"] == pytest.approx(change / 7)


# ------------------------------------------------------------------------------------------------
# Steps, starts, progress


def test_a_seed_decides_the_starts_and_the_best_is_shown(a_scan: MetaTensor) -> None:
    def run(**given: Any) -> sx.Explanation:
        return sx.explain(
            regression(HalfSum()), a_scan, None, NAME, layer="act", steps=3, sparsity=1.0, **given
        )

    one, same, other = (run(starts=3, seed=seed) for seed in (0, 0, 7))
    assert torch.equal(one.maps.as_tensor(), same.maps.as_tensor())
    assert one.details["stability"] == same.details["stability"] != other.details["stability"]
    assert one.details["steps"] == [3, 3, 3]
    single = run()
    assert single.details["stability"] is None
    assert one.details["loss"] <= single.details["loss"]
    assert torch.equal(run(seed=3).maps.as_tensor(), single.maps.as_tensor())


def test_it_ends_when_the_loss_is_flat(a_scan: MetaTensor) -> None:
    model = regression(HalfSum())
    found = sx.explain(model, a_scan, None, NAME, layer="act", steps=1000, area=0.5)
    assert 20 < found.details["steps"][0] < 500


def test_evidence_everywhere_is_kept_by_a_heavier_prediction() -> None:
    class Mean(HalfSum):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.layer(x)).mean((1, 2, 3, 4))[:, None]

    image = sx.make_image(torch.ones(1, 8, 8, 8), np.eye(4))
    options = {"layer": "act", "area": 0.01, "sparsity": 0.3}
    found = sx.explain(regression(Mean()), image, None, NAME, **options)
    assert found.details["weight"] > 1
    assert found.details["prediction_change"] < 0.05
    loose = sx.explain(regression(Mean()), image, None, NAME, tolerance=1.0, **options)
    assert loose.details["weight"] == 1
    assert loose.details["prediction_change"] > 0.1


def test_the_price_of_no_mask_has_a_finite_slope() -> None:
    objective = Objective("keep", 5.0, 8.0, 2.0, 0.1, 0.2, 0.7, (1.0, 2.0, 4.0))
    mask = torch.zeros(1, 4, 4, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(objective.regularity(mask), mask)
    torch.testing.assert_close(slope, torch.full_like(mask, 0.2 / 64))


@pytest.mark.parametrize("score", ["logit", "probability"])
def test_progress_tells_each_step_and_a_run_can_be_cancelled_at_any(
    score: str, a_scan: MetaTensor
) -> None:
    network = StridedNet()
    model = as_model(network, inferer=WINDOWS)
    target = sx.Target(1, "everywhere", score)
    told: list[tuple[float, str]] = []
    sx.explain(model, a_scan, target, NAME, lambda *one: told.append(one), steps=4)
    parts = [part for part, _ in told]
    assert parts == sorted(parts)
    assert sum("of 4, loss" in text for _, text in told) == 4
    # What was expected is what was done.
    assert parts[-2] > 0.9
    before = state_of(network)
    for allowed in range(0, len(told), 3):
        left = iter([False] * allowed)
        with pytest.raises(Cancelled):
            sx.explain(model, a_scan, target, NAME, None, lambda left=left: next(left, True))
        assert state_of(network) == before


# ------------------------------------------------------------------------------------------------
# The layer


def chosen(network: nn.Module, task: str) -> str:
    x = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    carriers = sole_carriers(network.eval(), x, main_output)
    layers = as_model(network, task=task).layers(shape=(1, 16, 16, 16))
    return masked_layer(layers, carriers, task).name


def test_the_layer_is_one_that_everything_passes_through() -> None:
    torch.manual_seed(0)
    assert chosen(UNet(3, 1, 2, (4, 8, 8), (2, 2), num_res_units=2), "segmentation") == "model.0"
    assert chosen(Skipped(), "segmentation") == "first.1"
    assert chosen(Classifier(), "classification") == "features.3"
    deep = [layer for _ in range(4) for layer in (nn.Conv3d(1, 1, 1), nn.MaxPool3d(2), nn.ReLU())]
    for one in deep[::3]:
        one.in_channels = one.out_channels = 2
        one.weight = nn.Parameter(torch.ones(2, 2, 1, 1, 1))
        one.bias = nn.Parameter(torch.zeros(2))
    deep[0].weight = nn.Parameter(torch.ones(2, 1, 1, 1, 1))
    network = nn.Sequential(*deep, nn.AdaptiveAvgPool3d(1), nn.Flatten())
    # Spacings 2, 4, 8, 16: the last of at most 4.
    assert chosen(network, "regression") == "5"


def test_a_layer_that_something_passes_by_is_reported_with_better_ones(
    a_scan: MetaTensor,
) -> None:
    model = as_model(Skipped())
    target = sx.Target(1, "everywhere")
    found = sx.explain(model, a_scan, target, NAME, layer="deep.1", steps=2)
    assert any(
        "passes by the layer 'deep.1'" in one and "passes through: first.1" in one
        for one in found.warnings
    )
    whole = sx.explain(model, a_scan, target, NAME, steps=2)
    assert whole.layers == ("first.1",)
    assert not any("passes by" in one for one in whole.warnings)


def test_an_unknown_layer_is_refused(a_scan: MetaTensor) -> None:
    with pytest.raises(LayerNotFoundError, match="no layer 'actt'"):
        sx.explain(regression(HalfSum()), a_scan, None, NAME, layer="actt")


def test_the_map_of_one_window_is_also_on_the_layers_grid(a_scan: MetaTensor) -> None:
    target = sx.Target(1, "everywhere")
    whole = sx.explain(as_model(StridedNet()), a_scan, target, NAME, layer="act", steps=2)
    assert whole.layer_map is not None
    assert whole.layer_map.shape == (1, 6, 4, 4)
    np.testing.assert_allclose(whole.maps.numpy()[:, ::2, ::2, ::2], whole.layer_map, rtol=1e-6)
    model = as_model(StridedNet(), inferer=WINDOWS)
    windows = sx.explain(model, a_scan, target, NAME, layer="act", steps=2)
    assert windows.layer_map is None
    assert windows.details["mask_shape"] == [6, 4, 4]
    coarse = sx.explain(model, a_scan, target, NAME, layer="act", steps=2, grid_mm=4)
    assert coarse.details["mask_shape"] == [4, 3, 3]


# ------------------------------------------------------------------------------------------------
# Warnings


def test_a_layer_without_effect_has_a_map_of_zero(a_scan: MetaTensor) -> None:
    model = regression(HalfSum(constant=3.0, factor=0.0))
    found = sx.explain(model, a_scan, None, NAME, layer="act")
    assert not found.maps.numpy().any()
    assert "'act' does not change the score" in found.warnings[0]


def test_a_mask_that_does_not_keep_the_prediction_is_reported(a_scan: MetaTensor) -> None:
    model = regression(HalfSum())
    found = sx.explain(model, a_scan, None, NAME, layer="act", sparsity=10.0, steps=19)
    percent = round(100 * found.details["change_in_sigma"])
    assert percent > 20
    assert f"changes by {percent} % (5 % is tolerated)" in found.warnings[0]


def test_evidence_beyond_the_area_is_reported(a_scan: MetaTensor) -> None:
    model = regression(HalfSum())
    kept = sx.explain(model, a_scan, None, NAME, layer="act", area=0.01)
    assert any("more than the 1 % asked for" in one for one in kept.warnings)
    options = {"layer": "act", "mode": "delete", "area": 0.01, "sparsity": 10.0}
    deleted = sx.explain(model, a_scan, None, NAME, **options)
    percent = round(100 * deleted.details["effect_part"])
    assert any(f"takes away only {percent} %" in one for one in deleted.warnings)


def test_masks_that_differ_between_starts_are_reported(a_scan: MetaTensor) -> None:
    found = sx.explain(regression(HalfSum()), a_scan, None, NAME, layer="act", steps=1, starts=3)
    # The first is uniform but for one step; chance has not been forgotten yet.
    assert found.details["stability"] < 0.9
    assert any("Masks from different starts correlate by 0." in one for one in found.warnings)


@pytest.mark.parametrize("fill", ["automatic", "zero", "mean", "blurred"])
def test_a_fill_that_a_normalisation_undoes_is_reported(fill: str, a_scan: MetaTensor) -> None:
    torch.manual_seed(0)
    network = UNet(3, 1, 2, (4, 8), (2,))
    target = sx.Target(1, "everywhere")
    found = sx.explain(as_model(network), a_scan, target, NAME, fill=fill, steps=1)
    assert found.parameters["fill"] == ("blurred" if fill == "automatic" else fill)
    reported = any("undoes a uniform fading" in one for one in found.warnings)
    assert reported == (fill in ("zero", "mean"))
    plain = sx.explain(as_model(StridedNet()), a_scan, target, NAME, fill=fill, steps=1)
    assert plain.parameters["fill"] == ("zero" if fill == "automatic" else fill)
    assert not any("undoes" in one for one in plain.warnings)


class SideEffect(HalfSum):
    """Relies on what an in-place module did to its input: it cannot be replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 1, 1)
        self.inplace = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        self.inplace(x)
        return super().forward(x) + 0.01 * x.mean((1, 2, 3, 4))[:, None]


def test_a_network_that_cannot_be_replayed_is_run_whole_and_reported(a_scan: MetaTensor) -> None:
    torch.manual_seed(1)
    network = SideEffect()
    found = sx.explain(regression(network), a_scan, None, NAME, layer="act", steps=30, area=0.5)
    assert any("could not be replayed" in one for one in found.warnings)
    mask = found.maps.numpy()[0]
    assert mask[:5].mean() > 10 * mask[7:].mean()
