"""The figure: what is drawn where, what is written, and how it fails."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from grid_cases import GRIDS, a_grey_ball, blob, centred_affine, positions

from SaliencyExplainLib import figure
from SaliencyExplainLib.errors import ImageError, MissingPackageError
from SaliencyExplainLib.explanation import Explanation
from SaliencyExplainLib.figure import draw, overlay
from SaliencyExplainLib.image import make_image, read_image
from SaliencyExplainLib.planes import (
    PLANES,
    centre_ras_mm,
    cut,
    peak_ras_mm,
    through,
    volume_box,
)

pytest.importorskip("matplotlib", reason="figures need matplotlib")

PEAK = np.array([12.0, -7.0, 9.0])
# A second blob in each plane through PEAK, and in none of the others.
SECOND = {
    "axial": PEAK + np.array([-30.0, -24.0, 0.0]),
    "coronal": PEAK + np.array([-26.0, 0.0, -28.0]),
    "sagittal": PEAK + np.array([0.0, 27.0, -22.0]),
}


def an_explanation(maps, **changes) -> Explanation:
    target = {
        "output": 3,
        "output_name": "white matter",
        "region": "prediction",
        "region_voxels": 48211,
        "score": "logit",
        "reduce": "mean",
        "unit": "output unit",
    }
    facts = {
        "maps": maps,
        "network_maps": maps,
        "value": 12.3456,
        "target": target,
        "method": "integrated_gradients",
        "title": "Integrated Gradients",
        "parameters": {},
        "signed": True,
    }
    return Explanation(**(facts | changes))


@pytest.fixture(params=list(GRIDS))
def a_grid(request):
    return GRIDS[request.param]


@pytest.fixture
def an_image():
    return a_grey_ball(*GRIDS["LAS"])


@pytest.fixture
def a_map():
    affine, shape = GRIDS["LAS"]
    ras = positions(affine, shape)
    return make_image(blob(ras, PEAK) - 0.5 * blob(ras, SECOND["axial"]), affine)


def pixels(drawn, dpi: int = 100) -> np.ndarray:
    """Drawn picture, shape (rows, columns, 3), 0 to 255."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn.set_dpi(dpi)
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(float)


def panel_pixels(drawn, gid: str) -> tuple[np.ndarray, object]:
    picture = pixels(drawn)
    axes = next(one for one in drawn.axes if one.get_gid() == gid)
    box = axes.get_window_extent()
    rows = slice(round(picture.shape[0] - box.y1), round(picture.shape[0] - box.y0))
    return picture[rows, round(box.x0) : round(box.x1)], axes


def centroid(weight: np.ndarray) -> np.ndarray:
    """Column and row."""
    rows, columns = np.indices(weight.shape)
    return np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()


def texts_of(drawn) -> list[str]:
    from matplotlib.text import Text

    return [one.get_text() for one in drawn.findobj(Text) if one.get_text()]


# Where things are


@pytest.mark.parametrize("plane", list(PLANES))
def test_two_blobs_are_drawn_as_far_apart_and_in_the_direction_that_their_positions_say(
    a_grid, plane
):
    affine, shape = a_grid
    ras = positions(affine, shape)
    maps = make_image(blob(ras, PEAK) - 0.9 * blob(ras, SECOND[plane]), affine)
    drawn = draw(a_grey_ball(affine, shape), an_explanation(maps), at=PEAK, crosshair=False)
    panel, axes = panel_pixels(drawn, f"0-{plane}")
    red = np.clip(panel[..., 0] - panel[..., 2] - 40, 0, None)
    blue = np.clip(panel[..., 2] - panel[..., 0] - 40, 0, None)
    left, right = axes.get_xlim()
    pixels_per_mm = panel.shape[1] / abs(right - left)
    # Radiological: the patient's right, in sagittal planes the front, is at the left.
    across, up = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}[plane]
    step_mm = SECOND[plane] - PEAK
    expected = np.array([-step_mm[across], -step_mm[up]]) * pixels_per_mm
    assert centroid(blue) - centroid(red) == pytest.approx(expected, abs=1.5 * pixels_per_mm)


