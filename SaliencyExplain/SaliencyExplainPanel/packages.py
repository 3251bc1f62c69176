"""Python packages of Slicer's own Python: what is missing, one question, and its installation.

torch comes from the PyTorch extension, which knows the build for the graphics card; it is never
installed by pip from here. Everything else is installed by Slicer's own mechanism.
"""

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from SaliencyExplainLib import errors

#: Packages without which no model can be loaded; the worker imports them, not Slicer.
NEEDED = ("torch", "monai")
_EXTENSION, _EXTENSION_MODULE = "PyTorch", "PyTorchUtils"
# torch 2.13's licence files exceed the longest path of Windows, which leaves half a package behind
# (Slicer/light-the-torch issue 176). It can go when that is closed.
_TORCH = ">=2.1,<2.13" if sys.platform == "win32" else ">=2.1"


def missing():
    """Needed packages that Slicer's Python does not find; none is imported."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def has_extension():
    return importlib.util.find_spec(_EXTENSION_MODULE) is not None


def sentence():
    """What has to be done before a model can be loaded; empty when nothing is missing."""
    lacking = missing()
    if not lacking:
        return ""
    if "torch" in lacking and not has_extension():
        return _(
            "PyTorch is missing. Press Install to get the PyTorch extension (Slicer restarts), or "
            "use another Python that has torch and monai."
        )
    return _(
        "Missing in Slicer's Python: {names}. Press Install, or use another Python that has them."
    ).format(names=", ".join(lacking))


def question():
    """The one question before anything is installed."""
    lacking = missing()
    names = ", ".join(lacking)
    if "torch" in lacking:
        return _(
            "SaliencyExplain needs these Python packages: {names}. PyTorch is installed by the "
            "PyTorch extension (0.2 to 3 GB, some minutes), the others with pip. Install them now?"
        ).format(names=names)
    return _(
        "SaliencyExplain needs these Python packages: {names} (a few MB). Install them now?"
    ).format(names=names)


def ensure(requirements, confirmed=None):
    """Install what is missing, after one question.

    :param requirements: requirements file with everything but torch.
    :param confirmed: answer to the question, for scripts; None asks.
    :raises MissingPackageError: if something is still missing afterwards.
    """
    lacking = missing()
    if not lacking:
        return
    if "torch" in lacking and not has_extension():
        # The Extensions Manager asks by itself; under --testing it would install unasked.
        if confirmed is False or slicer.app.testingEnabled():
            raise errors.MissingPackageError(sentence())
        _install_extension()
    else:
        if confirmed is None:
            confirmed = slicer.util.confirmOkCancelDisplay(question())
        if not confirmed:
            raise errors.MissingPackageError(sentence())
        if "torch" in lacking:
            _install_torch()
    # monai asks for torch; pip must not bring another build of it.
    if "torch" not in missing():
        _install_others(requirements)
    importlib.invalidate_caches()
    if missing():
        raise errors.MissingPackageError(sentence())


def _install_extension():
    model = None
    if hasattr(slicer.app, "extensionsManagerModel"):
        model = slicer.app.extensionsManagerModel()
    if model is None:
        raise errors.MissingPackageError(
            _("This Slicer has no Extensions Manager. Use another Python that has torch and monai.")
        )
    # True: Slicer has to restart, and asks before it does.
    if not model.installExtensionFromServer(_EXTENSION, True):
        raise errors.MissingPackageError(
            _(
                "The PyTorch extension could not be installed. Check the network, or install it "
                "in the Extensions Manager."
            )
        )


def _install_torch():
    try:
        logic = importlib.import_module(_EXTENSION_MODULE).PyTorchUtilsLogic()
        # The arguments differ between versions of the PyTorch extension.
        known = inspect.signature(logic.installTorch).parameters
        wanted = {"askConfirmation": False, "torchVersionRequirement": _TORCH}
        logic.installTorch(**{name: one for name, one in wanted.items() if name in known})
    except Exception as error:  # whatever a half installed torch makes it raise
        raise errors.MissingPackageError(
            _(
                "PyTorch could not be installed ({error}). Uninstall it in the module PyTorch "
                "Util, restart Slicer and try again."
            ).format(error=error)
        ) from error


def _install_others(requirements):
    if not [name for name in missing() if name != "torch"]:
        return
    try:
        # slicer.packaging is there since Slicer 5.12.
        if importlib.util.find_spec("slicer.packaging") is not None:
            packaging = importlib.import_module("slicer.packaging")
            listed = packaging.load_requirements(Path(requirements))
            known = inspect.signature(packaging.pip_ensure).parameters
            wanted = {"requester": "SaliencyExplain", "prompt_install": False}
            packaging.pip_ensure(
                listed, **{name: one for name, one in wanted.items() if name in known}
            )
        else:
            slicer.util.pip_install(_lines(requirements))
    except Exception as error:  # pip's errors are of several kinds
        raise errors.MissingPackageError(
            _("The packages could not be installed ({error}). Check the network.").format(
                error=error
            )
        ) from error


def _lines(requirements):
    text = Path(requirements).read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]
