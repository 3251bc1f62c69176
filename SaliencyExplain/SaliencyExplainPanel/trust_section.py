"""Results, part two: can this map be trusted? The verdict in words, the numbers, the report."""

import html
import re
from pathlib import Path

from slicer.i18n import tr as _

import SaliencyExplainLib

from . import runs, views
from .evaluating import Evaluating, Reporting, plan_of
from .kept import Kept
from .runner import State, problem_of
from .widgets import choose_folder, duration

#: Read on light and on dark panels alike (contrast of 3 and more); the words say the same.
_COLORS = {"passed": "#22925a", "unclear": "#b87500", "failed": "#d9534f", "untested": "#808080"}
_LONGEST_NAME = 80


class TrustSection:
    """Measures the chosen map in the worker; what was found is kept in the scene, beside it."""

    def __init__(self, ui, panel):
        self.ui, self._panel = ui, panel
        self._kept = Kept()
        # Key, text of the verdict, whether anything was measured.
        self._shown = (None, "", False)
        ui.trustButton.connect("clicked(bool)", self._onButton)
        ui.sanityCheckBox.connect("toggled(bool)", lambda checked: panel.refresh())
        ui.trustShowButton.connect("clicked(bool)", self._onShow)
        ui.trustReportButton.connect("clicked(bool)", self._onReport)

    @property
    def keep(self):
        """Keeps the result of a run; see Kept.keep."""
        return self._kept.keep

    @property
    def measuring(self):
        """Whether a map is being measured."""
        return isinstance(self._panel.runner.doing, Evaluating)

    def close(self):
        """Forget what belongs to a scene that goes away."""
        self._kept.close()
        self._shown = (None, "", False)

    def show(self, parameters):
        ui, volume = self.ui, parameters.result
        there, busy = volume is not None, self._panel.runner.busy
        ui.trustGroupBox.enabled = there
        self._showVerdict(volume)
        table = self._table(volume)
        if ui.trustTableView.mrmlTableNode() is not table:
            ui.trustTableView.setMRMLTableNode(table)
        ui.trustTableView.visible = table is not None
        ui.trustShowButton.enabled = table is not None
        ui.trustReportButton.enabled = there and not busy
        ui.sanityCheckBox.enabled = there and not busy
        ui.trustProgressBar.visible = self.measuring
        cost, problem = self._cost(volume) if there else ("", _("No map yet."))
        ui.trustCostLabel.text = problem or cost
        if self.measuring:
            cancelling = self._panel.runner.state is State.CANCELLING
            ui.trustButton.text = _("Stopping...") if cancelling else _("Cancel")
            ui.trustButton.enabled = not cancelling
            ui.trustButton.toolTip = _("Stop. The scene stays as it is.")
        else:
            ui.trustButton.text = _("Measure")
            ui.trustButton.enabled = not busy and not problem
            ui.trustButton.toolTip = problem or _(
                "Measure how far this map can be trusted, in the background. {cost}"
            ).format(cost=cost)

    def progress(self, fraction, text):
        """How far the measuring is; other runs are shown elsewhere."""
        if self.measuring:
            bar = self.ui.trustProgressBar
            bar.setRange(0, 1000)
            bar.setValue(round(1000 * min(1.0, max(0.0, fraction))))
            bar.setFormat(_("{percent} %").format(percent=int(100 * fraction)))
            bar.toolTip = text

    def measure(self, trusted=None):
        """Measure the chosen map.

        :param trusted: answer to the question whether the model's file may run code; None asks.
        """
        panel, volume = self._panel, self._panel.results.current
        if panel.runner.busy or volume is None or not panel.ensurePackages():
            return
        try:
            run = Evaluating(
                volume,
                panel.model.sourceOf,
                self.ui.sanityCheckBox.checked,
                self._kept.of(volume),
            )
        except Exception as error:
            problem = problem_of(error)
            panel.report(problem.text, problem.details)
            return
        self.ui.trustProgressBar.setRange(0, 0)
        panel.log(_("Measuring {name}").format(name=volume.GetName()))
        panel.runner.run(
            run,
            self._onMeasured,
            lambda problem: panel.model.retryTrusted(problem, self.measure, trusted),
        )
        panel.refresh()

    def save(self, folder):
        """Write the page of the chosen map into a new folder inside this one."""
        panel, volume = self._panel, self._panel.results.current
        if panel.runner.busy or volume is None or not folder or not panel.ensurePackages():
            return
        try:
            run = Reporting(volume, free_folder(folder, volume.GetName()))
        except Exception as error:
            panel.report(problem_of(error).text)
            return
        panel.runner.run(
            run, self._onSaved, lambda problem: panel.report(problem.text, problem.details)
        )

    def _showVerdict(self, volume):
        """Only when it may have changed: a map of a whole body is read for it."""
        key, text, known = None, "", False
        if volume is not None:
            record = volume.GetNodeReference("SaliencyExplain.trustRecord")
            key = (volume.GetID(), _stamp(volume), _stamp(record))
            if self._shown[0] == key:
                return
            scene = SaliencyExplainLib.scene
            try:
                text = verdict_text(scene.verdict_from_map(volume))
                known = scene.appraisal_from_map(volume) is not None
            except SaliencyExplainLib.SaliencyExplainError as error:
                text = html.escape(str(error))
        self._shown = (key, text, known)
        self.ui.trustVerdictLabel.text = text

    def _table(self, volume):
        """Table of what was measured on the map that is shown, or None."""
        return runs.metrics_of(volume) if volume is not None and self._shown[2] else None

    def _cost(self, volume):
        """What measuring takes, and why it cannot be done."""
        try:
            plan = plan_of(volume, self.ui.sanityCheckBox.checked, bool(self._kept.of(volume)))
        except SaliencyExplainLib.SaliencyExplainError as error:
            return "", str(error)
        seconds = _seconds(volume, plan)
        if seconds is None:
            return plan.words(), ""
        told = _("{words} At the speed of this map: {time} at most.")
        return told.format(words=plan.words(), time=duration(max(1.0, seconds))), ""

    # What came of it

    def _onMeasured(self, published):
        panel = self._panel
        panel.say(
            _("{headline}. {sentence}").format(
                headline=published.verdict.headline, sentence=published.verdict.sentence
            )
        )
        self.ui.trustGroupBox.collapsed = False
        panel.refresh()

    def _onSaved(self, path):
        self._panel.say(_("The report was written: {path}").format(path=path))
        self._panel.refresh()

    # Slots

    def _onButton(self, checked=False):
        if self.measuring:
            self._panel.runner.cancel()
        else:
            self.measure()

    def _onReport(self, checked=False):
        self.save(choose_folder(_("Where to put the folder of the report")))

    def _onShow(self, checked=False):
        volume = self._panel.results.current
        table = self._table(volume)
        if table is None:
            return
        if not views.show_table_and_plot(table, runs.trust_chart_of(volume)):
            self._panel.say(_("There is no view area to show the table in."))