@pytest.mark.parametrize("plane", list(PLANES))
def test_a_blob_lies_where_the_axes_of_its_panel_say(a_grid, plane):
    affine, shape = a_grid
    maps = make_image(blob(positions(affine, shape), PEAK), affine)
    drawn = draw(a_grey_ball(affine, shape), an_explanation(maps), at=PEAK, crosshair=False)
    panel, axes = panel_pixels(drawn, f"0-{plane}")
    red = np.clip(panel[..., 0] - panel[..., 2] - 40, 0, None)
    across, up = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}[plane]
    column, row = axes.transAxes.inverted().transform(
        axes.transData.transform((PEAK[across], PEAK[up]))
    )
    found = centroid(red) / [panel.shape[1], panel.shape[0]]
    assert found == pytest.approx([column, 1 - row], abs=0.015)


def test_what_lies_outside_the_volume_is_nan_and_drawn_black():
    affine, shape = GRIDS["oblique"]
    image = a_grey_ball(affine, shape)
    plane = through((0, 0, 0), volume_box(image), 1.0)[2]
    assert np.isnan(cut(image, plane)[0, 0])
    empty = make_image(np.zeros(shape), affine)
    panel, _ = panel_pixels(draw(image, an_explanation(empty), crop=False), "0-sagittal")
    assert panel[3:6, 3:6].max() == 0


def test_the_planes_cross_at_the_peak_of_the_map_by_default(an_image, a_map):
    assert peak_ras_mm(a_map) == pytest.approx(PEAK, abs=1.01)
    captions = [text for text in texts_of(draw(an_image, an_explanation(a_map))) if " = " in text]
    assert any(text.startswith("axial, S = ") for text in captions)
    assert any(text.startswith("coronal, A = \N{MINUS SIGN}") for text in captions)


def test_the_planes_cross_in_the_middle_of_a_mask(an_image, a_map):
    affine, shape = GRIDS["LAS"]
    mask = make_image(np.linalg.norm(positions(affine, shape) - [5, 3, -9], axis=-1) < 7, affine)
    assert centre_ras_mm(mask) == pytest.approx([5, 3, -9], abs=0.5)
    written = texts_of(draw(an_image, an_explanation(a_map), at=mask, contour=mask))
    assert any(text.startswith("sagittal, R = ") for text in written)


def test_the_outline_is_drawn_and_explained(an_image, a_map):
    mask = make_image(a_map.as_tensor() > 0.3, a_map.affine)
    plain = pixels(draw(an_image, an_explanation(a_map)))
    outlined = draw(an_image, an_explanation(a_map), contour=mask, contour_name="lesion")
    assert any("Outline: lesion." in text for text in texts_of(outlined))
    yellow = (np.array([255, 232, 61]) - pixels(outlined)).__abs__().max(-1) < 40
    assert yellow.sum() > 30
    assert plain.shape[1] == pixels(outlined).shape[1]


# Words


def test_the_title_says_method_output_value_and_completeness(an_image, a_map):
    written = " ".join(texts_of(draw(an_image, an_explanation(a_map, completeness_error=0.0123))))
    for part in (
        "Integrated Gradients",
        "white matter where it is predicted (48,211 voxels)",
        "S = 12.35 (mean logit)",
        "completeness error 1.2 %",
        "Radiological convention",
    ):
        assert part in written


@pytest.mark.parametrize(("error", "said"), [(1.0071, "101 %"), (0.00042, "0.042 %"), (0.0, "0 %")])
def test_the_completeness_error_is_written_as_people_write_it(an_image, a_map, error, said):
    written = " ".join(texts_of(draw(an_image, an_explanation(a_map, completeness_error=error))))
    assert f"completeness error {said}" in written


