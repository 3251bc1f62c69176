"""The client's side of the talk, without any process: bytes in, events out."""

from __future__ import annotations

import json

import pytest

from SaliencyExplainLib.errors import WorkerError
from SaliencyExplainLib.worker import (
    Conversation,
    Done,
    Evaluate,
    Explain,
    ExplainLayers,
    Failed,
    Hello,
    Kill,
    Layers,
    Load,
    ModelSource,
    Predict,
    Progress,
    Question,
    Ready,
    Report,
    Stopped,
    Trust,
    Waiting,
)
from SaliencyExplainLib.worker.endings import sentence_of_end
from SaliencyExplainLib.worker.protocol import (
    PROTOCOL,
    decode,
    encode,
    request_from,
    request_message,
)

READY = {"type": "ready", "protocol": PROTOCOL, "python": "3.12", "pid": 5, "library": "1"}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def talk(clock: Clock) -> Conversation:
    return Conversation(hang_s=10, hang_at_start_s=30, clock=clock)


def line(**message) -> bytes:
    return json.dumps(message).encode() + b"\n"


def progress_line(job: str, fraction: float = 0.5) -> bytes:
    facts = {"message": "m", "elapsed_s": 1, "remaining_s": None}
    return line(type="progress", job=job, fraction=fraction, **facts)


def failed_line(job: str, **changes) -> bytes:
    facts = {"kind": "ModelError", "message": "No.", "details": "trace", "trust": None}
    return line(type="failed", job=job, **(facts | changes))


# Requests


def every_request() -> list:
    model = ModelSource("m.pt", True, "abc", {"labels": ["a", "b"], "device": "cpu"})
    array = {"npy": "/x.npy", "ijk_to_ras": [[1]], "name": "x"}
    question = Question("spleen", "roi", "logit", contrast=0, roi_ras_mm=[[0, 0, 0], [1, 2, 3]])
    return [
        Hello(),
        Load(model),
        Layers(model, array, [1, 2, 3, 4], ["grad_cam"]),
        Explain(model, array, question, "gradient", {"a": 1}, "/out", array, {3: "liver"}),
        ExplainLayers(model, array, question, "/out", ["grad_cam"], ["conv1"]),
        Predict(model, array, "/out"),
        Evaluate(
            model,
            array,
            question,
            "/out",
            "gradient",
            {"a": 1},
            "/map",
            ["deletion"],
            {"deletion": {"steps": 5}},
            array,
            array,
            {3: "liver"},
            "cascading",
            2,
            ["gradient", "lrp"],
            "/page",
            True,
        ),
        Report(array, "/result", "/page", array, "truth"),
    ]


@pytest.mark.parametrize("request_", every_request(), ids=lambda one: one.name)
def test_a_request_arrives_as_it_was_sent(request_):
    sent = encode(request_message(request_, "7"))
    assert sent.endswith(b"\n")
    assert sent.count(b"\n") == 1
    message = decode(sent)
    assert (message["type"], message["job"]) == (request_.name, "7")
    assert request_from(message) == request_


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol": PROTOCOL + 1}, rf"version {PROTOCOL + 1} .* speaks version {PROTOCOL}"),
        ({"protocol": None}, "Use the same release"),
        ({"type": "format_disk"}, "no job 'format_disk'. It has: hello, load"),
        ({"extra": 1}, "Load has no field 'extra'"),
        ({"model": {"pth": "x"}}, "ModelSource is incomplete"),
    ],
)
def test_a_request_that_is_not_understood_is_refused(change, words):
    message = request_message(Load(ModelSource("m")), "1") | change
    with pytest.raises(WorkerError, match=words):
        request_from(message)


def test_numbers_that_json_has_not_become_null():
    told = decode(encode({"type": "x", "a": float("nan"), "b": [float("inf"), 1.5, True, "é"]}))
    assert (told["a"], told["b"]) == (None, [None, 1.5, True, "é"])


@pytest.mark.parametrize(
    "text", [b"plain", b"[1]", b'{"no": "type"}', b'{"type": 3}', b"\xff", b""]
)
def test_what_is_no_message_is_none(text):
    assert decode(text) is None


# Events


def test_jobs_are_numbered_and_written_once(talk):
    assert talk.jobs == ()
    first, second = talk.start(Hello()), talk.start(Hello())
    assert talk.jobs == (first, second)
    assert [decode(one)["job"] for one in talk.outgoing().splitlines()] == [first, second]
    assert talk.outgoing() == b""


def test_bytes_may_come_in_pieces_of_any_size(talk):
    job = talk.start(Hello())
    data = line(**READY) + progress_line(job, 0.25) + line(type="done", job=job, value={"a": "é"})
    events = [event for byte in data for event in talk.receive(bytes([byte]))]
    assert events == [
        Ready("3.12", 5, "1"),
        Progress(job, 0.25, "m", 1.0, None),
        Done(job, Hello(), {"a": "é"}),
    ]
    assert talk.ready
    assert talk.jobs == ()


