"""One side of the talk with one worker process, without a process.

Whoever owns the process (QProcess in the panel, Popen in :mod:`.process`) hands the bytes over and
gets events back. There is no thread, no timer and no waiting in here. One conversation belongs to
one process; after :meth:`Conversation.ended` both are finished with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import WorkerError
from .endings import sentence_of_end
from .protocol import PROTOCOL, Request, Trust, decode, encode, request_message

__all__ = [
    "Conversation",
    "Done",
    "Event",
    "Failed",
    "Kill",
    "Progress",
    "Ready",
    "Stopped",
    "Waiting",
]

#: How long a worker may take to stop by itself before it is killed.
CANCEL_S = 0.5
#: Without any message for this long, a worker hangs. Loading a cold torch from a slow disk can
#: keep Python from running its heartbeat for tens of seconds.
HANG_S, HANG_AT_START_S = 60.0, 120.0
#: From when on a heartbeat is worth telling.
_QUIET_S = 2.0
_LOG_BYTES, _LINE_BYTES, _DETAILS = 64_000, 16_000_000, 8_000


@dataclass(frozen=True)
class Ready:
    """The process is up; torch is not imported yet."""

    python: str
    pid: int
    library: str


@dataclass(frozen=True)
class Progress:
    """How far a job is; `remaining_s` is None while that is not known."""

    job: str
    fraction: float
    message: str
    elapsed_s: float
    remaining_s: float | None


@dataclass(frozen=True)
class Waiting:
    """The process lives, but nothing has moved for `quiet_s` seconds: a long operation."""

    job: str
    quiet_s: float


@dataclass(frozen=True)
class Done:
    """A job is finished."""

    job: str
    request: Request
    value: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """A job failed; `message` is for people, `details` for who repairs it.

    `kind` is the name of a class in :mod:`SaliencyExplainLib.errors`, or "Unexpected". `trust` is
    there when the model would run code.
    """

    job: str
    request: Request
    kind: str
    message: str
    details: str = ""
    trust: Trust | None = None


@dataclass(frozen=True)
class Stopped:
    """A job was cancelled as asked; it wrote nothing."""

    job: str
    request: Request


@dataclass(frozen=True)
class Kill:
    """The owner of the process must kill it now; what becomes of the jobs follows its end."""

    reason: str


Event = Ready | Progress | Waiting | Done | Failed | Stopped | Kill


class Conversation:
    """Requests in, bytes out; bytes in, events out.

    Parameters
    ----------
    hang_s : float
        Seconds without any message after which the worker counts as hanging.
    hang_at_start_s : float
        The same until the process has said that it is ready.
    clock : callable
        Seconds; ``time.monotonic``.
    """

    def __init__(
        self,
        hang_s: float = HANG_S,
        hang_at_start_s: float = HANG_AT_START_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hang_s, self._hang_at_start_s, self._clock = hang_s, hang_at_start_s, clock
        self._requests: dict[str, Request] = {}
        self._cancelled: dict[str, float] = {}
        self._count = 0
        self._outgoing, self._buffer = b"", b""
        self._log, self._said = b"", b""
        self._heard = clock()
        self._killing: str | None = None
        self.ready = False
        self.alive = True

    @property
    def jobs(self) -> tuple[str, ...]:
        """Open jobs in the order in which they are answered; the first one is running."""
        return tuple(self._requests)

    @property
    def log(self) -> str:
        """The end of what the process printed: models, C libraries, the interpreter."""
        return self._log.decode("utf-8", "replace")

    def start(self, request: Request) -> str:
        """Ask for a job and return its name. Write :meth:`outgoing` afterwards.

        Raises
        ------
        WorkerError
            If the process has ended.
        """
        if not self.alive:
            raise WorkerError("This worker has ended. Start another process with a conversation.")
        if not self._requests:
            self._heard = self._clock()
        self._count += 1
        job = str(self._count)
        self._requests[job] = request
        self._outgoing += encode(request_message(request, job))
        return job

    def cancel(self, job: str) -> None:
        """Ask a job to stop; one that is not open is left alone."""
        if job in self._requests and job not in self._cancelled:
            self._cancelled[job] = self._clock()
            self._outgoing += encode({"type": "cancel", "job": job})

    def quit(self) -> None:
        """Ask the process to end, whatever it does."""
        self._outgoing += encode({"type": "quit"})

    def outgoing(self) -> bytes:
        """Return what is to be written to the process, once."""
        data, self._outgoing = self._outgoing, b""
        return data

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the standard output of the process, in pieces of any size."""
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        if len(self._buffer) > _LINE_BYTES:
            self.receive_errors(self._buffer)
            self._buffer = b""
        return [event for line in lines for event in self._line(line)]

    def receive_errors(self, data: bytes) -> None:
        """Take bytes from the standard error of the process; they are kept for the log."""
        self._log = (self._log + data)[-_LOG_BYTES:]
        self._said = (self._said + data)[-_LOG_BYTES:]

    def tick(self) -> list[Event]:
        """Say what time brings: a cancel that is not answered, a worker that hangs."""
        now = self._clock()
        if not self._requests or not self.alive or self._killing is not None:
            return []
        running = self.jobs[0]
        if now - self._cancelled.get(running, now) >= CANCEL_S:
            return self._kill("")
        limit = self._hang_s if self.ready else self._hang_at_start_s
        if now - self._heard >= limit:
            return self._kill(
                f"The worker gave no sign of life for {limit:.0f} s and was ended. The scene is as "
                "it was; run again."
            )
        return []

    def ended(self, code: int | None, crashed: bool = False, reason: str = "") -> list[Event]:
        """Take note that the process has ended, or could not be started.

        Parameters
        ----------
        code : int or None
            Exit status; of a process ended by signal N, N with `crashed`, or -N. None where it was
            never started.
        crashed : bool
            Whether the system ended it.
        reason : str
            Why it could not be started.

        Returns
        -------
        list of Event
            One Stopped or Failed a job that was open.
        """
        self.alive = False
        events = self.receive(b"\n") if self._buffer else []
        # What earlier jobs have printed is not why this one ended.
        said = self._said.decode("utf-8", "replace")
        if self._killing is not None:
            text = self._killing or _BEHIND
        else:
            text = sentence_of_end(code, crashed, reason, said, self.ready)
        running = self.jobs[0] if self._requests else None
        for job, request in self._requests.items():
            if job in self._cancelled:
                events.append(Stopped(job, request))
                continue
            # Only the running job can have used up the memory.
            kind = "OutOfMemoryError" if "memory" in text and job == running else "WorkerError"
            events.append(Failed(job, request, kind, text, said[-_DETAILS:]))
        self._requests.clear()
        self._cancelled.clear()
        return events

    def _kill(self, reason: str) -> list[Event]:
        self._killing = reason
        return [Kill(reason or "The job did not stop by itself.")]

    def _line(self, line: bytes) -> list[Event]:
        if not line.strip():
            return []
        message = decode(line)
        known = None if message is None else _READERS.get(message["type"])
        if message is None or known is None:
            self.receive_errors(line + b"\n")
            return []
        self._heard = self._clock()
        try:
            return known(self, message)
        except (KeyError, TypeError, ValueError):
            # A line that only looks like a message.
            self.receive_errors(line + b"\n")
            return []

    def _read_ready(self, message: Mapping[str, Any]) -> list[Event]:
        if message["protocol"] != PROTOCOL:
            return self._kill(
                f"The worker's SaliencyExplain ({message.get('library', '?')}) speaks version "
                f"{message['protocol']} of the messages; this one speaks {PROTOCOL}. Use the same "
                "release on both sides."
            )
        self.ready = True
        return [Ready(str(message["python"]), int(message["pid"]), str(message["library"]))]

    def _read_alive(self, message: Mapping[str, Any]) -> list[Event]:
        job, quiet = message["job"], float(message["quiet_s"])
        return [Waiting(job, quiet)] if job in self._requests and quiet >= _QUIET_S else []

    def _read_progress(self, message: Mapping[str, Any]) -> list[Event]:
        job, remaining = str(message["job"]), message["remaining_s"]
        if job not in self._requests or job in self._cancelled:
            return []
        fraction = min(1.0, max(0.0, float(message["fraction"])))
        left = None if remaining is None else float(remaining)
        elapsed = float(message["elapsed_s"])
        return [Progress(job, fraction, str(message["message"]), elapsed, left)]

    def _read_done(self, message: Mapping[str, Any]) -> list[Event]:
        value = dict(message["value"])
        job, request, cancelled = self._close(message)
        # Too late to be stopped; who cancelled does not want it any more.
        return [Stopped(job, request) if cancelled else Done(job, request, value)]

    def _read_failed(self, message: Mapping[str, Any]) -> list[Event]:
        facts = [str(message[key]) for key in ("kind", "message", "details")]
        trust = None if message["trust"] is None else Trust(**message["trust"])
        job, request, cancelled = self._close(message)
        if cancelled:
            return [Stopped(job, request)]
        return [Failed(job, request, facts[0], facts[1], facts[2], trust)]

    def _read_stopped(self, message: Mapping[str, Any]) -> list[Event]:
        job, request, _ = self._close(message)
        return [Stopped(job, request)]

    def _close(self, message: Mapping[str, Any]) -> tuple[str, Request, bool]:
        job = message["job"]
        request = self._requests.pop(job)
        self._said = b""
        return job, request, self._cancelled.pop(job, None) is not None


_BEHIND = "The worker was ended with the job before this one. Run again."
_READERS: dict[str, Callable[[Conversation, Mapping[str, Any]], list[Event]]] = {
    "ready": Conversation._read_ready,
    "alive": Conversation._read_alive,
    "progress": Conversation._read_progress,
    "done": Conversation._read_done,
    "failed": Conversation._read_failed,
    "stopped": Conversation._read_stopped,
}
