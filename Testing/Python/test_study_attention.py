"""The dual attention block, comparing models with it, and the study of both."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from monai.networks.nets import DenseNet, ResNet, UNet

import SaliencyExplainLib as sx
from SaliencyExplainLib import studies
from SaliencyExplainLib.errors import Cancelled, ImageError, ModelError, StudyError
from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.studies.attention_vs_baseline import STUDY, networks, pipeline
from SaliencyExplainLib.studies.attention_vs_baseline.block import VARIANTS
from SaliencyExplainLib.studies.results import VERDICTS, StudyResult
from SaliencyExplainLib.studies.statistics import proportion

C, GRID = 6, (2, 3, 2)
N = math.prod(GRID)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def a_densenet() -> DenseNet:
    torch.manual_seed(0)
    return DenseNet(3, 1, 1, init_features=8, growth_rate=4, block_config=(2, 2, 2)).eval()


def a_resnet(*, pooled: bool = False) -> ResNet:
    torch.manual_seed(1)
    return ResNet(
        "basic",
        [1, 1, 1, 1],
        [4, 8, 8, 16],
        n_input_channels=1,
        conv1_t_size=3,
        conv1_t_stride=1,
        no_max_pool=not pooled,
        num_classes=1,
    ).eval()


def twin(q, k, v, x, variant: str) -> np.ndarray:
    """The block's formulas in NumPy, on (C, N) of one image; gains 1, biases 0."""
    q, k, v, x = (one.numpy().reshape(C, N).astype(np.float64) for one in (q, k, v, x))
    logits = q.T @ k
    if variant == "scaled":
        logits = logits / np.sqrt(C)
    powers = np.exp(logits - logits.max())
    if variant == "torch_port":
        e = powers / powers.sum()
        o = v @ e
    else:
        e = powers / powers.sum(1, keepdims=True)
        o = (e @ v.T).T
    both = []
    for branch in (o + v, (x.T @ (x @ x.T)).T + x):
        kept = np.maximum(branch, 0)
        if variant != "torch_port":
            kept = (kept - kept.mean(0)) / np.sqrt(kept.var(0) + 1e-6)
        else:  # batch norm with the running statistics of a new one: mean 0, variance 1
            kept = kept / np.sqrt(1 + 1e-5)
        both.append(kept)
    return sum(both).reshape(C, *GRID) / 2


# -- The block ---------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_the_block_computes_the_published_formulas(variant):
    block = studies.MultiLevelDualAttention(C, variant).eval()
    given = [random(2, C, *GRID, seed=seed) for seed in range(4)]
    found = block(*given).detach().numpy()
    for image in range(2):
        expected = twin(*[one[image] for one in given], variant)
        assert found[image] == pytest.approx(expected, abs=1e-4)


def test_batch_norm_of_the_torch_port_learns_its_statistics_and_layer_norm_has_none():
    port = studies.MultiLevelDualAttention(C, "torch_port").train()
    given = [random(2, C, *GRID, seed=seed) for seed in range(4)]
    found = port(*given).detach()
    assert float(port.position_norm.running_mean.abs().max()) > 0
    assert float(found.mean((0, 2, 3, 4)).abs().max()) < 1e-5
    assert not list(studies.MultiLevelDualAttention(C).buffers())


def test_the_norms_of_the_block_have_a_gain_and_a_bias_a_channel():
    block = studies.MultiLevelDualAttention(C).eval()
    given = [random(1, C, *GRID, seed=seed) for seed in range(4)]
    before = block(*given)
    with torch.no_grad():
        for norm in (block.position_norm, block.channel_norm):
            norm.weight[1], norm.bias[1] = 3.0, 5.0
    after = block(*given)
    assert after[:, 1].detach().numpy() == pytest.approx(
        (3 * before[:, 1] + 5).detach().numpy(), abs=1e-4
    )
    assert torch.equal(after[:, 2:], before[:, 2:])


