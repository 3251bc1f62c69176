"""Python packages that a run needs inside the application: what is missing, and how it gets there.

torch comes from the PyTorch extension, which chooses the build for the graphics card; it is never
installed from here by pip. Nothing is installed without a question, and only when it is needed.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from pathlib import Path

from ..errors import MissingPackageError
from .host import slicer

__all__ = ["NEEDED", "ensure_packages", "missing_packages", "setup_sentence"]

#: Packages without which no model can be loaded.
NEEDED = ("torch", "monai", "tqdm")


def missing_packages() -> tuple[str, ...]:
    """Return the needed packages that Python does not find; none is imported."""
    return tuple(name for name in NEEDED if importlib.util.find_spec(name) is None)


def setup_sentence() -> str:
    """Return what to do before a model can be loaded, in one sentence; empty if nothing is."""
    missing = missing_packages()
    if "torch" in missing and not _has_pytorch_extension():
        return (
            "PyTorch is missing: install the PyTorch extension (Extensions Manager), restart "
            "Slicer, and agree to the installation that is offered when you load a model."
        )
    if missing:
        names = ", ".join(missing)
        return f"{names} missing: their installation is offered when you load a model."
    return ""


def ensure_packages(requirements: Path) -> None:
    """Install what is missing, after a question.

    Parameters
    ----------
    requirements : Path
        Requirements file with everything but torch.

    Raises
    ------
    MissingPackageError
        If something is still missing, because it cannot be had or the user declined.
    """
    if not missing_packages():
        return
    if "torch" in missing_packages() and _has_pytorch_extension():
        _install_torch()
    if "torch" not in missing_packages() and missing_packages():
        _install(requirements)
    importlib.invalidate_caches()
    if missing_packages():
        raise MissingPackageError(setup_sentence())


def _has_pytorch_extension() -> bool:
    return importlib.util.find_spec("PyTorchUtils") is not None


def _install_torch() -> None:
    logic = importlib.import_module("PyTorchUtils").PyTorchUtilsLogic()
    # Its arguments differ by version of the PyTorch extension.
    known = inspect.signature(logic.installTorch).parameters
    wanted = {"askConfirmation": True, "torchVersionRequirement": ">=2.1"}
    logic.installTorch(**{key: value for key, value in wanted.items() if key in known})


def _install(requirements: Path) -> None:
    # slicer.packaging is there since Slicer 5.12. It asks by itself.
    if importlib.util.find_spec("slicer.packaging") is not None:
        packaging = importlib.import_module("slicer.packaging")
        listed = packaging.load_requirements(requirements)
        try:
            packaging.pip_ensure(listed, requester="SaliencyExplain")
        except RuntimeError as error:  # what it raises when the user declines
            raise MissingPackageError(f"{error}. {setup_sentence()}") from error
        return
    lines = [line.strip() for line in requirements.read_text(encoding="utf-8").splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    question = f"SaliencyExplain needs these Python packages: {', '.join(names)}. Install them now?"
    if slicer.util.confirmOkCancelDisplay(question):
        slicer.util.pip_install(names)
