"""The panel's worker process: a real QProcess, with the real worker and with stand-ins for it."""

from __future__ import annotations

import os
import sys
import types

import pytest
import slicer_stand_ins
import widget_stand_ins as widgets
from PySide6.QtCore import QProcess
from scene_cases import an_input, node_ids
from widget_stand_ins import wait_for

import SaliencyExplainLib as sx
from SaliencyExplainLib import worker
from SaliencyExplainLib.worker import Launch

#: Answers each request with one line in pieces; what it does first is put in by the test.
ECHO = """
import json, os, sys, time
{first}
for line in sys.stdin:
    asked = json.loads(line)
    if asked["type"] == "quit":
        break
    if asked["type"] in ("hello", "load"):
        text = json.dumps({{"type": "done", "job": asked["job"], "value": {{"é": 1}}}},
                          ensure_ascii=False) + "\\n"
        for piece in (text[:9], text[9:]):
            sys.stdout.buffer.write(piece.encode()); sys.stdout.flush(); time.sleep(0.02)
"""


@pytest.fixture
def scene():
    with slicer_stand_ins.a_scene() as one:
        yield one


@pytest.fixture
def shown(monkeypatch, scene):
    return slicer_stand_ins.install(monkeypatch, scene)


@pytest.fixture
def events():
    return []


@pytest.fixture
def a_process(shown, events, monkeypatch):
    """Make a WorkerProcess whose program is a few lines of Python."""
    from SaliencyExplainPanel.process import WorkerProcess

    made = []

    def make(first="", program=sys.executable):
        text = ECHO.format(first=first)
        launch = Launch(program, ["-u", "-c", text], dict(os.environ))
        monkeypatch.setattr(worker, "launch", lambda **options: launch)
        made.append(WorkerProcess(events.append, lambda: ""))
        return made[-1]

    yield make
    for one in made:
        one.close()


def _ends(events):
    return [one for one in events if isinstance(one, worker.Done | worker.Failed | worker.Stopped)]


def test_an_answer_that_comes_in_pieces_is_one_event(a_process, events):
    job = a_process().start(worker.Hello())
    assert wait_for(lambda: _ends(events))
    (end,) = _ends(events)
    assert (end.job, end.value) == (job, {"é": 1})


def test_the_process_stays_warm_for_the_next_request(a_process, events):
    process = a_process("sys.stderr.write(f'pid {os.getpid()}\\n')")
    for count in (1, 2):
        process.start(worker.Hello())
        assert wait_for(lambda count=count: len(_ends(events)) == count)
    assert process.log.count("pid") == 1


def test_a_program_that_does_not_start_is_a_failure_in_a_sentence(a_process, events):
    process = a_process(program="/no/such/python")
    job = process.start(worker.Hello())
    assert _ends(events) == [], "told before the caller knows its job"
    assert wait_for(lambda: _ends(events))
    (end,) = _ends(events)
    assert end.job == job
    assert end.kind == "WorkerError"
    assert end.message


