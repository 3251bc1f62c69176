"""Model files from somebody who means harm: none runs, writes elsewhere, or takes the memory.

All are loaded without trust in one process, with 12 GB of address space, whose temporary folder
and whose neighbours are looked at afterwards. A few are loaded with trust, to see that they would
have done harm.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_models import a_bundle, pickles, write_all
from monai.inferers import SlidingWindowInferer

import SaliencyExplainLib as sx
from SaliencyExplainLib.errors import ImageError, ModelError
from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.model import plan_windows
from SaliencyExplainLib.model.limits import AllocationError, bounded_memory, refuse_endless

ROOT = Path(__file__).resolve().parents[2]

LOADER = textwrap.dedent(
    """
    import json, resource, sys, time, warnings
    warnings.simplefilter("ignore")
    import torch
    torch.set_num_threads(1)
    import SaliencyExplainLib as sx
    from SaliencyExplainLib.errors import ModelError
    sx.load_model(torch.nn.Conv3d(1, 2, 1), task="segmentation")
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    for name, path in json.load(sys.stdin):
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        network = None if "bundle" in name else torch.nn.Conv3d(1, 2, 1)
        options = {"task": "segmentation"} | ({} if network is None else {"network": network})
        try:
            sx.load_model(path, **options)
            kind, said = "", "loaded"
        except ModelError as error:
            kind, said = type(error).__name__, str(error)
        except BaseException as error:
            kind, said = "UNEXPECTED", f"{type(error).__name__}: {error}"
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        seconds = time.monotonic() - start
        print(json.dumps([name, kind, said, grown // 1024, round(seconds, 1)]), flush=True)
    """
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder of its own: given/ with the models, temporary/, and nothing else."""
    home = tmp_path_factory.mktemp("hostile")
    for name in ("given", "temporary"):
        (home / name).mkdir()
    return home


@pytest.fixture(scope="module")
def models(place) -> dict[str, tuple[Path, str]]:
    return write_all(place / "given", place / "canary")


@pytest.fixture(scope="module")
def answers(place, models) -> dict[str, tuple[str, str, int, float]]:
    """Kind of the error, what it said, MB by which the process grew, and seconds."""
    before = sorted(str(one) for one in place.rglob("*"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"TMPDIR": str(place / "temporary")}
    given = json.dumps([[name, str(path)] for name, (path, _) in models.items()])
    run = subprocess.run(
        [sys.executable, "-c", LOADER], input=given, cwd=place / "given", env=environment,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    found = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("[")]
    assert run.returncode == 0, f"after {found[-1:]}: {run.stderr[-800:]}"
    # Nothing ran, nothing was written: neither the canary nor anything else is new.
    after = sorted(str(one) for one in place.rglob("*"))
    # torch makes a folder for its compiler when it is imported.
    assert [one for one in after if "/temporary/torchinductor" not in one] == before
    return {name: tuple(rest) for name, *rest in found}


def test_no_hostile_model_runs_or_writes_and_each_gets_its_sentence(answers, models):
    wrong = []
    for name, (_, told) in models.items():
        kind, said, _, _ = answers[name]
        if told not in said or kind == "UNEXPECTED" or (said == "loaded") != (told == "loaded"):
            wrong.append((name, kind, said))
    assert wrong == []
    assert len(models) >= 110


def test_no_hostile_model_takes_memory_or_time_without_bound(answers):
    # Measured, on a busy machine: 28 MB and 9 s (the first import of MONAI) at most.
    assert {name: one[2:] for name, one in answers.items() if one[2] > 400 or one[3] > 20} == {}


def test_what_carries_code_asks_for_trust(answers, models):
    asking = {name for name, one in answers.items() if one[0] == "UntrustedModelError"}
    told = ("pickled Python", "TorchScript", "run code")
    assert asking >= {name for name, (_, words) in models.items() if any(t in words for t in told)}
    assert all("trusted=True (--trust)" in answers[name][1] for name in asking)


@pytest.mark.parametrize("name", ["reduce system", "inst", "obj", "stack global", "reduce eval"])
def test_the_pickles_would_do_harm_if_they_were_trusted(name, tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "evil.pth").write_bytes(pickles(canary)[name])
    with pytest.raises(ModelError):
        sx.load_model(
            tmp_path / "evil.pth", trusted=True, task="segmentation", network=torch.nn.ReLU()
        )
    assert canary.exists()


# What a configuration makes of the memory


@pytest.mark.parametrize(
    "step",
    [
        {"_target_": "Resized", "spatial_size": [9000] * 3},
        {"_target_": "SpatialPadd", "spatial_size": [9000] * 3},
        {"_target_": "Spacingd", "pixdim": [0.001] * 3},
        {"_target_": "Zoomd", "zoom": 5000, "keep_size": False},
    ],
)
def test_a_preprocessing_that_enlarges_without_end_is_stopped(step, tmp_path):
    chain = {"_target_": "Compose", "transforms": [{**step, "keys": "image"}]}
    model = sx.load_model(a_bundle(tmp_path, "bundle", preprocessing=chain))
    image = make_image(np.zeros((4, 4, 4)), np.eye(4))
    with pytest.raises(ImageError, match=r"it needs .*GB of memory") as told:
        model.prepare(image)
    assert "may be taken" in str(told.value)


@pytest.mark.parametrize(
    ("roi", "overlap", "told"),
    [
        (20_000, 0.25, r"windows of 20000 x 20000 x 20000 voxels need at least 1\.28e\+05 GB"),
        (1, 0.0, r"windows of 1 x 1 x 1 voxels would be 1,000,000 for this volume"),
        (90, 0.999, None),
    ],
)
def test_windows_that_fill_the_memory_are_refused(roi, overlap, told):
    windows = sx.load_model(
        torch.nn.Conv3d(1, 1, 1),
        task="segmentation",
        inferer=SlidingWindowInferer([roi] * 3, overlap=overlap),
    ).inferer
    if told is None:
        assert len(plan_windows(windows, (100, 100, 100)).windows) == 11**3
        return
    with pytest.raises(ModelError, match=told):
        plan_windows(windows, (100, 100, 100))


def test_the_bound_stops_before_the_memory_is_taken():
    with bounded_memory(10**6):
        assert torch.zeros(200_000).shape == (200_000,)
        with pytest.raises(AllocationError, match=r"0\.00104 GB of memory, and 0\.001 GB may"):
            torch.zeros(10_000) + torch.zeros(50_000)  # of new ones, all together
    with bounded_memory(10**6):
        small = torch.zeros(1000)
        for _ in range(1000):
            small = small + 1  # each result alone
        with pytest.raises(AllocationError):
            small.repeat(1000)


def test_repetitions_that_stay_small_are_no_harm():
    shared = {"kernel": [3, 3, 3]}
    refuse_endless({str(index): shared for index in range(100)}, "config")
    with pytest.raises(ModelError, match="more than 200,000 values"):
        refuse_endless({"a": [list(range(1001))] * 200}, "config")
