"""How a volume goes through the network: in one piece, or by overlapping windows that are fused.

The plan reproduces :func:`monai.inferers.sliding_window_inference` window by window, so that the
engine can pull a gradient back through each window alone. nnU-Net lays its windows out otherwise
(:class:`NnunetWindows`): spread evenly, with fusion weights of half precision around the voxel
i // 2, which is half a voxel beside the middle of an even window.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices

from ..errors import ModelError
from .limits import refuse_windows

__all__ = [
    "NnunetWindows",
    "WholeVolume",
    "WindowPlan",
    "Windows",
    "plan_windows",
    "read_inferer",
]


@dataclass(frozen=True)
class WholeVolume:
    """The network gets the whole volume at once."""

    def window_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape (I, J, K) that the network sees for a volume of `shape`."""
        return shape

    def describe(self) -> str:
        """Say it in words."""
        return "whole volume at once"


@dataclass(frozen=True)
class Windows:
    """Sliding windows with MONAI's meaning of every field.

    Attributes
    ----------
    roi_size : (I, J, K)
        Window in voxels of the network's grid; 0 or less takes the volume's own size along that
        axis.
    overlap : (float, float, float)
        Part of a window shared with its neighbour, 0 <= overlap < 1.
    mode : {"gaussian", "constant"}
        Fusion weights inside a window.
    sigma_scale : float
        Standard deviation of the Gaussian weights as a part of the window.
    padding_mode, cval
        How a volume smaller than the window is filled up.
    """

    roi_size: tuple[int, int, int]
    overlap: tuple[float, float, float] = (0.25, 0.25, 0.25)
    mode: str = "constant"
    sigma_scale: tuple[float, float, float] = (0.125, 0.125, 0.125)
    padding_mode: str = "constant"
    cval: float = 0.0

    def __post_init__(self) -> None:
        if len(self.roi_size) != 3 or len(self.overlap) != 3:
            raise ModelError(
                f"A window has three axes; roi_size {self.roi_size} and overlap {self.overlap} "
                "were given."
            )
        if not all(0 <= value < 1 for value in self.overlap):
            raise ModelError(
                f"The overlap of windows must be at least 0 and less than 1; {self.overlap} was "
                "given."
            )

    def window_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape (I, J, K) of one window for a volume of `shape`."""
        return tuple(
            size if size > 0 else full for size, full in zip(self.roi_size, shape, strict=True)
        )

    def describe(self) -> str:
        """Say it in words."""
        size = " x ".join(str(one) if one > 0 else "all" for one in self.roi_size)
        return (
            f"sliding windows of {size} voxels, overlap {max(self.overlap):g}, {self.mode} fusion"
        )

    def places(self, shape: tuple[int, ...], roi: tuple[int, ...]) -> list[tuple[slice, ...]]:
        """Windows of `roi` on a padded volume of `shape`."""
        steps = tuple(
            window if window == size else max(1, int(window * (1 - part)))
            for window, size, part in zip(roi, shape, self.overlap, strict=True)
        )
        return list(dense_patch_slices(shape, roi, steps))

    def weights(self, roi: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """Fusion weight inside a window of `roi`."""
        importance = compute_importance_map(
            roi,
            mode=self.mode,
            sigma_scale=self.sigma_scale,
            device=device,
            dtype=torch.float32,
        )
        return importance.expand(roi) if importance.shape != torch.Size(roi) else importance


@dataclass(frozen=True)
class NnunetWindows(Windows):
    """Sliding windows as nnunetv2 2.8.1 lays and fuses them; its step of 0.5 is an overlap of 0.5.

    References
    ----------
    ``compute_steps_for_sliding_window`` and ``compute_gaussian`` of nnunetv2.
    """

    overlap: tuple[float, float, float] = (0.5, 0.5, 0.5)
    mode: str = "gaussian"

    def places(self, shape: tuple[int, ...], roi: tuple[int, ...]) -> list[tuple[slice, ...]]:
        """As few windows as the overlap asks for, spread evenly from edge to edge."""
        starts = []
        for size, window, part in zip(shape, roi, self.overlap, strict=True):
            steps = math.ceil((size - window) / (window * (1 - part)))
            each = (size - window) / steps if steps else 0.0
            starts.append([int(np.round(each * step)) for step in range(steps + 1)])
        return [
            tuple(slice(start, start + window) for start, window in zip(corner, roi, strict=True))
            for corner in itertools.product(*starts)
        ]

    def weights(self, roi: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """Gaussian of a single voxel, scaled to 10 and kept in half precision as nnU-Net does."""
        from scipy.ndimage import gaussian_filter

        single = np.zeros(roi)
        single[tuple(size // 2 for size in roi)] = 1
        sigmas = [size * scale for size, scale in zip(roi, self.sigma_scale, strict=True)]
        bell = gaussian_filter(single, sigmas, mode="constant")
        halved = torch.from_numpy(bell / bell.max() * 10).half().float()
        halved[halved == 0] = halved[halved > 0].min()
        return halved.to(device)


@dataclass(frozen=True)
class WindowPlan:
    """Where the windows lie and how they are fused.

    Attributes
    ----------
    shape : (I, J, K)
        The volume.
    padding : ((before, after), ...) for I, J, K
        Voxels added so that one window fits.
    windows : tuple of three slices each
        On the padded volume.
    importance : Tensor, shape of a window
        Fusion weight inside a window.
    weight_sum : Tensor, shape of the padded volume
        Sum of the weights of all windows; fused output = sum of weighted outputs / weight_sum.
    """

    shape: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    windows: tuple[tuple[slice, ...], ...]
    importance: torch.Tensor
    weight_sum: torch.Tensor
    padding_mode: str = "constant"
    cval: float = 0.0

    def pad(self, volume: torch.Tensor) -> torch.Tensor:
        """Fill up a (1, C, I, J, K) volume to the padded shape."""
        if not any(sum(pair) for pair in self.padding):
            return volume
        amounts = [amount for pair in reversed(self.padding) for amount in pair]
        if self.padding_mode == "constant":
            return torch.nn.functional.pad(volume, amounts, value=self.cval)
        return torch.nn.functional.pad(volume, amounts, mode=self.padding_mode)

    @property
    def inside(self) -> tuple[slice, ...]:
        """The volume's place on the padded grid."""
        return tuple(
            slice(before, before + size)
            for (before, _), size in zip(self.padding, self.shape, strict=True)
        )

    def fraction(self, window: tuple[slice, ...]) -> torch.Tensor:
        """Part of a window in the fused output, shape of a window; all windows sum to 1."""
        return self.importance / self.weight_sum[window]