def verdict_text(verdict):
    """Rich text: the headline with its sign, what was checked, and what speaks against the map."""
    from SaliencyExplainLib.report.verdict import STATES

    def sign(state):
        return f'<font color="{_COLORS[state]}">{html.escape(STATES[state].split(" ")[0])}</font>'

    lines = [f"<big>{sign(verdict.state)} <b>{html.escape(verdict.headline)}</b></big>"]
    lines.append(html.escape(verdict.sentence))
    for check in verdict.checks:
        if check.state == "untested":
            continue
        word = STATES[check.state].partition(" ")[2]
        told = f"{sign(check.state)} {html.escape(word)}: {html.escape(check.name)}"
        if check.state != "passed":
            told += f". <i>{html.escape(check.sentence)}</i>"
        lines.append(told)
    return "<br>".join(lines)


def free_folder(parent, name):
    """A folder that does not exist yet, named after a map."""
    stem = re.sub(r"[^\w .()+-]+", "_", name).strip(" .")[:_LONGEST_NAME] or "map"
    wanted = Path(parent) / f"{stem} report"
    number = 1
    while wanted.exists():
        number += 1
        wanted = Path(parent) / f"{stem} report {number}"
    return str(wanted)


def _seconds(volume, plan):
    """How long a plan may take, from the time that the map took; None where it is not known."""
    from SaliencyExplainLib.quality.plan import price

    passes = price(plan.method) if plan.method is not None else None
    seconds = runs.provenance_of(volume).get("seconds")
    if not passes or plan.passes is None or not isinstance(seconds, float | int):
        return None
    return plan.passes * seconds / passes


def _stamp(node):
    """Changes when the node's content does."""
    if node is None:
        return 0
    image = node.GetImageData() if node.IsA("vtkMRMLVolumeNode") else None
    if image is None:
        return node.GetID(), node.GetMTime()
    return image.GetMTime(), node.GetAttribute("SaliencyExplain.provenance")
