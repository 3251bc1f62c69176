"""The scripted module: panel, parameter node, logic and self-test.

Wiring only; the computing is in SaliencyExplainLib.
"""

# ruff: noqa: PT009 - the self-test is a unittest.TestCase, which Slicer runs
import contextlib
import logging
import sys
import traceback
from enum import Enum
from pathlib import Path

import qt
import slicer
import vtk
from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin

try:
    import SaliencyExplainLib
except ModuleNotFoundError as error:
    # In the source tree the library stands beside this module's folder; installed, both are in one
    # folder.
    if error.name != "SaliencyExplainLib":
        raise
    sys.path.append(str(Path(__file__).resolve().parent.parent))
    import SaliencyExplainLib

NODE_CHANGED = "currentNodeChanged(vtkMRMLNode*)"
RESOURCES = Path(__file__).resolve().parent / "Resources"
DEMO_MODEL = RESOURCES / "Models" / "BrainTissue"


class SaliencyExplain(ScriptedLoadableModule):
    """What Slicer shows about the module."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Saliency Explain")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Quantification")]
        self.parent.dependencies = []
        self.parent.contributors = ["SaliencyExplain contributors"]
        self.parent.helpText = _(
            "Shows which voxels and which segments made a trained network say what it said about "
            "the loaded volume. "
            "The map lies over the anatomy: red raises the explained score, blue lowers it, "
            "values near zero are clear. "
            "Where the anatomy is bright the colors look lighter; read the numbers in the region "
            "table."
        )
        self.parent.acknowledgementText = _(
            "The attribution methods are the work of many groups; each method names its paper. "
            "Built on 3D Slicer, PyTorch and MONAI."
        )


# -- Parameter node --------------------------------------------------------------------------------


class Region(Enum):
    """Where the explained score is taken; stored by name, so the names stay."""

    AUTOMATIC = None
    PREDICTION = "prediction"
    SEGMENT = "segment"
    EVERYWHERE = "everywhere"

    def label(self):
        return {
            Region.AUTOMATIC: _("Automatic"),
            Region.PREDICTION: _("Where the class is predicted"),
            Region.SEGMENT: _("In the chosen segment"),
            Region.EVERYWHERE: _("Everywhere"),
        }[self]


@parameterNodeWrapper
class SaliencyExplainParameterNode:
    """What the panel asks, saved with the scene.

    Trust in a model is not saved: a scene may come from anybody.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    segmentation: vtkMRMLSegmentationNode
    segmentID: str = ""
    modelPath: str = ""
    outputName: str = ""
    region: Region = Region.AUTOMATIC
    method: str = "integrated_gradients"


# -- Panel -----------------------------------------------------------------------------------------


class SaliencyExplainWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel. It opens without torch; packages are asked for when a model is loaded."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._guiTag = None
        self._model = None
        self._modelPath = ""
        self._running = False
        self._cancelRequested = False
        self._updating = False

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/SaliencyExplain.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = SaliencyExplainLogic()

        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.ui.segmentSelector.connect(NODE_CHANGED, self.onSegmentChanged)
        self.ui.segmentSelector.connect("currentSegmentChanged(QString)", self.onSegmentChanged)
        self.ui.modelFileButton.connect("clicked(bool)", self.onChooseFile)
        self.ui.modelFolderButton.connect("clicked(bool)", self.onChooseFolder)
        self.ui.demoModelButton.connect("clicked(bool)", self.onUseDemoModel)
        self.ui.loadModelButton.connect("clicked(bool)", self.onLoadModel)
        self.ui.outputComboBox.connect("currentIndexChanged(int)", self.onOutputChanged)
        self.ui.methodComboBox.connect("currentIndexChanged(int)", self.onMethodChanged)
        self.ui.applyButton.connect("clicked(bool)", self.onApply)
        self.ui.cancelButton.connect("clicked(bool)", self.onCancel)

        self._updating = True
        for name, method in SaliencyExplainLib.methods().items():
            self.ui.methodComboBox.addItem(method.title, name)
        self._updating = False
        self.initializeParameterNode()

    def cleanup(self):
        self._cancelRequested = True
        self.setParameterNode(None)
        self.removeObservers()

    def enter(self):
        if self._parameterNode is None:
            self.initializeParameterNode()
        self._showState()

    def onReload(self):
        # Only this file is executed again; without this the library would stay as it was.
        for name in [name for name in sys.modules if name.split(".")[0] == "SaliencyExplainLib"]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def onSceneStartClose(self, caller, event):
        self._cancelRequested = True
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event):
        self.initializeParameterNode()

    # Parameter node

    def initializeParameterNode(self):
        self.setParameterNode(self.logic.getParameterNode())
        if self._parameterNode.inputVolume is None:
            self._parameterNode.inputVolume = _firstVolume(slicer.mrmlScene)

    def setParameterNode(self, parameterNode):
        if self._parameterNode is not None:
            # connectGui() returns no tag before Slicer 5.10, so the binding is made (and undone) by
            # its inner function.
            self._parameterNode.disconnectGui(self._guiTag)
            self.removeObserver(
                self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParameterNodeModified
            )
        self._parameterNode = parameterNode
        if parameterNode is not None:
            bound = [
                widget
                for widget in vars(self.ui).values()
                if widget.property("SlicerParameterName")
            ]
            widgets = {widget.property("SlicerParameterName"): widget for widget in bound}
            self._guiTag = parameterNode.connectParametersToGui(widgets)
            self.addObserver(
                parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParameterNodeModified
            )
            self.onParameterNodeModified()

    def onParameterNodeModified(self, caller=None, event=None):
        if self._updating or self._parameterNode is None:
            return
        if self._parameterNode.modelPath != self._modelPath:
            # Trust was given to another file.
            self._modelPath = self._parameterNode.modelPath
            self._model = None
            self.ui.trustModelCheckBox.checked = False
        self._updating = True
        try:
            self._showParameters()
        finally:
            self._updating = False
        self._showState()

    def _showParameters(self):
        node, ui = self._parameterNode, self.ui
        ui.segmentSelector.setCurrentNode(node.segmentation)
        ui.segmentSelector.setCurrentSegmentID(node.segmentID)
        ui.methodComboBox.setCurrentIndex(ui.methodComboBox.findData(node.method))
        labels = list(self._model.labels) if self._model is not None else []
        shown = [ui.outputComboBox.itemData(index) for index in range(ui.outputComboBox.count)]
        if shown != labels:
            ui.outputComboBox.clear()
            for index, label in enumerate(labels):
                ui.outputComboBox.addItem(f"{index} {label}", label)
        ui.outputComboBox.setCurrentIndex(
            ui.outputComboBox.findData(node.outputName) if labels else -1
        )

    def _showState(self):
        """Texts and enabled states that follow from everything else."""
        ui = self.ui
        ui.setupLabel.text = self.logic.setupSentence()
        ui.setupLabel.visible = bool(ui.setupLabel.text)
        ui.modelInfoLabel.text = (
            self._model.describe() if self._model is not None else _("No model is loaded.")
        )
        if self._parameterNode is not None:
            method = SaliencyExplainLib.methods().get(self._parameterNode.method)
            ui.methodInfoLabel.text = "" if method is None else _methodSentence(method)
        for button in (
            ui.inputsCollapsibleButton,
            ui.modelCollapsibleButton,
            ui.questionCollapsibleButton,
        ):
            button.enabled = not self._running
        problems = self._problems()
        ui.applyButton.enabled = not problems and not self._running
        ui.applyButton.toolTip = "\n".join(problems) or _(
            "Explain the model on the volume and lay the map over it."
        )
        ui.cancelButton.enabled = self._running

    def _problems(self):
        """Why Apply cannot run, one sentence each."""
        node, problems = self._parameterNode, []
        if node is None or node.inputVolume is None:
            problems.append(_("Choose an input volume."))
        if self._model is None:
            problems.append(_("Load a model; its outputs are then listed."))
        elif len(self._model.channels) > 1:
            problems.append(
                _(
                    "This model needs {count} volumes ({names}) and the panel gives one. In the "
                    "Python console: from SaliencyExplain import SaliencyExplainLogic; "
                    "SaliencyExplainLogic().explain([volume, ...], model)"
                ).format(count=len(self._model.channels), names=", ".join(self._model.channels))
            )
        if (
            node is not None
            and node.region is Region.SEGMENT
            and not (node.segmentation and node.segmentID)
        ):
            problems.append(_("Choose a segment, or another region."))
        return problems

    # Slots

    def onSegmentChanged(self, _argument=None):
        if self._updating or self._parameterNode is None:
            return
        self._updating = True
        try:
            self._parameterNode.segmentation = self.ui.segmentSelector.currentNode()
            self._parameterNode.segmentID = self.ui.segmentSelector.currentSegmentID()
        finally:
            self._updating = False
        self._showState()

    def onOutputChanged(self, index):
        if not self._updating and self._parameterNode is not None and index >= 0:
            self._parameterNode.outputName = self.ui.outputComboBox.itemData(index)

    def onMethodChanged(self, index):
        if not self._updating and self._parameterNode is not None and index >= 0:
            self._parameterNode.method = self.ui.methodComboBox.itemData(index)

    def onChooseFile(self, _checked=False):
        path = qt.QFileDialog.getOpenFileName(
            slicer.util.mainWindow(),
            _("Model file"),
            "",
            _("Models (*.zip *.ts *.pt);;All files (*)"),
        )
        if path:
            self._parameterNode.modelPath = path

    def onChooseFolder(self, _checked=False):
        path = qt.QFileDialog.getExistingDirectory(
            slicer.util.mainWindow(), _("Folder of a MONAI bundle")
        )
        if path:
            self._parameterNode.modelPath = path

    def onUseDemoModel(self, _checked=False):
        # It holds no code, so it needs no trust.
        self._parameterNode.modelPath = str(DEMO_MODEL)
        self.onLoadModel()

    def onLoadModel(self, _checked=False):
        with self._errorsShown():
            if not self._parameterNode.modelPath:
                raise SaliencyExplainLib.errors.ModelError(
                    _("No model is named. Choose a file or a folder first.")
                )
            self.logic.ensurePackages()
            with slicer.util.WaitCursor():
                self._model = SaliencyExplainLib.load_model(
                    self._parameterNode.modelPath, trusted=self.ui.trustModelCheckBox.checked
                )
            if self._parameterNode.outputName not in self._model.labels:
                self._parameterNode.outputName = _firstOutput(self._model)
            self._say(_("The model is loaded."))
        self.onParameterNodeModified()

    def onApply(self, _checked=False):
        if self._running or self._problems():
            return
        node = self._parameterNode
        self._cancelRequested = False
        self._setRunning(True)
        try:
            with self._errorsShown():
                self.logic.ensurePackages()
                target = self.logic.makeTarget(
                    node.outputName,
                    node.region,
                    node.inputVolume,
                    node.segmentation,
                    node.segmentID,
                )
                published = self.logic.explain(
                    [node.inputVolume],
                    self._model,
                    target,
                    node.method,
                    segmentationNode=node.segmentation,
                    progress=self._onProgress,
                    cancelled=lambda: self._cancelRequested,
                )
                self._say(
                    "\n".join(
                        [
                            _("Done: {name}").format(name=published.volumes[0].GetName()),
                            *published.warnings,
                        ]
                    )
                )
        finally:
            self._setRunning(False)

    def onCancel(self, _checked=False):
        self._cancelRequested = True
        self.ui.messageLabel.text = _("Stopping after this pass...")

    # Running

    def _setRunning(self, running):
        self._running = running
        self.ui.progressBar.setValue(0)
        self._showState()

    def _onProgress(self, fraction, message):
        self.ui.progressBar.setValue(round(100 * fraction))
        if not self._cancelRequested:
            self._say(message)
        # Inputs and Apply are disabled meanwhile, so no second run can start from here.
        slicer.app.processEvents()

    def _say(self, text):
        self.ui.messageLabel.text = text
        slicer.util.showStatusMessage(text.splitlines()[0] if text else "", 3000)

    @contextlib.contextmanager
    def _errorsShown(self):
        """Show an error as a sentence; the traceback of an unforeseen one is in the details."""
        errors = SaliencyExplainLib.errors
        try:
            yield
        except errors.Cancelled:
            self._say(_("Cancelled; the scene is as it was."))
        except errors.SaliencyExplainError as error:
            self._say(str(error))
            slicer.util.errorDisplay(str(error))
        except Exception as error:
            logging.exception("SaliencyExplain")
            text = _("This failed unexpectedly: {error}").format(error=error)
            self._say(text)
            slicer.util.errorDisplay(text, detailedText=traceback.format_exc())


