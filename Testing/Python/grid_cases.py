"""Grids that differ in order, direction, obliqueness and proportion of axes, and things on them."""

import numpy as np

from SaliencyExplainLib.image import make_image, to_ras


def rotation(axis: int, degrees: float) -> np.ndarray:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = np.eye(3)
    one, other = [index for index in range(3) if index != axis]
    turned[[one, other], [one, other]] = cosine
    turned[one, other], turned[other, one] = -sine, sine
    return turned


def centred_affine(directions: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = directions
    affine[:3, 3] = -directions @ ((np.array(shape) - 1) / 2)
    return affine


def grids() -> dict[str, tuple[np.ndarray, tuple[int, int, int]]]:
    """Grids of about 100 mm that differ in order, direction, obliqueness and proportion of axes."""
    found = {}
    for name, directions, shape in (
        ("RAS", np.diag([2.0, 2.0, 2.0]), (52, 56, 50)),
        ("LAS", np.diag([-2.0, 2.0, 2.0]), (52, 56, 50)),
        ("PIR", np.array([[0, 0, 2.0], [-2.5, 0, 0], [0, -2.0, 0]]), (44, 52, 54)),
        ("oblique", rotation(0, 17) @ rotation(2, -11) @ np.diag([-2.0, 1.5, 4.0]), (56, 76, 30)),
    ):
        found[name] = centred_affine(directions, shape), shape
    return found


GRIDS = grids()


def positions(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return to_ras(affine, np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1))


def blob(ras: np.ndarray, centre: np.ndarray, sigma_mm: float = 4.0) -> np.ndarray:
    return np.exp(-((ras - centre) ** 2).sum(-1) / (2 * sigma_mm**2))


def a_grey_ball(affine, shape):
    ras = positions(affine, shape)
    return make_image(40.0 + 60.0 * (np.linalg.norm(ras, axis=-1) < 46), affine)
