"""An import never goes up: the floors of the library, walked through its syntax trees."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "SaliencyExplainLib"

#: From the ground up. A name is a file or a folder of the library.
FLOORS = [
    ("errors",),
    (
        "volume",
        "plain_text",
        "headers",
        "dicom",
        "volume_files",
        "channels",
        "image",
        "explanation",
    ),
    ("model", "target", "masks"),
    ("engine",),
    ("methods",),
    ("run",),
    ("region_rows",),
    ("regions", "quality"),
    ("planes",),
    ("panels",),
    ("figure", "contact_sheet"),
    ("studies",),
    (
        "__init__",
        "__main__",
        "scene",
        "worker",
        "cli",
        "report",
        "demo",
    ),
]
FLOOR_OF = {name: height for height, names in enumerate(FLOORS) for name in names}
#: Who may import what belongs to the application.
SLICER_ONLY = {"slicer", "vtk", "vtkmodules", "MRMLCorePython", "vtkSegmentationCore"}
QT_ONLY = {"qt", "ctk", "PythonQt"}


class _Imports(ast.NodeVisitor):
    """Absolute names of imported modules, those inside functions too, but for typing blocks."""

    def __init__(self, package: list[str]) -> None:
        self.package = package
        self.found: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.dump(node.test):
            for other in node.orelse:
                self.visit(other)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = self.package[: len(self.package) - node.level + 1] if node.level else []
        stem = ".".join([*base, *([node.module] if node.module else [])])
        # `from . import regions` names a module, `from .regions import RegionTable` a name in one.
        self.found |= {f"{stem}.{alias.name}" for alias in node.names}

    def visit_Call(self, node: ast.Call) -> None:
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        first = node.args[0] if node.args else None
        if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
            self.found.add(
                f"{'.'.join(self.package)}{first.value}"
                if str(first.value)[0] == "."
                else str(first.value)
            )
        self.generic_visit(node)


def imports_of(file: Path, root: Path) -> set[str]:
    package = list(file.relative_to(root).parent.parts)
    visitor = _Imports(package)
    visitor.visit(ast.parse(file.read_text(encoding="utf-8")))
    return visitor.found


def place_of(module: str) -> str | None:
    """Floor's name of a module of the library, or None for one of somebody else's."""
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return None
    # `from SaliencyExplainLib import Target` goes through the package's own list of names.
    return parts[1] if len(parts) > 1 and parts[1] in FLOOR_OF else "__init__"


def faults(root: Path) -> list[str]:
    """Every import that goes up, or that belongs to the application."""
    found = []
    for file in sorted((root / PACKAGE).rglob("*.py")):
        relative = file.relative_to(root / PACKAGE)
        home = relative.parts[0].removesuffix(".py")
        if home not in FLOOR_OF:
            found.append(f"{relative} stands on no floor")
            continue
        for module in sorted(imports_of(file, root)):
            top = module.split(".")[0]
            if top in QT_ONLY or (top in SLICER_ONLY and home != "scene"):
                found.append(f"{relative} imports {top}")
            place = place_of(module)
            if place is not None and FLOOR_OF[place] > FLOOR_OF[home]:
                found.append(f"{relative} on floor {FLOOR_OF[home]} imports {module} above it")
    return found


@pytest.fixture
def a_made_up_library(tmp_path):
    """Write one file of a library in a folder of its own; the faults found there."""

    def make(name: str, text: str) -> list[str]:
        file = tmp_path / PACKAGE / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return faults(tmp_path)

    return make


def test_no_import_of_the_library_goes_up():
    assert faults(ROOT) == []


def test_every_floor_below_the_shell_has_its_files():
    # A file that was moved or renamed must not slip out of the check.
    present = {file.name.removesuffix(".py") for file in (ROOT / PACKAGE).iterdir()}
    assert {"errors", "image", "model", "target", "engine", "methods", "run", "regions"} <= present


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("engine/one.py", "from ..methods import Method"),
        ("engine/one.py", "def late():\n    from ..run import explain"),
        ("engine/one.py", "def late():\n    import SaliencyExplainLib.methods.base"),
        ("model/one.py", "from .. import engine"),
        ("model/one.py", "from ..engine.engine import Engine"),
        ("methods/one.py", "if True:\n    from SaliencyExplainLib import explain"),
        ("image.py", "from .explanation import Explanation\nfrom .model import Model"),
        ("errors.py", "from .image import make_image"),
        ("run.py", "from .regions import region_table"),
        ("regions.py", "import importlib\nscene = importlib.import_module('.scene', __package__)"),
        ("engine/one.py", "import slicer"),
        ("figure.py", "def late():\n    import vtk.util"),
        ("scene/one.py", "import qt"),
        ("cli/one.py", "from ctk import ctkPathLineEdit"),
        ("cellar.py", ""),
    ],
)  # fmt: skip
def test_an_import_that_goes_up_is_found(a_made_up_library, name, text):
    assert len(a_made_up_library(name, text)) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("engine/one.py", "from ..model import Model\nfrom ..errors import ModelError"),
        ("target.py", "if TYPE_CHECKING:\n    from .run import explain"),
        ("methods/one.py", "def late():\n    from ..engine import Engine"),
        ("scene/one.py", "import slicer\nfrom ..regions import region_table"),
        ("cli/one.py", "from SaliencyExplainLib import explain\nfrom ..run import explain"),
    ],
)  # fmt: skip
def test_an_import_that_goes_down_or_stays_is_none(a_made_up_library, name, text):
    assert a_made_up_library(name, text) == []


def test_only_the_module_file_imports_qt():
    others = [file for file in (ROOT / PACKAGE).rglob("*.py") if "qt" in _tops(file)]
    assert others == []


def _tops(file: Path) -> set[str]:
    return {module.split(".")[0] for module in imports_of(file, ROOT)}
