"""The work of a study: what is done is kept in its folder, so that a stopped study goes on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import Cancelled, StudyError
from ..explanation import write_text

__all__ = ["Work"]

_KEPT = "work"
_SETTINGS = "settings.json"


class Work:
    """Progress, cancelling and memory of one run of a study.

    Parameters
    ----------
    name : str
        Of the study.
    folder : path, optional
        What is done is kept in ``<folder>/work``; left out: nowhere.
    quick : bool
        Whether the small version is wanted.
    seed : int
        Of everything that is random.
    progress, cancelled : callable, optional
        As for :meth:`.base.Study.__call__`.

    Raises
    ------
    StudyError
        If the folder holds the work of another study or of other settings.
    """

    def __init__(
        self,
        name: str,
        folder: str | Path | None = None,
        *,
        quick: bool = False,
        seed: int = 1,
        progress: Callable[[float, str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.name, self.quick, self.seed = name, quick, seed
        self._progress, self._cancelled = progress, cancelled
        self._start, self._length = 0.0, 1.0
        self._began = time.perf_counter()
        self._before = 0.0
        self._kept: Path | None = None
        if folder is not None:
            self._kept = Path(folder).expanduser() / _KEPT
            self._claim(self._kept, {"study": name, "quick": quick, "seed": seed})

    def __enter__(self) -> Work:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._kept is not None and self._kept.is_dir():
            write_text(self._kept / "seconds.json", json.dumps(self.seconds()))

    # -- progress

    def check(self) -> None:
        """Raise Cancelled if the caller asked to stop."""
        if self._cancelled is not None and self._cancelled():
            kept = "" if self._kept is None else f" What is done is kept in {str(self._kept)!r}."
            raise Cancelled(f"The study was cancelled.{kept}")

    def tell(self, fraction: float, message: str) -> None:
        """Say how far the present part is (0 to 1), and stop if the caller wants it."""
        self.check()
        if self._progress is not None:
            self._progress(self._start + self._length * min(1.0, max(0.0, fraction)), message)

    @contextmanager
    def part(self, start: float, end: float) -> Iterator[None]:
        """Let what is told inside count from `start` to `end` of what it is a part of."""
        before = self._start, self._length
        self._start, self._length = before[0] + before[1] * start, before[1] * (end - start)
        try:
            yield
        finally:
            self._start, self._length = before

    def cancelled(self) -> bool:
        """Whether the caller wants it to stop; for the functions that take such a callable."""
        return self._cancelled is not None and self._cancelled()

    def seconds(self) -> float:
        """Time of this run and of those before it that it goes on from, in s."""
        return self._before + time.perf_counter() - self._began

    # -- memory

    def remembered(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a JSON value, made once.

        Parameters
        ----------
        name : str
            Of its file.
        make : callable
            Makes it where it is not there yet.

        Returns
        -------
        object
            As JSON gives it back: tuples are lists, keys are text.
        """
        path = self.path(f"{name}.json")
        if path is not None and path.is_file():
            return _read_json(path)
        value = json.loads(json.dumps(make()))
        if path is not None:
            write_text(path, json.dumps(value))
        return value

    def cases(
        self, name: str, keys: Iterable[Any], measure: Callable[[Any], Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Measure one case after the other; those measured before are not measured again.

        Parameters
        ----------
        name : str
            Of the file that gets one line a case.
        keys : iterable of str or int
            What tells the cases apart, for example seeds.
        measure : callable
            Takes a key; returns JSON values.

        Returns
        -------
        list of dict
            In the order of the keys; NaN stays NaN.
        """
        path = self.path(f"{name}.jsonl")
        done = {} if path is None else _read_lines(path)
        listed = list(keys)
        for number, key in enumerate(listed):
            with self.part(number / len(listed), (number + 1) / len(listed)):
                self.tell(0.0, f"{name.replace('_', ' ')}, case {number + 1} of {len(listed)}")
                if str(key) in done:
                    continue
                found = json.loads(json.dumps(dict(measure(key))))
            done[str(key)] = found
            if path is not None:
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": str(key), "found": found}) + "\n")
        return [done[str(key)] for key in listed]

    def path(self, name: str) -> Path | None:
        """Where to keep something under a name; None where nothing is kept."""
        return None if self._kept is None else self._kept / name

    def _claim(self, kept: Path, settings: Mapping[str, Any]) -> None:
        """Take the folder, or go on in it."""
        mine = kept / _SETTINGS
        try:
            if not mine.is_file():
                kept.mkdir(parents=True, exist_ok=True)
                write_text(mine, json.dumps(settings))
                return
            found = _read_json(mine)
            self._before = float(_read_json(kept / "seconds.json", 0.0))
        except OSError as error:
            raise StudyError(
                f"The folder {str(kept.parent)!r} cannot be written "
                f"({error.strerror or error}). Name another one."
            ) from error
        if found != settings:
            raise StudyError(
                f"{str(kept.parent)!r} holds the study {_named(found)}; asked for was "
                f"{_named(settings)}. Name another folder, or start afresh (--restart)."
            )

    @staticmethod
    def forget(folder: str | Path) -> None:
        """Throw away what a study keeps in a folder; its results stay until new ones come."""
        shutil.rmtree(Path(folder).expanduser() / _KEPT, ignore_errors=True)


def _named(settings: Any) -> str:
    if not isinstance(settings, Mapping):
        return "of an unknown kind"
    size = "quick" if settings.get("quick") else "standard"
    return f"{settings.get('study')} ({size}, seed {settings.get('seed')})"


def _read_json(path: Path, missing: Any = None) -> Any:
    """Return what a file holds; files appear whole, so one that is broken was broken by others."""
    if missing is not None and not path.is_file():
        return missing
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyError(
            f"{str(path)!r} is damaged ({error}). Start the study afresh (--restart)."
        ) from error


def _read_lines(path: Path) -> dict[str, dict[str, Any]]:
    """Return the cases that were written whole; a killed run may leave half a line at the end."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    whole, _, rest = text.rpartition("\n")
    if rest:
        write_text(path, whole + "\n" if whole else "")
    found = {}
    for line in whole.splitlines():
        try:
            one = json.loads(line)
            found[one["key"]] = one["found"]
        except (ValueError, KeyError, TypeError) as error:
            raise StudyError(
                f"{str(path)!r} is damaged ({error}). Start the study afresh (--restart)."
            ) from error
    return found
