"""Inputs: a volume, or one volume a channel, and a segmentation."""

import slicer
from slicer.i18n import tr as _

from . import asking, sequences
from . import parameters as asked_for
from .widgets import NODE_CHANGED, later, quiet


class InputSection:
    """The first channel and the segmentation are in the .ui file; more channels come and go."""

    def __init__(self, ui, panel):
        self.ui, self._panel = ui, panel
        self._more = []

    def show(self, parameters):
        ui = self.ui
        names = asking.channel_names(parameters)
        first = names[0]
        ui.inputVolumeLabel.text = f"{first}:" if len(names) > 1 and first else _("Volume:")
        if [name for name, _selector in self._more] != names[1:]:
            # The change may come from a selector that is about to be deleted.
            later(self._rebuild)
        else:
            self._showChannels(parameters)
        count = sequences.frame_count(parameters.inputVolume)
        ui.everyFrameCheckBox.visible = count > 1
        ui.everyFrameCheckBox.text = _("Every frame of the sequence ({count})").format(count=count)

    def setScene(self, scene):
        for _name, selector in self._more:
            selector.setMRMLScene(scene)

    def _rebuild(self):
        parameters = self._panel.parameters
        if parameters is None:
            return
        names = asking.channel_names(parameters)
        if [name for name, _selector in self._more] != names[1:]:
            form = self.ui.inputsFormWidget.layout()
            self._more = []
            while form.rowCount() > 1:
                form.removeRow(1)
            for index, name in enumerate(names[1:], start=1):
                selector = self._selector(index, name)
                form.addRow(f"{name}:", selector)
                self._more.append((name, selector))
        self._showChannels(parameters)

    def _selector(self, index, name):
        selector = slicer.qMRMLNodeComboBox()
        selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        selector.showChildNodeTypes = False
        selector.noneEnabled = True
        selector.addEnabled = False
        selector.removeEnabled = False
        selector.noneDisplay = _("Choose a volume")
        selector.toolTip = _("The volume that is the model's input channel '{name}'.").format(
            name=name
        )
        selector.setMRMLScene(slicer.mrmlScene)
        selector.connect(NODE_CHANGED, lambda node, index=index: self._onChosen(index, node))
        return selector

    def _showChannels(self, parameters):
        for index, (_name, selector) in enumerate(self._more, start=1):
            with quiet(selector):
                selector.setCurrentNode(asked_for.channel_node(parameters, index))

    def _onChosen(self, index, node):
        if self._panel.parameters is not None:
            asked_for.set_channel_node(self._panel.parameters, index, node)


def first_volume(scene):
    """First volume that is neither a label map nor a result of this module; None without any."""
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")):
        node = scene.GetNthNodeByClass(index, "vtkMRMLScalarVolumeNode")
        if not isinstance(node, slicer.vtkMRMLLabelMapVolumeNode) and not node.GetAttribute(
            "SaliencyExplain.method"
        ):
            return node
    return None


def fit_box(roi, volume):
    """Lay a new box into the middle of a volume: half its size along each axis."""
    bounds = [0.0] * 6
    volume.GetRASBounds(bounds)
    low, high = bounds[0::2], bounds[1::2]
    roi.SetCenter([(a + b) / 2 for a, b in zip(low, high, strict=True)])
    roi.SetSize([(b - a) / 2 for a, b in zip(low, high, strict=True)])


def place_points(points):
    """Let the user click the first point in a slice view."""
    selection = slicer.app.applicationLogic().GetSelectionNode()
    interaction = slicer.app.applicationLogic().GetInteractionNode()
    if selection is None or interaction is None:
        return
    selection.SetReferenceActivePlaceNodeClassName(points.GetClassName())
    selection.SetActivePlaceNodeID(points.GetID())
    interaction.SetPlaceModePersistence(0)
    interaction.SetCurrentInteractionMode(interaction.Place)
