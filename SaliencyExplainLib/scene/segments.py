"""Segmentation nodes and label map nodes become label maps on the grid of a volume.

Segment by segment, through oriented images in memory: exporting several at once lets the last one
swallow the others, and temporary nodes flicker in the selectors and mark the scene as changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import vtk
from vtk.util import numpy_support

from ..errors import SceneError
from ..volume import Volume
from .host import enable_conversions, slicer
from .nodes import ijk_to_ras, title_of, transform_between, volume_from_node

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from numpy.typing import NDArray

__all__ = [
    "Segments",
    "labelmap_from_node",
    "labelmap_from_segmentation",
    "mask_from_segment",
    "volume_from_segment",
]

_BINARY = "Binary labelmap"


class Segments(NamedTuple):
    """A label map with what its numbers mean.

    Attributes
    ----------
    volume : Volume, shape (1, I, J, K)
        0 is outside, otherwise the label of the segment.
    names : dict of int to str
        Name of each label, in the order of the segments.
    ids : dict of int to str
        Segment ID of each label; empty for a label map node.
    warnings : tuple of str
        Overlaps and empty segments.
    """

    volume: Volume
    names: dict[int, str]
    ids: dict[int, str]
    warnings: tuple[str, ...]

    @property
    def labelmap(self) -> MetaTensor:
        """The same label map as an image (MetaTensor); needs torch."""
        image: MetaTensor = self.volume.as_image()
        return image


def labelmap_from_segmentation(
    node: slicer.vtkMRMLSegmentationNode,
    reference: Volume | MetaTensor | slicer.vtkMRMLVolumeNode,
    segment_ids: Sequence[str] | None = None,
) -> Segments:
    """Read segments into one label map on the grid of a volume: labels 1, 2, ... in their order.

    Where segments overlap the later one wins, and a warning says how many voxels the earlier one
    lost.

    Parameters
    ----------
    node : vtkMRMLSegmentationNode
        May have a parent transform, also a non-linear one.
    reference : vtkMRMLVolumeNode, Volume or MetaTensor
        Whose grid is taken. A node's parent transform is respected; an image is taken to lie in
        world RAS.
    segment_ids : sequence of str, optional
        Which segments; all when left out.

    Raises
    ------
    SceneError
        If it is no segmentation, has no segments, or lacks one of the given ones.
    """
    segmentation = _segmentation(node)
    known = list(segmentation.GetSegmentIDs())
    chosen = known if segment_ids is None else list(segment_ids)
    if not chosen:
        raise SceneError(
            f"The segmentation {title_of(node)} has no segments. Add one in the Segment Editor."
        )
    reader = _Reader(node, reference)
    labels = np.zeros(reader.shape, dtype=np.float32)
    names, ids, warnings = {}, {}, []
    for label, segment_id in enumerate(chosen, start=1):
        mask = reader.mask(segment_id)
        names[label], ids[label] = _segment_name(segmentation, segment_id), segment_id
        if not mask.any():
            warnings.append(f"The segment {names[label]!r} has no voxel in the volume.")
        covered = labels[mask]
        for earlier in np.unique(covered[covered > 0]).astype(int).tolist():
            lost = int((covered == earlier).sum())
            warnings.append(
                f"{lost} voxels lie in {names[earlier]!r} and in {names[label]!r}; they are "
                f"counted as {names[label]!r}."
            )
        labels[mask] = label
    return Segments(
        Volume(labels, reader.affine, node.GetName() or ""), names, ids, tuple(warnings)
    )


def volume_from_segment(
    node: slicer.vtkMRMLSegmentationNode,
    segment_id: str,
    reference: Volume | MetaTensor | slicer.vtkMRMLVolumeNode,
) -> Volume:
    """Read one whole segment as a mask of 0 and 1, shape (1, I, J, K), on the grid of a volume.

    Raises
    ------
    SceneError
        If the segment does not exist.
    """
    reader = _Reader(node, reference)
    return Volume(reader.mask(segment_id).astype(np.float32), reader.affine, segment_id)


def mask_from_segment(
    node: slicer.vtkMRMLSegmentationNode,
    segment_id: str,
    reference: Volume | MetaTensor | slicer.vtkMRMLVolumeNode,
) -> MetaTensor:
    """Read one segment as an image (MetaTensor): :func:`volume_from_segment` for the engine."""
    image: MetaTensor = volume_from_segment(node, segment_id, reference).as_image()
    return image


def labelmap_from_node(node: slicer.vtkMRMLLabelMapVolumeNode) -> Segments:
    """Read a label map node on its own grid; the names come from its colour table.

    Raises
    ------
    SceneError
        If it is no label map, or holds negative values or fractions.
    """
    if not isinstance(node, slicer.vtkMRMLLabelMapVolumeNode):
        raise SceneError(
            f"A label map volume is needed; {type(node).__name__} was given. Choose a label map."
        )
    labelmap = volume_from_node(node)
    found = np.unique(labelmap.voxels)
    if found.min() < 0 or not np.array_equal(found, np.round(found)):
        raise SceneError(
            f"The label map {title_of(node)} holds negative values or fractions. Choose a label "
            "map of whole numbers."
        )
    colors = node.GetDisplayNode().GetColorNode() if node.GetDisplayNode() else None
    names = {label: _label_name(colors, label) for label in found.astype(int).tolist() if label}
    return Segments(labelmap, names, {}, ())


class _Reader:
    """Puts segments of one segmentation node onto one grid."""

    def __init__(self, node: slicer.vtkMRMLSegmentationNode, reference: Any) -> None:
        self.node, self.segmentation = node, _segmentation(node)
        volume = reference if isinstance(reference, slicer.vtkMRMLVolumeNode) else None
        if volume is not None:
            if volume.GetImageData() is None:
                raise SceneError(
                    f"The volume {title_of(volume)} holds no voxels. Choose another one."
                )
            self.affine, self.shape = (
                ijk_to_ras(volume),
                tuple(volume.GetImageData().GetDimensions()),
            )
        else:
            self.affine, self.shape = (
                np.asarray(reference.affine, dtype=np.float64),
                tuple(reference.shape[1:]),
            )
        self.transform = transform_between(node, volume)
        self.grid = slicer.vtkOrientedImageData()
        self.grid.SetExtent(0, self.shape[0] - 1, 0, self.shape[1] - 1, 0, self.shape[2] - 1)
        self.grid.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(self.affine))
        self.grid.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        self.source = _with_labelmaps(self.segmentation)

    def mask(self, segment_id: str) -> NDArray[np.bool_]:
        """Voxels of one segment, shape (I, J, K)."""
        segment = self.source.GetSegment(segment_id)
        if segment is None:
            known = ", ".join(f"{one!r}" for one in self.segmentation.GetSegmentIDs())
            raise SceneError(
                f"The segmentation {title_of(self.node)} has no segment {segment_id!r}. It has: "
                f"{known}."
            )
        shared = segment.GetRepresentation(_BINARY)
        if shared is None or shared.IsEmpty():
            return np.zeros(self.shape, dtype=bool)
        single = slicer.vtkOrientedImageData()
        single.DeepCopy(shared)
        _keep_only(single, segment.GetLabelValue())
        moved = slicer.vtkOrientedImageData()
        done = slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
            single, self.grid, moved, False, False, self.transform, 0
        )
        if not done:
            raise SceneError(
                f"The segment {segment_id!r} could not be brought onto the volume's grid. Check "
                "both transforms."
            )
        return _on_extent(moved, self.shape)


def _segmentation(node: Any) -> Any:
    if not isinstance(node, slicer.vtkMRMLSegmentationNode):
        kind = "nothing" if node is None else type(node).__name__
        raise SceneError(
            f"A segmentation is needed; {kind} was given. Choose one, or make it in the Segment "
            "Editor."
        )
    return node.GetSegmentation()


def _with_labelmaps(segmentation: Any) -> Any:
    """Return the segmentation, or a copy with label maps made from its surfaces."""
    if segmentation.ContainsRepresentation(_BINARY):
        return segmentation
    enable_conversions()
    copy = slicer.vtkSegmentation()
    copy.DeepCopy(segmentation)
    if segmentation.GetNumberOfSegments() and not copy.CreateRepresentation(_BINARY):
        raise SceneError(
            "The segmentation has no binary label map and none could be made from it. "
            "Create one in the Segmentations module (Representations, Binary labelmap, Create)."
        )
    return copy


def _keep_only(image: Any, label: int) -> None:
    scalars = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    scalars[:] = scalars == label


def _on_extent(image: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Voxels of an oriented image as (I, J, K), checked to cover the grid."""
    if tuple(image.GetDimensions()) != tuple(shape):
        raise SceneError(
            f"A segment came back with {image.GetDimensions()} voxels instead of {shape}. Please "
            "report this."
        )
    values = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    return np.asarray(values.reshape(tuple(reversed(shape))).transpose(2, 1, 0) > 0)


def _segment_name(segmentation: Any, segment_id: str) -> str:
    segment = segmentation.GetSegment(segment_id)
    return (segment.GetName() if segment is not None else "") or segment_id


def _label_name(colors: Any, label: int) -> str:
    name = (
        colors.GetColorName(label)
        if colors is not None and label < colors.GetNumberOfColors()
        else ""
    )
    return name if name and name != "(none)" else f"segment {label}"
