"""How the shell answers: progress, text, JSON, and files that appear together."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import SaliencyExplainError
from ..plain_text import printable

__all__ = ["Progress", "StagedFolder", "json_values", "print_json", "say"]


def say(text: str = "") -> None:
    """Write a line to standard output; names from a file cannot steer the terminal."""
    sys.stdout.write(f"{printable(text)}\n")


def print_json(value: Any) -> None:
    """Write one JSON object to standard output."""
    say(json.dumps(json_values(value), indent=2, allow_nan=False))


def json_values(value: Any) -> Any:
    """JSON values only: NaN and infinity, which JSON has not, become null; paths become text."""
    if isinstance(value, Mapping):
        return {str(key): json_values(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Progress:
    """Progress on standard error: a bar for a person, a line at each quarter for a log, or nothing.

    Call it with the fraction that is done and what is going on.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._said = -1
        self._start = time.monotonic()

    def __enter__(self) -> Progress:
        if not self._quiet and sys.stderr.isatty():
            from tqdm import tqdm

            form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
            self._bar = tqdm(total=1.0, bar_format=form, file=sys.stderr, leave=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, fraction: float, message: str) -> None:
        """Show that `fraction` (0 to 1) is done."""
        if self._bar is not None:
            self._bar.set_description_str(message, refresh=False)
            self._bar.n = min(fraction, 1.0)
            self._bar.refresh()
        elif not self._quiet and int(4 * fraction) > self._said:
            self._said = int(4 * fraction)
            seconds = time.monotonic() - self._start
            sys.stderr.write(f"{fraction:4.0%} {printable(message)} ({seconds:.0f} s)\n")

    def say(self, text: str) -> None:
        """Write a line to standard output without tearing the bar."""
        if self._bar is not None:
            self._bar.clear()
        say(text)
        sys.stdout.flush()


class StagedFolder:
    """Results that appear in a folder together, when the block has ended well, or not at all.

    They are written into a temporary folder beside it. At the end those of an earlier run (names
    that match `earlier`) are taken away and the new ones moved in; whatever else lies in the folder
    stays.

    Parameters
    ----------
    final : Path
        The folder; made if it is missing.
    earlier : str
        Regular expression for the whole name of a result, file or folder.

    Raises
    ------
    SaliencyExplainError
        If the folder cannot be written, which is known before anything is computed.
    """

    def __init__(self, final: Path, earlier: str) -> None:
        self.final = Path(final).expanduser().absolute()
        self._earlier = re.compile(earlier)
        self._stranded = False
        try:
            if self.final.exists() and not self.final.is_dir():
                raise SaliencyExplainError(
                    f"The output {str(final)!r} is a file. Name a folder (--output)."
                )
            self._temporary = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=self._beside()))
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> Path:
        return self._temporary

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._publish()
        except OSError as fault:
            raise self._unwritable(fault) from fault
        finally:
            if not self._stranded:
                shutil.rmtree(self._temporary, ignore_errors=True)

    def _beside(self) -> Path:
        """Where to write meanwhile: next to the folder, or in it where next to it is no place."""
        if self.final.is_dir():
            if not os.access(self.final, os.W_OK | os.X_OK):
                raise PermissionError("permission denied")
            above = self.final.parent
            same = above.stat().st_dev == self.final.stat().st_dev
            return above if same and os.access(above, os.W_OK | os.X_OK) else self.final
        return next(folder for folder in self.final.parents if folder.is_dir())

    def _publish(self) -> None:
        new = sorted(self._temporary.iterdir())
        self.final.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in new}
        old = self._temporary / ".earlier"
        old.mkdir()
        moved: list[tuple[Path, Path]] = []
        try:
            for path in sorted(self.final.iterdir()):
                if path.name in names or self._earlier.fullmatch(path.name):
                    moved.append((path, old / path.name))
                    path.rename(old / path.name)
            for path in new:
                moved.append((path, self.final / path.name))
                path.rename(self.final / path.name)
        except BaseException:
            for before, after in reversed(moved):
                with suppress(OSError):
                    if after.exists() and not before.exists():
                        after.rename(before)
            # What could not be put back is not thrown away.
            self._stranded = any(old.iterdir())
            raise

    def _unwritable(self, error: OSError) -> SaliencyExplainError:
        kept = f" The earlier results are in {self._temporary}." if self._stranded else ""
        return SaliencyExplainError(
            f"The output folder {str(self.final)!r} cannot be written "
            f"({error.strerror or error}). Name another one (--output).{kept}"
        )
