"""The scripted module: the panel's lifecycle, and the self-test.

Wiring only: the parts of the panel and the logic for the Python console are in
SaliencyExplainPanel, the computing is in SaliencyExplainLib, which the panel runs in another
process.
"""

# ruff: noqa: PT009 - the self-test is a unittest.TestCase, which Slicer runs
import sys
import time
import unittest
from pathlib import Path

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
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

try:
    import SaliencyExplainPanel
except ModuleNotFoundError as error:
    # The application adds a module's own folder; who imports this file from elsewhere may not.
    if error.name != "SaliencyExplainPanel":
        raise
    sys.path.append(str(Path(__file__).resolve().parent))
    import SaliencyExplainPanel

from SaliencyExplainPanel import asking, explaining, runs
from SaliencyExplainPanel.computer_section import ComputerSection
from SaliencyExplainPanel.demo import Demo
from SaliencyExplainPanel.input_section import InputSection, first_volume
from SaliencyExplainPanel.logic import RESOURCES, SaliencyExplainLogic
from SaliencyExplainPanel.method_section import MethodSection
from SaliencyExplainPanel.model_section import ModelSection
from SaliencyExplainPanel.parameters import Region
from SaliencyExplainPanel.results_section import ResultsSection
from SaliencyExplainPanel.run_section import RunSection
from SaliencyExplainPanel.runner import Runner, problem_of
from SaliencyExplainPanel.settings import interpreter
from SaliencyExplainPanel.target_section import TargetSection
from SaliencyExplainPanel.trust_section import TrustSection
from SaliencyExplainPanel.widgets import later, set_text

#: Packages of this extension, dropped when the module is reloaded.
PACKAGES = (SaliencyExplainLib.__name__, SaliencyExplainPanel.__name__)


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
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData():
    """Add the sample brain to the Sample Data module."""
    Demo(RESOURCES).register()


# -- Panel -----------------------------------------------------------------------------------------


class SaliencyExplainWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel: lifecycle, parameter node, and its sections put together.

    It opens without torch; packages are asked for when a model is loaded.
    """

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.runner = None
        self._parameterNode = None
        self._guiTag = None
        self._refreshing = False
        self._refreshAsked = False

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/SaliencyExplain.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = SaliencyExplainLogic()

        self.run = RunSection(self.ui, self)
        self.runner = Runner(self.run, interpreter)
        self.inputs = InputSection(self.ui, self)
        self.model = ModelSection(self.ui, self, Demo(RESOURCES))
        self.target = TargetSection(self.ui, self)
        self.method = MethodSection(self.ui, self, self.model)
        self.computer = ComputerSection(self.ui, self)
        self.results = ResultsSection(self.ui, self)
        self.trust = TrustSection(self.ui, self)
        self.ui.runNameLineEdit.connect("textChanged(QString)", self.onRunName)

        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndImport)
        self.addObserver(scene, scene.NodeAddedEvent, self.onNodesChanged)
        self.addObserver(scene, scene.NodeRemovedEvent, self.onNodesChanged)
        self.initializeParameterNode()

    def cleanup(self):
        self.setParameterNode(None)
        self.removeObservers()
        if self.runner is not None:
            self.runner.close()
            self.trust.close()

    def enter(self):
        if self._parameterNode is None:
            self.initializeParameterNode()
        self.refresh()

    def onReload(self):
        # Only this file is executed again; without this its packages would stay as they were.
        for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def onSceneStartClose(self, caller, event):
        # A run belongs to the scene that is going away.
        self.runner.stop()
        self.results.close()
        self.trust.close()
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event):
        self.initializeParameterNode()

    def onSceneEndImport(self, caller, event):
        # The singleton parameter node may now hold what a loaded scene asked.
        self.setParameterNode(None)
        self.initializeParameterNode()

    def onNodesChanged(self, caller, event):
        # Many nodes come and go at once; the lists are renewed when Qt is back.
        if not self._refreshAsked:
            self._refreshAsked = True
            later(self._onLater)

    def _onLater(self):
        self._refreshAsked = False
        if self._parameterNode is not None:
            self.chooseFirstVolume()
            self.refresh()

    # Parameter node

    @property
    def parameters(self):
        """The parameter node, None while the scene is being closed."""
        return self._parameterNode

    def initializeParameterNode(self):
        self.setParameterNode(self.logic.getParameterNode())
        self.chooseFirstVolume()

    def chooseFirstVolume(self):
        if self._parameterNode.inputVolume is None:
            volume = first_volume(slicer.mrmlScene)
            if volume is not None:
                self._parameterNode.inputVolume = volume

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
            named = [
                (widget.property("SlicerParameterName"), widget)
                for widget in vars(self.ui).values()
            ]
            widgets = {name: widget for name, widget in named if name}
            self._guiTag = parameterNode.connectParametersToGui(widgets)
            self.addObserver(
                parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParameterNodeModified
            )
            self.refresh()

    def onParameterNodeModified(self, caller=None, event=None):
        self.refresh()

    def onRunName(self, text):
        if self._parameterNode is not None and self._parameterNode.runName != text:
            self._parameterNode.runName = text

    # What the sections use

    def refresh(self):
        """Show everything that follows from parameter node, scene and runner."""
        if self._refreshing or self._parameterNode is None:
            return
        self._refreshing = True
        try:
            parameters = self._parameterNode
            set_text(self.ui.runNameLineEdit, parameters.runName)
            sections = (self.inputs, self.model, self.target, self.method, self.results, self.trust)
            for section in sections:
                section.show(parameters)
            self.computer.show()
            self.run.show(asking.problems(parameters))
        finally:
            self._refreshing = False

    def say(self, text):
        """Tell the user, without a dialog."""
        self.run.say(text)

    def log(self, text):
        """Write a line of the log."""
        self.run.log(text)

    def report(self, text, details=""):
        """Tell of an error, with details for whoever wants them."""
        self.run.say(text)
        if details:
            self.run.log(details)
            slicer.util.errorDisplay(text, detailedText=details)
        else:
            slicer.util.errorDisplay(text)

    def ensurePackages(self):
        """Whether this computer can compute; asks to install what is missing."""
        problem = self.computer.problem()
        if problem and not interpreter():
            try:
                self.logic.ensurePackages()
                problem = ""
            except SaliencyExplainLib.SaliencyExplainError as error:
                problem = str(error)
            self.refresh()
        if problem:
            self.report(problem)
        return not problem

    def apply(self, trusted=None):
        """Start a run with what the panel asks.

        :param trusted: answer to the question whether the model's file may run code; None asks.
        """
        parameters = self._parameterNode
        if self.runner.busy or asking.problems(parameters) or not self.ensurePackages():
            return
        try:
            run = explaining.Explaining(
                asking.ask(parameters),
                self.model.source(parameters),
                asking.labelmaps_wanted(parameters),
                self.trust.keep,
            )
        except Exception as error:
            self._onFailed(problem_of(error), trusted)
            return
        self.results.remember()
        self.log(
            _("{method} on {volume}").format(
                method=SaliencyExplainLib.methods()[parameters.method].title,
                volume=parameters.inputVolume.GetName(),
            )
        )
        self.runner.run(run, self._onPublished, lambda one: self._onFailed(one, trusted))

    def _onFailed(self, problem, trusted):
        self.model.retryTrusted(problem, self.apply, trusted)

    def _onPublished(self, published):
        self.results.added(published)
        name = published.volumes[0].GetName()
        self.say("\n".join([_("Done: {name}").format(name=name), *published.warnings]))
        self.refresh()


# -- Self-test -------------------------------------------------------------------------------------


class SaliencyExplainTest(ScriptedLoadableModuleTest):
    """Runs in the application; each test stands alone, and says why when it is skipped."""

    #: Longest time that the demo may take on a slow computer, in seconds.
    patience = 600

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        for name in [name for name in dir(self) if name.startswith("test_")]:
            self.setUp()
            self.delayDisplay(name)
            try:
                getattr(self, name)()
            except unittest.SkipTest as reason:
                self.delayDisplay(_("{name}: skipped ({reason})").format(name=name, reason=reason))

    def test_methodsAreListedWithoutTorch(self):
        self.assertIn("integrated_gradients", SaliencyExplainLib.methods())

    def test_parameterNodeKeepsWhatItIsGiven(self):
        node = SaliencyExplainLogic().getParameterNode()
        node.region = Region.EVERYWHERE
        node.modelPath = 'a "quoted" path'
        again = SaliencyExplainLogic().getParameterNode()
        self.assertEqual(again.region, Region.EVERYWHERE)
        self.assertEqual(again.modelPath, 'a "quoted" path')

    def test_thePanelOpensBoundToItsParameterNode(self):
        panel = slicer.util.getModuleWidget("SaliencyExplain")
        panel.initializeParameterNode()
        self.assertIsNotNone(panel.parameters)
        panel.ui.layerMapCheckBox.checked = True
        self.assertTrue(panel.parameters.layerMap)
        self.assertFalse(panel.ui.applyButton.enabled)
        self.assertTrue(panel.ui.applyButton.toolTip)

    def test_aVolumeIsExplained(self):
        self._skipWithoutTorch()
        import numpy as np
        import torch

        voxels = np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32)
        matrix = slicer.util.vtkMatrixFromArray(np.diag([-1.0, 2.0, 3.0, 1.0]))
        volume = slicer.util.addVolumeFromArray(voxels, matrix, "Phantom")
        network = torch.nn.Conv3d(1, 2, 3, padding=1)
        published = SaliencyExplainLogic().explain(
            volume,
            network,
            SaliencyExplainLogic().makeTarget("lesion", Region.EVERYWHERE),
            "gradient",
            modelOptions={"task": "segmentation", "labels": ["background", "lesion"]},
        )
        result = published.volumes[0]
        self.assertEqual(
            result.GetImageData().GetDimensions(), volume.GetImageData().GetDimensions()
        )
        self.assertIs(result.GetNodeReference("SaliencyExplain.inputVolume"), volume)
        self.assertGreater(np.abs(slicer.util.arrayFromVolume(result)).max(), 0)

    def test_thePanelExplainsTheDemoInAnotherProcess(self):
        self._skipWithoutTorch()
        panel = slicer.util.getModuleWidget("SaliencyExplain")
        panel.initializeParameterNode()
        panel.model.loadDemo()
        self._waitWhileBusy(panel)
        panel.parameters.method = "gradient"
        self.assertEqual(panel.ui.applyButton.toolTip.count("Choose"), 0)
        panel.apply()
        self._waitWhileBusy(panel)
        self.assertIsNotNone(panel.parameters.result, panel.ui.statusLabel.text)
        self.assertGreater(runs.table_of(panel.parameters.result).GetNumberOfRows(), 3)
        panel.trust.measure()
        self._waitWhileBusy(panel)
        table = runs.metrics_of(panel.parameters.result)
        self.assertIsNotNone(table, panel.ui.statusLabel.text)
        self.assertGreater(table.GetNumberOfRows(), 6)

    def _skipWithoutTorch(self):
        missing = SaliencyExplainLogic().setupSentence()
        if missing:
            self.skipTest(missing)

    def _waitWhileBusy(self, panel):
        loop, ended = qt.QEventLoop(), time.monotonic() + self.patience
        timer = qt.QTimer()
        timer.connect(
            "timeout()",
            lambda: loop.quit() if not panel.runner.busy or time.monotonic() > ended else None,
        )
        timer.start(50)
        loop.exec_()
        timer.stop()
        self.assertFalse(panel.runner.busy, "the worker did not answer in time")