def plan_windows(
    inferer: WholeVolume | Windows, shape: Sequence[int], device: Any = "cpu"
) -> WindowPlan:
    """Lay out the windows for a volume of `shape` (I, J, K).

    A pure function: the plan can be tested and shown without running a network.

    Raises
    ------
    ModelError
        If the windows, or a volume that is filled up to one, need more memory than there is.
    """
    shape = tuple(int(size) for size in shape)
    if isinstance(inferer, WholeVolume):
        ones = torch.ones((), device=device)
        whole = tuple(slice(0, size) for size in shape)
        return WindowPlan(shape, ((0, 0),) * len(shape), (whole,), ones, ones.expand(shape))
    roi = inferer.window_shape(shape)
    missing = [max(window - size, 0) for window, size in zip(roi, shape, strict=True)]
    padding = tuple((gap // 2, gap - gap // 2) for gap in missing)
    padded = tuple(max(window, size) for window, size in zip(roi, shape, strict=True))
    refuse_windows(padded, roi, getattr(inferer, "overlap", (0.0, 0.0, 0.0)))
    windows = tuple(inferer.places(padded, roi))
    importance = inferer.weights(roi, torch.device(device))
    weight_sum = torch.zeros(padded, device=device)
    for window in windows:
        weight_sum[window] += importance
    return WindowPlan(
        shape, padding, windows, importance, weight_sum, inferer.padding_mode, inferer.cval
    )


def read_inferer(inferer: Any) -> WholeVolume | Windows:
    """Translate a MONAI inferer.

    Raises
    ------
    ModelError
        If it is of a kind whose fusion is not known here.
    """
    from monai.inferers import SimpleInferer, SliceInferer, SlidingWindowInferer

    if inferer is None or isinstance(inferer, SimpleInferer):
        return WholeVolume()
    if isinstance(inferer, WholeVolume | Windows):
        return inferer
    if isinstance(inferer, SlidingWindowInferer) and not isinstance(inferer, SliceInferer):
        return Windows(
            roi_size=_three(inferer.roi_size, int),
            overlap=_three(inferer.overlap, float),
            mode=str(getattr(inferer.mode, "value", inferer.mode)),
            sigma_scale=_three(inferer.sigma_scale, float),
            padding_mode=str(getattr(inferer.padding_mode, "value", inferer.padding_mode)),
            cval=float(inferer.cval),
        )
    raise ModelError(
        f"The inferer {type(inferer).__name__} is not supported. "
        "Give a monai SlidingWindowInferer or SimpleInferer, or inferer=None for the whole volume."
    )


def _three(value: Any, kind: type) -> Any:
    values = list(value) if isinstance(value, Sequence) else [value] * 3
    return tuple(kind(one) for one in values)
