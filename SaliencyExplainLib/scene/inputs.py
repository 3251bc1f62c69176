"""Put what was explained into a scene: the volume, and its regions as segments.

For scenes made outside the application; inside it the user has loaded them already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..errors import SceneError
from ..volume import Volume, voxels_of
from .host import slicer
from .nodes import node_from_map

if TYPE_CHECKING:
    from typing import Any

    from monai.data import MetaTensor

__all__ = ["add_image", "add_segmentation"]


def add_image(scene: Any, image: Volume | MetaTensor, name: str = "image") -> list[Any]:
    """Add an image as scalar volume nodes, one a channel.

    Parameters
    ----------
    scene : vtkMRMLScene
    image : Volume or MetaTensor, shape (C, I, J, K)
    name : str
        Name of the node; several channels are numbered.

    Returns
    -------
    list of vtkMRMLScalarVolumeNode
    """
    voxels = voxels_of(image)
    nodes = []
    for index, channel in enumerate(voxels):
        title = name if len(voxels) == 1 else f"{name} {index}"
        node = scene.AddNode(node_from_map(channel, image.affine, title))
        node.CreateDefaultDisplayNodes()
        nodes.append(node)
    return nodes


def add_segmentation(
    scene: Any,
    labelmap: Volume | MetaTensor,
    names: Mapping[int, str],
    name: str = "segments",
) -> Any:
    """Add a label map as a segmentation node.

    Parameters
    ----------
    scene : vtkMRMLScene
    labelmap : Volume or MetaTensor, shape (1, I, J, K)
        Whole numbers; 0 is outside.
    names : mapping of int to str
        The labels that become segments, and their names.
    name : str
        Name of the node.

    Returns
    -------
    vtkMRMLSegmentationNode

    Raises
    ------
    SceneError
        If none of the labels occurs.
    """
    labels = voxels_of(labelmap)[0]
    found = [label for label in names if label and (labels == label).any()]
    if not found:
        raise SceneError(
            f"None of the labels {', '.join(map(str, names))} occurs in the label map."
        )
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    for label in found:
        mask = (labels == label).astype(np.float32)
        oriented = _oriented(mask, labelmap.affine)
        segment = slicer.vtkSegment()
        segment.SetName(names[label])
        representation = (
            slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
        )
        segment.AddRepresentation(representation, oriented)
        segment.SetColor(*_COLORS[(label - 1) % len(_COLORS)])
        node.GetSegmentation().AddSegment(segment)
    node.GetDisplayNode().SetVisibility2DFill(False)
    return node


#: Segment colours, R, G, B in 0..1: Okabe and Ito's palette, told apart by colour-blind people too.
_COLORS = (
    (0.34, 0.71, 0.91),
    (0.90, 0.62, 0.0),
    (0.0, 0.62, 0.45),
    (0.94, 0.89, 0.26),
    (0.0, 0.45, 0.70),
    (0.84, 0.37, 0.0),
    (0.80, 0.47, 0.65),
)


def _oriented(mask: np.ndarray[Any, Any], affine: Any) -> Any:
    """A mask as an oriented image with unsigned char voxels."""
    import vtk

    source = node_from_map(mask, affine, "")
    cast = vtk.vtkImageCast()
    cast.SetInputData(source.GetImageData())
    cast.SetOutputScalarTypeToUnsignedChar()
    cast.Update()
    oriented = slicer.vtkOrientedImageData()
    oriented.DeepCopy(cast.GetOutput())
    matrix = vtk.vtkMatrix4x4()
    source.GetIJKToRASMatrix(matrix)
    oriented.SetGeometryFromImageToWorldMatrix(matrix)
    return oriented
