"""A worker's process as its parent sees it: what it prints, its end, and how it is ended."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from typing import IO

__all__ = ["QUIT_S", "Inbox", "kill", "pump", "tell_end"]

#: How long a process may take to end after it was asked to.
QUIT_S = 2.0

#: What a process says: the pipe's name ("out", "err") with its bytes, or "end" with its status.
Inbox = queue.SimpleQueue[tuple[str, bytes]]


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and, where the system can, all that it has started."""
    if sys.platform == "win32":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(QUIT_S)


def pump(pipe: IO[bytes] | None, name: str, inbox: Inbox) -> None:
    """Put what a pipe gives into the inbox until it is closed."""
    if pipe is not None:
        while data := os.read(pipe.fileno(), 65_536):
            inbox.put((name, data))
        pipe.close()


def tell_end(process: subprocess.Popen[bytes], pipes: list[threading.Thread], inbox: Inbox) -> None:
    """Tell the end after all that was said before it."""
    code = process.wait()
    for thread in pipes:
        # Not for ever: a grandchild may hold the pipe open.
        thread.join(1.0)
    inbox.put(("end", str(code).encode()))
