"""A study becomes nodes: its volumes, segments, maps, tables and plots, in one folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import vtk

from .additions import Additions, free_name
from .host import scene_or_default, slicer
from .inputs import add_image, add_segmentation
from .publishing import Published, publish
from .tables import table_node

if TYPE_CHECKING:
    from ..studies.results import Case, StudyPlot, StudyResult, StudyTable

__all__ = ["PublishedStudy", "publish_study"]

#: Okabe and Ito's palette, told apart by colour-blind people too.
_SERIES_RGB = (
    (0.0, 0.45, 0.70),
    (0.84, 0.37, 0.0),
    (0.0, 0.62, 0.45),
    (0.80, 0.47, 0.65),
    (0.90, 0.62, 0.0),
    (0.34, 0.71, 0.91),
    (0.35, 0.35, 0.35),
)


@dataclass(frozen=True)
class PublishedStudy:
    """The nodes of a study.

    Attributes
    ----------
    volumes : tuple of vtkMRMLScalarVolumeNode
        Images and further volumes of the cases.
    segmentations : tuple of vtkMRMLSegmentationNode
    tables : tuple of vtkMRMLTableNode
        Published figures beside ours, then the study's tables in their order.
    charts : tuple of vtkMRMLPlotChartNode
    maps : tuple of Published
        One for each explanation of the cases.
    folder_item : int
        Subject hierarchy item of the study's folder.
    """

    volumes: tuple[Any, ...]
    segmentations: tuple[Any, ...]
    tables: tuple[Any, ...]
    charts: tuple[Any, ...]
    maps: tuple[Published, ...]
    folder_item: int


def publish_study(result: StudyResult, scene: slicer.vtkMRMLScene | None = None) -> PublishedStudy:
    """Put what a study found into the scene.

    Parameters
    ----------
    result : StudyResult
        Just made, or read back with ``StudyResult.load(folder)``, which needs no torch.
    scene : vtkMRMLScene, optional
        The application's scene (or a new one) when left out.

    Returns
    -------
    PublishedStudy

    Raises
    ------
    SceneError
        If the scene refuses a node. The scene is then as it was.
    """
    target = scene_or_default(scene)
    tables = [_compared(result)] if result.comparisons else []
    tables += [_table(one) for one in result.tables]
    with _whole(target), Additions(target) as added:
        folder = added.folder(added.home_of([]), result.title)
        for table in tables:
            added.node(table, folder)
        charts = tuple(_add_chart(added, plot, folder) for plot in result.plots)
        volumes: list[Any] = []
        segmentations: list[Any] = []
        maps: list[Published] = []
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(target)
        for case in result.cases:
            inputs = add_image(target, case.image, free_name(target, case.name))
            more = [
                node
                for name, one in case.volumes.items()
                for node in add_image(target, one, free_name(target, f"{case.name} {name}"))
            ]
            outlines = _add_labels(target, case)
            for node in (*inputs, *more, *outlines):
                _put(hierarchy, node, folder)
            maps += [publish(one, target, input_volume=inputs, show=False) for one in case.maps]
            volumes += [*inputs, *more]
            segmentations += outlines
    return PublishedStudy(
        tuple(volumes), tuple(segmentations), tuple(tables), charts, tuple(maps), folder
    )


@contextmanager
def _whole(scene: Any) -> Iterator[None]:
    """Take out every node and item of the hierarchy that the block added when it raises."""
    hierarchy_of = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode
    nodes = {node.GetID() for node in _nodes(scene)}
    items = set(_items(hierarchy_of(scene)))
    try:
        yield
    except BaseException:
        hierarchy = hierarchy_of(scene)
        for item in reversed(_items(hierarchy)):
            if item not in items:
                hierarchy.RemoveItem(item, False, False)
        for node in reversed(_nodes(scene)):
            if node.GetID() not in nodes and node is not hierarchy:
                scene.RemoveNode(node)
        raise


def _items(hierarchy: Any) -> list[int]:
    """All items of the hierarchy, a folder before what is in it."""
    found = vtk.vtkIdList()
    hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), found, True)
    return [found.GetId(index) for index in range(found.GetNumberOfIds())]


def _nodes(scene: Any) -> list[Any]:
    return [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())]


def _put(hierarchy: Any, node: Any, folder: int) -> None:
    """Move a node into a folder; without the application's Qt logic it has no item yet."""
    item = hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(folder, node)
    hierarchy.SetItemParent(item, folder)


