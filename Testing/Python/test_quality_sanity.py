"""Sanity checks, robustness and repeatability, on a trained network and on exact cases."""

from __future__ import annotations

import json
from dataclasses import replace

import captum.metrics
import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import ViT
from quality_cases import (
    EVERYWHERE,
    Weighted,
    a_trial,
    ball_and_cube,
    measured,
    random_volume,
    train_balls,
    weighted_model,
)
from references import BatchNormNet, Classifier, StridedNet, as_model, counted_runs, state_of
from scipy.stats import spearmanr
from torch import nn

import SaliencyExplainLib as sx
from SaliencyExplainLib.demo import demo_model
from SaliencyExplainLib.engine import Engine
from SaliencyExplainLib.errors import Cancelled, MetricError
from SaliencyExplainLib.model import WholeVolume
from SaliencyExplainLib.model.preprocess import Preprocess
from SaliencyExplainLib.quality.random_weights import (
    copied,
    layers_from_output,
    megabytes,
    randomise,
)
from SaliencyExplainLib.quality.sanity_verdict import Stage, mean_of, verdict_of, words_of


@pytest.fixture(scope="module")
def trained():
    """A trained segmentation network, and an image that it has not seen."""
    network = train_balls()
    voxels, labels = ball_and_cube(np.random.default_rng(12), 20)
    model = as_model(network)
    image = sx.make_image(voxels, np.eye(4))
    found = sx.predict(model, image).as_tensor()[0].numpy()
    dice = 2 * ((found == 1) & (labels == 1)).sum() / ((found == 1).sum() + (labels == 1).sum())
    assert dice > 0.7  # it has learned something
    return model, image


# ------------------------------------------------------------------------------------------------
# The verdict on a trained network


@pytest.mark.parametrize("method", ["gradient", "grad_cam", "input_x_gradient"])
def test_methods_that_follow_the_weights_pass(trained, method):
    model, image = trained
    found = sx.quality.sanity_check(model, image, sx.Target(output=1), method)
    assert found.verdict == "sensitive", found.sentence
    assert "passes" in found.sentence
    assert found.alike < 0.5
    # Slopes claim by magnitude, other maps by their sign as well; the stages from 0.3 to 0.8 count.
    measure = "spearman_absolute" if method == "gradient" else "spearman"
    read = [one.similarity[measure] for one in found.stages if 0.3 <= one.randomised <= 0.8]
    assert 2 <= len(read) < len(found.stages)
    assert found.alike == pytest.approx(mean_of(read))


def test_guided_backpropagation_is_caught_as_insensitive(trained):
    model, image = trained
    found = sx.quality.sanity_check(model, image, sx.Target(output=1), "guided_backprop")
    assert found.verdict == "insensitive", found.sentence
    assert "fails" in found.sentence
    assert "do not read it as evidence" in found.sentence
    assert found.alike > 0.6
    assert found.alike > found.gradient + 0.2
    # Over the whole volume every map of this region looks alike, the gradient's too.
    plain = sx.quality.sanity_check(
        model, image, sx.Target(output=1), "gradient", groups=3, draws=1
    )
    assert min(stage.similarity["everywhere"] for stage in plain.stages) > 0.9


@pytest.mark.slow
def test_the_demo_network_passes_the_gradient_and_fails_guided_backpropagation():
    """Of white matter, on a corner of a made-up head: PReLU and instance norm."""
    pytest.importorskip("nilearn")
    from SaliencyExplainLib.demo import template

    model = demo_model()
    prepared = model.prepare(template()[0])
    small = sx.make_image(prepared.as_tensor()[:, 16:64, 20:68, 20:60], prepared.affine)
    model = replace(model, preprocess=Preprocess(), inferer=WholeVolume())
    target = sx.Target(output="white matter")
    verdicts = {
        method: sx.quality.sanity_check(model, small, target, method, draws=1).verdict
        for method in ("gradient", "guided_backprop")
    }
    assert verdicts == {"gradient": "sensitive", "guided_backprop": "insensitive"}


