"""The shell: the other commands, its parts, and processes of its own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_cases import LABELS, everything_below, explain_words, failure, replaced, write_inputs

from SaliencyExplainLib import errors
from SaliencyExplainLib.cli import arguments, main
from SaliencyExplainLib.cli.output import StagedFolder, json_values
from SaliencyExplainLib.cli.regions import read_names

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def a_folder(tmp_path_factory):
    """Inputs; see write_inputs."""
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture
def explain(a_folder, tmp_path):
    """Arguments of a run into ``tmp_path / "out"``; more can be appended."""
    return lambda *more: explain_words(a_folder, tmp_path / "out", *more)


# The other commands


@pytest.mark.parametrize("command", ["explain", "methods", "model", "regions", "demo"])
def test_every_command_has_help_with_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"python -m SaliencyExplainLib {command}" in capsys.readouterr().out


def test_the_choices_are_those_of_target_and_model():
    from SaliencyExplainLib import target
    from SaliencyExplainLib.model.model import TASKS

    assert arguments.REGIONS == target.REGIONS
    assert arguments.SCORES == target.SCORES
    assert arguments.REDUCTIONS == target.REDUCTIONS
    assert arguments.TASKS == TASKS


def test_methods_are_listed_with_what_they_answer(capsys):
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert "gradient:" in out
    assert "integrated_gradients" in out


def test_methods_as_json_carry_their_parameters(capsys):
    assert main(["methods", "--json"]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)["methods"]}
    steps = listed["integrated_gradients"]["parameters"][0]
    assert (steps["name"], steps["low"]) == ("steps", 2)
    assert main(["methods", "gradient", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passes"] == 1


def test_one_method_is_described(capsys):
    assert main(["methods", "integrated_gradients"]) == 0
    assert "steps = " in capsys.readouterr().out


def test_a_model_is_described_with_its_layers(a_folder, capsys):
    words = ["model", str(a_folder / "weights.pt"), "--network", "cli_cases:a_tiny_network"]
    words += [
        "--task",
        "segmentation",
        "--labels",
        LABELS,
        "--layers",
        "--shape",
        "1",
        "8",
        "8",
        "8",
    ]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "1 lesion" in out
    assert "4 x 8 x 8 x 8" in out
    assert main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["labels"] == LABELS.split(",")
    assert "first" in [one["name"] for one in answer["layers"]]


def test_a_shape_without_voxels_is_refused(a_folder, capsys):
    words = ["model", str(a_folder / "weights.pt"), "--network", "cli_cases:a_tiny_network"]
    words += ["--task", "segmentation", "--layers", "--shape", "1", "8", "0", "8"]
    assert main(words) == 1
    assert "four sizes of 1 or more" in failure(capsys)


def test_the_table_of_an_existing_map_is_made(a_folder, tmp_path, capsys):
    words = ["regions", "--map", str(a_folder / "scan.nii.gz")]
    words += ["--segments", str(a_folder / "labels.nii.gz")]
    words += ["--segment-names", str(a_folder / "names.json")]
    assert main([*words, "--output", str(tmp_path / "new" / "table.csv")]) == 0
    assert "liver" in capsys.readouterr().out
    assert "spleen" in (tmp_path / "new" / "table.csv").read_text(encoding="utf-8")
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["regions"]
    assert sum(row["share"] for row in rows) == pytest.approx(1)


def test_a_table_that_cannot_be_written_is_a_sentence(a_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = ["regions", "--map", str(a_folder / "scan.nii.gz")]
    words += ["--segments", str(a_folder / "labels.nii.gz")]
    assert main([*words, "--output", str(tmp_path / "file" / "table.csv")]) == 1
    assert "could not be written" in failure(capsys)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.json", "[1, 2]"), ("a.json", "{"), ("a.csv", "1\n2\n"), ("a.csv", "1,x\ntwo,y\n")],
)
def test_names_of_another_form_are_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(errors.RegionError, match="holds no segment names"):
        read_names(tmp_path / name)


# Parts


def test_json_has_no_nan():
    value = {"a": float("nan"), 2: [float("inf"), 1.5, True, None], "p": Path("x")}
    assert json_values(value) == {"a": None, "2": [None, 1.5, True, None], "p": "x"}


@pytest.fixture
def a_folder_with_results(tmp_path):
    final = tmp_path / "out"
    final.mkdir()
    for name in "ab":
        (final / f"{name}.txt").write_text(f"old {name}")
    return final


def write_new_results(final: Path) -> None:
    with StagedFolder(final, r"[ab]\.txt") as folder:
        for name in "ab":
            (folder / f"{name}.txt").write_text(f"new {name}")


def break_moving(monkeypatch, broken_from: str) -> None:
    """Moving b.txt out of a folder whose name starts so fails."""
    rename = Path.rename

    def failing(self, target):
        if self.name == "b.txt" and self.parent.name.startswith(broken_from):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)


def test_everything_is_put_back_when_moving_fails(tmp_path, a_folder_with_results, monkeypatch):
    break_moving(monkeypatch, ".unfinished")
    with pytest.raises(errors.SaliencyExplainError, match="No space left"):
        write_new_results(a_folder_with_results)
    assert (a_folder_with_results / "a.txt").read_text(encoding="utf-8") == "old a"
    assert (a_folder_with_results / "b.txt").read_text(encoding="utf-8") == "old b"
    assert everything_below(tmp_path) == {"out", "out/a.txt", "out/b.txt"}


def test_what_cannot_be_put_back_is_kept_and_named(tmp_path, a_folder_with_results, monkeypatch):
    break_moving(monkeypatch, ".")
    with pytest.raises(errors.SaliencyExplainError, match="The earlier results are in") as caught:
        write_new_results(a_folder_with_results)
    kept = next(path for path in tmp_path.iterdir() if path.name.startswith("."))
    assert str(kept) in str(caught.value)
    assert (kept / ".earlier" / "b.txt").read_text(encoding="utf-8") == "old b"
    assert (a_folder_with_results / "a.txt").read_text(encoding="utf-8") == "old a"


def test_folders_are_replaced_as_a_whole(tmp_path):
    for content in ("one", "two"):
        with StagedFolder(tmp_path / "out", "runs") as folder:
            (folder / "runs").mkdir()
            (folder / "runs" / content).write_text("")
    assert everything_below(tmp_path) == {"out", "out/runs", "out/runs/two"}


# In a process of their own


def run(*words: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "SaliencyExplainLib", *map(str, words)]
    options = {"cwd": ROOT, "capture_output": True, "text": True, "check": False, **options}
    return subprocess.run(command, **options)


def test_methods_can_be_listed_without_torch():
    code = (
        "import sys; sys.modules.update(torch=None, monai=None, slicer=None); "
        "from SaliencyExplainLib.cli import main; sys.exit(main(['methods']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "grad_cam" in done.stdout


def test_the_module_can_be_run():
    done = run("methods", "gradient")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Gradient" in done.stdout
    assert run("methods", "nonsense").returncode == 1


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_process_ends_with_130_and_leaves_nothing(explain, tmp_path, stop):
    words = replaced(explain("--param", "steps=512"), "--method", "integrated_gradients")
    command = [sys.executable, "-m", "SaliencyExplainLib", *words]
    # A shell's background job ignores Ctrl-C, and so would what it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        started = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with started as process:
        while not process.stderr.readline().startswith(" 25%"):
            assert process.poll() is None
        process.send_signal(stop)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "Cancelled. Nothing was written."
    assert everything_below(tmp_path) == set()


def test_the_names_in_a_segmentation_of_slicer_are_used(capsys, tmp_path):
    resources = Path(__file__).resolve().parents[2] / "SaliencyExplain/Resources/SampleData"
    segments = resources / "BrainT1TemplateSegments.seg.nrrd"
    words = ["regions", "--map", resources / "BrainT1Template.nrrd", "--segments", segments]
    assert main([str(one) for one in words]) == 0
    shown = capsys.readouterr().out
    assert "CSF" in shown
    assert "White matter" in shown
