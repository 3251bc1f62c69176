"""Target: which class, where, which score, and rather than which other class."""

import slicer
from slicer.i18n import tr as _

from . import asking
from . import parameters as asked_for
from .input_section import fit_box, place_points
from .parameters import POINT, ROI, RUNNER_UP, Region
from .widgets import NODE_CHANGED, data_of, fill, quiet, show_row


class TargetSection:
    """What depends on the model's classes and on markups is wired here, the rest in the .ui."""

    def __init__(self, ui, panel):
        self.ui, self._panel = ui, panel
        ui.outputComboBox.connect("currentIndexChanged(int)", self._onOutput)
        ui.contrastComboBox.connect("currentIndexChanged(int)", self._onContrast)
        ui.segmentSelector.connect("currentSegmentChanged(QString)", self._onSegment)
        ui.roiSelector.connect(NODE_CHANGED, lambda node: self._refer(ROI, node))
        ui.pointSelector.connect(NODE_CHANGED, lambda node: self._refer(POINT, node))
        ui.roiSelector.connect("nodeAddedByUser(vtkMRMLNode*)", self._onNewBox)
        ui.pointSelector.connect("nodeAddedByUser(vtkMRMLNode*)", self._onNewPoints)

    def show(self, parameters):
        ui = self.ui
        card = asked_for.model_card(parameters)
        labels = card.get("labels") or []
        classes = [(f"{index}  {label}", label) for index, label in enumerate(labels)]
        fill(ui.outputComboBox, classes, parameters.outputName)
        others = [(_("No other class"), "")]
        if len(labels) > 1:
            others.append((_("The class that comes second"), RUNNER_UP))
        fill(ui.contrastComboBox, others + classes, parameters.contrast)
        region = parameters.region
        show_row(region is Region.SEGMENT, ui.segmentLabel, ui.segmentSelector)
        show_row(region is Region.ROI, ui.roiLabel, ui.roiSelector)
        # Without a point the largest part is meant.
        pointed = region in (Region.POINT, Region.INSTANCE)
        show_row(pointed, ui.pointLabel, ui.pointSelector)
        with quiet(ui.segmentSelector, ui.roiSelector, ui.pointSelector):
            ui.segmentSelector.setCurrentNode(parameters.segmentation)
            # One of another segmentation would leave the selector at its first segment.
            known = asking.has_segment(parameters.segmentation, parameters.segmentID)
            ui.segmentSelector.setCurrentSegmentID(parameters.segmentID if known else "")
            ui.roiSelector.setCurrentNode(asked_for.referenced(parameters, ROI))
            ui.pointSelector.setCurrentNode(asked_for.referenced(parameters, POINT))
        show_row(bool(parameters.contrast), ui.contrastWeightLabel, ui.contrastWeightSlider)

    def _onOutput(self, index):
        if self._panel.parameters is not None and index >= 0:
            self._panel.parameters.outputName = data_of(self.ui.outputComboBox, index)

    def _onContrast(self, index):
        if self._panel.parameters is not None and index >= 0:
            self._panel.parameters.contrast = data_of(self.ui.contrastComboBox, index)

    def _onSegment(self, segmentID):
        if self._panel.parameters is not None:
            self._panel.parameters.segmentID = segmentID

    def _refer(self, role, node):
        if self._panel.parameters is not None:
            asked_for.refer(self._panel.parameters, role, node)

    def _onNewBox(self, node):
        parameters = self._panel.parameters
        if parameters is not None and parameters.inputVolume is not None:
            fit_box(node, parameters.inputVolume)

    def _onNewPoints(self, node):
        place_points(node)
        slicer.util.showStatusMessage(_("Click the point in a slice view."), 5000)
