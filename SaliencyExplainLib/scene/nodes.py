"""Volume nodes become volumes or images, and these become nodes, on exactly the same grid.

A node's voxels are in its own RAS, before its parent transform. What is made from them gets the
same parent transform, linear or not, so the two always lie on each other; nothing is resampled but
further channels that lie on another grid than the first.

A :class:`SaliencyExplainLib.volume.Volume` is plain numpy, for a process without torch; an image is
the same as a MetaTensor, for the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import vtk
from vtk.util import numpy_support

from ..channels import join_volumes
from ..errors import SceneError
from ..volume import Volume
from .host import slicer

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from numpy.typing import NDArray

__all__ = [
    "ijk_to_ras",
    "image_from_node",
    "image_from_nodes",
    "node_from_map",
    "title_of",
    "transform_between",
    "volume_from_node",
    "volume_from_nodes",
]


def title_of(node: Any) -> str:
    """Name of a node for messages."""
    return f"{node.GetName()!r}" if node is not None and node.GetName() else "the node"


def subject_of(node: Any) -> str:
    """Name of a node for the start of a sentence, its letters as they are."""
    title = title_of(node)
    return f"{title[0].upper()}{title[1:]}"


def ijk_to_ras(volume: slicer.vtkMRMLVolumeNode) -> NDArray[np.float64]:
    """IJKToRAS of a volume node, shape (4, 4), without its parent transform."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return np.asarray(slicer.util.arrayFromVTKMatrix(matrix))


def volume_from_node(node: slicer.vtkMRMLVolumeNode) -> Volume:
    """Read a volume node; torch is not needed.

    Parameters
    ----------
    node : vtkMRMLVolumeNode
        Scalar volume (one channel) or vector volume (one channel a component).

    Returns
    -------
    Volume
        Shape (C, I, J, K), float32, a copy; ``affine`` equals IJKToRAS. A parent transform is not
        applied.

    Raises
    ------
    SceneError
        If it is no volume or holds no voxels.
    """
    if not isinstance(node, slicer.vtkMRMLVolumeNode):
        kind = "nothing" if node is None else f"{title_of(node)} ({type(node).__name__})"
        raise SceneError(f"A volume is needed; {kind} was given. Choose a scalar or vector volume.")
    data = node.GetImageData()
    if data is None or data.GetPointData().GetScalars() is None or 0 in data.GetDimensions():
        raise SceneError(
            f"The volume {title_of(node)} holds no voxels. Load its file again, or choose another "
            "volume."
        )
    array = numpy_support.vtk_to_numpy(data.GetPointData().GetScalars())
    components = data.GetNumberOfScalarComponents()
    voxels = array.reshape(*reversed(data.GetDimensions()), components).transpose(3, 2, 1, 0)
    return Volume(np.array(voxels, dtype=np.float32), ijk_to_ras(node), node.GetName() or "")


def image_from_node(node: slicer.vtkMRMLVolumeNode) -> MetaTensor:
    """Read a volume node into an image: :func:`volume_from_node` for the engine."""
    image: MetaTensor = volume_from_node(node).as_image()
    return image


def volume_from_nodes(nodes: Sequence[slicer.vtkMRMLVolumeNode]) -> Volume:
    """Read several volume nodes as the channels of one volume, in this order.

    Those on other grids are interpolated onto the first one's by world position, parent transforms
    included; ``notes`` says which.

    Raises
    ------
    SceneError
        If none is given, or a non-linear transform lies between two of them.
    ImageError
        If two do not overlap.
    """
    if not nodes:
        raise SceneError("No volume was given. Choose at least one under Inputs.")
    seen = [_seen_from(nodes[0], node) for node in nodes]
    return join_volumes(seen, resample=True)


def _seen_from(first: slicer.vtkMRMLVolumeNode, node: slicer.vtkMRMLVolumeNode) -> Volume:
    """A volume in the coordinates of the first one, whose parent transform may be another."""
    volume, parents = volume_from_node(node), (_parent(node), _parent(first))
    if parents[0] is parents[1]:
        return volume
    for one, parent in zip((node, first), parents, strict=True):
        if parent is not None and not parent.IsTransformToWorldLinear():
            raise SceneError(
                f"The volumes {title_of(first)} and {title_of(node)} have different parent "
                f"transforms, and that of {title_of(one)} is not linear. Harden it (Transforms "
                "module) first."
            )
    between = vtk.vtkMatrix4x4()
    slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(*parents, between)
    moved = np.asarray(slicer.util.arrayFromVTKMatrix(between)) @ volume.affine
    return Volume(volume.voxels, moved, volume.name)


def image_from_nodes(nodes: Sequence[slicer.vtkMRMLVolumeNode]) -> MetaTensor:
    """Read several volume nodes into one image: :func:`volume_from_nodes` for the engine."""
    image: MetaTensor = volume_from_nodes(nodes).as_image()
    return image


def node_from_map(
    voxels: NDArray[np.float32], affine: Any, name: str
) -> slicer.vtkMRMLScalarVolumeNode:
    """Make a scalar volume node, shape (I, J, K), that is not in a scene yet.

    Parameters
    ----------
    voxels : ndarray, shape (I, J, K), float32
        Copied.
    affine : array_like, shape (4, 4)
        Becomes IJKToRAS.
    name : str
        Name of the node.
    """
    data = vtk.vtkImageData()
    data.SetDimensions(*voxels.shape)
    data.AllocateScalars(vtk.VTK_FLOAT, 1)
    numpy_support.vtk_to_numpy(data.GetPointData().GetScalars())[:] = voxels.transpose(
        2, 1, 0
    ).ravel()
    node = slicer.vtkMRMLScalarVolumeNode()
    node.SetName(name)
    node.SetAndObserveImageData(data)
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(np.asarray(affine, dtype=np.float64)))
    return node


def transform_between(source: Any, target: Any) -> vtk.vtkGeneralTransform:
    """Transform from one transformable node's coordinates to another's; None is world RAS."""
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(
        _parent(source), _parent(target), transform
    )
    return transform


def _parent(node: Any) -> Any:
    return node.GetParentTransformNode() if node is not None else None
