"""The shell: ``python -m SaliencyExplainLib explain|layers|evaluate|methods|...``.

Results go to standard output (one JSON object with ``--json``), progress and errors to standard
error. The exit status is 0 only on success, 1 after an error, 2 when the arguments are wrong and
130 when cancelled.
"""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import Cancelled, SaliencyExplainError
from ..plain_text import printable
from .arguments import make_parser
from .output import print_json

__all__ = ["main"]

_LONGEST = 1200


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Words after the program's name; those of the process when left out.

    Returns
    -------
    int
        Exit status: 0 on success, 1 after an error, 2 for wrong arguments, 130 when cancelled.
    """
    try:
        options = make_parser().parse_args(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    try:
        with _terminable():
            options.run(options)
    except (KeyboardInterrupt, Cancelled) as error:
        # Most commands write at the end or not at all; a study says otherwise.
        told = getattr(options, "cancelled", "Cancelled. Nothing was written.")
        return _failed(options, error, told, 130)
    except SaliencyExplainError as error:
        return _failed(options, error, " ".join(str(error).split()), 1)
    except BrokenPipeError:
        # The reader (head, less) has seen enough; flushing at exit would complain again.
        sys.stdout = None
        return 1
    except Exception as error:  # noqa: BLE001 - the shell ends every fault in a sentence and a status
        reason = " ".join(str(error).split()) or "no message"
        sentence = (
            f"Unexpected {type(error).__name__}: {reason}. Run again with --debug to see where."
        )
        return _failed(options, error, sentence, 1)
    return 0


def _failed(options: Any, error: BaseException, sentence: str, status: int) -> int:
    if len(sentence) > _LONGEST:
        # A name that was typed may be a whole page.
        sentence = f"{sentence[: _LONGEST // 2]} ... {sentence[-_LONGEST // 2 :]}"
    if options.debug:
        traceback.print_exception(error)
    sys.stderr.write(f"{'' if status == 130 else 'Error: '}{printable(sentence)}\n")
    if options.json:
        print_json({"error": {"kind": type(error).__name__, "message": sentence}})
    return status


@contextmanager
def _terminable() -> Iterator[None]:
    """End as after Ctrl-C when a scheduler sends SIGTERM, so that temporary folders go away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
