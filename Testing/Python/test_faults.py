"""Faults at every moment: no memory, killed, disk full. Nothing is lost and nothing half-done."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_cases import a_tiny_network, everything_below, explain_words, write_inputs
from references import cheap, for_method, state_of
from torch.utils._python_dispatch import TorchDispatchMode

import SaliencyExplainLib as sx
from SaliencyExplainLib.cli import main
from SaliencyExplainLib.errors import ImageError, OutOfMemoryError, SaliencyExplainError
from SaliencyExplainLib.volume import write_volume

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, as POSIX systems have it")
#: What PyTorch says when the memory of a processor is used up.
NO_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 805306368 bytes. Error code 12 (Cannot allocate memory)"
)
TARGET = sx.Target(output=1, region="everywhere")
#: Names of the shell's results of one run.
RESULTS = {"explanation.json", "map.nrrd"}


# -- no memory


class NoMemory(TorchDispatchMode):
    """Counts the operations of torch; the one with the given number finds no memory."""

    def __init__(self, at: int = -1) -> None:
        super().__init__()
        self.at, self.count = at, 0

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.count == self.at:
            raise RuntimeError(NO_MEMORY)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(sx.methods()))
def test_no_memory_at_any_operation_is_told_and_the_model_stays_usable(name):
    network = for_method(name, a_tiny_network()).eval()
    model = sx.load_model(network, task="segmentation")
    scan = sx.make_image(np.random.default_rng(0).normal(size=(6, 6, 6)), np.eye(4))

    def run() -> sx.Explanation:
        return sx.explain(model, scan, TARGET, name, **cheap(name))

    expected = run()
    before = state_of(network)
    with NoMemory() as counter:
        run()
    told = 0
    # A sample over the whole run, with another start for each method.
    step = max(1, counter.count // 20)
    for at in range(1 + len(name) % step, counter.count + 1, step):
        found = said = None
        try:
            with NoMemory(at):
                found = run()
        except OutOfMemoryError as error:
            said = str(error)
        if found is None:
            told += 1
            assert "memory" in said
        else:
            # Smaller batches did it, or what failed was no part of the result.
            np.testing.assert_allclose(found.maps, expected.maps, rtol=1e-4, atol=1e-5)
        assert state_of(network) == before
    assert told > 0
    np.testing.assert_array_equal(run().maps, expected.maps)


# -- killed


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


def in_a_copy(work: Callable[[], int | None]) -> int:
    """Run something in a copy of this process, which says nothing and ends with its answer."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            with Path(os.devnull).open("w") as nothing:
                sys.stdout = sys.stderr = nothing
                for number in (1, 2):
                    os.dup2(nothing.fileno(), number)
                torch.set_num_threads(1)
                status = work() or 0
        finally:
            os._exit(status)
    return child


def ending(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_after(seconds: float, work: Callable[[], int | None]) -> bool:
    """Run something in a copy of this process and kill that; whether it had ended before."""
    child = in_a_copy(work)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    ending(child)
    return False


def with_files_up_to(size: int, work: Callable[[], int | None]) -> int:
    """Answer of something in a copy of this process whose writing fails as on a full disk."""
    import resource

    def limited() -> int | None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return work()

    return ending(in_a_copy(limited))


@posix
def test_a_run_that_is_killed_at_any_moment_leaves_whole_results_or_none(inputs, tmp_path):
    out = tmp_path / "out"
    words = explain_words(inputs, out, "--quiet", "--no-figure")
    begun = time.monotonic()
    assert killed_after(300, lambda: main(words))
    usual = time.monotonic() - begun
    earlier = (out / "explanation.json").read_bytes()
    chance, ended = random.Random(0), 0
    for _ in range(50):
        # Half of the moments near the end, where the files are written.
        part = chance.uniform(0, 1.2) if chance.random() < 0.5 else chance.uniform(0.8, 1.1)
        ended += killed_after(usual * part, lambda: main(words))
        assert everything_below(out) == RESULTS
        found = sx.Explanation.load(out)
        assert found.map.shape[1:] == (14, 16, 12)
        json.loads((out / "explanation.json").read_text(encoding="utf-8"))
    assert 0 < ended < 50
    # What a killed run had written lies beside the results under its own name, and harms no run.
    for path in tmp_path.iterdir():
        assert path == out or path.name.startswith(".unfinished-")
    assert main(words) == 0
    assert (out / "explanation.json").read_bytes() != earlier or ended


@posix
def test_a_saved_explanation_that_is_killed_while_it_is_written_has_whole_files(tmp_path):
    model = sx.load_model(a_tiny_network().eval(), task="segmentation")
    scan = sx.make_image(np.random.default_rng(0).normal(size=(24, 24, 24)), np.eye(4))
    found = sx.explain(model, scan, TARGET, "gradient")
    found.save(tmp_path)
    expected = found.map.numpy()

    def write_on() -> None:
        while True:
            found.save(tmp_path)

    chance = random.Random(1)
    for _ in range(50):
        killed_after(chance.uniform(0.01, 0.06), write_on)
        back = sx.Explanation.load(tmp_path)
        np.testing.assert_array_equal(back.map.voxels, expected)


# -- disk full


@posix
@pytest.mark.parametrize("limit", [0, 50, 700, 3_000, 9_000])
def test_a_disk_that_is_full_is_an_error_and_leaves_the_earlier_results(inputs, tmp_path, limit):
    out = tmp_path / "out"
    words = explain_words(inputs, out, "--quiet", "--no-figure")
    assert main(words) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert max(map(len, before.values())) > 9_000
    assert with_files_up_to(limit, lambda: main(words)) == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert everything_below(tmp_path) == {"out", *(f"out/{name}" for name in before)}


@posix
def test_a_map_that_is_cut_off_by_a_full_disk_is_noticed(tmp_path):
    volume = sx.Volume(np.random.default_rng(0).normal(size=(14, 16, 12)), np.eye(4))
    file = write_volume(volume, tmp_path / "map.nrrd")
    before = file.read_bytes()
    told = []
    for missing in (10, 100, 700, 1500, 4000):

        def write() -> int:
            try:
                write_volume(volume, file)
            except ImageError:
                return 7
            return 0

        told.append(with_files_up_to(len(before) - missing, write))
    assert told == [7] * 5
    assert file.read_bytes() == before
    assert everything_below(tmp_path) == {"map.nrrd"}


@posix
def test_a_scene_that_does_not_fit_on_the_disk_leaves_the_earlier_file(tmp_path):
    scene = sx.scene.new_scene()
    try:
        voxels = np.random.default_rng(0).normal(size=(9, 9, 9))
        sx.scene.add_image(scene, sx.Volume(voxels, np.eye(4)))
        file = sx.scene.save_mrb(scene, tmp_path / "scene.mrb")
        before = file.read_bytes()

        def write() -> int:
            try:
                sx.scene.save_mrb(scene, file)
            except SaliencyExplainError:
                return 7
            return 0

        assert with_files_up_to(1000, write) == 7
        assert file.read_bytes() == before
        assert everything_below(tmp_path) == {"scene.mrb"}
    finally:
        sx.scene.release_scene(scene)
