"""How far a run is, and whether its caller wants it to stop."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import Cancelled

__all__ = ["Progress"]

#: What is told while the number of passes is not known, and before the end.
_BEGUN, _ALMOST = 0.01, 0.99

ProgressCallback = Callable[[float, str], None]


class Progress:
    """Counts passes, tells how far the run is, and stops it when the caller wants.

    Parameters
    ----------
    callback : callable or None
        Called with the finished fraction (0 to 1) and a message.
    cancelled : callable or None
        Asked before each pass.
    """

    def __init__(
        self, callback: ProgressCallback | None = None, cancelled: Callable[[], bool] | None = None
    ) -> None:
        self.callback = callback
        self.cancelled = cancelled
        self.total: int | None = None
        self.done = 0
        self._told = 0.0

    def check(self) -> None:
        """Raise Cancelled if the caller asked to stop."""
        if self.cancelled is not None and self.cancelled():
            raise Cancelled("The run was cancelled. Nothing was changed.")

    def expect(self, passes: int) -> None:
        """Say how many passes are still to come, once that is known."""
        self.total = self.done + max(1, passes)

    def step(self, message: str, passes: int = 1) -> None:
        """Note that `passes` are done; the whole is said to be done by :meth:`finish` alone.

        What is told never goes back, though the total may turn out larger than was expected.
        """
        self.done += passes
        if self.callback is not None:
            part = _BEGUN if self.total is None else self.done / self.total
            self._told = max(self._told, min(_ALMOST, part))
            self.callback(self._told, message)

    def finish(self) -> None:
        """Say that all is done."""
        if self.callback is not None:
            self.callback(1.0, "done")
