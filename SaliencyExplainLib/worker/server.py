"""The worker: takes jobs one after the other, tells how far they are, stops them when asked.

Three threads. The main one runs the jobs. The reader notes what is cancelled, and ends the process
when its standard input ends, even in the middle of a job: then the program that started it is gone
(an application that quits leaves its child behind otherwise). The heartbeat lets the other side
tell a long operation from a hanging process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import platform
import queue
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

from ..errors import Cancelled
from .channel import Channel
from .faults import fault_of
from .jobs import PREFIX
from .protocol import (
    PROTOCOL,
    Evaluate,
    Explain,
    ExplainLayers,
    Predict,
    Report,
    Request,
    request_from,
)
from .tasks import Tasks, missing_packages

__all__ = ["serve"]

#: A message at most this often; each costs both sides.
_PROGRESS_S = 0.1
#: Below this fraction the remaining time would be a guess.
_KNOWN = 0.02


def serve(threads: int = 0, heartbeat_s: float = 1.0) -> int:
    """Serve jobs until standard input ends.

    Parameters
    ----------
    threads : int
        Threads of torch; 0 leaves it to torch.
    heartbeat_s : float
        Seconds between signs of life.

    Returns
    -------
    int
        Exit status.
    """
    channel = Channel.of_process()
    # Where a crash came from goes to standard error, which the other side keeps.
    faulthandler.enable()
    # Ctrl-C in a terminal reaches both processes; the other side decides.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = Server(channel, threads, heartbeat_s)
    server.run()
    return 0


class Server:
    """One worker on one channel."""

    def __init__(self, channel: Channel, threads: int, heartbeat_s: float) -> None:
        self._channel, self._heartbeat_s = channel, heartbeat_s
        self._waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        self._job: str | None = None
        self._moved = self._started = self._computing = self._told = time.monotonic()
        self._folder: Path | None = None
        self._tasks = Tasks(self._progress, self._is_cancelled, threads)

    def run(self) -> None:
        """Run jobs for ever; the reader ends the process."""
        from .. import __version__

        self._send(
            {
                "type": "ready",
                "protocol": PROTOCOL,
                "python": platform.python_version(),
                "pid": os.getpid(),
                "library": __version__,
            }
        )
        for target in (self._read, self._beat):
            threading.Thread(target=target, daemon=True).start()
        while True:
            self._answer(self._waiting.get())

    def _answer(self, message: dict[str, Any]) -> None:
        job = str(message.get("job"))
        self._moved = self._started = self._computing = time.monotonic()
        self._told, self._job = 0.0, job
        answer: dict[str, Any]
        try:
            if job in self._cancelled:
                raise Cancelled("Cancelled before it began.")
            request = request_from(message)
            self._folder = _folder_of(request)
            answer = {"type": "done", "job": job, "value": self._tasks.run(request)}
        except Cancelled:
            answer = {"type": "stopped", "job": job}
        except (Exception, SystemExit) as error:  # noqa: BLE001 - each fault ends in a sentence
            if job in self._cancelled:
                # What a job says while it is being stopped is of no interest.
                answer = {"type": "stopped", "job": job}
            else:
                fault = fault_of(error)
                trust = getattr(error, "trust", None)
                answer = {
                    "type": "failed",
                    "job": job,
                    "kind": "UntrustedModelError" if trust is not None else fault.kind,
                    "message": fault.message,
                    "details": fault.details,
                    "trust": None if trust is None else vars(trust),
                }
        # The exception, which holds the tensors of the job, is gone by now.
        done = answer["type"] == "done"
        if not done:
            lost = answer.get("kind") in (None, "OutOfMemoryError")
            self._tasks.tidy(keep_model=not lost)
        self._job = self._folder = None
        self._cancelled.discard(job)
        self._send(answer)
        if done:
            # Nobody has to wait for it.
            self._tasks.tidy(keep_model=True)
        if message.get("type") == "hello" and not missing_packages():
            # Who says hello wants to run something soon. A fault will be told by the job.
            with contextlib.suppress(Exception):
                self._tasks.prepare()

    def _progress(self, fraction: float, message: str) -> None:
        self._moved = now = time.monotonic()
        if fraction <= 0:
            # What came before, such as loading the model, says nothing about the passes.
            self._computing = now
        if now - self._told < _PROGRESS_S and 0 < fraction < 1:
            return
        self._told = now
        known = fraction >= _KNOWN
        left = (now - self._computing) * (1 - fraction) / fraction if known else None
        self._send(
            {
                "type": "progress",
                "job": self._job,
                "fraction": fraction,
                "message": message,
                "elapsed_s": round(now - self._started, 3),
                "remaining_s": None if left is None else round(left, 3),
            }
        )

    def _is_cancelled(self) -> bool:
        return self._job in self._cancelled

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._channel.send(message)
        except OSError:
            self._end()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            for message in self._channel.messages():
                if message["type"] == "cancel":
                    self._cancelled.add(str(message.get("job")))
                elif message["type"] == "quit":
                    os._exit(0)
                else:
                    self._waiting.put(message)
        self._end()

    def _beat(self) -> None:
        while True:
            time.sleep(self._heartbeat_s)
            quiet = time.monotonic() - self._moved if self._job is not None else 0.0
            self._send({"type": "alive", "job": self._job, "quiet_s": round(quiet, 3)})

    def _end(self) -> None:
        """End at once: the main thread may sit in a computation that nothing interrupts.

        Whoever closes standard input in the middle of a job is gone, and cannot remove its folder.
        """
        folder = self._folder
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)


def _folder_of(request: Request) -> Path | None:
    """Temporary folder that the client has made for a job."""
    if isinstance(request, Explain | ExplainLayers | Predict | Evaluate):
        written = request.output
    elif isinstance(request, Report):
        written = request.result
    else:
        return None
    parent = Path(written).parent
    return parent if parent.name.startswith(PREFIX) else None