def test_each_stage_names_its_layers_and_what_it_found(trained):
    model, image = trained
    found = sx.quality.sanity_check(
        model, image, sx.Target(output=1), "gradient", groups=3, draws=2, seed=5
    )
    assert [stage.randomised for stage in found.stages] == pytest.approx([4 / 11, 8 / 11, 1.0])
    layers = [layer for stage in found.stages for layer in stage.layers]
    assert layers[0] == "head"
    assert layers[-1] == "body.0"
    assert len(layers) == len(set(layers)) == 11
    assert set(found.stages[0].similarity) == {
        "spearman_absolute",
        "spearman",
        "everywhere",
        "ssim",
    }
    assert found.details["measure"] == "spearman_absolute"
    assert found.details["copy_mb"] == megabytes(model.network)
    assert "inside the region" in found.compared
    told = json.loads(json.dumps(found.to_dict()))
    assert told["stages"][2]["randomised"] == 1.0
    assert found.sentence in found.to_text()
    again = sx.quality.sanity_check(
        model, image, sx.Target(output=1), "gradient", groups=3, draws=2, seed=5
    )
    assert again.to_dict()["stages"] == told["stages"]
    other = sx.quality.sanity_check(
        model, image, sx.Target(output=1), "gradient", groups=3, draws=2, seed=6
    )
    assert other.to_dict()["stages"] != told["stages"]


def test_a_stage_equals_the_gradient_of_a_network_randomised_by_hand(trained):
    model, image = trained
    found = sx.quality.sanity_check(
        model, image, sx.Target(output=1), "gradient", groups=2, draws=1, seed=3
    )
    twin = copied(model.network)
    x = image.as_tensor()[None]
    mask = model.network(x)[0].argmax(0) == 1

    def gradient(network: nn.Module) -> np.ndarray:
        leaf = x.clone().requires_grad_()
        score = network(leaf)[0, 1][mask].mean()
        return torch.autograd.grad(score, leaf)[0][0, 0].abs().numpy()

    first, inside = gradient(model.network), mask.numpy()
    for number, stage in enumerate(found.stages):
        randomise(twin, stage.layers, 3 + number)
        expected = spearmanr(first[inside], gradient(twin)[inside]).statistic
        assert stage.similarity["spearman_absolute"] == pytest.approx(expected, abs=2e-3)
        with torch.no_grad():
            score = float(twin(x)[0, 1][mask].mean())
        assert stage.score == pytest.approx(score, rel=1e-4, abs=1e-6)


def test_independent_stages_start_from_the_trained_network(trained):
    model, image = trained
    options = {"groups": 11, "draws": 1, "seed": 0}
    one = sx.quality.sanity_check(
        model, image, sx.Target(output=1), "gradient", "independent", **options
    )
    assert [stage.randomised for stage in one.stages] == pytest.approx([1 / 11] * 11)
    cascade = sx.quality.sanity_check(model, image, sx.Target(output=1), "gradient", **options)
    assert one.stages[0].score == pytest.approx(cascade.stages[0].score)
    assert one.stages[5].score != pytest.approx(cascade.stages[5].score, rel=1e-3)
    # A batch norm whose weights are nearly its first ones changes little by itself.
    assert max(stage.similarity["spearman_absolute"] for stage in one.stages) > 0.8
    assert one.verdict == "sensitive"


def test_a_map_that_ignores_the_weights_is_caught_and_one_that_vanishes_passes():
    def stages(alike: float, gradient: float) -> list[Stage]:
        told = {"spearman_absolute": alike}
        return [Stage(("a",), part, told, gradient, 0.0) for part in (0.2, 0.4, 0.6, 1.0)]

    nan = float("nan")
    for alike, gradient, verdict, word in (
        (0.9, 0.2, "insensitive", "fails"),
        (0.49, 0.2, "sensitive", "passes"),
        (0.6, 0.55, "unclear", "so does that of the gradient"),
        (nan, 0.2, "sensitive", "vanishes"),
    ):
        found = verdict_of(stages(alike, gradient), "cascading", "spearman_absolute")
        assert found[0] == verdict
        assert word in words_of("A map", *found, "everywhere")
    found = verdict_of(stages(0.9, 0.9), "independent", "spearman_absolute")
    assert found[0] == "unclear"
    assert "Use the cascading mode" in words_of("A map", *found, "everywhere")
    assert mean_of([1.0, nan, 2.0]) == 1.5


