"""Scenes, volumes and explanations made by hand, for the tests of the scene floor."""

from __future__ import annotations

import numpy as np
import slicer

from SaliencyExplainLib.explanation import Explanation
from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.regions import RegionTable, region_table
from SaliencyExplainLib.scene.nodes import node_from_map

SHAPE = (6, 7, 8)


def an_affine(left_handed: bool = True) -> np.ndarray:
    """Oblique (25 and 15 degrees), anisotropic (0.7, 1.1, 3.3 mm) and, if asked, mirrored."""
    a, b = np.radians(25), np.radians(15)
    about_s = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_r = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    spacing = np.diag([-0.7 if left_handed else 0.7, 1.1, 3.3])
    affine = np.eye(4)
    affine[:3, :3] = about_s @ about_r @ spacing
    affine[:3, 3] = (-11.5, 20.25, 33.125)
    return affine


def a_map(channels: int = 1, seed: int = 0, scale: float = 1e-3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(channels, *SHAPE)).astype(
        np.float32
    ) * np.float32(scale)


def an_explanation(
    voxels: np.ndarray | None = None, affine: np.ndarray | None = None, **fields
) -> Explanation:
    image = make_image(
        a_map() if voxels is None else voxels, an_affine() if affine is None else affine
    )
    values = {
        "maps": image,
        "network_maps": image,
        "value": 2.5,
        "target": {
            "output": 1,
            "output_name": "tumor",
            "region": "prediction",
            "region_voxels": 42,
            "score": "logit",
            "reduce": "mean",
            "unit": "output unit",
        },
        "method": "integrated_gradients",
        "title": "Integrated gradients",
        "parameters": {"steps": 20, "baseline": "blur"},
        "signed": True,
        "completeness_error": 0.0125,
        "warnings": ('A "quoted" warning; with a colon: and é.',),
        "seconds": 1.5,
        "peak_memory_mb": 12.0,
        "model": {"name": "demo.pt", "format": "torch"},
        "versions": {"torch": "2"},
    }
    return Explanation(**(values | fields))


def an_input(
    scene: slicer.vtkMRMLScene, affine: np.ndarray | None = None, name: str = "CT"
) -> slicer.vtkMRMLScalarVolumeNode:
    voxels = np.random.default_rng(5).normal(size=SHAPE).astype(np.float32)
    return scene.AddNode(node_from_map(voxels, an_affine() if affine is None else affine, name))


def some_regions(explanation: Explanation) -> RegionTable:
    labels = np.zeros(SHAPE, dtype=np.float32)
    labels[1:3], labels[4:, 2:] = 1, 2
    names = {1: 'left "amygdala"', 2: "tumor, core", 7: "absent"}
    return region_table(explanation, make_image(labels, explanation.maps.affine), names)


def a_transform(
    scene: slicer.vtkMRMLScene, matrix: np.ndarray
) -> slicer.vtkMRMLLinearTransformNode:
    node = scene.AddNode(slicer.vtkMRMLLinearTransformNode())
    node.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    return node


def a_warp(scene: slicer.vtkMRMLScene) -> slicer.vtkMRMLTransformNode:
    """A non-linear transform (thin plate spline with one moved point)."""
    import vtk

    here, there = vtk.vtkPoints(), vtk.vtkPoints()
    for index, corner in enumerate(np.ndindex(2, 2, 2)):
        point = np.array(corner, dtype=float) * 40 - 20
        here.InsertNextPoint(point)
        there.InsertNextPoint(point + (np.array([3.0, 1.0, 0.0]) if index == 0 else 0))
    warp = vtk.vtkThinPlateSplineTransform()
    warp.SetBasisToR()
    warp.SetSourceLandmarks(here)
    warp.SetTargetLandmarks(there)
    node = scene.AddNode(slicer.vtkMRMLTransformNode())
    node.SetAndObserveTransformToParent(warp)
    return node


def a_segmentation(
    scene: slicer.vtkMRMLScene, masks: dict[str, np.ndarray], affine: np.ndarray
) -> slicer.vtkMRMLSegmentationNode:
    """A segmentation with one binary label map a segment; masks have the shape (I, J, K)."""
    import vtk
    from vtk.util import numpy_support

    node = scene.AddNode(slicer.vtkMRMLSegmentationNode())
    node.SetName("Segmentation")
    for name, mask in masks.items():
        image = slicer.vtkOrientedImageData()
        image.SetDimensions(*mask.shape)
        image.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(affine))
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())[:] = mask.transpose(
            2, 1, 0
        ).ravel()
        segment = slicer.vtkSegment()
        segment.SetName(name)
        segment.AddRepresentation("Binary labelmap", image)
        node.GetSegmentation().AddSegment(segment, f"id_{name}")
    return node


def node_ids(scene: slicer.vtkMRMLScene) -> list[str]:
    return [scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())]


def hierarchy(scene: slicer.vtkMRMLScene) -> dict[str, list[str]]:
    """Names of the folders with the names of what they hold."""
    import vtk

    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    items = vtk.vtkIdList()
    tree.GetItemChildren(tree.GetSceneItemID(), items, True)
    found: dict[str, list[str]] = {}
    for index in range(items.GetNumberOfIds()):
        item = items.GetId(index)
        found.setdefault(tree.GetItemName(tree.GetItemParent(item)), []).append(
            tree.GetItemName(item)
        )
    return found
