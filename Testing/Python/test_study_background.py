"""Background removal: enhancement, placing a template, the whole on a user's volume, the study."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

import SaliencyExplainLib as sx
from SaliencyExplainLib.errors import Cancelled, ImageError, MethodError, TargetError
from SaliencyExplainLib.image import make_image, resample_image, resample_labels, to_ras
from SaliencyExplainLib.studies import (
    Placement,
    StudyResult,
    Template,
    align_template,
    enhance_log_normal,
    make_template,
    register_template,
    remove_background,
)
from SaliencyExplainLib.studies.background_removal import STUDY, pipeline
from SaliencyExplainLib.studies.background_removal.measures import centre_mm, mask_scores
from SaliencyExplainLib.studies.background_removal.network import as_model, make_network
from SaliencyExplainLib.studies.background_removal.scans import (
    ARTEFACTS,
    TISSUES,
    masked_brain,
    whole_head,
)

ROOT = Path(__file__).resolve().parents[2]
TINY = pipeline.Setup(20, 3, 25, 1e-2, 1, 4)


def an_affine(spacing=(2.0, 2.0, 2.0), turn=0.0, origin=(0.0, 0.0, 0.0)) -> np.ndarray:
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def a_blob(shape, affine, at_mm, radii_mm=(14.0, 10.0, 8.0)):
    """An ellipsoid in RAS millimetres, whatever the grid."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    away = (to_ras(affine, index) - np.asarray(at_mm)) / np.asarray(radii_mm)
    return make_image(((away**2).sum(-1) < 1).astype(np.float32), affine)


def voxels(image) -> np.ndarray:
    return image.as_tensor().numpy()[0]


def dice(one, other) -> float:
    return mask_scores(voxels(one) > 0, voxels(other) > 0)["Dice"]


def log_normal(seed=0, size=24, sigma=1.3, channels=1):
    values = np.exp(np.random.default_rng(seed).normal(-3.0, sigma, (channels, size, size, size)))
    return make_image(values, np.eye(4))


# -- Enhancement -------------------------------------------------------------------------------


def test_the_enhancement_is_the_published_formula():
    map_ = log_normal()
    g = np.abs(voxels(map_).astype(np.float64))
    u = 1e-3 + (g - g.min()) / (g.max() - g.min())
    z = (np.log(u) - np.log(u).mean()) / np.log(u).std()
    enhanced, fit = enhance_log_normal(map_)
    assert np.allclose(voxels(enhanced), np.exp(-(((z - 2) / 0.5) ** 2)), atol=1e-6)
    assert (fit.mean, fit.std) == pytest.approx((np.log(u).mean(), np.log(u).std()))
    assert abs(z.ravel()[voxels(enhanced).argmax()] - 2) < 0.01
    # A soft threshold, no step: what is very large is damped as well.
    assert voxels(enhanced).ravel()[g.argmax()] < 0.3
    other, _ = enhance_log_normal(map_, peak=0.5, width=0.2)
    assert np.allclose(voxels(other), np.exp(-(((z - 0.5) / 0.2) ** 2)), atol=1e-6)


def test_the_fit_tells_a_log_normal_map_from_a_mixture():
    map_ = log_normal()
    low, high = float(map_.min()), float(map_.max())
    # With this offset u is the map itself, but for its unit.
    enhanced, fit = enhance_log_normal(map_, offset=low / (high - low))
    assert fit.ks_distance < 0.02
    assert abs(fit.skewness) < 0.06
    assert abs(fit.kurtosis) < 0.12
    assert "log-normal holds" in fit.sentence
    # Of a normal distribution 4.9 % lie where f > 0.5, and f is 0.056 on average.
    assert (voxels(enhanced) > 0.5).mean() == pytest.approx(0.049, abs=0.006)
    assert voxels(enhanced).mean() == pytest.approx(0.056, abs=0.006)
    two = voxels(log_normal(sigma=0.2)).copy()
    two[:, :, :8] *= 30.0
    _, fit = enhance_log_normal(make_image(two, np.eye(4)))
    assert fit.ks_distance > 0.15
    assert "does not hold" in fit.sentence


