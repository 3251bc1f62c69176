"""Volumes whose evidence is known, the network that must use it, and the table made with both."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt, label

import SaliencyExplainLib as sx
from SaliencyExplainLib import quality
from SaliencyExplainLib.errors import ImageError
from SaliencyExplainLib.studies import SpiculatedNodules, nodules, spiculated_nodules

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "SaliencyExplain" / "Resources" / "Models" / "SpiculatedNodules"
PLAIN, SPICULES, TARGET = 1, 2, 3
ANYWHERE = np.ones((3, 3, 3))


@pytest.fixture(scope="module")
def scene() -> SpiculatedNodules:
    return spiculated_nodules(64, seed=0)


@pytest.fixture(scope="module")
def training():
    return _imported(ROOT / "Testing" / "Data", "train_nodule_model")


@pytest.fixture(scope="module")
def trust():
    return _imported(ROOT / "Testing" / "Benchmarks", "trust")


@pytest.fixture(scope="module")
def model() -> sx.Model:
    return sx.load_model(BUNDLE)


def _imported(folder: Path, name: str):
    sys.path.insert(0, str(folder))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(folder))


def _voxels(image) -> np.ndarray:
    return image.as_tensor().numpy()[0]


# -- The volumes -------------------------------------------------------------------------------


def test_one_seed_gives_one_scene_and_another_seed_another(scene):
    again, other = spiculated_nodules(64, seed=0), spiculated_nodules(64, seed=1)
    for one in ("image", "erased", "labels"):
        assert torch.equal(getattr(scene, one), getattr(again, one))
        assert not torch.equal(getattr(scene, one), getattr(other, one))
    assert scene.seed == 0


def test_the_scenes_are_those_that_the_model_was_trained_for(scene):
    # Voxels of background, plain nodules, spicules and bodies; borders may round otherwise.
    assert np.bincount(_voxels(scene.labels).astype(int).ravel()) == pytest.approx(
        [248682, 6212, 1412, 5838], rel=2e-3
    )
    assert float(scene.image.std()) == pytest.approx(0.27900, rel=1e-3)


def test_chance_of_other_code_is_left_as_it_was():
    np.random.seed(5)  # noqa: NPY002 - the state that must not change
    expected = np.random.rand(3)  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    state = torch.get_rng_state()
    spiculated_nodules(16)
    assert np.array_equal(np.random.rand(3), expected)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [16, 40, 64])
def test_the_volume_is_128_mm_wide_around_the_origin_at_any_size(size):
    made = spiculated_nodules(size)
    for image in (made.image, made.erased, made.labels, made.evidence):
        assert tuple(image.shape) == (1, size, size, size)
        corners = image.affine.numpy() @ [*[[-0.5, size - 0.5]] * 3, [1, 1]]
        assert corners[:3] == pytest.approx(np.tile([-64.0, 64.0], (3, 1)))


def test_the_scene_is_the_same_at_every_size(scene):
    fine = _voxels(spiculated_nodules(128, seed=0).labels)
    blocks = fine.reshape(64, 2, 64, 2, 64, 2)
    for one in (PLAIN, TARGET):
        share = (blocks == one).mean(axis=(1, 3, 5))
        mask = _voxels(scene.labels) == one
        # Where all eight or none of the fine voxels are inside, there is no border to argue about.
        assert mask[share == 1].all()
        assert not mask[share == 0].any()
    coarse = torch.nn.functional.avg_pool3d(spiculated_nodules(128, seed=0).image[None], 2)[0]
    difference = (coarse.as_tensor() - scene.image.as_tensor()).numpy()
    assert np.sqrt((difference**2).mean()) < 0.03


def test_erasing_changes_the_spicules_and_nothing_far_from_them(scene):
    with_them, without = _voxels(scene.image), _voxels(scene.erased)
    spicules = _voxels(scene.labels) == SPICULES
    assert (with_them >= without).all()
    assert (with_them - without)[spicules].min() > 0
    # A voxel that is filled by less than half has no label, but its brightness: at the rim, and
    # where a tip is thinner than a voxel.
    away = distance_transform_edt(~spicules)
    assert np.array_equal(with_them[away > 5], without[away > 5])
    changed = (with_them > without) & ~spicules
    assert (away[changed] < 1.5).mean() > 0.9
    assert (with_them - without)[spicules].mean() > 2.5 * (with_them - without)[changed].mean()


def test_the_erased_image_holds_no_trace_of_which_nodules_had_spicules():
    for seed in range(3):
        scenes = [spiculated_nodules(32, seed, share=share) for share in (0.0, 0.5, 1.0)]
        assert torch.equal(scenes[0].image, scenes[0].erased)
        for one in scenes[1:]:
            assert torch.equal(one.erased, scenes[0].erased)
            assert not torch.equal(one.image, one.erased)


def test_the_share_of_spiculated_nodules_changes_only_which_spicules_are_painted(scene):
    painted = spiculated_nodules(64, 0, share=1.0)
    before, after = _voxels(scene.labels), _voxels(painted.labels)
    assert np.array_equal(np.isin(before, (PLAIN, TARGET)), after == TARGET)
    assert (after[before == SPICULES] == SPICULES).all()
    new = (after == SPICULES) & (before != SPICULES)
    same = distance_transform_edt(~new) > 5
    assert same[before == SPICULES].mean() > 0.9
    assert np.array_equal(_voxels(scene.image)[same], _voxels(painted.image)[same])


def test_at_least_one_nodule_has_spicules_unless_none_may():
    for seed in range(20):
        assert (spiculated_nodules(16, seed, share=0.02).labels == TARGET).any()
    labels = _voxels(spiculated_nodules(32, 0, share=0.0).labels)
    assert set(np.unique(labels)) == {0, PLAIN}


def test_about_half_of_the_nodules_have_spicules():
    flags = [
        nodules._choice(np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0]), 8, 0.5)
        for seed in range(400)
    ]
    # 3200 throws: the standard deviation of the mean is 0.009.
    assert np.mean(flags) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("count", "seed"), [(1, 0), (5, 1), (8, 2), (8, 3), (20, 4)])
def test_each_nodule_is_one_piece_in_a_cell_of_its_own(count, seed):
    made = spiculated_nodules(96, seed, count)
    labels = _voxels(made.labels)
    _, bodies = label(np.isin(labels, (PLAIN, TARGET)), ANYWHERE)
    pieces, whole = label(labels > 0, ANYWHERE)
    assert bodies == count
    # Spicules neither bridge two nodules nor float away, but for a tip thinner than a voxel.
    sizes = np.bincount(pieces.ravel())[1:]
    assert (sizes > 8).sum() == count, sizes
    assert sizes[sizes <= 8].sum() < 0.002 * sizes.sum()
    assert not any(labels.take([0, -1], axis).any() for axis in range(3)), whole


def test_spicules_are_two_to_three_voxels_thick_at_their_foot():
    thick = []
    for seed in range(5):
        for number, chance in enumerate(np.random.SeedSequence(seed).spawn(8)):
            cell = np.unravel_index(number, (2, 2, 2))
            one = nodules._draw(np.random.default_rng(chance), cell, 2)
            thick += list(2 * one.cones[:, 7] * one.scale * 64 / 384)
    assert min(thick) > 2
    assert max(thick) < 3.5


def test_spicules_are_evidence_of_a_size_that_counts(scene):
    labels = _voxels(scene.labels)
    assert 0.15 < (labels == SPICULES).sum() / (labels == TARGET).sum() < 0.5
    # Not along the whole of its surface: the body cannot be told by a rim.
    rim = (labels != TARGET) & (distance_transform_edt(labels != TARGET) < 1.5)
    assert 0.1 < (labels[rim] == SPICULES).mean() < 0.6


def test_a_cone_has_the_volume_of_a_cone():
    axes = np.meshgrid(*[np.arange(-20, 21) + 0.0] * 3, indexing="ij")
    local = np.stack(axes, axis=-1)
    filled = np.zeros(local.shape[:3])
    towards = np.array([2.0, -1.0, 2.0]) / 3
    cone = np.array([*(-7 * towards), *towards, 18.0, 6.0, 0.0])
    nodules._add_cone(filled, cone, local, 1.0)
    assert filled.sum() == pytest.approx(np.pi * 36 * 18 / 3, rel=0.03)
    centre = (local * filled[..., None]).sum((0, 1, 2)) / filled.sum()
    assert centre == pytest.approx((-7 + 18 / 4) * towards, abs=0.15)
    assert filled.max() == 1


def test_a_body_of_one_sphere_has_the_distances_of_a_sphere():
    local = np.random.default_rng(0).uniform(-50, 50, (6, 5, 4, 3))
    one = SimpleNamespace(
        waves=np.zeros((0, 7)), centres=np.array([[3.0, 0, -5]]), radii=np.array([20.0])
    )
    expected = np.linalg.norm(local - one.centres[0], axis=-1) - 20
    assert nodules._body_distance(one, local) == pytest.approx(expected, abs=1e-9)


def test_spheres_are_joined_to_their_union_and_rounded_outwards():
    local = np.random.default_rng(1).uniform(-50, 50, (8, 5, 4, 3))
    one = SimpleNamespace(
        waves=np.zeros((0, 7)),
        centres=np.array([[0.0, 0, 0], [20, 0, 0]]),
        radii=np.array([20.0, 15]),
    )
    union = np.min(
        [
            np.linalg.norm(local - centre, axis=-1) - radius
            for centre, radius in zip(one.centres, one.radii, strict=True)
        ],
        axis=0,
    )
    grown = union - nodules._body_distance(one, local)
    assert grown.min() > -1e-9
    assert grown.max() <= nodules._ROUNDING * np.log(2) + 1e-9


def test_without_noise_a_voxel_is_as_bright_as_the_part_of_it_that_is_filled():
    made = spiculated_nodules(64, 5, noise=0.0)
    image, labels = _voxels(made.image), _voxels(made.labels)
    assert image.min() == 0
    assert 0.5 <= image.max() <= 1
    assert not image[distance_transform_edt(labels == 0) > 5].any()
    assert image[labels > 0].min() > 0.2
    pieces, count = label(np.isin(labels, (PLAIN, TARGET)), ANYWHERE)
    inside = distance_transform_edt(pieces > 0) > 2
    for piece in range(1, count + 1):
        bright = image[(pieces == piece) & inside]
        assert np.ptp(bright) == 0
        assert 0.5 <= bright[0] <= 1


def test_the_noise_has_mean_zero_three_octaves_and_no_edges():
    fields = [nodules._fractal_noise(np.random.default_rng(seed), 64) for seed in range(12)]
    assert np.mean(fields) == pytest.approx(0, abs=0.02)
    assert 0.3 < np.std(fields) < 0.5
    assert np.abs(fields).max() < 1.75  # 1 + 1/2 + 1/4
    # Perlin's curve is flat at the lattice: no step, and no larger step there than elsewhere.
    steps = np.abs(np.diff(fields[0], axis=0))
    assert steps.max() < 0.5
    for axis in range(3):
        alike = [np.corrcoef(one.ravel(), np.roll(one, 1, axis).ravel())[0, 1] for one in fields]
        assert 0.85 < np.mean(alike) < 0.99


def test_louder_noise_is_the_same_noise_cut_at_one():
    quiet, loud = (spiculated_nodules(32, 1, noise=noise) for noise in (0.0, 2.0))
    image = _voxels(loud.image)
    assert image.min() == -1
    assert image.max() == 1
    grain = 2.0 * nodules._fractal_noise(
        np.random.default_rng(np.random.SeedSequence(1).spawn(10)[1]), 32
    )
    expected = (_voxels(quiet.image) + grain).clip(-1, 1)
    assert image == pytest.approx(expected, abs=1e-6)


def test_the_evidence_is_spicules_and_the_bodies_that_carry_them(scene):
    expected = np.isin(_voxels(scene.labels), (SPICULES, TARGET))
    assert np.array_equal(_voxels(scene.evidence), expected)
    assert scene.evidence.affine.tolist() == scene.image.affine.tolist()
    assert scene.names == {1: "plain nodule", 2: "spicules", 3: "spiculated nodule"}
    assert (scene.PLAIN, scene.SPICULES, scene.TARGET) == (1, 2, 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 15}, "size of a volume with nodules is 16 or more .*; 15 was given"),
        ({"seed": -1}, "seed of a volume with nodules is 0 or more; -1 was given"),
        ({"count": 0}, r"count of a volume with nodules is 1 or more \(nodules\); 0 was given"),
        ({"share": 1.5}, "share of a volume with nodules is between 0 and 1 .*; 1.5 was given"),
        ({"noise": -0.1}, "noise of a volume with nodules is 0 or more; -0.1 was given"),
    ],
)
def test_a_parameter_out_of_its_range_is_refused(wrong, message):
    with pytest.raises(ImageError, match=message):
        spiculated_nodules(**wrong)


def test_naming_the_studies_imports_neither_torch_nor_scipy():
    code = (
        "import sys, SaliencyExplainLib.studies as s; dir(s); s.spiculated_nodules;"
        "assert not {'torch', 'monai', 'scipy'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# -- The network -------------------------------------------------------------------------------


def test_the_model_segments_bodies_because_of_their_spicules(training, model):
    found = training.measure(model.network, range(4))
    assert found.dice > 0.85
    assert found.plain_called < 0.1
    assert found.dice_erased < 0.1
    assert found.target_called_erased < 0.05
    assert found.plain_called_painted > 0.8


def test_each_figure_is_measured_on_the_volume_that_it_names(training):
    class Bright(torch.nn.Module):
        """Calls what is bright a nodule."""

        def forward(self, x):
            return torch.cat([torch.full_like(x, 0.3), x], dim=1)

    made = training.measure(Bright(), [0], size=32)
    one, all_painted = spiculated_nodules(32, 0), spiculated_nodules(32, 0, share=1.0)
    labels = _voxels(one.labels)
    image, erased, painted = (
        _voxels(volume) > 0.3 for volume in (one.image, one.erased, all_painted.image)
    )
    target, plain = labels == TARGET, labels == PLAIN
    expected = [
        2 * (image & target).sum() / (image.sum() + target.sum()),
        image[plain].mean(),
        2 * (erased & target).sum() / (erased.sum() + target.sum()),
        erased[target].mean(),
        painted[plain].mean(),
    ]
    values = [made.dice, made.plain_called, made.dice_erased, made.target_called_erased]
    assert [*values, made.plain_called_painted] == pytest.approx(expected, abs=1e-4)


def test_the_weights_are_small_and_the_bundle_is_complete(model):
    assert (BUNDLE / "models" / "model.pt").stat().st_size < 350_000
    assert model.task == "segmentation"
    assert tuple(model.labels) == ("background", "spiculated nodule")
    state = torch.load(BUNDLE / "models" / "model.pt", weights_only=True)
    assert {value.dtype for value in state.values()} == {torch.float16, torch.int64}
    assert {value.dtype for value in model.network.parameters()} == {torch.float32}


def test_a_saved_scene_is_segmented_as_one_in_memory(model, scene, tmp_path):
    sx.write_image(scene.image, tmp_path / "scene.nii.gz")
    read = sx.read_image(tmp_path / "scene.nii.gz")
    assert torch.equal(sx.predict(model, read), sx.predict(model, scene.image))


def _short_training(training, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    network = training.open_network(BUNDLE)
    training.train_network(network, seed=seed, scenes=2, steps=4, rate=1e-2)
    return training.halved(network)


def test_two_trainings_give_the_same_weights_bit_by_bit(training, monkeypatch):
    monkeypatch.setattr(training, "_SIZE", 16)
    first, second, other = (_short_training(training, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.0.conv.weight"], other["model.0.conv.weight"])
    untrained = training.open_network(BUNDLE).state_dict()
    assert not torch.equal(first["model.0.conv.weight"], untrained["model.0.conv.weight"].half())


def test_what_is_measured_is_what_is_written(training):
    network = training.open_network(BUNDLE)
    before = network.model[0].conv.weight.detach().clone()
    state = training.halved(network)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name].to(value.dtype)), name
    assert not torch.equal(network.model[0].conv.weight, before)


def test_training_sees_every_scene_turned_and_none_that_is_held_out(training, monkeypatch):
    asked = []

    def made(size, seed):
        asked.append(seed)
        return spiculated_nodules(16, seed)

    monkeypatch.setattr(training, "spiculated_nodules", made)
    volumes = list(training.Volumes(seed=0, scenes=3, steps=24))
    assert sorted(asked) == [1_000_000, 1_000_001, 1_000_002]
    assert len(volumes) == 24
    known = [spiculated_nodules(16, seed) for seed in asked]
    images = [np.sort(_voxels(one.image).astype(np.float16).ravel()) for one in known]
    seen, ways = set(), set()
    for image, mask in volumes:
        values = np.sort(image.numpy().ravel().astype(np.float16))
        number = next(n for n, one in enumerate(images) if np.array_equal(one, values))
        assert mask.sum() == (_voxels(known[number].labels) == TARGET).sum()
        # The mask is turned with its image: brightness inside stays the same.
        plain = _voxels(known[number].image)[_voxels(known[number].labels) == TARGET]
        assert image[mask == 1].mean().item() == pytest.approx(float(plain.mean()), abs=1e-3)
        seen.add(number)
        ways.add(image.numpy().tobytes())
    assert seen == {0, 1, 2}
    assert len(ways) > 12


# -- The table ---------------------------------------------------------------------------------


def test_an_even_map_has_attribution_quality_one_and_the_truth_more(trust, model, scene):
    like = sx.explain(model, scene.image, trust.TARGET, "gradient")
    found = {}
    for name in ("even map", "random voxels", "the truth"):
        values = trust.CONTROLS[name](scene, np.random.default_rng(0))
        made = trust.as_explanation(values, like, name)
        found[name] = trust.evaluated(made, model, scene)
    even, random, truth = found.values()
    assert even["attribution_quality"] == 1.0
    assert even["density.2"] == pytest.approx(1.0)
    assert random["attribution_quality"] < 1.1
    assert truth["attribution_quality"] > 1.5
    assert truth["relevance_mass"] == truth["relevance_rank"] == truth["pointing_game"] == 1.0
    assert truth["density.1"] == 0.0
    share = float(scene.evidence.mean())
    assert even["relevance_mass"] == pytest.approx(share)
    assert truth["density.2"] == pytest.approx(1 / share)


def test_the_controls_are_what_they_are_called(trust, scene):
    chance = np.random.default_rng
    maps = {name: make(scene, chance(0)) for name, make in trust.CONTROLS.items()}
    assert all(one.min() >= 0 and one.shape == (64, 64, 64) for one in maps.values())
    assert np.ptp(maps["even map"]) == 0
    assert np.array_equal(maps["the truth"], _voxels(scene.evidence))
    image = _voxels(scene.image)
    assert np.array_equal(maps["the image, brightness above 0"], np.where(image > 0, image, 0))
    rough, smooth = (
        np.corrcoef(maps[name][1:].ravel(), maps[name][:-1].ravel())[0, 1]
        for name in ("random voxels", "random, smooth")
    )
    assert abs(rough) < 0.02
    assert smooth > 0.9
    assert not np.array_equal(
        maps["random voxels"], trust.CONTROLS["random voxels"](scene, chance(1))
    )


def test_the_interval_is_that_of_the_mean_over_cases(trust):
    values = np.random.default_rng(3).normal(2.0, 0.5, 200)
    low, high = trust.interval(values)
    half = 1.96 * values.std(ddof=1) / np.sqrt(200)
    assert low == pytest.approx(values.mean() - half, abs=0.012)
    assert high == pytest.approx(values.mean() + half, abs=0.012)
    assert trust.interval([3.0, 3.0]) == (3.0, 3.0)
    assert trust.interval(values) == (low, high)


def test_a_run_that_was_stopped_goes_on_where_it_was(trust, model, tmp_path, monkeypatch):
    monkeypatch.setattr(trust, "METHODS", (("gradient", {}), ("smooth_grad", {"samples": 2})))
    monkeypatch.setattr(trust, "CONTROLS", {"even map": trust.CONTROLS["even map"]})
    monkeypatch.setattr(trust, "evaluated", lambda *_: {"relevance_rank": 0.5})
    asked = []
    explain = sx.explain

    def counted(*given, **more):
        asked.append(given[3])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return explain(*given, **more)

    monkeypatch.setattr(trust.sx, "explain", counted)
    with pytest.raises(KeyboardInterrupt):
        trust.run_case(model, 0, trust.Cache(tmp_path, 0), [])
    kept = trust.Cache(tmp_path, 0)
    assert list(kept.rows) == ["gradient"]
    trust.run_case(model, 0, kept, [])
    assert asked == ["gradient", "smooth_grad", "smooth_grad", "gradient"]
    assert list(trust.Cache(tmp_path, 0).rows) == [
        "gradient",
        "smooth_grad (samples 2)",
        "even map",
    ]
    trust.run_case(model, 0, trust.Cache(tmp_path, 0), [])
    assert len(asked) == 4


def _case(**values) -> SimpleNamespace:
    """Two maps with all columns; `values` of the method's."""
    rows = {}
    for name in ("gradient", "the image, brightness above 0", "even map"):
        rows[name] = {"attribution_quality": 1.0, "relevance_rank": 0.4, "seconds": 1.0}
        rows[name] |= {"density.1": 1.0, "density.2": 1.0, "density.3": 2.5}
    rows["gradient"] |= values
    return SimpleNamespace(rows=rows)


