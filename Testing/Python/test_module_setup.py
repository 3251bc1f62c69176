"""The scripted module without torch, from the source tree, and its .ui file."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import types

import pytest
import slicer
import slicer_stand_ins
from scene_cases import an_input
from slicer_stand_ins import MODULE
from widget_stand_ins import ROOT, UI, widgets_of

import SaliencyExplainLib as sx


@pytest.fixture
def scene():
    with slicer_stand_ins.a_scene() as one:
        yield one


@pytest.fixture
def shown(monkeypatch, scene):
    """The module file, run under stand-ins, and what they showed."""
    return slicer_stand_ins.install(monkeypatch, scene)


@pytest.fixture
def panel(shown, scene):
    an_input(scene, name="Head")
    with slicer_stand_ins.a_panel(shown) as one:
        yield one


# -- packages ------------------------------------------------------------------------------------


def _hide(monkeypatch, *names):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in names else find(name, *a)
    )


def test_without_torch_the_panel_opens_and_says_what_to_install(panel, shown, monkeypatch):
    _hide(monkeypatch, "torch", "monai")
    panel.enter()
    assert panel.ui.setupLabel.visible
    assert "PyTorch extension" in panel.ui.setupLabel.text
    panel.ui.modelPathLineEdit.text = "model.ts"
    panel.ui.loadModelButton.click()
    assert "PyTorch is missing" in shown.errors[-1][0]
    assert shown.questions == []


def test_monai_is_installed_only_after_a_question(panel, shown, monkeypatch):
    installed = []
    monkeypatch.setattr(slicer.util, "pip_install", installed.append, raising=False)
    _hide(monkeypatch, "monai")
    panel.ui.modelPathLineEdit.text = "model.ts"
    panel.ui.loadModelButton.click()
    assert "monai>=" in shown.questions[0]
    assert installed == []
    assert "monai missing" in shown.errors[-1][0]
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda question: True)
    panel.ui.loadModelButton.click()
    assert any(name.startswith("monai>=") for name in installed[0])


def test_torch_comes_from_the_pytorch_extension_with_the_arguments_it_knows(shown, monkeypatch):
    calls = []

    class Logic:
        def installTorch(self, askConfirmation=False):
            calls.append(askConfirmation)

    extension = types.ModuleType("PyTorchUtils")
    extension.PyTorchUtilsLogic = Logic
    extension.__spec__ = importlib.util.spec_from_loader("PyTorchUtils", None)
    monkeypatch.setitem(sys.modules, "PyTorchUtils", extension)
    _hide(monkeypatch, "torch")
    with pytest.raises(sx.errors.MissingPackageError, match="torch missing"):
        shown.module.SaliencyExplainLogic().ensurePackages()
    assert calls == [True]


def test_the_module_file_and_the_panel_import_no_torch():
    code = (
        "import sys; sys.path[:0] = ['Testing/Python', '.']\n"
        "import pytest, slicer, slicer_stand_ins\n"
        "patch = pytest.MonkeyPatch()\n"
        "scene = slicer.vtkMRMLScene()\n"
        "shown = slicer_stand_ins.install(patch, scene)\n"
        "panel = shown.module.SaliencyExplainWidget(); panel.setup(); panel.enter()\n"
        "print([n for n in ('torch', 'monai', 'scipy', 'SimpleITK') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_library_is_found_from_the_source_tree(tmp_path):
    code = (
        "import sys; sys.path[:0] = [sys.argv[1]]\n"
        "import pytest, slicer, slicer_stand_ins\n"
        "assert 'SaliencyExplainLib' not in sys.modules\n"
        "slicer_stand_ins.install(pytest.MonkeyPatch(), slicer.vtkMRMLScene())\n"
        "print(sys.modules['SaliencyExplainLib'].__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(ROOT / "Testing" / "Python")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(ROOT / "SaliencyExplainLib" / "__init__.py")


# -- the .ui file --------------------------------------------------------------------------------

INNER = {
    "Slider",
    "SpinBox",
    "MinimumSpinBox",
    "MaximumSpinBox",
    "comboBox_Segment",
    "FilterLineEdit",
}


def _used_widgets():
    """Names x of all self.ui.x (and ui.x) in the module file."""
    found = set()
    for node in ast.walk(ast.parse(MODULE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            if name == "ui":
                found.add(node.attr)
    return found


def test_every_widget_that_the_code_uses_is_in_the_ui_file():
    used = _used_widgets()
    assert "applyButton" in used
    assert used <= {name for _kind, name, _plain, _dynamic in widgets_of()}


def test_every_bound_widget_names_a_parameter(shown):
    bound = [d["SlicerParameterName"] for *_rest, d in widgets_of() if "SlicerParameterName" in d]
    assert sorted(bound) == ["inputVolume", "modelPath", "region"]
    assert set(bound) <= set(shown.module.SaliencyExplainParameterNode.fields)


def test_every_widget_has_a_tooltip_and_no_reserved_name():
    for kind, name, plain, _dynamic in widgets_of()[1:]:
        assert name not in INNER
        plain_label = kind == "QLabel" and name.endswith("Label") and "buddy" in plain
        spacing = kind == "QLabel" and not plain.get("text") and "wordWrap" not in plain
        if not (plain_label or spacing or kind == "ctkCollapsibleButton"):
            assert plain.get("toolTip"), name


def test_every_mrml_widget_gets_the_scene_and_the_top_is_one():
    import xml.etree.ElementTree as ET

    connected = {one.findtext("receiver") for one in ET.parse(UI).iter("connection")}
    widgets = widgets_of()
    assert widgets[0][:2] == ("qMRMLWidget", "SaliencyExplain")
    assert connected == {name for kind, name, *_rest in widgets[1:] if kind.startswith("qMRML")}