def test_the_fit_agrees_with_scipy():
    map_ = make_image(np.random.default_rng(1).gamma(0.7, size=(15, 15, 15)), np.eye(4))
    _, fit = enhance_log_normal(map_)
    g = voxels(map_).astype(np.float64)
    logs = np.log(1e-3 + (g - g.min()) / (g.max() - g.min())).ravel()
    scores = (logs - logs.mean()) / logs.std()
    assert fit.ks_distance == pytest.approx(stats.kstest(scores, "norm").statistic, abs=1e-9)
    assert fit.skewness == pytest.approx(stats.skew(scores))
    assert fit.kurtosis == pytest.approx(stats.kurtosis(scores))
    assert fit.voxels == 15**3


def test_sign_and_unit_of_a_map_do_not_matter_and_offset_and_scale_are_one_choice():
    map_ = log_normal(2)
    expected = voxels(enhance_log_normal(map_)[0])
    signs = np.where(np.random.default_rng(3).random(map_.shape) < 0.5, -250.0, 250.0)
    flipped = make_image(map_.numpy() * signs, map_.affine)
    assert np.allclose(voxels(enhance_log_normal(flipped)[0]), expected, atol=1e-5)
    one = enhance_log_normal(map_, offset=1.0, scale=255.0)[0]
    other = enhance_log_normal(map_, offset=1 / 255, scale=1.0)[0]
    assert torch.allclose(one.as_tensor(), other.as_tensor(), atol=1e-5)


def test_voxels_without_gradient_count_only_where_that_is_asked_for():
    map_ = log_normal(4)
    padded = make_image(np.pad(map_.numpy(), ((0, 0), (20, 20), (0, 0), (0, 0))), np.eye(4))
    enhanced, fit = enhance_log_normal(padded)
    assert fit.share == pytest.approx(24 / 64)
    assert not voxels(enhanced)[:20].any()
    assert voxels(enhanced)[20:44].max() > 0.99
    _, with_zeros = enhance_log_normal(padded, zeros=True)
    assert with_zeros.share == 1
    # They collapse the mean, and what is high is no longer told apart.
    assert with_zeros.mean < fit.mean - 0.5
    assert with_zeros.ks_distance > 3 * fit.ks_distance


def test_channels_are_joined_by_the_largest_magnitude_or_by_their_length():
    map_ = log_normal(5, size=10, channels=3)
    stack = np.abs(map_.numpy())
    for rule, joined in (("max", stack.max(0)), ("l2", np.sqrt((stack**2).sum(0)))):
        found, _ = enhance_log_normal(map_, channels=rule)
        expected, _ = enhance_log_normal(make_image(joined, np.eye(4)))
        assert torch.allclose(found.as_tensor(), expected.as_tensor(), atol=1e-4)


@pytest.mark.parametrize(
    ("map_", "options", "message"),
    [
        (np.zeros((4, 4, 4)), {}, "same magnitude .* everywhere"),
        (np.eye(4)[None].repeat(4, 0), {}, "one magnitude wherever it is not zero"),
        (np.arange(64.0).reshape(4, 4, 4), {"offset": 0.0}, "must lie above 0; 0.0"),
        (np.arange(64.0).reshape(4, 4, 4), {"width": -1.0}, "must lie above 0"),
        (np.arange(64.0).reshape(4, 4, 4), {"channels": "mean"}, "max, l2; 'mean' was given"),
    ],
)
def test_a_map_that_cannot_be_enhanced_is_refused(map_, options, message):
    with pytest.raises(MethodError, match=message):
        enhance_log_normal(make_image(map_, np.eye(4)), **options)


# -- Placing -----------------------------------------------------------------------------------


def test_the_shift_is_that_of_the_sum_written_out():
    chance = np.random.default_rng(0)
    affine = an_affine((1.5, 2.0, 3.0), turn=20)
    weights, values = chance.random((4, 5, 3)), chance.random((7, 6, 8))
    best, at = -1.0, None
    for shift in np.ndindex(10, 10, 10):
        lag = np.array(shift) - (3, 4, 2)
        total = 0.0
        for v in np.ndindex(*weights.shape):
            there = np.array(v) + lag
            if (there >= 0).all() and (there < values.shape).all():
                total += weights[v] * values[tuple(there)]
        if total > best:
            best, at = total, lag
    found = align_template(make_image(weights, affine), make_image(values, affine))
    assert found.shift_mm == pytest.approx(tuple(affine[:3, :3] @ at), abs=1e-6)
    assert found.score == pytest.approx(
        best / np.linalg.norm(weights) / np.linalg.norm(values), rel=1e-6
    )
    assert found.kind == "translation"


