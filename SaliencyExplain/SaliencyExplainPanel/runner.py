"""What the panel is doing: idle, loading, computing, cancelling, publishing; one at a time."""

import logging
import time
import traceback
from dataclasses import dataclass
from enum import Enum
from typing import Any

from slicer.i18n import tr as _

from SaliencyExplainLib import errors, worker

from .process import WorkerProcess


class State(Enum):
    """What is going on."""

    IDLE = "idle"
    LOADING = "loading"
    COMPUTING = "computing"
    CANCELLING = "cancelling"
    PUBLISHING = "publishing"


@dataclass(frozen=True)
class Problem:
    """Why something ended without a result: one sentence, details, and what trust would need."""

    text: str
    details: str = ""
    trust: Any = None


@dataclass
class _Task:
    """What to do when a job ends; `run` is there for what has steps and is published."""

    done: Any
    failed: Any
    run: Any = None
    quiet: bool = False


class Runner:
    """Starts requests and runs, and tells an observer about them.

    :param observer: has onState(), onProgress(fraction, message, remaining_s), onWaiting(quiet_s)
        and onCancelled().
    :param interpreter: called when a process starts; path of a Python program or "".
    """

    def __init__(self, observer, interpreter):
        self._observer = observer
        self._process = WorkerProcess(self._onEvent, interpreter)
        self._tasks = {}
        self._job = None
        self._started = 0.0
        self.state = State.IDLE

    @property
    def busy(self):
        return self.state is not State.IDLE

    @property
    def doing(self):
        """The run that is going on; None for none, or while it is published."""
        task = self._tasks.get(self._job)
        return None if task is None else task.run

    @property
    def log(self):
        return self._process.log

    def ask(self, request, done, failed):
        """Ask the worker beside everything else; `done` gets the answer, `failed` a Problem."""
        task = _Task(done, failed, quiet=True)
        self._try(task, lambda: request)

    def load(self, source, done, failed):
        """Load a model; `done` gets what it says about itself."""
        self._begin(State.LOADING)
        self._try(_Task(done, failed), lambda: worker.Load(source))

    def run(self, run, done, failed):
        """Run all steps, of an Explaining for example; `done` gets what was published."""
        self._begin(State.COMPUTING)
        self._try(_Task(done, failed, run), run.request)

    def cancel(self):
        """Stop what is going on; onCancelled() follows, within a second."""
        if self._job is None or self.state is State.CANCELLING:
            return
        self._enter(State.CANCELLING)
        self._process.cancel(self._job)

    def stop(self):
        """End at once and forget everything that was asked, as when the scene is closed."""
        self._process.stop()
        for task in self._tasks.values():
            _close(task)
        self._tasks = {}
        self._job = None
        self._enter(State.IDLE)

    def close(self):
        """End for good."""
        self.stop()
        self._process.close()

    # Steps

    def _begin(self, state):
        if self.busy:
            raise errors.SaliencyExplainError(_("Something is running. Wait for it or cancel it."))
        self._started = time.monotonic()
        self._enter(state)

    def _enter(self, state):
        if state is not self.state:
            self.state = state
            self._observer.onState()

    def _try(self, task, request):
        """Make a request and send it; whatever goes wrong ends the task."""
        try:
            job = self._process.start(request())
        except Exception as error:
            self._fail(task, error)
            return
        self._tasks[job] = task
        if not task.quiet:
            self._job = job

    def _end(self, task):
        _close(task)
        if not task.quiet:
            self._job = None
            self._enter(State.IDLE)

    # Events

    def _onEvent(self, event):
        if isinstance(event, worker.Ready):
            return
        task = self._tasks.get(event.job)
        if task is None:
            return
        if isinstance(event, worker.Progress):
            self._onProgress(task, event)
        elif isinstance(event, worker.Waiting):
            if event.job == self._job and self.state is not State.CANCELLING:
                self._observer.onWaiting(event.quiet_s)
        else:
            del self._tasks[event.job]
            self._onEnd(task, event)

    def _onProgress(self, task, event):
        if task.quiet or self.state is State.CANCELLING:
            return
        fraction, remaining = event.fraction, event.remaining_s
        if task.run is not None and task.run.steps > 1:
            steps = task.run.steps
            fraction = (task.run.step + fraction) / steps
            elapsed = time.monotonic() - self._started
            remaining = elapsed * (1 - fraction) / fraction if fraction > 0 else None
        self._observer.onProgress(fraction, event.message, remaining)

    def _onEnd(self, task, event):
        cancelled = self.state is State.CANCELLING and not task.quiet
        if isinstance(event, worker.Stopped) or cancelled:
            # Also when the answer overtook the wish to stop: the user said no.
            self._end(task)
            if not task.quiet:
                self._observer.onCancelled()
        elif isinstance(event, worker.Failed):
            self._end(task)
            task.failed(Problem(event.message, event.details, event.trust))
        elif task.run is not None:
            self._onResult(task)
        else:
            self._end(task)
            task.done(event.value)

    def _onResult(self, task):
        try:
            last = task.run.take()
            if not last:
                self._try(task, task.run.request)
                return
            self._enter(State.PUBLISHING)
            published = task.run.publish()
        except Exception as error:
            self._fail(task, error)
            return
        self._end(task)
        task.done(published)

    def _fail(self, task, error):
        details = "" if isinstance(error, errors.SaliencyExplainError) else traceback.format_exc()
        self._end(task)
        task.failed(problem_of(error, details))


def problem_of(error, details=""):
    """An exception as a Problem; an unforeseen one says so."""
    if isinstance(error, errors.SaliencyExplainError):
        return Problem(str(error), details, getattr(error, "trust", None))
    logging.exception("SaliencyExplain")
    return Problem(_("This failed unexpectedly: {error}").format(error=error), details)


def _close(task):
    if task.run is not None:
        task.run.close()
