"""Qt as Slicer's Python sees it, on PySide6.

PythonQt shows Qt properties as attributes, refuses unknown ones, and connects signals by their
spelled-out C++ signature. The faces made here do the same on real Qt objects, so that plain Qt
widgets, timers and processes behave as they do; `connect` to a signal that does not exist fails,
where PythonQt would only print a line.
"""

from __future__ import annotations

import types
import typing

import pytest

pytest.importorskip("PySide6.QtWidgets", reason="PySide6 is not installed", exc_type=ImportError)
import shiboken6
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import QObject


def application() -> QtWidgets.QApplication:
    """The one Qt application of the process; without a screen."""
    return QtWidgets.QApplication.instance() or QtWidgets.QApplication(
        ["tests", "-platform", "offscreen"]
    )


# -- faces: PySide6 objects as PythonQt shows them -----------------------------------------------

_FACES: dict[type, type] = {}


class _Kind(type):
    """Class attributes (enumerations, static methods) come from the Qt class."""

    def __getattr__(cls, name):
        if name.startswith("_"):
            raise AttributeError(name)
        value = getattr(cls._qt, name)
        if isinstance(value, type | int) or not callable(value):
            return value
        return lambda *arguments: face(value(*map(plain, arguments)))


class Face(metaclass=_Kind):
    """A Qt object with its properties as attributes."""

    _qt: typing.ClassVar[type] = QObject

    def __init__(self, *arguments):
        self._take(self._qt(*map(plain, arguments)))

    def _take(self, thing):
        object.__setattr__(self, "_thing", thing)
        thing._face = self
        return self

    def __bool__(self):
        return shiboken6.isValid(self._thing)

    def __eq__(self, other):
        return isinstance(other, Face) and self._thing is other._thing

    __hash__ = object.__hash__

    def _alive(self):
        if not self:
            raise ValueError("Trying to access a destroyed Qt object")
        return self._thing

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        thing = self._alive()
        if thing.metaObject().indexOfProperty(name) >= 0:
            return face(thing.property(name))
        value = getattr(thing, name)
        if isinstance(value, QtCore.SignalInstance):
            return types.SimpleNamespace(
                connect=lambda slot: value.connect(_slot(slot)),
                disconnect=lambda slot: value.disconnect(_slot(slot)),
                emit=lambda *arguments: value.emit(*map(plain, arguments)),
            )
        return lambda *arguments: face(value(*map(plain, arguments)))

    def __setattr__(self, name, value):
        thing = self._alive()
        if thing.metaObject().indexOfProperty(name) < 0:
            raise AttributeError(f"{type(thing).__name__} has no property {name!r}")
        thing.setProperty(name, plain(value))

    def connect(self, signal, slot):
        thing = self._alive()
        name = signal.split("(")[0]
        if signal in getattr(thing, "signatures", ()):
            getattr(thing, name).connect(_slot(slot))
        elif thing.metaObject().indexOfSignal(signal) >= 0:
            QObject.connect(thing, QtCore.SIGNAL(signal), _slot(slot))
        else:
            raise AttributeError(f"{type(thing).__name__} has no signal {signal!r}")
        return True

    def disconnect(self, signal, slot):
        getattr(self._alive(), signal.split("(")[0]).disconnect(_slot(slot))


_SLOTS: dict[typing.Any, typing.Any] = {}


def _slot(slot):
    """A slot whose arguments are faces; the same one for the same slot, so it can be taken off."""
    target = plain(slot)
    if not callable(target) or isinstance(target, QtCore.SignalInstance):
        return target
    if target not in _SLOTS:
        code = getattr(getattr(target, "__func__", target), "__code__", None)
        bound = 1 if hasattr(target, "__self__") else 0
        most = 99 if code is None or code.co_flags & 0x04 else code.co_argcount - bound
        _SLOTS[target] = lambda *arguments: target(*map(face, arguments[:most]))
    return _SLOTS[target]


def face_class(kind: type) -> type:
    """The face of a Qt class."""
    if kind not in _FACES:
        _FACES[kind] = _Kind(kind.__name__, (Face,), {"_qt": kind})
    return _FACES[kind]


def face(thing: typing.Any) -> typing.Any:
    """What PythonQt shows of a value: Qt objects get a face, all else stays."""
    if isinstance(thing, list | tuple) and any(isinstance(one, QObject) for one in thing):
        return [face(one) for one in thing]
    if not isinstance(thing, QObject):
        return thing
    known = getattr(thing, "_face", None)
    return known if known is not None else object.__new__(face_class(type(thing)))._take(thing)


def plain(value: typing.Any) -> typing.Any:
    """The Qt object behind a face."""
    return value._thing if isinstance(value, Face) else value


def qt_module() -> types.ModuleType:
    """Stands in for `qt`."""
    module = types.ModuleType("qt")

    def find(name):
        if name.startswith("__"):
            raise AttributeError(name)
        for home in (QtCore, QtGui, QtWidgets):
            value = getattr(home, name, None)
            if value is not None:
                is_object = isinstance(value, type) and issubclass(value, QObject)
                return face_class(value) if is_object else value
        raise AttributeError(f"module 'qt' has no attribute {name!r}")

    module.__getattr__ = find
    return module


def process_events(milliseconds: int = 0) -> None:
    """Let Qt work through what is waiting, for at least this time."""
    application()
    if milliseconds:
        loop = QtCore.QEventLoop()
        QtCore.QTimer.singleShot(milliseconds, loop.quit)
        loop.exec()
    QtCore.QCoreApplication.sendPostedEvents(None, QtCore.QEvent.DeferredDelete)
    QtWidgets.QApplication.processEvents()


def wait_for(condition: typing.Callable[[], bool], seconds: float = 30.0) -> bool:
    """Let Qt work until a condition holds; whether it came to hold in time."""
    timer = QtCore.QElapsedTimer()
    timer.start()
    while not condition() and timer.elapsed() < 1000 * seconds:
        process_events(5)
    return condition()
