"""Several volumes as the channels of one: in the model's order, on the first one's grid.

Plain numpy, for the panel too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .errors import ImageError
from .volume import Volume, resample_volume, same_grid, to_ras

__all__ = ["coverage", "in_order", "join_volumes"]

#: More than this part of the first grid counts as all of it.
_ALL = 0.995


def in_order(named: Mapping[str, Any], channels: Sequence[str]) -> list[str]:
    """Given names in the order of the model's channels; capitals do not count.

    Raises
    ------
    ImageError
        If one is missing, unknown or given twice, or the model names no channels.
    """
    if not channels:
        raise ImageError(
            "The model does not name its input channels. Give the volumes without names, in the "
            "order in which the model was trained."
        )
    given = {name.casefold(): name for name in named}
    wanted = [name.casefold() for name in channels]
    unknown = [name for key, name in given.items() if key not in wanted]
    missing = [name for name in channels if name.casefold() not in given]
    if unknown or missing or len(given) != len(named):
        told = f" {unknown[0]!r} is none of them." if unknown else ""
        told += f" {missing[0]!r} is missing." if missing else ""
        raise ImageError(
            f"The model's input channels are {', '.join(channels)}.{told} Give each once, as "
            "NAME=FILE."
        )
    return [given[key] for key in wanted]


def join_volumes(volumes: Sequence[Volume], *, resample: bool) -> Volume:
    """Join volumes as the channels of one, on the grid of the first.

    Parameters
    ----------
    volumes : sequence of Volume
        At least one.
    resample : bool
        Interpolate those on other grids (trilinear, by world position; their minimum where they
        do not reach) and note it; False refuses them.

    Raises
    ------
    ImageError
        If one lies on another grid and `resample` is False, or does not overlap the first.
    """
    first = volumes[0]
    if len(volumes) == 1:
        return first
    moved = [first, *(_on_first(one, first, resample) for one in volumes[1:])]
    notes = tuple(dict.fromkeys(note for one in moved for note in one.notes))
    voxels = np.concatenate([one.voxels for one in moved])
    return Volume(voxels, first.affine, ", ".join(one.name for one in moved), notes)


def coverage(volume: Any, like: Any) -> float:
    """Part of the voxels of `like`, 0 to 1, whose centres lie inside `volume`."""
    # Some 33 voxels along each axis are enough to say how much, whatever the size.
    axes = [np.unique(np.linspace(0, n - 1, min(n, 33)).round()) for n in like.shape[1:]]
    places = to_ras(like.affine, np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3))
    ijk = to_ras(np.linalg.inv(np.asarray(volume.affine, dtype=np.float64)), places)
    ends = np.array(volume.shape[1:]) - 0.5
    return float(((ijk >= -0.5) & (ijk <= ends)).all(1).mean())


def _on_first(volume: Volume, first: Volume, resample: bool) -> Volume:
    if same_grid(first, volume):
        return volume
    if not resample:
        raise ImageError(
            f"{volume.name!r} lies on another grid than {first.name!r} "
            f"({tuple(volume.shape[1:])} against {tuple(first.shape[1:])} voxels, or another "
            "place or spacing). Resample it first, or allow interpolation onto the first grid "
            "(resample=True, --resample)."
        )
    covered = coverage(volume, first)
    if covered == 0:
        raise ImageError(
            f"{volume.name!r} and {first.name!r} do not overlap in space. Check that both show the "
            "same patient in the same coordinates; register them first if they do not."
        )
    told = f"{volume.name} was interpolated onto the grid of {first.name}"
    told += "." if covered > _ALL else f", of which it covers {covered:.0%}."
    moved = resample_volume(volume, first)
    return Volume(moved.voxels, first.affine, volume.name, (*volume.notes, told))
