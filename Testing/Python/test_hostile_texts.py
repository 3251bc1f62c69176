"""Records, tables and hashes from somebody who means harm: read back, shown, trusted."""

from __future__ import annotations

import csv
import io
import json
import os
import py_compile
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile_models import METADATA

import SaliencyExplainLib as sx
from SaliencyExplainLib.errors import ModelError, SaliencyExplainError
from SaliencyExplainLib.explanation import Explanation
from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.plain_text import cell_text, printable
from SaliencyExplainLib.worker.protocol import decode
from SaliencyExplainLib.worker.trust import fingerprint, sha256_of

# Explanations that are read back


@pytest.fixture
def saved(tmp_path) -> Path:
    image = make_image(np.arange(24.0).reshape(2, 3, 4), np.eye(4), "scan")
    model = sx.load_model(torch.nn.Conv3d(1, 2, 1), task="segmentation")
    sx.explain(model, image, sx.Target(output=1, region="everywhere"), "gradient").save(tmp_path)
    return tmp_path


def changed(folder: Path, **values: Any) -> Path:
    facts = json.loads((folder / "explanation.json").read_text(encoding="utf-8"))
    (folder / "explanation.json").write_text(json.dumps(facts | values))
    return folder


def test_what_was_saved_is_read_back(saved):
    found = Explanation.load(saved)
    assert found.method == "gradient"
    assert json.loads(json.dumps(found.to_dict())) == json.loads(
        (saved / "explanation.json").read_text(encoding="utf-8")
    )


PLACE = np.eye(4).tolist()


@pytest.mark.parametrize(
    "values",
    [
        {"map": {"channels": 10**12}},
        {"map": {"channels": -1}},
        {"map": {"channels": "many"}},
        {"map": [1]},
        {"map": {"channels": 1, "ijk_to_ras": "text"}},
        {"map": {"channels": 1, "ijk_to_ras": [[1]]}},
        {"image": "text"},
        {"target": ["a"]},
        {"layers": "abc"},
        {"layers": [1]},
        {"warnings": {"a": 1}},
        {"title": 5},
        {"value": "much"},
        {"value": [0] * 10},
        {"signed": 1},
        {"details": None},
    ],
)
def test_a_record_with_values_of_another_kind_is_refused(values, saved):
    with pytest.raises(SaliencyExplainError, match=r"holds no explanation|is no record of an"):
        Explanation.load(changed(saved, **values))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"map":' * 100_000, "holds no explanation"),
        (b"[]", "it is no JSON object"),
        (b"\xff\xfe", "holds no explanation"),
        (b" " * (65 << 20), "it has more than 64 MB"),
    ],
)
def test_a_record_that_is_no_record_is_refused(content, told, saved):
    (saved / "explanation.json").write_bytes(content)
    with pytest.raises(SaliencyExplainError, match=told):
        Explanation.load(saved)


def test_a_record_that_is_a_pipe_or_a_device_is_refused(saved):
    record = saved / "explanation.json"
    record.unlink()
    os.mkfifo(record)
    with pytest.raises(SaliencyExplainError, match="there is no such file"):
        Explanation.load(saved)
    record.unlink()
    record.symlink_to("/dev/zero")
    with pytest.raises(SaliencyExplainError, match="there is no such file"):
        Explanation.load(saved)


def test_a_map_that_takes_its_voxels_from_elsewhere_is_refused(saved):
    head = (saved / "map.nrrd").read_bytes().split(b"\n\n")[0]
    (saved / "map.nrrd").write_bytes(head + b"\ndata file: /etc/passwd\n\n")
    with pytest.raises(SaliencyExplainError, match="outside its own folder"):
        Explanation.load(saved)


@pytest.mark.parametrize("line", [b"[" * 10**6, b'{"type":' * 10**6, b'{"type": 1e999999}'])
def test_a_line_that_is_no_message_does_not_end_the_conversation(line):
    assert decode(line) is None


# Tables and terminals

FORMULAS = ["=1+1", "+1", "-1+cmd|' /C calc'!A0", "@SUM(A1)", "\t=1", "  =1", "\uff1d1"]


@pytest.mark.parametrize("name", FORMULAS)
def test_no_name_of_a_segment_is_a_formula_in_a_table(name):
    map_ = make_image(np.arange(8.0).reshape(2, 2, 2), np.eye(4))
    labels = make_image(np.ones((2, 2, 2)), np.eye(4))
    table = sx.region_table(map_, labels, {1: name})
    header, *rows = csv.reader(io.StringIO(table.to_csv()))
    row = dict(zip(header, rows[1], strict=True))
    assert row["name"] == f"'{name}"
    # Numbers stay numbers, negative ones too.
    assert float(row["mean"]) == 3.5
    assert table[name].name == name


