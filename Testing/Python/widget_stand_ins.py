"""Small stand-ins for CTK's and MRML's widgets, and the .ui file loaded with them.

Names of properties, methods and signals are those of the real ones (as far as they are used), what
they show is only drawn alike. They test wiring; how the real widgets behave only the application
can show.
"""

from __future__ import annotations

import types
import typing
import xml.etree.ElementTree as ET
from pathlib import Path

from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Signal
from PySide6.QtUiTools import QUiLoader
from qt_faces import Face, application, face, face_class, plain, process_events, qt_module, wait_for

ROOT = Path(__file__).resolve().parents[2]
UI = ROOT / "SaliencyExplain" / "Resources" / "UI" / "SaliencyExplain.ui"

__all__ = [
    "MRML",
    "ROOT",
    "UI",
    "application",
    "child_widgets",
    "ctk_module",
    "face",
    "face_class",
    "load_ui",
    "plain",
    "process_events",
    "qt_module",
    "wait_for",
]


# -- stand-ins for CTK and MRML ------------------------------------------------------------------


def stored(kind: type, default: typing.Any, after: str = "") -> Property:
    """A Qt property that only remembers its value; `after` names a method to call then."""
    name = f"_stored_{id(object())}_{stored.count}"
    stored.count += 1

    def read(self):
        return getattr(self, name, default)

    def write(self, value):
        setattr(self, name, value)
        if after:
            getattr(self, after)()

    return Property(kind, read, write)


stored.count = 0


class ctkCollapsibleButton(QtWidgets.QWidget):  # noqa: N801 - the real name
    contentsCollapsed = Signal(bool)  # noqa: N815 - the real name
    signatures = ("contentsCollapsed(bool)",)
    text = stored(str, "")

    def __init__(self, parent=None):
        super().__init__(parent)
        self._collapsed = False
        self.setContentsMargins(0, 24, 0, 0)

    def _set(self, value):
        changed, self._collapsed = value != self._collapsed, value
        self.setMaximumHeight(24 if value else 16777215)
        if changed:
            self.contentsCollapsed.emit(value)

    collapsed = Property(bool, lambda self: self._collapsed, _set)

    def paintEvent(self, event):
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        option.rect = QtCore.QRect(0, 0, self.width(), 22)
        option.text = f"{'▸' if self._collapsed else '▾'} {self.property('text')}"
        painter = QtGui.QPainter(self)
        self.style().drawControl(QtWidgets.QStyle.CE_PushButton, option, painter)


class ctkCollapsibleGroupBox(QtWidgets.QGroupBox):  # noqa: N801 - the real name
    def __init__(self, parent=None):
        super().__init__(parent)
        self.setCheckable(True)
        self.toggled.connect(self._show)

    def _show(self, opened):
        self.setMaximumHeight(16777215 if opened else 22)

    collapsed = Property(
        bool, lambda self: not self.isChecked(), lambda self, v: self.setChecked(not v)
    )


class ctkSearchBox(QtWidgets.QLineEdit):  # noqa: N801 - the real name
    showSearchIcon = stored(bool, False)  # noqa: N815 - the real name


def _of_spin(kind: type, name: str) -> Property:
    """A property that is the spin box's."""
    setter = f"set{name[0].upper()}{name[1:]}"
    return Property(
        kind,
        lambda self: getattr(self._spin, name)(),
        lambda self, value: getattr(self._spin, setter)(value),
    )


class ctkSliderWidget(QtWidgets.QWidget):  # noqa: N801 - the real name
    valueChanged = Signal(float)  # noqa: N815 - the real name
    signatures = ("valueChanged(double)",)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._spin = QtWidgets.QDoubleSpinBox(self)
        self._slider = QtWidgets.QSlider(QtCore.Qt.Horizontal, self)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._slider)
        row.addWidget(self._spin)
        self._slider.setRange(0, 1000)
        self._spin.valueChanged.connect(self._moved)

    def _moved(self, value):
        low, high = self._spin.minimum(), self._spin.maximum()
        self._slider.setValue(round(1000 * (value - low) / ((high - low) or 1)))
        self.valueChanged.emit(value)

    value, minimum = _of_spin(float, "value"), _of_spin(float, "minimum")
    maximum, suffix = _of_spin(float, "maximum"), _of_spin(str, "suffix")
    singleStep = _of_spin(float, "singleStep")  # noqa: N815 - the real name
    decimals, tracking = _of_spin(int, "decimals"), stored(bool, True)


class qMRMLWidget(QtWidgets.QWidget):  # noqa: N801 - the real name
    mrmlSceneChanged = Signal(object)  # noqa: N815 - the real name
    signatures = ("mrmlSceneChanged(vtkMRMLScene*)",)
    _scene = None

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)


