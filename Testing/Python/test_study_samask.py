"""Attention by region, and the study of a network that measures volumes."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import SaliencyExplainLib as sx
from SaliencyExplainLib.errors import Cancelled, RegionError, TargetError
from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.model import Model
from SaliencyExplainLib.studies import attention_by_region, studies
from SaliencyExplainLib.studies.heads import SyntheticHead, synthetic_head
from SaliencyExplainLib.studies.results import StudyResult
from SaliencyExplainLib.studies.samask_regression.attention import surroundings
from SaliencyExplainLib.studies.samask_regression.findings import answers, comparisons
from SaliencyExplainLib.studies.samask_regression.measures import METHODS, SMOOTHED, Found
from SaliencyExplainLib.studies.samask_regression.network import (
    OUTPUTS,
    VolumeNetwork,
    usual_scale,
)
from SaliencyExplainLib.studies.samask_regression.pipeline import chosen_layer
from SaliencyExplainLib.studies.samask_regression.tables import asymmetry_index, tables

NAMES = {1: "one", 2: "two", 3: "rest of the body"}
MASK = {"fill": "zero", "sparsity": 0.3, "area": 0.02, "steps": 60}


# -- Attention by region -----------------------------------------------------------------------


class _Boxes(nn.Module):
    """Each output is the mean of the features in one box, in ml."""

    def __init__(self, labels: np.ndarray) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv3d(1, 2, 1, bias=False), nn.ReLU())
        self.features[0].weight.data.fill_(1.0)
        boxes = np.stack([labels == label for label in (1, 2)]).astype(np.float32)
        self.register_buffer("boxes", torch.tensor(boxes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.features(x).mean(1)
        return torch.stack(
            [5 * (found * box).sum((1, 2, 3)) / box.sum() for box in self.boxes], dim=1
        )


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    made = np.full((16, 16, 16), 3)
    made[0] = 0
    made[3:6, 4:8, 5:9] = 1
    made[10:13, 4:8, 5:9] = 2
    return made


@pytest.fixture(scope="module")
def affine() -> np.ndarray:
    return np.array([[-2.0, 0, 0, 9], [0, 2.0, 0, -4], [0, 0, 3.0, 5], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def boxes(labels) -> Model:
    return Model(
        network=_Boxes(labels).eval(), task="regression", labels=("one", "two"), activation="none"
    )


@pytest.fixture(scope="module")
def scan(affine):
    chance = torch.Generator().manual_seed(0)
    return make_image(1 + 0.1 * torch.rand((1, 16, 16, 16), generator=chance), affine)


@pytest.fixture(scope="module")
def labelmap(labels, affine):
    return make_image(labels[None], affine)


@pytest.fixture(scope="module")
def attention(boxes, scan, labelmap):
    return attention_by_region(boxes, scan, labelmap, NAMES, layer="features", **MASK)


def test_each_mask_lies_on_what_its_output_reads(attention):
    for output in ("one", "two"):
        row = attention[output]
        assert row.structure == output
        assert row.share > 0.8
        assert row.density_ratio > 50
        assert row.prediction_change < 0.05
        assert row.value == pytest.approx(5.25, rel=0.02)


def test_a_row_holds_the_formulas_of_its_mask(attention, labels, affine):
    mask = attention.masks["one"].map.as_tensor()[0].numpy().astype(np.float64)
    total = mask.sum()
    inside = labels == 1
    voxels = np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij"), axis=-1)
    places = voxels @ affine[:3, :3].T
    apart = np.linalg.norm(places[:, :, :, None] - places[inside], axis=-1).min(-1)
    near = (apart <= 10) & ~inside
    row = attention["one"]
    assert row.share == pytest.approx(mask[inside].sum() / total)
    assert row.near_share == pytest.approx(mask[near].sum() / total)
    assert row.leakage == pytest.approx(mask[apart > 10].sum() / total, abs=1e-9)
    assert row.density_ratio == pytest.approx(row.share / inside.mean())
    assert row.near_density_ratio == pytest.approx(row.near_share / near.mean())
    assert row.mask_mean == pytest.approx(mask.mean(), rel=1e-5)


def test_the_region_table_covers_all_regions(attention):
    table = attention.regions["two"]
    assert [row.name for row in table.rows] == ["outside", "one", "two", "rest of the body"]
    assert sum(row.share for row in table.rows) == pytest.approx(1)
    assert table["two"].share == attention["two"].share
    assert [row.name for row in attention.neighbours["two"].rows] == [
        "elsewhere",
        "two",
        "within 10 mm of it",
    ]


def test_the_deviation_of_an_output_is_the_sigma_of_its_mask(boxes, scan, labelmap):
    found = attention_by_region(
        boxes, scan, labelmap, NAMES, layer="features", deviations={"two": 0.75}, **MASK
    )
    assert found.masks["two"].parameters["sigma"] == 0.75
    assert found.masks["one"].parameters["sigma"] != 0.75


def test_a_deleting_mask_takes_the_prediction_away(boxes, scan, labelmap):
    options = {**MASK, "sparsity": 0.03, "mode": "delete"}
    found = attention_by_region(boxes, scan, labelmap, NAMES, ["two"], "features", **options)
    assert list(found.masks) == ["two"]
    assert found["two"].effect_part > 0.8
    assert found["two"].share > 0.5


def test_the_structure_of_an_output_can_be_named(boxes, scan, labelmap):
    given = {"one": "TWO", "two": 3}
    found = attention_by_region(
        boxes, scan, labelmap, NAMES, layer="features", structures=given, near_mm=0, **MASK
    )
    assert (found["one"].structure, found["two"].structure) == ("two", "rest of the body")
    assert found["one"].share < 0.05
    assert found["one"].leakage == pytest.approx(1 - found["one"].share)


def test_an_output_without_a_structure_has_no_leakage(boxes, scan, labelmap):
    names = {1: "somewhere", 2: "two"}
    found = attention_by_region(boxes, scan, labelmap, names, ["one"], "features", **MASK)
    row = found["one"]
    assert row.structure == ""
    assert math.isnan(row.leakage)
    assert math.isnan(row.share)
    assert "one" not in found.neighbours
    assert found.regions["one"]["somewhere"].share > 0.8


def test_a_structure_that_is_not_there_gives_nan(boxes, scan, labelmap):
    names = {**NAMES, 9: "absent"}
    options = {"structures": {"one": "absent"}, **MASK}
    found = attention_by_region(boxes, scan, labelmap, names, ["one"], "features", **options)
    assert found["one"].structure == "absent"
    assert math.isnan(found["one"].leakage)


def test_labels_on_a_finer_grid_are_taken_by_place(boxes, scan, labels, affine, attention):
    fine = labels.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    place = affine @ np.diag([0.5, 0.5, 0.5, 1])
    place[:3, 3] = affine[:3, 3] - affine[:3, :3] @ np.full(3, 0.25)
    found = attention_by_region(
        boxes, scan, make_image(fine[None], place), NAMES, ["one"], "features", **MASK
    )
    assert found["one"].share == pytest.approx(attention["one"].share)
    assert found["one"].leakage == pytest.approx(attention["one"].leakage)


def test_a_segmentation_network_is_asked_for_soft_volumes(labelmap, scan):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 4, 3, 1, 1), nn.ReLU(), nn.Conv3d(4, 3, 1)).eval()
    model = Model(network=network, task="segmentation", labels=("back", "one", "two"))
    found = attention_by_region(model, scan, labelmap, NAMES, layer="1", steps=2)
    assert [row.output for row in found.rows] == ["one", "two"]
    assert found.masks["one"].target["score"] == "soft_volume"
    share = network(scan.as_tensor()[None]).softmax(1)[0, 1].sum() * 12 / 1000
    assert found["one"].value == pytest.approx(float(share.detach()), rel=1e-4)


def test_outputs_are_named_by_number_too(boxes, scan, labelmap, labels):
    options = {**MASK, "steps": 1}
    found = attention_by_region(boxes, scan, labelmap, NAMES, [1, "ONE"], "features", **options)
    assert [row.output for row in found.rows] == ["two", "one"]
    bare = replace(boxes, labels=())
    found = attention_by_region(bare, scan, labelmap, NAMES, [1], "features", **options)
    assert found["output 1"].value == pytest.approx(5.25, rel=0.02)


def test_progress_runs_once_over_all_outputs(boxes, scan, labelmap):
    told = []
    options = {**MASK, "steps": 5, "progress": lambda *one: told.append(one)}
    attention_by_region(boxes, scan, labelmap, NAMES, layer="features", **options)
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)
    assert any(message.startswith("two: ") and fraction >= 0.5 for fraction, message in told)
    assert not any(message.startswith("two: ") for fraction, message in told if fraction < 0.5)


def test_it_stops_when_it_is_cancelled(boxes, scan, labelmap):
    with pytest.raises(Cancelled):
        attention_by_region(
            boxes, scan, labelmap, NAMES, layer="features", cancelled=lambda: True, **MASK
        )


def test_the_table_is_one_row_an_output(attention):
    table = attention.table()
    assert table.columns[0] == "output"
    assert len(table.columns) == 12
    assert [row[0] for row in table.rows] == ["one", "two"]
    assert "leakage" in table.to_csv().splitlines()[0]


def test_what_does_not_fit_is_refused_before_a_mask_is_learned(
    boxes, scan, labelmap, labels, affine
):
    def asked(model=boxes, labels=labelmap, names=NAMES, **options):
        never = {"progress": lambda *_: pytest.fail("it ran")}
        return attention_by_region(model, scan, labels, names, **options, **never)

    with pytest.raises(TargetError, match=r"no output 'three'\. It has: one, two"):
        asked(outputs=["one", "three"])
    with pytest.raises(TargetError, match="no output 2"):
        asked(outputs=[2])
    with pytest.raises(TargetError, match=r"does not name its outputs\. .*outputs="):
        asked(replace(boxes, labels=()))
    with pytest.raises(TargetError, match=r"No output was named\. Leave outputs out"):
        asked(outputs=[])
    with pytest.raises(RegionError, match=r"no region 'four' for the output 'one'\. It has: 1 one"):
        asked(structures={"one": "four"})
    with pytest.raises(RegionError, match=r"near_mm is 0 or more \(mm\); -1 was given"):
        asked(near_mm=-1)
    with pytest.raises(RegionError, match=r"shape \(1, I, J, K\) is needed; \(2, 16"):
        asked(labels=make_image(np.stack([labels, labels]), affine))
    far = affine.copy()
    far[:3, 3] += 500
    with pytest.raises(RegionError, match="No region of the label map lies inside the image"):
        asked(labels=make_image(labels[None], far))
    with pytest.raises(RegionError, match=r"'three' was not explained; there are one"):
        attention_by_region(
            boxes, scan, labelmap, NAMES, ["one"], "features", steps=1, fill="zero"
        )["three"]


def test_surroundings_are_measured_in_mm(labelmap, labels):
    around = surroundings(labelmap, 1, 4.0).as_tensor()[0].numpy()
    assert (around[labels == 1] == 1).all()
    # Two voxels of 2 mm along the first axis, one of 3 mm along the last.
    assert around[1:3, 5, 6].tolist() == [2, 2]
    assert around[0, 5, 6] == 0
    assert around[4, 5, 3:5].tolist() == [0, 2]


# -- Figures and their intervals ---------------------------------------------------------------


def test_the_asymmetry_index_is_in_percent_of_the_mean():
    found = asymmetry_index(np.array([[3.0, 5.0], [4.0, 4.0]]))
    assert found.tolist() == [50, 0]


# -- The network -------------------------------------------------------------------------------


def test_the_network_begins_as_a_count_of_what_lies_on_a_side():
    torch.manual_seed(0)
    mean, deviation = [4.0, 4.5, 10.0, 11.0, 560.0, 720.0], [1.6, 1.7, 2.8, 2.9, 58.0, 120.0]
    network = VolumeNetwork(16, mean, deviation, [1.0] * 4).eval()
    maps = torch.rand((1, 4, 8, 8, 8))
    unit = torch.tensor(deviation)[[0, 2, 4, 5]]  # of a voxel of the maps, in ml
    sides = maps[0, :, :4].sum((1, 2, 3)) * unit, maps[0, :, 4:].sum((1, 2, 3)) * unit
    truth = [sides[0][0], sides[1][0], sides[0][1], sides[1][1], *(sides[0] + sides[1])[2:]]
    # Rounding of several hundred ml.
    assert network.volumes(maps)[0].tolist() == pytest.approx(list(map(float, truth)), rel=1e-3)
    assert network(torch.rand(3, 1, 16, 16, 16)).shape == (3, 6)


def test_usual_heads_differ_in_size_and_little_between_sides():
    scales = np.array([usual_scale(seed) for seed in range(400)])
    assert 0.29 < scales.min() < 0.4
    assert 1.7 < scales.max() < 1.9
    ratio = scales[:, 0] / scales[:, 1]
    assert 0.85 / 1.15 <= ratio.min() < 0.8 < 1.25 < ratio.max() <= 1.15 / 0.85


# -- What is concluded -------------------------------------------------------------------------


def _row(**more):
    return {
        "value": 4.0,
        "effect": 1.0,
        "share": 0.4,
        "density_ratio": 90.0,
        "near_share": 0.4,
        "leakage": 0.2,
        "prediction_change": 0.01,
        "effect_part": 0.02,
        "mask_mean": 0.01,
        "seconds": 2.0,
        "stability": 0.97,
        "left_half": 0.5,
        "regions": {name: [0.1, 1.0] for name in ("outside", *SyntheticHead.NAMES.values())},
        "mass": 0.4,
        "near": 0.8,
        "rank": 0.6,
        "chance": 0.001,
        **more,
    }


def _findings(**more) -> Found:
    """Found as the publication has it."""
    keep = {output: _row() for output in OUTPUTS}
    other = {"mass": 0.1, "near": 0.2, "rank": 0.2, "chance": 0.001}
    others = {output: dict.fromkeys((*METHODS, SMOOTHED), other) for output in OUTPUTS}
    degrees = (0.0, 0.15, 0.45, 0.75)
    varied = [
        {
            OUTPUTS[0]: [4 * (1 - one), 4 * (1 - one / 3) + 0.1 * number],
            OUTPUTS[1]: [4 * (1 + one), 4 * (1 + one / 3) + 0.1 * number],
        }
        for one in degrees
        for number in range(8)
    ]
    sides = {OUTPUTS[0]: _row(left_half=0.9), OUTPUTS[1]: _row(left_half=0.1)}
    found = Found(
        tested=[{output: [4.0 + k, 4.1 + k] for output in OUTPUTS} for k in range(6)],
        by_layer={"a": [_row()]},
        layer="a",
        explained=[{"keep": keep, "delete": {OUTPUTS[0]: _row()}, "others": others}] * 8,
        stable=[{OUTPUTS[0]: _row()}],
        degrees=[one for one in degrees for _ in range(8)],
        heads=[str(number) for _ in degrees for number in range(8)],
        varied=varied,
        sides=[sides] * 4,
        deviations=dict.fromkeys(OUTPUTS, 1.0),
        losses=[1.0, 0.5],
        trained_asymmetry=0.15,
        tolerated=0.05,
        telling=0.2,
        seed=1,
    )
    return replace(found, **more)


def _verdicts(found: Found) -> list[str]:
    return [one.verdict for one in comparisons(found)]


def test_findings_like_the_published_ones_confirm_them():
    assert _verdicts(_findings()) == [
        "not comparable",
        "confirmed",
        "confirmed",
        "confirmed",
        "confirmed",
        "not comparable",
    ]
    said = " ".join(answers(_findings()))
    assert "The error grows beyond the asymmetry of the training" in said
    assert re.search(r"of true asymmetry the network says 0\.3\d\.", said)
    assert "48 of 48 keeping masks change the prediction by less than 5 %" in said
    assert "hiding the whole layer changes it by 25 %" in said
    assert "1 of 1 masks have random starts that correlate by more than 0.9, lowest 0.97" in said
    assert "left hippocampus: 90 (90 to 90) % of its mask in the left half" in said
    assert "SAMASK 0.60, DeconvNet 0.20" in said
    assert "p = 0.0078" in said  # 2 of 2^8 signs


def test_findings_unlike_the_published_ones_refute_them():
    found = _findings()
    exact = [{name: [one[0], one[0]] for name, one in case.items()} for case in found.varied]
    swapped = [{OUTPUTS[0]: _row(left_half=0.2), OUTPUTS[1]: _row(left_half=0.7)}] * 4
    high = {"mass": 1, "near": 1, "rank": 0.9, "chance": 0}
    better = dict.fromkeys((*METHODS, SMOOTHED), high)
    keep = {output: _row(near=0.3, prediction_change=0.2) for output in OUTPUTS}
    case = {**found.explained[0], "keep": keep, "others": dict.fromkeys(OUTPUTS, better)}
    other = replace(found, varied=exact, sides=swapped, explained=[case] * 8)
    assert _verdicts(other)[1:5] == ["differs", "refuted", "differs", "refuted"]
    said = " ".join(answers(other))
    assert "does not grow for certain" in said
    assert "they do not lie on opposite sides" in said
    assert "0 of 48 keeping masks" in said


def test_few_heads_are_not_enough_to_be_certain():
    found = _findings()
    few = [number for number, one in enumerate(found.heads) if int(one) < 4]
    some = replace(
        found,
        varied=[found.varied[number] for number in few],
        degrees=[found.degrees[number] for number in few],
        heads=[found.heads[number] for number in few],
    )
    assert _verdicts(some)[2] == "differs"
    assert "in too few heads to be certain" in answers(some)[2]


def test_the_layer_tells_something_keeps_the_prediction_and_leaks_least():
    rows = {
        "early": [_row(leakage=0.5)],
        "middle": [_row(leakage=0.2), _row(leakage=0.3)],
        "late": [_row(leakage=0.1), _row(leakage=0.1, prediction_change=0.06)],
        "last": [_row(leakage=0.1, effect=-0.1)],
    }
    assert chosen_layer(rows) == "middle"
    assert chosen_layer({**rows, "middle": [_row(leakage=0.2, effect=-3.0)]}) == "middle"
    bad = {"one": [_row(effect=0.1)], "two": [_row(effect=-0.2)], "three": [_row(effect=0.15)]}
    assert chosen_layer(bad) == "two"


def test_the_tables_hold_what_was_found():
    made = {one.name: one for one in tables(_findings())}
    attention = dict(zip(made["attention"].columns, made["attention"].rows[0], strict=True))
    assert attention["output"] == "left hippocampus"
    assert attention["share in the structure"] == pytest.approx(0.4)
    assert attention["prediction change (%)"] == pytest.approx(1)
    assert len(made["attention"].rows) == 7
    methods = made["methods"]
    assert len(methods.rows) == 5 * len(OUTPUTS)
    row = dict(zip(methods.columns, methods.rows[1], strict=True))
    assert (row["method"], row["rank accuracy"]) == ("DeconvNet", pytest.approx(0.2))
    assert row["rank accuracy of SAMASK above it"] == pytest.approx(0.4)
    last = dict(zip(made["asymmetry"].columns, made["asymmetry"].rows[-1], strict=True))
    assert (last["asymmetry"], last["as in training"]) == (0.75, "no")
    assert last["left (ml)"] == pytest.approx(1)
    assert last["left, predicted (ml)"] == pytest.approx(3.35)
    assert last["absolute error left (ml)"] == pytest.approx(2.35)


# -- The study ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("samask")


@pytest.fixture(scope="module")
def result(folder) -> StudyResult:
    """The quick study, stopped once on its way."""
    study = studies()["samask_regression"]
    told: list[float] = []
    with pytest.raises(Cancelled, match="What is done is kept in"):
        study(
            folder,
            quick=True,
            progress=lambda fraction, _: told.append(fraction),
            cancelled=lambda: bool(told) and told[-1] > 0.7,
        )
    assert (np.diff(told) > -1e-9).all()
    trained = (folder / "work" / "network.pt").stat().st_mtime_ns
    found = study(folder, quick=True)
    assert (folder / "work" / "network.pt").stat().st_mtime_ns == trained
    return found


def test_the_quick_study_answers_with_figures(result):
    assert len(result.answer) == 6
    assert all(any(letter.isdigit() for letter in one) for one in result.answer)
    assert "nan" not in " ".join(result.answer)
    assert [one.name for one in result.figures] == ["samask_methods", "samask_asymmetry"]
    assert {one.name for one in result.tables} == {
        "accuracy",
        "layers",
        "attention",
        "regions",
        "methods",
        "asymmetry",
        "sides",
        "stability",
    }
    assert result.settings["voxel (mm)"] == 6.5


def test_the_network_of_the_quick_study_has_learned_something(result):
    table = result.table("accuracy")
    found = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert found["white matter"]["correlation"] > 0.7
    assert found["white matter"]["mean absolute error (ml)"] < 80


def test_the_figures_of_a_mask_are_those_of_the_map_that_is_kept(result, folder):
    lines = (folder / "work" / "attention.jsonl").read_text(encoding="utf-8").splitlines()
    kept = json.loads(lines[0])["found"]["keep"]["left hippocampus"]
    case = result.cases[0]
    mask = case.maps[0]
    assert mask.target["output_name"] == "left hippocampus"
    values = mask.map.as_tensor()[0].numpy().ravel()
    structures, names = case.labels["structures"]
    label = next(number for number, name in names.items() if name == "left hippocampus")
    truth = structures.as_tensor()[0].numpy().ravel() == label
    highest = np.argsort(-values)[: truth.sum()]
    assert kept["rank"] == pytest.approx(truth[highest].mean())
    assert kept["mass"] == pytest.approx(values[truth].sum() / values.sum(), rel=1e-4)
    left = values.reshape(32, -1)[:16].sum() / values.sum()
    assert kept["left_half"] == pytest.approx(left, rel=1e-4)


def test_heads_of_the_study_are_not_those_of_the_training(result, folder):
    seeds = {
        json.loads(line)["key"].split()[-1]
        for name in ("test", "attention", "layers", "stability", "asymmetry", "sides")
        for line in (folder / "work" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    }
    trained = set(map(str, range(1_000_000, 1_000_000 + result.settings["train"])))
    assert seeds
    assert not seeds & trained


def test_a_study_that_lost_its_last_cases_measures_them_again(result, folder):
    for name in ("attention", "asymmetry", "sides"):
        file = folder / "work" / f"{name}.jsonl"
        file.write_text("\n".join(file.read_text(encoding="utf-8").splitlines()[:-1]) + "\n")
    again = studies()["samask_regression"](folder, quick=True)
    for name in ("attention", "methods", "asymmetry", "sides"):
        was, now = result.table(name), again.table(name)
        untimed = [k for k, one in enumerate(was.columns) if not one.startswith("time")]
        for row, other in zip(was.rows, now.rows, strict=True):
            assert [row[k] for k in untimed] == [other[k] for k in untimed]


def test_the_study_comes_back_from_its_folder_and_fits_in_a_scene(result, folder, tmp_path):
    pytest.importorskip("slicer")
    read = StudyResult.load(folder)
    assert read.answer[:4] == result.answer[:4]  # the next one tells times
    assert (folder / "samask_regression.md").read_text(encoding="utf-8").startswith("# SAMASK")
    scene = sx.scene.new_scene()
    try:
        made = sx.scene.publish_study(read, scene)
        assert len(made.volumes) == 2
        assert len(made.segmentations) == 2
        assert len(made.maps) == 7
        assert len(made.charts) == 3
        saved = sx.scene.save_mrb(scene, tmp_path / "study.mrb")
    finally:
        sx.scene.release_scene(scene)
    assert saved.stat().st_size > 10_000


def test_the_head_of_the_poster_has_a_left_hippocampus_of_about_1_12_ml():
    head = synthetic_head(48, 1_080_000, hippocampus_scale=(0.24, 1.5))
    assert head.volumes_ml["left hippocampus"] == pytest.approx(1.12, abs=0.25)
