"""From the scan's grid to the network's and back.

Any MONAI transform, on arrays or on dictionaries. Reading is done already, so transforms that load
files or move the channel axis are left out. The way back uses the transforms' own inverses; where
those do not give the input's grid (a transform without an inverse), the map is interpolated by
world position, since every MONAI image knows its affine.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    EnsureChannelFirst,
    EnsureChannelFirstd,
    InvertibleTransform,
    LoadImage,
    LoadImaged,
    MapTransform,
)
from monai.transforms.utils import allow_missing_keys_mode, convert_applied_interp_mode

from ..errors import ImageError
from ..image import make_image, resample_image, same_grid
from .limits import AllocationError, bounded_memory

__all__ = ["Preprocess"]

_READING = (LoadImage, LoadImaged, EnsureChannelFirst, EnsureChannelFirstd)


@dataclass(frozen=True)
class Preprocess:
    """The model's own preprocessing, applied and inverted.

    Attributes
    ----------
    transform : callable or None
        MONAI transform or Compose; None leaves the image as it is.
    key : hashable or None
        Key of the image for dictionary transforms; found by itself when left out.
    """

    transform: Callable[[Any], Any] | None = None
    key: Hashable | None = None

    def apply(self, image: MetaTensor) -> MetaTensor:
        """Return the image on the network's grid, shape (C, I', J', K'), float32.

        Raises
        ------
        ImageError
            If a transform fails or gives something that is no volume.
        """
        if self.transform is None:
            return image
        compose, key = self._plan()
        copy = make_image(
            image.as_tensor().clone(), image.affine, str(image.meta.get("filename_or_obj", ""))
        )
        try:
            with _only_key(compose, key), bounded_memory():
                result = compose(copy) if key is None else compose({key: copy})[key]
        except Exception as error:
            reason = str(_why(error)).strip().splitlines()
            raise ImageError(
                f"The model's preprocessing failed on a volume of shape {tuple(image.shape)} (C, "
                "I, J, K): "
                f"{reason[0] if reason else type(error).__name__}. Check that this is the kind of "
                "scan the model was made for."
            ) from error
        if not isinstance(result, MetaTensor) or result.ndim != 4 or 0 in result.shape:
            raise ImageError(
                f"The model's preprocessing gave {_form(result)}; a volume (C, I, J, K) was "
                "expected. "
                "Check the preprocessing and that the scan is 3-D."
            )
        return cast(MetaTensor, result.float())

    def invert(
        self, map_: torch.Tensor, network_image: MetaTensor, image: MetaTensor
    ) -> MetaTensor:
        """Bring a map from the network's grid back to the scan's.

        Parameters
        ----------
        map_ : Tensor, shape (M, I', J', K')
            Any number of channels, on the grid of `network_image`.
        network_image : MetaTensor, shape (C, I', J', K')
            What :meth:`apply` returned.
        image : MetaTensor, shape (C, I, J, K)
            The scan.

        Returns
        -------
        MetaTensor, shape (M, I, J, K)
            Values are interpolated (trilinear), not mass-corrected: a map keeps its unit "per
            network voxel". Zero where the network did not look.
        """
        on_network = make_image(map_, network_image.affine)
        if same_grid(on_network, image):
            return make_image(map_, image.affine)
        inverted = self._inverse(map_, network_image)
        if inverted is not None and same_grid(inverted, image):
            return make_image(inverted, image.affine)
        return resample_image(on_network, image, outside=0.0)

    def describe(self) -> str:
        """Name the transforms that change the image."""
        if self.transform is None:
            return "none"
        return ", ".join(type(one).__name__ for one in self._plan()[0].transforms) or "none"

    @property
    def spacing_mm(self) -> list[float] | None:
        """Voxel size that is resampled to, along the network's axes; None where it is not."""
        steps = list(getattr(self.transform, "transforms", [self.transform]))
        for step in reversed(steps):
            inner = getattr(step, "spacing_transform", step)
            found = getattr(inner, "pixdim", None)
            if found is not None:
                sizes = [float(one) for one in list(found)[:3]]
                # One number stands for all axes; NaN and 0 leave an axis as it is.
                sizes = sizes * 3 if len(sizes) == 1 else sizes
                return sizes if len(sizes) == 3 and all(size > 0 for size in sizes) else None
        return None

    def _plan(self) -> tuple[Compose, Hashable | None]:
        assert self.transform is not None  # noqa: S101 - callers have looked, this is for the type checker
        steps: Sequence[Any] = (
            self.transform.transforms if isinstance(self.transform, Compose) else [self.transform]
        )
        kept = [step for step in _flat(steps) if not isinstance(step, _READING)]
        key = self.key
        if key is None:
            key = next(
                (step.keys[0] for step in _flat(steps) if isinstance(step, MapTransform)), None
            )
        return Compose(kept), key

    def _inverse(self, map_: torch.Tensor, network_image: MetaTensor) -> MetaTensor | None:
        compose, key = self._plan()
        if not any(isinstance(step, InvertibleTransform) for step in compose.transforms):
            return None
        # A map is interpolated linearly even where the image was resampled with splines: splines
        # overshoot.
        done = convert_applied_interp_mode(
            network_image.applied_operations, mode="bilinear", align_corners=None
        )
        start = MetaTensor(
            map_.detach().cpu().as_subclass(torch.Tensor),
            affine=network_image.affine.clone(),
            applied_operations=done,
        )
        try:
            with _only_key(compose, key):
                result = compose.inverse(start if key is None else {key: start})
            result = result if key is None else result[key]
        except (RuntimeError, KeyError, ValueError):
            return None  # the caller interpolates by world position instead
        return result if isinstance(result, MetaTensor) and result.ndim == 4 else None


def _only_key(compose: Compose, key: Hashable | None) -> AbstractContextManager[Any]:
    """Let dictionary transforms pass over what only training has, such as the label map."""
    if key is None or not any(isinstance(step, MapTransform) for step in compose.transforms):
        return nullcontext()
    return allow_missing_keys_mode(compose)


def _why(error: BaseException) -> BaseException:
    """The memory, where that was it, else what MONAI's own error comes from."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, AllocationError):
        found = found.__cause__ or found.__context__
    return found or error.__cause__ or error


def _flat(steps: Sequence[Any]) -> list[Any]:
    """Transforms of nested Compose objects in order."""
    flat: list[Any] = []
    for step in steps:
        flat.extend(_flat(step.transforms) if type(step) is Compose else [step])
    return flat


def _form(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return (
        type(value).__name__ if shape is None else f"{type(value).__name__} of shape {tuple(shape)}"
    )
