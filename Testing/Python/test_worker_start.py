"""How worker processes begin and end: interpreters, prefixes, the program that started them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
import venv
from pathlib import Path

import numpy as np
import pytest
from worker_cases import (
    HERE,
    Cancel,
    a_scan,
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
    MissingPackageError,
    WorkerError,
)
from SaliencyExplainLib.worker.protocol import encode, request_message

#: Each starts a process of its own, with torch.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


# Lifetime


CLIENT = """
import sys
from worker_cases import *
with worker.Worker(threads=1, environ=an_environment(), parent={folder!r}) as one:
    one.hello()
    print(one.pid, flush=True)
    one.explain(a_source(Path({folder!r}), "Sleeps"), a_scan(), QUESTION,
                progress=lambda f, m: print(m, flush=True))
"""


def test_a_worker_ends_with_its_input_in_the_middle_of_a_job(models):
    command = [sys.executable, "-m", "SaliencyExplainLib.worker", "--heartbeat", "60"]
    path = {**an_environment(), "PYTHONPATH": os.pathsep.join((str(HERE.parents[1]), str(HERE)))}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=path, cwd=models
    )
    with worker.JobFolder() as folder:
        request = worker.Predict(
            a_source(models, "Sleeps"), folder.put("image", a_scan()), folder.output()
        )
        process.stdin.write(encode(request_message(request, "1")))
        process.stdin.flush()
        while b'"computing"' not in process.stdout.readline():
            pass
        process.stdin.close()
        assert process.wait(3) == 0
    process.stdout.close()


@posix
def test_a_worker_ends_when_the_program_that_started_it_is_killed(tmp_path):
    command = [sys.executable, "-c", CLIENT.format(folder=str(tmp_path))]
    path = {**an_environment(), "PYTHONPATH": os.pathsep.join((str(HERE.parents[1]), str(HERE)))}
    client = subprocess.Popen(command, stdout=subprocess.PIPE, env=path, text=True)
    pid = int(client.stdout.readline())
    # It is in the middle of a computation that nothing interrupts.
    while "computing" not in client.stdout.readline():
        pass
    time.sleep(0.3)
    assert is_running(pid)
    assert list(tmp_path.glob("SaliencyExplain-job-*"))
    client.kill()
    client.wait()
    assert wait_until(lambda: not is_running(pid), 2)
    assert not list(tmp_path.glob("SaliencyExplain-job-*"))


def test_closing_ends_the_process_and_leaves_no_files(models, tmp_path):
    one = worker.Worker(threads=1, environ=an_environment(), parent=tmp_path)
    explain(one, a_source(models))
    pid = one.pid
    assert list(tmp_path.iterdir()) == []
    started = time.monotonic()
    one.close()
    assert time.monotonic() - started < 1
    assert not is_running(pid)
    one.close()


def test_a_result_outlives_the_worker(models, tmp_path):
    with worker.JobFolder(tmp_path) as folder:
        with worker.Worker(threads=1, environ=an_environment()) as one:
            request = worker.Predict(
                a_source(models), folder.put("image", a_scan()), folder.output()
            )
            one._ask(request)
        assert worker.read_result(request.output).labels.shape == (1, 8, 9, 10)
    assert list(tmp_path.iterdir()) == []


# Where it runs


@pytest.fixture
def bare(tmp_path) -> Path:
    """Python of an environment without any package."""
    home = tmp_path / "bare"
    venv.create(home, with_pip=False, symlinks=True)
    return home / "bin" / "python"


@posix
def test_another_interpreter_runs_without_this_ones_variables(bare, models, tmp_path):
    # Its packages are those of this one, found through a file of its own.
    (site,) = bare.parents[1].glob("lib/python*/site-packages")
    (here,) = {path for path in sys.path if path.endswith("site-packages")}
    (site / "others.pth").write_text(f"{here}\n{HERE}\n")
    environ = {
        **os.environ,
        "PYTHONHOME": "/nowhere",
        "PYTHONPATH": "/nowhere",
        "LD_LIBRARY_PATH": "/nowhere",
        "QT_PLUGIN_PATH": "/nowhere",
    }
    with worker.Worker(str(bare), threads=1, environ=environ) as other:
        told = other.hello()
        assert told["executable"] == str(bare)
        explain(other, a_source(models))


@posix
def test_an_interpreter_without_packages_says_which_are_missing(bare):
    with (
        worker.Worker(str(bare)) as empty,
        pytest.raises(
            WorkerError, match=r"\(status 1\): This Python .* has no numpy; install torch"
        ),
    ):
        empty.hello()


@posix
def test_an_interpreter_without_torch_says_so(bare, models, tmp_path):
    (site,) = bare.parents[1].glob("lib/python*/site-packages")
    here = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs"):
        (site / name).symlink_to(here / name)
    with worker.Worker(str(bare)) as other:
        told = other.hello()
        assert told["missing"] == ["torch", "monai", "scipy", "SimpleITK"]
        assert [one["name"] for one in told["devices"]] == ["cpu"]
        with pytest.raises(MissingPackageError, match=r"finds no torch, monai, scipy, SimpleITK"):
            other.load(a_source(models))


@posix
def test_a_prefix_may_greet_and_threads_are_set(models):
    # As a login on another machine does.
    prefix = ("sh", "-c", 'echo "Welcome!"; echo "{}"; exec "$@"', "sh")
    with worker.Worker(prefix=prefix, threads=2, environ=an_environment()) as remote:
        explain(remote, a_source(models, "WantsTwoThreads"))
        assert "Welcome!" in remote.log


@posix
def test_a_prefix_and_what_it_started_are_killed_together(models):
    # The shell waits, so the worker is its child.
    prefix = ("sh", "-c", '"$@"; true', "sh")
    with worker.Worker(prefix=prefix, threads=1, environ=an_environment()) as remote:
        pid, cancel = remote.hello()["pid"], Cancel(0.2)
        assert pid != remote.pid
        with pytest.raises(Cancelled):
            explain(remote, a_source(models, "Sleeps"), progress=cancel.progress, cancelled=cancel)
        assert cancel.seconds() < 1
        assert wait_until(lambda: not is_running(pid), 1)


def test_a_program_that_does_not_exist_is_told(tmp_path):
    with pytest.raises(WorkerError, match="no Python '/nowhere/python' that can be run"):
        worker.Worker("/nowhere/python")
    with (
        worker.Worker(prefix=("/nowhere/ssh", "host")) as remote,
        pytest.raises(WorkerError, match="'/nowhere/ssh' could not be started"),
    ):
        remote.hello()


@posix
def test_a_program_that_is_no_worker_is_told(models):
    with (
        worker.Worker("/bin/sh") as other,
        pytest.raises(WorkerError, match="ended before it was ready"),
    ):
        other.hello()


def test_the_module_says_how_it_is_used():
    command = [sys.executable, "-m", "SaliencyExplainLib.worker", "--help"]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, check=True)
    assert "Runs explanations for another program" in done.stdout


def test_messages_of_another_release_are_refused():
    command = [sys.executable, "-m", "SaliencyExplainLib.worker"]
    text = textwrap.dedent("""\
        this is no message
        {"type": "hello", "job": "1", "protocol": 0}
        {"type": "dance", "job": "2", "protocol": PROTOCOL}
    """).replace("PROTOCOL", str(worker.PROTOCOL))
    process = subprocess.Popen(
        command, cwd=HERE.parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdin.write(text.encode())
    process.stdin.flush()
    told = []
    while len(told) < 3:
        message = json.loads(process.stdout.readline())
        told += [message] if message["type"] != "alive" else []
    process.stdin.close()
    assert process.wait(5) == 0
    process.stdout.close()
    assert [one["type"] for one in told] == ["ready", "failed", "failed"]
    assert "in version 0 of the messages" in told[1]["message"]
    assert "no job 'dance'" in told[2]["message"]
