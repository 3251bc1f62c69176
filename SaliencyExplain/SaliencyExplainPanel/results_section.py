"""Results: which map, how it is shown, its numbers, and another map beside it."""

import numpy as np
import slicer
from slicer.i18n import tr as _

import SaliencyExplainLib

from . import rendering, runs, views
from .similarity import similarity
from .widgets import NODE_CHANGED, data_of, fill, quiet


class ResultsSection:
    """Display settings are kept in the display nodes of each map, so the scene keeps them."""

    def __init__(self, ui, panel):
        self.ui, self._panel = ui, panel
        self._compare = views.CompareView()
        self._before = ()
        self._open = False
        self._peak = (None, 0.0)
        self._similar = (None, "")
        ui.runComboBox.connect("currentIndexChanged(int)", self._onRun)
        ui.previousRunButton.connect("clicked(bool)", lambda checked=False: self.step(-1))
        ui.nextRunButton.connect("clicked(bool)", lambda checked=False: self.step(1))
        ui.opacitySlider.connect("valueChanged(double)", self._onOpacity)
        ui.deadBandSlider.connect("valueChanged(double)", self._onDeadBand)
        ui.rangeSlider.connect("valueChanged(double)", self._onRange)
        ui.colorSelector.connect(NODE_CHANGED, self._onColors)
        ui.legendCheckBox.connect("toggled(bool)", self._onLegend)
        ui.renderingCheckBox.connect("toggled(bool)", self._onRendering)
        ui.jumpButton.connect("clicked(bool)", self._onJump)
        ui.showOverlayButton.connect("clicked(bool)", self._onShow)
        ui.restoreViewsButton.connect("clicked(bool)", self._onRestore)
        ui.showTableButton.connect("clicked(bool)", self._onTable)
        ui.compareComboBox.connect("currentIndexChanged(int)", self._onCompareWith)
        ui.compareButton.connect("toggled(bool)", self._onCompare)
        ui.compareGroupBox.connect("toggled(bool)", lambda opened: panel.refresh())

    @property
    def current(self):
        """The chosen map, or None."""
        parameters = self._panel.parameters
        return parameters.result if parameters is not None else None

    def remember(self):
        """Keep what the views show, before a run changes it."""
        self._before = views.layers()

    def added(self, published):
        """A run has been published and its map is shown."""
        runs.remember_chart(published)
        self.choose(published.volumes[0])
        self.ui.regionsGroupBox.collapsed = published.table is None

    def choose(self, volume):
        """Show another map over its anatomy."""
        parameters, before = self._panel.parameters, self.current
        if parameters is None or volume is None:
            return
        if before is not None and before is not volume:
            SaliencyExplainLib.scene.show_legend(before, visible=False)
        parameters.result = volume
        self._lay(volume)
        self._legend(volume)
        if self._compare.shown:
            self._beside()

    def step(self, by):
        """Go to the next or previous map."""
        self.choose(runs.neighbor(runs.maps(slicer.mrmlScene), self.current, by))

    def close(self):
        """Take the comparison away."""
        self._compare.hide()
        with quiet(self.ui.compareButton):
            self.ui.compareButton.checked = False

    def show(self, parameters):
        ui, volume = self.ui, parameters.result
        volumes = runs.maps(slicer.mrmlScene)
        items = [(one.GetName(), one.GetID()) for one in volumes]
        fill(ui.runComboBox, items, volume.GetID() if volume is not None else "")
        there = volume is not None
        if there and not self._open:
            ui.resultsCollapsibleButton.collapsed = False
        self._open = there
        for widget in self._controls():
            widget.enabled = there
        ui.previousRunButton.enabled = ui.nextRunButton.enabled = bool(volumes)
        ui.restoreViewsButton.enabled = bool(self._before)
        ui.resultInfoLabel.text = _info(volume) if there else _("No map yet.")
        table = runs.table_of(volume) if there else None
        if ui.regionsTableView.mrmlTableNode() is not table:
            ui.regionsTableView.setMRMLTableNode(table)
        ui.regionsGroupBox.enabled = table is not None
        self._showDisplay(volume)
        others = [item for item, one in zip(items, volumes, strict=True) if one is not volume]
        other = parameters.compareWith
        fill(ui.compareComboBox, others, other.GetID() if other is not None else "")
        self._showCompare(volume, other)

    def _controls(self):
        ui = self.ui
        return (
            ui.opacitySlider, ui.deadBandSlider, ui.rangeSlider, ui.colorSelector,
            ui.legendCheckBox, ui.renderingCheckBox, ui.jumpButton, ui.showOverlayButton,
        )  # fmt: skip

    def _showDisplay(self, volume):
        ui = self.ui
        display = volume.GetDisplayNode() if volume is not None else None
        with quiet(ui.deadBandSlider, ui.rangeSlider, ui.colorSelector, ui.renderingCheckBox):
            colors = display.GetColorNode() if display is not None else None
            ui.colorSelector.setCurrentNode(colors)
            own = _is_own(colors)
            ui.deadBandSlider.enabled = own
            if own:
                ui.deadBandSlider.value = 100 * _dead_band(colors)
            peak = self._peakOf(volume)
            ui.rangeSlider.enabled = peak > 0
            if peak > 0:
                ui.rangeSlider.value = min(100.0, 100 * display.GetWindowLevelMax() / peak)
            ui.renderingCheckBox.enabled = volume is not None and rendering.available()
            ui.renderingCheckBox.checked = rendering.is_shown(volume)

    def _showCompare(self, volume, other):
        ui = self.ui
        there = volume is not None and other is not None and volume is not other
        ui.compareButton.enabled = there or self._compare.shown
        key = (volume.GetID(), other.GetID()) if there else None
        # Opened only on demand: ranks of a large map take a second.
        if there and ui.compareGroupBox.collapsed:
            key = None
        if key is None:
            ui.similarityLabel.text = _("Choose two maps.") if not there else ""
        else:
            if self._similar[0] != key:
                self._similar = (key, _similarity_text(similarity(volume, other)))
            ui.similarityLabel.text = self._similar[1]

    def _peakOf(self, volume):
        """Largest |value|; kept, as it is asked for on every change of a slider."""
        image = volume.GetImageData() if volume is not None else None
        if image is None:
            return 0.0
        key = (volume.GetID(), image.GetMTime())
        if self._peak[0] != key:
            values = slicer.util.arrayFromVolume(volume)
            self._peak = (key, float(np.abs(values).max()))
        return self._peak[1]

    def _lay(self, volume):
        opacity = self._panel.parameters.opacity
        anatomy = runs.input_of(volume)
        SaliencyExplainLib.scene.show_over(volume, anatomy, opacity, scene=slicer.mrmlScene)

    def _legend(self, volume):
        visible = self._panel.parameters.legend
        SaliencyExplainLib.scene.show_legend(volume, visible, title=runs.title_of(volume))

    # Slots

    def _onRun(self, index):
        node = slicer.mrmlScene.GetNodeByID(data_of(self.ui.runComboBox, index))
        if node is not None:
            self.choose(node)

    def _onOpacity(self, value):
        parameters = self._panel.parameters
        if parameters is not None:
            views.set_opacity([parameters.result, parameters.compareWith], value)

    def _onDeadBand(self, percent):
        colors = self._colors()
        if colors is not None:
            SaliencyExplainLib.scene.set_dead_band(colors, percent / 100)
            self._repaint()

    def _onRange(self, percent):
        volume = self.current
        if volume is None:
            return
        highest = self._peakOf(volume) * percent / 100
        if highest > 0:
            lowest = -highest if runs.is_signed(volume) else 0.0
            volume.GetDisplayNode().SetAutoWindowLevel(False)
            volume.GetDisplayNode().SetWindowLevelMinMax(lowest, highest)
            self._repaint()

    def _onColors(self, node):
        volume = self.current
        if volume is not None and node is not None:
            volume.GetDisplayNode().SetAndObserveColorNodeID(node.GetID())
            self._repaint()
            self._panel.refresh()

    def _repaint(self):
        """The 3D view has colors and opacities of its own."""
        if rendering.is_shown(self.current):
            rendering.show(self.current, True)

    def _colors(self):
        display = self.current.GetDisplayNode() if self.current is not None else None
        colors = display.GetColorNode() if display is not None else None
        return colors if _is_own(colors) else None

    def _onLegend(self, checked):
        if self.current is not None:
            title = runs.title_of(self.current)
            SaliencyExplainLib.scene.show_legend(self.current, checked, title=title)

    def _onRendering(self, checked):
        if self.current is not None:
            rendering.show(self.current, checked)

    def _onJump(self, checked=False):
        if not SaliencyExplainLib.scene.jump_to_peak(self.current, slicer.mrmlScene):
            self._panel.say(_("This map is zero everywhere, so it has no maximum."))

    def _onShow(self, checked=False):
        self.remember()
        self._lay(self.current)
        self._legend(self.current)
        views.fit()
        self._panel.refresh()

    def _onRestore(self, checked=False):
        SaliencyExplainLib.scene.restore_layers(self._before, slicer.mrmlScene)
        if self.current is not None:
            SaliencyExplainLib.scene.show_legend(self.current, visible=False)

    def _onTable(self, checked=False):
        table = runs.table_of(self.current) if self.current is not None else None
        if table is not None and not views.show_table_and_plot(table, runs.chart_of(self.current)):
            self._panel.say(_("There is no view area to show the table in."))

    def _onCompareWith(self, index):
        parameters = self._panel.parameters
        if parameters is not None:
            node_id = data_of(self.ui.compareComboBox, index)
            parameters.compareWith = slicer.mrmlScene.GetNodeByID(node_id)
            if self._compare.shown:
                self._beside()

    def _onCompare(self, checked):
        if checked:
            self._beside()
        else:
            self._compare.hide()

    def _beside(self):
        """Show both maps; a click meanwhile must not start it again."""
        button = self.ui.compareButton
        button.enabled = False
        try:
            self._showBeside()
        finally:
            button.enabled = True

    def _showBeside(self):
        parameters = self._panel.parameters
        first, second = parameters.result, parameters.compareWith
        if first is None or second is None or first is second:
            self.close()
        elif self._compare.show(first, second, parameters.opacity):
            SaliencyExplainLib.scene.jump_to_peak(first, slicer.mrmlScene)
        else:
            self.close()
            self._panel.say(_("There is no view area to show two maps in."))


