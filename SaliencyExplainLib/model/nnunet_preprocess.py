"""nnU-Net v2's preprocessing as one transform that can be inverted.

Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z; the order and every rule as in
nnunetv2 2.8.1 (``DefaultPreprocessor``, ``resample_data_or_seg``): axes in the plan's order, crop
to what is not zero, normalise each channel, resample to the plan's spacing with cubic splines.
Where the voxels are more than three times longer than wide, slices are resampled in their plane and
the nearest slice is taken.

A map comes back as nnU-Net's own scores do: linear with the same half-voxel rule (across slices
that are resampled apart the nearest one), zero where nnU-Net cut the image away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform
from scipy import ndimage

from ..volume_files import free_memory

__all__ = ["NORMALISATIONS", "RESAMPLING", "Channel", "NnunetPreprocessing"]

NORMALISATIONS = (
    "CTNormalization",
    "ZScoreNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
)
#: nnunetv2's functions of resampling: splines, linear, none.
RESAMPLING = (
    "resample_data_or_seg_to_shape",
    "resample_torch_fornnunet",
    "no_resampling_hack",
)
#: Voxels this many times longer than wide are resampled slice by slice (nnU-Net's own number).
_ANISOTROPIC = 3
_SMALL = 1e-8
#: While one channel is resampled: in and out in double precision, and once clipped.
_BYTES = 24
#: Of the free memory, that resampling may take.
_PART = 0.8


@dataclass(frozen=True)
class Channel:
    """How one channel is normalised.

    Attributes
    ----------
    scheme : str
        One of :data:`NORMALISATIONS`.
    masked : bool
        Whether a z-score looks only at what is not zero.
    intensities : mapping
        Of the training set's foreground, for CT: ``mean``, ``std``, ``percentile_00_5``,
        ``percentile_99_5``.
    """

    scheme: str
    masked: bool = False
    intensities: Mapping[str, float] = field(default_factory=dict)


class NnunetPreprocessing(InvertibleTransform):
    """From a scan (C, I, J, K) to the network's grid, and maps back.

    Parameters
    ----------
    transpose : three ints
        The plan's ``transpose_forward``, on axes K, J, I (as nnU-Net reads files).
    spacing : three floats
        Of the network's grid in mm, in the plan's order of axes.
    channels : sequence of Channel
        One for each input channel.
    resampling : str
        One of :data:`RESAMPLING`.
    order, order_z : int
        Of the splines, in the plane and across slices that are resampled apart.
    separate_z : bool, optional
        Whether slices are resampled apart; None decides by the spacing.
    """

    def __init__(
        self,
        transpose: Sequence[int],
        spacing: Sequence[float],
        channels: Sequence[Channel],
        *,
        resampling: str = RESAMPLING[0],
        order: int = 3,
        order_z: int = 0,
        separate_z: bool | None = None,
    ) -> None:
        super().__init__()
        # Axis of the scan (I, J, K) that is each axis of the network.
        self.axes = tuple(2 - int(axis) for axis in transpose)
        self.pixdim = tuple(float(one) for one in spacing)
        self.channels = tuple(channels)
        self.resampling = resampling
        self.order = order
        self.order_z = order_z
        self.separate_z = separate_z

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """Return the image on the network's grid."""
        affine = np.asarray(image.affine, dtype=np.float64)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)[list(self.axes)]
        data = image.detach().cpu().numpy().astype(np.float32)
        data = data.transpose(0, *[axis + 1 for axis in self.axes])
        full = data.shape[1:]
        box, inside = _nonzero(data)
        data = self._normalised(data[(slice(None), *box)].copy(), inside[box])
        cropped = data.shape[1:]
        shape = [
            round(float(old / new * size))
            for old, new, size in zip(spacing, self.pixdim, cropped, strict=True)
        ]
        _refuse_sizes(shape, len(data), self.pixdim)
        data = self._resampled(data, shape, spacing)
        to_scan = np.zeros((4, 4))
        to_scan[3, 3] = 1
        for axis, (part, old, new) in enumerate(zip(box, cropped, data.shape[1:], strict=True)):
            step = old / new
            to_scan[self.axes[axis], axis] = step
            to_scan[self.axes[axis], 3] = part.start + 0.5 * step - 0.5
        result = MetaTensor(
            torch.from_numpy(np.ascontiguousarray(data)), affine=torch.from_numpy(affine @ to_scan)
        )
        done = {"start": [part.start for part in box], "cropped": list(cropped)}
        done |= {"full": list(full), "affine": affine.tolist(), "spacing": spacing.tolist()}
        return cast(
            MetaTensor,
            self.push_transform(result, extra_info=done),  # type: ignore[no-untyped-call]
        )

    def inverse(self, map_: MetaTensor) -> MetaTensor:
        """Bring a map (M, I', J', K') back to the scan's grid; zero where it was cut away."""
        done = self.pop_transform(map_)["extra_info"]
        axis = self._slices(np.asarray(self.pixdim), np.asarray(done["spacing"]))
        values = _linear(map_.as_tensor().float(), done["cropped"], axis)
        whole = values.new_zeros((values.shape[0], *done["full"]))
        place = [
            slice(start, start + size)
            for start, size in zip(done["start"], done["cropped"], strict=True)
        ]
        whole[(slice(None), *place)] = values
        back = [1 + self.axes.index(axis) for axis in range(3)]
        return MetaTensor(
            whole.permute(0, *back).contiguous(),
            affine=torch.tensor(done["affine"], dtype=torch.float64),
        )

    def _normalised(self, data: np.ndarray, inside: np.ndarray) -> np.ndarray:
        if len(data) != len(self.channels):
            raise ValueError(
                f"the plan is for {len(self.channels)} channels, {len(data)} were given"
            )
        for values, channel in zip(data, self.channels, strict=True):
            if channel.scheme == "CTNormalization":
                known = channel.intensities
                np.clip(values, known["percentile_00_5"], known["percentile_99_5"], out=values)
                values -= known["mean"]
                values /= max(known["std"], _SMALL)
            elif channel.scheme == "ZScoreNormalization":
                looked_at = inside if channel.masked else np.ones_like(inside)
                mean, deviation = values[looked_at].mean(), values[looked_at].std()
                values[looked_at] = (values[looked_at] - mean) / max(deviation, _SMALL)
            elif channel.scheme == "RescaleTo01Normalization":
                values -= values.min()
                values /= max(values.max(), _SMALL)
            elif channel.scheme == "RGBTo01Normalization":
                if values.min() < 0 or values.max() > 255:
                    raise ValueError("the plan expects colours from 0 to 255")
                values /= 255.0
        return data

    def _resampled(self, data: np.ndarray, shape: list[int], spacing: np.ndarray) -> np.ndarray:
        if self.resampling == RESAMPLING[2] or list(data.shape[1:]) == shape:
            return data
        axis = self._slices(spacing, np.asarray(self.pixdim))
        if self.resampling == RESAMPLING[1]:
            return _linear(torch.from_numpy(data), shape, axis).numpy()
        result = np.stack(
            [
                _splines(one.astype(np.float64), shape, axis, self.order, self.order_z)
                for one in data
            ]
        )
        return result.astype(np.float32)

    def _slices(self, old: np.ndarray, new: np.ndarray) -> int | None:
        """Axis along which slices are resampled apart, from the old spacing to the new one."""
        if self.separate_z is False:
            return None
        for sizes in (old, new):
            if self.separate_z or sizes.max() / sizes.min() > _ANISOTROPIC:
                longest = np.flatnonzero(sizes == sizes.max())
                return int(longest[0]) if len(longest) == 1 else None
        return None