@pytest.mark.parametrize(
    ("variant", "axis", "total"), [("scaled", 2, 1.0), ("original", 2, 1.0), ("torch_port", 0, 1.0)]
)
def test_weights_are_normalised_as_the_variant_says(variant, axis, total):
    block = studies.MultiLevelDualAttention(C, variant)
    weights = block.weights(random(1, C, *GRID), random(1, C, *GRID, seed=1), torch.Size(GRID))
    assert weights.shape == (1, N, N)
    summed = weights.sum(2) if axis == 2 else weights.sum()
    assert summed.detach().numpy() == pytest.approx(total, abs=1e-5)


def test_the_scale_is_the_square_root_of_the_channels():
    q, k = random(1, C, *GRID), random(1, C, *GRID, seed=1)
    plain = studies.MultiLevelDualAttention(C, "original")
    scaled = studies.MultiLevelDualAttention(C, "scaled")
    grid = torch.Size(GRID)
    assert torch.allclose(scaled.weights(q, k, grid), plain.weights(q / C**0.5, k, grid))


def test_shallow_features_are_averaged_onto_the_grid_and_repeated_to_all_channels():
    block = studies.MultiLevelDualAttention(C).eval()
    fine = random(1, C // 2, *[2 * side for side in GRID])
    coarse = torch.nn.functional.avg_pool3d(fine, 2)
    deep = random(1, C, *GRID, seed=1)
    repeated = torch.cat([coarse, coarse], 1)
    assert torch.allclose(block(fine, deep, deep, deep), block(repeated, deep, deep, deep))
    more = torch.cat([repeated, random(1, 2, *GRID, seed=2)], 1)
    assert torch.equal(block(more, deep, deep, deep), block(repeated, deep, deep, deep))


def test_the_block_refuses_what_it_cannot_take():
    with pytest.raises(ModelError, match=r"no variant 'flat'.*scaled, original, torch_port"):
        studies.MultiLevelDualAttention(C, "flat")
    block = studies.MultiLevelDualAttention(C)
    deep = random(1, C + 1, *GRID)
    with pytest.raises(ModelError, match=r"features of 6 channels.*\(1, 7, 2, 3, 2\)"):
        block(deep, deep, deep, deep)
    wide = torch.zeros(1, C, 17, 17, 17)
    with pytest.raises(ModelError, match="at most 4096 voxels"):
        block(wide, wide, wide, wide)


# -- In a network ------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [a_densenet(), a_resnet(), a_resnet(pooled=True)])
def test_a_network_with_a_block_that_passes_on_its_features_is_the_network(network):
    class PassOn(torch.nn.Module):
        def forward(self, _query, _key, _value, deep):
            return deep

    made = studies.with_attention(network)
    made.attention = PassOn()
    x = random(2, 1, 32, 32, 32)
    with torch.no_grad():
        assert torch.allclose(made(x), network(x), atol=1e-6)


def test_the_given_network_is_left_as_it_is_and_shares_nothing():
    network = a_densenet()
    before = {name: one.clone() for name, one in network.state_dict().items()}
    made = studies.with_attention(network)
    with torch.no_grad():
        for one in made.parameters():
            one.add_(1.0)
    assert all(torch.equal(one, before[name]) for name, one in network.state_dict().items())
    assert not made.training
    assert studies.with_attention(network.train()).training


def test_query_key_and_value_come_from_the_last_three_stages_or_from_those_that_are_named():
    assert studies.with_attention(a_densenet()).taps == ("denseblock1", "denseblock2", "norm5")
    four = DenseNet(3, 1, 1, init_features=4, growth_rate=2, block_config=(1, 1, 1, 1))
    assert studies.with_attention(four).taps == ("denseblock2", "denseblock3", "norm5")
    made = studies.with_attention(a_resnet())
    assert made.taps == ("layer2", "layer3", "layer4")
    other = studies.with_attention(a_resnet(), taps=("layer1", "layer3", "layer4"))
    other.load_state_dict(made.state_dict())
    x = random(1, 1, 32, 32, 32)
    given = {}
    for name, one in (("made", made), ("other", other)):
        one.attention.register_forward_pre_hook(
            lambda _m, inputs, name=name: given.update({name: inputs})
        )
        one(x)
    layer1, layer2 = (made.stages[name] for name in ("layer1", "layer2"))
    assert given["other"][0].shape[1] == 4
    assert torch.equal(layer2(given["other"][0]), given["made"][0])
    assert layer1 is made.stages["layer1"]


def test_networks_that_cannot_take_the_block_are_refused():
    with pytest.raises(ModelError, match=r"UNet was given.*MultiLevelDualAttention"):
        studies.with_attention(UNet(3, 1, 2, (4, 8), (2,)))
    with pytest.raises(ModelError, match="at least 3 dense blocks"):
        studies.with_attention(DenseNet(3, 1, 1, 4, 2, block_config=(1, 1)))
    with pytest.raises(ModelError, match="3D"):
        studies.with_attention(DenseNet(2, 1, 1, 4, 2, block_config=(1, 1, 1)))
    with pytest.raises(ModelError, match=r"no stage 'layer9'.*layer4"):
        studies.with_attention(a_resnet(), taps=("layer9", "layer3", "layer4"))


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("make", [a_densenet, a_resnet])
def test_attention_rows_read_the_weights_that_the_block_uses_on_their_true_grid(make, variant):
    network = studies.with_attention(make(), variant=variant)
    image = make_image(0.3 * random(1, 32, 32, 32), np.diag([2.0, 2.0, 2.0, 1.0]))
    model = sx.Model(network, "classification", ("spiculated",), activation="sigmoid")
    shown = sx.explain(model, image, None, "attention_rows", query="mean")
    used = {}
    hook = network.attention.register_forward_pre_hook(
        lambda block, given: used.update(e=block.weights(*given[:2], given[3].shape[2:])[0])
    )
    with torch.no_grad():
        network(image.as_tensor()[None])
    hook.remove()
    rows = used["e"].mT if variant == "torch_port" else used["e"]
    expected = (rows / rows.sum(1, keepdim=True)).mean(0)
    found = shown.layer_map.as_tensor()
    assert found.flatten().tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    # The block leaves the voxels where the last features have them, by their strides.
    name = "stages.norm5" if make is a_densenet else "stages.layer4"
    grid = {one.name: one.grid for one in model.layers(shape=(1, 32, 32, 32))}
    assert grid["attention"] == grid[name]
    assert grid["attention"].exact
    assert np.allclose(shown.layer_map.affine, grid[name].affine(image.affine))


# -- Comparing models --------------------------------------------------------------------------


class Weighted(torch.nn.Module):
    """Logit: sum of weights times voxels."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weights).flatten(1).sum(1, keepdim=True)


SHAPE = (6, 6, 6)


def a_corner(value: float = 1.0) -> torch.Tensor:
    found = torch.zeros(SHAPE)
    found[:2, :2, :2] = value
    return found


def linear(weights: torch.Tensor) -> sx.Model:
    return sx.Model(Weighted(weights), "classification", ("spiculated",), activation="sigmoid")


@pytest.fixture(scope="module")
def cases() -> list:
    """Six images: the corner is bright in those of class 1."""
    noise = [0.1 * random(*SHAPE, seed=seed) for seed in range(6)]
    return [
        make_image((one + a_corner(1.0 if number % 2 else -1.0))[None], np.eye(4))
        for number, one in enumerate(noise)
    ]


@pytest.fixture(scope="module")
def models() -> dict[str, sx.Model]:
    """One that looks at the corner, one that looks everywhere, the corner among it."""
    return {"corner": linear(a_corner()), "all": linear(a_corner() + 0.2)}


@pytest.fixture(scope="module")
def compared(models, cases):
    truth = make_image(a_corner()[None], np.eye(4))
    told = []
    found = studies.compare_models(
        models,
        cases,
        ["spiculated" if number % 2 else 0 for number in range(6)],
        "integrated_gradients",
        sx.Target(score="logit"),
        [truth] * 6,
        progress=lambda fraction, _message: told.append(fraction),
        steps=4,
    )
    return found, told


def test_probabilities_are_those_of_the_network(models, cases, compared):
    found, _ = compared
    for number, image in enumerate(cases):
        with torch.no_grad():
            p = float(models["all"].network(image.as_tensor()[None]).sigmoid())
        assert found.probabilities["all"][number] == pytest.approx((1 - p, p), abs=1e-6)


def test_only_cases_that_all_models_get_right_are_compared(models, cases):
    labels = [number % 2 for number in range(6)]
    labels[2] = 1
    found = studies.compare_models(models, cases, labels, metrics=())
    assert [one.case for one in found.cases] == [0, 1, 3, 4, 5]
    other = {"corner": models["corner"], "by chance": linear(random(*SHAPE, seed=1))}
    wrong = []
    for number, image in enumerate(cases):
        with torch.no_grad():
            logit = float(other["by chance"].network(image.as_tensor()[None]))
        wrong += [number] * ((logit > 0) != labels[number])
    both = studies.compare_models(other, cases, labels, metrics=())
    assert set(wrong) - {2}
    assert [one.case for one in both.cases] == sorted({0, 1, 3, 4, 5} - set(wrong))
    assert [row[1][:5] for row in found.table("models").rows] == ["0.833", "0.833"]
    assert studies.compare_models(models, cases[:2], metrics=()).probabilities == {}
    with pytest.raises(StudyError, match=r"None of the 6 cases.*corner, all"):
        studies.compare_models(models, cases, [1 - number % 2 for number in range(6)])


def test_maps_metrics_and_differences_are_those_of_the_parts(models, cases, compared):
    found, told = compared
    one = found.cases[1]
    assert told == sorted(told)
    assert told[-1] == 1.0
    alone = sx.explain(
        models["all"], cases[1], sx.Target(score="logit"), "integrated_gradients", steps=4
    )
    assert torch.equal(one.maps["all"].maps.as_tensor(), alone.maps.as_tensor())
    assert one.maps["all"].title == f"all: {alone.title}"
    shares = {
        name: values / np.abs(values).sum()
        for name, values in ((key, it.map.numpy()) for key, it in one.maps.items())
    }
    difference = one.differences["all"]
    assert difference.map.numpy() == pytest.approx(shares["all"] - shares["corner"], abs=1e-6)
    assert difference.signed
    assert difference.value == pytest.approx(
        one.maps["all"].value - one.maps["corner"].value, abs=1e-5
    )
    assert "minus corner" in difference.title
    assert one.similarity["spearman"]["all"] == pytest.approx(
        sx.quality.spearman(one.maps["corner"].map.numpy(), one.maps["all"].map.numpy()), abs=1e-6
    )
    mass = sx.quality.evaluate(
        alone,
        models["all"],
        cases[1],
        ["relevance_mass"],
        sx.Target(score="logit"),
        make_image(a_corner()[None], np.eye(4)),
    )["relevance_mass"].value
    assert one.metrics["relevance_mass"] == pytest.approx({"corner": 1.0, "all": mass})
    assert mass < 1


def test_the_tables_hold_the_means_and_the_paired_tests(compared):
    found, _ = compared
    table = found.table("metrics")
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert set(rows) == {"deletion", "insertion", "relevance_mass", "relevance_rank"}
    mass = rows["relevance_mass"]
    values = [one.metrics["relevance_mass"] for one in found.cases]
    known = [pair["all"] - pair["corner"] for pair in values if not math.isnan(pair["all"])]
    known = [one for one in known if not math.isnan(one)]
    assert mass["cases"] == len(known)
    assert mass["mean difference"] == pytest.approx(np.mean(known))
    assert mass["p (sign flip)"] == pytest.approx(2 / 2 ** len(known))
    assert mass["p (Holm)"] >= mass["p (sign flip)"]
    assert found.table("similarity").rows[0][:4] == ("spearman", "corner", "all", 6)
    with pytest.raises(StudyError, match=r"no table 'other'.*models, similarity, metrics"):
        found.table("other")


def test_each_model_may_have_its_own_method(models, cases):
    each = {
        "corner": sx.make_method("gradient"),
        "all": sx.make_method("smooth_grad", {"samples": 2}),
    }
    found = studies.compare_models(models, cases[:1], method=each, metrics=())
    assert [one.method for one in found.cases[0].maps.values()] == ["gradient", "smooth_grad"]
    with pytest.raises(StudyError, match="No method was given for the model 'all'"):
        studies.compare_models(models, cases[:1], method={"corner": each["corner"]}, metrics=())


def test_segmentation_networks_are_compared_without_labels(unet, a_volume):
    other = UNet(3, 1, 3, (4, 8), (2,)).eval()
    both = {"one": sx.Model(unet, "segmentation"), "other": sx.Model(other, "segmentation")}
    found = studies.compare_models(
        both, [a_volume(1, 16, 16, 16)], target=sx.Target(output=1, region="everywhere"), metrics=()
    )
    assert found.cases[0].differences["other"].map.shape == (1, 16, 16, 16)
    with pytest.raises(StudyError, match=r"does segmentation. Leave the labels out"):
        studies.compare_models(both, [a_volume(1, 16, 16, 16)], [0])


def test_a_comparison_refuses_what_it_cannot_compare(models, cases):
    with pytest.raises(StudyError, match="two models or more; 1 was given"):
        studies.compare_models({"corner": models["corner"]}, cases)
    with pytest.raises(StudyError, match="at least one image"):
        studies.compare_models(models, [])
    with pytest.raises(StudyError, match="6 images need as many labels; 2 were given"):
        studies.compare_models(models, cases, [0, 1])
    with pytest.raises(StudyError, match=r"masks of evidence \(truths\); 1 were given"):
        studies.compare_models(models, cases, truths=[None])
    with pytest.raises(StudyError, match="'round' is none of the model's: spiculated"):
        studies.compare_models(models, cases, ["round"] * 6)
    with pytest.raises(StudyError, match="no class 2; the classes are 0 to 1"):
        studies.compare_models(models, cases, [2] * 6)
    with pytest.raises(Cancelled):
        studies.compare_models(models, cases, [0] * 6, cancelled=lambda: True)


# -- The volumes -------------------------------------------------------------------------------


def test_a_nodule_alone_in_a_narrow_volume_is_drawn_larger_and_fills_the_same_millilitres():
    def bodies_ml(size: int, width_mm: float) -> float:
        scene = studies.spiculated_nodules(size, 3, 1, share=1.0, noise=0.0, width_mm=width_mm)
        assert scene.image.shape == (1, size, size, size)
        assert np.diag(scene.image.affine)[:3] == pytest.approx(width_mm / size)
        assert scene.image.affine[0][3] == pytest.approx((width_mm / size - width_mm) / 2)
        voxels = float((scene.labels.as_tensor() == scene.TARGET).sum())
        return voxels * (width_mm / size) ** 3 / 1000

    narrow, wide = bodies_ml(42, 84.0), bodies_ml(64, 128.0)
    assert narrow == pytest.approx(wide, rel=0.03)
    assert bodies_ml(42, 40.0) < 0.5 * narrow  # made smaller to fit
    with pytest.raises(ImageError, match="width_mm of a volume with nodules is 20 or more"):
        studies.spiculated_nodules(16, width_mm=5.0)


# -- The study ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Result, folder, and all that was told of the progress."""
    folder = tmp_path_factory.mktemp("attention")
    told: list[float] = []
    found = STUDY(folder, quick=True, progress=lambda fraction, _message: told.append(fraction))
    return found, folder, told


def test_the_study_tells_progress_that_never_goes_back(quick):
    _, _, told = quick
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(told))
    assert told[-1] == pytest.approx(1.0)


