"""Occlusion, RISE, region ablation and KernelSHAP against brute force, Captum and exact values."""

from __future__ import annotations

from itertools import combinations
from math import factorial

import captum.attr
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from torch import nn

import SaliencyExplainLib as sx
from SaliencyExplainLib.engine import Engine, Perturber
from SaliencyExplainLib.methods.occlusion import box_starts
from SaliencyExplainLib.methods.region_perturbation import shapley_coalitions, solve_shapley

SIZE = 20
INFERER = SlidingWindowInferer((12, 12, 12), overlap=0.5, mode="gaussian")
POINT = sx.Target(output=1, region="point", point_ras_mm=(4.0, 5.0, 6.0))


@pytest.fixture
def a_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.Tanh(), nn.Conv3d(6, 3, 3, padding=1))


@pytest.fixture
def an_image() -> MetaTensor:
    voxels = torch.randn(1, SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    return sx.make_image(voxels, np.eye(4))


@pytest.fixture
def segments() -> MetaTensor:
    """Five slabs: the label map's 0 to 4."""
    labels = torch.arange(SIZE)[:, None, None].expand(SIZE, SIZE, SIZE) // 4
    return sx.make_image(labels.float()[None], np.eye(4))


class Score(nn.Module):
    """The point's logit, for Captum."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)[:, 1, 4, 5, 6, None]


@pytest.mark.parametrize("inferer", [None, INFERER], ids=["whole", "windows"])
@pytest.mark.parametrize("region", ["point", "everywhere", "prediction"])
@pytest.mark.parametrize("score", ["logit", "probability", "soft_volume"])
def test_scores_of_perturbed_images_equal_brute_force(
    a_network: nn.Module, an_image: MetaTensor, inferer: object, region: str, score: str
) -> None:
    model = sx.load_model(a_network, task="segmentation", inferer=inferer)
    point = (4.0, 5.0, 6.0) if region == "point" else None
    target = sx.Target(output=1, region=region, score=score, point_ras_mm=point)
    engine = Engine(model, an_image, target)
    changed = engine.x.clone()
    box = (slice(2, 9), slice(3, 12), slice(0, 7))
    changed[(slice(None), slice(None), *box)] = 0
    with engine.running():
        perturber = Perturber(engine)
        expected = engine.value(changed)
        assert perturber.value(changed, box) == pytest.approx(expected, rel=1e-5)
        assert perturber.value(changed) == pytest.approx(expected, rel=1e-5)
        assert expected != pytest.approx(engine.start_value, rel=1e-5)


def test_windows_that_hold_no_changed_voxel_or_miss_the_region_are_not_run(
    a_network: nn.Module, an_image: MetaTensor
) -> None:
    model = sx.load_model(a_network, task="segmentation", inferer=INFERER)
    engine = Engine(model, an_image, POINT)
    far = (slice(17, 20), slice(17, 20), slice(17, 20))
    with engine.running():
        perturber = Perturber(engine)
        changed = engine.x.clone()
        changed[(slice(None), slice(None), *far)] = 9.0
        assert perturber.runs_for(far) == 0
        assert perturber.value(changed, far) == pytest.approx(perturber.start_value, rel=1e-6)
        first = perturber.computed
        perturber.value(changed, far)
    assert first <= len(perturber.region.windows) < len(engine.plan.windows)
    assert perturber.computed == first


def test_occlusion_equals_captum(a_network: nn.Module, an_image: MetaTensor) -> None:
    model = sx.load_model(a_network, task="segmentation")
    ours = sx.explain(model, an_image, POINT, "occlusion", box_mm=5, stride=1.0, baseline="zero")
    theirs = captum.attr.Occlusion(Score(a_network)).attribute(
        an_image.as_tensor()[None], (1, 5, 5, 5), strides=(1, 5, 5, 5), baselines=0, target=0
    )
    torch.testing.assert_close(ours.maps.as_tensor(), theirs[0].float(), rtol=1e-4, atol=1e-6)


def test_overlapping_boxes_are_averaged_and_windows_give_the_brute_force_map(
    a_network: nn.Module, an_image: MetaTensor
) -> None:
    model = sx.load_model(a_network, task="segmentation", inferer=INFERER)
    ours = sx.explain(model, an_image, POINT, "occlusion", box_mm=8, stride=0.5, baseline="zero")
    x, start = an_image.as_tensor()[None], None
    total, count = torch.zeros(SIZE, SIZE, SIZE), torch.zeros(SIZE, SIZE, SIZE)
    with torch.no_grad():
        start = INFERER(x, a_network)[0, 1, 4, 5, 6]
        for i in box_starts(SIZE, 8, 4):
            for j in box_starts(SIZE, 8, 4):
                for k in box_starts(SIZE, 8, 4):
                    box = (slice(i, i + 8), slice(j, j + 8), slice(k, k + 8))
                    hidden = x.clone()
                    hidden[(slice(None), slice(None), *box)] = 0
                    total[box] += start - INFERER(hidden, a_network)[0, 1, 4, 5, 6]
                    count[box] += 1
    torch.testing.assert_close(ours.maps.as_tensor()[0], total / count, rtol=1e-4, atol=1e-5)
    assert ours.details["windows_computed"] < ours.details["windows_brute_force"] / 5


def test_boxes_reach_both_borders() -> None:
    assert box_starts(20, 8, 5) == [0, 5, 10, 12]
    assert box_starts(8, 8, 5) == [0]
    assert box_starts(5, 8, 5) == [0]


def test_rise_finds_the_voxel_that_matters(an_image: MetaTensor) -> None:
    class One(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack(
                [torch.zeros_like(x[:, 0]), x[:, 0, 4:5, 15:16, 9:10].expand(-1, SIZE, SIZE, SIZE)],
                1,
            )

    bright = sx.make_image(torch.ones(1, SIZE, SIZE, SIZE), np.eye(4))
    model = sx.load_model(One(), task="segmentation")
    found = sx.explain(
        model,
        bright,
        sx.Target(output=1, region="everywhere"),
        "rise",
        masks=150,
        cell_mm=5,
        baseline="zero",
    )
    peak = np.unravel_index(int(found.maps.as_tensor()[0].argmax()), (SIZE,) * 3)
    assert np.abs(np.array(peak) - (4, 15, 9)).max() <= 2
    assert float(found.maps.as_tensor()[0, 4, 15, 9]) > 0.08


def test_rise_is_the_same_for_the_same_seed_only(
    a_network: nn.Module, an_image: MetaTensor
) -> None:
    model = sx.load_model(a_network, task="segmentation")
    maps = [
        sx.explain(model, an_image, POINT, "rise", masks=5, cell_mm=6, seed=seed).maps.as_tensor()
        for seed in (1, 1, 2)
    ]
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])


def test_region_ablation_equals_captum(
    a_network: nn.Module, an_image: MetaTensor, segments: MetaTensor
) -> None:
    model = sx.load_model(a_network, task="segmentation")
    ours = sx.explain(
        model,
        an_image,
        POINT,
        "region_ablation",
        regions="segments",
        segments=segments,
        baseline="zero",
    )
    labels = segments.as_tensor().long()
    theirs = captum.attr.FeatureAblation(Score(a_network)).attribute(
        an_image.as_tensor()[None], baselines=0, target=0, feature_mask=labels[None]
    )[0]
    sizes = torch.bincount(labels.ravel()).float()[labels]
    torch.testing.assert_close(ours.maps.as_tensor() * sizes, theirs.float(), rtol=1e-4, atol=1e-6)


def exact_shapley(values: dict[frozenset[int], float], count: int) -> np.ndarray:
    """Shapley values by their definition."""
    phi = np.zeros(count)
    for player in range(count):
        others = [one for one in range(count) if one != player]
        for size in range(count):
            weight = factorial(size) * factorial(count - size - 1) / factorial(count)
            for chosen in combinations(others, size):
                gain = values[frozenset((*chosen, player))] - values[frozenset(chosen)]
                phi[player] += weight * gain
    return phi


def test_least_squares_over_all_sets_gives_the_exact_shapley_values() -> None:
    generator = np.random.default_rng(0)
    count = 5
    every = [frozenset(c) for size in range(count + 1) for c in combinations(range(count), size)]
    values = {one: float(generator.normal()) for one in every}
    sets, weights = shapley_coalitions(count, 1000, seed=0)
    nothing = values[frozenset()]
    gains = np.array([values[frozenset(np.flatnonzero(one))] - nothing for one in sets])
    phi = solve_shapley(sets, weights, gains, values[frozenset(range(count))] - nothing)
    np.testing.assert_allclose(phi, exact_shapley(values, count), atol=1e-10)


def test_sampled_sets_come_with_their_complements_and_near_the_exact_values() -> None:
    generator = np.random.default_rng(1)
    slopes = generator.normal(size=12)
    pair = 2.0

    def value(shown: np.ndarray) -> float:
        return float(shown @ slopes + pair * shown[0] * shown[1])

    sets, weights = shapley_coalitions(12, 600, seed=0)
    assert (sets[::2] == ~sets[1::2]).all()
    gains = np.array([value(one) for one in sets])
    phi = solve_shapley(sets, weights, gains, value(np.ones(12, dtype=bool)))
    expected = slopes + np.array([pair / 2] * 2 + [0.0] * 10)
    np.testing.assert_allclose(phi, expected, atol=0.15)
    assert phi.sum() == pytest.approx(value(np.ones(12, dtype=bool)))


def test_kernel_shap_sums_to_the_change_of_the_score(
    a_network: nn.Module, an_image: MetaTensor, segments: MetaTensor
) -> None:
    model = sx.load_model(a_network, task="segmentation", inferer=INFERER)
    found = sx.explain(
        model,
        an_image,
        POINT,
        "kernel_shap",
        regions="segments",
        segments=segments,
        baseline="zero",
        samples=64,
    )
    with torch.no_grad():
        nothing = INFERER(torch.zeros(1, *an_image.shape), a_network)[0, 1, 4, 5, 6]
    change = found.value - float(nothing)
    assert float(found.maps.as_tensor().double().sum()) == pytest.approx(change, rel=1e-4)
    assert found.details["sets"] == 2**5 - 2


def test_too_few_sets_are_said(a_network: nn.Module, an_image: MetaTensor) -> None:
    model = sx.load_model(a_network, task="segmentation")
    found = sx.explain(model, an_image, POINT, "kernel_shap", samples=20, supervoxels=30)
    assert any("too few" in one for one in found.warnings)


def test_supervoxels_cover_the_image(a_network: nn.Module, an_image: MetaTensor) -> None:
    model = sx.load_model(a_network, task="segmentation")
    found = sx.explain(model, an_image, POINT, "region_ablation", supervoxels=27)
    assert 8 <= found.details["regions_found"] <= 64


def test_segments_without_a_label_map_are_refused() -> None:
    with pytest.raises(sx.errors.MethodError, match="needs segments="):
        sx.make_method("kernel_shap", {"regions": "segments"})


def test_a_label_map_of_one_region_is_refused(a_network: nn.Module, an_image: MetaTensor) -> None:
    model = sx.load_model(a_network, task="segmentation")
    empty = sx.make_image(torch.zeros(1, SIZE, SIZE, SIZE), np.eye(4))
    with pytest.raises(sx.errors.MethodError, match="at least two regions"):
        sx.explain(model, an_image, POINT, "region_ablation", regions="segments", segments=empty)


def test_the_label_map_is_recorded_by_its_hash(segments: MetaTensor) -> None:
    method = sx.make_method("region_ablation", {"regions": "segments", "segments": segments})
    record = method.parameters()["segments"]
    assert record["shape"] == [1, SIZE, SIZE, SIZE]
    assert len(record["sha256"]) == 64


def test_gradient_shap_sums_to_the_mean_change_on_a_linear_network(an_image: MetaTensor) -> None:
    torch.manual_seed(0)
    linear = nn.Conv3d(1, 2, 3, padding=1, bias=False)
    model = sx.load_model(linear, task="segmentation")
    found = sx.explain(model, an_image, sx.Target(output=1), "gradient_shap", samples=9)
    assert found.completeness_error == pytest.approx(0, abs=1e-4)


def test_gradient_shap_with_one_reference_tends_to_integrated_gradients(
    a_network: nn.Module, an_image: MetaTensor
) -> None:
    model = sx.load_model(a_network, task="segmentation")
    many = sx.explain(model, an_image, POINT, "gradient_shap", samples=200, baseline="zero")
    exact = sx.explain(model, an_image, POINT, "integrated_gradients", steps=40, baseline="zero")
    scale = float(exact.maps.as_tensor().abs().max())
    assert float((many.maps.as_tensor() - exact.maps.as_tensor()).abs().max()) < 0.01 * scale
    assert many.completeness_error is not None
    assert many.completeness_error < 0.01
