"""Draw the panel into Screenshots/: the demo, loaded and explained by the real worker.

`python Testing/Data/draw_panel.py` needs PySide6 and slicer-core, no 3D Slicer. Plain Qt widgets
are real; CTK and MRML widgets are the stand-ins of the tests, so details differ from 3D Slicer.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Testing" / "Python")]

import slicer_stand_ins  # noqa: E402 - found through the path that was just set
import widget_stand_ins as widgets  # noqa: E402
from PySide6 import QtGui, QtWidgets  # noqa: E402

FOLDER = ROOT / "Screenshots"
#: Seconds that loading or computing may take.
PATIENCE = 600
METHOD = "integrated_gradients"
DARK = {"Window": 0x353535, "Base": 0x232323, "AlternateBase": 0x2B2B2B, "Button": 0x3F3F3F}


def main() -> None:
    """Draw it at 400 and 600 pixels, light and dark."""
    patch = pytest.MonkeyPatch()
    with slicer_stand_ins.a_scene() as scene:
        shown = slicer_stand_ins.install(patch, scene)
        QtWidgets.QApplication.setStyle("Fusion")
        with slicer_stand_ins.a_panel(shown) as panel:
            panel.ui.loadDemoButton.click()
            widgets.wait_for(lambda: not panel.runner.busy, PATIENCE)
            panel.parameters.outputName = "white matter"
            panel.parameters.method = METHOD
            widgets.process_events()
            panel.method.form.field("steps").value = 8
            draw(panel, "panel_ready.png", 400)
            panel.ui.applyButton.click()
            widgets.wait_for(lambda: panel.ui.progressBar.value > 300, PATIENCE)
            draw(panel, "panel_running.png", 400)
            widgets.wait_for(lambda: not panel.runner.busy, PATIENCE)
            if shown.errors:
                raise SystemExit(str(shown.errors))
            panel.ui.trustButton.click()
            widgets.wait_for(lambda: not panel.runner.busy, PATIENCE)
            if shown.errors:
                raise SystemExit(str(shown.errors))
            draw(panel, "panel.png", 400)
            draw(panel, "panel_wide.png", 600)
            QtWidgets.QApplication.setPalette(dark())
            draw(panel, "panel_dark.png", 400)
    patch.undo()


def draw(panel: object, name: str, width: int) -> None:
    """Write one picture."""
    widgets.process_events(50)
    # Where this checkout lies is nobody's business.
    path = widgets.plain(panel.ui.modelPathLineEdit)
    before = path.blockSignals(True)
    path.setText("SaliencyExplain/Resources/Models/BrainTissue")
    path.blockSignals(before)
    top = widgets.plain(panel.ui.inputsCollapsibleButton).window()
    top.setFixedWidth(width)
    top.show()
    widgets.process_events(50)
    layout = top.layout()
    tall = layout.heightForWidth(width) if layout.hasHeightForWidth() else top.sizeHint().height()
    top.resize(width, tall)
    widgets.process_events(50)
    top.grab().save(str(FOLDER / name))
    top.hide()


def dark() -> QtGui.QPalette:
    """Colours like those of Slicer's dark style."""
    palette = QtGui.QPalette()
    for role, color in DARK.items():
        palette.setColor(getattr(QtGui.QPalette, role), QtGui.QColor(color))
    for role in ("WindowText", "Text", "ButtonText", "BrightText"):
        palette.setColor(getattr(QtGui.QPalette, role), QtGui.QColor("white"))
        gray = QtGui.QColor(127, 127, 127)
        palette.setColor(QtGui.QPalette.Disabled, getattr(QtGui.QPalette, role), gray)
    palette.setColor(QtGui.QPalette.PlaceholderText, QtGui.QColor(150, 150, 150))
    return palette


if __name__ == "__main__":
    main()
