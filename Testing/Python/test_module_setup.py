"""The scripted module without torch, from the source tree, its packages and its sample."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import types

import pytest
import slicer
import slicer_stand_ins
from panel_cases import a_played_panel, load
from scene_cases import an_input
from slicer_stand_ins import MODULE, PANEL, SOURCES
from widget_stand_ins import ROOT

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
def panel(shown, scene, monkeypatch):
    an_input(scene, name="Head")
    with a_played_panel(shown, monkeypatch) as one:
        yield one


# -- packages --------------------------------------------------------------------------------------


def _hide(monkeypatch, *names):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in names else find(name, *a)
    )


def _extension(monkeypatch, logic):
    extension = types.ModuleType("PyTorchUtils")
    extension.PyTorchUtilsLogic = logic
    extension.__spec__ = importlib.util.spec_from_loader("PyTorchUtils", None)
    monkeypatch.setitem(sys.modules, "PyTorchUtils", extension)


def test_without_torch_the_panel_opens_and_says_what_to_install(panel, shown, monkeypatch):
    _hide(monkeypatch, "torch", "monai")
    panel.enter()
    assert not panel.ui.setupFrame.isHidden()
    assert "PyTorch extension" in panel.ui.setupLabel.text
    panel.ui.modelPathLineEdit.text = "model.ts"
    panel.ui.loadModelButton.click()
    assert "no Extensions Manager" in shown.errors[-1][0]
    assert panel.played.requests == {}


def test_the_pytorch_extension_is_installed_by_slicer_which_asks_by_itself(
    panel, shown, monkeypatch
):
    asked = []
    model = types.SimpleNamespace(
        installExtensionFromServer=lambda name, restart: asked.append((name, restart)) or True
    )
    monkeypatch.setattr(shown.app, "extensionsManagerModel", lambda: model, raising=False)
    _hide(monkeypatch, "torch", "monai")
    panel.ui.installButton.click()
    assert asked == [("PyTorch", True)]
    assert shown.questions == []
    shown.app.testing = True
    panel.ui.installButton.click()
    assert len(asked) == 1, "under --testing it would be installed without a question"


def test_monai_is_installed_only_after_one_question(panel, shown, monkeypatch):
    installed = []
    monkeypatch.setattr(slicer.util, "pip_install", installed.append, raising=False)
    _hide(monkeypatch, "monai")
    panel.ui.modelPathLineEdit.text = "model.ts"
    panel.ui.loadModelButton.click()
    assert len(shown.questions) == 1
    assert "monai" in shown.questions[0]
    assert installed == []
    assert "monai" in shown.errors[-1][0]
    shown.answer = True
    panel.ui.loadModelButton.click()
    assert len(shown.questions) == 2
    assert any(name.startswith("monai>=") for name in installed[0])
    assert not any(name.startswith("torch") for name in installed[0])


def test_since_slicer_5_12_its_own_packaging_installs_without_asking_again(
    panel, shown, monkeypatch
):
    calls = []

    def pip_ensure(requirements, prompt_install=True, requester=None):
        calls.append((requirements, prompt_install, requester))

    packaging = types.ModuleType("slicer.packaging")
    packaging.load_requirements = lambda path: path.name
    packaging.pip_ensure = pip_ensure
    packaging.__spec__ = importlib.util.spec_from_loader("slicer.packaging", None)
    monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
    _hide(monkeypatch, "monai")
    shown.answer = True
    panel.ui.installButton.click()
    assert calls == [("requirements.txt", False, "SaliencyExplain")]
    assert len(shown.questions) == 1


def test_torch_comes_from_the_pytorch_extension_with_the_arguments_it_knows(shown, monkeypatch):
    calls = []

    class Logic:
        def installTorch(self, askConfirmation=True):
            calls.append(askConfirmation)

    _extension(monkeypatch, Logic)
    _hide(monkeypatch, "torch")
    with pytest.raises(sx.errors.MissingPackageError, match="torch"):
        shown.module.SaliencyExplainLogic().ensurePackages(confirmed=True)
    assert calls == [False]


def test_a_half_installed_torch_is_an_error_with_advice(shown, monkeypatch):
    class Logic:
        def installTorch(self):
            raise TypeError("'NoneType' object is not iterable")

    _extension(monkeypatch, Logic)
    _hide(monkeypatch, "torch")
    with pytest.raises(sx.errors.MissingPackageError, match="Uninstall it in the module PyTorch"):
        shown.module.SaliencyExplainLogic().ensurePackages(confirmed=True)


def test_a_failing_pip_is_an_error_in_a_sentence(shown, monkeypatch):
    def pip_install(names):
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(slicer.util, "pip_install", pip_install, raising=False)
    _hide(monkeypatch, "monai")
    with pytest.raises(sx.errors.MissingPackageError, match="could not be installed"):
        shown.module.SaliencyExplainLogic().ensurePackages(confirmed=True)


def test_another_python_takes_the_place_of_missing_packages(panel, shown, monkeypatch):
    _hide(monkeypatch, "torch", "monai")
    panel.computer.setInterpreter(sys.executable)
    assert panel.ui.setupFrame.isHidden()
    assert panel.ui.pythonInfoLabel.text == sys.executable
    assert panel.played.interpreter() == sys.executable
    assert shown.app.settings.kept["SaliencyExplain/Interpreter"] == sys.executable
    panel.played.done({"devices": [], "missing": ["monai"], "executable": sys.executable})
    assert "lacks monai" in shown.errors[-1][0]
    load(panel)
    assert panel.ui.applyButton.enabled
    panel.computer.setInterpreter("/no/such/python")
    assert "There is no Python program /no/such/python" in panel.ui.setupLabel.text
    panel.ui.pythonResetButton.click()
    assert panel.ui.pythonInfoLabel.text == "Slicer's own"


def test_devices_are_listed_when_the_section_is_opened_and_kept_on_this_computer(panel, shown):
    panel.ui.advancedCollapsibleButton.collapsed = False
    devices = [
        {"name": "cpu", "title": "CPU, 8 threads"},
        {"name": "cuda:0", "title": "Some GPU, 12 GB free"},
    ]
    panel.played.done({"devices": devices, "missing": []})
    box = panel.ui.deviceComboBox
    assert [box.itemText(index) for index in range(box.count)] == [
        "Automatic",
        "CPU, 8 threads",
        "Some GPU, 12 GB free",
    ]
    box.setCurrentIndex(2)
    assert shown.app.settings.kept["SaliencyExplain/Device"] == "cuda:0"
    load(panel)
    assert panel.played.request.model.options["device"] == "cuda:0"


def test_models_that_were_loaded_are_remembered_on_this_computer(panel, shown, tmp_path):
    for name in ("one.ts", "two.ts"):
        (tmp_path / name).touch()
        load(panel, str(tmp_path / name))
    load(panel, "/gone.ts")
    panel.model._listRecent()
    actions = panel.model._recent.actions()
    assert [one.text for one in actions] == [str(tmp_path / "two.ts"), str(tmp_path / "one.ts")]


# -- imports ---------------------------------------------------------------------------------------


def test_the_module_file_and_the_panel_import_no_torch():
    code = (
        "import sys; sys.path[:0] = ['Testing/Python', '.']\n"
        "import pytest, slicer, slicer_stand_ins\n"
        "patch = pytest.MonkeyPatch()\n"
        "scene = slicer.vtkMRMLScene()\n"
        "shown = slicer_stand_ins.install(patch, scene)\n"
        "panel = shown.module.SaliencyExplainWidget(); panel.setup(); panel.enter()\n"
        "print([n for n in ('torch', 'monai', 'scipy', 'SimpleITK') if n in sys.modules])\n"
        "panel.cleanup()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_library_and_panel_are_found_from_the_source_tree(tmp_path):
    code = (
        "import sys; sys.path[:0] = [sys.argv[1]]\n"
        "import pytest, slicer, slicer_stand_ins\n"
        "assert 'SaliencyExplainLib' not in sys.modules\n"
        "slicer_stand_ins.install(pytest.MonkeyPatch(), slicer.vtkMRMLScene())\n"
        "print(sys.modules['SaliencyExplainLib'].__file__)\n"
        "print(sys.modules['SaliencyExplainPanel'].__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(ROOT / "Testing" / "Python")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        str(ROOT / "SaliencyExplainLib" / "__init__.py"),
        str(MODULE.parent / PANEL / "__init__.py"),
    ]


def test_the_panel_is_written_for_qt_5_and_qt_6():
    """What PythonQt has in only one of them, or nowhere (measured in Slicer 5.8.1)."""
    gone = ("QRegExp(", "QTextCodec", "QDesktopWidget", "QTime(", ".margin =", "setMargin(")
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert not [word for word in gone if word in text], path
        assert "currentIndexChanged(QString)" not in text
        assert "import imp\n" not in text


def test_texts_for_translation_are_literals_without_f_strings():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_":
                assert isinstance(node.args[0], ast.Constant), f"{path.name}:{node.lineno}"


# -- the sample brain ------------------------------------------------------------------------------


def test_load_demo_needs_no_network_and_takes_what_is_there_already(panel, scene):
    panel.ui.loadDemoButton.click()
    assert panel.parameters.inputVolume.GetName() == "BrainT1Template"
    assert panel.parameters.segmentation.GetSegmentation().GetNumberOfSegments() == 3
    assert panel.played.request.model.path == str(MODULE.parent / "Resources/Models/BrainTissue")
    assert not panel.played.request.model.trusted
    panel.played.failed("Something.")
    count = scene.GetNumberOfNodes()
    panel.ui.loadDemoButton.click()
    assert scene.GetNumberOfNodes() == count


def test_the_sample_brain_is_offered_in_sample_data_with_its_checksums(shown, monkeypatch):
    told = []
    logic = types.SimpleNamespace(registerCustomSampleDataSource=lambda **one: told.append(one))
    sample_data = types.ModuleType("SampleData")
    sample_data.SampleDataLogic = logic
    monkeypatch.setitem(sys.modules, "SampleData", sample_data)
    shown.module.SaliencyExplain(types.SimpleNamespace())
    assert told == [], "nothing is registered before the application is up"
    shown.app.emit("startupCompleted()")
    (source,) = told
    assert source["uris"][0].startswith("file:///")
    assert source["fileNames"] == ["BrainT1Template.nrrd", "BrainT1TemplateSegments.seg.nrrd"]
    assert all(one.startswith("SHA256:") and len(one) == 71 for one in source["checksums"])
    assert len({len(source[key]) for key in ("uris", "fileNames", "nodeNames")}) == 1
