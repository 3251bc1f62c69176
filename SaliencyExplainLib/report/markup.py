"""HTML from values: every text is escaped, so that a name can never become a tag or a script."""

from __future__ import annotations

import base64
import html
import unicodedata
from collections.abc import Iterable, Sequence

__all__ = ["Html", "cell", "image", "joined", "section", "table", "tag"]

#: Elements without content.
_VOID = {"img", "meta", "br"}
#: Controls of the writing direction: a name may not turn round the text beside it.
_TURNS = set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Html(str):
    """Text that is HTML already; any other text is escaped."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Return one element.

    Parameters
    ----------
    name : str
        Of the element.
    *children : object
        :class:`Html` as it is, None left out, anything else as escaped text.
    **attributes : object
        Escaped; a trailing underscore falls away, others become hyphens. None leaves one out, True
        gives it without a value.
    """
    told = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    if name in _VOID:
        return Html(f"<{name}{told}>")
    return Html(f"<{name}{told}>{joined(children)}</{name}>")


def joined(children: Iterable[object], between: str = "") -> Html:
    """Return children behind each other, each escaped unless it is :class:`Html`."""
    return Html(between.join(_safe(child) for child in children if child is not None))


def section(identity: str, title: str, *children: object, class_: str | None = None) -> Html:
    """Return a section that is called what its heading says."""
    head = tag("h2", title, id=identity)
    return tag("section", head, *children, aria_labelledby=identity, class_=class_)


def cell(value: object, *, number: bool = False, head: str | None = None, **more: object) -> Html:
    """Return a cell of a table; `head` ("row" or "col") makes it a header of that scope."""
    given = {"class_": "number" if number else None, **more}
    return tag("td", value, **given) if head is None else tag("th", value, scope=head, **given)


def table(
    caption: object, heads: Sequence[tuple[str, bool]], bodies: Sequence[Sequence[Html]]
) -> Html:
    """Return a table.

    Parameters
    ----------
    caption : object
        What it shows.
    heads : sequence of (title, whether the column holds numbers)
    bodies : sequence of groups of rows
        Each row a ``tr``.
    """
    top = tag("tr", *(cell(title, number=number, head="col") for title, number in heads))
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption),
            tag("thead", top),
            *(tag("tbody", *rows) for rows in bodies if rows),
        ),
        class_="wide",
        # What may scroll sideways on a narrow screen must be reachable with the keyboard.
        tabindex="0",
        role="region",
        aria_label=str(caption),
    )


def image(data: bytes, kind: str, alternative: str, **more: object) -> Html:
    """Return an image that lies inside the page; `kind` is its MIME type."""
    source = f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return tag("img", src=source, alt=alternative, **more)


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{_safe(str(value))}"'


def _safe(value: object) -> str:
    if isinstance(value, Html):
        return value
    # Not allowed in HTML, or not what they seem.
    text = "".join(
        "\N{REPLACEMENT CHARACTER}"
        if one in _TURNS or (unicodedata.category(one) in ("Cc", "Cs") and one not in "\n\t")
        else one
        for one in str(value)
    )
    return html.escape(text, quote=True)
