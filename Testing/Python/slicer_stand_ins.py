"""Stand-ins for what slicer-core lacks of the application, so that the module file can be run.

The widgets are in widget_stand_ins.py.
"""

from __future__ import annotations

import contextlib
import enum
import importlib.util
import sys
import types
import typing
import unittest

import slicer
from widget_stand_ins import ROOT, QComboBox, QLineEdit, load_ui, qMRMLNodeComboBox

MODULE = ROOT / "SaliencyExplain" / "SaliencyExplain.py"


# -- slicer.parameterNodeWrapper -----------------------------------------------------------------


def parameter_node_wrapper(cls):
    """Typed parameters in a vtkMRMLScriptedModuleNode, bound to widgets by name."""
    fields = typing.get_type_hints(cls)
    defaults = {name: getattr(cls, name, None) for name in fields}

    class Wrapper:
        def __init__(self, node):
            self.__dict__.update(parameterNode=node, _bindings={})

        def __getattr__(self, name):
            if name not in fields:
                return getattr(self.parameterNode, name)
            kind = fields[name]
            if issubclass(kind, slicer.vtkMRMLNode):
                return self.parameterNode.GetNodeReference(name)
            text = self.parameterNode.GetParameter(name)
            if not self.parameterNode.GetParameterNamesAsCommaSeparatedList().count(name):
                return defaults[name]
            return kind[text] if issubclass(kind, enum.Enum) else kind(text)

        def __setattr__(self, name, value):
            kind = fields[name]  # an unknown name fails here
            if issubclass(kind, slicer.vtkMRMLNode):
                node_id = value.GetID() if value is not None else None
                if self.parameterNode.GetNodeReferenceID(name) != node_id:
                    self.parameterNode.SetNodeReferenceID(name, node_id)
                    self.parameterNode.Modified()
            elif not isinstance(value, kind):
                raise TypeError(f"{name} is a {kind.__name__}; {value!r} was given")
            else:
                text = value.name if isinstance(value, enum.Enum) else str(value)
                self.parameterNode.SetParameter(name, text)

        def connectParametersToGui(self, widgets):
            tag = len(self._bindings)
            self._bindings[tag] = [
                _bind(self, name, fields[name], w) for name, w in widgets.items()
            ]
            return tag

        def disconnectGui(self, tag):
            for undo in self._bindings.pop(tag):
                undo()

    Wrapper.__name__ = cls.__name__
    Wrapper.fields = fields
    return Wrapper


def _bind(node, name, kind, widget):
    """Bind both ways; the real connectors do it for these widgets."""
    if isinstance(widget, qMRMLNodeComboBox):
        signal, read, write = widget.signals[0], widget.currentNode, widget.setCurrentNode
    elif isinstance(widget, QLineEdit):
        signal = widget.signals[0]

        def read():
            return widget.text

        def write(value):
            widget.text = value
    elif isinstance(widget, QComboBox):
        widget.clear()
        for member in kind:
            widget.addItem(member.label(), member)
        signal = widget.signals[0]

        def read():
            return widget.itemData(widget.currentIndex)

        def write(value):
            widget.setCurrentIndex(widget.findData(value))
    else:
        raise RuntimeError(f"no connector for {type(widget).__name__}")  # as the real one

    def to_node(*_arguments):
        setattr(node, name, read())

    def to_widget(*_arguments):
        write(getattr(node, name))

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
        self.layout = types.SimpleNamespace(addWidget=lambda widget: None)
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


class Application:
    """Stands in for slicer.app; counts how often events were processed."""

    def __init__(self):
        self.events = 0
        self.on_events = None

    def processEvents(self):
        self.events += 1
        if self.on_events is not None:
            self.on_events()

    def layoutManager(self):
        return None


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
    yield widget
    # As the application does; an observer that outlives its panel crashes.
    widget.cleanup()


def install(monkeypatch, scene) -> types.SimpleNamespace:
    """Put the stand-ins in place for one test and run the module file."""
    shown = types.SimpleNamespace(errors=[], questions=[], app=Application())
    scripted = types.ModuleType("slicer.ScriptedLoadableModule")
    classes = (
        ScriptedLoadableModule,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
        ScriptedLoadableModuleWidget,
    )
    scripted.__dict__.update({one.__name__: one for one in classes})
    wrapper = types.ModuleType("slicer.parameterNodeWrapper")
    wrapper.parameterNodeWrapper = parameter_node_wrapper
    i18n = types.ModuleType("slicer.i18n")
    i18n.tr, i18n.translate = (lambda text: text), (lambda context, text: text)
    qt = types.ModuleType("qt")
    qt.QFileDialog = types.SimpleNamespace(
        getOpenFileName=lambda *a: "", getExistingDirectory=lambda *a: ""
    )
    for module in (scripted, wrapper, i18n, qt):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, value in {"app": shown.app, "mrmlScene": scene}.items():
        monkeypatch.setattr(slicer, name, value, raising=False)

    def ask(question, *_arguments, **_options):
        shown.questions.append(question)
        return False  # as under --testing

    for name, value in {
        "loadUI": load_ui,
        "childWidgetVariables": lambda top: types.SimpleNamespace(**top._children),
        "errorDisplay": lambda text, **options: shown.errors.append((text, options)),
        "confirmOkCancelDisplay": ask,
        "showStatusMessage": lambda text, duration=0: None,
        "mainWindow": lambda: None,
        "WaitCursor": contextlib.nullcontext,
    }.items():
        monkeypatch.setattr(slicer.util, name, value, raising=False)
    spec = importlib.util.spec_from_file_location("SaliencyExplain", MODULE)
    shown.module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "SaliencyExplain", shown.module)
    spec.loader.exec_module(shown.module)
    return shown
