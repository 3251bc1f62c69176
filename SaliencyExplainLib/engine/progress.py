"""How far a run is, and whether its caller wants it to stop."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import Cancelled

__all__ = ["Progress"]

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
        self.total = 1
        self.done = 0

    def check(self) -> None:
        """Raise Cancelled if the caller asked to stop."""
        if self.cancelled is not None and self.cancelled():
            raise Cancelled("The run was cancelled. Nothing was changed.")

    def expect(self, windows: int) -> None:
        """Say how many window passes are still to come, once that is known."""
        self.total = self.done + max(1, windows)

    def step(self, message: str, passes: int = 1) -> None:
        """Note that `passes` are done."""
        self.done += passes
        if self.callback is not None:
            self.callback(min(1.0, self.done / max(1, self.total)), message)

    def finish(self) -> None:
        """Say that all is done, if it was not said: skipped windows and lucky guesses end early."""
        if self.callback is not None and self.done < self.total:
            self.done = self.total
            self.callback(1.0, "done")
