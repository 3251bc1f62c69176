"""Markups become places for a target: a ROI node a box or a mask, a control point a position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import vtk

from ..errors import SceneError
from ..volume import Volume, as_volume, to_ras
from .host import slicer
from .nodes import title_of, transform_between, volume_from_node

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from numpy.typing import NDArray

    from ..worker import JobFolder

__all__ = ["Roi", "point_from_node", "roi_from_node"]

Corner = tuple[float, float, float]


@dataclass(frozen=True)
class Roi:
    """A ROI in the RAS of a volume: a box where it is parallel to the axes, else a mask.

    Attributes
    ----------
    box_ras_mm : ((r, a, s), (r, a, s)) or None
        Lowest and highest corner.
    volume : Volume or None, shape (1, I, J, K)
        1 where the centre of a voxel lies inside the ROI.
    """

    box_ras_mm: tuple[Corner, Corner] | None
    volume: Volume | None

    @property
    def mask(self) -> MetaTensor | None:
        """The same mask as an image (MetaTensor); needs torch."""
        return None if self.volume is None else self.volume.as_image()

    def question_fields(self, folder: JobFolder) -> dict[str, Any]:
        """Return the arguments of a worker's ``Question``; a mask is written into `folder`."""
        if self.volume is None:
            return {"region": "roi", "roi_ras_mm": self.box_ras_mm}
        return {"region": "segment", "segment": folder.put("roi", self.volume)}

    def target_fields(self) -> dict[str, Any]:
        """Return the arguments of ``Target``: ``Target(output=1, **roi.target_fields())``."""
        if self.box_ras_mm is not None:
            return {"region": "roi", "roi_ras_mm": self.box_ras_mm}
        return {"region": "segment", "segment": self.mask}


def roi_from_node(
    node: slicer.vtkMRMLMarkupsROINode, reference: Volume | MetaTensor | slicer.vtkMRMLVolumeNode
) -> Roi:
    """Read a markups ROI in the RAS of a volume.

    Parameters
    ----------
    node : vtkMRMLMarkupsROINode
        May be turned and may have a parent transform.
    reference : vtkMRMLVolumeNode, Volume or MetaTensor
        Whose RAS (and, for a turned ROI, grid) is taken. An image is taken to lie in world RAS.

    Raises
    ------
    SceneError
        If it is no ROI, is flat, or the volume lies under a non-linear transform.
    """
    if not isinstance(node, slicer.vtkMRMLMarkupsROINode):
        raise SceneError(
            f"A markups ROI is needed; {type(node).__name__} was given. Place one in the Markups "
            "module."
        )
    half = np.array(node.GetSize(), dtype=np.float64) / 2
    if not (half > 0).all():
        raise SceneError(
            f"The ROI {title_of(node)} has no volume (size {node.GetSize()} mm). Drag its handles "
            "over the anatomy."
        )
    roi_to_ras = _world_to_ras(reference) @ slicer.util.arrayFromVTKMatrix(
        node.GetObjectToWorldMatrix()
    )
    if _is_along_axes(roi_to_ras):
        corners = np.array([to_ras(roi_to_ras, half * sign) for sign in ((-1, -1, -1), (1, 1, 1))])
        low, high = corners.min(0).tolist(), corners.max(0).tolist()
        return Roi(((low[0], low[1], low[2]), (high[0], high[1], high[2])), None)
    image = _as_volume(reference)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in image.shape[1:]], indexing="ij"), axis=-1)
    ijk_to_roi = np.linalg.inv(roi_to_ras) @ image.affine
    inside = (np.abs(to_ras(ijk_to_roi, grid)) <= half).all(axis=-1)
    return Roi(
        None, Volume(np.asarray(inside, dtype=np.float32), image.affine, node.GetName() or "")
    )


def point_from_node(
    node: slicer.vtkMRMLMarkupsNode,
    reference: Volume | MetaTensor | slicer.vtkMRMLVolumeNode,
    index: int = 0,
) -> Corner:
    """Read a control point as (r, a, s) in mm in the RAS of a volume.

    Both parent transforms are respected, also non-linear ones. An image is taken to lie in world
    RAS.

    Raises
    ------
    SceneError
        If it is no markups node or has no such point.
    """
    if not isinstance(node, slicer.vtkMRMLMarkupsNode):
        raise SceneError(
            f"A markups point is needed; {type(node).__name__} was given. Place one in the "
            "Markups module."
        )
    count = node.GetNumberOfControlPoints()
    if (
        not 0 <= index < count
        or node.GetNthControlPointPositionStatus(index) != node.PositionDefined
    ):
        raise SceneError(
            f"{title_of(node)} has {count} placed points; point {index + 1} was asked for. Place "
            "it in a slice view."
        )
    world = [0.0, 0.0, 0.0]
    node.GetNthControlPointPositionWorld(index, world)
    volume = reference if isinstance(reference, slicer.vtkMRMLVolumeNode) else None
    right, anterior, superior = transform_between(None, volume).TransformPoint(world)
    return right, anterior, superior


def _as_volume(reference: Any) -> Volume:
    if isinstance(reference, slicer.vtkMRMLVolumeNode):
        return volume_from_node(reference)
    return as_volume(reference)


def _world_to_ras(reference: Any) -> NDArray[np.float64]:
    """World to the RAS of a volume, shape (4, 4)."""
    parent = (
        reference.GetParentTransformNode()
        if isinstance(reference, slicer.vtkMRMLVolumeNode)
        else None
    )
    if parent is None:
        return np.eye(4)
    if not parent.IsTransformToWorldLinear():
        raise SceneError(
            f"The volume {title_of(reference)} lies under the non-linear transform "
            f"{title_of(parent)}, in which a ROI is no box. "
            "Harden the transform (Transforms module), or use a segment."
        )
    matrix = vtk.vtkMatrix4x4()
    parent.GetMatrixTransformFromWorld(matrix)
    return np.asarray(slicer.util.arrayFromVTKMatrix(matrix))


def _is_along_axes(matrix: NDArray[np.float64]) -> bool:
    """Whether each column of the 3 x 3 part points along one axis, to 0.01 degrees."""
    columns = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    return bool(
        np.allclose(np.sort(np.abs(columns), axis=0), [[0] * 3, [0] * 3, [1] * 3], atol=2e-4)
    )
