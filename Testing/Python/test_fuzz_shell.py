"""A thousand wrong commands: one sentence, the right exit status, no file left behind."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from cli_cases import everything_below, explain_words, write_inputs

from SaliencyExplainLib.cli import main

ODD = [
    "", " ", "0", "-1", "1e999", "nan", "inf", "-", "--", "---", "--x", "-h=1", "=", "a=b", "=b",
    "steps=0", "steps=", "steps=1=2", "layer=none", "blur_mm=-1", "../../x", "/", "/dev/null", ".",
    "\u202e", "💥", "a" * 5000, "{}", "[]", '{"in_channels": "x"}', "os:system", "nothing:here",
    "os.path", "SaliencyExplainLib:none", "everywhere", "segment", "logit", "2", "7", "lesion",
    "gradient", "grad_cam", "occlusion", "smooth_grad", "--trust", "--json", "--task", "--point",
    "--roi", "--segments", "--region", "--param", "--fast", "--batch", "--image", "--model",
    "--contrast", "--score", "--reduce", "--scene", "explain", "evaluate", "layers", "model",
]  # fmt: skip
OPTIONS = [
    ("--region", "point"), ("--point", "0", "0", "x"), ("--roi", "0", "0", "0"), ("--batch", "0"),
    ("--score", "loud"), ("--param", "nothing=1"), ("--labels", ","), ("--channels", "a,b,c"),
    ("--segments", "/dev/null"), ("--segment", "liver"), ("--window", "1"), ("--device", "tpu"),
    ("--network", "os:system"), ("--network-arguments", "["), ("--contrast", "lesion"),
]  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


def broken(words: list[str], chance: random.Random) -> list[str]:
    """The words of a run that works, with one to three of them changed, gone, doubled or added."""
    made = list(words)
    for _ in range(chance.choice((1, 1, 2, 3))):
        at = chance.randrange(1, len(made))
        what = chance.random()
        if what < 0.5:
            made[at] = chance.choice(ODD)
        elif what < 0.7:
            del made[at]
        elif what < 0.8:
            made.insert(at, made[at])
        else:
            made += chance.choice(OPTIONS)
    return made


@pytest.mark.parametrize("seed", range(8))
def test_a_wrong_command_ends_in_a_sentence_and_leaves_nothing(
    inputs, tmp_path, capsys, monkeypatch, seed
):
    # Some of them name a folder here as their output, and are right.
    monkeypatch.chdir(tmp_path)
    chance = random.Random(seed)
    right = explain_words(inputs, tmp_path / "out", "--quiet", "--no-figure")
    before = everything_below(inputs)
    wrong, refused = [], 0
    for _ in range(140):
        words = broken(right, chance)
        status = main(words)
        said = capsys.readouterr()
        if status:
            refused += 1
            # Progress, where --quiet was among the words that went.
            lines = [line for line in said.err.strip().splitlines() if "% " not in line[:6]]
            told = len(lines) == 1 and lines[0].startswith("Error: ") and len(lines[0]) < 1500
            odd = any(one in said.err for one in ("Traceback", "Unexpected", "object at 0x"))
            if not told or odd or everything_below(tmp_path):
                wrong.append((words, status, said.err[-400:], everything_below(tmp_path)))
        remove_results(tmp_path)
    assert wrong == []
    assert refused > 70
    assert everything_below(inputs) == before


def remove_results(folder: Path) -> None:
    import shutil

    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("command", ["methods", "model", "regions", "evaluate", "layers", "study"])
def test_other_commands_end_in_a_sentence_too(tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    chance = random.Random(command)
    wrong = []
    for _ in range(40):
        words = [command, *chance.choices(ODD, k=chance.randrange(0, 5))]
        status = main([*words, "--quiet"])
        said = capsys.readouterr()
        lines = said.err.strip().splitlines()
        told = len(lines) == 1 and lines[0].startswith("Error: ")
        if status and (not told or "Unexpected" in said.err or "Traceback" in said.err):
            wrong.append((words, status, said.err[-300:]))
    assert wrong == []
    assert everything_below(tmp_path) == set()