@pytest.mark.parametrize("way", ["os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_a_process_that_dies_fails_its_job_and_the_next_request_gets_a_new_one(
    a_process, events, way, tmp_path
):
    died = tmp_path / "died"  # it dies only the first time
    process = a_process(
        f"if not os.path.exists({str(died)!r}):\n"
        f"    open({str(died)!r}, 'w').close(); sys.stdin.readline(); {way}\n"
    )
    process.start(worker.Hello())
    assert wait_for(lambda: _ends(events))
    assert isinstance(_ends(events)[0], worker.Failed)
    process.start(worker.Hello())
    assert wait_for(lambda: len(_ends(events)) == 2)
    assert isinstance(_ends(events)[1], worker.Done)


def test_stopping_kills_the_process_and_tells_nothing_more(a_process, events):
    process = a_process("sys.stdin.readline(); time.sleep(60)")
    process.start(worker.Hello())
    widgets.process_events(200)
    child = process._child.process
    process.stop()
    assert child.state() == QProcess.NotRunning
    widgets.process_events(50)
    assert _ends(events) == []


def test_a_job_that_does_not_stop_when_asked_is_killed(a_process, events):
    process = a_process("sys.stdin.readline(); time.sleep(60)")
    job = process.start(worker.Hello())
    widgets.process_events(200)
    process.cancel(job)
    assert wait_for(lambda: _ends(events), 10)
    assert isinstance(_ends(events)[0], worker.Stopped)


def test_quitting_the_application_ends_the_process(a_process, shown):
    process = a_process("sys.stdin.readline(); time.sleep(60)")
    process.start(worker.Hello())
    widgets.process_events(100)
    child = process._child.process
    shown.app.emit("aboutToQuit()")
    assert child.state() == QProcess.NotRunning


# -- the real worker -----------------------------------------------------------------------------


def test_a_map_is_measured_cancelled_and_reported_by_the_real_worker(shown, scene, tmp_path):
    import torch

    network = torch.nn.Sequential(
        torch.nn.Conv3d(1, 3, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(3, 2, 3, padding=1)
    )
    torch.jit.script(network.eval()).save(str(tmp_path / "model.ts"))
    an_input(scene, name="Head")
    shown.answer = True  # the file may run its code
    with slicer_stand_ins.a_panel(shown) as panel:
        parameters, module = panel.parameters, shown.module
        parameters.modelTask = sys.modules["SaliencyExplainPanel.parameters"].Task.SEGMENTATION
        parameters.modelLabels, parameters.method = "background,lesion", "gradient"
        parameters.region = module.Region.EVERYWHERE
        panel.ui.modelPathLineEdit.text = str(tmp_path / "model.ts")
        panel.ui.loadModelButton.click()
        assert wait_for(lambda: parameters.modelCard and not panel.runner.busy, 60), shown.errors
        panel.ui.applyButton.click()
        assert wait_for(lambda: not panel.runner.busy, 60)
        volume = parameters.result
        panel.ui.sanityCheckBox.click()
        panel.ui.trustButton.click()
        assert wait_for(lambda: not panel.runner.busy, 60)
        assert shown.errors == []
        found = sx.scene.appraisal_from_map(volume)
        assert found.sanity.method == found.evaluation.method == "gradient"
        assert sx.scene.verdict_from_map(volume).headline in panel.ui.trustVerdictLabel.text
        nodes = node_ids(scene)
        panel.ui.trustButton.click()
        panel.ui.trustButton.click()
        assert wait_for(lambda: not panel.runner.busy, 20)
        assert panel.ui.statusLabel.text == "Cancelled; the scene is as it was."
        assert node_ids(scene) == nodes
        panel.trust.save(str(tmp_path))
        assert wait_for(lambda: not panel.runner.busy, 60)
        assert shown.errors == []
        (page,) = tmp_path.glob("*/report.html")
        assert panel.ui.statusLabel.text == f"The report was written: {page}"
        assert "Sanity check" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_demo_is_loaded_explained_and_cancelled_by_the_real_worker(shown, scene):
    with slicer_stand_ins.a_panel(shown) as panel:
        panel.ui.loadDemoButton.click()
        assert wait_for(lambda: not panel.runner.busy, 120)
        assert "Spacing: 2 x 2 x 2 mm" in panel.ui.modelInfoLabel.text
        panel.parameters.method = "gradient"
        nodes = node_ids(scene)
        panel.ui.applyButton.click()
        widgets.process_events(300)
        panel.ui.applyButton.click()
        assert wait_for(lambda: not panel.runner.busy, 10)
        assert node_ids(scene) == nodes
        assert panel.ui.statusLabel.text == "Cancelled; the scene is as it was."
        panel.ui.applyButton.click()
        assert wait_for(lambda: not panel.runner.busy, 240)
        assert shown.errors == []
        result = panel.parameters.result
        assert result.GetName() == "BrainT1Template Gradient: CSF"
        table = result.GetNodeReference("SaliencyExplain.regionTable")
        assert table.GetNumberOfRows() == 4


@pytest.mark.slow
def test_a_model_file_that_is_missing_is_told_by_the_real_worker(shown, scene):
    with slicer_stand_ins.a_panel(shown) as panel:
        panel.ui.modelPathLineEdit.text = "/no/such/model.ts"
        panel.ui.loadModelButton.click()
        assert wait_for(lambda: not panel.runner.busy, 120)
        assert "no/such/model.ts" in shown.errors[-1][0]
        assert panel.ui.applyButton.toolTip.endswith("its classes are then listed.")


def test_the_fields_of_the_requests_are_those_of_the_worker():
    # A guard for the panel's own use: a renamed field fails here and not in the application.
    fields = types.SimpleNamespace(
        explain=set(worker.Explain.__dataclass_fields__),
        question=set(worker.Question.__dataclass_fields__),
    )
    assert {"image", "segments", "segment_names", "output", "parameters"} <= fields.explain
    assert {"segment", "point_ras_mm", "roi_ras_mm", "contrast_weight"} <= fields.question
