"""The computer: which Python computes, on which device, and what is missing for it."""

from pathlib import Path

from slicer.i18n import tr as _

from SaliencyExplainLib import worker

from . import packages, settings
from .widgets import choose_file, data_of, fill


class ComputerSection:
    """Settings of this computer, kept in the application's settings."""

    def __init__(self, ui, panel):
        self.ui, self._panel = ui, panel
        self._devices = []
        self._asked = None
        ui.installButton.connect("clicked(bool)", self._onInstall)
        ui.interpreterButton.connect("clicked(bool)", self._onInterpreter)
        ui.pythonChooseButton.connect("clicked(bool)", self._onInterpreter)
        ui.pythonResetButton.connect("clicked(bool)", self._onReset)
        ui.deviceComboBox.connect("currentIndexChanged(int)", self._onDevice)
        ui.advancedCollapsibleButton.connect("contentsCollapsed(bool)", self._onCollapsed)

    def show(self):
        ui = self.ui
        problem = self.problem()
        ui.setupLabel.text = problem
        ui.setupFrame.visible = bool(problem)
        ui.installButton.visible = not settings.interpreter()
        chosen = settings.interpreter()
        ui.pythonInfoLabel.text = chosen or _("Slicer's own")
        ui.pythonResetButton.enabled = bool(chosen)
        known = [(one["title"], one["name"]) for one in self._devices]
        if settings.device() and settings.device() not in [name for _title, name in known]:
            known.append((settings.device(), settings.device()))
        fill(ui.deviceComboBox, [(_("Automatic"), ""), *known], settings.device())

    def problem(self):
        """What keeps this computer from computing, in one sentence; empty for nothing."""
        chosen = settings.interpreter()
        if chosen:
            if not Path(chosen).is_file():
                return _("There is no Python program {path}. Choose another one.").format(
                    path=chosen
                )
            return ""
        return packages.sentence()

    def setInterpreter(self, path):
        """Compute with this Python program; "" for Slicer's own."""
        settings.set_interpreter(path)
        self._asked, self._devices = None, []
        # A process of the other Python may still be warm.
        self._panel.runner.stop()
        self._panel.refresh()
        self._askDevices()

    def _askDevices(self):
        key = settings.interpreter()
        if self._asked == key or self._panel.runner.busy or self.problem():
            return
        self._asked = key
        self._panel.runner.ask(worker.Hello(), self._onHello, self._onNoHello)

    def _onHello(self, value):
        self._devices = value.get("devices") or []
        lacking = value.get("missing") or []
        if lacking:
            self._panel.report(
                _("{path} lacks {names}. Install them there, or choose another Python.").format(
                    path=value.get("executable"), names=", ".join(lacking)
                )
            )
        elif value.get("problem"):
            self._panel.report(value["problem"])
        self._panel.refresh()

    def _onNoHello(self, problem):
        self._asked = None
        self._panel.report(problem.text, problem.details)

    # Slots

    def _onInstall(self, checked=False):
        self._panel.ensurePackages()

    def _onInterpreter(self, checked=False):
        path = choose_file(_("Python program with torch and monai"))
        if path:
            self.setInterpreter(path)

    def _onReset(self, checked=False):
        self.setInterpreter("")

    def _onDevice(self, index):
        if index >= 0:
            settings.set_device(data_of(self.ui.deviceComboBox, index))

    def _onCollapsed(self, collapsed):
        if not collapsed:
            self._askDevices()
