"""Maps of several layers as one sequence of volumes, browsed like the frames of a film.

Their values differ by orders of magnitude between layers, and a shown volume has one display range.
So each map is divided by its own robust maximum (:data:`.windows.PERCENTILE`); the factor, which
gives the raw values back, is in the table and with each map.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import SceneError
from ..volume import voxels_of
from .additions import Additions
from .colors import make_color_node
from .host import scene_or_default, slicer
from .nodes import node_from_map, subject_of
from .publishing import FOLDER, PREFIX
from .tables import table_node
from .windows import finite, robust_maximum

if TYPE_CHECKING:
    from ..explanation import Explanation

__all__ = ["PublishedLayers", "publish_layers"]


@dataclass(frozen=True)
class PublishedLayers:
    """The nodes of the maps of several layers.

    Attributes
    ----------
    volume : vtkMRMLScalarVolumeNode
        Shows the layer that is chosen in the browser.
    sequence, browser : vtkMRMLSequenceNode, vtkMRMLSequenceBrowserNode
    table : vtkMRMLTableNode
        One row a layer, with the factor of its map.
    folder_item : int
        Subject hierarchy item of their folder.
    """

    volume: Any
    sequence: Any
    browser: Any
    table: Any
    folder_item: int


def publish_layers(
    explanations: Sequence[Explanation],
    scene: slicer.vtkMRMLScene | None = None,
    *,
    input_volume: slicer.vtkMRMLVolumeNode | None = None,
    name: str | None = None,
) -> PublishedLayers:
    """Put the maps of several layers into the scene as one sequence.

    Parameters
    ----------
    explanations : sequence of Explanation
        What :func:`SaliencyExplainLib.explain_layers` gave; of one image and target.
    scene : vtkMRMLScene, optional
        The application's scene (or a new one) when left out.
    input_volume : vtkMRMLVolumeNode, optional
        What was explained.
    name : str, optional
        Start of all names; "<input> layers: <output>" when left out.

    Returns
    -------
    PublishedLayers

    Raises
    ------
    SceneError
        If there are no maps, their grids differ, or the input is not in the scene. The scene is
        then as it was.
    """
    target = scene_or_default(scene)
    if input_volume is not None and not target.IsNodePresent(input_volume):
        raise SceneError(f"{subject_of(input_volume)} is not in the scene (any more).")
    _refuse(explanations)
    first = explanations[0]
    output = str(first.target.get("output_name") or first.target.get("output", ""))
    source = "" if input_volume is None else input_volume.GetName()
    base = name or f"{source} layers: {output}".strip()
    labels = _labels(explanations)
    frames = [_frame(one, base) for one in explanations]
    table = _table(f"{base} (layers)", explanations, labels, frames)
    with Additions(target) as added:
        home = added.home_of([input_volume] if input_volume is not None else [])
        folder = added.folder(added.folder(home, FOLDER, reuse=True), f"Layers: {output}")
        added.node(table, folder)
        volume = _shown(added, frames[0][0], base, first.signed, folder)
        sequence, browser = _sequence(added, base, labels, frames, volume, folder)
        if input_volume is not None:
            volume.AddNodeReferenceID(f"{PREFIX}inputVolume", input_volume.GetID())
            if input_volume.GetTransformNodeID():
                volume.SetAndObserveTransformNodeID(input_volume.GetTransformNodeID())
    return PublishedLayers(volume, sequence, browser, table, folder)


def _refuse(explanations: Sequence[Explanation]) -> None:
    if not explanations:
        raise SceneError("There is no map of a layer to publish.")
    first = explanations[0].map
    for one in explanations:
        same = one.map.shape == first.shape and np.allclose(one.map.affine, first.affine)
        if not same or one.signed != explanations[0].signed:
            raise SceneError(
                f"The map of {', '.join(one.layers)!r} lies on another grid, or has other signs, "
                "than the first. Publish maps of one image and one kind."
            )


def _labels(explanations: Sequence[Explanation]) -> list[str]:
    """Layer of each map, with the method where there are several."""
    several = len({one.method for one in explanations}) > 1
    made: list[str] = []
    for one in explanations:
        layer = ", ".join(one.layers) or "(network)"
        label = f"{one.title}: {layer}" if several else layer
        count = sum(known == label or known.startswith(f"{label} (") for known in made)
        made.append(f"{label} ({count + 1})" if count else label)
    return made


def _frame(explanation: Explanation, base: str) -> tuple[Any, float]:
    """Volume node of a map divided by its robust maximum, and that maximum."""
    voxels, _ = finite(np.asarray(voxels_of(explanation.map)[0]))
    factor = robust_maximum(voxels)
    node = node_from_map(voxels / np.float32(factor or 1.0), explanation.map.affine, base)
    facts = {
        "method": explanation.method,
        "title": explanation.title,
        "layer": ", ".join(explanation.layers),
        "factor": repr(factor),
        "output": str(explanation.target.get("output_name", "")),
        "value": repr(float(explanation.value)),
        "signed": "true" if explanation.signed else "false",
        "provenance": json.dumps(explanation.to_dict(), default=str),
    }
    for key, value in facts.items():
        node.SetAttribute(PREFIX + key, value)
    return node, factor


def _table(
    name: str,
    explanations: Sequence[Explanation],
    labels: Sequence[str],
    frames: Sequence[tuple[Any, float]],
) -> Any:
    largest = [float(np.abs(voxels_of(one.map)).max()) for one in explanations]
    return table_node(
        name,
        [
            ("layer", "Layer", "", "in the order of the sequence", list(labels)),
            ("method", "Method", "", "what made the map", [one.title for one in explanations]),
            ("factor", "Factor", "map unit", "the shown map times this is the raw map",
             [factor for _, factor in frames]),
            ("largest", "Largest |value|", "map unit", "of the raw map", largest),
            ("warnings", "Mind", "", "what a reader must know",
             [" ".join(one.warnings) for one in explanations]),
        ],
    )  # fmt: skip


def _shown(added: Additions, frame: Any, base: str, signed: bool, folder: int) -> Any:
    """The volume that shows the chosen layer, a copy of the first one."""
    color = added.node(make_color_node(signed, name=f"{base} (colors)"))
    display = slicer.vtkMRMLScalarVolumeDisplayNode()
    display.SetName(f"{base} (display)")
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(-1.0 if signed else 0.0, 1.0)
    added.node(display)
    display.SetAndObserveColorNodeID(color.GetID())
    volume = slicer.vtkMRMLScalarVolumeNode()
    volume.CopyContent(frame)
    volume.SetName(base)
    for key in frame.GetAttributeNames():
        volume.SetAttribute(key, frame.GetAttribute(key))
    volume.SetDescription("maps of several layers, each divided by its own factor")
    added.node(volume, folder)
    volume.SetAndObserveDisplayNodeID(display.GetID())
    return volume


def _sequence(
    added: Additions,
    base: str,
    labels: Sequence[str],
    frames: Sequence[tuple[Any, float]],
    volume: Any,
    folder: int,
) -> tuple[Any, Any]:
    sequence = slicer.vtkMRMLSequenceNode()
    sequence.SetName(f"{base} (sequence)")
    sequence.SetIndexName("layer")
    sequence.SetIndexUnit("")
    sequence.SetIndexType(slicer.vtkMRMLSequenceNode.TextIndex)
    for (node, _), label in zip(frames, labels, strict=True):
        sequence.SetDataNodeAtValue(node, label)
    added.node(sequence, folder)
    browser = slicer.vtkMRMLSequenceBrowserNode()
    browser.SetName(f"{base} (browser)")
    added.node(browser, folder)
    # Together: in between the browser would make a volume of its own.
    with slicer.util.NodeModify(browser):
        browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
        # The volume keeps its name, colours and place in the hierarchy.
        browser.SetOverwriteProxyName(sequence, False)
        browser.AddProxyNode(volume, sequence, False)
        browser.SetSelectedItemNumber(0)
    return sequence, browser
