"""Networks that misbehave, for the tests of the worker: each has one layer and one bad habit."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

import torch


class Plain(torch.nn.Conv3d):
    """One channel to two classes."""

    def __init__(self) -> None:
        super().__init__(1, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.misbehave()
        return super().forward(x)

    def misbehave(self) -> None:
        """Nothing."""


class Prints(Plain):
    def misbehave(self) -> None:
        print("hello from the model")
        print('{"type": "done", "job": "1", "value": {}}')
        os.write(1, b"\x00\xff no text\n")
        for job in range(500):
            os.write(1, b'{"type": "done", "job": "%d", "value": {}}\n' % job)
        library = ctypes.CDLL(None)
        library.puts(b"from C")
        library.fflush(None)


class Reads(Plain):
    def misbehave(self) -> None:
        assert sys.stdin.read() == ""


class Slow(Plain):
    """Cancelled between two passes."""

    def misbehave(self) -> None:
        time.sleep(0.15)


class Sleeps(Plain):
    """A computation that asks nobody, with Python free for others."""

    def misbehave(self) -> None:
        time.sleep(600)


class Pauses(Plain):
    """Longer than a hanging worker is waited for, with its heartbeat going on."""

    def misbehave(self) -> None:
        time.sleep(6.5)


class WantsTwoThreads(Plain):
    def misbehave(self) -> None:
        if torch.get_num_threads() != 2:
            raise RuntimeError(f"{torch.get_num_threads()} threads")


class Spins(Plain):
    """The same, keeping Python busy."""

    def misbehave(self) -> None:
        while True:
            pass


class Freezes(Plain):
    """Not even the heartbeat goes on."""

    def misbehave(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)


class IsKilled(Plain):
    def misbehave(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Crashes(Plain):
    def misbehave(self) -> None:
        ctypes.string_at(0)


class EndsTheProcess(Plain):
    def misbehave(self) -> None:
        os._exit(7)


class AbortsWithoutMemory(Plain):
    """As C++ does when an exception is not caught."""

    def misbehave(self) -> None:
        os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
        os.abort()


class Exits(Plain):
    def misbehave(self) -> None:
        sys.exit(3)


class Raises(Plain):
    def misbehave(self) -> None:
        raise KeyError("weights of the\nsecond stage")


class NeedsMemory(Plain):
    """400 GB."""

    def misbehave(self) -> None:
        torch.zeros(10**11)


class NeedsPythonMemory(Plain):
    def misbehave(self) -> None:
        bytearray(10**15)


class Hoards(Plain):
    """Takes 300 MB and is slow: the memory is to come back when it is cancelled."""

    def misbehave(self) -> None:
        if not hasattr(self, "hoard"):
            self.hoard = torch.ones(75_000_000)
        time.sleep(0.1)


class Deep(torch.nn.Module):
    """Two convolutions, so that there are layers to look into."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv3d(1, 4, 3, padding=1)
        self.between = torch.nn.ReLU()
        self.last = torch.nn.Conv3d(4, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.between(self.first(x)))
