"""Method: a list that can be searched, a card, and the parameters."""

from slicer.i18n import tr as _

import SaliencyExplainLib

from . import parameters as asked_for
from .method_card import card, matches
from .method_form import MethodForm, default_of
from .widgets import later, quiet

#: The parameter node's default.
FIRST = "integrated_gradients"


class MethodSection:
    """Built from the methods' own declarations; a new method appears by itself."""

    def __init__(self, ui, panel, model):
        self.ui, self._panel, self._model = ui, panel, model
        self._names = []
        methods = SaliencyExplainLib.methods()
        # Sorted by family, in the order in which the families are declared, the default's first.
        families = [methods[FIRST].family, *(one.family for one in methods.values())]
        for name, method in sorted(methods.items(), key=lambda one: families.index(one[1].family)):
            # Added as a text: an item that Python made would be Python's to delete.
            ui.methodList.addItem(f"{method.title}  ({method.family})")
            ui.methodList.item(len(self._names)).setToolTip(card(method))
            self._names.append(name)
        self._form = MethodForm(ui.methodFormWidget, self._onValue)
        ui.methodList.connect("currentRowChanged(int)", self._onRow)
        ui.methodSearchBox.connect("textChanged(QString)", self._onSearch)
        ui.methodDefaultsButton.connect("clicked(bool)", self._onDefaults)

    @property
    def form(self):
        return self._form

    def show(self, parameters):
        ui = self.ui
        method = SaliencyExplainLib.methods().get(parameters.method)
        if method is None:
            ui.methodInfoLabel.text = _("There is no method '{name}'.").format(
                name=parameters.method
            )
            return
        with quiet(ui.methodList):
            ui.methodList.setCurrentRow(self._names.index(method.name))
        values = asked_for.changed_parameters(parameters)
        ui.methodInfoLabel.text = card(method, values)
        ui.methodDefaultsButton.enabled = bool(values)
        if method.needs_layer:
            self._model.askLayers()
        # The widget that was changed may belong to the form that is about to be rebuilt.
        later(self._showForm)

    def _showForm(self):
        parameters = self._panel.parameters
        method = SaliencyExplainLib.methods().get(parameters.method) if parameters else None
        if method is not None:
            self._form.show(
                method,
                asked_for.changed_parameters(parameters),
                self._model.layers,
                self._model.defaultLayers.get(method.name),
            )

    def _onRow(self, row):
        if self._panel.parameters is not None and 0 <= row < len(self._names):
            self._panel.parameters.method = self._names[row]

    def _onSearch(self, text):
        methods = SaliencyExplainLib.methods()
        for row, name in enumerate(self._names):
            self.ui.methodList.item(row).setHidden(not matches(methods[name], text))

    def _onValue(self, name, value):
        parameters = self._panel.parameters
        if parameters is None:
            return
        method = SaliencyExplainLib.methods()[parameters.method]
        values = asked_for.changed_parameters(parameters)
        if value == default_of(method, name):
            values.pop(name, None)
        else:
            values[name] = value
        if values != asked_for.changed_parameters(parameters):
            asked_for.set_changed_parameters(parameters, values)

    def _onDefaults(self, checked=False):
        if self._panel.parameters is not None:
            asked_for.set_changed_parameters(self._panel.parameters, {})