def test_a_soft_volume_has_its_unit_and_a_contrast_its_rival(an_image, a_map):
    target = {
        "output_name": "liver",
        "score": "soft_volume",
        "unit": "ml",
        "contrast_name": "spleen",
    }
    written = " ".join(texts_of(draw(an_image, an_explanation(a_map, target=target))))
    assert "S = 12.35 ml (soft volume)" in written
    assert "liver, against spleen" in written


def test_the_sides_of_the_patient_stand_at_the_borders(an_image, a_map):
    drawn = draw(an_image, an_explanation(a_map))
    for plane, letters in (("axial", "RLAP"), ("coronal", "RLSI"), ("sagittal", "APSI")):
        axes = next(one for one in drawn.axes if one.get_gid() == f"0-{plane}")
        places = {one.get_text(): one.get_position() for one in axes.texts}
        first, second = letters[0], letters[1]
        assert set(letters) <= set(places)
        assert places[first][0] < 0.5 < places[second][0]


def test_dollar_signs_in_a_name_are_not_taken_for_formulas(an_image, a_map):
    target = {"output_name": "a $x^2$ b"}
    drawn = draw(an_image, an_explanation(a_map, target=target))
    text = next(one for one in drawn.texts if "$x^2$" in one.get_text())
    assert not text.get_parse_math()


def test_no_text_leaves_the_figure_or_covers_another(an_image, a_map):
    from matplotlib.text import Text

    long = "a warning that goes on and on about layers, norms and rounding noise " * 5
    target = {"output_name": "inferior vena cava and everything around it " * 4, "region": "roi"}
    rows = [
        an_explanation(a_map, warnings=(long, "a short one")),
        an_explanation(a_map * 3e-7, target=target, signed=False),
    ]
    drawn = draw(an_image, rows)
    pixels(drawn)
    width, height = drawn.bbox.width, drawn.bbox.height
    shown = [one for one in drawn.findobj(Text) if one.get_text() and one.get_visible()]
    boxes = [one.get_window_extent() for one in shown]
    for text, box in zip(shown, boxes, strict=True):
        assert box.x0 >= 0, text
        assert box.x1 <= width, text
        assert box.y0 >= 0, text
        assert box.y1 <= height, text
    for (text, box), (other, second) in itertools.combinations(zip(shown, boxes, strict=True), 2):
        apart = box.x1 <= second.x0 or second.x1 <= box.x0
        apart = apart or box.y1 <= second.y0 + 1 or second.y1 <= box.y0 + 1
        assert apart, (text.get_text(), other.get_text())


def test_a_map_that_is_zero_everywhere_is_called_so(an_image):
    empty = make_image(torch.zeros(an_image.shape), an_image.affine)
    assert any("zero" in text for text in texts_of(draw(an_image, an_explanation(empty))))


def test_clipped_ends_of_the_colour_bar_say_so(an_image):
    voxels = np.random.default_rng(0).normal(size=tuple(an_image.shape)) * 1e-6
    written = texts_of(draw(an_image, an_explanation(make_image(voxels, an_image.affine))))
    assert any(text.startswith("\N{GREATER-THAN OR EQUAL TO} ") for text in written)
    assert any(text.startswith("\N{LESS-THAN OR EQUAL TO} \N{MINUS SIGN}") for text in written)
    assert any("·10⁻⁶" in text for text in written)


def test_several_explanations_are_rows_of_one_scale(an_image, a_map):
    one = draw(an_image, an_explanation(a_map), at=PEAK)
    three = draw(an_image, [an_explanation(a_map)] * 3, at=PEAK)
    assert three.get_figheight() > 2.5 * one.get_figheight() - 0.5
    wide = {
        axes.get_gid(): axes.get_window_extent().width / abs(np.diff(axes.get_xlim())[0])
        for axes in three.axes
        if axes.get_gid()
    }
    assert len(wide) == 9
    assert max(wide.values()) == pytest.approx(min(wide.values()), rel=1e-6)


