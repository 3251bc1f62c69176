"""Whether the fields of a request are what they are declared to be."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..errors import WorkerError

__all__ = ["check_fields"]

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "nothing",
}
_SHOWN = 80
_known: dict[type[Any], dict[str, Any]] = {}


def check_fields(cls: type[Any], values: Mapping[str, Any]) -> None:
    """Refuse a value that does not fit the annotation of its field.

    Parameters
    ----------
    cls : type
        A dataclass of :mod:`.protocol`.
    values : mapping of field to value
        As they came through JSON; parts that are dataclasses themselves are made already.

    Raises
    ------
    WorkerError
        If one does not fit, with the field, the value and what was expected.
    """
    hints = _hints(cls)
    for name, value in values.items():
        if not _fits(value, hints[name]):
            shown = repr(value)
            shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
            raise WorkerError(
                f"The field {name!r} of the request {cls.__name__} must be "
                f"{_in_words(hints[name])}; {shown} was given."
            )


def _hints(cls: type[Any]) -> dict[str, Any]:
    if cls not in _known:
        _known[cls] = get_type_hints(cls)
    return _known[cls]


def _fits(value: Any, hint: Any) -> bool:
    home, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if home in (Union, types.UnionType):
        return any(_fits(value, one) for one in parts)
    if home is Mapping:
        key, inside = parts
        return isinstance(value, Mapping) and all(
            _fits(name, key) and _fits(one, inside) for name, one in value.items()
        )
    if home is Sequence:
        return isinstance(value, list | tuple) and all(_fits(one, parts[0]) for one in value)
    if hint is str:
        # No path and no name has a zero in it, and none of the calls below stands one.
        return isinstance(value, str) and "\0" not in value
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _in_words(hint: Any) -> str:
    home, parts = get_origin(hint), get_args(hint)
    if home in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_in_words(one) for one in parts))
    if home is Mapping:
        return f"a mapping of {_in_words(parts[0])} to {_in_words(parts[1])}"
    if home is Sequence:
        return f"a list of {_in_words(parts[0])}"
    if hint is Any:
        return "any value"
    return _WORDS.get(hint, f"a {getattr(hint, '__name__', hint)}")