def test_every_network_is_scored_and_every_pair_is_tested(quick):
    found, _, _ = quick
    rows = found.table("accuracy").rows
    names = [row[0] for row in rows]
    assert names == [
        "DenseNet + augmented",
        "DenseNet + block + augmented",
        "ResNet + augmented",
        "ResNet + block + augmented",
    ]
    assert [row[5] is None for row in rows] == [True, False, True, False]
    paired = found.table("paired")
    assert len(paired.rows) == 2 * len(pipeline.METHODS) * len(pipeline.METRICS)
    gradient = [row for row in paired.rows if row[1] == "gradient of the probability"]
    assert {row[3] for row in gradient if row[2] == "rank accuracy"} == {3}
    assert len(found.table("similarity").rows) == 2 * len(pipeline.METHODS)
    assert len(found.table("attention").rows) == 2
    assert {one.verdict for one in found.comparisons} <= set(VERDICTS)
    assert found.comparisons[-1].published == "inconclusive"


def test_the_findings_state_the_numbers_of_the_tables(quick):
    found, _, _ = quick
    said = " ".join(found.answer)
    for row in found.table("accuracy").rows:
        assert row[1] in said
    for row in found.table("evidence_used").rows:
        assert f"{row[0]} {row[5]}" in said
    clear = [row for row in found.table("paired").rows if row[10] < 0.05]
    assert len(clear) == 0  # three cases cannot be
    assert said.count("for the network with the block 0, for the baseline 0, of") == 2


