"""Apply that turns into Cancel, progress with the time that is left, and the log."""

import time

import slicer
from slicer.i18n import tr as _

from .runner import State
from .widgets import duration

_SHOWN_MS = 3000


class RunSection:
    """Shows what a Runner does; the runner's observer."""

    def __init__(self, ui, panel):
        self.ui, self._panel = ui, panel
        ui.applyButton.connect("clicked(bool)", self._onButton)
        ui.copyLogButton.connect("clicked(bool)", self._onCopy)

    def show(self, problems):
        """Apply's name, state and reasons."""
        ui, state = self.ui, self._panel.runner.state
        busy = state is not State.IDLE
        ui.applyButton.text = {
            State.IDLE: _("Apply"),
            State.CANCELLING: _("Stopping..."),
            State.PUBLISHING: _("Publishing..."),
        }.get(state, _("Cancel"))
        ui.applyButton.enabled = state in (State.LOADING, State.COMPUTING) if busy else not problems
        if busy:
            ui.applyButton.toolTip = _("Stop. The scene stays as it is.")
        else:
            ui.applyButton.toolTip = "\n".join(problems) or _(
                "Explain the model on the volume and lay the map over it."
            )
        for section in (
            ui.inputsCollapsibleButton,
            ui.modelCollapsibleButton,
            ui.targetCollapsibleButton,
            ui.methodCollapsibleButton,
            ui.outputCollapsibleButton,
            ui.advancedCollapsibleButton,
        ):
            section.enabled = not busy
        ui.progressBar.visible = busy

    def say(self, text):
        """One line for people: here, in the status bar and in the log."""
        self.ui.statusLabel.text = text
        slicer.util.showStatusMessage(text.splitlines()[0] if text else "", _SHOWN_MS)
        self.log(text)

    def log(self, text):
        """Lines of the log; it follows unless the user has scrolled up."""
        view = self.ui.logText
        bar = view.verticalScrollBar()
        follow = bar.value >= bar.maximum
        clock = time.strftime("%H:%M:%S")
        for line in text.splitlines():
            view.appendPlainText(f"{clock}  {line}")
        if follow:
            bar.setValue(bar.maximum)

    # The runner's observer

    def onState(self):
        state, bar = self._panel.runner.state, self.ui.progressBar
        # Nothing is countable yet: a busy bar until the first progress.
        if state in (State.LOADING, State.COMPUTING, State.CANCELLING, State.PUBLISHING):
            bar.setRange(0, 0)
        else:
            bar.setRange(0, 1000)
            bar.setValue(0)
        words = {
            State.LOADING: _("Loading the model..."),
            State.COMPUTING: _("Starting..."),
            State.CANCELLING: _("Stopping..."),
            State.PUBLISHING: _("Publishing..."),
        }
        if state in words:
            self.ui.statusLabel.text = words[state]
        self._panel.refresh()

    def onProgress(self, fraction, message, remaining):
        bar = self.ui.progressBar
        bar.setRange(0, 1000)
        bar.setValue(round(1000 * min(1.0, max(0.0, fraction))))
        bar.setFormat(_("{percent} %").format(percent=int(100 * fraction)))
        text = message
        if remaining is not None:
            text = _("{message}, {time} left").format(message=message, time=duration(remaining))
        self.ui.statusLabel.text = text
        self._panel.trust.progress(fraction, text)

    def onWaiting(self, seconds):
        self.ui.statusLabel.text = _("Working for {time}...").format(time=duration(seconds))

    def onCancelled(self):
        self.say(_("Cancelled; the scene is as it was."))

    # Slots

    def _onButton(self, checked=False):
        if self._panel.runner.busy:
            self._panel.runner.cancel()
        else:
            self._panel.apply()

    def _onCopy(self, checked=False):
        printed = self._panel.runner.log
        text = self.ui.logText.plainText + (f"\n\n{printed}" if printed else "")
        slicer.app.clipboard().setText(text)
