"""Models, volumes and waiting for the tests of the worker."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worker_networks

from SaliencyExplainLib import worker
from SaliencyExplainLib.explanation import Explanation
from SaliencyExplainLib.image import make_image

HERE = Path(__file__).resolve().parent
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and shells of POSIX systems")
QUESTION = worker.Question(output="lesion", region="everywhere")
AFFINE = np.array([[0, -2.0, 0, 5], [1.5, 0, 0.3, -7], [0, 0, 3.0, 11], [0, 0, 0, 1]])
COARSE = AFFINE @ np.diag([2.0, 2, 2, 1])


def an_environment() -> dict[str, str]:
    """Environment in which the worker finds the networks of these tests."""
    return {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}


def a_source(folder: Path, network: str = "Plain", **changes: Any) -> worker.ModelSource:
    """Weights of a network of :mod:`worker_networks` in a file."""
    path = folder / f"{network}.pt"
    if not path.exists():
        torch.manual_seed(0)
        torch.save(getattr(worker_networks, network)().state_dict(), path)
    options = {
        "network": f"worker_networks:{network}",
        "task": "segmentation",
        "labels": ["background", "lesion"],
        "channels": ["CT"],
    }
    return worker.ModelSource(str(path), options=options, **changes)


def a_scan(*shape: int) -> worker.Volume:
    voxels = np.random.default_rng(0).normal(size=shape or (1, 8, 9, 10))
    return worker.Volume(voxels, AFFINE, "CT")


def an_explanation(channels: int = 1, **changes) -> Explanation:
    random = np.random.default_rng(0)
    made = Explanation(
        maps=make_image(random.normal(size=(channels, 4, 5, 6)), AFFINE, "CT"),
        network_maps=make_image(random.normal(size=(channels, 3, 3, 3)), COARSE),
        layer_map=make_image(random.normal(size=(1, 2, 2, 2)), COARSE),
        value=1.5,
        target={"output": 1, "output_name": "liver", "region": "prediction"},
        method="gradient",
        title="Gradient",
        parameters={"steps": 3},
        signed=True,
        layers=("a", "b"),
        warnings=("mind",),
        completeness_error=0.25,
        seconds=1.25,
        peak_memory_mb=12.5,
        model={"name": "m"},
        image={"name": "CT"},
        versions={"torch": "2"},
    )
    return replace(made, **changes)


def explain(one: worker.Worker, source: worker.ModelSource, **more: Any) -> worker.Result:
    """A small run."""
    given = {"method": "gradient"} | more
    return one.explain(source, a_scan(), QUESTION, **given)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], Any], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


class Cancel:
    """Asks to cancel some time after the computation has begun, and notes when."""

    def __init__(self, after: float = 0.0) -> None:
        self.after, self.begun, self.asked = after, None, None
        self.latest = time.monotonic() + 60

    def progress(self, fraction: float, message: str) -> None:
        if message == "computing" or fraction > 0:
            self.begun = self.begun or time.monotonic()

    def __call__(self) -> bool:
        now = time.monotonic()
        assert now < self.latest, "the computation never began"
        if self.begun is not None and now - self.begun >= self.after and self.asked is None:
            self.asked = now
        return self.asked is not None

    def seconds(self) -> float:
        return time.monotonic() - self.asked