def _add_labels(scene: Any, case: Case) -> list[Any]:
    """Add a segmentation for each label map that holds anything."""
    found = []
    for name, (labels, names) in case.labels.items():
        present = {int(one) for one in _present(labels)}
        used = {label: text for label, text in names.items() if label and label in present}
        if used:
            found.append(
                add_segmentation(scene, labels, used, free_name(scene, f"{case.name} {name}"))
            )
    return found


def _present(labels: Any) -> Any:
    import numpy as np

    from ..volume import voxels_of

    return np.unique(voxels_of(labels))


def _table(table: StudyTable) -> Any:
    """One typed column a heading; a column with gaps or text is text."""
    columns = []
    for index, heading in enumerate(table.columns):
        values = [row[index] for row in table.rows]
        numbers = [one for one in values if one is not None]
        if not numbers or any(isinstance(one, str | bool) for one in numbers):
            values = ["" if one is None else str(one) for one in values]
        elif not all(isinstance(one, int) for one in values):
            values = [float("nan") if one is None else float(one) for one in values]
        columns.append((f"c{index}", heading, "", heading, values))
    return table_node(table.title, columns)


def _compared(result: StudyResult) -> Any:
    rows = result.comparisons
    keys = ("what", "published", "ours", "verdict", "why")
    return table_node(
        f"{result.title}: published figures beside ours",
        [(key, key.capitalize(), "", key, [getattr(row, key) for row in rows]) for key in keys],
    )


def _add_chart(added: Additions, plot: StudyPlot, folder: int) -> Any:
    """Add a plot's table, its series and its chart; return the chart."""
    named = any(isinstance(one, str) for one in plot.x)
    values = [str(one) if named else float(one) for one in plot.x]
    columns: list[Any] = [("x", plot.x_label, "", plot.x_label, values)]
    for index, (name, numbers) in enumerate(plot.series.items()):
        columns.append((f"y{index}", name, "", plot.y_label, [float(one) for one in numbers]))
    table = added.node(table_node(f"{plot.title} (plot data)", columns), folder)
    chart = slicer.vtkMRMLPlotChartNode()
    chart.SetName(plot.title)
    chart.SetTitle(plot.title)
    chart.SetXAxisTitle(plot.x_label)
    chart.SetYAxisTitle(plot.y_label)
    chart.SetLegendVisibility(len(plot.series) > 1)
    chart.SetGridVisibility(True)
    made = []
    for index, name in enumerate(plot.series):
        series = slicer.vtkMRMLPlotSeriesNode()
        series.SetName(name)
        series.SetPlotType(_plot_type(plot.kind, named=named))
        if named:
            series.SetLabelColumnName("x")
        else:
            series.SetXColumnName("x")
        series.SetYColumnName(f"y{index}")
        series.SetColor(*_SERIES_RGB[index % len(_SERIES_RGB)])
        series.SetMarkerStyle(slicer.vtkMRMLPlotSeriesNode.MarkerStyleCircle)
        if plot.kind == "scatter":
            series.SetLineStyle(slicer.vtkMRMLPlotSeriesNode.LineStyleNone)
        made.append(added.node(series, folder))
        series.SetAndObserveTableNodeID(table.GetID())
    added.node(chart, folder)
    for series in made:
        chart.AddAndObservePlotSeriesNodeID(series.GetID())
    return chart


def _plot_type(kind: str, *, named: bool) -> int:
    series = slicer.vtkMRMLPlotSeriesNode
    if kind == "bar":
        return int(series.PlotTypeBar)
    # A scatter has an x column; over names there is none, so the row's number is the place.
    return int(series.PlotTypeLine if named else series.PlotTypeScatter)
