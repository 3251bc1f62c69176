"""What the worker costs beside the same run in one's own process, and how fast it is cancelled.

The demo model on a random volume, one thread. Cold: from nothing to the result, with the start of
Python and the import of torch. Warm: the same once more, medians of several runs. Cancel: seconds
from the request to the answer, for a run that stops between two passes and for a computation that
cannot be interrupted, whose process is killed. Memory: resident size of the worker after a
cancelled run that held 300 MB, less before it.

    python Testing/Benchmarks/worker_overhead.py [--runs 7] [--shape 40 44 42]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Testing" / "Python")]

MODEL = ROOT / "SaliencyExplain" / "Resources" / "Models" / "BrainTissue"


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def cancelled_after(seconds: float, run: Callable[..., object]) -> float:
    """Cancel a run some time after its computation has begun; seconds until the answer."""
    from SaliencyExplainLib.errors import Cancelled

    begun: list[float] = []
    asked: list[float] = []

    def progress(_fraction: float, message: str) -> None:
        if message == "computing":
            begun.append(time.perf_counter())

    def cancelled() -> bool:
        if not asked and begun and time.perf_counter() - begun[0] >= seconds:
            asked.append(time.perf_counter())
        return bool(asked)

    try:
        run(progress=progress, cancelled=cancelled)
    except Cancelled:
        return time.perf_counter() - asked[0]
    raise RuntimeError("the run ended before it was cancelled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--shape", type=int, nargs=3, default=(40, 44, 42))
    options = parser.parse_args()
    import tempfile

    from worker_cases import QUESTION, a_scan, a_source, an_environment

    from SaliencyExplainLib import worker

    voxels = np.random.default_rng(0).normal(100, 20, size=tuple(options.shape))
    scan = worker.Volume(voxels, np.diag([2.0, 2, 2, 1]), "T1")
    question = worker.Question(output=1, region="everywhere")

    def run() -> object:
        return one.explain(MODEL, scan, question, "gradient")

    with worker.Worker(threads=1, environ=an_environment()) as one:
        cold = timed(run)
        warm = [timed(run) for _ in range(options.runs)]
    with worker.Worker(threads=1, environ=an_environment()) as one:
        one.hello()
        time.sleep(8)
        greeted = timed(run)

        def long_run(**more: object) -> object:
            return one.explain(MODEL, scan, question, "smooth_grad", {"samples": 200}, **more)

        demo = []
        for _ in range(options.runs):
            run()
            demo.append(cancelled_after(0.7, long_run))
        between, grown, killed = [], [], []
        with tempfile.TemporaryDirectory() as folder:
            plain, hoards, asleep = (
                a_source(Path(folder), name) for name in ("Plain", "Hoards", "Sleeps")
            )

            def many(**more: object) -> object:
                parameters = {"samples": 200}
                return one.explain(hoards, a_scan(), QUESTION, "smooth_grad", parameters, **more)

            def stuck(**more: object) -> object:
                return one.explain(asleep, a_scan(), QUESTION, "gradient", **more)

            for _ in range(options.runs):
                one.explain(plain, a_scan(), QUESTION, "gradient")
                time.sleep(0.3)
                before = resident_mb(one.pid)
                between.append(cancelled_after(0.5, many))
                grown.append(resident_mb(one.pid) - before)
            for _ in range(max(2, options.runs // 2)):
                one.explain(plain, a_scan(), QUESTION, "gradient")
                killed.append(cancelled_after(0.5, stuck))

    import torch

    import SaliencyExplainLib as sx

    torch.set_num_threads(1)
    model = sx.load_model(MODEL)
    target = sx.Target(output=1, region="everywhere")
    here = [
        timed(lambda: sx.explain(model, scan.as_image(), target, "gradient"))
        for _ in range(options.runs + 1)
    ][1:]
    rows = [
        ("in one's own process", statistics.median(here), "s, median"),
        ("warm", statistics.median(warm), "s, median"),
        ("overhead of a warm run", statistics.median(warm) - statistics.median(here), "s"),
        ("first run after Hello", greeted, "s"),
        ("cold", cold, "s"),
        ("cancel, demo model", max(demo), "s, longest"),
        ("cancel between short passes", max(between), "s, longest"),
        ("cancel of what cannot stop", max(killed), "s, longest"),
        ("kept of 300 MB after it", max(grown), "MB, most"),
    ]
    for name, value, unit in rows:
        print(f"{name:<30}{value:8.3f}  {unit}")


if __name__ == "__main__":
    main()