class qMRMLNodeComboBox(qMRMLWidget):  # noqa: N801 - the real name
    currentNodeChanged = Signal(object)  # noqa: N815 - the real name
    nodeAddedByUser = Signal(object)  # noqa: N815 - the real name
    signatures = ("currentNodeChanged(vtkMRMLNode*)", "nodeAddedByUser(vtkMRMLNode*)")
    nodeTypes = stored("QStringList", [])  # noqa: N815 - the real name
    noneEnabled = stored(bool, False)  # noqa: N815 - the real name
    addEnabled = stored(bool, True)  # noqa: N815 - the real name
    removeEnabled = stored(bool, True)  # noqa: N815 - the real name
    renameEnabled = stored(bool, False)  # noqa: N815 - the real name
    showChildNodeTypes = stored(bool, True)  # noqa: N815 - the real name
    noneDisplay = stored(str, "None", after="_draw")  # noqa: N815 - the real name
    baseName = stored(str, "")  # noqa: N815 - the real name
    _node = None

    def __init__(self, parent=None):
        super().__init__(parent)
        self._box = QtWidgets.QComboBox(self)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._box)
        self._draw()

    def _draw(self):
        self._box.clear()
        self._box.addItem(
            self._node.GetName() if self._node is not None else self.property("noneDisplay")
        )

    def currentNode(self):
        return self._node

    def setCurrentNode(self, node):
        changed, self._node = node is not self._node, node
        self._draw()
        if changed:
            self.currentNodeChanged.emit(node)


class qMRMLColorTableComboBox(qMRMLNodeComboBox):  # noqa: N801 - the real name
    pass


class qMRMLSegmentSelectorWidget(qMRMLNodeComboBox):  # noqa: N801 - the real name
    currentSegmentChanged = Signal(str)  # noqa: N815 - the real name
    signatures = (*qMRMLNodeComboBox.signatures, "currentSegmentChanged(QString)")
    segmentationNodeSelectorVisible = stored(bool, True)  # noqa: N815 - the real name
    _segment = ""

    def _draw(self):
        self._box.clear()
        self._box.addItem(self._segment or "Select a segment")

    def currentSegmentID(self):
        return self._segment

    def setCurrentSegmentID(self, segment):
        known = self._node.GetSegmentation().GetSegmentIDs() if self._node is not None else ()
        segment = segment if segment in known else ""
        changed, self._segment = segment != self._segment, segment
        self._draw()
        if changed:
            self.currentSegmentChanged.emit(segment)


class qMRMLTableView(QtWidgets.QTableView):  # noqa: N801 - the real name
    _table = None

    def setMRMLScene(self, scene):
        pass

    def mrmlTableNode(self):
        return self._table

    def setMRMLTableNode(self, node):
        self._table = node
        model = QtGui.QStandardItemModel(self)
        table = node.GetTable() if node is not None else None
        columns = range(table.GetNumberOfColumns() if table is not None else 0)
        names = [table.GetColumn(index).GetName() for index in columns]
        model.setHorizontalHeaderLabels([node.GetColumnTitle(name) for name in names])
        for index in columns:
            for row in range(table.GetNumberOfRows()):
                model.setItem(row, index, QtGui.QStandardItem(node.GetCellText(row, index)))
        self.setModel(model)
        self.resizeColumnsToContents()


CTK = (ctkCollapsibleButton, ctkCollapsibleGroupBox, ctkSearchBox, ctkSliderWidget)
MRML = (
    qMRMLColorTableComboBox,
    qMRMLNodeComboBox,
    qMRMLSegmentSelectorWidget,
    qMRMLTableView,
    qMRMLWidget,
)


def ctk_module() -> types.ModuleType:
    """Stands in for `ctk`; widgets that the panel does not use are there for Slicer's own code."""
    module = types.ModuleType("ctk")
    for kind in CTK:
        setattr(module, kind.__name__, face_class(kind))

    def find(name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})

    module.__getattr__ = find
    return module


# -- the .ui file --------------------------------------------------------------------------------


class _Loader(QUiLoader):
    def createWidget(self, kind, parent=None, name=""):
        own = {one.__name__: one for one in (*CTK, *MRML)}.get(kind)
        widget = own(parent) if own is not None else super().createWidget(kind, parent, name)
        widget.setObjectName(name)
        self._kept.append(widget)
        return widget

    _kept: typing.ClassVar[list] = []


def load_ui(path: str | Path = UI) -> Face:
    """Stands in for slicer.util.loadUI.

    The connections of the file are made here: their signals have C++ types that stand-ins lack.
    """
    application()
    tree = ET.parse(path)
    (connections,) = tree.getroot().findall("connections")
    pairs = [(one.findtext("receiver"), one.findtext("slot")) for one in connections]
    tree.getroot().remove(connections)
    buffer = QtCore.QBuffer()
    buffer.setData(ET.tostring(tree.getroot()))
    buffer.open(QtCore.QIODevice.ReadOnly)
    loader = _Loader()
    loader._kept = kept = []
    top = loader.load(buffer, None)
    top._kept = kept  # Qt owns the widgets, but not what Python adds to them
    for name, slot in pairs:
        receiver = next(one for one in kept if one.objectName() == name)
        top.mrmlSceneChanged.connect(getattr(receiver, slot.split("(")[0]))
    return face(top)


def child_widgets(top: Face) -> types.SimpleNamespace:
    """Stands in for slicer.util.childWidgetVariables."""
    children = plain(top).findChildren(QtWidgets.QWidget)
    return types.SimpleNamespace(**{one.objectName(): face(one) for one in children})
