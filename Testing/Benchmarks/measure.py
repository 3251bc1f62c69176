"""Timing of whole calls against one pass of the network, in the same process and in turn."""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from SaliencyExplainLib.engine import MemoryMeter

__all__ = ["Case", "Row", "compare", "processor", "timed"]


@dataclass(frozen=True)
class Case:
    """One method of one library.

    Attributes
    ----------
    group : str
        Rows of a table stand together by it.
    method, library : str
    passes : float or None
        Units that any implementation needs which runs the whole network for each of them.
    call : callable
        Runs the method once.
    """

    group: str
    method: str
    library: str
    passes: float | None
    call: Callable[[], object]


@dataclass(frozen=True)
class Row:
    """Time of a case as a multiple of one pass, and its peak memory."""

    case: Case
    ratio: float
    low: float
    high: float
    seconds: float
    megabytes: float


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of CPU and peak memory in MB of one call."""
    gc.collect()
    with MemoryMeter(torch.device("cpu")) as meter:
        start = time.process_time()
        call()
        seconds = time.process_time() - start
    return seconds, float("nan") if meter.peak_mb is None else meter.peak_mb


def compare(case: Case, one_pass: Callable[[], object], repeats: int) -> Row:
    """Run the case and the unit in turn; the ratio is taken pair by pair.

    The first run of each is not counted, unless it is a long one: more than 20 units are timed at
    once, because what they need once does not count there.
    """
    one_pass()
    warm = timed(case.call)
    unit = timed(one_pass)
    pairs = [(unit, warm)] if warm[0] > 20 * unit[0] and repeats == 1 else []
    while len(pairs) < repeats:
        pairs.append((timed(one_pass), timed(case.call)))
    ratios = [method[0] / unit[0] for unit, method in pairs]
    row = Row(
        case,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        statistics.median(method[0] for _, method in pairs),
        statistics.median(method[1] for _, method in pairs),
    )
    spread = f"({row.low:.2f}-{row.high:.2f})"
    print(
        f"{case.method:<34}{case.library:<10}{row.ratio:>8.2f} x {spread}{row.megabytes:>9.0f} MB",
        flush=True,
    )
    return row


def processor() -> str:
    """Name of this machine's processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    names = [
        line.partition(":")[2].strip()
        for line in text.splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor()