def _firstVolume(scene):
    """First volume that is neither a label map nor a result of this module; None without any."""
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")):
        node = scene.GetNthNodeByClass(index, "vtkMRMLScalarVolumeNode")
        if not isinstance(node, slicer.vtkMRMLLabelMapVolumeNode) and not node.GetAttribute(
            "SaliencyExplain.method"
        ):
            return node
    return None


def _methodSentence(method):
    """What a method answers, what it costs and where it misleads."""
    kind = _("signed") if method.signed else _("unsigned")
    passes = method().passes()
    cost = (
        _("passes depend on the image")
        if passes is None
        else _("{count} passes").format(count=passes)
    )
    return _("{summary} ({kind}; {cost}.) Mind: {weaknesses}.").format(
        summary=method.summary, kind=kind, cost=cost, weaknesses=method.weaknesses
    )


def _firstOutput(model):
    """Class to begin with: the first that is no background."""
    labels = [label for label in model.labels if label.lower() != "background"]
    return labels[0] if labels else (model.labels[0] if model.labels else "")


# -- Logic -----------------------------------------------------------------------------------------


class SaliencyExplainLogic(ScriptedLoadableModuleLogic):
    """Nodes in, nodes out; also for the Python console and other modules."""

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)

    def getParameterNode(self):
        return SaliencyExplainParameterNode(super().getParameterNode())

    def setupSentence(self):
        """What has to be installed before a model can be loaded; empty when nothing is missing."""
        return SaliencyExplainLib.scene.packages.setup_sentence()

    def ensurePackages(self):
        """Install what is missing after a question; raises MissingPackageError if it stays so."""
        SaliencyExplainLib.scene.packages.ensure_packages(RESOURCES / "requirements.txt")

    def makeTarget(self, outputName, region, volumeNode, segmentationNode=None, segmentID=""):
        """Make the target that the panel asks for; `region` is a member of Region."""
        mask = None
        if region is Region.SEGMENT:
            mask = SaliencyExplainLib.scene.mask_from_segment(
                segmentationNode, segmentID, volumeNode
            )
        return SaliencyExplainLib.Target(
            output=outputName or None, region=region.value, segment=mask
        )

    def explain(
        self,
        volumeNodes,
        model,
        target=None,
        method="integrated_gradients",
        segmentationNode=None,
        parameters=None,
        progress=None,
        cancelled=None,
        trusted=False,
        modelOptions=None,
    ):
        """Explain a model on volumes of the scene and publish the result.

        :param volumeNodes: a volume node, or a list of them: the channels of the model in its
            order.
        :param model: SaliencyExplainLib.Model, path of a model file, or torch.nn.Module.
        :param target: SaliencyExplainLib.Target; by default the only or the predicted class.
        :param method: name from SaliencyExplainLib.methods().
        :param segmentationNode: optional; its segments become the rows of the region table.
        :param parameters: dictionary of the method's parameters.
        :param progress: called with a fraction (0 to 1) and a message between passes.
        :param cancelled: called between passes; returning True stops the run.
        :param trusted: whether code that a model file carries may run.
        :param modelOptions: further arguments of SaliencyExplainLib.load_model (task, labels,
            preprocess...).
        :return: SaliencyExplainLib.scene.Published with the new nodes.
        :raises SaliencyExplainLib.SaliencyExplainError: with what to do. The scene is then as it
            was.
        """
        sx = SaliencyExplainLib
        nodes = list(volumeNodes) if isinstance(volumeNodes, (list, tuple)) else [volumeNodes]
        image = sx.scene.image_from_nodes(nodes)
        segments = None
        if segmentationNode is not None:
            segments = sx.scene.labelmap_from_segmentation(segmentationNode, nodes[0])
        if not isinstance(model, sx.Model):
            model = sx.load_model(model, trusted=trusted, **(modelOptions or {}))
        explanation = sx.explain(
            model,
            image,
            target,
            method,
            progress=progress,
            cancelled=cancelled,
            **(parameters or {}),
        )
        regions = None
        if segments is not None:
            regions = sx.region_table(explanation, segments.labelmap, segments.names)
        scene = nodes[0].GetScene()
        if scene is None:
            raise sx.errors.SceneError(
                _("The input volume was removed while the network ran. Nothing was added.")
            )
        return sx.scene.publish(
            explanation,
            scene,
            input_volume=nodes,
            regions=regions,
            segmentation=segmentationNode,
            warnings=segments.warnings if segments is not None else (),
        )


