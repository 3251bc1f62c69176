"""A thousand requests that are wrong in one place or more: sentences, and nothing left behind."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worker_cases
from worker_cases import AFFINE, an_environment

import SaliencyExplainLib as sx
from SaliencyExplainLib import errors
from SaliencyExplainLib.worker import protocol
from SaliencyExplainLib.worker.jobs import JobFolder
from SaliencyExplainLib.worker.server import Server

#: What a field may be replaced by: each JSON type, ends of ranges, names of other things.
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 3, 10**30, -(10**30), 0.5, -0.5, 1e308, -1e-308,
    "", " ", "0", "-1", "nan", "none", "gradient", "lesion", "../../x", "/", "/dev/null", "~", "\0",
    "a" * 5000, "\u202e\ud7ff", "💥", "<script>", "%s%n", "{}", "$(reboot)", "'; --",
    [], [[]], [None], [1], [1, 2, 3], [[1, 2, 3], [4, 5, 6]], [10**30] * 3, ["a"] * 3,
    {}, {"a": 1}, {"1": "liver"}, {"x": {"x": {"x": {}}}}, {"path": "/"}, {"file": "../../x"},
    {"steps": 10**30}, {"steps": -1}, {"steps": "many"}, {"layer": 7}, {"seed": None},
]  # fmt: skip
#: A sentence, with what was given and what can be: no listing of code.
LONGEST = 1200
KINDS = {name for name in dir(errors) if name.endswith("Error")} | {"UntrustedModelError"}


class Kept:
    """A channel whose answers stay here."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.sent.append(json.loads(json.dumps(message)))

    def messages(self) -> list[bytes]:
        return []


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    """Return a server in this process, a valid request of each kind, and the folder of results."""
    inputs, results = (tmp_path_factory.mktemp(name) for name in ("inputs", "results"))
    sys.path.insert(0, str(worker_cases.HERE))
    channel = Kept()
    server = Server(channel, 1, 1.0)  # type: ignore[arg-type]
    source = worker_cases.a_source(inputs)
    with JobFolder() as folder:
        image = folder.put("image", worker_cases.a_scan(1, 6, 6, 6))
        labels = (np.indices((6, 6, 6)).sum(0) > 7).astype(np.float32)
        mask = folder.put("mask", sx.Volume(labels, AFFINE))
        question = protocol.Question(output="lesion", region="everywhere")
        made = [
            protocol.Load(source),
            protocol.Layers(source, image, None, ["grad_cam"]),
            protocol.Explain(
                source, image, question, "gradient", {}, str(results / "run"), mask, {1: "liver"}
            ),
            protocol.Predict(source, image, str(results / "run")),
            protocol.Evaluate(
                source, image, question, str(results / "run"), "gradient",
                metrics=["sparseness"], segments=mask, segment_names={1: "liver"},
            ),
        ]  # fmt: skip
        messages = [protocol.request_message(one, "1") for one in made]
        yield server, channel, json.loads(json.dumps(messages)), results
    sys.path.remove(str(worker_cases.HERE))


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Path of every key and element in a message."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, inside in pairs:
        found.append((*at, key))
        if isinstance(inside, dict | list):
            found += places(inside, (*at, key))
    return found


