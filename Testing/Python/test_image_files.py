"""Images as hospitals send them: NIfTI's forms, DICOM series, odd types, NaN, channels by name."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from dicom_cases import a_series, frames

import SaliencyExplainLib as sx
from SaliencyExplainLib import volume_files
from SaliencyExplainLib.channels import coverage, join_volumes
from SaliencyExplainLib.dicom import find_series, series_geometry
from SaliencyExplainLib.errors import ImageError
from SaliencyExplainLib.image import (
    as_image,
    make_image,
    read_image,
    read_labelmap,
    replace_values,
    resample_image,
    spacing_mm,
    to_ras,
    write_image,
)
from SaliencyExplainLib.volume import Volume, read_volume, resample_volume

nibabel = pytest.importorskip("nibabel")

SHAPE = (4, 5, 6)


def values(shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def turned(degrees: float, axis: int = 0) -> np.ndarray:
    angle = np.deg2rad(degrees)
    matrix = np.eye(3)
    one, other = [(1, 2), (2, 0), (0, 1)][axis]
    matrix[[one, other], [one, other]] = np.cos(angle)
    matrix[one, other], matrix[other, one] = -np.sin(angle), np.sin(angle)
    return matrix


def an_affine(columns, origin=(10.0, -20.0, 30.0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = columns, origin
    return affine


SPACING = np.diag([1.0, 2.0, 3.0])
SHEAR = np.array([[1, 0, 0.4], [0, 1, 0.1], [0, 0, 1]])
PLAIN = an_affine(SPACING)
OBLIQUE = an_affine(turned(20) @ SPACING, (1, 2, 3))
SHEARED = an_affine(turned(20) @ SHEAR @ SPACING)
LEFT = an_affine(turned(20) @ np.diag([1.0, -2.0, 3.0]))

# NIfTI: where the file says that it is


def a_nifti(path: Path, sform=None, scode=0, qform=None, qcode=0, kind=None, big=False) -> Path:
    """A NIfTI file with exactly these forms, whatever nibabel thinks of them."""
    image = (kind or nibabel.Nifti1Image)(values(), None)
    header = image.header
    header["pixdim"][1:4] = 1, 2, 3
    if qform is not None:
        header.set_qform(qform, qcode, strip_shears=True)
    rows = np.zeros((3, 4)) if sform is None else np.asarray(sform)[:3]
    header["srow_x"], header["srow_y"], header["srow_z"] = rows
    header["sform_code"], header["qform_code"] = scode, qcode
    made = (kind or nibabel.Nifti1Image)(
        values(), None, header.as_byteswapped(">") if big else header
    )
    for name, row in zip(("srow_x", "srow_y", "srow_z"), rows, strict=True):
        made.header[name] = row
    made.header["sform_code"], made.header["qform_code"] = scode, qcode
    nibabel.save(made, path)
    return path


FORMS = {
    "both": {"sform": OBLIQUE, "scode": 1, "qform": OBLIQUE, "qcode": 1},
    "zero sform": {"qform": OBLIQUE, "qcode": 1},
    "sform filled but its code is 0": {"sform": PLAIN, "qform": OBLIQUE, "qcode": 1},
    "sform only": {"sform": OBLIQUE, "scode": 1},
    "sform only, left-handed": {"sform": LEFT, "scode": 2},
    "qform only, left-handed": {"qform": LEFT, "qcode": 1},
    "stale qform": {"sform": OBLIQUE, "scode": 1, "qform": PLAIN, "qcode": 1},
    "stale qform of a template": {"sform": OBLIQUE, "scode": 4, "qform": PLAIN, "qcode": 1},
    "sheared sform": {"sform": SHEARED, "scode": 1},
    "sheared sform, near qform": {"sform": SHEARED, "scode": 1, "qform": SHEARED, "qcode": 1},
    "sform of another spacing": {"sform": an_affine(SPACING * 2), "scode": 2},
    "neither": {},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_nifti_file_is_where_nibabel_places_it(name, tmp_path):
    path = a_nifti(tmp_path / "scan.nii", **FORMS[name])
    image = read_image(path)
    np.testing.assert_allclose(image.affine, nibabel.load(path).affine, atol=1e-5)
    np.testing.assert_array_equal(image[0], values())
    np.testing.assert_allclose(read_volume(path).affine, image.affine)


@pytest.mark.parametrize("name", ["sform only", "zero sform", "sheared sform"])
def test_so_are_compressed_big_endian_and_paired_files(name, tmp_path):
    for kind, suffix, big in (
        (nibabel.Nifti1Image, "nii.gz", False),
        (nibabel.Nifti1Image, "nii", True),
        (nibabel.Nifti1Pair, "hdr", False),
    ):
        path = a_nifti(tmp_path / f"scan.{suffix}", **FORMS[name], kind=kind, big=big)
        image = read_image(path)
        np.testing.assert_allclose(image.affine, nibabel.load(path).affine, atol=1e-5)
        np.testing.assert_array_equal(image[0], values())


def test_nifti_2_is_told(tmp_path):
    path = a_nifti(tmp_path / "scan.nii", **FORMS["both"], kind=nibabel.Nifti2Image)
    with pytest.raises(ImageError, match=r"NIfTI-2, which ITK cannot read\. Convert it"):
        read_image(path)


@pytest.mark.parametrize("sform", [np.zeros((4, 4)), an_affine(np.diag([0.0, 2, 2]))])
def test_an_sform_that_cannot_be_inverted_gives_way_to_the_qform(sform, tmp_path):
    path = a_nifti(tmp_path / "scan.nii", sform=sform, scode=1, qform=OBLIQUE, qcode=1)
    np.testing.assert_allclose(read_image(path).affine, OBLIQUE, atol=1e-5)


@pytest.mark.parametrize(("units", "scale"), [(1, 1e3), (2, 1), (3, 1e-3)])
def test_metres_and_micrometres_become_millimetres(units, scale, tmp_path):
    path = a_nifti(tmp_path / "scan.nii", sform=OBLIQUE, scode=1)
    content = bytearray(path.read_bytes())
    content[123] = units
    path.write_bytes(content)
    np.testing.assert_allclose(read_image(path).affine[:3], scale * OBLIQUE[:3], rtol=1e-5)


def test_a_scaled_file_may_be_smaller_than_its_voxels(tmp_path):
    image = nibabel.Nifti1Image(np.arange(120, dtype=np.uint8).reshape(SHAPE), OBLIQUE)
    image.header.set_slope_inter(2.0, 0)
    for suffix in ("nii", "nii.gz"):
        nibabel.save(image, tmp_path / f"scan.{suffix}")
        expected = nibabel.load(tmp_path / f"scan.{suffix}").get_fdata()
        np.testing.assert_allclose(read_image(tmp_path / f"scan.{suffix}")[0], expected, atol=1e-4)


def test_what_a_header_leaves_open_is_told_with_the_explanation(tmp_path):
    read = {name: read_image(a_nifti(tmp_path / "scan.nii", **FORMS[name])) for name in FORMS}
    noted = {name for name, image in read.items() if image.meta.get("notes")}
    assert noted == {"stale qform", "stale qform of a template", "neither",
                     "sheared sform, near qform"}  # fmt: skip
    far = read["stale qform"].meta["notes"][0]
    corners = np.array(np.meshgrid([0, 3], [0, 4], [0, 5])).reshape(3, 8).T
    apart = np.linalg.norm(to_ras(OBLIQUE, corners) - to_ras(PLAIN, corners), axis=1).max()
    assert f"up to {apart:.1f} mm apart: its sform was used" in far
    network = torch.nn.Conv3d(1, 1, 1)
    model = sx.load_model(network, task="segmentation", labels=["a"])
    found = sx.explain(model, read["neither"], sx.Target(region="everywhere"), "gradient")
    assert "no sform, no qform" in " ".join(found.warnings)


def test_slope_and_intercept_are_applied_as_nibabel_does(tmp_path):
    stored = np.arange(120, dtype=np.int16).reshape(SHAPE)
    image = nibabel.Nifti1Image(stored, OBLIQUE)
    image.header.set_slope_inter(0.5, -7)
    nibabel.save(image, tmp_path / "scan.nii.gz")
    # nibabel has scaled the voxels down when it wrote them: its own reading is the reference.
    expected = nibabel.load(tmp_path / "scan.nii.gz").get_fdata()
    np.testing.assert_allclose(read_image(tmp_path / "scan.nii.gz")[0], expected, atol=1e-5)
    content = bytearray(gzip.decompress((tmp_path / "scan.nii.gz").read_bytes()))
    struct.pack_into("<2f", content, 112, 0.0, 5.0)
    (tmp_path / "plain.nii").write_bytes(content)
    expected = nibabel.load(tmp_path / "plain.nii").get_fdata()
    np.testing.assert_array_equal(read_image(tmp_path / "plain.nii")[0], expected)
    struct.pack_into("<2f", content, 112, np.nan, 5.0)
    (tmp_path / "plain.nii").write_bytes(content)
    with pytest.raises(ImageError, match=r"scales its voxels by nan and 5\.0"):
        read_image(tmp_path / "plain.nii")


# Types and shapes

KINDS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64,
         np.float32, np.float64]  # fmt: skip


@pytest.mark.parametrize("suffix", ["nii.gz", "nrrd", "mha"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_type_of_number_is_read_as_it_is(kind, suffix, tmp_path):
    stored = np.random.default_rng(0).integers(0, 100, SHAPE).astype(kind)
    volume = sitk.GetImageFromArray(np.ascontiguousarray(stored.transpose(2, 1, 0)))
    sitk.WriteImage(volume, str(tmp_path / f"scan.{suffix}"))
    image = read_image(tmp_path / f"scan.{suffix}")
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image[0], stored)


@pytest.mark.parametrize("suffix", ["nii.gz", "nrrd", "mha"])
def test_thick_oblique_slices_and_one_slice_alone_stay_where_they_are(suffix, tmp_path):
    affine = an_affine(turned(20, 1) @ np.diag([0.5, 0.5, 7.5]))
    for shape in ((9, 8, 5), (9, 8, 1), (1, 8, 5)):
        image = make_image(values(shape), affine)
        back = read_image(write_image(image, tmp_path / f"scan.{suffix}"))
        np.testing.assert_allclose(back.affine, affine, atol=1e-5)
        np.testing.assert_array_equal(back[0], values(shape))


def test_one_frame_of_a_film_can_be_chosen(tmp_path):
    film = values((*SHAPE, 3))
    nibabel.save(nibabel.Nifti1Image(film, OBLIQUE), tmp_path / "film.nii.gz")
    path = tmp_path / "film.nii.gz"
    assert read_image(path).shape == (3, *SHAPE)
    np.testing.assert_array_equal(read_image(path, frame=2)[0], film[..., 2])
    assert read_image(path, frame=2).shape == (1, *SHAPE)
    for frame in (3, -1):
        with pytest.raises(ImageError, match=f"has 3 frames, numbered from 0; frame {frame}"):
            read_image(path, frame=frame)


def test_labels_that_single_precision_would_mix_up_are_refused(tmp_path):
    labels = np.zeros(SHAPE, dtype=np.uint32)
    labels[0, 0, 0], labels[1, 0, 0] = 614454276, 614454277
    volume = sitk.GetImageFromArray(labels.transpose(2, 1, 0))
    sitk.WriteImage(volume, str(tmp_path / "atlas.nrrd"))
    with pytest.raises(ImageError, match=r"'atlas\.nrrd' holds labels above 16,777,216"):
        read_labelmap(tmp_path / "atlas.nrrd")
    labels[labels > 0] = 1 << 24
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / "atlas.nrrd"))
    assert read_labelmap(tmp_path / "atlas.nrrd").max() == 1 << 24


# NaN and infinity


def test_nan_is_told_with_its_count_and_place_and_may_be_replaced(tmp_path):
    voxels = values()
    voxels[1, 2, 3], voxels[2, 2, 2], voxels[3, 4, 5] = np.nan, np.inf, -np.inf
    write_image(make_image(voxels, OBLIQUE), tmp_path / "scan.nrrd")
    place = ", ".join(f"{one:.1f}" for one in to_ras(OBLIQUE, (1, 2, 3)))
    told = rf"holds 3 values .* channel 0 at voxel \(1, 2, 3\), RAS {place} mm.*--fill 0"
    with pytest.raises(ImageError, match=told):
        as_image(read_image(tmp_path / "scan.nrrd"))
    filled = as_image(read_image(tmp_path / "scan.nrrd", fill=-1024))
    np.testing.assert_array_equal(filled[0], np.where(np.isfinite(voxels), voxels, -1024))
    assert filled.meta["notes"] == ("3 values were NaN or infinite; -1024 stands in their place.",)


def test_a_finite_image_is_not_touched_and_a_filling_must_be_finite():
    image = make_image(values(), OBLIQUE)
    assert replace_values(image, 0) is image
    with pytest.raises(ImageError, match="replaced by a number; nan was given"):
        replace_values(image, float("nan"))


# Files that cannot be what they say; more in test_hostile_images.py


def test_a_volume_larger_than_the_memory_is_refused_with_both_numbers(tmp_path, monkeypatch):
    path = write_image(make_image(values((10, 10, 10)), OBLIQUE), tmp_path / "scan.nrrd")
    monkeypatch.setattr(volume_files, "free_memory", lambda: 8000)
    told = r"10 x 10 x 10 voxels: reading it needs 8 kB of memory, and 8 kB are free\. Crop"
    with pytest.raises(ImageError, match=told):
        read_image(path)
    monkeypatch.setattr(volume_files, "free_memory", lambda: 9000)
    assert read_image(path).shape == (1, 10, 10, 10)
    monkeypatch.setattr(volume_files, "free_memory", lambda: None)
    assert read_image(path).shape == (1, 10, 10, 10)


def test_the_free_memory_is_known_here():
    total = int(Path("/proc/meminfo").read_text(encoding="utf-8").split()[1]) * 1024
    assert 0 < volume_files.free_memory() < total


def test_a_file_that_was_cut_off_is_told(tmp_path):
    path = a_nifti(tmp_path / "scan.nii", **FORMS["both"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    with pytest.raises(ImageError, match=r"holds 4 x 5 x 6 voxels \(480 bytes\).* cut off"):
        read_image(path)
    # ITK would fill up with zeros.
    packed = tmp_path / "packed.nii.gz"
    packed.write_bytes(gzip.compress(whole)[:-100])
    with pytest.raises(ImageError, match=r"ends before its 4 x 5 x 6 voxels do: it is cut off"):
        read_image(packed)
    packed.write_bytes(gzip.compress(whole[:-4]))
    with pytest.raises(ImageError, match="ends before its 4 x 5 x 6 voxels do"):
        read_image(packed)
    packed.write_bytes(gzip.compress(whole[:400]) + gzip.compress(whole[400:]))
    np.testing.assert_array_equal(read_image(packed)[0], values())


# DICOM


def slices(count: int = 6) -> np.ndarray:
    return np.random.default_rng(1).integers(-500, 1500, (count, 4, 5))


def test_a_dicom_folder_is_a_volume_at_its_place(tmp_path):
    axes = turned(20, 0)
    places = [np.array([10, 20, 30]) + axes[:, 2] * 7.5 * index for index in range(6)]
    a_series(tmp_path, slices(), places, axes=axes[:, :2].T.ravel(), spacing=(0.5, 0.7))
    image = read_image(tmp_path)
    np.testing.assert_array_equal(image[0], slices().transpose(2, 1, 0))
    lps = an_affine(axes @ np.diag([0.7, 0.5, 7.5]), (10, 20, 30))
    np.testing.assert_allclose(image.affine, np.diag([-1, -1, 1, 1]) @ lps, atol=1e-5)
    assert image.meta["filename_or_obj"] == tmp_path.name


def test_slices_in_falling_order_are_the_same_volume(tmp_path):
    places = [(0, 0, 3.0 * index) for index in range(6)]
    up = read_image(a_series(tmp_path / "up", slices(), places))
    down = read_image(a_series(tmp_path / "down", slices()[::-1], places[::-1]))
    torch.testing.assert_close(up.as_tensor(), down.as_tensor(), rtol=0, atol=0)
    np.testing.assert_array_equal(up.affine, down.affine)


def test_slices_are_sorted_by_position_whoever_lists_them(tmp_path):
    a_series(tmp_path, slices(), [(0, 0, 3.0 * index) for index in range(6)])
    files = find_series(tmp_path)
    for order in ([3, 1, 5, 0, 2, 4], [5, 4, 3, 2, 1, 0]):
        found, lps, shape = series_geometry([files[index] for index in order], "head")
        assert found == files
        assert shape == (5, 4, 6)
        np.testing.assert_allclose(lps, np.diag([1, 1, 3, 1]))


def test_a_tilted_gantry_gives_a_sheared_grid(tmp_path):
    lean = np.tan(np.deg2rad(20)) * 5
    places = [(0, lean * index, 5.0 * index) for index in range(6)]
    image = read_image(a_series(tmp_path, slices(), places))
    np.testing.assert_allclose(image.affine[:3, 2], [0, -lean, 5], atol=1e-5)
    np.testing.assert_allclose(to_ras(image.affine, (0, 0, 5)), [0, -5 * lean, 25], atol=1e-4)
    back = read_image(write_image(image, tmp_path / "out" / "map.nrrd"))
    np.testing.assert_allclose(back.affine, image.affine, atol=1e-6)


def test_each_slice_has_its_own_rescale_slope(tmp_path):
    # PET: read by the first slice's type, as ITK does when not told otherwise, 74.13 becomes 74.
    rescale = [(1, 0), *[(0.37, 0.5)] * 5]
    places = [(0, 0, 3.0 * index) for index in range(6)]
    image = read_image(a_series(tmp_path, slices(), places, rescale=rescale))
    slopes = np.array(rescale)
    expected = slices() * slopes[:, :1, None] + slopes[:, 1:, None]
    np.testing.assert_allclose(image[0], expected.transpose(2, 1, 0), rtol=1e-6)


def test_one_of_several_series_is_chosen_by_number_description_or_uid(tmp_path):
    places = [(0, 0, 3.0 * index) for index in range(6)]
    a_series(tmp_path, slices(), places, number=1, description="T1")
    a_series(tmp_path, slices(4), places[:4], number=7, description="FLAIR")
    told = r"holds 2 series: .*1 T1 \(6 slices\).*7 FLAIR \(4 slices\).*--series"
    with pytest.raises(ImageError, match=told):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="holds 2 series and 0 of them fit 'T2'"):
        read_image(tmp_path, series="T2")
    uids = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(tmp_path))
    last = next(one for one in uids if one.endswith(".7"))
    for name in ("flair", "7", last):
        assert read_image(tmp_path, series=name).shape == (1, 5, 4, 4)
    assert read_image(tmp_path, series="T1").shape == (1, 5, 4, 6)


def even(count: int = 6) -> np.ndarray:
    return np.array([(0.0, 0.0, 3.0 * index) for index in range(count)])


def moved(index: int, by: float) -> np.ndarray:
    places = even()
    places[index:, 2] += by
    return places


@pytest.mark.parametrize(
    ("places", "told"),
    [
        (moved(3, 3), r"not evenly spaced: 6 mm between slices 3 and 4, 3 mm usually"),
        (moved(1, 3), r"not evenly spaced: 6 mm between slices 1 and 2, 3 mm usually"),
        (moved(5, 1.5), r"not evenly spaced: 4.5 mm between slices 5 and 6"),
        (np.repeat(even(3), 2, axis=0), r"3 slices .* lie where another one lies"),
    ],
)
def test_missing_and_double_slices_are_told(places, told, tmp_path):
    with pytest.raises(ImageError, match=told):
        read_image(a_series(tmp_path, slices(), places))


def test_positions_rounded_by_an_exporter_are_no_gap(tmp_path):
    places = even()
    places[2, 2] += 0.05
    assert read_image(a_series(tmp_path, slices(), places)).shape == (1, 5, 4, 6)


def test_slices_that_do_not_belong_together_are_told(tmp_path):
    a_series(tmp_path / "axes", slices(3), even(3))
    a_series(tmp_path / "axes", slices(1), [(0, 0, 50)], axes=(1, 0, 0, 0, 0, -1))
    # One file was written over: its name follows from its number.
    with pytest.raises(ImageError, match="lie in different directions, as those of a localiser"):
        read_image(tmp_path / "axes")
    a_series(tmp_path / "size", slices(3), even(3))
    a_series(tmp_path / "size", slices(1), [(0, 0, 50)], spacing=(2, 2))
    with pytest.raises(ImageError, match=r"differ in size or spacing \(5 x 4 pixels of"):
        read_image(tmp_path / "size")


def test_one_slice_of_a_series_asks_for_its_folder(tmp_path):
    a_series(tmp_path / "head", slices(), even())
    file = sorted((tmp_path / "head").iterdir())[0]
    with pytest.raises(ImageError, match=r"is one of the 6 slices of its series.*\('head'\)"):
        read_image(file)
    a_series(tmp_path / "alone", slices(1), even(1))
    assert read_image(next((tmp_path / "alone").iterdir())).shape == (1, 5, 4, 1)
    assert read_image(tmp_path / "alone").shape == (1, 5, 4, 1)


def test_a_folder_without_slices_is_told(tmp_path):
    (tmp_path / "inner").mkdir()
    with pytest.raises(ImageError, match=r"holds no DICOM series\. Its folders: inner\."):
        read_image(tmp_path)


def test_a_file_of_many_frames_is_a_volume(tmp_path):
    stored = slices()
    image = read_image(frames(tmp_path / "ct.dcm", stored, even(), spacing=(0.5, 0.7)))
    np.testing.assert_allclose(image[0], stored.transpose(2, 1, 0) - 1000.0)
    np.testing.assert_allclose(spacing_mm(image.affine), (0.7, 0.5, 3.0), rtol=1e-6)


# Channels on other grids, by name


def a_field(affine: np.ndarray, shape, scale: float = 1.0) -> Volume:
    """A linear function of the place: trilinear interpolation gives it back exactly."""
    places = to_ras(affine, np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1))
    return Volume(scale * (places @ [2.0, -3.0, 0.5] + 7), affine)


def test_the_twin_in_numpy_resamples_as_the_image_does():
    field = a_field(OBLIQUE, SHAPE)
    like = make_image(np.zeros((7, 8, 9)), SHEARED)
    expected = resample_image(make_image(field.voxels, OBLIQUE), like)
    moved_ = resample_volume(field, like)
    np.testing.assert_array_equal(moved_.voxels, expected)
    np.testing.assert_array_equal(moved_.affine, SHEARED)
    two = Volume(np.concatenate([field.voxels, -field.voxels]), OBLIQUE)
    np.testing.assert_allclose(resample_volume(two, like, outside=0).voxels[1], -resample_volume(
        field, like, outside=0).voxels[0])  # fmt: skip


@pytest.fixture
def channel_files(tmp_path) -> dict[str, Path]:
    inner = an_affine(turned(20) @ np.diag([0.5, 0.6, 0.7]), (0, 0, 0))
    outer = an_affine(np.diag([-2.0, 2.5, 3.0]), (20, -20, -20))
    made = {"T1": a_field(inner, (9, 10, 11)), "FLAIR": a_field(outer, (20, 20, 20), 10.0)}
    return {
        name: write_image(make_image(one.voxels, one.affine), tmp_path / f"{name}.nrrd")
        for name, one in made.items()
    }


def test_named_volumes_are_put_in_the_order_of_the_model_on_its_first_ones_grid(channel_files):
    given = {"flair": channel_files["FLAIR"], "t1": channel_files["T1"]}
    joined = read_image(given, channels=("T1", "FLAIR"), resample=True)
    torch.testing.assert_close(joined[1], 10 * joined[0], rtol=0, atol=0.02)
    alone = read_image(channel_files["T1"])
    torch.testing.assert_close(joined[0], alone[0], rtol=0, atol=0)
    np.testing.assert_array_equal(joined.affine, alone.affine)
    note = "FLAIR.nrrd was interpolated onto the grid of T1.nrrd."
    assert joined.meta["notes"] == (note,)
    other = read_image(given, channels=("FLAIR", "T1"), resample=True)
    np.testing.assert_allclose(spacing_mm(other.affine), (2, 2.5, 3))


@pytest.mark.parametrize(
    ("names", "channels", "told"),
    [
        (["T1", "T2"], ("T1", "FLAIR"), r"T1, FLAIR\. 'T2' is none of them\. 'FLAIR' is missing"),
        (["T1"], ("T1", "FLAIR"), r"'FLAIR' is missing\. Give each once"),
        (["T1", "t1", "FLAIR"], ("T1", "FLAIR"), "Give each once"),
        (["T1"], (), "does not name its input channels"),
    ],
)
def test_names_that_are_not_the_models_are_refused(names, channels, told):
    with pytest.raises(ImageError, match=told):
        read_image(dict.fromkeys(names, "x.nrrd"), channels=channels)


def test_volumes_that_do_not_overlap_are_refused_and_partial_ones_told():
    near = Volume(values(), PLAIN, "near")
    half = Volume(values(), an_affine(SPACING, (12.0, -20, 30)), "half")
    assert coverage(half, near) == 0.5
    joined = join_volumes([near, half], resample=True)
    assert joined.notes == ("half was interpolated onto the grid of near, of which it covers 50%.",)
    far = Volume(values(), an_affine(SPACING, (500, 0, 0)), "far")
    with pytest.raises(ImageError, match="'far' and 'near' do not overlap in space"):
        join_volumes([near, far], resample=True)


def test_a_real_oblique_scan_and_its_parcellation_become_channels_in_world_space(real_data):
    folder = real_data / "volumes"
    given = {
        "labels": folder / "flair_parcellation.nii.gz",
        "FLAIR": folder / "flair_oblique.nii.gz",
    }
    joined = read_image(given, channels=("FLAIR", "labels"), resample=True)
    assert joined.shape == (2, 320, 320, 26)
    # By another library, at a few thousand voxels.
    from scipy.ndimage import map_coordinates

    labels = nibabel.load(given["labels"])
    ijk = np.random.default_rng(0).integers(0, joined.shape[1:], (3000, 3))
    there = np.linalg.inv(labels.affine) @ np.c_[to_ras(joined.affine, ijk), np.ones(3000)].T
    beyond = there[:3].T - (np.array(labels.shape) - 1)
    inside = (there[:3].T >= 0).all(1) & (beyond <= 0).all(1)
    expected = map_coordinates(labels.get_fdata(), there[:3], order=1)
    found = joined[1].numpy()[tuple(ijk.T)]
    assert inside.mean() > 0.5
    assert (expected[inside] > 0).mean() > 0.1
    np.testing.assert_allclose(found[inside], expected[inside], atol=0.5)
    assert "interpolated onto the grid of flair_oblique.nii.gz" in joined.meta["notes"][0]