def test_the_reading_names_only_what_the_intervals_bear_out(trust, monkeypatch):
    monkeypatch.setattr(trust, "METHODS", (("gradient", {}),))
    sure = trust._reading([_case(relevance_rank=rank) for rank in (0.5, 0.6, 0.7)])
    assert "brightness for 1 of 1 methods: gradient." in sure
    assert "even map's, for 0 of 1 methods: none." in sure
    unsure = trust._reading([_case(relevance_rank=rank) for rank in (0.3, 0.6, 0.35)])
    assert "brightness for 0 of 1 methods: none." in unsure
    dense = [_case(**{"density.2": 3.0, "density.1": bait}) for bait in (2.0, None, 1.0)]
    assert "denser than bait for 1 of 1 methods: gradient." in trust._reading(dense)
    assert "carry them for 1 of 1 methods: gradient." in trust._reading(dense)
    assert "carry them for 0 of 1 methods: none." in unsure


def test_a_cell_holds_mean_interval_and_how_often_it_was_defined(trust):
    column = trust.Column("relevance_mass", "mass")
    assert trust._cell([0.5, 0.5], column, 2) == "0.50 (0.50 to 0.50)"
    assert trust._cell([0.5, None], column, 2) == "0.50 (0.50 to 0.50) n=1"
    assert trust._cell([None], column, 1) == ""
    assert trust._cell([1.25, 1.75], trust.Column("seconds", "s", 1), 2) == "1.5"


def test_the_table_that_is_kept_is_of_these_methods_and_this_model(trust):
    text = (ROOT / "Testing" / "Benchmarks" / "trust.md").read_text("utf-8")
    for one in trust.METHODS:
        assert text.count(f"| {trust.labelled(*one)} |") == 2
    for name in trust.CONTROLS:
        assert text.count(f"| *{name}* |") == 2
    assert len(trust.METHODS) >= 12
    assert trust.fingerprint(BUNDLE) in text
    assert {name for name, _ in trust.METRICS} <= set(quality.metrics())
