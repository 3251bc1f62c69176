"""Widgets for a method's parameters, built from its declaration."""

import dataclasses

import ctk
import qt
from slicer.i18n import tr as _

from .widgets import data_of, items_of, select

#: A parameter of this name gets the layer picker.
LAYER = "layer"
# Steps of a slider, and the widest range that gets one.
_SLIDER_STEPS = 1000


class MethodForm:
    """A form that is rebuilt for another method and updated for other values.

    :param holder: widget that gets the form's layout.
    :param changed: called with a parameter's name and its new value.
    """

    def __init__(self, holder, changed):
        self._layout = qt.QFormLayout(holder)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._layout.setFieldGrowthPolicy(qt.QFormLayout.AllNonFixedFieldsGrow)
        self._changed = changed
        self._fields = {}
        self._method = None
        self._showing = False

    @property
    def names(self):
        return list(self._fields)

    def field(self, name):
        """The widget of a parameter."""
        return self._fields[name].widget

    def show(self, method, values, layers=(), defaultLayer=None):
        """Show a method's parameters.

        :param values: values that differ from the defaults.
        :param layers: dictionaries of the worker's Layers answer.
        :param defaultLayer: layer that is chosen when none is named.
        """
        self._showing = True
        try:
            if method is not self._method:
                self._build(method)
            for one in _shown(method):
                field = self._fields[one.name]
                if isinstance(field, _LayerField):
                    field.offer(layers, defaultLayer)
                field.write(values.get(one.name, one.default))
        finally:
            self._showing = False

    def _build(self, method):
        # The references go first: reading a deleted widget raises.
        self._fields = {}
        while self._layout.rowCount() > 0:
            self._layout.removeRow(0)
        self._method = method
        for one in _shown(method):
            field = self._make(one)
            facts = one.metadata
            field.widget.toolTip = _("{help} (default: {default})").format(
                help=facts["help"], default=one.default if one.default != "" else _("automatic")
            )
            self._fields[one.name] = field
            self._layout.addRow(_title(one), field.widget)

    def _make(self, one):
        if one.name == LAYER:
            return _LayerField(one, self._tell)
        if one.metadata["choices"]:
            return _ChoiceField(one, self._tell)
        return next(field for kind, field in _KINDS if isinstance(one.default, kind))(
            one, self._tell
        )

    def _tell(self, name):
        if not self._showing and name in self._fields:
            self._changed(name, self._fields[name].read())


class _Field:
    """A widget, and how its value is read and written."""

    def __init__(self, one, tell):
        self.name = one.name
        self._tell = tell
        self.widget = self.make(one)

    def connect(self, signal, widget=None):
        # The value itself is read from the widget.
        (widget or self.widget).connect(signal, lambda *_value: self._tell(self.name))


class _LayerField(_Field):
    """A list of layers in which a name can be typed too."""

    def make(self, one):
        self.widget = box = qt.QComboBox()
        box.editable = True
        box.setInsertPolicy(qt.QComboBox.NoInsert)
        box.setSizeAdjustPolicy(qt.QComboBox.AdjustToMinimumContentsLengthWithIcon)
        box.minimumContentsLength = 12
        self.connect("currentIndexChanged(int)")
        self.connect("editingFinished()", box.lineEdit())
        return box

    def offer(self, layers, default):
        first = _("Automatic ({layer})").format(layer=default) if default else _("Automatic")
        items = [(first, ""), *((layer_text(one), one["name"]) for one in layers)]
        box = self.widget
        if items_of(box) != items:
            box.clear()
            for text, name in items:
                box.addItem(text, name)

    def read(self):
        typed = self.widget.currentText.strip()
        index = self.widget.findText(typed)
        return data_of(self.widget, index) if index >= 0 else typed

    def write(self, value):
        if select(self.widget, value) < 0 and self.widget.currentText != value:
            self.widget.setEditText(value)


class _ChoiceField(_Field):
    def make(self, one):
        self.widget = box = qt.QComboBox()
        for choice in one.metadata["choices"]:
            box.addItem(choice, choice)
        self.connect("currentIndexChanged(int)")
        return box

    def read(self):
        return data_of(self.widget, self.widget.currentIndex)

    def write(self, value):
        select(self.widget, value)


class _CheckField(_Field):
    def make(self, one):
        self.widget = qt.QCheckBox()
        self.connect("toggled(bool)")
        return self.widget

    def read(self):
        return self.widget.checked

    def write(self, value):
        self.widget.checked = bool(value)


class _NumberField(_Field):
    """Whole numbers and very wide ranges are typed, others have a slider too."""

    def make(self, one):
        facts = one.metadata
        if isinstance(one.default, int):
            self.widget = box = qt.QSpinBox()
            # Range before value: a value outside the old range would be clipped.
            box.setRange(int(facts["low"]), int(facts["high"]))
            self.connect("valueChanged(int)")
            return box
        span, decimals = facts["high"] - facts["low"], decimals_of(one)
        # On a slider a pixel of a very wide range would be all values that anybody wants.
        wide = span > _SLIDER_STEPS
        self.widget = box = qt.QDoubleSpinBox() if wide else ctk.ctkSliderWidget()
        box.decimals = decimals
        box.minimum, box.maximum = float(facts["low"]), float(facts["high"])
        step = 1.0 if wide else round(span / _SLIDER_STEPS, decimals)
        box.singleStep = max(10**-decimals, step)
        if facts["unit"]:
            box.suffix = f" {facts['unit']}"
        self.connect("valueChanged(double)")
        return box

    def read(self):
        return self.widget.value

    def write(self, value):
        if self.widget.value != value:
            self.widget.value = value


class _TextField(_Field):
    def make(self, one):
        self.widget = qt.QLineEdit()
        self.connect("editingFinished()")
        return self.widget

    def read(self):
        return self.widget.text.strip()

    def write(self, value):
        if self.widget.text != value:
            self.widget.text = value


# bool before int: True is an int to Python.
_KINDS = ((bool, _CheckField), ((int, float), _NumberField), (object, _TextField))


def default_of(method, name):
    """Default value of a parameter."""
    return next(one.default for one in dataclasses.fields(method) if one.name == name)


def decimals_of(one):
    """Decimals that show a parameter's default and its lowest value as they are; at least 2."""
    texts = [f"{float(value):.8f}".rstrip("0") for value in (one.default, one.metadata["low"])]
    return max(2, *(len(text.partition(".")[2]) for text in texts))


def _shown(method):
    # A label map is the segmentation that is chosen under Inputs.
    return [one for one in dataclasses.fields(method) if one.metadata["kind"] != "labelmap"]


def _title(one):
    words = one.name.replace("_mm", "").replace("_", " ")
    unit = one.metadata["unit"] if isinstance(one.default, int) else ""
    return f"{words.capitalize()} ({unit}):" if unit else f"{words.capitalize()}:"


def layer_text(layer):
    """One line for a layer: name, kind, channels, voxel size; what to mind."""
    shape = layer.get("shape") or []
    size = " x ".join(str(one) for one in shape)
    text = f"{layer['name']}  {layer.get('kind', '')} {size}"
    if layer.get("feeds_instance_norm"):
        text += "  " + _("(feeds an instance norm: Grad-CAM is noise there)")
    return text
