"""How alike two map nodes are, as numbers; needs no torch."""

from dataclasses import dataclass

import numpy as np
import slicer
import vtk
from vtk.util import numpy_support

#: Part of the voxels that counts as the strongest.
STRONGEST = 0.05
# Ranks of more voxels take seconds and change the third digit only.
_MOST_VOXELS = 400_000


@dataclass(frozen=True)
class Similarity:
    """Two maps compared on the grid of the first.

    spearman - rank correlation of the values, -1 to 1, NaN where a map is constant
    overlap - intersection over union of the 5 % strongest |values|, 0 to 1, NaN without any
    voxels - number of voxels that were compared
    """

    spearman: float
    overlap: float
    voxels: int


def similarity(first, second):
    """Compare two map nodes on the voxels of the first that lie inside the second.

    The nearest voxel of the second is taken. None where they do not overlap or lie under different
    transforms that are not linear.
    """
    matrix = _ijk_to_ijk(first, second)
    if matrix is None:
        return None
    a, b = _voxels(first), _voxels(second)
    step = max(1, int(np.ceil((a.size / _MOST_VOXELS) ** (1 / 3))))
    grid = np.stack(
        np.meshgrid(*(np.arange(0, count, step) for count in a.shape), indexing="ij"), axis=-1
    ).reshape(-1, 3)
    there = np.rint(grid @ matrix[:3, :3].T + matrix[:3, 3]).astype(int)
    inside = ((there >= 0) & (there < b.shape)).all(axis=1)
    if not inside.any():
        return None
    return compare(a[tuple(grid[inside].T)], b[tuple(there[inside].T)])


def compare(first, second):
    """Compare values that belong together, shape (N,)."""
    # Only when two maps are compared: the panel opens without it.
    from SaliencyExplainLib.quality.similarity import spearman, top_k_iou

    return Similarity(
        spearman(first, second),
        top_k_iou(first, second, fraction=STRONGEST),
        int(first.size),
    )


def _voxels(node):
    image = node.GetImageData()
    flat = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    return flat.reshape(tuple(reversed(image.GetDimensions()))).transpose(2, 1, 0)


def _ijk_to_ijk(first, second):
    """Voxel indices of the first to those of the second, shape (4, 4)."""
    between = vtk.vtkMatrix4x4()
    parents = [node.GetParentTransformNode() for node in (first, second)]
    if parents[0] is not parents[1]:
        linear = all(one is None or one.IsTransformToWorldLinear() for one in parents)
        if not linear:
            return None
        slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(*parents, between)
    to_ras, to_ijk = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    first.GetIJKToRASMatrix(to_ras)
    second.GetRASToIJKMatrix(to_ijk)
    as_array = slicer.util.arrayFromVTKMatrix
    return as_array(to_ijk) @ as_array(between) @ as_array(to_ras)
