"""Volumes, explanations and region tables that need no torch, beside those that do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from worker_cases import AFFINE, COARSE, a_scan, an_explanation

from SaliencyExplainLib.errors import (
    ImageError,
    RegionError,
    SaliencyExplainError,
)
from SaliencyExplainLib.explanation import Explanation
from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.image import same_grid as same_grid_of_images
from SaliencyExplainLib.image import to_ras as to_ras_of_images
from SaliencyExplainLib.region_rows import RegionRow, RegionTable
from SaliencyExplainLib.regions import region_table
from SaliencyExplainLib.volume import (
    Volume,
    as_volume,
    read_volume,
    resample_labels,
    same_grid,
    spacing_mm,
    to_ras,
    voxel_volume_ml,
    voxels_of,
    write_volume,
)

# Volumes


def test_a_volume_reads_like_an_image():
    scan = a_scan()
    image = scan.as_image()
    assert (scan.shape, scan.ndim) == (tuple(image.shape), image.ndim)
    assert scan.meta["filename_or_obj"] == image.meta["filename_or_obj"] == "CT"
    assert torch.equal(scan.as_tensor(), image.as_tensor())
    back = as_volume(image)
    np.testing.assert_array_equal(back.voxels, scan.voxels)
    np.testing.assert_array_equal(back.affine, scan.affine)
    assert back.name == "CT"
    assert as_volume(scan) is scan


def test_three_axes_get_a_channel_and_voxels_are_single_precision():
    made = Volume(np.ones((2, 3, 4), dtype=np.int16), AFFINE)
    assert made.shape == (1, 2, 3, 4)
    assert made.voxels.dtype == np.float32


def test_an_image_of_a_volume_is_a_copy():
    scan = a_scan()
    scan.as_image()[:] = 0
    assert scan.voxels.any()


@pytest.mark.parametrize(
    ("voxels", "affine", "words"),
    [
        (np.ones((2, 2)), AFFINE, r"\(2, 2\) was given. Add a channel axis"),
        (np.ones((1, 2, 0, 3)), AFFINE, "no empty axis"),
        (np.ones((2, 2, 2)), np.zeros((4, 4)), "must be an invertible 4 x 4 matrix"),
        (np.ones((2, 2, 2)), np.eye(3), "must be an invertible 4 x 4 matrix"),
        (np.ones((2, 2, 2)), np.full((4, 4), np.nan), "must be an invertible 4 x 4 matrix"),
    ],
)
def test_a_volume_that_is_none_is_refused(voxels, affine, words):
    with pytest.raises(ImageError, match=words):
        Volume(voxels, affine)


def test_geometry_is_that_of_images():
    points = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_array_equal(to_ras(AFFINE, points), to_ras_of_images(AFFINE, points))
    np.testing.assert_allclose(spacing_mm(AFFINE), [1.5, 2.0, np.hypot(0.3, 3)])
    assert voxel_volume_ml(AFFINE) == pytest.approx(0.009)
    scan = a_scan()
    for shift, same in ((0.0, True), (0.0009, True), (0.0011, False)):
        moved = AFFINE.copy()
        moved[0, 3] += shift
        other = Volume(scan.voxels, moved)
        assert same_grid(scan, other) is same
        assert same_grid_of_images(scan.as_image(), other.as_image()) is same
    assert not same_grid(scan, Volume(scan.voxels[:, 1:], AFFINE))


def test_a_volume_is_written_with_its_grid(tmp_path):
    scan = a_scan()
    back = read_volume(write_volume(scan, tmp_path / "new" / "a.nrrd"))
    np.testing.assert_array_equal(back.voxels, scan.voxels)
    np.testing.assert_allclose(back.affine, AFFINE, atol=1e-9)
    assert [one.name for one in (tmp_path / "new").iterdir()] == ["a.nrrd"]


def test_a_format_that_would_move_the_voxels_is_refused(tmp_path):
    # NIfTI holds no shear, and these axes are not orthogonal.
    with pytest.raises(ImageError, match=r"cannot hold the volume's grid. Write \.nrrd"):
        write_volume(a_scan(), tmp_path / "a.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_volume_are_told(tmp_path):
    import SimpleITK as sitk

    with pytest.raises(ImageError, match="There is no file"):
        read_volume(tmp_path / "none.nrrd")
    (tmp_path / "a.nrrd").write_text("no volume")
    with pytest.raises(ImageError, match=r"'a\.nrrd' could not be read as a volume"):
        read_volume(tmp_path / "a.nrrd")
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((2, 2))), str(tmp_path / "flat.nrrd"))
    with pytest.raises(ImageError, match="3 axes is needed"):
        read_volume(tmp_path / "flat.nrrd")
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageError, match="could not be written"):
        write_volume(a_scan(), tmp_path / "file" / "a.nrrd")


def test_labels_are_resampled_as_for_images():
    from SaliencyExplainLib.image import resample_labels as of_images

    labels = Volume(np.random.default_rng(0).integers(0, 4, (1, 8, 9, 10)), AFFINE)
    like = Volume(np.zeros((1, 5, 4, 6)), COARSE)
    moved = resample_labels(labels, like)
    here = of_images(labels.as_image(), like.as_image())
    np.testing.assert_array_equal(moved.voxels, here.numpy())
    assert moved.voxels.any()
    assert resample_labels(labels, a_scan()) is labels


# Explanations and tables that are read back


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("network_grid", [False, True])
def test_an_explanation_is_loaded_as_it_was_saved(tmp_path, channels, network_grid):
    made = an_explanation(channels)
    files = made.save(tmp_path / "run", network_grid=network_grid)
    assert sorted(files) == sorted((tmp_path / "run").iterdir())
    assert len(files) == channels * (2 if network_grid else 1) + 2
    back = Explanation.load(tmp_path / "run")
    assert back.to_dict() == made.to_dict()
    for name in ("maps", "layer_map", *(["network_maps"] if network_grid else [])):
        one = getattr(back, name)
        assert isinstance(one, Volume)
        np.testing.assert_array_equal(one.voxels, getattr(made, name).numpy())
        np.testing.assert_allclose(one.affine, getattr(made, name).affine, atol=1e-9)
    assert back.maps.name == "CT"
    assert (back.layers, back.warnings) == (("a", "b"), ("mind",))
    if not network_grid:
        with pytest.raises(SaliencyExplainError, match="Save it with network_grid=True"):
            _ = back.network_map


@pytest.mark.parametrize("combine", ["sum", "max_abs"])
def test_channels_of_volumes_are_joined_as_those_of_images(combine):
    made = an_explanation(3, combine=combine)
    as_volumes = replace(made, maps=as_volume(made.maps), network_maps=as_volume(made.network_maps))
    np.testing.assert_allclose(voxels_of(as_volumes.map), made.map.numpy(), rtol=1e-6)
    np.testing.assert_allclose(voxels_of(as_volumes.network_map), made.network_map.numpy())
    assert as_volumes.map.shape == (1, 4, 5, 6)


def test_a_loaded_explanation_can_be_tabled_and_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from SaliencyExplainLib.figure import overlay

    made = an_explanation()
    made.save(tmp_path)
    back = Explanation.load(tmp_path)
    labels = make_image((made.maps.numpy() > 0) * 1.0, AFFINE)
    assert region_table(back, labels).to_csv() == region_table(made, labels).to_csv()
    drawn = overlay(
        make_image(np.random.default_rng(0).random((1, 4, 5, 6)), AFFINE), back, tmp_path / "a.png"
    )
    assert Path(drawn).is_file()


def test_a_folder_without_an_explanation_is_told(tmp_path):
    with pytest.raises(SaliencyExplainError, match=r"holds no explanation \(explanation\.json"):
        Explanation.load(tmp_path)
    (tmp_path / "explanation.json").write_text("{}")
    with pytest.raises(SaliencyExplainError, match="Give a folder that save"):
        Explanation.load(tmp_path)
    (tmp_path / "explanation.json").write_text('{"map": {"channels": 1}, "value": 1}')
    a_map = write_volume(a_scan(), tmp_path / "map.nrrd")
    with pytest.raises(SaliencyExplainError, match=r"no record of an explanation: .*missing"):
        Explanation.load(tmp_path)
    a_map.unlink()
    with pytest.raises(ImageError, match="There is no file"):
        Explanation.load(tmp_path)


def test_a_region_table_comes_back_from_its_records():
    nan = float("nan")
    row = RegionRow(0, "outside", 2, 0.5, nan, 1.0, 0.0, nan, 1.0, 1.0, -3.0, nan, nan, nan)
    table = RegionTable((row, replace(row, label=3, name="liver")))
    records = table.to_records()
    assert records[0]["share"] is None
    assert RegionTable.from_records(records).to_csv() == table.to_csv()
    assert table["liver"].label == 3
    with pytest.raises(RegionError, match="no rows of a region table"):
        RegionTable.from_records([{"label": 1}])