# -- Self-test -------------------------------------------------------------------------------------


class SaliencyExplainTest(ScriptedLoadableModuleTest):
    """Runs in the application; each test stands alone."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        for name in [name for name in dir(self) if name.startswith("test_")]:
            self.setUp()
            self.delayDisplay(name)
            getattr(self, name)()

    def test_methodsAreListedWithoutTorch(self):
        self.assertIn("integrated_gradients", SaliencyExplainLib.methods())

    def test_parameterNodeKeepsWhatItIsGiven(self):
        node = SaliencyExplainLogic().getParameterNode()
        node.region = Region.EVERYWHERE
        node.modelPath = 'a "quoted" path'
        again = SaliencyExplainLogic().getParameterNode()
        self.assertEqual(again.region, Region.EVERYWHERE)
        self.assertEqual(again.modelPath, 'a "quoted" path')

    def test_aVolumeIsExplained(self):
        missing = SaliencyExplainLogic().setupSentence()
        if missing:
            self.skipTest(missing)
        import numpy as np
        import torch

        voxels = np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32)
        matrix = slicer.util.vtkMatrixFromArray(np.diag([-1.0, 2.0, 3.0, 1.0]))
        volume = slicer.util.addVolumeFromArray(voxels, matrix, "Phantom")
        network = torch.nn.Conv3d(1, 2, 3, padding=1)
        published = SaliencyExplainLogic().explain(
            volume,
            network,
            SaliencyExplainLib.Target(output="lesion", region="everywhere"),
            "gradient",
            modelOptions={"task": "segmentation", "labels": ["background", "lesion"]},
        )
        result = published.volumes[0]
        self.assertEqual(
            result.GetImageData().GetDimensions(), volume.GetImageData().GetDimensions()
        )
        self.assertIs(result.GetNodeReference("SaliencyExplain.inputVolume"), volume)
        self.assertGreater(np.abs(slicer.util.arrayFromVolume(result)).max(), 0)
