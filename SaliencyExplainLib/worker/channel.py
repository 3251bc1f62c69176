"""The worker's standard input and output, kept for messages alone.

Models and C libraries print. Before anything else is imported, the real standard output is moved
to another number and 1 becomes the standard error, below Python and for C code as well. Standard
input is moved likewise, so that nobody else eats a message.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from .protocol import decode, encode

__all__ = ["Channel"]


class Channel:
    """Messages in and out.

    Parameters
    ----------
    read_from, write_to : int
        File descriptors that nobody else uses.
    """

    def __init__(self, read_from: int, write_to: int) -> None:
        self._in = os.fdopen(read_from, "rb", buffering=0)
        self._out = write_to
        self._lock = threading.Lock()

    @classmethod
    def of_process(cls) -> Channel:
        """Take over standard input and output of this process."""
        sys.stdout.flush()
        read_from, write_to = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        if sys.platform == "win32":
            import msvcrt

            msvcrt.setmode(read_from, os.O_BINARY)
            msvcrt.setmode(write_to, os.O_BINARY)
        return cls(read_from, write_to)

    def send(self, message: Mapping[str, Any]) -> None:
        """Write one message, from any thread; lines never mix.

        Raises
        ------
        OSError
            If nobody reads any more.
        """
        data = memoryview(encode(message))
        with self._lock:
            while data:
                data = data[os.write(self._out, data) :]

    def messages(self) -> Iterator[dict[str, Any]]:
        """Read messages until the other side closes; lines that are none are passed over."""
        buffer = b""
        while chunk := self._in.read(65_536):
            buffer += chunk
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                message = decode(line)
                if message is not None:
                    yield message