@pytest.mark.parametrize("turn", [0.0, 30.0])
def test_a_template_on_another_grid_is_placed_in_millimetres(turn):
    scan_affine = an_affine((-2.0, 1.5, 2.5), turn=turn, origin=(40.0, -35.0, -30.0))
    scan = a_blob((44, 52, 30), scan_affine, (5.0, 3.0, 9.0))
    template = a_blob((40, 30, 28), an_affine((1.0, 1.5, 1.0), origin=(-20, -22, -14)), (0, 0, 0))
    found = align_template(template, scan)
    assert np.allclose(found.shift_mm, (5.0, 3.0, 9.0), atol=1.6)
    assert dice(found.place(template, scan), scan) > 0.85


def test_a_template_is_moved_into_a_scan_that_it_does_not_touch():
    # No voxel of the template lies in the scan's volume before it is moved.
    scan = a_blob((30, 30, 30), an_affine(), (30, 30, 30))
    template = a_blob((24, 24, 24), an_affine(origin=(-300, 100, 4)), (-276, 122, 28))
    found = align_template(template, scan)
    assert np.allclose(found.shift_mm, (306, -92, 2))
    assert dice(found.place(template, scan), scan) == 1


def test_nothing_wraps_around_the_volume():
    # Circular correlation would take both ends of the bright stripe for one place.
    values = np.zeros((40, 6, 6))
    values[:4], values[-4:], values[17:23] = 1.0, 1.0, 0.95
    template = make_image(np.ones((8, 6, 6)), np.eye(4))
    found = align_template(template, make_image(values, np.eye(4)))
    assert 15 <= found.shift_mm[0] <= 17
    assert found.shift_mm[1:] == (0.0, 0.0)


def test_a_limit_on_the_shift_is_kept_and_of_equal_shifts_the_shortest_is_taken():
    affine = an_affine()
    values = np.zeros((30, 12, 12))
    values[2:6, 4:8, 4:8], values[22:26, 4:8, 4:8] = 1.0, 0.8
    template = np.zeros((30, 12, 12))
    template[16:20, 4:8, 4:8] = 1.0
    pair = make_image(template, affine), make_image(values, affine)
    assert align_template(*pair).shift_mm == (-28.0, 0.0, 0.0)
    assert align_template(*pair, max_shift_mm=15.0).shift_mm == (12.0, 0.0, 0.0)
    values[22:26, 4:8, 4:8] = 1.0
    even = make_image(values, affine)
    assert align_template(pair[0], even).shift_mm == (12.0, 0.0, 0.0)
    far = make_image(template, an_affine(origin=(900.0, 0, 0)))
    with pytest.raises(MethodError, match="as short as 5 mm; the shortest at which it overlaps"):
        align_template(far, even, max_shift_mm=5.0)


def test_a_mask_is_placed_voxel_by_voxel_and_what_leaves_the_scan_is_cut():
    affine = an_affine((1.0, 2.0, 3.0))
    mask = (np.random.default_rng(1).random((9, 8, 7)) > 0.5).astype(np.float32)
    template = make_image(mask, affine)
    placed = Placement.shifted((2.0, -4.0, 3.0)).place(template, template)
    expected = np.zeros_like(mask)
    expected[2:, :-2, 1:] = mask[:-2, 2:, :-1]
    assert np.array_equal(voxels(placed), expected)
    assert np.array_equal(voxels(Placement.shifted((0, 0, 0)).place(template, template)), mask)


@pytest.mark.parametrize(
    ("template", "values", "message"),
    [
        (np.zeros((3, 3, 3)), np.ones((3, 3, 3)), "template is zero everywhere"),
        (np.ones((3, 3, 3)), np.zeros((3, 3, 3)), "map is zero everywhere"),
        (np.ones((3, 3, 3)), -np.ones((3, 3, 3)), r"map has negative values \(down to -1\)"),
        (np.ones((2, 3, 3, 3)), np.ones((3, 3, 3)), "template needs one channel; it has 2"),
    ],
)
def test_a_template_or_map_that_cannot_be_aligned_is_refused(template, values, message):
    with pytest.raises(ImageError, match=message):
        align_template(make_image(template, np.eye(4)), make_image(values, np.eye(4)))


# -- Registration ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def brain():
    return masked_brain(32, 3)


