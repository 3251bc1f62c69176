"""Around the jobs: arrays in files, how a process is started, faults, the hash that is trusted."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from worker_cases import AFFINE, COARSE, a_scan, an_explanation

from SaliencyExplainLib.errors import (
    ModelError,
    OutOfMemoryError,
    WorkerError,
)
from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.region_rows import RegionTable
from SaliencyExplainLib.regions import region_table
from SaliencyExplainLib.volume import (
    Volume,
)
from SaliencyExplainLib.worker import JobFolder, clean_environment, launch, read_result
from SaliencyExplainLib.worker.faults import fault_of
from SaliencyExplainLib.worker.jobs import (
    PREFIX,
    is_reference,
    read_array,
    write_array,
    write_result,
)
from SaliencyExplainLib.worker.trust import fingerprint, sha256_of

# Job folders


def test_arrays_go_through_files_unchanged(tmp_path):
    with JobFolder(tmp_path) as folder:
        assert folder.path.name.startswith(PREFIX)
        # As Slicer's voxels come: a transposed view.
        voxels = np.random.default_rng(0).normal(size=(6, 5, 4, 2)).astype(np.float32)
        scan = Volume(voxels.transpose(3, 2, 1, 0), AFFINE, "CT, MR")
        reference = folder.put("image", scan)
        back = read_array(reference)
        np.testing.assert_array_equal(back.voxels, scan.voxels)
        np.testing.assert_array_equal(back.affine, AFFINE)
        assert back.name == "CT, MR"
        assert is_reference(reference)
        assert folder.put("image", scan)["npy"] != reference["npy"]
        assert not Path(folder.output()).exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [1, "text", {"npy": "x"}, None, [1]])
def test_other_parameters_are_no_reference(value):
    assert not is_reference(value)


def test_a_folder_that_cannot_be_made_or_written_is_told(tmp_path):
    with pytest.raises(WorkerError, match="No folder for the job can be made in '/nowhere'"):
        JobFolder("/nowhere")
    with pytest.raises(WorkerError, match=r"'a\.npy' could not be written .*Free some space"):
        write_array(tmp_path / "none" / "a.npy", a_scan())


def test_an_array_that_the_other_side_does_not_see_is_told(tmp_path):
    with pytest.raises(WorkerError, match="must lie under the same path"):
        read_array({"npy": str(tmp_path / "a.npy"), "ijk_to_ras": np.eye(4).tolist()})
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY damaged")
    with pytest.raises(WorkerError, match="cannot be read"):
        read_array({"npy": str(tmp_path / "a.npy"), "ijk_to_ras": np.eye(4).tolist()})


def test_a_result_comes_back_whole(tmp_path):
    made = an_explanation(2)
    labels = make_image((made.maps.numpy()[:1] > 0) * 1.0, AFFINE)
    rows = region_table(make_image(made.maps[:1], AFFINE), labels).rows
    write_result(tmp_path / "out", made, RegionTable(tuple(rows)), labels, {1: "liver"})
    back = read_result(tmp_path / "out")
    assert back.explanation.to_dict() == made.to_dict()
    np.testing.assert_array_equal(back.explanation.network_maps.voxels, made.network_maps.numpy())
    np.testing.assert_array_equal(back.explanation.layer_map.affine, COARSE)
    assert back.regions.to_csv() == RegionTable(tuple(rows)).to_csv()
    np.testing.assert_array_equal(back.labels.voxels, labels.numpy())
    assert back.label_names == {1: "liver"}
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_a_result_can_be_moved(tmp_path):
    write_result(tmp_path / "out", an_explanation())
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert read_result(tmp_path / "elsewhere").explanation.value == 1.5


def test_a_result_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        with pytest.raises(WorkerError, match=r"could not be written to .*No space left"):
            write_result(tmp_path / "out", an_explanation())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("")
    with pytest.raises(WorkerError, match="could not be written"):
        write_result(tmp_path / "out", an_explanation())
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["kept"]


@pytest.mark.parametrize("lost", ["result.json", "maps.npy"])
def test_a_result_that_is_not_whole_is_told(tmp_path, lost):
    write_result(tmp_path / "out", an_explanation())
    (tmp_path / "out" / lost).unlink()
    with pytest.raises(WorkerError, match=r"not whole|cannot be read"):
        read_result(tmp_path / "out")


# Starting


def test_this_interpreter_is_started_with_its_own_environment():
    environ = {"PYTHONHOME": "/slicer", "LD_LIBRARY_PATH": "/slicer/lib", "HOME": "/h"}
    made = launch(environ=environ, threads=3)
    assert made.program == sys.executable
    assert "-I" not in made.arguments
    assert made.arguments[-2:] == ["--threads", "3"]
    assert {key: made.environment[key] for key in environ} == environ


def test_another_interpreter_is_started_isolated_and_clean():
    environ = {
        "PYTHONHOME": "/s", "PYTHONPATH": "/s", "PYTHONNOUSERSITE": "1", "LD_LIBRARY_PATH": "/s",
        "LD_PRELOAD": "/s", "DYLD_LIBRARY_PATH": "/s", "QT_PLUGIN_PATH": "/s", "SLICER_HOME": "/s",
        "PATH": "/bin", "HOME": "/h", "CUDA_VISIBLE_DEVICES": "1",
    }  # fmt: skip
    made = launch("/bin/sh", environ=environ)
    assert made.program == "/bin/sh"
    assert made.arguments[:2] == ["-I", "-u"]
    assert Path(made.arguments[2]).name == "worker"
    kept = {"PATH": "/bin", "HOME": "/h", "CUDA_VISIBLE_DEVICES": "1"}
    assert clean_environment(environ) == kept
    assert {key: one for key, one in made.environment.items() if "MALLOC" not in key} == kept


def test_the_allocator_keeps_large_blocks_unless_the_user_says_otherwise():
    assert launch(environ={}).environment["MALLOC_TRIM_THRESHOLD_"] == str(2**32)
    own = {"MALLOC_TRIM_THRESHOLD_": "1"}
    assert launch(environ=own).environment["MALLOC_TRIM_THRESHOLD_"] == "1"


def test_a_prefix_stands_in_front_and_the_library_may_lie_elsewhere():
    made = launch("/opt/conda/bin/python", ("ssh", "host"), "/there/SaliencyExplainLib")
    words = ["host", "/opt/conda/bin/python", "-I", "-u", "/there/SaliencyExplainLib/worker"]
    assert (made.program, made.arguments) == ("ssh", words)


def test_an_interpreter_that_cannot_be_run_is_refused(tmp_path):
    (tmp_path / "python").write_text("")
    with pytest.raises(WorkerError, match=r"no Python '.*python' that can be run"):
        launch(str(tmp_path / "python"))


# What can be asked


def test_a_worker_can_be_asked_what_this_process_can():
    import inspect

    from SaliencyExplainLib.model.load import _OPTIONS as OF_LOADING
    from SaliencyExplainLib.run import explain
    from SaliencyExplainLib.target import Target
    from SaliencyExplainLib.worker import Explain, Question
    from SaliencyExplainLib.worker.models import _OPTIONS

    targets = {one.name: one.default for one in fields(Target)}
    assert {one.name: one.default for one in fields(Question)} == targets
    # Preprocessing and inferer are objects, which no message holds.
    assert set(_OPTIONS) == set(OF_LOADING) - {"preprocess", "inferer"}
    asked = {one.name for one in fields(Explain)} | {"target", "progress", "cancelled"}
    assert set(inspect.signature(explain).parameters) <= asked


# Faults


#: As torch names its own, which needs a graphics card to be raised.
_TorchOutOfMemory = type("OutOfMemoryError", (RuntimeError,), {})


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "The memory was not enough"),
        (_TorchOutOfMemory("CUDA out of memory. Tried"), "The graphics card's memory"),
        (RuntimeError("MPS backend out of memory (MPS"), "The graphics card's memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "The memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "The memory"),
        (RuntimeError("std::bad_alloc"), "The memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "The graphics card's memory"),
        (OSError(12, "Cannot allocate memory"), "The memory"),
        (caused(ModelError("The network failed."), MemoryError()), "The memory"),
    ],
)
def test_a_lack_of_memory_is_one_sentence(error, words):
    fault = fault_of(error)
    assert fault.kind == "OutOfMemoryError"
    with pytest.raises(OutOfMemoryError, match=words):
        raise OutOfMemoryError(fault.message)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ModelError("No\nmodel."), "ModelError", r"^No model\.$"),
        (ModuleNotFoundError("No x", name="einops"), "MissingPackageError", "no package 'einops'"),
        (SystemExit(3), "Unexpected", r"exit status 3"),
        (ZeroDivisionError(), "Unexpected", "Unexpected ZeroDivisionError: no message"),
        (RuntimeError("sizes do not match"), "Unexpected", "RuntimeError: sizes do not match"),
        (ValueError("x" * 5000), "Unexpected", r"^.{500,1100}$"),
    ],
)
def test_a_fault_is_one_sentence_with_its_traceback(error, kind, words):
    with pytest.raises(type(error)) as caught:
        raise error
    fault = fault_of(caught.value)
    assert fault.kind == kind
    with pytest.raises(WorkerError, match=words):
        raise WorkerError(fault.message)
    assert "test_worker_jobs.py" in fault.details


# What is trusted


def test_a_hash_changes_with_every_file_and_name(tmp_path):
    home = tmp_path / "bundle"
    (home / "configs").mkdir(parents=True)
    (home / "configs" / "a.json").write_text("1")
    (home / "model.pt").write_bytes(b"2")
    seen = {sha256_of(home)}
    (home / "configs" / "a.json").write_text("3")
    seen.add(sha256_of(home))
    (home / "model.pt").rename(home / "other.pt")
    seen.add(sha256_of(home))
    (home / "code.py").write_text("")
    seen.add(sha256_of(home))
    assert len(seen) == 4
    (home / "__pycache__").mkdir()
    (home / "__pycache__" / "code.pyc").write_text("")
    assert sha256_of(home) in seen
    import hashlib

    assert sha256_of(home / "other.pt") == hashlib.sha256(b"2").hexdigest()


def test_a_fingerprint_changes_when_a_model_is_written(tmp_path):
    import os

    path = tmp_path / "a.pt"
    path.write_bytes(b"1")
    before = fingerprint(path)
    assert fingerprint(path) == before
    os.utime(path, ns=(1, 1))
    assert fingerprint(path) != before
    before = fingerprint(path)
    path.write_bytes(b"12")
    os.utime(path, ns=(1, 1))
    assert fingerprint(path) != before