def test_a_failure_carries_its_kind_and_what_to_trust(talk):
    job = talk.start(Hello())
    trust = {"path": "m.pt", "sha256": "ab", "reason": "code"}
    (event,) = talk.receive(failed_line(job, kind="UntrustedModelError", trust=trust))
    assert event == Failed(
        job, Hello(), "UntrustedModelError", "No.", "trace", Trust("m.pt", "ab", "code")
    )


@pytest.mark.parametrize(
    "garbage",
    [
        b"Welcome to gpu-host!\n",
        b"\x00\xff\xfe\n",
        b'{"type": "done"}\n',
        b'{"type": "done", "job": "99", "value": {}}\n',
        b'{"type": "done", "job": "1", "value": 5}\n',
        b'{"type": "progress", "job": "1"}\n',
        b'{"type": "failed", "job": "1", "kind": "X"}\n',
        b'{"type": "failed", "job": ["1"], "kind": 1, "message": 1, "details": 1, "trust": null}\n',
        b'{"type": "alive"}\n',
        b'{"type": "ready", "protocol": %d, "python": 3, "pid": "x", "library": ""}\n' % PROTOCOL,
        b'{"type": "unheard_of", "job": "1"}\n',
        b"[]\n",
        b"\n",
    ],
)
def test_garbage_is_logged_and_the_job_goes_on(talk, garbage):
    job = talk.start(Hello())
    assert job == "1"
    assert talk.receive(garbage) == []
    assert talk.log.strip() == garbage.decode("utf-8", "replace").strip()
    assert talk.receive(line(type="done", job=job, value={})) == [Done(job, Hello(), {})]


def test_a_line_that_never_ends_does_not_fill_the_memory(talk):
    job = talk.start(Hello())
    for _ in range(20):
        assert talk.receive(b"x" * 1_000_000) == []
    assert len(talk._buffer) < 17_000_000
    assert len(talk.log) <= 64_000
    assert talk.receive(b"\n" + line(type="done", job=job, value={})) == [Done(job, Hello(), {})]


def test_the_log_keeps_the_end(talk):
    talk.receive_errors(b"old " * 50_000)
    talk.receive_errors(b"the end")
    assert talk.log.endswith("the end")
    assert len(talk.log) <= 64_000


def test_a_heartbeat_is_told_when_nothing_moves(talk):
    job = talk.start(Hello())
    assert talk.receive(line(type="alive", job=job, quiet_s=1.0)) == []
    assert talk.receive(line(type="alive", job=job, quiet_s=5.0)) == [Waiting(job, 5.0)]
    assert talk.receive(line(type="alive", job=None, quiet_s=9.0)) == []


@pytest.mark.parametrize(("told", "shown"), [(-1, 0.0), (0.3, 0.3), (7, 1.0)])
def test_a_fraction_stays_between_0_and_1(talk, told, shown):
    (event,) = talk.receive(progress_line(talk.start(Hello()), told))
    assert event.fraction == shown


# Cancelling


def test_a_cancelled_job_is_stopped_by_the_worker(talk):
    job = talk.start(Hello())
    talk.outgoing()
    talk.cancel(job)
    talk.cancel(job)
    assert talk.outgoing() == encode({"type": "cancel", "job": job})
    assert talk.tick() == []
    assert talk.receive(progress_line(job)) == []
    assert talk.receive(line(type="stopped", job=job)) == [Stopped(job, Hello())]


def test_a_job_that_does_not_stop_is_killed_and_counts_as_stopped(talk, clock):
    job, behind = talk.start(Hello()), talk.start(Hello())
    talk.cancel(job)
    clock.now += 0.49
    assert talk.tick() == []
    clock.now += 0.02
    assert [type(event) for event in talk.tick()] == [Kill]
    assert talk.tick() == []
    stopped, failed = talk.ended(9, crashed=True)
    assert stopped == Stopped(job, Hello())
    assert (failed.job, failed.kind) == (behind, "WorkerError")
    assert failed.message == "The worker was ended with the job before this one. Run again."
    assert not talk.alive


def test_only_the_running_job_is_worth_a_kill(talk, clock):
    talk.start(Hello())
    behind = talk.start(Hello())
    talk.cancel(behind)
    clock.now += 5
    assert talk.tick() == []


@pytest.mark.parametrize("how", ["done", "failed"])
def test_an_answer_that_comes_too_late_counts_as_stopped(talk, how):
    job = talk.start(Hello())
    talk.cancel(job)
    answer = line(type="done", job=job, value={}) if how == "done" else failed_line(job)
    assert talk.receive(answer) == [Stopped(job, Hello())]


def test_a_job_that_is_not_open_cannot_be_cancelled(talk):
    talk.cancel("1")
    assert talk.outgoing() == b""


# Hanging, another protocol, the end