def test_the_numbers_are_those_of_the_networks_on_volumes_that_were_not_trained_on(quick):
    found, folder, _ = quick
    setting = pipeline.QUICK
    variant = networks.Contender("DenseNet", block=True, augmented=True)
    network = studies.with_attention(networks.make_network("DenseNet"))
    kept = torch.load(folder / "work" / f"{variant.file}.pt", weights_only=True)
    network.load_state_dict(kept["network"])
    network.eval()
    hits = []
    for number in range(setting.test):
        scene = studies.spiculated_nodules(
            setting.size,
            2_000_000 + number,
            1,
            share=float(number % 2),
            noise=setting.noise,
            width_mm=setting.width_mm,
        )
        with torch.no_grad():
            logit = float(network(scene.image.as_tensor()[None]))
        hits.append((logit > 0) == bool(number % 2))
    row = next(row for row in found.table("accuracy").rows if row[0] == variant.name)
    assert row[1] == proportion(sum(hits), len(hits)).in_words()
    assert sum(hits) / len(hits) > 0.7  # it has learned the task


def test_maps_are_compared_where_all_networks_are_right_in_all_four_variants():
    setting = pipeline.STANDARD
    names = [one.name for one in networks.contenders(setting, "ResNet")]
    assert len(names) == 4
    answers = [
        {"spiculated": number % 2, **{name: [1, 0] for name in names}} for number in range(8)
    ]
    answers[3][names[2]] = [-1, 0]
    assert pipeline._explained(setting, "ResNet", answers) == ([1, 5, 7], True)
    for one in answers:
        one[names[1]] = [-1, 0]
    assert pipeline._explained(setting, "ResNet", answers) == ([1, 3, 5, 7], False)