# ------------------------------------------------------------------------------------------------
# The copy and its weights


def test_the_users_network_is_never_touched(trained):
    model, image = trained
    before, voxels = state_of(model.network), image.as_tensor().clone()
    for mode in ("cascading", "independent"):
        sx.quality.sanity_check(
            model, image, sx.Target(output=1), "grad_cam", mode, groups=2, draws=1
        )
    assert state_of(model.network) == before
    assert torch.equal(image.as_tensor(), voxels)


@pytest.mark.parametrize("after", [0, 2, 6])
def test_a_cancelled_check_leaves_the_network_as_it_was(trained, after):
    model, image = trained
    before, asked = state_of(model.network), iter(range(10**6))
    with pytest.raises(Cancelled):
        sx.quality.sanity_check(
            model, image, sx.Target(output=1), "gradient", cancelled=lambda: next(asked) >= after
        )
    assert state_of(model.network) == before


def test_progress_rises_to_one_and_the_cost_is_as_announced():
    network = StridedNet().eval()
    image = random_volume(size=12)
    told = []
    with counted_runs(network) as runs:
        sx.quality.sanity_check(
            as_model(network), image, sx.Target(output=1), "gradient", groups=3, draws=2,
            progress=lambda fraction, message: told.append(fraction),
        )  # fmt: skip
    assert told == sorted(told)
    assert told[-1] == 1.0
    # The region, the first map, one window of the copy for the order of its layers, 3 x 2 stages.
    assert len(runs) == 9


def test_new_weights_change_every_layer_and_leave_torchs_random_state():
    network = BatchNormNet()
    twin, before = copied(network), torch.get_rng_state()
    randomise(twin, ["head", "body.1"], 0)
    assert torch.equal(torch.get_rng_state(), before)
    for name in ("head.weight", "head.bias", "body.1.running_mean"):
        assert not torch.equal(twin.state_dict()[name], network.state_dict()[name])
    assert torch.equal(twin.body[0].weight, network.body[0].weight)
    same = copied(network)
    randomise(same, ["head", "body.1"], 0)
    assert torch.equal(same.head.weight, twin.head.weight)
    assert not any(one.requires_grad for one in twin.parameters())


def test_parameters_without_an_initialiser_keep_mean_and_spread():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(5 + 0.1 * torch.randn(2000))
            self.gain = nn.Parameter(torch.tensor(2.0))

    bare = Bare()
    twin = copied(bare)
    randomise(twin, [""], 1)
    assert not torch.allclose(twin.table, bare.table)
    assert float(twin.table.mean()) == pytest.approx(5, abs=0.02)
    assert float(twin.table.std()) == pytest.approx(0.1, rel=0.1)
    assert float(twin.gain) == -2.0
    activation = nn.Sequential(nn.PReLU())
    twin = copied(activation)
    randomise(twin, ["0"], 0)  # its initialiser gives the value that it has
    assert float(twin[0].weight) == -0.25


def test_layers_stand_in_the_order_in_which_they_run():
    network = StridedNet().eval()
    engine = Engine(as_model(network), random_volume(size=8), sx.Target(output=1))
    assert layers_from_output(engine, network) == ["head", "mix", "down"]
    before = state_of(network)
    layers_from_output(engine, network)
    assert state_of(network) == before


def test_a_transformer_and_torchscript_are_randomised_as_well():
    torch.manual_seed(0)
    vit = ViT(1, (16, 16, 16), (8, 8, 8), 24, 48, 1, 2, classification=True, num_classes=2)

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = vit

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.vit(x)[0]

    image = random_volume(size=16)
    target = sx.Target(output=1)
    model = as_model(First(), task="classification")
    found = sx.quality.sanity_check(model, image, target, "gradient", groups=2, draws=1)
    layers = [layer for stage in found.stages for layer in stage.layers]
    owners = [name for name, one in model.network.named_modules() if [*one.parameters(False)]]
    assert sorted(layers) == sorted(owners)
    assert "classification_head" in layers[0]
    assert "in the whole volume" in found.compared
    scripted = torch.jit.trace(StridedNet().eval(), torch.randn(1, 1, 12, 12, 12))
    found = sx.quality.sanity_check(
        as_model(scripted), random_volume(size=12), target, "gradient", groups=2, draws=1
    )
    assert found.stages[-1].score != pytest.approx(found.stages[0].score, rel=1e-3)


