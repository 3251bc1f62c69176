"""Nodes become images, label maps and places."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import vtk
from scene_cases import SHAPE, a_segmentation, a_transform, a_warp, an_affine, an_input, node_ids
from vtk.util import numpy_support

from SaliencyExplainLib.errors import ImageError, SceneError
from SaliencyExplainLib.image import make_image, ras_to_ijk, to_ras
from SaliencyExplainLib.scene import (
    image_from_node,
    image_from_nodes,
    labelmap_from_node,
    labelmap_from_segmentation,
    mask_from_segment,
    new_scene,
    point_from_node,
    release_scene,
    roi_from_node,
    scene_or_default,
)
from SaliencyExplainLib.scene.nodes import ijk_to_ras


@pytest.fixture
def scene():
    one = new_scene()
    yield one
    release_scene(one)


def _mask(*slices):
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[slices] = 1
    return mask


LEFT, RIGHT = _mask(slice(0, 2)), _mask(slice(3, 6), slice(2, 5))


# -- volumes ---------------------------------------------------------------------------------------


def test_a_volume_becomes_an_image_with_the_same_voxels_at_the_same_place(scene):
    volume = an_input(scene)
    image = image_from_node(volume)
    assert image.shape == (1, *SHAPE)
    array = slicer.util.arrayFromVolume(volume)
    assert float(image[0, 1, 2, 3]) == pytest.approx(float(array[3, 2, 1]))
    np.testing.assert_allclose(image.affine, ijk_to_ras(volume), atol=0)
    np.testing.assert_allclose(image.affine, an_affine(), atol=1e-12)


def test_an_image_is_a_copy(scene):
    volume = an_input(scene)
    image_from_node(volume)[:] = 0
    assert slicer.util.arrayFromVolume(volume).any()


@pytest.mark.parametrize("kind", [vtk.VTK_SHORT, vtk.VTK_UNSIGNED_CHAR, vtk.VTK_DOUBLE])
def test_all_voxel_types_become_float32(scene, kind):
    data = vtk.vtkImageData()
    data.SetDimensions(2, 3, 4)
    data.AllocateScalars(kind, 1)
    data.GetPointData().GetScalars().Fill(7)
    volume = scene.AddNode(slicer.vtkMRMLScalarVolumeNode())
    volume.SetAndObserveImageData(data)
    assert image_from_node(volume).as_tensor().unique().tolist() == [7.0]


def test_the_components_of_a_vector_volume_become_channels(scene):
    data = vtk.vtkImageData()
    data.SetDimensions(2, 3, 4)
    data.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    values = np.arange(4 * 3 * 2 * 3, dtype=np.uint8).reshape(4, 3, 2, 3)
    numpy_support.vtk_to_numpy(data.GetPointData().GetScalars())[:] = values.reshape(-1, 3)
    volume = scene.AddNode(slicer.vtkMRMLVectorVolumeNode())
    volume.SetAndObserveImageData(data)
    np.testing.assert_array_equal(
        image_from_node(volume).as_tensor().numpy(), values.transpose(3, 2, 1, 0)
    )


def test_several_volumes_become_channels_in_their_order(scene):
    first, second = an_input(scene, name="FLAIR"), an_input(scene, name="T1")
    slicer.util.arrayFromVolume(second)[:] = 3
    image = image_from_nodes([first, second])
    assert image.shape == (2, *SHAPE)
    assert image[1].unique().tolist() == [3.0]


def test_a_volume_on_another_grid_is_interpolated_onto_the_first_ones_and_told(scene):
    first = an_input(scene, name="FLAIR")
    shifted = np.array(an_affine()) @ an_offset(1, 0, 0)
    second = an_input(scene, shifted, "T1")
    image = image_from_nodes([first, second])
    np.testing.assert_allclose(image.affine, an_affine())
    voxels = image_from_node(second)[0]
    np.testing.assert_allclose(image[1][1:], voxels[:-1], rtol=1e-4, atol=1e-4)
    assert image.meta["notes"][0].startswith("T1 was interpolated onto the grid of FLAIR, of which")
    far = an_input(scene, np.array(an_affine()) @ an_offset(900, 0, 0), "T2")
    with pytest.raises(ImageError, match="'T2' and 'FLAIR' do not overlap in space"):
        image_from_nodes([first, far])


def test_a_linear_transform_between_two_volumes_is_respected(scene):
    first, second = an_input(scene, name="FLAIR"), an_input(scene, name="T1")
    there = np.array(an_affine()) @ an_offset(1, 0, 0) @ np.linalg.inv(an_affine())
    # Moved by its transform to where a volume one voxel further on would lie.
    second.SetAndObserveTransformNodeID(a_transform(scene, there).GetID())
    image = image_from_nodes([first, second])
    np.testing.assert_allclose(image[1][1:], image_from_node(second)[0][:-1], rtol=1e-4, atol=1e-4)
    # The other way round, the first one's transform is taken off.
    back = image_from_nodes([second, first])
    np.testing.assert_allclose(back.affine, an_affine())
    np.testing.assert_allclose(back[1][:-1], image_from_node(first)[0][1:], rtol=1e-4, atol=1e-4)


def test_a_non_linear_transform_between_two_volumes_is_refused(scene):
    first, second = an_input(scene, name="FLAIR"), an_input(scene, name="T1")
    second.SetAndObserveTransformNodeID(a_warp(scene).GetID())
    with pytest.raises(SceneError, match=r"that of 'T1' is not linear\. Harden it"):
        image_from_nodes([first, second])
    first.SetAndObserveTransformNodeID(second.GetTransformNodeID())
    assert image_from_nodes([first, second]).shape == (2, *SHAPE)


def an_offset(*voxels: float) -> np.ndarray:
    moved = np.eye(4)
    moved[:3, 3] = voxels
    return moved


def test_what_is_no_volume_or_holds_no_voxels_is_refused(scene):
    with pytest.raises(SceneError, match="nothing was given"):
        image_from_node(None)
    with pytest.raises(SceneError, match="vtkMRMLTableNode"):
        image_from_node(scene.AddNode(slicer.vtkMRMLTableNode()))
    with pytest.raises(SceneError, match="holds no voxels"):
        image_from_node(scene.AddNode(slicer.vtkMRMLScalarVolumeNode()))
    with pytest.raises(SceneError, match="No volume was given"):
        image_from_nodes([])


# -- segments --------------------------------------------------------------------------------------


def test_segments_become_labels_in_their_order_without_touching_the_scene(scene):
    volume = an_input(scene)
    node = a_segmentation(scene, {"left": LEFT, "right": RIGHT}, an_affine())
    before = node_ids(scene)
    segments = labelmap_from_segmentation(node, volume)
    labelmap, names, ids, warnings = (segments.labelmap, *segments[1:])
    assert names == {1: "left", 2: "right"}
    assert ids == {1: "id_left", 2: "id_right"}
    assert warnings == ()
    np.testing.assert_array_equal(labelmap.as_tensor()[0].numpy(), LEFT + 2 * RIGHT)
    np.testing.assert_allclose(labelmap.affine, an_affine(), atol=1e-12)
    assert node_ids(scene) == before


def test_an_image_serves_as_reference_too(scene):
    node = a_segmentation(scene, {"left": LEFT}, an_affine())
    labelmap = labelmap_from_segmentation(node, make_image(np.zeros(SHAPE), an_affine())).labelmap
    np.testing.assert_array_equal(labelmap.as_tensor()[0].numpy(), LEFT)


def test_where_segments_overlap_the_later_one_wins_and_it_is_told(scene):
    wide = _mask(slice(1, 5))
    node = a_segmentation(scene, {"left": LEFT, "wide": wide}, an_affine())
    result = labelmap_from_segmentation(node, an_input(scene))
    np.testing.assert_array_equal(result.labelmap.as_tensor()[0].numpy(), np.where(wide, 2, LEFT))
    assert result.warnings == (
        "56 voxels lie in 'left' and in 'wide'; they are counted as 'wide'.",
    )


def test_one_segment_is_read_whole_even_where_others_overlap_it(scene):
    node = a_segmentation(scene, {"left": LEFT, "wide": _mask(slice(1, 5))}, an_affine())
    mask = mask_from_segment(node, "id_left", an_input(scene))
    np.testing.assert_array_equal(mask.as_tensor()[0].numpy(), LEFT)


def test_segments_that_share_one_layer_are_told_apart(scene):
    node = a_segmentation(scene, {"left": LEFT, "right": RIGHT}, an_affine())
    node.GetSegmentation().CollapseBinaryLabelmaps(False)
    assert node.GetSegmentation().GetNumberOfLayers() == 1
    labelmap = labelmap_from_segmentation(node, an_input(scene)).labelmap
    np.testing.assert_array_equal(labelmap.as_tensor()[0].numpy(), LEFT + 2 * RIGHT)


def test_a_segment_on_a_finer_grid_lands_at_its_place(scene):
    fine = an_affine() @ np.diag([0.5, 0.5, 0.5, 1])
    fine[:3, 3] = to_ras(an_affine(), [-0.25, -0.25, -0.25])
    finer = RIGHT.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    node = a_segmentation(scene, {"right": finer}, fine)
    labelmap = labelmap_from_segmentation(node, an_input(scene)).labelmap
    np.testing.assert_array_equal(labelmap.as_tensor()[0].numpy(), RIGHT)


def test_a_segment_partly_outside_the_volume_is_cut(scene):
    moved = an_affine()
    moved[:3, 3] = to_ras(an_affine(), [-1, 0, 0])
    node = a_segmentation(scene, {"left": LEFT}, moved)
    labelmap = labelmap_from_segmentation(node, an_input(scene)).labelmap
    np.testing.assert_array_equal(labelmap.as_tensor()[0].numpy(), _mask(slice(0, 1)))


def test_an_empty_segment_is_told(scene):
    node = a_segmentation(scene, {"left": LEFT, "nothing": np.zeros(SHAPE, np.uint8)}, an_affine())
    assert labelmap_from_segmentation(node, an_input(scene)).warnings == (
        "The segment 'nothing' has no voxel in the volume.",
    )


def _shift(voxels_i: int) -> np.ndarray:
    """A world transform that moves by whole voxels along i."""
    matrix = np.eye(4)
    matrix[:3, 3] = an_affine()[:3, 0] * voxels_i
    return matrix


def test_the_parent_transforms_of_segmentation_and_volume_are_respected(scene):
    volume = an_input(scene)
    node = a_segmentation(scene, {"left": LEFT}, an_affine())
    shift = a_transform(scene, _shift(2))
    node.SetAndObserveTransformNodeID(shift.GetID())
    labelmap = labelmap_from_segmentation(node, volume).labelmap
    np.testing.assert_array_equal(labelmap.as_tensor()[0].numpy(), _mask(slice(2, 4)))
    volume.SetAndObserveTransformNodeID(shift.GetID())
    labelmap = labelmap_from_segmentation(node, volume).labelmap
    np.testing.assert_array_equal(labelmap.as_tensor()[0].numpy(), LEFT)
    node.SetAndObserveTransformNodeID(None)
    labelmap = labelmap_from_segmentation(node, volume).labelmap
    assert not labelmap.as_tensor().any()


def test_under_one_non_linear_transform_nothing_moves(scene):
    volume = an_input(scene)
    node = a_segmentation(scene, {"left": LEFT}, an_affine())
    warp = a_warp(scene)
    node.SetAndObserveTransformNodeID(warp.GetID())
    volume.SetAndObserveTransformNodeID(warp.GetID())
    labelmap = labelmap_from_segmentation(node, volume).labelmap
    np.testing.assert_array_equal(labelmap.as_tensor()[0].numpy(), LEFT)


def test_a_segmentation_made_of_surfaces_is_read_and_left_alone(scene):
    node = scene.AddNode(slicer.vtkMRMLSegmentationNode())
    node.SetName("Surfaces")
    sphere = vtk.vtkSphereSource()
    sphere.SetRadius(3)
    sphere.SetThetaResolution(48)
    sphere.SetPhiResolution(48)
    center = to_ras(np.eye(4), [10, 10, 10])
    sphere.SetCenter(*center)
    sphere.Update()
    segment = slicer.vtkSegment()
    segment.SetName("ball")
    segment.AddRepresentation("Closed surface", sphere.GetOutput())
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    node.GetSegmentation().AddSegment(segment, "ball")
    reference = make_image(np.zeros((20, 20, 20)), np.eye(4))
    labelmap = labelmap_from_segmentation(node, reference).labelmap
    assert float(labelmap.as_tensor().sum()) == pytest.approx(4 / 3 * np.pi * 27, rel=0.1)
    assert not node.GetSegmentation().ContainsRepresentation("Binary labelmap")


def test_wrong_or_empty_segmentations_are_refused(scene):
    volume = an_input(scene)
    with pytest.raises(SceneError, match="A segmentation is needed; nothing"):
        labelmap_from_segmentation(None, volume)
    with pytest.raises(SceneError, match="has no segments"):
        labelmap_from_segmentation(scene.AddNode(slicer.vtkMRMLSegmentationNode()), volume)
    node = a_segmentation(scene, {"left": LEFT}, an_affine())
    with pytest.raises(SceneError, match=r"no segment 'gone'. It has: 'id_left'"):
        mask_from_segment(node, "gone", volume)


def test_a_label_map_node_gives_its_labels_and_the_names_of_its_colors(scene):
    node = scene.AddNode(slicer.vtkMRMLLabelMapVolumeNode())
    data = vtk.vtkImageData()
    data.SetDimensions(2, 3, 4)
    data.AllocateScalars(vtk.VTK_SHORT, 1)
    numpy_support.vtk_to_numpy(data.GetPointData().GetScalars())[:] = np.arange(24) % 4
    node.SetAndObserveImageData(data)
    colors = scene.AddNode(slicer.vtkMRMLColorTableNode())
    colors.SetTypeToUser()
    colors.SetNumberOfColors(3)
    colors.SetColor(1, "bone", 1, 1, 1, 1)
    colors.SetColor(2, "fat", 1, 1, 0, 1)
    display = scene.AddNode(slicer.vtkMRMLLabelMapVolumeDisplayNode())
    display.SetAndObserveColorNodeID(colors.GetID())
    node.SetAndObserveDisplayNodeID(display.GetID())
    result = labelmap_from_node(node)
    assert result.names == {1: "bone", 2: "fat", 3: "segment 3"}
    assert result.labelmap.shape == (1, 2, 3, 4)
    with pytest.raises(SceneError, match="label map volume is needed"):
        labelmap_from_node(an_input(scene))


# -- markups ---------------------------------------------------------------------------------------


def _roi(scene, center, size, matrix=None):
    node = scene.AddNode(slicer.vtkMRMLMarkupsROINode())
    node.SetName("R")
    node.SetCenter(*center)
    node.SetSize(*size)
    if matrix is not None:
        node.SetAndObserveTransformNodeID(a_transform(scene, matrix).GetID())
    return node


def test_a_roi_along_the_axes_is_a_box(scene):
    roi = roi_from_node(_roi(scene, (1, 2, 3), (2, 4, 6)), an_input(scene))
    np.testing.assert_allclose(roi.box_ras_mm, [(0, 0, 0), (2, 4, 6)], atol=1e-9)
    assert roi.mask is None
    assert roi.target_fields() == {"region": "roi", "roi_ras_mm": roi.box_ras_mm}


def test_a_roi_under_a_scaling_quarter_turn_is_still_a_box(scene):
    matrix = np.array([[0, -2.0, 0, 5], [2, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
    box = roi_from_node(_roi(scene, (1, 2, 3), (2, 4, 6), matrix), an_input(scene)).box_ras_mm
    # Corners (0, 0, 0) and (2, 4, 6) go to (5, 0, 0) and (-3, 4, 12).
    np.testing.assert_allclose(box, [(-3, 0, 0), (5, 4, 12)], atol=1e-9)


def test_a_turned_roi_is_a_mask_on_the_volumes_grid(scene):
    turn = an_affine()
    turn[:3, :3] /= np.linalg.norm(turn[:3, :3], axis=0)
    # In the turned frame the voxels are a plain grid, so the expected mask is known by index.
    middle = np.linalg.inv(turn) @ [*to_ras(an_affine(), [2, 3, 4]), 1]
    node = _roi(scene, middle[:3], (3 * 0.7, 1 * 1.1, 5 * 3.3), turn)
    roi = roi_from_node(node, an_input(scene))
    assert roi.box_ras_mm is None
    np.testing.assert_array_equal(
        roi.mask.as_tensor()[0].numpy(), _mask(slice(1, 4), slice(3, 4), slice(2, 7))
    )
    assert roi.target_fields()["region"] == "segment"


def test_the_volumes_transform_is_taken_off_a_roi_and_a_point(scene):
    volume = an_input(scene)
    matrix = np.eye(4)
    matrix[:3, 3] = (10, 20, 30)
    volume.SetAndObserveTransformNodeID(a_transform(scene, matrix).GetID())
    box = roi_from_node(_roi(scene, (10, 20, 30), (2, 2, 2)), volume).box_ras_mm
    np.testing.assert_allclose(box, [(-1, -1, -1), (1, 1, 1)], atol=1e-9)
    points = scene.AddNode(slicer.vtkMRMLMarkupsFiducialNode())
    points.AddControlPointWorld(vtk.vtkVector3d(11, 22, 33))
    np.testing.assert_allclose(point_from_node(points, volume), (1, 2, 3), atol=1e-9)


def test_a_point_under_a_transform_of_its_own_is_read_where_it_is_seen(scene):
    points = scene.AddNode(slicer.vtkMRMLMarkupsFiducialNode())
    points.AddControlPoint(vtk.vtkVector3d(*to_ras(an_affine(), [1, 2, 3])))
    points.SetAndObserveTransformNodeID(a_transform(scene, _shift(2)).GetID())
    point = point_from_node(points, an_input(scene))
    np.testing.assert_allclose(ras_to_ijk(an_affine(), point), [3, 2, 3], atol=1e-9)


def test_a_point_comes_back_through_a_non_linear_transform(scene):
    volume, warp = an_input(scene), a_warp(scene)
    volume.SetAndObserveTransformNodeID(warp.GetID())
    inside = to_ras(an_affine(), [1, 2, 3])
    seen = warp.GetTransformToParent().TransformPoint(inside)
    assert np.linalg.norm(np.array(seen) - inside) > 0.05
    points = scene.AddNode(slicer.vtkMRMLMarkupsFiducialNode())
    points.AddControlPointWorld(vtk.vtkVector3d(*seen))
    # The inverse of a thin plate spline is found by iteration (tolerance 0.001 mm in VTK).
    np.testing.assert_allclose(point_from_node(points, volume), inside, atol=0.01)


def test_markups_that_say_nothing_are_refused(scene):
    volume = an_input(scene)
    with pytest.raises(SceneError, match="has no volume"):
        roi_from_node(_roi(scene, (0, 0, 0), (0, 1, 1)), volume)
    with pytest.raises(SceneError, match="markups ROI is needed"):
        roi_from_node(volume, volume)
    with pytest.raises(SceneError, match="0 placed points"):
        point_from_node(scene.AddNode(slicer.vtkMRMLMarkupsFiducialNode()), volume)
    with pytest.raises(SceneError, match="markups point is needed"):
        point_from_node(volume, volume)
    volume.SetAndObserveTransformNodeID(a_warp(scene).GetID())
    with pytest.raises(SceneError, match=r"non-linear transform.*no box"):
        roi_from_node(_roi(scene, (0, 0, 0), (1, 1, 1)), volume)


# -- host ------------------------------------------------------------------------------------------


def test_the_scene_is_the_given_one_else_slicers_else_a_new_one(scene, monkeypatch):
    assert scene_or_default(scene) is scene
    monkeypatch.delattr(slicer, "mrmlScene", raising=False)
    made = scene_or_default()
    assert slicer.mrmlScene is made
    assert scene_or_default() is made
    release_scene(made)
    assert not hasattr(slicer, "mrmlScene")
    with pytest.raises(SceneError, match="vtkMRMLScene is needed; str"):
        scene_or_default("scene")


def test_a_released_scene_is_freed():
    one = new_scene()
    held = one.GetReferenceCount()
    release_scene(one)
    assert held > 1
    assert one.GetReferenceCount() == 1
