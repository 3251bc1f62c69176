"""Upright slices: cut in physical space, whatever the grid."""

import itertools

import numpy as np
import pytest
from grid_cases import GRIDS, a_grey_ball, centred_affine, positions

from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.planes import anatomy_box, cut, through, volume_box

PEAK = np.array([12.0, -7.0, 9.0])


@pytest.fixture
def an_image():
    return a_grey_ball(*GRIDS["LAS"])


def test_a_slice_of_positions_gives_back_the_positions_in_48_orientations():
    shape = (9, 11, 8)
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            directions = np.zeros((3, 3))
            directions[list(order), range(3)] = np.array(signs) * [2.0, 1.5, 3.0]
            affine = centred_affine(directions, shape)
            ras = positions(affine, shape)
            image = make_image(np.moveaxis(ras, -1, 0), affine)
            for plane in through((0.7, -0.4, 1.1), volume_box(image), 1.0):
                for axis in range(3):
                    values = cut(image, plane, channel=axis)
                    wanted = plane.ras_mm[..., axis]
                    # The outer half voxel repeats the border.
                    inside = np.abs(wanted - values) < 1e-3
                    half = abs(directions[axis]).max() / 2
                    border = np.abs(wanted) > np.abs(ras[..., axis]).max() - 1e-6
                    assert (inside | border | np.isnan(values)).all()
                    assert np.nanmax(np.abs(wanted - values)) <= half + 1e-3


def test_a_plane_passes_through_its_point_with_a_pixel_at_the_point(an_image):
    for plane in through(PEAK, volume_box(an_image), 0.37):
        distance = np.linalg.norm(plane.ras_mm - PEAK, axis=-1)
        assert distance.min() < 1e-9


def test_a_plane_looks_upright_whatever_the_order_of_axes():
    heads = {}
    for name in ("RAS", "PIR"):
        affine, shape = GRIDS[name]
        ras = positions(affine, shape)
        heads[name] = make_image(50 * (ras[..., 2] > 10) + 30 * (ras[..., 0] > 0), affine)
    for plane in through((0, 0, 0), np.array([[-30.0] * 3, [30.0] * 3]), 1.0):
        same = np.abs(cut(heads["RAS"], plane) - cut(heads["PIR"], plane)) < 1
        assert same.mean() > 0.9


def test_air_around_the_anatomy_is_cut_off(an_image):
    box = anatomy_box(an_image)
    assert np.abs(np.abs(box) - 48).max() < 5
    flat = make_image(np.full((6, 6, 6), 7.0), np.eye(4))
    assert anatomy_box(flat) == pytest.approx(volume_box(flat))