def test_the_check_works_through_windows_and_for_a_region_of_its_own(trained):
    model, image = trained
    windows = SlidingWindowInferer((16, 16, 16), overlap=0.25, mode="gaussian")
    fused = sx.load_model(model.network, task="segmentation", inferer=windows)
    segment = sx.make_image((np.arange(20**3).reshape((20,) * 3) % 7 == 0).astype(float), np.eye(4))
    target = sx.Target(output=1, segment=segment, score="probability")
    found = sx.quality.sanity_check(fused, image, target, "gradient", groups=2, draws=1)
    assert found.target["region"] == "segment"
    assert f"({int(segment.sum())} voxels)" in found.compared


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "both"}, "mode must be one of cascading, independent; 'both' was given"),
        ({"groups": 0}, "groups must be a whole number of at least 1; 0 was given"),
        ({"draws": 1.5}, r"draws must be a whole number of at least 1; 1.5 was given"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(MetricError, match=message):
        sx.quality.sanity_check(weighted_model(), random_volume(), EVERYWHERE, **options)


def test_a_network_without_weights_or_with_a_constant_map_is_refused():
    class Double(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, 2 * x], 1)

    with pytest.raises(MetricError, match="no weights, so there is nothing to randomise"):
        sx.quality.sanity_check(as_model(Double()), random_volume(), EVERYWHERE)
    flat = as_model(Weighted(np.ones((8, 8, 8))))
    with pytest.raises(MetricError, match="The map of Gradient is constant there"):
        sx.quality.sanity_check(flat, random_volume(), EVERYWHERE)


def test_a_network_that_cannot_be_copied_is_refused():
    class Stubborn(StridedNet):
        def __deepcopy__(self, memo):
            raise RuntimeError("not this one")

    with pytest.raises(MetricError, match=r"cannot be copied \(not this one\)"):
        sx.quality.sanity_check(as_model(Stubborn()), random_volume(size=8), sx.Target(output=1))


# ------------------------------------------------------------------------------------------------
# Sensitivity and repeatability


def test_sensitivity_equals_captums_on_the_same_noise():
    network = Classifier().eval()
    image = random_volume(size=10)
    model = as_model(network, task="classification")
    found = sx.explain(model, image, sx.Target(output=2), "gradient")
    options = {"samples": 4, "radius": 0.3, "seed": 7}
    asked = [sx.quality.make_metric("sensitivity", options)]
    told = sx.quality.evaluate(found, model, image, asked)
    x = image.as_tensor()[None]
    generator = torch.Generator().manual_seed(7)
    noise = [(2 * torch.rand(x.shape, generator=generator) - 1) * 0.3 * x.std() for _ in range(4)]
    waiting = iter(noise)

    def gradient(inputs: tuple[torch.Tensor]) -> torch.Tensor:
        # A tuple at first, a tensor for the noisy ones.
        leaf = (inputs[0] if isinstance(inputs, tuple) else inputs).detach().clone()
        leaf.requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(network(leaf)[0, 2], leaf)[0]

    expected = captum.metrics.sensitivity_max(
        gradient, x, lambda inputs: inputs[0] + next(waiting), n_perturb_samples=4,
        max_examples_per_batch=1,
    )  # fmt: skip
    assert told["sensitivity"].value == pytest.approx(float(expected), rel=1e-4)
    assert 0 < told["sensitivity.mean"].value <= told["sensitivity"].value
    assert max(float(one.abs().max()) for one in noise) <= 0.3 * float(x.std())


def test_a_linear_network_repeats_its_gradient_exactly():
    image, model = random_volume(), weighted_model()
    found = sx.explain(model, image, EVERYWHERE, "gradient")
    for name, expected in (("sensitivity", 0.0), ("repeatability_noise", 1.0)):
        assert measured(name, found, model, image) == pytest.approx(expected, abs=1e-6)


