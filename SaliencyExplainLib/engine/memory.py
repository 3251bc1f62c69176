"""How much memory a run takes beyond what was in use when it began."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

import torch

__all__ = ["MemoryMeter"]

_INTERVAL_S = 0.01


class MemoryMeter:
    """Context manager; afterwards ``peak_mb`` is the peak in MB (10^6 bytes), or None if unknown.

    On a GPU the allocator's own counter is read. On Linux a thread samples the resident size every
    10 ms; it starves while a single operation holds the interpreter, which tensor operations do
    not.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak_mb: float | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._start = 0
        self._peak = 0

    def __enter__(self) -> MemoryMeter:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._start = torch.cuda.memory_allocated(self.device)
        elif _resident_bytes() is not None:
            self._start = self._peak = _resident_bytes() or 0
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.device.type == "cuda":
            self.peak_mb = (torch.cuda.max_memory_allocated(self.device) - self._start) / 1e6
        elif self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._peak = max(self._peak, _resident_bytes() or 0)
            self.peak_mb = (self._peak - self._start) / 1e6

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self._peak = max(self._peak, _resident_bytes() or 0)


def _resident_bytes() -> int | None:
    """Resident memory of this process; None where /proc does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