def test_a_map_on_another_grid_is_drawn_at_its_own_place(an_image):
    coarse = centred_affine(np.diag([8.0, 8.0, 8.0]), (12, 12, 12))
    maps = make_image(blob(positions(coarse, (12, 12, 12)), PEAK, 9.0), coarse)
    drawn = draw(an_image, an_explanation(maps), at=PEAK, crosshair=False)
    panel, axes = panel_pixels(drawn, "0-axial")
    red = np.clip(panel[..., 0] - panel[..., 2] - 40, 0, None)
    column, _ = axes.transAxes.inverted().transform(axes.transData.transform(PEAK[:2]))
    assert centroid(red)[0] / panel.shape[1] == pytest.approx(column, abs=0.03)


# Files and failures


def test_the_figure_is_written_and_nothing_else_is_left(tmp_path, an_image, a_map):
    path = overlay(an_image, an_explanation(a_map), tmp_path / "new" / "overlay.png", dpi=60)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [one.name for one in path.parent.iterdir()] == ["overlay.png"]


def test_text_stays_text_in_an_svg(tmp_path, an_image, a_map):
    path = overlay(an_image, an_explanation(a_map), tmp_path / "overlay.svg")
    assert "Integrated Gradients" in path.read_text(encoding="utf-8")


def test_an_unknown_format_is_refused_and_leaves_no_file(tmp_path, an_image, a_map):
    with pytest.raises(ImageError, match="could not be written"):
        overlay(an_image, an_explanation(a_map), tmp_path / "overlay.xyz")
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_should_be_is_refused(tmp_path, an_image, a_map):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ImageError, match="in a folder that can be written"):
        overlay(an_image, an_explanation(a_map), tmp_path / "taken" / "overlay.png")


def test_no_explanation_is_refused(an_image):
    with pytest.raises(ImageError, match="at least one explanation"):
        draw(an_image, [])


def test_a_channel_that_is_not_there_is_refused(an_image, a_map):
    with pytest.raises(ImageError, match=r"no channel 2\. Choose one from 0 to 0"):
        draw(an_image, an_explanation(a_map), channel=2)


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ("middle", "cross at 'peak'"),
        ((1.0, 2.0), "three finite RAS coordinates"),
        ((1.0, 2.0, np.nan), "three finite RAS coordinates"),
        ((900.0, 0.0, 0.0), "lies outside the image"),
        (make_image(np.zeros((3, 3, 3)), np.eye(4)), "is empty"),
    ],
)
def test_a_place_that_makes_no_sense_is_refused(an_image, a_map, at, words):
    with pytest.raises(ImageError, match=words):
        draw(an_image, an_explanation(a_map), at=at)


def test_a_missing_matplotlib_is_named_with_its_cure(monkeypatch, an_image, a_map):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match="pip install 'matplotlib"):
        draw(an_image, an_explanation(a_map))


def test_the_figure_can_be_imported_without_matplotlib():
    code = "import sys; sys.modules['matplotlib'] = None; import SaliencyExplainLib.figure"
    root = Path(figure.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_a_thick_oblique_scan_is_shown_in_its_right_proportions(real_data):
    image = read_image(real_data / "volumes" / "flair_oblique.nii.gz")
    voxels = torch.zeros(image.shape)
    voxels[0, 160, 160, 13] = 1.0
    drawn = draw(image, an_explanation(make_image(voxels, image.affine)))
    pixels(drawn)
    for axes in drawn.axes[:3]:
        box = axes.get_window_extent()
        wide, tall = abs(np.diff(axes.get_xlim())[0]), abs(np.diff(axes.get_ylim())[0])
        assert box.width / wide == pytest.approx(box.height / tall, rel=1e-6)
        # A head is 130 to 260 mm in every direction; the scan covers 143 mm from bottom to top.
        assert 130 < wide < 260
        assert 130 < tall < 260
