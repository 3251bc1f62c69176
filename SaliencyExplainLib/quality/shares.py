"""Progress of a long job that consists of parts, each of which counts its own passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import Cancelled

if TYPE_CHECKING:
    from ..engine import Progress

__all__ = ["Shares"]


class Shares:
    """Hands out progress for parts of a whole; what is told never goes back.

    Parameters
    ----------
    callback : callable or None
        Called with the finished fraction (0 to 1) and a message.
    cancelled : callable or None
        Asked before each pass.
    """

    def __init__(
        self,
        callback: Callable[[float, str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.callback = callback
        self.cancelled = cancelled
        self._parts: list[Progress] = []
        self._told = 0.0

    def part(self, start: float, length: float, what: str) -> Progress:
        """Return the progress of the part from `start` to `start` + `length` of the whole."""
        from ..engine import Progress

        made = Progress(self.teller(start, length, what), self.cancelled)
        self._parts.append(made)
        return made

    def teller(self, start: float, length: float, what: str) -> Callable[[float, str], None]:
        """Return a callback for a part, for what takes no Progress."""

        def tell(fraction: float, _message: str) -> None:
            if self.callback is not None:
                self._told = max(self._told, min(1.0, start + length * fraction))
                self.callback(self._told, what)

        return tell

    def check(self) -> None:
        """Raise Cancelled if the caller asked to stop; needs no torch."""
        if self.cancelled is not None and self.cancelled():
            raise Cancelled("The run was cancelled. Nothing was changed.")

    @property
    def done(self) -> int:
        """Passes of all parts so far."""
        return sum(one.done for one in self._parts)