def test_a_name_cannot_end_its_row():
    assert cell_text("a\rb\x00") == "a\ufffdb\ufffd"
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([cell_text("a\n=1\r=2"), "next"])
    assert list(csv.reader(io.StringIO(text.getvalue()))) == [["a\n=1\ufffd=2", "next"]]


def test_usual_names_and_negative_numbers_are_left_alone():
    assert [cell_text(name) for name in ("left lung", "a=b", "T2-FLAIR", "")] == [
        "left lung", "a=b", "T2-FLAIR", "",
    ]  # fmt: skip
    map_ = make_image(np.full((2, 2, 2), -1.5), np.eye(4))
    labels = make_image(np.ones((2, 2, 2)), np.eye(4))
    assert ",-1.5," in sx.region_table(map_, labels, {1: "a"}).to_csv()


def test_names_cannot_steer_a_terminal(capsys):
    from SaliencyExplainLib.cli.output import say

    say("liver\x1b[2J\x07\u202e\x9b1m\nnext\tline")
    assert capsys.readouterr().out == "liver\ufffd[2J\ufffd\ufffd\ufffd1m\nnext\tline\n"
    assert printable("Größe µm 肝臓") == "Größe µm 肝臓"


def test_an_error_of_the_shell_cannot_steer_a_terminal(capsys):
    from SaliencyExplainLib.cli import main

    assert main(["model", "no\x1b[2Jwhere"]) == 1
    assert "\x1b" not in capsys.readouterr().err


# What a hash covers


@pytest.fixture
def a_folder(tmp_path) -> Path:
    home = tmp_path / "bundle"
    (home / "scripts").mkdir(parents=True)
    (home / "scripts" / "__init__.py").write_text("")
    (home / "scripts" / "nets.py").write_text("value = 1\n")
    return home


def test_a_hash_changes_with_each_content_and_name(a_folder):
    seen = {sha256_of(a_folder)}
    (a_folder / "scripts" / "nets.py").write_text("value = 2\n")
    seen.add(sha256_of(a_folder))
    (a_folder / "scripts" / "nets.py").rename(a_folder / "scripts" / "net.py")
    seen.add(sha256_of(a_folder))
    (a_folder / "more").write_text("")
    seen.add(sha256_of(a_folder))
    assert len(seen) == 4


def test_a_link_to_a_file_is_hashed_with_what_it_leads_to(a_folder, tmp_path):
    (tmp_path / "weights").write_text("one")
    (a_folder / "model.pt").symlink_to(tmp_path / "weights")
    before = sha256_of(a_folder)
    (tmp_path / "weights").write_text("two")
    assert sha256_of(a_folder) != before


def test_a_link_to_a_folder_outside_cannot_be_trusted(a_folder, tmp_path):
    (a_folder / "again").symlink_to(a_folder / "scripts")
    sha256_of(a_folder)
    (tmp_path / "elsewhere").mkdir()
    (a_folder / "scripts" / "more").symlink_to(tmp_path / "elsewhere")
    for ask in (sha256_of, fingerprint):
        with pytest.raises(ModelError, match=r"holds the link 'scripts/more' to a folder outside"):
            ask(a_folder)


def test_compiled_code_beside_a_trusted_script_does_not_run_in_its_place(tmp_path):
    # The hash leaves caches out; an "unchecked" one is run whatever its source says (PEP 552).
    home, canary = tmp_path / "bundle", tmp_path / "canary"
    for part in ("configs", "models", "scripts"):
        (home / part).mkdir(parents=True)
    script = home / "scripts" / "nets.py"
    (home / "scripts" / "__init__.py").write_text("")
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    script.write_text(f"open({str(canary)!r}, 'w')\n")
    py_compile.compile(str(script), invalidation_mode=mode)
    script.write_text("import torch\ndef made():\n    return torch.nn.Conv3d(1, 2, 1)\n")
    network = {"_target_": "scripts.nets.made"}
    (home / "configs" / "inference.json").write_text(json.dumps({"network_def": network}))
    (home / "configs" / "metadata.json").write_text(json.dumps(METADATA))
    torch.save(torch.nn.Conv3d(1, 2, 1).state_dict(), home / "models" / "model.pt")
    run = subprocess.run(
        [sys.executable, "-c", "import scripts.nets"], cwd=home, capture_output=True, check=False
    )
    assert canary.exists(), run.stderr  # else the test could not fail
    canary.unlink()
    cache = sys.pycache_prefix
    model = sx.load_model(home, trusted=True)
    assert isinstance(model.network, torch.nn.Conv3d)
    assert not canary.exists()
    assert sys.pycache_prefix == cache