@pytest.fixture(scope="module")
def turned(brain):
    """The same brain, turned by 9 degrees, larger by a tenth along A and moved, in a wider scan."""
    angle = np.radians(9)
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [np.cos(angle), -np.sin(angle), 0],
        [np.sin(angle), np.cos(angle), 0],
        [0, 0, 1],
    ]
    matrix[:3, 1] *= 1.1
    matrix[:3, 3] = (9.0, -7.0, 5.0)
    place = Placement((9.0, -7.0, 5.0), tuple(map(tuple, matrix)), "affine", 0.0)
    grid = make_image(np.zeros((36, 44, 36)), an_affine((6.5,) * 3, origin=(-115, -140, -113)))
    back = np.linalg.inv(matrix) @ np.asarray(grid.affine)
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape[1:]), indexing="ij"), axis=0)
    into = np.linalg.inv(np.asarray(brain.image.affine)) @ back
    at = np.tensordot(into[:3, :3], index, axes=1) + into[:3, 3][:, None, None, None]
    moved = ndimage.map_coordinates(voxels(brain.image), at, order=1, mode="constant")
    return make_image(moved, grid.affine), place.place(brain.brain, grid), matrix


def test_registration_stretches_what_a_shift_can_only_move(brain, turned):
    scan, truth, matrix = turned
    start = align_template(brain.brain, truth)
    shifted = dice(start.place(brain.brain, scan), truth)
    found = register_template(brain.brain, brain.image, scan, start)
    assert shifted < 0.95
    assert dice(found.place(brain.brain, scan), truth) > 0.98
    # The turn is another matter: one affine map turns an ellipsoid, another shears it alike.
    assert np.allclose(np.diag(found.matrix), np.diag(matrix), atol=0.05)
    assert found.kind == "affine"
    middle = centre_mm(brain.brain)
    expected = to_ras(matrix, middle) - middle
    assert np.allclose(found.shift_mm, expected, atol=2.0)
    again = register_template(brain.brain, brain.image, scan, start)
    assert again == found
    rigid = register_template(brain.brain, brain.image, scan, start, transform="rigid")
    assert abs(np.linalg.det(np.asarray(rigid.matrix)[:3, :3]) - 1) < 1e-6
    assert shifted < dice(rigid.place(brain.brain, scan), truth)


def test_a_registration_that_cannot_be_is_refused(brain, turned):
    scan, _, _ = turned
    start = Placement.shifted((0, 0, 0))
    with pytest.raises(MethodError, match="rigid, affine; 'elastic' was given"):
        register_template(brain.brain, brain.image, scan, start, transform="elastic")
    with pytest.raises(MethodError, match="iterations 1 or more"):
        register_template(brain.brain, brain.image, scan, start, iterations=0)
    empty = make_image(np.zeros((4, 4, 4)), np.eye(4))
    with pytest.raises(ImageError, match="mask is empty"):
        register_template(empty, brain.image, scan, start)
    with pytest.raises(MethodError, match=r"from a shift of \(9000.0, 0.0, 0.0\) mm failed"):
        register_template(brain.brain, brain.image, scan, Placement.shifted((9000, 0, 0)))
    asked = []

    def enough():
        asked.append(True)
        return len(asked) > 2

    with pytest.raises(Cancelled, match="registration was cancelled"):
        register_template(brain.brain, brain.image, scan, start, cancelled=enough)
    assert len(asked) < 8


# -- The study ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("background")


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def result(folder, told):
    return STUDY(folder, quick=True, progress=lambda done, what: told.append((done, what)))


@pytest.fixture(scope="module")
def model(result, folder):
    """The network of the quick study."""
    network = make_network()
    kept = torch.load(folder / "work" / "network.pt", weights_only=True)
    network.load_state_dict(kept["network"])
    return as_model(network)


@pytest.fixture(scope="module")
def head():
    return whole_head(32, 777, "none")


@pytest.fixture(scope="module")
def template(model, brain):
    return make_template(model, brain.brain, [brain.image], image=brain.image)


def _cell(table, row, column):
    found = [one for one in table.rows if all(part in one for part in row)]
    assert len(found) == 1
    return found[0][table.columns.index(column)]


