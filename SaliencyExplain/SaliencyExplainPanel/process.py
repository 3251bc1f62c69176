"""The worker process, driven by Qt: it computes, so that Slicer stays alive and Cancel is real.

What is said over its pipes is SaliencyExplainLib.worker's business; this class only carries bytes.
QProcess needs neither a thread (which would starve while Qt waits for events) nor a timer to read.
"""

import qt
import slicer

from SaliencyExplainLib import worker

_TICK_MS = 100
_END_MS = 2000
_STARTED = "started()"
_OUTPUT, _ERRORS = "readyReadStandardOutput()", "readyReadStandardError()"
_FINISHED = "finished(int,QProcess::ExitStatus)"
_FAILED = "errorOccurred(QProcess::ProcessError)"


class _Child:
    """One process from its start to its end."""

    def __init__(self, launch, handle):
        self.talk = worker.Conversation()
        self.closed = False
        self._handle = handle
        self.process = qt.QProcess()
        environment = qt.QProcessEnvironment()
        for name, value in launch.environment.items():
            environment.insert(name, value)
        self.process.setProcessEnvironment(environment)
        self.process.setProcessChannelMode(qt.QProcess.SeparateChannels)
        self.process.connect(_OUTPUT, self._onOutput)
        self.process.connect(_ERRORS, self._onErrors)
        self.process.connect(_FINISHED, self._onFinished)
        self.process.connect(_FAILED, self._onFailed)
        self.process.start(launch.program, list(launch.arguments))

    def send(self):
        outgoing = self.talk.outgoing()
        if outgoing and not self.closed:
            self.process.write(outgoing)

    def tick(self):
        self._deliver(self.talk.tick())
        self.send()

    def close(self):
        """End at once; nothing is told any more."""
        if self.closed:
            return
        self.closed = True
        self.process.kill()
        self.process.waitForFinished(_END_MS)

    def _deliver(self, events):
        for event in events:
            if self.closed:
                return
            if isinstance(event, worker.Kill):
                self.process.kill()
            else:
                self._handle(event)

    def _onOutput(self):
        self._deliver(self.talk.receive(_bytes(self.process.readAllStandardOutput())))
        self.send()

    def _onErrors(self):
        self.talk.receive_errors(_bytes(self.process.readAllStandardError()))

    def _onFinished(self, code, status):
        if self.closed:
            return
        self._onErrors()
        self._onOutput()
        crashed = status == qt.QProcess.CrashExit
        self._end(self.talk.ended(code, crashed=crashed))

    def _onFailed(self, error):
        # A program that does not start gives no finished(). On Windows this comes out of start()
        # itself, before there is a job that could fail: so when Qt is back.
        if not self.closed and error == qt.QProcess.FailedToStart:
            qt.QTimer.singleShot(0, self._onNotStarted)

    def _onNotStarted(self):
        if not self.closed:
            reason = self.process.errorString()
            self._end(self.talk.ended(None, crashed=True, reason=reason))

    def _end(self, events):
        self._deliver(events)
        self.closed = True


class WorkerProcess:
    """Starts the worker when it is first needed and keeps it, with its warm model, afterwards.

    :param handle: called with each event of SaliencyExplainLib.worker but Kill.
    :param interpreter: called when a process starts; path of a Python program, empty for Slicer's.
    """

    def __init__(self, handle, interpreter):
        self._handle = handle
        self._interpreter = interpreter
        self._child = None
        # A process must not be deleted inside its own signal; it waits here until Qt is back.
        self._ended = []
        self._timer = qt.QTimer()
        self._timer.setInterval(_TICK_MS)
        self._timer.connect("timeout()", self._onTick)
        # Without this the child would outlive an application that is closed during a run.
        slicer.app.connect("aboutToQuit()", self.stop)

    def close(self):
        """End for good."""
        self.stop()
        slicer.app.disconnect("aboutToQuit()", self.stop)

    @property
    def log(self):
        """What the process printed beside its answers."""
        return self._child.talk.log if self._child is not None else ""

    def start(self, request):
        """Send a request; the id of its job."""
        child = self._open()
        job = child.talk.start(request)
        child.send()
        self._timer.start()
        return job

    def cancel(self, job):
        """Ask a job to stop; Stopped follows."""
        if self._child is not None:
            self._child.talk.cancel(job)
            self._child.send()

    def stop(self):
        """End the process at once, without a word about its jobs."""
        self._timer.stop()
        if self._child is not None:
            self._child.close()
            self._retire()

    def _open(self):
        if self._child is not None and (self._child.closed or not self._child.talk.alive):
            self._retire()
        if self._child is None:
            launch = worker.launch(interpreter=self._interpreter())
            self._child = _Child(launch, self._handle)
        return self._child

    def _retire(self):
        self._ended.append(self._child)
        self._child = None
        qt.QTimer.singleShot(0, self._forget)

    def _forget(self):
        # Its connections would keep an ended process, and with it all that it knows.
        for child in self._ended:
            child.process.deleteLater()
        self._ended = []

    def _onTick(self):
        child = self._child
        if child is None or child.closed or not child.talk.jobs:
            self._timer.stop()
            return
        child.tick()


def _bytes(array):
    """Bytes of a QByteArray."""
    data = array.data()
    return data if isinstance(data, bytes) else bytes(data)