def test_a_case_holds_maps_that_a_scene_can_show(quick):
    found, folder, _ = quick
    titles = [one.title for one in found.cases[0].maps]
    assert len(titles) == 7
    assert sum("minus DenseNet + augmented" in title for title in titles) == 2
    attention = found.cases[0].maps[4]
    assert attention.method == "attention_rows"
    assert attention.map.shape == found.cases[0].image.shape
    again = StudyResult.load(folder)
    assert again.answer == found.answer
    assert [len(one.maps) for one in again.cases] == [7, 7]
    assert (folder / "attention_vs_baseline.md").is_file()
    for figure in found.figures:
        assert (folder / f"{figure.name}.png").stat().st_size > 10_000


def test_the_study_can_be_published_into_a_scene_and_its_file_read_back(quick, tmp_path):
    found, _, _ = quick
    scene = sx.scene.new_scene()
    try:
        made = sx.scene.publish_study(found, scene)
        assert len(made.maps) == 14
        assert len(made.segmentations) == 2
        assert len(made.charts) == 2
        assert len(made.tables) == len(found.tables) + 1
        path = tmp_path / "study.mrb"
        sx.scene.save_mrb(scene, path)
        assert path.stat().st_size > 100_000
    finally:
        sx.scene.release_scene(scene)


