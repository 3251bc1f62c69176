"""Made-up heads: what is known about them is true."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from SaliencyExplainLib.errors import ImageError
from SaliencyExplainLib.studies import heads
from SaliencyExplainLib.studies.heads import SyntheticHead, synthetic_head

LEFT, RIGHT, LEFT_VENTRICLE, RIGHT_VENTRICLE, LESION = 4, 5, 6, 7, 8
SIDES = {LEFT: "left hippocampus", RIGHT: "right hippocampus"}


@pytest.fixture(scope="module")
def head() -> SyntheticHead:
    return synthetic_head(48, seed=3)


@pytest.fixture
def straight_space(monkeypatch):
    """No bending: structures are the ellipsoids that they are made from."""
    bent = heads._positions

    def straight(size, chance):
        bent(size, chance)  # draws what it would have drawn
        axis = (np.arange(size) + 0.5) * (heads.WIDTH_MM / size) - heads.WIDTH_MM / 2
        return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))

    monkeypatch.setattr(heads, "_positions", straight)


def _voxels(image) -> np.ndarray:
    return image.as_tensor().numpy()[0]


def _ellipsoid_ml(half_mm) -> float:
    return 4 / 3 * np.pi * float(np.prod(half_mm)) / 1000


# -- Volumes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.3, 1.0, 1.8])
def test_a_hippocampus_has_the_volume_of_its_ellipsoid(straight_space, scale):
    truth = scale * _ellipsoid_ml(heads._HIPPOCAMPUS_MM)
    found = {
        size: synthetic_head(size, 1, hippocampus_scale=(scale, 1.0)).volumes_ml[SIDES[LEFT]]
        for size in (48, 96)
    }
    # A border of one voxel's thickness makes a ball larger by (voxel / radius)^2 / 4.
    assert found[96] == pytest.approx(truth, rel=0.05)
    assert truth < found[96] < found[48] < 1.16 * truth
    # What is left falls with the square of the voxel, so two sizes tell where it goes.
    assert (4 * found[96] - found[48]) / 3 == pytest.approx(truth, rel=0.012)


def test_the_ventricles_lie_within_what_is_drawn_for_them(straight_space):
    one = _ellipsoid_ml(heads._VENTRICLE_MM)
    found = []
    for seed in range(12):
        volumes = synthetic_head(48, seed).volumes_ml
        for side in ("left ventricle", "right ventricle"):
            assert 0.6 * 0.9 * one < volumes[side] < 1.08 * 1.6 * 1.1 * one
            found.append(volumes[side] / one)
    assert np.mean(found) == pytest.approx(1.1 * 1.06, rel=0.2)


def test_the_brain_is_an_ellipsoid_of_the_drawn_size_in_a_shell_of_csf(straight_space):
    head = synthetic_head(96, seed=2)
    inner = sum(head.volumes_ml[name] for name in head.NAMES.values())
    inner -= head.volumes_ml["skull and scalp"]
    chance = np.random.default_rng((7, 2))
    heads._positions(16, chance)
    half = np.array(heads._BRAIN_MM) * chance.uniform(0.92, 1.06) * chance.uniform(0.97, 1.03, 3)
    assert inner == pytest.approx(_ellipsoid_ml(half + heads._CSF_MM), rel=0.01)


def test_volumes_are_what_fills_the_image(head):
    labels = _voxels(head.labels).astype(int)
    voxel_ml = (208 / 48) ** 3 / 1000
    for label, name in head.NAMES.items():
        counted = (labels == label).sum() * voxel_ml
        assert head.volumes_ml[name] == pytest.approx(counted, rel=0.15, abs=0.6)
    assert set(np.unique(labels)) == set(range(10)) - {LESION}
    assert head.volumes_ml["lesion"] == 0


def test_the_two_sides_follow_their_own_factors():
    small_left = synthetic_head(48, 5, hippocampus_scale=(0.4, 1.2)).volumes_ml
    small_right = synthetic_head(48, 5, hippocampus_scale=(1.2, 0.4)).volumes_ml
    assert small_left[SIDES[LEFT]] < 0.5 * small_left[SIDES[RIGHT]]
    assert small_right[SIDES[RIGHT]] < 0.5 * small_right[SIDES[LEFT]]
    # Space is bent otherwise on both sides, by little.
    assert small_left[SIDES[LEFT]] == pytest.approx(small_right[SIDES[RIGHT]], rel=0.3)


def test_left_is_where_r_is_negative(head):
    labels = _voxels(head.labels)
    for label, sign in ((LEFT, -1), (RIGHT, 1), (LEFT_VENTRICLE, -1), (RIGHT_VENTRICLE, 1)):
        at = head.labels.affine.numpy() @ [*np.argwhere(labels == label).mean(0), 1]
        assert sign * at[0] > 5


def test_drawn_asymmetries_are_moderate():
    ratios = []
    for seed in range(12):
        volumes = synthetic_head(48, seed).volumes_ml
        ratios.append(volumes[SIDES[LEFT]] / volumes[SIDES[RIGHT]])
    assert 0.45 < min(ratios) < 0.9 < 1.1 < max(ratios) < 2.2


# -- One head at all sizes -----------------------------------------------------------------------


def test_the_head_is_the_same_at_every_size(head):
    fine = synthetic_head(96, seed=3)
    blocks = _voxels(fine.labels).reshape(48, 2, 48, 2, 48, 2)
    coarse = _voxels(head.labels)
    for label in range(10):
        share = (blocks == label).mean(axis=(1, 3, 5))
        # Where all eight fine voxels are of one label there is no border to argue about.
        assert (coarse != label)[share == 1].sum() <= 0.001 * (coarse == label).sum()
        assert (coarse == label)[share == 0].mean() < 0.002
    for name in ("grey matter", "white matter", "skull and scalp"):
        assert fine.volumes_ml[name] == pytest.approx(head.volumes_ml[name], rel=0.01)


def test_the_scan_is_the_same_at_every_size_but_for_noise():
    one, two = (synthetic_head(size, seed=4, noise=0.0).image for size in (48, 96))
    mean = torch.nn.functional.avg_pool3d(two.as_tensor()[None], 2)[0]
    difference = (mean - one.as_tensor()).numpy()
    assert np.sqrt((difference**2).mean()) < 0.02
    assert float(one.as_tensor().std()) > 0.2


@pytest.mark.parametrize("size", [16, 48, 50])
def test_the_volume_is_208_mm_wide_around_the_origin(size):
    head = synthetic_head(size)
    for image in (head.image, head.brain_image, head.labels, head.tissues, head.brain):
        assert tuple(image.shape[1:]) == (size,) * 3
        corners = image.affine.numpy() @ [*[[-0.5, size - 0.5]] * 3, [1, 1]]
        assert corners[:3] == pytest.approx(np.tile([-104.0, 104.0], (3, 1)))
    assert head.tissues.shape[0] == 3


def test_one_seed_gives_one_head_and_another_seed_another(head):
    again, other = synthetic_head(48, seed=3), synthetic_head(48, seed=4)
    for name in ("image", "brain_image", "labels", "tissues"):
        assert torch.equal(getattr(head, name), getattr(again, name))
        assert not torch.equal(getattr(head, name), getattr(other, name))
    assert dict(head.volumes_ml) == dict(again.volumes_ml)
    assert (head.seed, other.seed) == (3, 4)


def test_what_is_asked_for_changes_nothing_else(head):
    other = synthetic_head(48, seed=3, hippocampus_scale=(0.5, 1.5), lesions=2)
    labels, changed = _voxels(head.labels), _voxels(other.labels)
    different = labels != changed
    allowed = np.isin(labels, (LEFT, RIGHT)) | np.isin(changed, (LEFT, RIGHT, LESION))
    # Part of a white voxel becomes lesion: what is left of it may then be less than its grey part.
    allowed |= labels == 3
    assert 20 < different.sum() < 300
    assert allowed[different].all()


def test_chance_of_other_code_is_left_as_it_was():
    np.random.seed(5)  # noqa: NPY002 - the state that must not change
    expected = np.random.rand(3)  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    state = torch.get_rng_state()
    synthetic_head(16)
    assert np.array_equal(np.random.rand(3), expected)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state)


# -- The scan ------------------------------------------------------------------------------------


def test_tissues_have_the_brightness_of_t1(head):
    scan, labels = _voxels(head.image), _voxels(head.labels)
    mean = {label: scan[labels == label].mean() for label in range(10) if (labels == label).any()}
    assert mean[0] < 0.06
    assert mean[1] < mean[2] < mean[3]
    assert abs(mean[LEFT] - mean[2]) < 0.12
    # A ventricle looks like CSF, as far as its border allows.
    assert mean[LEFT_VENTRICLE] < 0.35


def test_noise_has_the_deviation_that_was_asked_for():
    def noise_of(seed):
        clean, noisy = (synthetic_head(32, seed, noise=noise).image for noise in (0.0, 0.1))
        return (noisy.as_tensor() - clean.as_tensor()).numpy().ravel()

    one, other = noise_of(1), noise_of(2)
    assert one.std() == pytest.approx(0.1, rel=0.02)
    assert abs(one.mean()) < 0.002
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03


def test_the_brain_image_is_the_scan_inside_the_skull(head):
    scan, brain = _voxels(head.image), _voxels(head.brain_image)
    kept = brain != 0
    assert np.array_equal(scan[kept], brain[kept])
    inside = _voxels(head.brain) > 0
    away = distance_transform_edt(inside) - distance_transform_edt(~inside)
    assert kept[away > 1].all()
    assert not kept[away < -1].any()
    assert set(np.unique(_voxels(head.labels)[inside]).astype(int)) == {1, 2, 3, 4, 5, 6, 7}


def test_tissue_probabilities_are_those_of_a_segmentation(head):
    csf, grey, white = head.tissues.as_tensor().numpy()
    total = csf + grey + white
    assert total.min() > -1e-6
    assert total.max() < 1 + 1e-6
    labels = _voxels(head.labels)
    deep = distance_transform_edt(np.isin(labels, (LEFT, RIGHT))) > 1
    assert grey[deep].mean() > 0.9
    assert csf[labels == LEFT_VENTRICLE].mean() > 0.6
    assert white[labels == 3].mean() > 0.9
    assert total[labels == 0].max() < 0.5
    voxel_ml = (208 / 48) ** 3 / 1000
    grey_ml = sum(head.volumes_ml[name] for name in ("grey matter", *SIDES.values()))
    assert grey.sum() * voxel_ml == pytest.approx(grey_ml, rel=1e-4)


def test_lesions_lie_in_white_matter_and_look_grey():
    # So many that some reach beyond the white matter.
    plain, ill = synthetic_head(64, 6), synthetic_head(64, 6, lesions=12)
    lesion = _voxels(ill.labels) == LESION
    assert 20 < lesion.sum() < 4000
    assert ill.tissues.as_tensor().min() > -1e-6
    assert (_voxels(plain.labels)[lesion] == 3).all()
    lost = plain.volumes_ml["white matter"] - ill.volumes_ml["white matter"]
    assert ill.volumes_ml["lesion"] == pytest.approx(lost, rel=1e-6)
    assert ill.volumes_ml["lesion"] > 1
    assert abs(_voxels(ill.image)[lesion].mean() - 0.52) < 0.1
    grey, white = ill.tissues.as_tensor().numpy()[1:]
    assert grey[lesion].mean() > 0.4 > white[lesion].mean()


def test_more_lesions_are_the_same_ones_and_more():
    two, four = (synthetic_head(48, 8, lesions=count).volumes_ml["lesion"] for count in (2, 4))
    assert four >= two > 0


# -- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [15, 257])
def test_a_size_out_of_range_is_refused(size):
    with pytest.raises(ImageError, match=f"16 to 256 voxels a side; {size} was asked for"):
        synthetic_head(size)


@pytest.mark.parametrize("wrong", [{"lesions": -1}, {"noise": -0.1}])
def test_negative_lesions_or_noise_are_refused(wrong):
    with pytest.raises(ImageError, match=r"cannot be negative; got .*-"):
        synthetic_head(16, **wrong)


@pytest.mark.parametrize("scale", [(0.1, 1.0), (1.0, 2.1), (1.0,), (1.0, float("nan"))])
def test_factors_out_of_range_are_refused(scale):
    with pytest.raises(ImageError, match=r"two factors of 0\.2 to 2 \(left, right\); got "):
        synthetic_head(16, hippocampus_scale=scale)
