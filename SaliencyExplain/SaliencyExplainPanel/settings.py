"""Settings of this computer, in the application's settings file and not in the scene."""

import slicer

_GROUP = "SaliencyExplain/"
_RECENT = 8
_TRUSTED = 200


def interpreter():
    """Python program that computes; empty for Slicer's own."""
    return _read("Interpreter")


def set_interpreter(path):
    _write("Interpreter", path)


def device():
    """Device name such as "cuda:0"; empty for the automatic choice."""
    return _read("Device")


def set_device(name):
    _write("Device", name)


def recent_models():
    """Paths of models that were loaded here, newest first."""
    return [one for one in _read("RecentModels").split("\n") if one]


def remember_model(path):
    others = [one for one in recent_models() if one != path]
    _write("RecentModels", "\n".join([path, *others][:_RECENT]))


def is_trusted(sha256):
    """Whether the person has trusted a file (or folder) of just this content on this computer."""
    return bool(sha256) and sha256 in _read("TrustedModels").split("\n")


def trust(sha256):
    """Remember that a content is trusted; the newest are kept."""
    others = [one for one in _read("TrustedModels").split("\n") if one and one != sha256]
    _write("TrustedModels", "\n".join([sha256, *others][:_TRUSTED]))


def _read(name):
    value = slicer.app.userSettings().value(_GROUP + name)
    return value if isinstance(value, str) else ""


def _write(name, value):
    slicer.app.userSettings().setValue(_GROUP + name, value)