def test_the_quick_study_finds_what_its_tables_say(result):
    assert len(result.answer) == 7
    assert {one.name for one in result.tables} == {
        "tissues", "brain", "log_normal", "open_choices", "artefacts",
    }  # fmt: skip
    tissues, brain = result.table("tissues"), result.table("brain")
    guided = "after removal by guided backpropagation (shift)"
    for tissue in TISSUES[1:]:
        before = _cell(tissues, (tissue, "unmasked scan"), "Dice %")
        manual = _cell(tissues, (tissue, "true mask (manual removal)"), "Dice %")
        after = _cell(tissues, (tissue, guided), "Dice %")
        assert before < after < manual
        assert f"{before:.1f}, {after:.1f}" in result.answer[0]
        registered = "after removal by guided backpropagation and registration"
        assert before + 1 < _cell(tissues, (tissue, registered), "Dice %") < manual + 1
    assert result.answer[0].startswith("Removal by guided backpropagation raises the Dice of")
    for row in (*tissues.rows, *brain.rows):
        cells = dict(
            zip(tissues.columns if row in tissues.rows else brain.columns, row, strict=True)
        )
        assert cells["Dice low %"] <= cells["Dice %"] <= cells["Dice high %"]
    best = _cell(brain, ("best shift there is (truth known)",), "Dice %")
    for row in brain.rows:
        if "shift by" in row[0] or row[0] == "no shift":
            assert row[brain.columns.index("Dice %")] <= best
    moved = _cell(brain, ("shift by guided backpropagation",), "Dice %")
    still = _cell(brain, ("no shift",), "Dice %")
    assert moved > still + 5
    # Precision and sensitivity give the Dice of each head; their means nearly do.
    cells = dict(zip(brain.columns, brain.rows[0], strict=True))
    both = cells["precision %"], cells["sensitivity %"]
    assert cells["Dice %"] == pytest.approx(2 * both[0] * both[1] / sum(both), abs=1.0)


def test_the_published_figures_stand_beside_ours(result):
    first = result.comparisons[0]
    assert first.published == "99.12 %"
    published = [one.published for one in result.comparisons[1:7]]
    assert published == ["86.05 %", "91.05 %", "76.76 %", "84.65 %", "60.15 %", "77.61 %"]
    mean = _cell(result.table("brain"), ("shift by guided backpropagation",), "Dice %")
    assert first.ours.startswith(f"{mean:.1f} % (")
    assert (first.verdict == "confirmed") == (
        _cell(result.table("brain"), ("shift by guided backpropagation",), "Dice low %")
        <= 99.12
        <= _cell(result.table("brain"), ("shift by guided backpropagation",), "Dice high %")
    )
    by_name = {one.what: one for one in result.comparisons}
    row = by_name["guided gradients are log-normal"]
    ks = _cell(result.table("log_normal"), ("guided backprop",), "KS distance")
    assert f"KS distance {ks:.3f}" in row.ours
    assert row.verdict == ("confirmed" if ks <= 0.05 else "refuted")
    assert any("rodents" in one for one in result.differs)


def test_progress_goes_up_to_the_end(result, told):
    steps = [done for done, _ in told]
    assert steps == sorted(steps)
    assert 0 <= steps[0] < 0.05
    assert 0.95 < steps[-1] <= 1
    assert any("training network" in what for _, what in told)


def test_pages_figures_and_volumes_are_written_and_read_back(result, folder):
    page = (folder / "background_removal.md").read_text(encoding="utf-8")
    assert "99.12 %" in page
    for one in result.figures:
        assert f"({one.name}.png)" in page
        assert 10_000 < (folder / f"{one.name}.png").stat().st_size < 250_000
    back = StudyResult.load(folder)
    assert back.answer == result.answer
    case = back.cases[0]
    assert set(case.labels) >= {"true tissues", "segmentation before", "segmentation after"}
    assert set(case.volumes) == {"enhanced map", "background removed"}
    assert np.array_equal(
        case.labels["placed template"][0].voxels[0] > 0,
        result.cases[0].labels["placed template"][0].numpy()[0] > 0,
    )
    assert not case.maps[0].signed


def test_the_segmentations_of_the_example_are_those_of_the_cleared_scans(result, model):
    case = result.cases[0]
    truth = (case.labels["true tissues"][0].as_tensor() > 0).float()
    masks = {
        "segmentation before": torch.ones_like(truth),
        "segmentation after": case.labels["placed template"][0].as_tensor(),
        "segmentation after registration": case.labels["registered template"][0].as_tensor(),
        "segmentation with the true mask": truth,
    }
    for name, mask in masks.items():
        cleared = make_image(case.image.as_tensor() * mask, case.image.affine)
        expected = voxels(sx.predict(model, cleared))
        assert np.array_equal(voxels(case.labels[name][0]), expected), name


