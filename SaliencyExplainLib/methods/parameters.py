"""Parameters as they are declared: default, range, unit, help; their checks and conversions.

Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields
from typing import Any, TypeVar

from ..errors import MethodError, SaliencyExplainError

__all__ = [
    "as_json",
    "check_value",
    "converted",
    "limits",
    "made_from",
    "nearest",
    "param",
    "parameter_lines",
]

_T = TypeVar("_T")

#: Characters of a value that an error repeats.
_LONGEST = 60


def param(
    default: Any,
    *,
    help: str,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
    choices: tuple[str, ...] | None = None,
    kind: str = "",
) -> Any:
    """Declare a parameter of a method: its default, range or choices, unit and help.

    ``kind`` is "labelmap" for a label map (an image, or in a shell the path of one).
    """
    facts = {"help": help, "low": low, "high": high, "unit": unit, "choices": choices, "kind": kind}
    return field(default=default, metadata=facts, compare=kind != "labelmap")


def as_json(value: Any) -> Any:
    """A parameter for the record; a label map as its name, shape and hash."""
    if not hasattr(value, "affine"):
        return value
    voxels = value.as_tensor().cpu().numpy()
    return {
        "name": str(value.meta.get("filename_or_obj", "")),
        "shape": list(voxels.shape),
        "sha256": hashlib.sha256(voxels.tobytes()).hexdigest(),
    }


def limits(one: Field[Any]) -> str:
    """Range or choices of a parameter in words; its unit where it has neither."""
    facts = one.metadata
    if facts["choices"]:
        return " | ".join(facts["choices"])
    if facts["low"] is None:
        return str(facts["unit"])
    return f"{facts['low']:g} to {facts['high']:g} {facts['unit']}".strip()


def check_value(title: str, one: Field[Any], value: Any) -> None:
    """Refuse a value that does not fit its parameter.

    Raises
    ------
    MethodError
        With what is allowed.
    """
    default, facts = one.default, one.metadata
    if default is MISSING:
        return
    where = f"{title}: {one.name}"
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise MethodError(f"{where} must be true or false; {_shown(value)} was given.")
    elif isinstance(default, int | float):
        whole = isinstance(default, int)
        fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        # The comparison refuses NaN and infinity as well.
        if not fits or not facts["low"] <= value <= facts["high"]:
            kind = "a whole number" if whole else "a number"
            raise MethodError(
                f"{where} must be {kind} from {limits(one)}; {_shown(value)} was given."
            )
    elif facts["kind"] == "labelmap":
        if value is not None and not hasattr(value, "affine"):
            raise MethodError(
                f"{where} must be a label map (read_labelmap); {_shown(value)} was given."
            )
    elif facts["choices"] is not None:
        if not isinstance(value, str) or value not in facts["choices"]:
            raise MethodError(
                f"{where} must be one of {', '.join(facts['choices'])}; {_shown(value)} was given."
            )
    elif not isinstance(value, str):
        raise MethodError(f"{where} must be a text; {_shown(value)} was given.")


def _shown(value: Any) -> str:
    """A value in a sentence: in full, unless it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{type(value).__name__} {text[:_LONGEST]}..."


def converted(one: Field[Any], value: Any) -> Any:
    """A value as the parameter's type; an unreadable text stays and is refused by the check."""
    if not isinstance(value, str) or isinstance(one.default, str):
        return value
    if one.metadata["kind"] == "labelmap":
        from ..image import read_labelmap

        return read_labelmap(value) if value not in ("", "None") else None
    text = value.strip()
    if isinstance(one.default, bool):
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(
            text.lower(), value
        )
    try:
        return int(text) if isinstance(one.default, int) else float(text)
    except ValueError:
        return value


def nearest(wanted: str, known: Any) -> str:
    """A question with the names that look like the wanted one; empty without any."""
    near = difflib.get_close_matches(str(wanted), list(known), n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(one) for one in near)}?" if near else ""


def made_from(
    registry: Mapping[str, type[_T]],
    name: str,
    parameters: Mapping[str, Any] | None,
    *,
    kind: str,
    error: type[SaliencyExplainError],
) -> _T:
    """Make what is registered under a name; texts are converted to the parameter's type.

    Parameters
    ----------
    registry : mapping
        Declared classes by name; each has a ``title``.
    name : str
    parameters : mapping
        Values, or texts as they come from a shell.
    kind : str
        What is made, in words.
    error : type
        What is raised if the name or a parameter is unknown; the nearest is named.
    """
    if name not in registry:
        listed = ", ".join(registry)
        raise error(f"There is no {kind} {name!r}.{nearest(name, registry)} All: {listed}.")
    cls: Any = registry[name]
    known = {one.name: one for one in fields(cls)}
    values = {}
    for key, value in (parameters or {}).items():
        if key not in known:
            listed = f" It has: {', '.join(known)}." if known else " It has none."
            raise error(f"{cls.title} has no parameter {key!r}.{nearest(key, known)}{listed}")
        values[key] = converted(known[key], value)
    made: _T = cls(**values)
    return made


def parameter_lines(declared: Any) -> list[str]:
    """A card's lines about the parameters: name, default, range, help."""
    lines = []
    for one in fields(declared):
        allowed = limits(one)
        given = f"{one.default!r}{allowed and f' ({allowed})'}"
        lines.append(f"    {one.name} = {given}: {one.metadata['help']}")
    return lines