def broken(message: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """A copy with one to three places replaced, removed or added."""
    made = json.loads(json.dumps(message))
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at = chance.choice([one for one in places(made) if one[0] != "job"])
        home = made
        for key in at[:-1]:
            home = home[key]
        what = chance.random()
        if what < 0.75:
            home[at[-1]] = json.loads(json.dumps(chance.choice(ODD)))
        elif what < 0.9:
            del home[at[-1]]
        elif isinstance(home, dict):
            home[chance.choice(("extra", "", "class", "0", "__init__"))] = chance.choice(ODD)
    return made


def is_a_sentence(answer: dict[str, Any]) -> bool:
    """Whether it is told as this library tells: a kind of its own, short, no traceback."""
    said = answer["message"]
    return (
        answer["kind"] in KINDS
        and 10 < len(said) <= LONGEST
        and "Traceback" not in said
        and "Unexpected" not in said
        and "object at 0x" not in said
    )


@pytest.mark.parametrize("seed", range(8))
def test_a_broken_request_is_told_in_a_sentence_and_leaves_nothing(worker, seed):
    server, channel, messages, results = worker
    chance = random.Random(seed)
    untold, left = [], []
    for _ in range(150):
        request = broken(chance.choice(messages), chance)
        channel.sent.clear()
        server._answer(request)
        answer = channel.sent[-1]
        if answer["type"] == "done":
            remove_results(results)
            continue
        if answer["type"] != "failed" or not is_a_sentence(answer):
            untold.append((answer, request))
        if any(results.iterdir()):
            left.append(request)
        remove_results(results)
    assert untold == []
    assert left == []


def remove_results(results: Path) -> None:
    """Take away what a request that was right after all has made."""
    import shutil

    for path in results.iterdir():
        shutil.rmtree(path)


def test_after_all_that_every_right_request_is_answered(worker):
    server, channel, messages, results = worker
    for message in messages:
        remove_results(results)
        channel.sent.clear()
        server._answer(message)
        assert channel.sent[-1]["type"] == "done", channel.sent[-1]
    remove_results(results)
    assert torch.is_grad_enabled()


def test_bytes_that_are_no_message_do_not_end_a_worker():
    chance = random.Random(1)
    lines = [chance.randbytes(chance.choice((0, 1, 80, 3000))) for _ in range(200)]
    lines += [b"[]", b"1", b'"x"', b"null", b"{}", b'{"type": 1}', b"[" * 100_000, b"{" * 100_000]
    lines += [b'{"type": "cancel"}', b'{"type": "cancel", "job": {}}', b'{"type": "explain"}']
    lines += [b'{"type": "hello", "job": ' + b"[" * 900 + b"]" * 900 + b"}", b"9" * 200_000]
    right = protocol.encode(protocol.request_message(protocol.Hello(), "last"))
    sent = b"\n".join(line.replace(b"\n", b" ") for line in lines) + b"\n" + right
    process = subprocess.Popen(
        [sys.executable, "-m", "SaliencyExplainLib.worker", "--threads", "1"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=an_environment(), cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(sent)
        process.stdin.flush()
        answers = []
        for line in process.stdout:
            answers.append(json.loads(line))
            if answers[-1].get("job") == "last" and answers[-1]["type"] == "done":
                break
        failed = [one for one in answers if one["type"] == "failed"]
        assert answers[-1]["type"] == "done"
        assert failed
        assert all(is_a_sentence(one) for one in failed), failed
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("output", 5, "'output' of the request Explain must be text; 5 was given"),
        ("output", "a\0b", "must be text"),
        ("fast", 1, "must be true or false; 1 was given"),
        ("batch_size", True, "must be a whole number or nothing; True was given"),
        ("segment_names", {"1": 2}, "^$"),
        ("parameters", [], r"must be a mapping of text to any value; \[\] was given"),
        ("model", "x", "must be a ModelSource; 'x' was given"),
    ],
)
def test_a_field_of_another_kind_is_named_with_what_was_expected(worker, field, value, words):
    message = {**worker[2][2], field: value}
    if words == "^$":
        # Names are made into text, as they are numbers' texts in JSON anyway.
        assert protocol.request_from(message).segment_names == {1: "2"}
        return
    with pytest.raises(errors.WorkerError, match=words):
        protocol.request_from(message)


def test_a_folder_of_everything_is_no_folder_of_a_model(tmp_path, monkeypatch):
    from SaliencyExplainLib.worker import trust

    for number in range(6):
        (tmp_path / f"{number}.txt").write_text("")
    monkeypatch.setattr(trust, "_MOST_FILES", 6)
    assert trust.sha256_of(tmp_path)
    monkeypatch.setattr(trust, "_MOST_FILES", 5)
    with pytest.raises(errors.ModelError, match="more than 5 files, so it is no folder of a model"):
        trust.sha256_of(tmp_path)
