"""Why a worker process ended, in one sentence."""

from __future__ import annotations

__all__ = ["sentence_of_end"]

_AGAIN = "The scene is as it was; run again."
_SMALLER = "Choose a smaller region or window, a method with fewer passes, or another device."
_SIGNALS = {4: "illegal instruction", 6: "abort", 7: "bus error", 8: "arithmetic", 11: "segfault"}
#: What processes print last when an allocation failed.
_NO_MEMORY = ("bad_alloc", "MemoryError", "out of memory", "Cannot allocate memory")
_SIGKILL, _SIGTERM, _LAST_SIGNAL = 9, 15, 64
#: Windows: status of an access violation, a stack overflow, a corrupt heap, an abort.
_WINDOWS_CRASHES = (0xC0000005, 0xC00000FD, 0xC0000374, 0xC0000409)


def sentence_of_end(code: int | None, crashed: bool, reason: str, log: str, was_ready: bool) -> str:
    """Say in one sentence what became of a worker that ended in the middle of a job.

    Parameters
    ----------
    code : int or None
        Exit status, or -N or N (with `crashed`) for signal N; None where it was never started.
    crashed : bool
        Whether the system ended it.
    reason : str
        Why it could not be started.
    log : str
        What it printed during the job.
    was_ready : bool
        Whether it had come up before.
    """
    if code is None:
        why = f" ({reason})" if reason else ""
        return f"The worker could not be started{why}. Check the interpreter in the settings."
    signal = _signal(code, crashed)
    last = _last_line(log)
    if signal == _SIGKILL:
        return (
            "The worker was killed, most often because the memory of the machine ran out. "
            f"{_SMALLER} {_AGAIN}"
        )
    if any(word in log for word in _NO_MEMORY):
        return f"The worker ran out of memory and ended. {_SMALLER} {_AGAIN}"
    if not was_ready:
        said = f": {last}" if last else ""
        return (
            f"The worker ended before it was ready (status {code}){said}. Check the interpreter "
            "in the settings."
        )
    if signal == _SIGTERM:
        return f"The worker was told to end by another program. {_AGAIN}"
    status = code & 0xFFFFFFFF
    if signal or crashed or status in _WINDOWS_CRASHES:
        name = _SIGNALS.get(signal, f"signal {signal}" if signal else f"status {status:#x}")
        return (
            f"The worker crashed ({name}); the model or a library it uses is at fault. {_AGAIN} "
            "If it happens again, try another device."
        )
    return f"The worker ended by itself (status {code}) before the job was done. {_AGAIN}"


def _signal(code: int, crashed: bool) -> int:
    """Number of the signal that ended a process, 0 where it was none."""
    if -_LAST_SIGNAL <= code < 0:
        return -code
    if crashed and 0 < code <= _LAST_SIGNAL:
        return code
    # A shell or a launcher in between reports signal N as status 128 + N.
    return code - 128 if 128 < code <= 128 + _LAST_SIGNAL else 0


def _last_line(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else ""
