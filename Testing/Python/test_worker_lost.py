"""Workers that are killed, crash, hang, run out of memory or are cancelled: the next run works."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from worker_cases import (
    QUESTION,
    Cancel,
    a_source,
    an_environment,
    explain,
    is_running,
    posix,
    wait_until,
)

from SaliencyExplainLib import worker
from SaliencyExplainLib.errors import (
    Cancelled,
    OutOfMemoryError,
    WorkerError,
)

#: Most of them start a process anew, with torch.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def shared() -> Iterator[worker.Worker]:
    """One worker for many tests; it comes back by itself when a test has killed it."""
    with worker.Worker(threads=1, environ=an_environment(), hang_s=5) as made:
        yield made


# Bad models: each is one sentence, and the next run works


BAD = [
    ("IsKilled", OutOfMemoryError, "was killed, most often because the memory"),
    ("Crashes", WorkerError, r"crashed \(segfault\)"),
    ("EndsTheProcess", WorkerError, r"ended by itself \(status 7\)"),
    ("AbortsWithoutMemory", OutOfMemoryError, "ran out of memory and ended"),
    ("Freezes", WorkerError, "gave no sign of life for 5 s and was ended"),
]


@posix
@pytest.mark.parametrize(("network", "kind", "words"), BAD, ids=[one[0] for one in BAD])
def test_a_lost_process_is_one_sentence_and_the_next_run_works(
    shared, models, network, kind, words
):
    explain(shared, a_source(models))
    pid = shared.pid
    with pytest.raises(kind, match=words) as caught:
        explain(shared, a_source(models, network))
    assert "\n" not in str(caught.value)
    assert wait_until(lambda: not is_running(pid))
    assert explain(shared, a_source(models)).explanation.maps.shape == (1, 8, 9, 10)
    assert shared.pid != pid


def test_a_long_operation_is_no_hanging_worker(shared, models):
    # The worker is given up after 5 s without a word.
    explain(shared, a_source(models))
    started = time.monotonic()
    explain(shared, a_source(models, "Pauses"))
    assert time.monotonic() - started > 6


@pytest.mark.parametrize(
    ("network", "kind", "words"),
    [
        ("NeedsMemory", OutOfMemoryError, "The memory was not enough for this job"),
        ("NeedsPythonMemory", OutOfMemoryError, "a method with fewer passes, or a smaller volume"),
        ("Raises", WorkerError, "Unexpected KeyError: 'weights of the"),
        ("Exits", WorkerError, r"ended the job \(exit status 3\)"),
    ],
)
def test_a_fault_of_a_model_is_one_sentence_and_the_process_stays(
    shared, models, network, kind, words
):
    explain(shared, a_source(models))
    pid = shared.pid
    with pytest.raises(kind, match=words) as caught:
        explain(shared, a_source(models, network))
    assert "\n" not in str(caught.value)
    explain(shared, a_source(models))
    assert shared.pid == pid


def test_what_a_model_prints_is_no_message(shared, models):
    explain(shared, a_source(models, "Prints"))
    for text in ("hello from the model", '"type": "done"', "no text", "from C"):
        # The two pipes are read apart: what was printed may come after the answer.
        assert wait_until(lambda text=text: shared.hello() and text in shared.log), text


def test_a_model_cannot_read_the_messages(shared, models):
    explain(shared, a_source(models, "Reads"))
    explain(shared, a_source(models))


@posix
def test_a_worker_that_is_killed_while_idle_is_started_again(shared, models):
    explain(shared, a_source(models))
    pid = shared.pid
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not is_running(pid))
    explain(shared, a_source(models))
    assert shared.pid != pid


@posix
def test_a_worker_that_is_lost_before_it_reads_a_job_is_replaced(shared, models):
    explain(shared, a_source(models))
    pid = shared.pid
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.3)
    killer = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))
    killer.start()
    explain(shared, a_source(models))
    killer.join()
    assert shared.pid != pid


@posix
def test_a_limit_of_memory_is_one_sentence(models, tmp_path):
    # Address space for Python, torch and the network, not for 2 GB more.
    prefix = ("bash", "-c", 'ulimit -v 8000000; exec "$@"', "bash")
    with worker.Worker(prefix=prefix, threads=1, environ=an_environment()) as limited:
        pid = limited.hello()["pid"]
        big = worker.Volume(np.zeros((1, 500, 500, 500), dtype=np.float32), np.eye(4))
        with pytest.raises(OutOfMemoryError, match="The memory was not enough for this job"):
            limited.explain(a_source(models), big, QUESTION)
        explain(limited, a_source(models))
        assert limited.hello()["pid"] == pid


# Cancelling


@pytest.mark.parametrize("network", ["Sleeps", "Spins"])
def test_cancel_answers_within_a_second_whatever_runs(shared, models, network):
    shared.hello()
    pid, cancel = shared.pid, Cancel(0.3)
    with pytest.raises(Cancelled, match="Nothing was changed"):
        explain(shared, a_source(models, network), progress=cancel.progress, cancelled=cancel)
    assert cancel.seconds() < 1
    assert wait_until(lambda: not is_running(pid), 1)
    explain(shared, a_source(models))


def test_cancel_between_passes_keeps_the_process(shared, models):
    shared.hello()
    pid, cancel = shared.pid, Cancel(0.3)
    with pytest.raises(Cancelled):
        explain(
            shared,
            a_source(models, "Slow"),
            method="smooth_grad",
            parameters={"samples": 200},
            progress=cancel.progress,
            cancelled=cancel,
        )
    assert cancel.seconds() < 1
    explain(shared, a_source(models))
    assert shared.pid == pid


def test_cancel_while_the_process_starts(models):
    with worker.Worker(threads=1, environ=an_environment()) as fresh:
        started = time.monotonic()
        with pytest.raises(Cancelled):
            explain(fresh, a_source(models), cancelled=lambda: True)
        assert time.monotonic() - started < 1
        explain(fresh, a_source(models))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_cancel_gives_the_memory_back(shared, models):
    def resident_mb() -> float:
        return (
            int(Path(f"/proc/{shared.pid}/statm").read_text(encoding="utf-8").split()[1])
            * 4096
            / 1e6
        )

    explain(shared, a_source(models))
    pid, before, cancel = shared.pid, resident_mb(), Cancel(0.5)
    most = 0.0

    def watched() -> bool:
        nonlocal most
        most = max(most, resident_mb())
        return cancel()

    with pytest.raises(Cancelled):
        explain(
            shared,
            a_source(models, "Hoards"),
            method="smooth_grad",
            parameters={"samples": 200},
            progress=cancel.progress,
            cancelled=watched,
        )
    assert shared.pid == pid
    assert most > before + 250
    assert resident_mb() < before + 30


def test_a_fault_of_the_caller_ends_the_job(shared, models):
    shared.hello()
    pid = shared.pid

    def progress(fraction, message):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        explain(shared, a_source(models, "Sleeps"), progress=progress)
    assert wait_until(lambda: not is_running(pid), 2)
    explain(shared, a_source(models))
