"""Listing the methods needs neither torch nor any other heavy package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "monai", "slicer", "vtk", "matplotlib", "captum", "SimpleITK", "scipy", "qt")
LISTING = """
import SaliencyExplainLib as sx
assert "gradient" in sx.methods()
for name in sx.methods():
    assert name in sx.describe_method(name)
    sx.make_method(name).passes()
try:
    sx.make_method("gradent")
except sx.SaliencyExplainError:
    pass
"""


def imported_by(code: str) -> list[str]:
    """Heavy packages that are loaded after some code has run in a fresh process."""
    report = f"\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    command = [sys.executable, "-c", code + report]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_listing_and_describing_the_methods_imports_no_heavy_package():
    assert imported_by(LISTING) == []


def test_the_package_alone_imports_no_heavy_package():
    assert imported_by("import SaliencyExplainLib") == []


def test_this_check_sees_what_is_imported_behind_a_lazy_name():
    found = imported_by("import SaliencyExplainLib as sx\nsx.Target")
    assert {"torch", "monai"} <= set(found)


@pytest.mark.parametrize("name", ["torch", "monai", "slicer", "matplotlib"])
def test_the_methods_are_listed_where_a_heavy_package_is_missing(name):
    # None in sys.modules makes every import of that name fail.
    assert imported_by(f"import sys\nsys.modules[{name!r}] = None\n{LISTING}") == [name]


def test_every_public_name_can_be_had():
    # `scene` needs 3D Slicer's own package; it is tried where that is.
    code = (
        "import SaliencyExplainLib as sx\n"
        "for name in sx.__all__:\n"
        "    assert name == 'scene' or getattr(sx, name) is not None, name"
    )
    imported_by(code)


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    import SaliencyExplainLib as sx

    with pytest.raises(AttributeError, match="has no attribute 'explian'"):
        _ = sx.explian