def test_a_study_that_was_stopped_goes_on_and_ends_like_one_that_was_not(
    quick, tmp_path, monkeypatch
):
    found, folder, _ = quick
    import shutil

    kept = tmp_path / "stopped"
    shutil.copytree(folder / "work", kept / "work")
    # As it was when it was stopped among the maps of the first backbone.
    lines = (
        (kept / "work" / "maps_of_densenet.jsonl")
        .read_text(encoding="utf-8")
        .splitlines(keepends=True)
    )
    (kept / "work" / "maps_of_densenet.jsonl").write_text("".join(lines[:1]))
    (kept / "work" / "maps_of_resnet.jsonl").unlink()
    asked = iter(range(10**9))
    with pytest.raises(Cancelled, match="What is done is kept in"):
        STUDY(kept, quick=True, cancelled=lambda: next(asked) > 60)

    def untrained(*_args, **_kwargs):
        raise AssertionError("volumes were made to train on")

    monkeypatch.setattr(networks.Volumes, "all", untrained)
    again = STUDY(kept, quick=True)
    assert again.answer == found.answer
    assert repr(again.table("paired").rows) == repr(found.table("paired").rows)


def test_listing_the_study_imports_no_torch():
    import subprocess
    import sys

    code = (
        "import sys; from SaliencyExplainLib.studies.attention_vs_baseline import STUDY;"
        "print(STUDY.name, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["attention_vs_baseline", "False"]


def test_the_turns_of_the_augmentation_are_the_48_of_a_cube():
    chance = np.random.default_rng(0)
    volume = torch.arange(27.0).view(1, 3, 3, 3)
    seen = {tuple(networks._turned(volume, chance).flatten().tolist()) for _ in range(1500)}
    assert len(seen) == 48


def test_the_sizes_of_the_branches_are_those_of_their_products():
    network = studies.with_attention(
        a_densenet(), taps=("denseblock1", "denseblock2", "denseblock3")
    )
    with torch.no_grad():
        network.stages["norm5"].weight.mul_(3)  # so that V and X differ
    x = random(1, 1, 32, 32, 32)
    found = networks.branch_sizes(network, x)
    given = {}
    hook = network.attention.register_forward_pre_hook(lambda _m, inputs: given.update(i=inputs))
    with torch.no_grad():
        network(x)
    hook.remove()
    q, k, v, deep = given["i"]
    e = network.attention.weights(q, k, deep.shape[2:])[0].detach().numpy()
    v, x_ = (one[0].flatten(1).numpy().T for one in (v, deep))
    expected = (
        np.linalg.norm(e @ v) / np.linalg.norm(v),
        np.linalg.norm(x_ @ (x_.T @ x_)) / np.linalg.norm(x_),
    )
    assert found == pytest.approx(expected, rel=1e-4)
