"""An explanation becomes nodes: maps with their colours, tables, a plot and the whole provenance.

Everything is prepared outside the scene first. If adding it fails half-way, what was added is taken
out again, so a failed publication leaves the scene as it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import SceneError
from ..volume import voxels_of
from .additions import Additions
from .colors import make_color_node
from .host import scene_or_default, slicer
from .nodes import node_from_map, subject_of, title_of
from .tables import plot_nodes, region_node, summary_node, summary_rows
from .windows import Window, finite, window_of

if TYPE_CHECKING:
    from ..explanation import Explanation
    from ..regions import RegionTable

__all__ = ["FOLDER", "PREFIX", "Published", "publish"]

#: Name of the subject hierarchy folder that collects all runs.
FOLDER = "SaliencyExplain results"
#: Start of the names of all attributes and node references that are set here.
PREFIX = "SaliencyExplain."
# "The map is zero ..." and "The map has the same ..." differ within these characters.
_SAME_WORDS = 15


@dataclass(frozen=True)
class Published:
    """The nodes of one run.

    Attributes
    ----------
    volumes : tuple of vtkMRMLScalarVolumeNode
        The map; for several input channels the joined map first, then one a channel.
    color : vtkMRMLColorTableNode
        Colours of ``volumes[0]``; each volume has its own
        (``volume.GetDisplayNode().GetColorNode()``).
    summary : vtkMRMLTableNode
        Explained value, method, parameters, cost, completeness error, warnings.
    text : vtkMRMLTextNode
        The whole provenance as JSON.
    folder_item : int
        Subject hierarchy item of the run's folder.
    layer_volume : vtkMRMLScalarVolumeNode or None
        The map on the layer's own grid.
    table, chart : vtkMRMLTableNode, vtkMRMLPlotChartNode or None
        Region table and bar plot of its density ratios.
    warnings : tuple of str
        Those of the run and those of the map.
    """

    volumes: tuple[Any, ...]
    color: Any
    summary: Any
    text: Any
    folder_item: int
    layer_volume: Any = None
    table: Any = None
    chart: Any = None
    warnings: tuple[str, ...] = ()


@dataclass
class _Map:
    """A volume node and its colours, not in the scene yet."""

    volume: Any
    color: Any
    window: Window


@dataclass
class _Run:
    """All that will be added."""

    maps: list[_Map]
    summary: Any
    text: Any
    provenance: str
    layer: _Map | None = None
    table: Any = None
    plot: tuple[Any, Any, Any] | None = None
    warnings: list[str] = field(default_factory=list)


def publish(
    explanation: Explanation,
    scene: slicer.vtkMRMLScene | None = None,
    *,
    input_volume: slicer.vtkMRMLVolumeNode | Sequence[slicer.vtkMRMLVolumeNode] | None = None,
    regions: RegionTable | None = None,
    segmentation: slicer.vtkMRMLSegmentationNode | None = None,
    name: str | None = None,
    layer_map: bool = False,
    show: bool = True,
    warnings: Sequence[str] = (),
) -> Published:
    """Put an explanation into the scene.

    Parameters
    ----------
    explanation : Explanation
        A finished run, or one that was read back.
    scene : vtkMRMLScene, optional
        The application's scene (or a new one) when left out.
    input_volume : vtkMRMLVolumeNode or sequence of them, optional
        What was explained. The maps get the first one's parent transform, place in the subject
        hierarchy and references.
    regions : RegionTable, optional
        Becomes a table node and a bar plot.
    segmentation : vtkMRMLSegmentationNode, optional
        What the regions came from; the region table refers to it.
    name : str, optional
        Start of all names; "<input> <method>: <output>" when left out. Names that are taken get a
        number.
    layer_map : bool
        Also add the map on the layer's own grid, if there is one.
    show : bool
        Lay the map over the input in the slice views and go to its peak.
    warnings : sequence of str
        More to tell the reader, for example overlaps of segments.

    Returns
    -------
    Published

    Raises
    ------
    SceneError
        If a given node is not in the scene. The scene is then as it was.
    """
    target_scene = scene_or_default(scene)
    inputs = _inputs(input_volume)
    for node in (*inputs, *([segmentation] if segmentation is not None else [])):
        if node is None or not target_scene.IsNodePresent(node):
            raise SceneError(
                f"{subject_of(node)} is not in the scene (any more). Load it again, and run again."
            )
    base = name or _base_name(explanation, inputs)
    run = _prepare(explanation, base, inputs, regions, layer_map, warnings)
    with Additions(target_scene) as added:
        published = _add(added, run, explanation, inputs, segmentation)
    if show:
        from .display import show_results

        show_results(published, target_scene, background=inputs[0] if inputs else None)
    return published


def _inputs(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, Sequence) else [given]


def _base_name(explanation: Explanation, inputs: Sequence[Any]) -> str:
    source = (
        inputs[0].GetName() if inputs else str(explanation.maps.meta.get("filename_or_obj") or "")
    )
    output = str(
        explanation.target.get("output_name") or explanation.target.get("output", "")
    ).strip()
    return f"{source} {explanation.title}".strip() + (f": {output}" if output else "")


def _prepare(
    explanation: Explanation,
    base: str,
    inputs: Sequence[Any],
    regions: RegionTable | None,
    layer_map: bool,
    more: Sequence[str],
) -> _Run:
    warnings = [*explanation.warnings, *more]
    maps = [
        _one_map(
            _voxels(explanation.map), explanation.maps.affine, base, explanation.signed, warnings
        )
    ]
    if explanation.maps.shape[0] > 1:
        maps += _channel_maps(explanation, base, inputs)
    layer = None
    if layer_map and explanation.layer_map is not None:
        values = _voxels(explanation.layer_map)
        layer = _one_map(
            values, explanation.layer_map.affine, f"{base} (layer grid)", explanation.signed, []
        )
    if inputs and inputs[0].GetParentTransformNode() is not None:
        warnings.append(
            f"Positions in the tables are RAS of {title_of(inputs[0])}, before its parent "
            "transform "
            f"{title_of(inputs[0].GetParentTransformNode())}."
        )
    provenance = json.dumps(_plain(explanation.to_dict()), indent=2, allow_nan=False, default=str)
    text = slicer.vtkMRMLTextNode()
    text.SetName(f"{base} (provenance)")
    text.SetText(provenance)
    window = maps[0].window
    rows = [
        *summary_rows(explanation),
        ("Display range", f"{window.lowest:.6g} to {window.highest:.6g}", "map unit"),
    ]
    rows += [(f"Warning {index}", warning, "") for index, warning in enumerate(warnings, start=1)]
    return _Run(
        maps=maps,
        summary=summary_node(f"{base} (summary)", rows),
        text=text,
        provenance=provenance,
        layer=layer,
        table=None if regions is None else region_node(f"{base} (regions)", regions),
        plot=None if regions is None else plot_nodes(f"{base} (density ratios)", regions),
        warnings=warnings,
    )


def _voxels(image: Any) -> np.ndarray[Any, Any]:
    return np.asarray(voxels_of(image)[0])


def _one_map(
    voxels: np.ndarray[Any, Any],
    affine: Any,
    name: str,
    signed: bool,
    warnings: list[str],
    window: Window | None = None,
) -> _Map:
    """Make volume and colours; what is odd about the map is appended to `warnings`."""
    clean, bad = finite(voxels)
    if bad:
        warnings.append(f"{bad} voxels of the map were NaN or infinite and are shown as 0.")
    if window is None:
        window = window_of(clean, signed)
        # The run itself warns of a flat map, too; its words come first.
        told = {text[:_SAME_WORDS] for text in warnings}
        warnings.extend(text for text in window.warnings if text[:_SAME_WORDS] not in told)
    return _Map(
        node_from_map(clean, affine, name), make_color_node(signed, name=f"{name} (colors)"), window
    )


def _channel_maps(explanation: Explanation, base: str, inputs: Sequence[Any]) -> list[_Map]:
    """One map a channel; all share one display range, so that their colours can be compared."""
    affine, signed = explanation.maps.affine, explanation.signed
    voxels = voxels_of(explanation.maps)
    count = voxels.shape[0]
    declared = explanation.model.get("channels") or explanation.image.get("channels")
    names = [f"channel {index + 1}" for index in range(count)]
    if isinstance(declared, Sequence) and not isinstance(declared, str) and len(declared) == count:
        names = [str(one) for one in declared]
    elif len(inputs) == count:
        names = [node.GetName() for node in inputs]
    window = window_of(finite(voxels)[0], signed)
    return [
        _one_map(voxels[index], affine, f"{base} ({names[index]})", signed, [], window)
        for index in range(count)
    ]


def _add(
    added: Additions, run: _Run, explanation: Explanation, inputs: Sequence[Any], segmentation: Any
) -> Published:
    folder = added.folder(
        added.folder(added.home_of(inputs), FOLDER, reuse=True), _folder_name(explanation)
    )
    added.node(run.text, folder)
    added.node(run.summary, folder)
    if run.table is not None:
        added.node(run.table, folder)
        _refer(run.table, {"segmentation": [segmentation] if segmentation is not None else []})
    chart = _add_plot(added, run.plot, folder) if run.plot is not None else None
    parent = inputs[0].GetTransformNodeID() if inputs else None
    attributes = _attributes(explanation, run.provenance)
    related = {
        "inputVolume": inputs,
        "summary": [run.summary],
        "provenance": [run.text],
        "regionTable": [run.table] if run.table is not None else [],
    }
    for one in (*run.maps, *([run.layer] if run.layer is not None else [])):
        _add_map(added, one, folder, parent)
        for key, value in attributes.items():
            one.volume.SetAttribute(PREFIX + key, value)
        one.volume.SetDescription(f"{explanation.title} of {attributes['output']!r}")
        _refer(one.volume, related)
    return Published(
        volumes=tuple(one.volume for one in run.maps),
        color=run.maps[0].color,
        summary=run.summary,
        text=run.text,
        folder_item=folder,
        layer_volume=run.layer.volume if run.layer is not None else None,
        table=run.table,
        chart=chart,
        warnings=tuple(run.warnings),
    )


def _add_map(added: Additions, one: _Map, folder: int, parent_id: str | None) -> None:
    display = slicer.vtkMRMLScalarVolumeDisplayNode()
    display.SetName(f"{one.volume.GetName()} (display)")
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(one.window.lowest, one.window.highest)
    added.node(one.color)
    added.node(display)
    display.SetAndObserveColorNodeID(one.color.GetID())
    added.node(one.volume, folder)
    one.volume.SetAndObserveDisplayNodeID(display.GetID())
    if parent_id:
        one.volume.SetAndObserveTransformNodeID(parent_id)


def _add_plot(added: Additions, plot: tuple[Any, Any, Any], folder: int) -> Any:
    table, series, chart = plot
    added.node(table, folder)
    added.node(series, folder)
    series.SetAndObserveTableNodeID(table.GetID())
    added.node(chart, folder)
    chart.AddAndObservePlotSeriesNodeID(series.GetID())
    return chart


def _folder_name(explanation: Explanation) -> str:
    output = str(explanation.target.get("output_name") or explanation.target.get("output", ""))
    return f"{explanation.title}: {output}" if output else explanation.title


def _attributes(explanation: Explanation, provenance: str) -> dict[str, str]:
    target = explanation.target
    return {
        "method": explanation.method,
        "title": explanation.title,
        "output": str(target.get("output_name") or target.get("output", "")),
        "region": str(target.get("region") or ""),
        "score": str(target.get("score") or ""),
        "value": repr(float(explanation.value)),
        "signed": "true" if explanation.signed else "false",
        "provenance": provenance,
    }


def _refer(node: Any, related: Mapping[str, Sequence[Any]]) -> None:
    for role, others in related.items():
        for other in others:
            node.AddNodeReferenceID(PREFIX + role, other.GetID())


def _plain(value: Any) -> Any:
    """JSON values only: what is not a finite number becomes None, as JSON has no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