def test_a_worker_without_a_sign_of_life_is_killed(talk, clock):
    job = talk.start(Hello())
    talk.receive(line(**READY))
    clock.now += 9.9
    assert talk.tick() == []
    talk.receive(line(type="alive", job=job, quiet_s=9.9))
    clock.now += 9.9
    assert talk.tick() == []
    clock.now += 0.2
    assert [type(event) for event in talk.tick()] == [Kill]
    (failed,) = talk.ended(-9)
    assert failed.kind == "WorkerError"
    assert failed.message.startswith("The worker gave no sign of life for 10 s and was ended.")


def test_garbage_is_no_sign_of_life(talk, clock):
    talk.start(Hello())
    talk.receive(line(**READY))
    clock.now += 9.9
    talk.receive(b"still here!\n")
    clock.now += 0.2
    assert [type(event) for event in talk.tick()] == [Kill]


def test_a_start_may_take_longer(talk, clock):
    talk.start(Hello())
    clock.now += 29
    assert talk.tick() == []
    clock.now += 2
    assert [type(event) for event in talk.tick()] == [Kill]


def test_a_worker_that_idles_cannot_hang(talk, clock):
    talk.receive(line(**READY))
    clock.now += 1000
    assert talk.tick() == []
    talk.start(Hello())
    assert talk.tick() == []


def test_another_protocol_is_told_and_ended(talk):
    talk.start(Hello())
    (event,) = talk.receive(line(**(READY | {"protocol": 99, "library": "9.9"})))
    assert isinstance(event, Kill)
    (failed,) = talk.ended(-9)
    told = f"(9.9) speaks version 99 of the messages; this one speaks {PROTOCOL}."
    assert told in failed.message


def test_every_open_job_has_an_end(talk):
    jobs = [talk.start(Hello()) for _ in range(3)]
    talk.receive(line(**READY))
    talk.receive_errors(b"Traceback\nOops.\n")
    events = talk.ended(3)
    assert [event.job for event in events] == jobs
    assert all(isinstance(event, Failed) for event in events)
    assert events[0].details == "Traceback\nOops.\n"
    assert talk.jobs == ()
    assert talk.ended(3) == []


def test_nothing_can_be_asked_of_a_process_that_has_ended(talk):
    talk.ended(0)
    with pytest.raises(WorkerError, match="Start another process with a conversation"):
        talk.start(Hello())


def test_only_the_running_job_has_used_up_the_memory(talk):
    talk.start(Hello())
    talk.start(Hello())
    talk.receive(line(**READY))
    assert [event.kind for event in talk.ended(-9)] == ["OutOfMemoryError", "WorkerError"]


def test_what_an_earlier_job_printed_is_not_why_a_process_ended(talk):
    first = talk.start(Hello())
    talk.receive(line(**READY))
    talk.receive_errors(b"MemoryError: caught and handled\n")
    talk.receive(line(type="done", job=first, value={}))
    talk.start(Hello())
    talk.receive_errors(b"now\n")
    (failed,) = talk.ended(3)
    assert "ended by itself" in failed.message
    assert failed.details == "now\n"
    assert "MemoryError" in talk.log


def test_a_last_line_without_its_end_is_read(talk):
    job = talk.start(Hello())
    talk.receive(line(type="done", job=job, value={})[:-1])
    assert talk.ended(0) == [Done(job, Hello(), {})]


@pytest.mark.parametrize(
    ("code", "crashed", "log", "ready", "words"),
    [
        (-9, False, "", True, "was killed, most often because the memory of the machine ran out"),
        (9, True, "", True, "was killed, most often"),
        (137, False, "", True, "was killed, most often"),
        (6, True, "what():  std::bad_alloc", True, "ran out of memory and ended"),
        (1, False, "MemoryError", False, "ran out of memory and ended"),
        (11, True, "", True, r"crashed \(segfault\)"),
        (139, False, "", True, r"crashed \(segfault\)"),
        (40, True, "", True, r"crashed \(signal 40\)"),
        (-1073741819, False, "", True, r"crashed \(status"),
        (15, True, "", True, "was told to end by another program"),
        (3, False, "", True, r"ended by itself \(status 3\) before the job was done"),
        (0, False, "", True, r"ended by itself \(status 0\)"),
        (1, False, "a\nNo numpy here.\n", False, r"ready \(status 1\): No numpy here. Check"),
        (1, False, "", False, r"ready \(status 1\). Check the interpreter"),
    ],
)  # fmt: skip
def test_the_end_of_a_process_is_one_sentence(code, crashed, log, ready, words):
    text = sentence_of_end(code, crashed, "", log, ready)
    with pytest.raises(WorkerError, match=words):
        raise WorkerError(text)
    assert "\n" not in text
    assert ("scene is as it was" in text) is ready or "memory" in text


def test_a_process_that_never_started_is_told_with_the_reason(talk):
    talk.start(Hello())
    (failed,) = talk.ended(None, crashed=True, reason="No such file")
    assert failed.message == (
        "The worker could not be started (No such file). Check the interpreter in the settings."
    )