def test_a_network_without_strides_follows_a_shift_and_one_with_strides_does_not():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv3d(4, 2, 1)).eval()
    image = random_volume(size=16)
    middle = torch.zeros(16, 16, 16)
    middle[5:10, 5:10, 5:10] = 1
    target = sx.Target(output=1, segment=sx.make_image(middle, np.eye(4)))
    values = {}
    for name, network in (("plain", plain), ("strided", StridedNet().eval())):
        model = as_model(network)
        found = sx.explain(model, image, target, "gradient")
        values[name] = measured("repeatability_shift", found, model, image, target=target)
    assert values["plain"] == pytest.approx(1.0, abs=1e-6)
    assert values["strided"] < 0.9


def test_a_shift_moves_image_and_region_by_as_many_voxels():
    image, model = random_volume(), weighted_model()
    mask = torch.zeros(8, 8, 8)
    mask[2:5, 3:6, 1:4] = 1
    target = sx.Target(output=1, segment=sx.make_image(mask, np.eye(4)))
    found = sx.explain(model, image, target, "input_x_gradient")
    seen = []
    with a_trial(found, model, image, target) as trial:
        trial.map_of = lambda x, progress, mask=None: seen.append((x, mask)) or np.zeros((8, 8, 8))
        sx.quality.make_metric("repeatability_shift", {"voxels": 2}).measure(trial)
    for axis, (x, region) in enumerate(seen):
        expected = torch.roll(mask.bool(), 2, axis)
        assert torch.equal(region, expected)
        moved = torch.roll(image.as_tensor()[None], 2, axis + 2)
        kept = [slice(None)] * 5
        kept[axis + 2] = slice(2, None)
        assert torch.equal(x[tuple(kept)], moved[tuple(kept)])
    assert len(seen) == 3


def test_the_region_of_a_noisy_image_is_the_one_of_the_clean_one(trained):
    model, image = trained
    found = sx.explain(model, image, sx.Target(output=1), "gradient")
    with a_trial(found, model, image, sx.Target(output=1)) as trial:
        mask = trial.frozen.mask
        noisy = trial.engine.x + torch.randn(
            trial.engine.x.shape, generator=torch.Generator().manual_seed(0)
        )
        ours = trial.map_of(noisy, trial.part(0, 1))
    leaf = noisy.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model.network(leaf)[0, 1][mask].mean(), leaf)
    np.testing.assert_allclose(ours, expected[0, 0].numpy(), rtol=1e-3, atol=1e-7)
    assert not torch.equal(model.network(noisy)[0].argmax(0) == 1, mask)


def test_a_method_that_cannot_be_made_again_must_be_given():
    image, model = random_volume(size=8), weighted_model()
    slabs = sx.make_image((np.arange(8) // 2)[:, None, None] * np.ones((8, 8, 8)), np.eye(4))
    method = sx.make_method("region_ablation", {"regions": "segments", "segments": slabs})
    found = sx.explain(model, image, EVERYWHERE, method)
    asked = [sx.quality.make_metric("repeatability_noise", {"samples": 1})]
    row = sx.quality.evaluate(found, model, image, asked, EVERYWHERE).rows[0]
    assert "made with segments, which its record does not hold" in row.reading
    row = sx.quality.evaluate(found, model, image, asked, EVERYWHERE, method=method).rows[0]
    assert row.value > 0.9
    unknown = replace(found, method="by hand")
    row = sx.quality.evaluate(unknown, model, image, asked, EVERYWHERE).rows[0]
    assert "no method 'by hand' to run again" in row.reading


def test_an_empty_map_or_a_tiny_image_has_nothing_to_repeat():
    image, model = random_volume(), weighted_model()
    found = sx.explain(model, image, EVERYWHERE, "gradient")
    empty = replace(found, network_maps=sx.make_image(np.zeros((8, 8, 8)), np.eye(4)))
    for name in ("sensitivity", "repeatability_noise", "repeatability_shift"):
        row = sx.quality.evaluate(empty, model, image, [name]).rows[0]
        assert "zero everywhere, so there is nothing to repeat" in row.reading
    asked = [sx.quality.make_metric("repeatability_shift", {"voxels": 4})]
    row = sx.quality.evaluate(found, model, image, asked).rows[0]
    assert "leaves nothing to compare" in row.reading