def _is_own(colors):
    return colors is not None and colors.GetAttribute("SaliencyExplain.signed") is not None


def _dead_band(colors):
    from SaliencyExplainLib.scene.colors import dead_band

    return dead_band(colors)


def _info(volume):
    """What a map says, in a few lines."""
    record = runs.provenance_of(volume)
    target = record.get("target") or {}
    lines = [
        _("{title} of '{output}': {value:.4g} {unit}")
        .format(
            title=runs.title_of(volume),
            output=target.get("output_name") or "",
            value=float(record.get("value") or 0.0),
            unit=target.get("unit") or "",
        )
        .strip()
    ]
    if record.get("completeness_error") is not None:
        lines.append(
            _("Completeness error: {percent:.1f} %").format(
                percent=100 * float(record["completeness_error"])
            )
        )
    if record.get("seconds") is not None:
        lines.append(_("Computed in {seconds:.1f} s").format(seconds=float(record["seconds"])))
    lines += [_("Mind: {warning}").format(warning=one) for one in record.get("warnings") or []]
    return "\n".join(lines)


def _similarity_text(found):
    if found is None:
        return _("The two maps do not overlap.")
    return _(
        "Rank correlation (Spearman): {spearman:.2f}\nOverlap of the strongest 5 % (IoU): "
        "{overlap:.2f}\n{voxels} voxels compared on the first map's grid"
    ).format(spearman=found.spearman, overlap=found.overlap, voxels=found.voxels)
