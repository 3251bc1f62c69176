"""How far a map can be trusted, beside the map: verdict, metrics, curves, sanity check, ranking.

The nodes lie in a folder of their own within that of the map's run, and the map refers to them.
What is measured again takes the place of what was there; what was not measured again stays. They
enter the scene together or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import MetricError, SaliencyExplainError, SceneError
from ..volume import Volume
from .additions import Additions
from .appraisal_tables import Part, parts_of
from .host import slicer
from .nodes import subject_of, volume_from_node
from .publishing import PREFIX

if TYPE_CHECKING:
    from ..explanation import Explanation
    from ..quality import Appraisal
    from ..region_rows import RegionTable
    from ..report import Verdict

__all__ = [
    "PublishedAppraisal",
    "appraisal_from_map",
    "explanation_from_map",
    "publish_appraisal",
    "regions_from_table",
    "verdict_from_map",
]

#: Role of all nodes made here, and of the one that holds the record.
_ALL, _RECORD = f"{PREFIX}trust", f"{PREFIX}trustRecord"
#: Which map a record is about: browsing a sequence puts another one into the same node.
_ABOUT = f"{PREFIX}about"


@dataclass(frozen=True)
class PublishedAppraisal:
    """The nodes that say how far a map can be trusted.

    Attributes
    ----------
    appraisal : Appraisal
        Everything known of the map, older parts as well.
    verdict : Verdict
        What it says together.
    tables : mapping of str to vtkMRMLTableNode
        "verdict", "metrics", "deletion", "insertion", "road", "sanity", "ranking", "comparison", as
        far as there are any.
    charts : mapping of str to vtkMRMLPlotChartNode
        Of "deletion", "insertion", "road", "sanity".
    text : vtkMRMLTextNode
        The whole record as JSON.
    folder_item : int
        Subject hierarchy item of their folder.
    """

    appraisal: Appraisal
    verdict: Verdict
    tables: Mapping[str, Any]
    charts: Mapping[str, Any]
    text: Any
    folder_item: int


@dataclass
class _Added:
    """What has been put into the scene."""

    nodes: list[Any] = field(default_factory=list)
    tables: dict[str, Any] = field(default_factory=dict)
    charts: dict[str, Any] = field(default_factory=dict)


def publish_appraisal(
    appraisal: Appraisal, volume: slicer.vtkMRMLScalarVolumeNode
) -> PublishedAppraisal:
    """Put what was found on a map beside it.

    Parameters
    ----------
    appraisal : Appraisal
        Its parts take the place of those that are there.
    volume : vtkMRMLScalarVolumeNode
        The published map.

    Returns
    -------
    PublishedAppraisal

    Raises
    ------
    SceneError
        If the map is in no scene, was not published here, or was made by another method than what
        was measured. The scene is then as it was.
    """
    from ..quality import Appraisal
    from ..report import verdict_of

    scene = volume.GetScene() if volume is not None else None
    if scene is None:
        raise SceneError(f"{subject_of(volume)} is not in the scene (any more). Nothing was added.")
    told = explanation_from_map(volume)
    _refuse_other(appraisal, told, volume)
    whole = (appraisal_from_map(volume) or Appraisal()).updated(appraisal)
    verdict = verdict_of(told, whole.evaluation, whole.sanity)
    name = volume.GetName()
    parts, text = parts_of(name, whole, verdict), slicer.vtkMRMLTextNode()
    text.SetName(f"{name} (trust record)")
    text.SetText(json.dumps(whole.to_dict(), indent=1, allow_nan=False))
    text.SetAttribute(_ABOUT, _about(volume))
    old = _nodes(volume, _ALL)
    with _out_of_the_way(old), Additions(scene) as added:
        folder = added.folder(added.home_of([volume]), f"Trust of {name}", reuse=True)
        made = _add(added, parts, text, folder)
    _remove(scene, old)
    _refer(volume, made, text)
    volume.SetAttribute(f"{PREFIX}verdict", verdict.headline)
    return PublishedAppraisal(whole, verdict, made.tables, made.charts, text, folder)


def appraisal_from_map(volume: slicer.vtkMRMLScalarVolumeNode) -> Appraisal | None:
    """Read what was found on a published map.

    None without any, where it cannot be read, or where the node shows another map by now.
    """
    from ..quality import Appraisal

    node = volume.GetNodeReference(_RECORD)
    if node is None or node.GetAttribute(_ABOUT) != _about(volume):
        return None
    try:
        return Appraisal.from_dict(json.loads(node.GetText() or ""))
    except (ValueError, MetricError):
        # A scene file may hold anything.
        return None


def explanation_from_map(volume: slicer.vtkMRMLScalarVolumeNode) -> Explanation:
    """Make an explanation of a published map again: its voxels and its record.

    The map on the network's grid is not in a scene.

    Raises
    ------
    SceneError
        If the node is no published map, or its record cannot be read.
    """
    from ..explanation import Explanation

    text = volume.GetAttribute(f"{PREFIX}provenance")
    try:
        facts = json.loads(text or "")
        found = volume_from_node(volume)
        # Slicer's name of the node is not that of the scan.
        maps: Any = Volume(found.voxels, found.affine, str(facts["image"].get("name") or ""))
        return Explanation.from_dict(facts, maps)
    except (ValueError, KeyError, TypeError, AttributeError, SaliencyExplainError) as error:
        raise SceneError(
            f"{subject_of(volume)} is no map that was published here, or its record "
            "cannot be read. Choose a map of this extension, or make it again."
        ) from error


def verdict_from_map(volume: slicer.vtkMRMLScalarVolumeNode) -> Verdict:
    """Say what is known of a published map's worth.

    Raises
    ------
    SceneError
        As :func:`explanation_from_map`.
    """
    from ..report import verdict_of

    found = appraisal_from_map(volume)
    told = explanation_from_map(volume)
    if found is None:
        return verdict_of(told)
    return verdict_of(told, found.evaluation, found.sanity)


def regions_from_table(table: slicer.vtkMRMLTableNode | None) -> RegionTable | None:
    """Read a published region table, in its 6 digits; None where there is none."""
    from ..errors import RegionError
    from ..region_rows import COLUMNS, RegionTable

    if table is None:
        return None
    columns = {key: table.GetTable().GetColumnByName(key) for key, *_ in COLUMNS}
    if any(one is None for one in columns.values()):
        return None
    count = table.GetNumberOfRows()
    rows = [{key: one.GetValue(row) for key, one in columns.items()} for row in range(count)]
    try:
        return RegionTable.from_records(rows)
    except RegionError:
        return None


def _about(volume: Any) -> str:
    """What tells a map from the others that its node may show."""
    text = volume.GetAttribute(f"{PREFIX}provenance") or ""
    # Scene files may write its white space in another way.
    return hashlib.sha256("".join(text.split()).encode()).hexdigest()[:16]


def _refuse_other(appraisal: Appraisal, told: Explanation, volume: Any) -> None:
    for one in (appraisal.evaluation, appraisal.sanity):
        if one is not None and one.method != told.method:
            raise SceneError(
                f"{subject_of(volume)} was made by {told.title}; what was measured "
                f"belongs to {one.title}. Choose the map that was measured."
            )


def _nodes(volume: Any, role: str) -> list[Any]:
    count = volume.GetNumberOfNodeReferences(role)
    found = [volume.GetNthNodeReference(role, index) for index in range(count)]
    return [one for one in found if one is not None]


@contextmanager
def _out_of_the_way(nodes: Sequence[Any]) -> Iterator[None]:
    """Keep the names of these nodes free; they get them back when the block raises."""
    names = [node.GetName() for node in nodes]
    for node, name in zip(nodes, names, strict=True):
        node.SetName(f"{name} (being replaced)")
    try:
        yield
    except BaseException:
        for node, name in zip(nodes, names, strict=True):
            node.SetName(name)
        raise


def _add(added: Additions, parts: Sequence[Part], text: Any, folder: int) -> _Added:
    made = _Added()
    for part in parts:
        made.tables[part.role] = added.node(part.table, folder)
        made.nodes.append(part.table)
        for one, told in part.series:
            added.node(one, folder)
            one.SetAndObserveTableNodeID(part.table.GetID())
            # The legend shows this name.
            one.SetName(told)
            made.nodes.append(one)
        if part.chart is not None:
            made.charts[part.role] = added.node(part.chart, folder)
            for one, _ in part.series:
                part.chart.AddAndObservePlotSeriesNodeID(one.GetID())
            made.nodes.append(part.chart)
    added.node(text, folder)
    made.nodes.append(text)
    return made


def _remove(scene: Any, nodes: Sequence[Any]) -> None:
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    for node in reversed(nodes):
        item = tree.GetItemByDataNode(node)
        if item:
            tree.RemoveItem(item, False, False)
        scene.RemoveNode(node)


def _refer(volume: Any, made: _Added, text: Any) -> None:
    roles = {name: [one] for name, one in made.tables.items()}
    roles |= {f"{name}Chart": [one] for name, one in made.charts.items()}
    told = {f"{PREFIX}{name}": nodes for name, nodes in roles.items()}
    told |= {_ALL: made.nodes, _RECORD: [text]}
    for role in (*_KNOWN, _ALL, _RECORD):
        volume.RemoveNodeReferenceIDs(role)
    for role, nodes in told.items():
        for node in nodes:
            volume.AddNodeReferenceID(role, node.GetID())


_TABLES = ("verdict", "metrics", "deletion", "insertion", "road", "sanity", "ranking", "comparison")
#: Roles of single nodes.
_KNOWN = {f"{PREFIX}{name}{end}" for name in _TABLES for end in ("", "Chart")}
