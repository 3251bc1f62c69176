"""The slice views: what they showed, two maps beside each other, tables and plots."""

import slicer

from . import runs

#: Layout of the comparison; ids below 500 are Slicer's own.
COMPARE_LAYOUT = 5501
_ORIENTATIONS = (("Axial", "#F34A33"), ("Sagittal", "#EDD54C"), ("Coronal", "#6EB04B"))
_GROUP = 2


def layout_manager():
    """The layout manager, or None where there is no main window."""
    return slicer.app.layoutManager()


def layers():
    """What the slice views show now, for SaliencyExplainLib.scene.restore_layers."""
    from SaliencyExplainLib.scene.display import Layers

    scene = slicer.mrmlScene
    found = []
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode")):
        view = scene.GetNthNodeByClass(index, "vtkMRMLSliceCompositeNode")
        found.append(
            Layers(
                view.GetID(),
                view.GetBackgroundVolumeID(),
                view.GetForegroundVolumeID(),
                view.GetForegroundOpacity(),
            )
        )
    return tuple(found)


def set_opacity(volumes, opacity):
    """Opacity of maps wherever they are shown."""
    scene = slicer.mrmlScene
    ids = [one.GetID() for one in volumes if one is not None]
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode")):
        view = scene.GetNthNodeByClass(index, "vtkMRMLSliceCompositeNode")
        if view.GetForegroundVolumeID() in ids:
            view.SetForegroundOpacity(opacity)


def fit():
    """Fit the slice views to what they show."""
    if layout_manager() is not None:
        slicer.util.resetSliceViews()


def show_table_and_plot(table, chart):
    """Show a table, and a plot if there is one, beside the views; False without a main window."""
    manager = layout_manager()
    if manager is None:
        return False
    layout = slicer.vtkMRMLLayoutNode
    wanted = (
        layout.SlicerLayoutFourUpPlotTableView
        if chart is not None
        else layout.SlicerLayoutFourUpTableView
    )
    manager.setLayout(wanted)
    logic = slicer.app.applicationLogic()
    selection = logic.GetSelectionNode()
    selection.SetActiveTableID(table.GetID())
    logic.PropagateTableSelection()
    if chart is not None:
        selection.SetActivePlotChartID(chart.GetID())
        logic.PropagatePlotChartSelection()
    return True


class CompareView:
    """Two maps beside each other: left the first, right the second, three linked planes each."""

    def __init__(self):
        self._before = None

    @property
    def shown(self):
        return self._before is not None

    def show(self, first, second, opacity):
        """Show them; False without a main window."""
        manager = layout_manager()
        if manager is None:
            return False
        node = manager.layoutLogic().GetLayoutNode()
        if not node.IsLayoutDescription(COMPARE_LAYOUT):
            node.AddLayoutDescription(COMPARE_LAYOUT, compare_layout())
        if self._before is None:
            self._before = manager.layout
        manager.setLayout(COMPARE_LAYOUT)
        # Views of a new layout appear when Qt has worked through its events.
        slicer.app.processEvents()
        composites = []
        for side, volume in (("A", first), ("B", second)):
            anatomy = runs.input_of(volume)
            for row in range(len(_ORIENTATIONS)):
                widget = manager.sliceWidget(view_name(side, row))
                if widget is None:
                    self.hide()
                    return False
                composite = widget.mrmlSliceCompositeNode()
                # Unlinked while the two sides get different maps; linked views share them.
                composite.SetLinkedControl(False)
                composite.SetBackgroundVolumeID(anatomy.GetID() if anatomy is not None else None)
                composite.SetForegroundVolumeID(volume.GetID())
                composite.SetForegroundOpacity(opacity)
                composites.append(composite)
        fit()
        for composite in composites:
            composite.SetLinkedControl(True)
            composite.SetHotLinkedControl(True)
        return True

    def hide(self):
        """Give the user's layout back, unless another one was chosen meanwhile."""
        manager, before = layout_manager(), self._before
        self._before = None
        if manager is not None and before is not None and manager.layout == COMPARE_LAYOUT:
            manager.setLayout(before)


def view_name(side, row):
    """Name of a view: A for the left map, B for the right one; rows from 0."""
    return f"Saliency{side}{row + 1}"


def compare_layout():
    """Layout description: two columns of three slice views."""
    columns = []
    for side in "AB":
        rows = []
        for row, (orientation, color) in enumerate(_ORIENTATIONS):
            rows.append(
                f'<item><view class="vtkMRMLSliceNode" singletontag="{view_name(side, row)}">'
                f'<property name="orientation" action="default">{orientation}</property>'
                f'<property name="viewlabel" action="default">{side}{row + 1}</property>'
                f'<property name="viewcolor" action="default">{color}</property>'
                f'<property name="viewgroup" action="default">{_GROUP}</property>'
                "</view></item>"
            )
        columns.append(
            f'<item><layout type="vertical" split="true">{"".join(rows)}</layout></item>'
        )
    return f'<layout type="horizontal" split="true">{"".join(columns)}</layout>'
