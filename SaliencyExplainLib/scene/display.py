"""What people see after a run: map over anatomy, a legend, the slices at the peak.

Slice views are described by nodes of the scene, so most of this works without the application too;
what needs its windows is guarded, as the application may run without any (``--no-main-window``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import SceneError
from ..volume import to_ras
from .host import in_app, scene_or_default, slicer
from .nodes import title_of, transform_between, volume_from_node

if TYPE_CHECKING:
    from .publishing import Published

__all__ = [
    "OPACITY",
    "Layers",
    "jump_to",
    "jump_to_peak",
    "peak_world_ras",
    "restore_layers",
    "show_legend",
    "show_over",
    "show_results",
]

#: Opacity of the map: strong enough for the colours, the anatomy stays readable.
OPACITY = 0.6


@dataclass(frozen=True)
class Layers:
    """What one slice view showed: IDs of its node and volumes, and the foreground's opacity."""

    view_id: str
    background_id: str | None
    foreground_id: str | None
    opacity: float


def show_results(
    published: Published, scene: slicer.vtkMRMLScene | None = None, background: Any = None
) -> tuple[Layers, ...]:
    """Lay the first map over `background`, add a legend and go to the peak.

    Returns what the views showed before.
    """
    volume = published.volumes[0]
    before = show_over(volume, background, scene=scene)
    show_legend(volume, title=volume.GetAttribute("SaliencyExplain.title") or "")
    jump_to_peak(volume, scene)
    return before


def show_over(
    volume: slicer.vtkMRMLVolumeNode,
    background: slicer.vtkMRMLVolumeNode | None = None,
    opacity: float = OPACITY,
    scene: slicer.vtkMRMLScene | None = None,
) -> tuple[Layers, ...]:
    """Show a map as foreground of all slice views.

    Parameters
    ----------
    volume : vtkMRMLVolumeNode
        The map.
    background : vtkMRMLVolumeNode, optional
        The anatomy; what is there stays when left out.
    opacity : float
        0 to 1.
    scene : vtkMRMLScene, optional
        The current one when left out.

    Returns
    -------
    tuple of Layers
        What each view showed before, for :func:`restore_layers`. Empty when there are no views.

    Raises
    ------
    SceneError
        If the opacity is out of range.
    """
    if not 0 <= opacity <= 1:
        raise SceneError(f"The opacity must lie between 0 and 1; {opacity} was given.")
    before = []
    new_anatomy = False
    for view in _composite_nodes(scene):
        layers = Layers(
            view.GetID(),
            view.GetBackgroundVolumeID(),
            view.GetForegroundVolumeID(),
            view.GetForegroundOpacity(),
        )
        before.append(layers)
        if background is not None:
            new_anatomy = new_anatomy or layers.background_id != background.GetID()
            view.SetBackgroundVolumeID(background.GetID())
        view.SetForegroundVolumeID(volume.GetID())
        view.SetForegroundOpacity(opacity)
    if new_anatomy and _has_windows():
        slicer.util.resetSliceViews()
    return tuple(before)


def restore_layers(layers: tuple[Layers, ...], scene: slicer.vtkMRMLScene | None = None) -> None:
    """Give the slice views back what they showed, as far as it is still there."""
    current = scene_or_default(scene)
    for one in layers:
        view = current.GetNodeByID(one.view_id)
        if view is None:
            continue
        view.SetBackgroundVolumeID(_if_present(current, one.background_id))
        view.SetForegroundVolumeID(_if_present(current, one.foreground_id))
        view.SetForegroundOpacity(one.opacity)


def show_legend(volume: slicer.vtkMRMLVolumeNode, visible: bool = True, title: str = "") -> Any:
    """Show or hide the colour legend of a map.

    Returns its display node, None where the scene knows no legends.
    """
    logic = slicer.vtkSlicerColorLogic
    node = logic.GetColorLegendDisplayNode(volume)
    if node is None and visible and _knows_legends(volume.GetScene()):
        node = logic.AddDefaultColorLegendDisplayNode(volume)
    if node is None:
        return None
    node.SetVisibility(visible)
    if visible:
        node.SetTitleText(title)
        node.SetLabelFormat("%.2g")
        node.SetNumberOfLabels(3)
        for text in (node.GetTitleTextProperty(), node.GetLabelTextProperty()):
            text.SetFontFamilyToArial()
    return node


def peak_world_ras(volume: slicer.vtkMRMLVolumeNode) -> tuple[float, float, float]:
    """World position in mm (parent transform applied) of the voxel with the largest |value|.

    Raises
    ------
    SceneError
        If the volume is zero everywhere.
    """
    image = volume_from_node(volume)
    sizes = np.abs(image.voxels[0])
    if not sizes.any():
        raise SceneError(f"The map {title_of(volume)} is zero everywhere, so it has no peak.")
    ijk = np.unravel_index(int(sizes.argmax()), sizes.shape)
    right, anterior, superior = transform_between(volume, None).TransformPoint(
        to_ras(image.affine, ijk).tolist()
    )
    return right, anterior, superior


def jump_to(
    world_ras_mm: tuple[float, float, float], scene: slicer.vtkMRMLScene | None = None
) -> None:
    """Centre all slice views on a world position in mm."""
    current = scene_or_default(scene)
    slicer.vtkMRMLSliceNode.JumpAllSlices(
        current, *world_ras_mm, slicer.vtkMRMLSliceNode.CenteredJumpSlice
    )


def jump_to_peak(
    volume: slicer.vtkMRMLVolumeNode, scene: slicer.vtkMRMLScene | None = None
) -> bool:
    """Centre all slice views on the largest |value| of a map; False when it is zero everywhere."""
    try:
        peak = peak_world_ras(volume)
    except SceneError:
        return False
    jump_to(peak, scene)
    return True


def _composite_nodes(scene: Any) -> list[Any]:
    current = scene_or_default(scene)
    count = current.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode")
    return [current.GetNthNodeByClass(index, "vtkMRMLSliceCompositeNode") for index in range(count)]


def _if_present(scene: Any, node_id: str | None) -> str | None:
    return node_id if node_id and scene.GetNodeByID(node_id) is not None else None


def _has_windows() -> bool:
    return in_app() and slicer.app.layoutManager() is not None


def _knows_legends(scene: Any) -> bool:
    """Whether the scene can make a legend's node; a bare scene cannot, and only prints an error."""
    return scene is not None and scene.GetClassNameByTag("ColorLegendDisplay") is not None
