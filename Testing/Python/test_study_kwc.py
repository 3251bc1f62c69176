"""Layer sets, maps over several layers, their comparison on a user's cases, the study of KWC."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import AttentionUnet, BasicUNet, DynUNet
from scipy import stats

import SaliencyExplainLib as sx
from SaliencyExplainLib import quality
from SaliencyExplainLib.errors import Cancelled, ModelError, StudyError
from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.model import Windows, shipped
from SaliencyExplainLib.studies import (
    LayerSet,
    LayerSetComparison,
    StudyResult,
    combine_layers,
    compare_layer_sets,
    layer_set_maps,
    layer_sets,
    spiculated_nodules,
)
from SaliencyExplainLib.studies.kernel_weighted_contribution import STUDY, findings, pipeline
from SaliencyExplainLib.studies.kernel_weighted_contribution.compare import METHODS, rank_agreement
from SaliencyExplainLib.studies.kernel_weighted_contribution.controls import (
    SumOfFeatures,
    as_explanation,
)
from SaliencyExplainLib.studies.kernel_weighted_contribution.measures import (
    METRICS,
    measured,
    published_target,
)
from SaliencyExplainLib.studies.kernel_weighted_contribution.network import (
    FIRST_TRAINING_SEED,
    NoduleNet,
    _Conv3d,
    as_model,
    dice,
)
from SaliencyExplainLib.studies.nodules import SpiculatedNodules

ROOT = Path(__file__).resolve().parents[2]
AQ, RANK = "attribution_quality", "evidence_rank"
KWC = METHODS[0]
FIVE = (
    "encoder",
    "decoder",
    "decoder_without_transposed",
    "both",
    "both_without_transposed",
)
TINY = pipeline.Setup(16, (2, 4), 3, 4, 3, 1, 0)


@pytest.fixture(scope="module")
def scene() -> SpiculatedNodules:
    return spiculated_nodules(24, seed=3, count=1)


@pytest.fixture(scope="module")
def model() -> sx.Model:
    """A network that was not trained, whose prediction is about half of the volume."""
    torch.manual_seed(0)
    return as_model(NoduleNet((3, 4, 5)).eval())


@pytest.fixture(scope="module")
def maps(model, scene):
    return layer_set_maps(model, scene.image, layer_sets(model, scene.image), METHODS)


def a_volume(size: int = 32):
    return make_image(torch.zeros(1, size, size, size), np.eye(4))


# -- Layer sets --------------------------------------------------------------------------------


def test_a_network_of_nnunets_form_has_the_five_published_sets():
    found = {
        one.name: one.layers for one in layer_sets(as_model(NoduleNet((4, 8, 16))), a_volume())
    }
    assert tuple(found) == FIVE
    encoder = ("encoder.0.2", "encoder.0.5", "encoder.1.2", "encoder.1.5")
    plain = ("decoder.0.2", "decoder.0.5", "decoder.1.2", "decoder.1.5")
    assert found["encoder"] == encoder
    assert found["decoder_without_transposed"] == plain
    assert found["decoder"] == ("up.0", *plain[:2], "up.1", *plain[2:])
    assert found["both"] == encoder + found["decoder"]
    assert found["both_without_transposed"] == encoder + plain


def test_features_can_be_read_at_the_convolutions_themselves():
    found = layer_sets(as_model(NoduleNet((4, 8, 16))), a_volume(), reading="convolution")
    assert found[0].layers == ("encoder.0.0", "encoder.0.3", "encoder.1.0", "encoder.1.3")
    assert found[1].layers[:3] == ("up.0", "decoder.0.0", "decoder.0.3")


def test_the_published_count_of_layers_comes_out_of_nnunets_own_form():
    # Methods: 5 poolings give 10 encoder, 5 transposed and 10 decoder convolutions.
    filters = [2, 2, 2, 2, 2, 2]
    network = DynUNet(3, 1, 2, [3] * 6, [1, 2, 2, 2, 2, 2], [2] * 5, filters=filters)
    found = {one.name: len(one.layers) for one in layer_sets(as_model(network), a_volume(64))}
    assert found == dict(zip(FIVE, (10, 15, 10, 25, 20), strict=True))


def test_an_activation_in_place_is_the_end_of_its_block():
    network = BasicUNet(3, 1, 2, (2, 2, 2, 2, 2, 2))
    encoder = layer_sets(as_model(network), a_volume())[0].layers
    assert len(encoder) == 8
    assert all(name.endswith("adn.A") for name in encoder)


def test_a_decoder_of_transposed_convolutions_only_has_no_set_without_them():
    found = layer_sets(sx.load_model(shipped.shipped_bundle("SpiculatedNodules")), a_volume(64))
    assert [(one.name, len(one.layers)) for one in found] == [
        ("encoder", 3),
        ("decoder", 3),
        ("both", 6),
    ]


def test_the_head_is_in_no_set(unet):
    layers = {name for one in layer_sets(as_model(unet), a_volume()) for name in one.layers}
    final = [one.name for one in as_model(unet).layers(shape=(1, 32, 32, 32)) if one.final]
    assert final
    assert not layers & set(final)


def test_convolutions_that_see_a_single_voxel_are_in_no_set():
    network = AttentionUnet(3, 1, 2, (2, 4, 8), (2, 2))
    found = layer_sets(as_model(network), a_volume(16), reading="convolution")
    layers = {name for one in found for name in one.layers}
    assert len(layers) == 8
    assert not any("attention" in name for name in layers)  # its gates are of 1x1x1


def test_a_network_without_a_coarser_grid_is_refused():
    flat = as_model(torch.nn.Sequential(*[torch.nn.Conv3d(1, 1, 3, padding=1) for _ in range(2)]))
    with pytest.raises(StudyError, match=r"no encoder and decoder.*Name the layers yourself"):
        layer_sets(flat, a_volume(16))


def test_an_encoder_alone_is_refused():
    down = as_model(
        torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3, padding=1), torch.nn.Conv3d(2, 2, 3, 2, 1))
    )
    with pytest.raises(StudyError, match="no encoder and decoder"):
        layer_sets(down, a_volume(16))


def test_an_unknown_reading_and_an_empty_set_are_refused(model, scene):
    with pytest.raises(StudyError, match="read at an activation or at a convolution; 'norm'"):
        layer_sets(model, scene.image, reading="norm")
    with pytest.raises(StudyError, match="'mine' has no layer"):
        LayerSet("mine", "mine", ())


# -- Maps over several layers ------------------------------------------------------------------


def test_kwc_over_a_set_equals_the_method_given_all_layers(model, scene, maps):
    group = layer_sets(model, scene.image)[1]
    whole = sx.explain(model, scene.image, published_target(), KWC, layer=", ".join(group.layers))
    made = maps["decoder", KWC]
    assert torch.allclose(made.maps.as_tensor(), whole.maps.as_tensor(), rtol=1e-4, atol=1e-6)
    assert made.layers == whole.layers == group.layers


@pytest.mark.parametrize("method", ["grad_cam", "grad_cam_plus_plus"])
def test_cams_are_added_after_each_was_divided_by_its_maximum(model, scene, maps, method):
    group = layer_sets(model, scene.image)[2]
    total = 0
    for layer in group.layers:
        one = sx.explain(model, scene.image, published_target(), method, layer=layer)
        values = one.maps.as_tensor().clamp(min=0)
        total = total + values / (values.max() + 1e-7)
    made = maps[group.name, method].maps.as_tensor()
    assert torch.allclose(made, total, rtol=1e-4, atol=1e-5)
    assert float(made.max()) > 1  # several layers agree somewhere


def test_score_cam_weighs_channels_by_the_mean_over_the_prediction(model, scene, maps):
    mean = sx.Target(region="prediction", score="probability", reduce="mean")
    layer = "decoder.1.5"
    one = sx.explain(model, scene.image, mean, "score_cam", layer=layer)
    alone = layer_set_maps(model, scene.image, [LayerSet("one", "one", (layer,))], ["score_cam"])[
        "one", "score_cam"
    ]
    values = one.maps.as_tensor()
    assert torch.allclose(alone.maps.as_tensor(), values / (values.max() + 1e-7), atol=1e-5)
    assert alone.target["reduce"] == "mean"
    assert maps["both", "grad_cam"].target["region"] == "everywhere"


def test_a_layer_whose_map_is_zero_adds_nothing(maps):
    one = maps["encoder", "grad_cam"]
    nothing = replace(one, maps=one.maps * 0, network_maps=one.network_maps * 0, layers=("silent",))
    both = combine_layers([one, nothing])
    alone = combine_layers([one])
    assert torch.equal(both.maps.as_tensor(), alone.maps.as_tensor())
    assert both.layers == (*one.layers, "silent")
    assert both.parameters["layer"] == ", ".join(both.layers)


def test_negative_values_of_a_signed_map_are_left_out(model, scene):
    group = LayerSet("one", "one", ("decoder.1.5",))
    raw = sx.explain(model, scene.image, published_target(), "hires_cam", layer="decoder.1.5")
    assert float(raw.maps.min()) < 0
    made = layer_set_maps(model, scene.image, [group], ["hires_cam"])["one", "hires_cam"]
    assert float(made.maps.min()) == 0
    assert not made.signed


def test_only_maps_that_belong_together_are_joined(maps):
    with pytest.raises(StudyError, match="no map to join"):
        combine_layers([])
    with pytest.raises(StudyError, match="Maps of one method, target and image can be joined"):
        combine_layers([maps["encoder", "grad_cam"], maps["encoder", KWC]])
    other = replace(maps["encoder", KWC], target={"output": 5})
    with pytest.raises(StudyError, match="can be joined"):
        combine_layers([maps["encoder", KWC], other])


def test_the_sum_of_features_is_score_cam_with_every_weight_one(model, scene):
    group = LayerSet("one", "one", ("encoder.0.5",))
    made = layer_set_maps(model, scene.image, [group], [SumOfFeatures()])
    kept: list[torch.Tensor] = []
    hook = model.network.encoder[0][5].register_forward_hook(lambda _m, _i, out: kept.append(out))
    with torch.no_grad():
        model.network(scene.image.as_tensor()[None])
    hook.remove()
    expected = kept[0].sum(1).clamp(min=0)
    found = made["one", SumOfFeatures.name].maps.as_tensor()
    assert torch.allclose(found, expected / (expected.max() + 1e-7), atol=1e-5)


def test_methods_without_a_layer_are_refused(model, scene):
    sets = layer_sets(model, scene.image)
    with pytest.raises(StudyError, match=r"look at a layer; Gradient.* was given"):
        layer_set_maps(model, scene.image, sets, ["grad_cam", "gradient"])
    with pytest.raises(StudyError, match="none was given"):
        layer_set_maps(model, scene.image, sets, [])


# -- Measuring ---------------------------------------------------------------------------------


@pytest.mark.parametrize("windowed", [False, True])
def test_what_is_measured_is_what_evaluate_measures(model, scene, maps, windowed):
    if windowed:
        model = replace(model, inferer=Windows((16, 16, 16), (0.25, 0.25, 0.25), "gaussian"))
    chosen = {key: maps[key] for key in (("both", KWC), ("encoder", "grad_cam"))}
    found = measured(
        model,
        scene.image,
        scene.labels,
        chosen,
        published_target(),
        target_label=3,
        evidence_label=2,
    )
    for key, one in chosen.items():
        told = {**one.target}
        expected = quality.evaluate(
            replace(one, value=found_value(model, scene), target=told),
            model,
            scene.image,
            [AQ, "image_preserved", "excess_prediction", "relevance_rank"],
            published_target(),
            truth=scene.evidence,
            labelmap=scene.labels,
        )
        names = {AQ: AQ, "image_preserved": "image_preserved"}
        names |= {"excess_prediction": "excess_prediction", RANK: "relevance_rank"}
        names |= {
            part: f"{AQ}.{part}"
            for part in (
                "prediction_preserved",
                "relative_entropy",
                "relative_foreground",
                "external_peaks",
            )
        }
        for mine, theirs in names.items():
            assert found[key][mine] == pytest.approx(expected[theirs].value, rel=1e-4), mine


def found_value(model, scene) -> float:
    """Score of the scene: through windows it is another one than of the whole volume."""
    return sx.explain(model, scene.image, published_target(), "gradient").value


def test_an_even_map_has_quality_one_and_a_zero_map_none(model, scene, maps):
    like = maps["both", KWC]
    ones = torch.ones_like(scene.image.as_tensor())
    truth = scene.evidence.as_tensor()
    named = {
        "even": as_explanation(ones, like, "even"),
        "zero": as_explanation(0 * ones, like, "zero"),
        "truth": as_explanation(truth, like, "truth"),
        "outside": as_explanation(scene.labels.as_tensor() == 2, like, "outside"),
    }
    found = measured(
        model,
        scene.image,
        scene.labels,
        named,
        published_target(),
        target_label=3,
        evidence_label=2,
    )
    assert found["even"][AQ] == 1.0
    assert found["even"]["image_preserved"] == 1.0
    assert found["truth"][RANK] == 1.0
    assert found["truth"]["relative_foreground"] == 1.0
    assert found["outside"]["outside_rank"] == 1.0
    assert found["outside"][RANK] < 1.0
    assert set(found["zero"]) == set(METRICS)
    assert all(np.isnan(value) for value in found["zero"].values())


def test_without_known_evidence_outside_no_peak_hits(model, scene, maps):
    found = measured(
        model,
        scene.image,
        scene.labels,
        {"map": maps["both", KWC]},
        published_target(),
        target_label=3,
        evidence_label=None,
    )["map"]
    assert found["external_peaks"] == 0
    assert np.isnan(found["outside_rank"])
    body = make_image(scene.labels.as_tensor() == 3, scene.labels.affine)
    rank = quality.evaluate(maps["both", KWC], metrics=["relevance_rank"], truth=body)
    assert found[RANK] == pytest.approx(rank["relevance_rank"].value)


# -- The comparison ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(model):
    scenes = [spiculated_nodules(16, seed=seed, count=1) for seed in (1, 2)]
    told: list[float] = []
    found = compare_layer_sets(
        model,
        [(one.image, one.labels) for one in scenes],
        methods=("grad_cam", "hires_cam"),
        target_label=3,
        evidence_label=2,
        progress=lambda part, _: told.append(part),
    )
    assert told[-1] == 1.0
    assert told == sorted(told)
    return found


def test_a_users_cases_become_a_table_and_tests(compared):
    assert [one.name for one in compared.sets] == list(FIVE)
    table = compared.table()
    assert len(table.rows) == 10
    assert table.rows[0][:3] == ("encoder", 4, "Grad-CAM")
    assert len(compared.tests()) == 5 + 4
    assert compared.tests_table().rows[0][0] == "Grad-CAM, encoder"
    values = compared.values("both", "grad_cam", AQ)
    assert values.shape == (2,)
    assert str(compared.median("both", "grad_cam")) == table.rows[6][3]
    assert compared.median("both", "grad_cam").value == pytest.approx(values.mean())


def test_the_first_of_the_order_has_the_best_median(compared):
    for metric, (_, higher) in METRICS.items():
        medians = [compared.median(*key, metric).value for key in compared.order(metric)]
        known = [one for one in medians if np.isfinite(one)]
        assert known == sorted(known, reverse=higher)
    assert len(compared.order(AQ, "encoder")) == 2


def test_what_was_not_measured_is_named(compared):
    with pytest.raises(StudyError, match=r"'encoder/lime' was not measured. Sets: encoder"):
        compared.values("encoder", "lime", AQ)


def test_cases_that_do_not_fit_are_refused(model, scene):
    with pytest.raises(StudyError, match="There is no case"):
        compare_layer_sets(model, [])
    with pytest.raises(StudyError, match=r"label map of case 1 needs voxels 9"):
        compare_layer_sets(model, [(scene.image, scene.labels)], target_label=9)


def test_maps_that_need_passes_of_their_own_can_be_cancelled(model, scene):
    group = LayerSet("one", "one", ("encoder.0.5",))
    asked = iter([False] * 3)
    with pytest.raises(Cancelled):
        layer_set_maps(model, scene.image, [group], [KWC], cancelled=lambda: next(asked, True))


def test_a_comparison_can_be_cancelled(model, scene):
    asked = iter([False] * 12)
    with pytest.raises(Cancelled):
        compare_layer_sets(
            model,
            [(scene.image, scene.labels)],
            target_label=3,
            cancelled=lambda: next(asked, True),
        )
    assert all(not one._forward_hooks for one in model.network.modules())


def test_agreement_is_the_rank_correlation_of_the_medians():
    chance = np.random.default_rng(2)
    one = chance.normal(size=(9, 6)) + np.arange(6)
    other = chance.normal(size=(9, 6)) - np.arange(6)
    expected = stats.spearmanr(np.median(one, 0), np.median(other, 0)).statistic
    found = rank_agreement(one, other)
    assert found.value == pytest.approx(expected)
    assert found.low <= found.value <= found.high
    assert rank_agreement(one, 2 * one + 1).value == pytest.approx(1)


# -- Sentences ---------------------------------------------------------------------------------


def made_up(level: dict[str, float], cases: int = 12, best_set: str = "both") -> LayerSetComparison:
    """A comparison whose methods differ by that much on every set."""
    chance = np.random.default_rng(3)
    sets = tuple(
        LayerSet(name, name.replace("_", " "), tuple("abcdefgh"[: 3 + 5 * (name == "both")]))
        for name in FIVE
    )
    rows = []
    for _ in range(cases):
        row = {}
        for group in FIVE:
            for method in METHODS:
                value = level[method] + 0.5 * (group == best_set) + 0.05 * chance.random()
                row[f"{group}/{method}"] = dict.fromkeys(METRICS, value)
        rows.append(row)
    return LayerSetComparison(sets, {name: name for name in METHODS}, tuple(rows))


def test_the_claims_are_confirmed_where_the_figures_say_so():
    higher = made_up({KWC: 2.0, "grad_cam": 1.0, "grad_cam_plus_plus": 1.2, "score_cam": 1.1})
    rows = {one.what.split(" ")[0]: one for one in claims(higher)}
    assert rows["layer"].verdict == "confirmed"
    assert rows["layer"].ours.startswith("5 of 5")
    assert claims(higher)[1].verdict == "confirmed"
    assert claims(higher)[2].verdict == "refuted"  # not equivalent on the plain decoder
    assert "confirmed" in findings._ordering(higher)
    assert "agrees with the truth" in findings._truth(higher)


def test_the_claims_are_refuted_where_the_figures_say_so():
    lower = made_up(
        {KWC: 1.0, "grad_cam": 1.0, "grad_cam_plus_plus": 2.0, "score_cam": 1.1}, best_set="encoder"
    )
    assert claims(lower)[0].verdict == "refuted"
    assert claims(lower)[0].ours.startswith("0 of 5")
    assert "grad_cam_plus_plus" in claims(lower)[0].why
    assert claims(lower)[1].verdict == "refuted"
    assert "grad_cam_plus_plus beats it on 5" in findings._ordering(lower)


def test_the_third_claim_is_confirmed_where_both_are_alike():
    alike = made_up({KWC: 2.0, "grad_cam": 1.0, "grad_cam_plus_plus": 2.0, "score_cam": 1.1})
    assert claims(alike)[2].verdict == "confirmed"
    assert claims(alike)[0].verdict == "refuted"


def claims(main: LayerSetComparison):
    controls = {"even map": {AQ: [1.0]}, "truth": {AQ: [9.0]}}
    found = pipeline.Found(main, main, main, None, controls, [], 0, [])
    return findings.comparisons(found)


# -- The network and the shipped models --------------------------------------------------------


def test_the_fast_convolution_is_the_convolution():
    torch.manual_seed(1)
    fast = _Conv3d(3, 4, 3, stride=2, padding=1)
    slow = torch.nn.Conv3d(3, 4, 3, stride=2, padding=1)
    slow.load_state_dict(fast.state_dict())
    for batch in (1, 2):
        x = torch.randn(batch, 3, 9, 10, 11, requires_grad=True)
        assert torch.allclose(fast(x), slow(x), atol=1e-5)
        mine, theirs = (torch.autograd.grad(one(x).square().sum(), x)[0] for one in (fast, slow))
        assert torch.allclose(mine, theirs, atol=1e-4)
    assert fast.double()(torch.randn(1, 3, 8, 8, 8).double()).dtype == torch.float64


def test_no_test_scene_is_one_that_was_trained_on():
    for setup in map(pipeline.Setup.of, (True, False)):
        for seed in (0, 1, 7):
            tests = {seed * pipeline._SEEDS + number for number in range(setup.cases)}
            assert max(tests) < 1_000_000  # the committed model's first training scene
            assert max(tests) < FIRST_TRAINING_SEED
    assert pipeline.Setup.of(False).cases >= 100


def test_dice_is_the_overlap():
    one, other = np.array([1, 1, 0, 0]) > 0, np.array([0, 1, 1, 1]) > 0
    assert dice(one, other) == pytest.approx(2 / 5)
    assert dice(one & ~one, one & ~one) == 1


def test_a_shipped_model_is_found_where_slicer_installs_it(monkeypatch, tmp_path):
    inside = tmp_path / "Resources" / "Models" / "SpiculatedNodules"
    (inside / "models").mkdir(parents=True)
    monkeypatch.setattr(
        shipped, "__file__", str(tmp_path / "SaliencyExplainLib" / "model" / "shipped.py")
    )
    assert shipped.shipped_bundle("SpiculatedNodules") == inside
    with pytest.raises(ModelError, match=r"model BrainTissue is not there \(looked for .* or "):
        shipped.shipped_bundle("BrainTissue")


# -- The study ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kwc")


@pytest.fixture(scope="module")
def result(folder) -> StudyResult:
    return STUDY(folder, quick=True)


def test_the_study_answers_with_its_own_figures(result):
    first = result.answer[0]
    wins = int(first.split(" layer sets")[0].split()[-3])
    better = [row for row in result.table("tests").rows if row[5] == "better"]
    sets = [
        row[0].split(", ", 1)[1] for row in better if row[0].split(", ")[1] == row[1].split(", ")[1]
    ]
    assert wins == sum(sets.count(one) == 3 for one in set(sets))
    assert ("confirmed" in first) == (wins >= 4)
    assert result.comparisons[0].verdict == ("confirmed" if wins >= 4 else "refuted")
    assert "An even map has AQ 1.000" in " ".join(result.answer)


def test_the_study_has_all_sets_methods_and_parts(result):
    table = result.table("quality")
    assert len(table.rows) == 20
    assert table.columns[3:] == tuple(heading for heading, _ in METRICS.values())
    assert len(result.table("tests").rows) == 19
    assert len(result.table("at_convolutions").rows) == 20
    assert [row[0] for row in result.table("controls").rows[:2]] == ["even map", "truth"]
    assert result.table("controls").rows[0][1] == "1.000 (1.000 to 1.000)"
    bait = float(result.table("network").rows[1][1].split()[0])
    assert ("Beware" in result.answer[-1]) == (bait > 0.1)
    assert result.settings["cases"] == 6


def test_the_figures_show_every_map_and_every_box(result):
    grid, boxes = (one.figure for one in result.figures)
    assert len(grid.axes) == 20
    assert {axes.get_gid().split("/")[1] for axes in grid.axes} == set(METHODS)
    # The evidence is outlined in every panel, beside the map.
    assert all(len(axes.images) == 1 and axes.collections for axes in grid.axes)
    assert all(any("AQ" in text.get_text() for text in axes.texts) for axes in grid.axes)
    assert len(boxes.axes) == 3
    assert len(boxes.axes[0].patches) == 20
    bars = result.plots[0]
    told = float(result.table("quality").rows[0][3].split()[0])
    assert bars.series["Kernel-weighted contribution"][0] == pytest.approx(told, abs=5e-4)


def test_a_folder_holds_the_page_and_figures_of_a_fit_size(result, folder):
    page = (folder / f"{STUDY.name}.md").read_text("utf-8")
    for one in (*result.answer, "Published figures beside ours", "4 of 5 (p"):
        assert one in page
    for one in result.figures:
        assert (folder / f"{one.name}.png").stat().st_size < 250_000


def test_a_study_that_was_stopped_goes_on_to_the_same_result(monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline.Setup, "of", classmethod(lambda _cls, _quick: TINY))
    seen: list[str] = []
    begun = tmp_path / "begun"
    with pytest.raises(Cancelled, match="What is done is kept"):
        STUDY(
            begun,
            quick=True,
            progress=lambda _, message: seen.append(message),
            cancelled=lambda: any("case 3 of 3" in one for one in seen),
        )
    lines = (begun / "work" / "cases.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 2
    seen.clear()
    resumed = STUDY(begun, quick=True, progress=lambda _, message: seen.append(message))
    assert not any("training" in one for one in seen)
    straight = STUDY(tmp_path / "straight", quick=True)
    for one, other in zip(resumed.tables, straight.tables, strict=True):
        assert one.to_csv() == other.to_csv()
    assert resumed.answer == straight.answer


def test_the_study_becomes_a_scene(result, tmp_path):
    pytest.importorskip("slicer")
    scene = sx.scene.new_scene()
    try:
        made = sx.scene.publish_study(result, scene)
        assert len(made.maps) == 8
        assert len(made.volumes) == 1
        assert len(made.segmentations) == 1
        assert len(made.charts) == 2
        names = [one.volumes[0].GetName() for one in made.maps]
        assert len(set(names)) == 8
        sx.scene.save_mrb(scene, tmp_path / "scene.mrb")
    finally:
        sx.scene.release_scene(scene)
    again = sx.scene.load_mrb(tmp_path / "scene.mrb")
    try:
        assert all(again.GetFirstNodeByName(name) is not None for name in names)
    finally:
        sx.scene.release_scene(again)


def test_naming_the_study_needs_no_torch():
    code = (
        "import sys; from SaliencyExplainLib.studies import studies;"
        f"assert studies()[{STUDY.name!r}].minutes > 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
