"""Where a target looks: its region as a mask on the network's grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor

from .errors import TargetError
from .image import ras_to_ijk, resample_labels, to_ras

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .model import Model
    from .target import Target

__all__ = ["activated", "region_mask"]


def region_mask(
    target: Target,
    region: str,
    output: torch.Tensor,
    index: int,
    model: Model,
    image: MetaTensor,
) -> tuple[torch.Tensor, dict[str, Any] | None]:
    """Voxels of a target's region.

    Parameters
    ----------
    target : Target
        Its segment, ROI, point or instance.
    region : str
        One of ``target.REGIONS``.
    output : Tensor, shape (1, O, I, J, K)
        Fused output of the unperturbed image.
    index : int
        The explained output.
    model : Model
    image : MetaTensor, shape (C, I, J, K)
        On the network's grid; only its place is used.

    Returns
    -------
    Tensor of bool, shape (I, J, K)
    dict or None
        For an instance: its number, of how many, and its centre (RAS, mm).

    Raises
    ------
    TargetError
        If the region is empty or lies outside the image.
    """
    shape = tuple(output.shape[2:])
    if region == "everywhere":
        return torch.ones(shape, dtype=torch.bool, device=output.device), None
    if region in ("prediction", "instance"):
        mask = _predicted(output, index, model)
        name = model.output_names(output.shape[1])[index]
        if not mask.any():
            raise TargetError(
                f"The network predicts no voxel as {name!r} in this image, so there is no "
                "region to explain. "
                "Choose another output, or another region (segment, roi, point, everywhere)."
            )
        return (mask, None) if region == "prediction" else _instance(target, mask, name, image)
    if region == "segment":
        assert target.segment is not None  # noqa: S101 - checked when the target was made
        like = MetaTensor(torch.zeros((1, *shape)), affine=image.affine)
        found = resample_labels(target.segment, like).as_tensor()[0] > 0
        problem = "The segment has no voxel inside the image as the network sees it."
    elif region == "roi":
        found = torch.from_numpy(_box(shape, image.affine, target.roi_ras_mm))
        problem = "The ROI holds no voxel centre of the image as the network sees it."
    else:
        found = torch.from_numpy(_nearest(shape, image.affine, target.point_ras_mm))
        point = target.point_ras_mm
        problem = f"The point {point} (RAS, mm) lies outside the image as the network sees it."
    if not found.any():
        raise TargetError(f"{problem} Move it over the anatomy, or choose another region.")
    return found.to(output.device), None


def activated(output: torch.Tensor, activation: str) -> torch.Tensor:
    """Probabilities of an output, shape (B, O, ...)."""
    if activation == "softmax":
        return output.softmax(1)
    return output.sigmoid() if activation == "sigmoid" else output


def _predicted(output: torch.Tensor, index: int, model: Model) -> torch.Tensor:
    if model.task == "regression":
        raise TargetError(
            "A regression network predicts no region. Choose segment, roi, point or everywhere."
        )
    if model.activation == "softmax":
        return output[0].argmax(0) == index
    return activated(output, model.activation)[0, index] > 0.5


def _instance(
    target: Target, mask: torch.Tensor, name: str, image: MetaTensor
) -> tuple[torch.Tensor, dict[str, Any]]:
    """One connected part of a predicted mask (I, J, K), and which it is of how many."""
    parts, sizes = _connected(mask.cpu().numpy())
    order = np.argsort(-sizes, kind="stable")
    if target.point_ras_mm is not None:
        label = int(parts[_nearest(parts.shape, image.affine, target.point_ras_mm)].max(initial=0))
        if label == 0:
            raise TargetError(_off_the_prediction(parts, name, image, target.point_ras_mm))
        number = int(np.flatnonzero(order == label - 1)[0]) + 1
    else:
        number = target.instance or 1
        if number > len(sizes):
            raise TargetError(
                f"The prediction of {name!r} has {len(sizes)} connected "
                f"part{'s' if len(sizes) > 1 else ''}; number {number} was asked for. Choose "
                f"1 (the largest) to {len(sizes)}."
            )
        label = int(order[number - 1]) + 1
    inside = parts == label
    centre = to_ras(image.affine, np.argwhere(inside).mean(0))
    facts = {
        "number": number,
        "of": len(sizes),
        "centre_ras_mm": [round(float(one), 3) for one in centre],
    }
    return torch.from_numpy(inside).to(mask.device), facts


def _connected(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """26-connected parts of a mask as numbers from 1, and the voxels of each."""
    from scipy.ndimage import label

    parts, count = label(mask, structure=np.ones((3, 3, 3)))
    return parts, np.bincount(parts.ravel(), minlength=count + 1)[1:]


def _off_the_prediction(
    parts: NDArray[np.int32], name: str, image: MetaTensor, point: Sequence[float]
) -> str:
    places = to_ras(image.affine, np.argwhere(parts > 0))
    distances = np.linalg.norm(places - np.asarray(point), axis=1)
    nearest = ", ".join(f"{one:.1f}" for one in places[distances.argmin()])
    return (
        f"The point {tuple(point)} (RAS, mm) lies in no part of the prediction of {name!r}. The "
        f"nearest predicted voxel is {distances.min():.1f} mm away, at ({nearest}). Move the point "
        "there."
    )


def _box(shape: tuple[int, ...], affine: Any, corners: Any) -> NDArray[np.bool_]:
    """Voxels whose centre lies in an axis-aligned RAS box, slab by slab to save memory."""
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    plane = np.stack(np.meshgrid([0], *map(np.arange, shape[1:]), indexing="ij"), axis=-1)
    first = to_ras(affine, plane[0])
    step = to_ras(affine, [1, 0, 0]) - to_ras(affine, [0, 0, 0])
    found = np.empty(shape, dtype=bool)
    for index in range(shape[0]):
        centres = first + index * step
        found[index] = ((centres >= low) & (centres <= high)).all(-1)
    return found


def _nearest(shape: tuple[int, ...], affine: Any, point: Any) -> NDArray[np.bool_]:
    index = np.rint(ras_to_ijk(affine, point)).astype(int)
    found = np.zeros(shape, dtype=bool)
    if (index >= 0).all() and (index < shape).all():
        found[tuple(index)] = True
    return found
