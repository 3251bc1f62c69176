"""The region table against plain NumPy, on made-up maps and on real label maps."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from monai.data import MetaTensor

import SaliencyExplainLib as sx
from SaliencyExplainLib.errors import RegionError, SaliencyExplainError
from SaliencyExplainLib.image import make_image, resample_labels, to_ras
from SaliencyExplainLib.regions import COLUMNS, RegionRow

SHAPE = (6, 7, 8)
AFFINE = np.array([[0, -2.0, 0, 5], [1.5, 0, 0.3, -7], [0, 0, 3.0, 11], [0, 0, 0, 1]])


@pytest.fixture
def a_map() -> MetaTensor:
    return make_image(np.random.default_rng(0).normal(size=SHAPE), AFFINE)


@pytest.fixture
def labels() -> MetaTensor:
    """Labels 0, 2, 5 and 9."""
    return make_image(np.random.default_rng(1).choice([0, 2, 5, 9], SHAPE), AFFINE)


def shares(table: sx.RegionTable, kind: str = "share") -> list[float]:
    return [getattr(row, kind) for row in table.rows]


def check_against_numpy(table: sx.RegionTable, map_: MetaTensor, labels: MetaTensor) -> None:
    """Each number again, segment by segment, as its definition says."""
    a, names = map_[0].double().numpy(), labels[0].numpy()
    positive, negative = np.maximum(a, 0), np.maximum(-a, 0)
    for row in table.rows:
        r = names == row.label
        if not r.any():
            continue
        assert row.voxels == r.sum()
        volume = r.sum() * abs(np.linalg.det(np.asarray(map_.affine)[:3, :3])) / 1000
        assert row.volume_ml == pytest.approx(volume)
        assert row.share == pytest.approx(np.abs(a[r]).sum() / np.abs(a).sum())
        assert row.positive_share == pytest.approx(positive[r].sum() / positive.sum())
        assert row.negative_share == pytest.approx(negative[r].sum() / negative.sum())
        assert row.density_ratio == pytest.approx(row.share / (r.sum() / a.size))
        assert row.mean == pytest.approx(a[r].mean(), abs=1e-6)
        assert row.mean_absolute == pytest.approx(np.abs(a[r]).mean())
        where = np.unravel_index(np.argmax(np.where(r, np.abs(a), -1)), a.shape)
        assert row.peak == pytest.approx(a[where])
        place = (row.peak_r_mm, row.peak_a_mm, row.peak_s_mm)
        np.testing.assert_allclose(place, to_ras(map_.affine, where))


def test_every_number_is_that_of_plain_numpy(a_map, labels):
    table = sx.region_table(a_map, labels)
    assert [row.label for row in table.rows] == [0, 2, 5, 9]
    check_against_numpy(table, a_map, labels)


@pytest.mark.parametrize("kind", ["share", "positive_share", "negative_share"])
def test_the_shares_of_all_rows_sum_to_one(kind, a_map, labels):
    assert sum(shares(sx.region_table(a_map, labels), kind)) == pytest.approx(1)


def test_a_map_without_preference_has_a_density_ratio_of_one(labels):
    table = sx.region_table(make_image(np.full(SHAPE, -3.0), AFFINE), labels)
    assert shares(table, "density_ratio") == pytest.approx([1] * 4)


def test_an_explanation_is_summarised_by_its_joined_map(a_map, labels):
    maps = make_image(np.concatenate([a_map, -3 * a_map]), AFFINE)
    explanation = sx.Explanation(maps, maps, 0.0, {}, "gradient", "Gradient", {}, signed=True)
    table = sx.region_table(explanation, labels)
    check_against_numpy(table, make_image(-2 * a_map, AFFINE), labels)


def test_names_are_taken_and_missing_ones_made(a_map, labels):
    table = sx.region_table(a_map, labels, {2: "liver", 0: "the rest"})
    assert [row.name for row in table.rows] == ["the rest", "liver", "segment 5", "segment 9"]
    assert table["liver"] is table[2]
    assert sx.region_table(a_map, labels).rows[0].name == "outside"


def test_a_name_that_is_not_in_the_table_is_refused(a_map, labels):
    with pytest.raises(RegionError, match=r"no row 'kidney'\. It has: outside, segment 2"):
        sx.region_table(a_map, labels)["kidney"]


def test_a_named_label_that_is_absent_gets_an_empty_row(a_map, labels):
    row = sx.region_table(a_map, labels, {4: "spleen"})["spleen"]
    assert (row.label, row.voxels, row.volume_ml, row.share) == (4, 0, 0.0, 0.0)
    undefined = ("density_ratio", "mean", "mean_absolute", "peak", "peak_r_mm", "peak_s_mm")
    assert all(math.isnan(getattr(row, name)) for name in undefined)


def test_a_segment_that_falls_between_the_maps_voxels_keeps_its_row(labels):
    coarse = make_image(np.ones((2, 2, 2)), AFFINE @ np.diag([5.0, 5, 5, 1]))
    single = labels.as_tensor().clone() * 0 + 2
    single[0, 1, 1, 1] = 7
    table = sx.region_table(coarse, make_image(single, AFFINE))
    assert (table[7].voxels, table[2].voxels) == (0, 8)


def test_a_zero_map_has_no_shares(labels):
    table = sx.region_table(make_image(np.zeros(SHAPE), AFFINE), labels)
    for kind in ("share", "positive_share", "negative_share", "density_ratio"):
        assert all(math.isnan(value) for value in shares(table, kind))
    assert shares(table, "mean") == [0] * 4


def test_a_map_without_negative_values_has_no_negative_share(a_map, labels):
    table = sx.region_table(make_image(np.abs(a_map), AFFINE), labels)
    assert all(math.isnan(value) for value in shares(table, "negative_share"))
    assert shares(table, "positive_share") == pytest.approx(shares(table))


def test_without_segments_everything_is_outside(a_map):
    table = sx.region_table(a_map, make_image(np.zeros(SHAPE), AFFINE))
    assert [(row.name, row.share) for row in table.rows] == [("outside", pytest.approx(1))]


@pytest.mark.parametrize("shape", [(2, *SHAPE), SHAPE])
def test_a_map_of_another_form_is_refused(shape, labels):
    with pytest.raises(RegionError, match=r"map of shape \(1, I, J, K\) is needed"):
        sx.region_table(MetaTensor(np.zeros(shape)), labels)


@pytest.mark.parametrize("shape", [(2, *SHAPE), SHAPE])
def test_a_label_map_of_another_form_is_refused(shape, a_map):
    with pytest.raises(RegionError, match=r"label map of shape \(1, I, J, K\) is needed"):
        sx.region_table(a_map, MetaTensor(np.zeros(shape)))


@pytest.mark.parametrize("bad", [0.5, -1, np.nan])
def test_labels_that_are_no_whole_numbers_from_zero_are_refused(bad, a_map, labels):
    labels[0, 1, 2, 3] = bad
    with pytest.raises(RegionError, match="fractions or negative values"):
        sx.region_table(a_map, labels)


def test_a_label_map_of_another_place_is_refused(a_map, labels):
    far = AFFINE.copy()
    far[:3, 3] += 300
    with pytest.raises(RegionError, match="do not overlap in space"):
        sx.region_table(a_map, make_image(labels, far))


def test_the_inputs_are_left_as_they_were(a_map, labels):
    before = a_map.as_tensor().clone(), labels.as_tensor().clone()
    sx.region_table(a_map, labels)
    assert a_map.as_tensor().equal(before[0])
    assert labels.as_tensor().equal(before[1])


# As text


def test_the_csv_comes_back_as_the_table(a_map, labels, tmp_path):
    table = sx.region_table(a_map, labels, {2: 'liver, "left"', 4: "spleen"})
    text = table.to_csv(tmp_path / "new" / "regions.csv")
    assert (tmp_path / "new" / "regions.csv").read_text(encoding="utf-8") == text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == len(table.rows)
    for read, row in zip(rows, table.rows, strict=True):
        assert (int(read["label"]), read["name"], int(read["voxels"])) == (
            row.label,
            row.name,
            row.voxels,
        )
        for name in [field.name for field in fields(RegionRow)][3:]:
            assert float(read[name]) == pytest.approx(getattr(row, name), rel=1e-5, nan_ok=True)


def test_a_failed_write_leaves_the_old_csv_and_nothing_else(a_map, labels, tmp_path, monkeypatch):
    table = sx.region_table(a_map, labels)
    table.to_csv(tmp_path / "regions.csv")
    before = (tmp_path / "regions.csv").read_bytes()

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(SaliencyExplainError, match=r"could not be written .*No space left"):
        table.to_csv(tmp_path / "regions.csv")
    assert (tmp_path / "regions.csv").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["regions.csv"]


def test_the_columns_are_the_fields_of_a_row():
    assert [column[0] for column in COLUMNS] == [field.name for field in fields(RegionRow)]


def test_the_text_starts_with_the_densest_segment(a_map, labels):
    table = sx.region_table(a_map, labels, {4: "absent"})
    lines = table.to_text().splitlines()[2:]
    densest = max(table.rows, key=lambda row: np.nan_to_num(row.density_ratio))
    assert lines[0].startswith(densest.name)
    assert lines[-1].startswith("absent")
    assert f"{densest.peak_r_mm:.1f}, {densest.peak_a_mm:.1f}, {densest.peak_s_mm:.1f}" in lines[0]


# Real volumes


def test_a_real_abdomen_is_summarised_on_its_own_grid(real_data):
    scan = sx.read_image(real_data / "volumes" / "ct_abdomen.nii.gz")
    segments = sx.read_labelmap(real_data / "volumes" / "ct_abdomen_segments.nii.gz")
    table = sx.region_table(scan, segments)
    assert len(table.rows) == len(segments.unique())
    check_against_numpy(table, scan, segments)
    assert sum(shares(table)) == pytest.approx(1)


def test_a_real_parcellation_on_another_grid_is_resampled_onto_the_map(real_data):
    scan = sx.read_image(real_data / "volumes" / "flair_oblique.nii.gz")
    labels = sx.read_labelmap(real_data / "volumes" / "flair_parcellation.nii.gz")
    table = sx.region_table(scan, labels)
    assert sum(row.voxels for row in table.rows) == scan[0].numel()
    assert len(table.rows) == len(labels.unique())
    # Volumes agree with those counted on the label map itself, for segments inside the scan.
    counted = {int(label): int((labels == label).sum()) for label in (32, 39, 41)}
    for label, voxels in counted.items():
        assert table[label].volume_ml == pytest.approx(voxels / 1000, rel=0.05)
    on_map = resample_labels(labels, scan)
    row = table[41]
    assert row.mean == pytest.approx(float(scan[on_map == 41].as_tensor().mean()), rel=1e-5)
