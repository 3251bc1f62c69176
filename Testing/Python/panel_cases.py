"""A panel whose worker is played by the test: it sees the requests and gives the answers."""

from __future__ import annotations

import contextlib

import numpy as np
import slicer_stand_ins
import widget_stand_ins as widgets
from scene_cases import SHAPE, a_map, an_affine, an_explanation, an_input, some_regions

from SaliencyExplainLib import worker
from SaliencyExplainLib.region_rows import RegionTable
from SaliencyExplainLib.worker.jobs import write_result

LOADED = {
    "task": "segmentation",
    "labels": ["background", "lesion", "organ"],
    "channels": ["T1"],
    "parameters": 12,
    "activation": "softmax",
    "preprocessing": "none",
    "inference": "in one piece",
    "spacing_mm": [1.0, 1.0, 2.5],
    "window": [16, 16, 16],
    "scripted": False,
    "device": "cpu",
    "format": "MONAI bundle",
    "name": "some",
    "sha256": "ab" * 32,
    "text": "UNet, segmentation",
    "provenance": {"format": "MONAI bundle"},
    "warm": False,
    "seconds": 1.0,
}


class PlayedProcess:
    """Stands in for process.WorkerProcess; the test answers in the worker's place."""

    def __init__(self, handle, interpreter):
        self._handle, self.interpreter = handle, interpreter
        self.requests, self.cancelled, self.stops, self.closed = {}, [], 0, False
        self.log = ""

    def start(self, request):
        job = str(len(self.requests) + 1)
        self.requests[job] = request
        return job

    def cancel(self, job):
        self.cancelled.append(job)

    def stop(self):
        self.stops += 1

    def close(self):
        self.closed = True

    # What the test says in the worker's place

    @property
    def last(self):
        return list(self.requests)[-1]

    @property
    def request(self):
        return self.requests[self.last]

    def progress(self, fraction, message="pass 3 of 22", remaining=None, job=None):
        self._handle(worker.Progress(job or self.last, fraction, message, 1.0, remaining))

    def done(self, value=None, job=None):
        job = job or self.last
        self._handle(worker.Done(job, self.requests[job], value or {}))

    def failed(self, message, kind="ModelError", details="", trust=None):
        self._handle(worker.Failed(self.last, self.request, kind, message, details, trust))

    def stopped(self):
        self._handle(worker.Stopped(self.last, self.request))

    def appraised(self, appraisal, explanation=None):
        """Write what was found on a map where it was asked for, and say so."""
        write_result(self.request.output, explanation, appraisal=appraisal)
        self.done({"folder": self.request.output, "seconds": 1.0, "warm": True})

    def explained(self, **fields):
        """Write a result where it was asked for, and say so."""
        found = an_explanation(**fields)
        asked = self.request.segments is not None
        regions = RegionTable(tuple(some_regions(found).rows)) if asked else None
        write_result(self.request.output, found, regions)
        self.done({"folder": self.request.output, "seconds": 1.0, "warm": True})


@contextlib.contextmanager
def a_played_panel(shown, monkeypatch):
    """The panel with its process played; `panel.played` is the process."""
    import SaliencyExplainPanel.runner as runner

    monkeypatch.setattr(runner, "WorkerProcess", PlayedProcess)
    with slicer_stand_ins.a_panel(shown) as panel:
        panel.played = panel.runner._process
        yield panel


def load(panel, path="/models/some", **changes):
    """Load a model through the panel's own widgets."""
    panel.ui.modelPathLineEdit.text = path
    panel.ui.loadModelButton.click()
    assert isinstance(panel.played.request, worker.Load)
    panel.played.done({**LOADED, **changes})
    widgets.process_events()


def ready(panel, scene, **changes):
    """A volume and a model are chosen: Apply can be pressed."""
    if panel.parameters.inputVolume is None:
        panel.parameters.inputVolume = an_input(scene, name="Head")
    load(panel, **changes)


def explain(panel, **fields):
    """Press Apply and let the worker answer."""
    panel.ui.applyButton.click()
    assert isinstance(panel.played.request, worker.Explain)
    panel.played.explained(**fields)
    widgets.process_events()
    return panel.parameters.result


def masks():
    left, right = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    left[:2], right[4:] = 1, 1
    return {"left": left, "right": right}


__all__ = [
    "LOADED",
    "PlayedProcess",
    "a_map",
    "a_played_panel",
    "an_affine",
    "explain",
    "load",
    "masks",
    "ready",
]