def test_the_figures_show_eight_panels_and_three_charts(result):
    head, scores = (one.figure for one in result.figures)
    assert [axes.get_title(loc="left")[0] for axes in head.axes] == list("abcdefgh")
    assert all(len(axes.images) for axes in head.axes)
    # The outlines of the placed, the registered and the true mask.
    assert len(head.axes[4].collections) == 3
    bars, dots, _ = scores.axes
    heights = [patch.get_height() for patch in bars.patches]
    assert len(heights) == 15
    dice_of = {(row[0], row[1]): row[5] for row in result.table("tissues").rows}
    assert heights[0] == pytest.approx(dice_of["white matter", "unmasked scan"])
    assert heights[-1] == pytest.approx(dice_of["CSF", "true mask (manual removal)"])
    assert len(dots.get_yticklabels()) == 9
    assert len(result.plots) == 2


def test_the_study_becomes_a_scene(result, tmp_path):
    pytest.importorskip("slicer")
    scene = sx.scene.new_scene()
    try:
        made = sx.scene.publish_study(result, scene)
        assert len(made.segmentations) == 7
        assert len(made.volumes) == 3
        assert len(made.maps) == 1
        assert len(made.charts) == 2
        assert len(made.tables) == 6
        names = [node.GetName() for node in made.segmentations]
        sx.scene.save_mrb(scene, tmp_path / "scene.mrb")
    finally:
        sx.scene.release_scene(scene)
    again = sx.scene.load_mrb(tmp_path / "scene.mrb")
    try:
        for name in names:
            assert again.GetFirstNodeByName(name) is not None
    finally:
        sx.scene.release_scene(again)


