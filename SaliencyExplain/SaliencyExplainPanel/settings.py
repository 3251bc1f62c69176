"""Settings of this computer, in the application's settings file and not in the scene."""

import slicer

_GROUP = "SaliencyExplain/"
_RECENT = 8


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


def _read(name):
    value = slicer.app.userSettings().value(_GROUP + name)
    return value if isinstance(value, str) else ""


def _write(name, value):
    slicer.app.userSettings().setValue(_GROUP + name, value)
