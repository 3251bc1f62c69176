"""Preprocessing and the way back: exact where nothing is interpolated, honest where it is."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch
from monai import transforms as mt
from monai.data import MetaTensor

from SaliencyExplainLib.errors import ImageError
from SaliencyExplainLib.image import make_image, resample_image, same_grid, to_ras
from SaliencyExplainLib.model import Preprocess

# MONAI 1.6 announces a default that images with RAS metadata have already.
pytestmark = pytest.mark.filterwarnings("ignore:.*Orientation.*labels:FutureWarning")

SHAPE = (9, 10, 11)
ORDERS = list(product(permutations(range(3)), product((1, -1), repeat=3)))


def an_affine(spacing=(1.2, 0.8, 2.0)) -> np.ndarray:
    turned, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turned @ np.diag(spacing)
    affine[:3, 3] = (12.5, -40.25, 7.0)
    return affine


@pytest.fixture
def scan() -> MetaTensor:
    values = np.random.default_rng(0).uniform(1, 2, size=(1, *SHAPE))
    return make_image(values, an_affine(), "scan.nrrd")


@pytest.fixture
def bright_middle(scan) -> MetaTensor:
    """A scan whose border is zero: foreground crops keep (2:7, 3:8, 4:9)."""
    voxels = torch.zeros_like(scan.as_tensor())
    voxels[:, 2:7, 3:8, 4:9] = scan.as_tensor()[:, 2:7, 3:8, 4:9]
    return make_image(voxels, scan.affine)


def there_and_back(transform, scan: MetaTensor) -> tuple[MetaTensor, MetaTensor]:
    preprocess = Preprocess(transform)
    network_image = preprocess.apply(scan)
    return network_image, preprocess.invert(network_image.as_tensor(), network_image, scan)


def linear(affine, shape) -> MetaTensor:
    places = to_ras(affine, np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1))
    return make_image(places @ [2.0, -3.0, 0.5] + 7, affine)


# There


def test_without_a_transform_the_scan_is_the_networks_image(scan):
    network_image, back = there_and_back(None, scan)
    assert network_image is scan
    torch.testing.assert_close(back.as_tensor(), scan.as_tensor(), rtol=0, atol=0)


def test_the_scan_is_left_as_it_was(scan):
    before, affine = scan.as_tensor().clone(), scan.affine.clone()

    def in_place(image):
        image[:] = 0
        return image

    Preprocess(mt.Compose([in_place, mt.Orientation("LPS")])).apply(scan)
    assert torch.equal(scan.as_tensor(), before)
    assert torch.equal(scan.affine, affine)
    assert scan.applied_operations == []


def test_transforms_that_read_files_are_left_out(scan):
    compose = mt.Compose(
        [
            mt.LoadImaged("image"),
            mt.EnsureChannelFirstd("image"),
            mt.Compose([mt.LoadImaged("image"), mt.Flipd("image", 0)]),
        ]
    )
    made = Preprocess(compose)
    assert torch.equal(made.apply(scan).as_tensor(), scan.as_tensor().flip(1))
    assert made.describe() == "Flipd"


def test_array_transforms_that_read_files_are_left_out(scan):
    compose = mt.Compose([mt.LoadImage(), mt.EnsureChannelFirst(), mt.Flip(0)])
    assert torch.equal(Preprocess(compose).apply(scan).as_tensor(), scan.as_tensor().flip(1))


def test_the_key_is_that_of_the_first_dictionary_transform(scan):
    compose = mt.Compose([mt.EnsureTyped("t1"), mt.Flipd("t1", 0)])
    assert torch.equal(Preprocess(compose).apply(scan).as_tensor(), scan.as_tensor().flip(1))


def test_the_key_is_found_where_only_the_reading_names_it(scan):
    compose = mt.Compose([mt.LoadImaged("scan"), lambda data: {"scan": data["scan"] * 2}])
    assert torch.equal(Preprocess(compose).apply(scan).as_tensor(), scan.as_tensor() * 2)


def test_a_given_key_goes_before_the_first_one(scan):
    compose = mt.Compose([mt.Flipd("label", 0, allow_missing_keys=True), mt.Flipd("image", 1)])
    found = Preprocess(compose, key="image").apply(scan)
    assert torch.equal(found.as_tensor(), scan.as_tensor().flip(2))


def test_keys_that_the_scan_does_not_have_are_left_out(scan):
    compose = mt.Compose([mt.Flipd(["image", "label"], 0)])
    network_image, back = there_and_back(compose, scan)
    assert torch.equal(network_image.as_tensor(), scan.as_tensor().flip(1))
    assert torch.equal(back.as_tensor(), scan.as_tensor())


def test_the_result_is_single_precision(scan):
    assert Preprocess(mt.CastToType(torch.float64)).apply(scan).dtype == torch.float32


def test_a_failing_transform_is_an_error_about_the_scan(scan):
    def fail(image):
        raise ValueError("no brain in here")

    with pytest.raises(ImageError, match=r"failed on a volume of shape \(1, 9, 10, 11\).*no brain"):
        Preprocess(fail).apply(scan)


def test_a_failing_transform_of_monai_names_the_reason(scan):
    with pytest.raises(ImageError, match="preprocessing failed on a volume of shape"):
        Preprocess(mt.Compose([mt.Orientation("XYZ")])).apply(scan)


@pytest.mark.parametrize(
    ("wrong", "form"),
    [
        (lambda image: image.numpy(), "ndarray of shape"),
        (lambda image: image[0], "MetaTensor of shape"),
        (lambda image: {"image": image}, "dict"),
        (lambda image: image[:, :0], "MetaTensor of shape"),
    ],
)
def test_a_result_that_is_no_volume_is_refused(wrong, form, scan):
    with pytest.raises(ImageError, match=f"preprocessing gave {form}"):
        Preprocess(wrong).apply(scan)


def test_the_steps_are_named(scan):
    steps = [mt.LoadImaged("image"), mt.Orientationd("image", "RAS"), mt.EnsureTyped("image")]
    assert Preprocess(mt.Compose(steps)).describe() == "Orientationd, EnsureTyped"
    assert Preprocess().describe() == "none"
    assert Preprocess(mt.Compose([mt.LoadImage()])).describe() == "none"


# Back


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA"])
@pytest.mark.parametrize("style", ["array", "dictionary"])
def test_permuting_and_flipping_is_undone_bit_for_bit(codes, style, scan):
    one = mt.Orientation(codes) if style == "array" else mt.Orientationd("image", codes)
    for order, signs in ORDERS:
        voxels = scan.as_tensor().permute(0, *[axis + 1 for axis in order])
        affine = np.asarray(scan.affine)[:, [*order, 3]] @ np.diag([*signs, 1.0])
        turned = make_image(voxels, affine)
        network_image, back = there_and_back(mt.Compose([one]), turned)
        assert "".join(axis_codes(network_image)) == codes
        assert torch.equal(back.as_tensor(), turned.as_tensor())
        assert torch.equal(back.affine, turned.affine)


def axis_codes(image: MetaTensor) -> list[str]:
    """Letter of the anatomical direction that each voxel axis is nearest to."""
    columns = np.asarray(image.affine)[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    axes = max(
        permutations(range(3)),
        key=lambda order: sum(abs(columns[row, column]) for column, row in enumerate(order)),
    )
    return [
        ("LR", "PA", "IS")[row][int(columns[row, column] > 0)] for column, row in enumerate(axes)
    ]


@pytest.mark.parametrize("style", ["array", "dictionary"])
def test_what_was_padded_is_cut_off_bit_for_bit(style, scan):
    size = {"spatial_size": (15, 12, 20)}
    one = mt.SpatialPad(**size) if style == "array" else mt.SpatialPadd("image", **size)
    network_image, back = there_and_back(mt.Compose([one]), scan)
    assert network_image.shape == (1, 15, 12, 20)
    assert torch.equal(back.as_tensor(), scan.as_tensor())


@pytest.mark.parametrize("style", ["array", "dictionary"])
def test_what_was_cropped_away_is_zero(style, bright_middle):
    one = (
        mt.CropForeground(allow_smaller=True)
        if style == "array"
        else mt.CropForegroundd("image", source_key="image", allow_smaller=True)
    )
    preprocess = Preprocess(mt.Compose([one]))
    network_image = preprocess.apply(bright_middle)
    assert network_image.shape == (1, 5, 5, 5)
    back = preprocess.invert(torch.ones(1, 5, 5, 5), network_image, bright_middle)
    assert torch.equal(back.as_tensor(), (bright_middle.as_tensor() > 0).float())


@pytest.mark.parametrize("pixdim", [(1.5, 1.5, 2.0), (0.6, 0.6, 0.6), (3.0, 1.0, 1.0)])
@pytest.mark.parametrize("style", ["array", "dictionary"])
def test_a_linear_field_comes_home_from_another_spacing(pixdim, style, scan):
    one = mt.Spacing(pixdim) if style == "array" else mt.Spacingd("image", pixdim)
    preprocess = Preprocess(mt.Compose([one]))
    network_image = preprocess.apply(scan)
    field = linear(network_image.affine, network_image.shape[1:])
    back = preprocess.invert(field.as_tensor(), network_image, scan)
    inner = (0, *[slice(3, -3)] * 3)  # Beyond the network's outermost centres nothing is known.
    torch.testing.assert_close(
        back.as_tensor()[inner], linear(scan.affine, SHAPE).as_tensor()[inner], rtol=0, atol=2e-3
    )


def test_a_map_is_interpolated_linearly_even_where_the_image_was_not(scan):
    # Cubic splines overshoot: a map of zeros and ones would get values below 0 and above 1.
    preprocess = Preprocess(mt.Compose([mt.Spacing((2.0, 2.0, 2.0), mode=3)]))
    network_image = preprocess.apply(scan)
    step = torch.zeros(network_image.shape)
    step[:, network_image.shape[1] // 2 :] = 1
    back = preprocess.invert(step, network_image, scan)
    assert float(back.min()) >= 0
    assert float(back.max()) <= 1 + 1e-6


def test_a_map_of_many_channels_comes_back_with_all(scan):
    preprocess = Preprocess(mt.Compose([mt.Orientationd("image", "LPS")]))
    network_image = preprocess.apply(scan)
    maps = torch.arange(3.0)[:, None, None, None] * network_image.as_tensor()
    back = preprocess.invert(maps, network_image, scan)
    torch.testing.assert_close(
        back.as_tensor(), torch.arange(3.0)[:, None, None, None] * scan.as_tensor()
    )


def test_intensity_transforms_are_no_obstacle(scan):
    compose = mt.Compose(
        [
            mt.NormalizeIntensityd("image"),
            mt.Orientationd("image", "LPS"),
            mt.ScaleIntensityd("image"),
        ]
    )
    preprocess = Preprocess(compose)
    network_image = preprocess.apply(scan)
    back = preprocess.invert(network_image.as_tensor(), network_image, scan)
    expected = (scan.as_tensor() - scan.min()) / (scan.max() - scan.min())
    torch.testing.assert_close(back.as_tensor(), expected.as_subclass(torch.Tensor))


def every_second(image: MetaTensor) -> MetaTensor:
    """A transform that MONAI cannot undo, but whose affine is right."""
    affine = image.affine.clone()
    affine[:3, 0] *= 2
    return make_image(image.as_tensor()[:, ::2], affine)


@pytest.mark.parametrize(
    "steps",
    [
        [every_second],
        [mt.Flip(1), every_second],
        [every_second, mt.Rotate90(1)],
        [mt.Flip(0), every_second, mt.SpatialPad((16, 16, 16))],
    ],
)
def test_a_transform_without_an_inverse_falls_back_to_world_position(steps, scan):
    preprocess = Preprocess(mt.Compose(steps))
    network_image = preprocess.apply(scan)
    field = linear(network_image.affine, network_image.shape[1:])
    back = preprocess.invert(field.as_tensor(), network_image, scan)
    assert same_grid(back, scan)
    expected = resample_image(field, scan, outside=0.0)
    torch.testing.assert_close(back.as_tensor(), expected.as_tensor())
    inner = (0, *[slice(1, -1)] * 3)
    torch.testing.assert_close(
        back.as_tensor()[inner], linear(scan.affine, SHAPE).as_tensor()[inner], rtol=0, atol=1e-3
    )


def test_the_fallback_is_zero_where_the_network_did_not_look(scan):
    def lower_half(image):
        return make_image(image.as_tensor()[:, :4], image.affine)

    preprocess = Preprocess(lower_half)
    network_image = preprocess.apply(scan)
    back = preprocess.invert(torch.ones(network_image.shape), network_image, scan)
    assert torch.equal(back.as_tensor()[:, :4], torch.ones(1, 4, 10, 11))
    assert float(back[:, 5:].abs().max()) == 0