def _refuse_sizes(shape: Sequence[int], channels: int, spacing: Sequence[float]) -> None:
    """Refuse a grid without voxels, or one that does not fit into memory while it is made."""
    size = " x ".join(f"{one:g}" for one in spacing)
    if min(shape) < 1:
        raise ValueError(f"nothing is left at the plan's spacing of {size} mm")
    needed, free = math.prod(shape) * (4 * channels + _BYTES), free_memory()
    if free is not None and needed > _PART * free:
        raise ValueError(
            f"at the plan's spacing of {size} mm the scan needs {needed / 1e9:.3g} GB of memory "
            f"({free / 1e9:.3g} GB are free)"
        )


def _nonzero(data: np.ndarray) -> tuple[tuple[slice, ...], np.ndarray]:
    """Box around what is not zero in any channel, and the voxels inside, holes filled."""
    inside = np.asarray(ndimage.binary_fill_holes((data != 0).any(axis=0)))
    if not inside.any():
        raise ValueError("every voxel is zero")
    box = ndimage.find_objects(inside.astype(np.uint8))[0]
    return tuple(slice(int(part.start), int(part.stop)) for part in box), inside


def _splines(
    volume: np.ndarray, shape: list[int], axis: int | None, order: int, order_z: int
) -> np.ndarray:
    """Splines that do not leave the range of what they go through (of each slice)."""
    if axis is None:
        return _zoomed(volume, shape, order)
    plane = [size for at, size in enumerate(shape) if at != axis]
    slices = np.moveaxis(volume, axis, 0)
    flat = np.stack([_zoomed(one, plane, order) for one in slices])
    count = shape[axis]
    if count != len(flat):
        places = len(flat) / count * (np.arange(count) + 0.5) - 0.5
        if order_z == 0:
            flat = flat[np.clip(np.floor(places + 0.5).astype(int), 0, len(flat) - 1)]
        else:
            flat = _zoom(flat, [count, *plane], order_z)
    return np.moveaxis(flat, 0, axis)


def _zoomed(values: np.ndarray, shape: Sequence[int], order: int) -> np.ndarray:
    kept: np.ndarray = np.clip(_zoom(values, shape, order), values.min(), values.max())
    return kept


def _zoom(values: np.ndarray, shape: Sequence[int], order: int) -> np.ndarray:
    if list(values.shape) == list(shape):
        return values
    factors = [new / old for new, old in zip(shape, values.shape, strict=True)]
    made: np.ndarray = ndimage.zoom(values, factors, order=order, mode="nearest", grid_mode=True)
    return made


def _linear(data: torch.Tensor, shape: Sequence[int], axis: int | None) -> torch.Tensor:
    """Linear, and the nearest slice along `axis`: nnunetv2's ``resample_torch_fornnunet``."""
    volume, plane = data.contiguous()[None], list(shape)
    if axis is not None:
        plane[axis] = data.shape[1 + axis]
    volume = torch.nn.functional.interpolate(volume, size=plane, mode="trilinear")
    if axis is not None:
        volume = torch.nn.functional.interpolate(volume, size=list(shape), mode="nearest-exact")
    return volume[0]
