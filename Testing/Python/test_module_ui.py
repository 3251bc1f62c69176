"""The .ui file of the panel: its widgets, bindings, properties and looks, on real Qt."""

from __future__ import annotations

import ast
import xml.etree.ElementTree as ET

import pytest
import slicer_stand_ins
import widget_stand_ins as widgets
from panel_cases import a_played_panel, load
from PySide6 import QtWidgets
from scene_cases import an_input
from slicer_stand_ins import SOURCES
from widget_stand_ins import UI


@pytest.fixture
def scene():
    with slicer_stand_ins.a_scene() as one:
        yield one


@pytest.fixture
def shown(monkeypatch, scene):
    """The module file, run under stand-ins, and what they showed."""
    return slicer_stand_ins.install(monkeypatch, scene)


@pytest.fixture
def panel(shown, scene, monkeypatch):
    an_input(scene, name="Head")
    with a_played_panel(shown, monkeypatch) as one:
        yield one


# -- the .ui file ----------------------------------------------------------------------------------

INNER = {
    "Slider",
    "SpinBox",
    "MinimumSpinBox",
    "MaximumSpinBox",
    "comboBox_Segment",
    "FilterLineEdit",
}


def _elements():
    """(class, name, properties, dynamic properties) of each widget in the .ui file."""
    found = []
    for element in ET.parse(UI).iter("widget"):
        plain, dynamic = {}, {}
        for one in element.findall("property"):
            value = "".join(one.itertext()).strip()
            (dynamic if one.get("stdset") == "0" else plain)[one.get("name")] = value
        found.append((element.get("class"), element.get("name"), plain, dynamic))
    return found


def _used_widgets():
    """Names x of all self.ui.x and ui.x in the module file and the panel's parts."""
    found = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                owner = node.value
                name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                if name == "ui":
                    found[node.attr] = f"{path.name}:{node.lineno}"
    return found


def test_every_widget_that_the_code_uses_is_in_the_ui_file():
    used, there = _used_widgets(), {name for _kind, name, *_rest in _elements()}
    assert "applyButton" in used
    assert not {name: used[name] for name in used if name not in there}


def test_every_widget_that_can_be_used_is_used():
    passive = {"QLabel", "QFrame", "QWidget", "ctkCollapsibleGroupBox", "ctkCollapsibleButton"}
    used = set(_used_widgets())
    unused = [
        name
        for kind, name, _plain, dynamic in _elements()[1:]
        if kind not in passive and name not in used and not dynamic
    ]
    assert unused == []


def test_every_bound_widget_names_a_parameter(shown):
    fields = shown.module.SaliencyExplainLogic().getParameterNode().allParameters
    bound = [d["SlicerParameterName"] for *_rest, d in _elements() if "SlicerParameterName" in d]
    assert len(bound) == len(set(bound)) >= 12
    assert set(bound) <= set(fields)
    # Until Slicer 5.10 a bound line edit moves its cursor to the end at each letter.
    assert not [kind for kind, *_rest, d in _elements() if d and kind == "QLineEdit"]


def test_every_widget_has_a_tooltip_and_no_reserved_name():
    for kind, name, plain, _dynamic in _elements()[1:]:
        assert name not in INNER
        plain_label = kind == "QLabel" and name.endswith("Label") and "buddy" in plain
        if not (plain_label or kind == "ctkCollapsibleButton"):
            assert plain.get("toolTip"), name


def test_every_mrml_widget_gets_the_scene_and_the_top_is_one():
    connections = list(ET.parse(UI).iter("connection"))
    elements = _elements()
    assert elements[0][:2] == ("qMRMLWidget", "SaliencyExplain")
    assert {one.findtext("receiver") for one in connections} == {
        name for kind, name, *_rest in elements[1:] if kind.startswith("qMRML")
    }
    for one in connections:
        assert one.findtext("signal") == "mrmlSceneChanged(vtkMRMLScene*)"
        assert one.findtext("slot") == "setMRMLScene(vtkMRMLScene*)"


def test_every_property_in_the_ui_file_is_one_of_its_widget():
    top = widgets.load_ui()
    for one in [widgets.plain(top), *widgets.plain(top).findChildren(QtWidgets.QWidget)]:
        unknown = {bytes(name).decode() for name in one.dynamicPropertyNames()}
        # Qt keeps notes of its own under names that start with an underscore.
        unknown = {name for name in unknown if not name.startswith("_")}
        assert unknown <= {"SlicerParameterName"}, (one.objectName(), unknown)


def test_an_unknown_signal_or_property_is_noticed_by_the_stand_ins():
    ui = widgets.child_widgets(widgets.load_ui())
    with pytest.raises(AttributeError, match="no signal 'press'"):
        ui.applyButton.connect("press", print)
    with pytest.raises(AttributeError, match="no property 'colour'"):
        ui.applyButton.colour = "red"
    with pytest.raises(AttributeError, match="no signal"):
        ui.inputVolumeSelector.connect("currentNodeChanged(QString)", print)


# -- looks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [400, 600])
def test_the_panel_fits_its_width_and_nothing_sticks_out(panel, width):
    load(panel)
    top = widgets.plain(panel.ui.inputsCollapsibleButton).window()
    assert top.minimumSizeHint().width() <= 400
    top.setFixedWidth(width)
    top.show()
    widgets.process_events(20)
    for one in top.findChildren(QtWidgets.QWidget):
        if one.isVisible() and one.objectName() and not isinstance(one, QtWidgets.QMenu):
            parent = one.parentWidget()
            if isinstance(parent.parentWidget(), QtWidgets.QAbstractScrollArea):
                continue
            assert one.geometry().right() <= parent.width(), one.objectName()
    top.hide()


def test_no_color_is_hard_coded():
    for path in [UI, *SOURCES]:
        text = path.read_text(encoding="utf-8")
        assert "styleSheet" not in text, path
        assert "setStyleSheet" not in text, path
        assert "<palette" not in text, path
