"""Stand-ins for the widgets of the panel, made from its .ui file.

They are strict: a widget knows only the attributes, methods and signals that the real one has (and
that this project uses), so that a misspelt one fails here as it would fail in the application.
What they cannot show is how the real widgets behave; that needs the application.
"""

from __future__ import annotations

import typing
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UI = ROOT / "SaliencyExplain" / "Resources" / "UI" / "SaliencyExplain.ui"


class Widget:
    """A widget with its Qt properties as attributes, as PythonQt shows them."""

    signals: tuple[str, ...] = ()
    properties: typing.ClassVar[dict] = {"enabled": True, "visible": True, "toolTip": ""}

    def __init__(self, dynamic=None):
        known = {}
        for base in reversed(type(self).__mro__):
            known |= vars(base).get("properties", {})
        self.__dict__.update(known, _known=frozenset(known), _dynamic=dynamic or {}, _slots={})

    def __setattr__(self, name, value):
        if name not in self._known and not name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no property {name!r}")
        self.__dict__[name] = value

    def property(self, name):
        return self._dynamic.get(name)

    def connect(self, signal, slot):
        if signal not in self.signals:
            raise AttributeError(f"{type(self).__name__} has no signal {signal!r}")
        self._slots.setdefault(signal, []).append(slot)

    def disconnect(self, signal, slot):
        self._slots[signal].remove(slot)

    def emit(self, signal, *arguments):
        for slot in list(self._slots.get(signal, [])):
            slot(*arguments)

    def setMRMLScene(self, scene):
        self._scene = scene


class QLabel(Widget):
    properties: typing.ClassVar[dict] = {"text": ""}


class QPushButton(QLabel):
    signals = ("clicked(bool)",)

    def click(self):
        if self.enabled:
            self.emit("clicked(bool)", False)


class QCheckBox(QPushButton):
    signals = ("clicked(bool)", "toggled(bool)")
    properties: typing.ClassVar[dict] = {"checked": False}


class QProgressBar(Widget):
    properties: typing.ClassVar[dict] = {"value": 0}

    def setValue(self, value):
        if not isinstance(value, int):
            raise TypeError("QProgressBar.setValue(int)")
        self.value = value


class QLineEdit(Widget):
    signals = ("textChanged(QString)",)
    properties: typing.ClassVar[dict] = {"text": ""}

    def __setattr__(self, name, value):
        changed = name == "text" and value != self.text
        super().__setattr__(name, value)
        if changed:
            self.emit("textChanged(QString)", value)


class QComboBox(Widget):
    signals = ("currentIndexChanged(int)",)

    def __init__(self, dynamic=None):
        super().__init__(dynamic)
        self._items, self._current = [], -1

    count = property(lambda self: len(self._items))
    currentIndex = property(lambda self: self._current)  # noqa: N815 - the real name
    currentText = property(  # noqa: N815 - the real name
        lambda self: self._items[self._current][0] if self._current >= 0 else ""
    )

    def addItem(self, text, data=None):
        self._items.append((text, data))
        if len(self._items) == 1:
            self.setCurrentIndex(0)

    def itemData(self, index):
        return self._items[index][1] if 0 <= index < len(self._items) else None

    def findData(self, data):
        return next((i for i, item in enumerate(self._items) if item[1] == data), -1)

    def clear(self):
        self._items = []
        self.setCurrentIndex(-1)

    def setCurrentIndex(self, index):
        changed, self._current = index != self._current, index
        if changed:
            self.emit("currentIndexChanged(int)", index)


class ctkCollapsibleButton(QLabel):  # noqa: N801 - the real name
    properties: typing.ClassVar[dict] = {"collapsed": False}


class qMRMLNodeComboBox(Widget):  # noqa: N801 - the real name
    signals = ("currentNodeChanged(vtkMRMLNode*)",)

    def __init__(self, dynamic=None):
        super().__init__(dynamic)
        self._node = None

    def currentNode(self):
        return self._node

    def setCurrentNode(self, node):
        changed, self._node = node is not self._node, node
        if changed:
            self.emit("currentNodeChanged(vtkMRMLNode*)", node)


class qMRMLSegmentSelectorWidget(qMRMLNodeComboBox):  # noqa: N801 - the real name
    signals = ("currentNodeChanged(vtkMRMLNode*)", "currentSegmentChanged(QString)")
    _segment = ""

    def currentSegmentID(self):
        return self._segment

    def setCurrentSegmentID(self, segment):
        changed, self._segment = segment != self._segment, segment
        if changed:
            self.emit("currentSegmentChanged(QString)", segment)


class qMRMLWidget(Widget):  # noqa: N801 - the real name
    pass


class QWidget(Widget):
    pass


def widgets_of(path: Path = UI) -> list[tuple[str, str, dict[str, str], dict[str, str]]]:
    """(class, name, properties, dynamic properties) of each widget in a .ui file."""
    found = []
    for element in ET.parse(path).iter("widget"):
        plain, dynamic = {}, {}
        for one in element.findall("property"):
            value = "".join(one.itertext()).strip()
            (dynamic if one.get("stdset") == "0" else plain)[one.get("name")] = value
        found.append((element.get("class"), element.get("name"), plain, dynamic))
    return found


def load_ui(path):
    """Stands in for slicer.util.loadUI."""
    top = qMRMLWidget()
    top._children = {}
    for kind, name, plain, dynamic in widgets_of(Path(path))[1:]:
        widget = globals()[kind](dynamic)
        if "text" in plain and "text" in widget._known:
            widget.text = plain["text"]
        widget.toolTip = plain.get("toolTip", "")
        widget.enabled = plain.get("enabled", "true") == "true"
        top._children[name] = widget
    return top
