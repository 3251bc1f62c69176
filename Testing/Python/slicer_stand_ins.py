"""Stand-ins for what slicer-core lacks of the application, so that the module file can be run.

With SLICER_PYTHON=<Slicer source>/Base/Python, Slicer's own parameterNodeWrapper of that version
takes the place of the one here: python -m pytest Testing/Python/test_module.py.
"""

from __future__ import annotations

import contextlib
import enum
import importlib.util
import os
import sys
import types
import typing
import unittest
from pathlib import Path

import slicer
import widget_stand_ins as widgets
from widget_stand_ins import ROOT

MODULE = ROOT / "SaliencyExplain" / "SaliencyExplain.py"
PANEL = "SaliencyExplainPanel"
#: All Python files of the module.
SOURCES = [MODULE, *sorted((MODULE.parent / PANEL).glob("*.py"))]
#: Python part of a Slicer source tree, or nothing.
SLICER_PYTHON = os.environ.get("SLICER_PYTHON", "")


# -- slicer.parameterNodeWrapper -----------------------------------------------------------------


class WithinRange:
    def __init__(self, minimum, maximum):
        self.minimum, self.maximum = minimum, maximum


def parameter_node_wrapper(cls):
    """Typed parameters in a vtkMRMLScriptedModuleNode, bound to widgets by name."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {
        name: typing.get_args(hint)[0] if _extras(hint) else hint for name, hint in hints.items()
    }
    ranges = {name: _extras(hint)[0] for name, hint in hints.items() if _extras(hint)}
    defaults = {name: getattr(cls, name, None) for name in fields}

    class Wrapper:
        allParameters = fields  # noqa: N815 - the real name

        def __init__(self, node):
            self.__dict__.update(parameterNode=node, _bindings={}, _tag=0)

        def __getattr__(self, name):
            if name not in fields:
                return getattr(self.parameterNode, name)
            kind = fields[name]
            if issubclass(kind, slicer.vtkMRMLNode):
                return self.parameterNode.GetNodeReference(name)
            text = self.parameterNode.GetParameter(name)
            if name not in self.parameterNode.GetParameterNamesAsCommaSeparatedList().split(","):
                return defaults[name]
            if issubclass(kind, enum.Enum):
                return kind[text]
            return text == "True" if kind is bool else kind(text)

        def __setattr__(self, name, value):
            kind = fields[name]  # an unknown name fails here
            if issubclass(kind, slicer.vtkMRMLNode):
                node_id = value.GetID() if value is not None else None
                if self.parameterNode.GetNodeReferenceID(name) != node_id:
                    self.parameterNode.SetNodeReferenceID(name, node_id)
                    self.parameterNode.Modified()
                return
            if not isinstance(value, kind):
                raise TypeError(f"{name} is a {kind.__name__}; {value!r} was given")
            if name in ranges and not ranges[name].minimum <= value <= ranges[name].maximum:
                raise ValueError(f"{name} is out of range: {value}")
            text = value.name if isinstance(value, enum.Enum) else str(value)
            self.parameterNode.SetParameter(name, text)

        def getValue(self, name):
            return getattr(self, name)

        def setValue(self, name, value):
            setattr(self, name, value)

        def connectParametersToGui(self, mapping):
            self.__dict__["_tag"] += 1
            self._bindings[self._tag] = [
                _bind(self, name, hints[name], one) for name, one in mapping.items()
            ]
            return self._tag

        def disconnectGui(self, tag):
            for undo in self._bindings.pop(tag):
                undo()

    Wrapper.__name__ = cls.__name__
    return Wrapper


def _extras(hint):
    return typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ()


#: Kind of widget: signal, how it is read and written (as Slicer's connectors do).
_CONNECTORS = {
    "QCheckBox": ("toggled(bool)", "checked"),
    "QLineEdit": ("textChanged(QString)", "text"),
    "ctkSliderWidget": ("valueChanged(double)", "value"),
}


def _bind(node, name, hint, widget):
    """Bind both ways."""
    kind = type(widget).__name__
    if kind == "qMRMLNodeComboBox":
        signal, read, write = (
            "currentNodeChanged(vtkMRMLNode*)",
            widget.currentNode,
            widget.setCurrentNode,
        )
    elif kind == "QComboBox" and issubclass(hint, enum.Enum):
        members = list(hint)
        widget.clear()
        for member in members:
            widget.addItem(member.label())
        signal = "currentIndexChanged(int)"

        def read():
            return members[widget.currentIndex]

        def write(value):
            widget.currentIndex = members.index(value)
    elif kind in _CONNECTORS:
        signal, attribute = _CONNECTORS[kind]
        for one in _extras(hint):
            widget.minimum, widget.maximum = one.minimum, one.maximum

        def read():
            return getattr(widget, attribute)

        def write(value):
            setattr(widget, attribute, value)
    else:
        raise RuntimeError(f"no connector for {kind}")  # as the real one

    def to_node(*_arguments):
        if not busy:
            setattr(node, name, read())

    def to_widget(*_arguments):
        busy.append(True)
        try:
            write(getattr(node, name))
        finally:
            busy.pop()

    busy: list[bool] = []
    to_widget()
    widget.connect(signal, to_node)
    observer = node.parameterNode.AddObserver("ModifiedEvent", to_widget)

    def undo():
        widget.disconnect(signal, to_node)
        node.parameterNode.RemoveObserver(observer)

    return undo


# -- slicer.ScriptedLoadableModule ---------------------------------------------------------------


class ScriptedLoadableModule:
    def __init__(self, parent):
        self.parent = parent


class ScriptedLoadableModuleWidget:
    def __init__(self, parent=None):
        self.parent = parent
        self.kept = []  # as a layout keeps its widgets
        self.layout = types.SimpleNamespace(addWidget=self.kept.append)
        self.reloaded = False

    def setup(self):
        pass

    def resourcePath(self, name):
        return str(MODULE.parent / "Resources" / name)

    def onReload(self):
        self.reloaded = True


class ScriptedLoadableModuleLogic:
    def __init__(self, parent=None):
        pass

    def getParameterNode(self):
        node = slicer.mrmlScene.GetSingletonNode("SaliencyExplain", "vtkMRMLScriptedModuleNode")
        if node is None:
            node = slicer.vtkMRMLScriptedModuleNode()
            node.SetSingletonTag("SaliencyExplain")
            node = slicer.mrmlScene.AddNode(node)
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    def delayDisplay(self, message):
        pass


# -- slicer.app ----------------------------------------------------------------------------------


class Settings:
    def __init__(self):
        self.kept = {}

    def value(self, name):
        return self.kept.get(name)

    def setValue(self, name, value):
        self.kept[name] = value


class Application:
    """Stands in for slicer.app: an application without a main window."""

    def __init__(self):
        self.settings, self.slots, self.testing = Settings(), {}, False

    def userSettings(self):
        return self.settings

    def testingEnabled(self):
        return self.testing

    def layoutManager(self):
        return None

    def applicationLogic(self):
        return types.SimpleNamespace(GetSelectionNode=lambda: None, GetInteractionNode=lambda: None)

    def connect(self, signal, slot):
        assert signal in {"aboutToQuit()", "startupCompleted()"}, signal
        self.slots.setdefault(signal, []).append(slot)

    def disconnect(self, signal, slot):
        self.slots[signal].remove(slot)

    def emit(self, signal):
        for slot in list(self.slots.get(signal, [])):
            slot()


@contextlib.contextmanager
def a_scene():
    """A scene with logics, let go at the end; use it before monkeypatch ends."""
    from SaliencyExplainLib.scene import new_scene, release_scene

    scene = new_scene()
    yield scene
    if getattr(slicer, "mrmlScene", None) is scene:
        slicer.mrmlScene = None  # the patch of install() ends after this
    release_scene(scene)


@contextlib.contextmanager
def a_panel(shown):
    """The panel, set up."""
    widget = shown.module.SaliencyExplainWidget()
    widget.setup()
    widgets.process_events()
    yield widget
    # As the application does; an observer that outlives its panel crashes.
    widget.cleanup()
    widgets.process_events()


def install(monkeypatch, scene) -> types.SimpleNamespace:
    """Put the stand-ins in place for one test and run the module file."""
    widgets.application()
    shown = types.SimpleNamespace(errors=[], questions=[], answer=False, app=Application())
    scripted = types.ModuleType("slicer.ScriptedLoadableModule")
    classes = (
        ScriptedLoadableModule,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
        ScriptedLoadableModuleWidget,
    )
    scripted.__dict__.update({one.__name__: one for one in classes})
    i18n = types.ModuleType("slicer.i18n")
    i18n.tr, i18n.translate = (lambda text: text), (lambda context, text: text)
    for module in (scripted, i18n, widgets.qt_module(), widgets.ctk_module()):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for kind in widgets.MRML:
        monkeypatch.setattr(slicer, kind.__name__, widgets.face_class(kind), raising=False)
    for name, value in {
        "app": shown.app,
        "mrmlScene": scene,
        "modules": types.SimpleNamespace(),
    }.items():
        monkeypatch.setattr(slicer, name, value, raising=False)

    def ask(question, *_arguments, **_options):
        shown.questions.append(question)
        return shown.answer  # False as under --testing

    for name, value in {
        "loadUI": widgets.load_ui,
        "childWidgetVariables": widgets.child_widgets,
        "errorDisplay": lambda text, **options: shown.errors.append((text, options)),
        "confirmOkCancelDisplay": ask,
        "confirmYesNoDisplay": ask,
        "showStatusMessage": lambda text, duration=0: None,
        "mainWindow": lambda: None,
        "loadVolume": lambda path, properties: _load_volume(scene, path, properties["name"]),
        "loadSegmentation": lambda path, properties: _load_segments(
            scene, path, properties["name"]
        ),
    }.items():
        monkeypatch.setattr(slicer.util, name, value, raising=False)
    _install_wrapper(monkeypatch)
    monkeypatch.syspath_prepend(str(MODULE.parent))
    for name in [one for one in sys.modules if one.split(".")[0] == PANEL]:
        monkeypatch.delitem(sys.modules, name)
    spec = importlib.util.spec_from_file_location("SaliencyExplain", MODULE)
    shown.module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "SaliencyExplain", shown.module)
    spec.loader.exec_module(shown.module)
    return shown


def _install_wrapper(monkeypatch):
    """The stand-in, or Slicer's own where its source was named."""
    name = "slicer.parameterNodeWrapper"
    for one in [one for one in sys.modules if one.split(".")[:2] == name.split(".")]:
        monkeypatch.delitem(sys.modules, one)
    if not SLICER_PYTHON:
        wrapper = types.ModuleType(name)
        wrapper.parameterNodeWrapper, wrapper.WithinRange = parameter_node_wrapper, WithinRange
        monkeypatch.setitem(sys.modules, name, wrapper)
        return
    # Classes that Slicer's connectors name and the panel does not use.
    for other in ("qMRMLRangeWidget", "qMRMLSliderWidget", "qMRMLSpinBox", "qSlicerWidget"):
        monkeypatch.setattr(slicer, other, type(other, (), {}), raising=False)
    path = Path(SLICER_PYTHON) / "slicer" / "parameterNodeWrapper" / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        name, path, submodule_search_locations=[str(path.parent)]
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)


def _load_volume(scene, path, name):
    return _read(scene, path, name, "vtkMRMLScalarVolumeNode", "vtkMRMLVolumeArchetypeStorageNode")


def _load_segments(scene, path, name):
    return _read(scene, path, name, "vtkMRMLSegmentationNode", "vtkMRMLSegmentationStorageNode")


def _read(scene, path, name, kind, storage_kind):
    storage = scene.AddNewNodeByClass(storage_kind)
    storage.SetFileName(str(path))
    node = scene.AddNewNodeByClass(kind, name)
    if not storage.ReadData(node):
        raise RuntimeError(f"{path} cannot be read")
    return node
