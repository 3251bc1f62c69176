"""A worker for the console, clusters and tests: calls that wait for their answer."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from .. import errors
from ..errors import Cancelled, OutOfMemoryError, SaliencyExplainError, WorkerError
from ..explanation import Explanation
from ..quality.appraisal import Appraisal
from ..region_rows import RegionTable
from ..volume import Volume
from .child import QUIT_S, Inbox, kill, pump, tell_end
from .conversation import Conversation, Done, Event, Failed, Kill, Progress, Stopped
from .jobs import JobFolder, Result, read_result, write_result
from .launch import Launch, launch
from .models import NotTrustedError
from .protocol import (
    Evaluate,
    Explain,
    ExplainLayers,
    Hello,
    Layers,
    Load,
    ModelSource,
    Predict,
    Question,
    Report,
    Request,
)
from .putting import put, put_all, put_any, question_with, source_of

__all__ = ["Worker"]

_TICK_S = 0.05


class Worker:
    """A worker process that starts with the first call and again after it was lost.

    Parameters
    ----------
    interpreter, prefix, library, threads
        See :func:`SaliencyExplainLib.worker.launch`.
    parent : path, optional
        Folder for the arrays, which both sides see; the system's temporary one when left out.
    environ : mapping, optional
        Environment to start from.
    hang_s : float
        Seconds without a sign of life after which the worker is given up.
    """

    def __init__(
        self,
        interpreter: str = "",
        prefix: Sequence[str] = (),
        library: str = "",
        threads: int = 0,
        *,
        parent: str | Path = "",
        environ: Mapping[str, str] | None = None,
        hang_s: float = 60.0,
    ) -> None:
        self._launch: Launch = launch(interpreter, prefix, library, threads, environ)
        self._parent, self._hang_s = parent, hang_s
        self._process: subprocess.Popen[bytes] | None = None
        self._talk = Conversation(hang_s)
        self._inbox: Inbox = queue.SimpleQueue()
        self._heard = False

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process that was started last; with a prefix that of the prefix's program."""
        return None if self._process is None else self._process.pid

    @property
    def log(self) -> str:
        """The end of what the process printed."""
        return self._talk.log

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        try:
            process.wait(QUIT_S)
        except subprocess.TimeoutExpired:
            kill(process)

    def hello(self) -> dict[str, Any]:
        """Return versions, devices and missing packages of the worker's Python."""
        return self._ask(Hello())

    def load(self, model: ModelSource | str | Path) -> dict[str, Any]:
        """Load a model and return what it is.

        Raises
        ------
        UntrustedModelError
            If it would run code; ``error.trust`` has the hash to agree to.
        SaliencyExplainError
            As for all calls: the class that the worker's error has, WorkerError or
            OutOfMemoryError.
        """
        return self._ask(Load(source_of(model)))

    def layers(
        self,
        model: ModelSource | str | Path,
        image: Any = None,
        shape: Sequence[int] | None = None,
        methods: Sequence[str] = (),
    ) -> dict[str, Any]:
        """List the layers of a model, and the default layer of each of `methods`."""
        with JobFolder(self._parent) as folder:
            given = put_any(folder, "image", image)
            return self._ask(Layers(source_of(model), given, shape, tuple(methods)))

    def explain(
        self,
        model: ModelSource | str | Path,
        image: Any,
        question: Question | None = None,
        method: str = "gradient",
        parameters: Mapping[str, Any] | None = None,
        *,
        segment: Any = None,
        segments: Any = None,
        segment_names: Mapping[int, str] | None = None,
        fast: bool = False,
        batch_size: int | None = None,
        progress: Callable[[float, str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Result:
        """Explain one output; the arguments of :func:`SaliencyExplainLib.explain`.

        Parameters
        ----------
        model : ModelSource or path
        image : Volume, MetaTensor or reference, shape (C, I, J, K)
        question : Question, optional
            ``Question()`` when left out.
        method : str
        parameters : mapping, optional
            Label maps as Volume or MetaTensor.
        segment : Volume or MetaTensor, optional
            Mask for the question's region "segment".
        segments, segment_names : optional
            Label map and names for the region table.
        fast, batch_size : optional
        progress, cancelled : callable, optional

        Returns
        -------
        Result
        """
        with JobFolder(self._parent) as folder:
            request = Explain(
                source_of(model),
                put(folder, "image", image),
                question_with(folder, question, segment),
                method,
                put_all(folder, parameters),
                folder.output(),
                put_any(folder, "segments", segments),
                dict(segment_names or {}),
                fast,
                batch_size,
            )
            self._ask(request, progress, cancelled)
            return read_result(request.output)

    def predict(
        self,
        model: ModelSource | str | Path,
        image: Any,
        progress: Callable[[float, str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Volume:
        """Segment an image; see :func:`SaliencyExplainLib.predict`."""
        with JobFolder(self._parent) as folder:
            request = Predict(source_of(model), put(folder, "image", image), folder.output())
            self._ask(request, progress, cancelled)
            labels = read_result(request.output).labels
        if labels is None:
            raise WorkerError("The worker's result holds no label map. Run again.")
        return labels

    def explain_layers(
        self,
        model: ModelSource | str | Path,
        image: Any,
        question: Question | None = None,
        methods: Sequence[str] = ("grad_cam",),
        layers: Sequence[str] | None = None,
        *,
        segment: Any = None,
        progress: Callable[[float, str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> tuple[Explanation, ...]:
        """Make maps at several layers; see :func:`SaliencyExplainLib.explain_layers`."""
        with JobFolder(self._parent) as folder:
            request = ExplainLayers(
                source_of(model),
                put(folder, "image", image),
                question_with(folder, question, segment),
                folder.output(),
                tuple(methods),
                None if layers is None else tuple(layers),
            )
            self._ask(request, progress, cancelled)
            return read_result(request.output).layers

    def evaluate(
        self,
        model: ModelSource | str | Path,
        image: Any,
        question: Question | None = None,
        method: str = "",
        parameters: Mapping[str, Any] | None = None,
        *,
        explanation: Explanation | str | Path | None = None,
        metrics: str | Sequence[str] = "quick",
        metric_parameters: Mapping[str, Mapping[str, Any]] | None = None,
        truth: Any = None,
        segment: Any = None,
        segments: Any = None,
        segment_names: Mapping[int, str] | None = None,
        sanity: str = "",
        draws: int = 3,
        methods: Sequence[str] = (),
        report: str | Path = "",
        fast: bool = False,
        progress: Callable[[float, str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Result:
        """Find out how far a map can be trusted.

        Parameters
        ----------
        model, image, question, segment, segments, segment_names, fast, progress, cancelled
            As for :meth:`explain`.
        method, parameters
            What made the map; it is made again where no `explanation` is given.
        explanation : Explanation or path, optional
            The map, with its map on the network's grid; or the folder where it was saved.
        metrics, metric_parameters, sanity, draws, methods
            As in :class:`Evaluate`.
        truth : Volume or MetaTensor, optional
            Mask of the evidence that is known to be right.
        report : path, optional
            Folder for the report.

        Returns
        -------
        Result
            ``appraisal`` is what was found; ``explanation`` the map that was made for it, None
            where it was given.
        """
        with JobFolder(self._parent) as folder:
            given = "" if explanation is None else str(Path(str(explanation)).absolute())
            if isinstance(explanation, Explanation):
                given = folder.output("explanation")
                write_result(given, explanation)
            request = Evaluate(
                source_of(model),
                put(folder, "image", image),
                question_with(folder, question, segment),
                folder.output(),
                method,
                put_all(folder, parameters),
                given,
                metrics if isinstance(metrics, str) else tuple(metrics),
                dict(metric_parameters or {}),
                put_any(folder, "truth", truth),
                put_any(folder, "segments", segments),
                dict(segment_names or {}),
                sanity,
                draws,
                tuple(methods),
                str(Path(report).absolute()) if report else "",
                fast,
            )
            self._ask(request, progress, cancelled)
            return read_result(request.output)

    def report(
        self,
        image: Any,
        explanation: Explanation,
        folder: str | Path,
        *,
        regions: RegionTable | None = None,
        appraisal: Appraisal | None = None,
        contour: Any = None,
        contour_name: str = "mask",
    ) -> list[Path]:
        """Write what was found as a page; see :func:`SaliencyExplainLib.write_report`."""
        with JobFolder(self._parent) as job:
            result = job.output("found")
            write_result(result, explanation, regions, appraisal=appraisal)
            outline = put_any(job, "contour", contour)
            home = str(Path(folder).absolute())
            told = self._ask(Report(put(job, "image", image), result, home, outline, contour_name))
        return [Path(file) for file in told["files"]]

    def _ask(
        self,
        request: Request,
        progress: Callable[[float, str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> dict[str, Any]:
        """Wait for one answer, from another process if this one was lost before it got the job."""
        was_there = self._ensure_process()
        self._heard = False
        try:
            return self._answer(request, progress, cancelled)
        except (WorkerError, OutOfMemoryError):
            # One that ended without a word did not end because of this job.
            if not was_there or self._heard or self._talk.alive:
                raise
        self._ensure_process()
        return self._answer(request, progress, cancelled)

    def _answer(
        self,
        request: Request,
        progress: Callable[[float, str], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> dict[str, Any]:
        job = self._talk.start(request)
        try:
            while True:
                if cancelled is not None and cancelled():
                    self._talk.cancel(job)
                self._write()
                for event in self._events():
                    if isinstance(event, Kill):
                        self._kill()
                    elif isinstance(event, Progress) and progress is not None:
                        progress(event.fraction, event.message)
                    elif isinstance(event, Done) and event.job == job:
                        return event.value
                    elif isinstance(event, Stopped) and event.job == job:
                        raise Cancelled("The run was cancelled. Nothing was changed.")
                    elif isinstance(event, Failed) and event.job == job:
                        raise _error(event)
        except BaseException:
            if job in self._talk.jobs:
                # Ctrl-C, or a fault in a callback: nobody waits for the answer any more.
                self._kill()
            raise

    def _ensure_process(self) -> bool:
        """Start a process where there is none; whether one was there."""
        while not self._inbox.empty():
            # What was said while nobody asked: signs of life, or the end.
            self._events()
        if self._process is not None and self._talk.alive:
            return True
        self.close()
        self._talk, self._inbox = Conversation(self._hang_s), queue.SimpleQueue()
        try:
            # A session of its own: Ctrl-C stays here, and children of a prefix end with it.
            process = subprocess.Popen(
                [self._launch.program, *self._launch.arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._launch.environment,
                start_new_session=sys.platform != "win32",
            )
        except OSError as error:
            raise WorkerError(
                f"The worker {self._launch.program!r} could not be started "
                f"({error.strerror or error}). Choose another interpreter."
            ) from error
        self._process = process
        pipes = [
            threading.Thread(target=pump, args=(pipe, name, self._inbox), daemon=True)
            for pipe, name in ((process.stdout, "out"), (process.stderr, "err"))
        ]
        for thread in pipes:
            thread.start()
        threading.Thread(target=tell_end, args=(process, pipes, self._inbox), daemon=True).start()
        return False

    def _write(self) -> None:
        data = self._talk.outgoing()
        if data and self._process is not None and self._process.stdin is not None:
            # A process that is gone tells so by its end.
            with contextlib.suppress(OSError):
                self._process.stdin.write(data)
                self._process.stdin.flush()

    def _events(self) -> list[Event]:
        events = self._talk.tick()
        try:
            name, data = self._inbox.get(timeout=0.0 if events else _TICK_S)
        except queue.Empty:
            return events
        if name == "end":
            return [*events, *self._talk.ended(int(data))]
        if name == "err":
            self._talk.receive_errors(data)
            return events
        self._heard = True
        return [*events, *self._talk.receive(data)]

    def _kill(self) -> None:
        if self._process is not None:
            kill(self._process)


def _error(event: Failed) -> SaliencyExplainError:
    if event.trust is not None:
        return NotTrustedError(event.message, event.trust)
    known = getattr(errors, event.kind, None)
    kind = known if isinstance(known, type) and issubclass(known, SaliencyExplainError) else None
    error = (kind or WorkerError)(event.message)
    if event.details and sys.version_info >= (3, 11):
        error.add_note(event.details)
    return error