def test_a_stopped_study_goes_on_and_ends_like_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.Setup, "of", classmethod(lambda cls, quick: TINY))
    whole = STUDY(tmp_path / "whole", quick=True, seed=2)
    seen = []

    def enough():
        return any("case 3" in what for what in seen)

    with pytest.raises(Cancelled, match="What is done is kept"):
        STUDY(
            tmp_path / "stopped",
            quick=True,
            seed=2,
            progress=lambda _, what: seen.append(what),
            cancelled=enough,
        )
    lines = (
        (tmp_path / "stopped" / "work" / "test_heads.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    assert len(lines) == 2
    seen.clear()
    second = STUDY(
        tmp_path / "stopped", quick=True, seed=2, progress=lambda _, what: seen.append(what)
    )
    assert not any("training" in what or "template," in what for what in seen)
    assert second.answer == whole.answer
    assert second.comparisons == whole.comparisons
    for one, other in zip(whole.tables, second.tables, strict=True):
        assert one.columns == other.columns
        for row, again in zip(one.rows, other.rows, strict=True):
            for cell, twin in zip(row, again, strict=True):
                # Registration is the same to the last digits only.
                near = pytest.approx(twin, rel=1e-5) if isinstance(twin, float) else twin
                assert cell == near


def test_importing_the_study_needs_no_torch():
    code = (
        "import sys\n"
        "from SaliencyExplainLib.studies import enhance_log_normal, align_template\n"
        "from SaliencyExplainLib.studies.background_removal import STUDY\n"
        "assert STUDY.name == 'background_removal'\n"
        "sys.exit('torch' in sys.modules or 'monai' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 0


# -- A user's model and volume -----------------------------------------------------------------


def test_the_background_is_removed_and_the_rest_is_left_alone(model, head, template):
    steps = []
    found = remove_background(
        model, head.image, template, fill=-0.5, progress=lambda done, _: steps.append(done)
    )
    inside = voxels(found.mask) > 0
    assert np.array_equal(voxels(found.image)[inside], voxels(head.image)[inside])
    assert (voxels(found.image)[~inside] == np.float32(-0.5)).all()
    assert np.array_equal(voxels(found.before), voxels(sx.predict(model, head.image)))
    assert np.array_equal(voxels(found.after), voxels(sx.predict(model, found.image)))
    assert np.array_equal(inside, voxels(found.placement.place(template.mask, head.image)) > 0)
    expected = align_template(template.weights, found.enhanced)
    assert expected == found.placement
    assert dice(found.mask, head.brain) > 0.8
    # Registration starts from that shift.
    better = remove_background(model, head.image, template, alignment="affine")
    assert better.placement.kind == "affine"
    assert dice(better.mask, head.brain) > dice(found.mask, head.brain)
    assert steps == sorted(steps)
    assert steps[-1] == 1


def test_what_is_explained_is_the_sum_of_logits_of_each_tissue_where_it_is_predicted(
    model, head, template
):
    found = remove_background(model, head.image, template).explanation
    total, value = 0.0, 0.0
    for index in (1, 2, 3):
        one = sx.explain(
            model,
            head.image,
            sx.Target(output=index, region="prediction", reduce="sum"),
            "guided_backprop",
        )
        total = total + np.abs(voxels(one.map))
        value += one.value
    assert np.allclose(voxels(found.map), total, rtol=1e-5, atol=1e-6 * total.max())
    assert found.value == pytest.approx(value, rel=1e-6)
    assert found.details["outputs"] == list(TISSUES[1:])
    assert not found.signed
    single = remove_background(model, head.image, template, outputs=["white matter"])
    assert single.explanation.details["outputs"] == ["white matter"]
    assert np.allclose(voxels(single.explanation.map), np.abs(voxels(one.map)), rtol=1e-5)
    plain = remove_background(model, head.image, template, outputs=[3], method="gradient")
    wanted = sx.explain(
        model, head.image, sx.Target(output=3, region="prediction", reduce="sum"), "gradient"
    )
    assert np.allclose(voxels(plain.explanation.map), np.abs(voxels(wanted.map)), rtol=1e-5)


def test_the_template_holds_the_mean_map_and_may_be_a_mask_alone(model, brain, template):
    other = masked_brain(32, 4)
    alone = make_template(model, brain.brain, [other.image])
    both = make_template(model, brain.brain, [brain.image, other.image])
    mean = (voxels(template.gradient) + voxels(alone.gradient)) / 2
    assert np.allclose(voxels(both.gradient), mean, atol=1e-5 * mean.max())
    expected = (voxels(brain.brain) > 0) * voxels(template.gradient)
    assert np.allclose(voxels(template.weights), expected)
    assert np.array_equal(voxels(Template(brain.brain).weights), voxels(brain.brain))
    found = remove_background(model, brain.image, brain.brain)
    assert dice(found.mask, brain.brain) > 0.85


def test_a_shift_of_the_scan_shifts_map_and_placement(model, template):
    scan = masked_brain(32, 9).image
    moved = make_image(scan.as_tensor().roll(4, 1), scan.affine)
    one, other = (remove_background(model, image, template) for image in (scan, moved))
    here, there = (voxels(found.explanation.map) for found in (one, other))
    pair = here[4:-8], np.roll(there, -4, axis=0)[4:-8]
    assert np.corrcoef(pair[0].ravel(), pair[1].ravel())[0, 1] > 0.99
    step = np.subtract(other.placement.shift_mm, one.placement.shift_mm)
    assert np.allclose(step, (4 * 208 / 32, 0, 0), atol=208 / 32 + 1e-6)


def test_removal_that_cannot_be_is_refused(model, head, template):
    with pytest.raises(MethodError, match="translation, rigid, affine; 'elastic' was given"):
        remove_background(model, head.image, template, alignment="elastic")
    with pytest.raises(MethodError, match="without its image cannot be registered"):
        remove_background(model, head.image, template.mask, alignment="affine")
    with pytest.raises(MethodError, match="guided_backprop, deconvnet, gradient; 'occlusion'"):
        remove_background(model, head.image, template, method="occlusion")
    with pytest.raises(TargetError, match=r"no output .bone.\. Its outputs are 0 background, 1"):
        remove_background(model, head.image, template, outputs=["bone"])
    with pytest.raises(ImageError, match="Resample the gradient"):
        Template(template.mask, make_image(np.ones((3, 3, 3)), np.eye(4)))
    with pytest.raises(ImageError, match="at least one image for its mean map"):
        make_template(model, template.mask, [])
    with pytest.raises(Cancelled):
        remove_background(model, head.image, template, cancelled=lambda: True)
    dark = make_image(np.zeros((16, 16, 16)), np.eye(4))
    silent = replace(model, network=_Silent())
    with pytest.raises(MethodError, match="predicts none of the outputs anywhere"):
        remove_background(silent, dark, template)


class _Silent(torch.nn.Module):
    """Everything is background."""

    def forward(self, x):
        return torch.cat([torch.ones_like(x), x * 0, x * 0, x * 0], 1)


def test_a_sigmoid_network_without_labels_is_served(head):
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 2, 3, padding=1)
    )
    two = sx.Model(network, "segmentation", activation="sigmoid")
    found = remove_background(two, head.image, head.brain)
    assert found.before.shape[0] == 2
    assert found.explanation.details["outputs"] == ["output 0", "output 1"]


def test_a_template_finds_the_brain_of_a_real_head(real_data):
    image = sx.read_image(real_data / "volumes" / "t1_head.nii.gz")
    reference = _brain_by_another_network(image, real_data)
    made_up = masked_brain(64, 1).brain
    demo = sx.load_model(ROOT / "SaliencyExplain" / "Resources" / "Models" / "BrainTissue")
    found = remove_background(demo, image, made_up, outputs=["white matter"])
    placed = dice(found.mask, reference)
    # An ellipsoid of 1.9 l moved over a brain: 0.85 is the best that a shift can do.
    best = dice(align_template(made_up, reference).place(made_up, image), reference)
    still = dice(Placement.shifted((0, 0, 0)).place(made_up, image), reference)
    assert best == pytest.approx(0.85, abs=0.02)
    assert placed > 0.74
    assert placed > still + 0.05
    away = centre_mm(reference) - centre_mm(made_up)
    assert np.linalg.norm(np.asarray(found.placement.shift_mm) - away) < 15
    assert "does not hold" in found.fit.sentence
    assert found.after.shape == image.shape


def _brain_by_another_network(image, real_data):
    """Brain mask of a trained network that is no part of this project (4 mm, z-scored tissue)."""
    middle = to_ras(image.affine, (np.array(image.shape[1:]) - 1) / 2)
    shape = np.array([48, 60, 48])
    grid = make_image(np.zeros(shape), an_affine((4.0,) * 3, origin=middle - 2.0 * (shape - 1)))
    coarse = resample_image(image, grid, outside=0.0).as_tensor()
    tissue = coarse[coarse > coarse.mean()]
    network = torch.jit.load(str(real_data / "checkpoints" / "unet_brain.ts")).eval()
    with torch.no_grad():
        labels = network(((coarse - tissue.mean()) / tissue.std())[None]).argmax(1)
    return resample_labels(make_image(labels, grid.affine), image)


# -- Scans and measures ------------------------------------------------------------------------


def test_a_test_head_is_moved_whole_and_carries_its_artefact():
    scans = {one: whole_head(32, 5, one) for one in ARTEFACTS}
    plain = scans["none"]
    assert tuple(plain.image.shape) == (1, 32, 40, 32)
    for one in ARTEFACTS:
        assert torch.equal(scans[one].tissues, plain.tissues)
    noise = voxels(plain.image)
    for one, least in (("blob", 0.5), ("stripe", 0.2), ("ghost", 0.05)):
        assert (voxels(scans[one].image) - noise).max() > least
    # The air is added at both ends, so the scan's middle stays where it was.
    middle = (np.array(plain.image.shape[1:]) - 1) / 2
    assert np.allclose(to_ras(plain.image.affine, middle), 0, atol=1e-4)
    still = masked_brain(32, 5)
    # The same brain, elsewhere: nothing of it is cut off.
    assert float(plain.brain.sum()) == pytest.approx(float(still.brain.sum()), rel=0.02)
    away = centre_mm(plain.brain) - centre_mm(still.brain)
    assert 3 < np.linalg.norm(away) < np.linalg.norm((18, 22, 18)) + 3
    # Moved back, it lies on itself.
    back = Placement.shifted(away).place(still.brain, plain.image)
    assert dice(back, plain.brain) > 0.97
    inside = voxels(plain.brain) > 0
    assert np.array_equal(inside, voxels(plain.tissues) > 0)
    white = voxels(plain.tissues) == 3
    assert voxels(plain.image)[white].mean() == pytest.approx(0.75, abs=0.08)


def test_training_sees_no_skull_and_test_heads_are_others():
    one = masked_brain(32, 5)
    assert not voxels(one.image)[voxels(one.brain) == 0].any()
    setup = pipeline.Setup.of(False)
    assert setup.brains < 50_000
    assert setup.heads >= 20


def test_scores_of_masks_are_those_of_the_counts():
    found, truth = np.zeros((2, 10), dtype=bool)
    found[:6], truth[4:9] = True, True
    scores = mask_scores(found, truth)
    assert scores == pytest.approx(
        {"accuracy": 3 / 10, "precision": 2 / 6, "sensitivity": 2 / 5, "Dice": 4 / 11}
    )
    assert mask_scores(np.zeros(10, dtype=bool), truth)["Dice"] == 0
