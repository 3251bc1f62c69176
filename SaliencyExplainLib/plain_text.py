"""Names that come with a file, shown where text can do something: terminals and spreadsheets."""

from __future__ import annotations

import unicodedata

__all__ = ["cell_text", "printable"]

#: What makes a spreadsheet program take a cell for a formula (OWASP, "CSV injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\N{FULLWIDTH EQUALS SIGN}")
#: Controls of the writing direction: a name may not turn round the text beside it.
_TURNS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def cell_text(text: str) -> str:
    """Return a text for a cell of a CSV file that no spreadsheet program runs as a formula.

    Such a text gets an apostrophe in front, which those programs do not show; numbers are not to
    be given here.

    >>> cell_text("=HYPERLINK(1)"), cell_text("left lung")
    ("'=HYPERLINK(1)", 'left lung')
    """
    shown = printable(text)  # a carriage return alone would end the row in some readers
    return f"'{shown}" if shown.lstrip(" ").startswith(_FORMULA) else shown


def printable(text: str) -> str:
    """Return a text without what would steer a terminal; lines and tabs stay."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if one in _TURNS or (unicodedata.category(one) in ("Cc", "Cs") and one not in "\n\t")
        else one
        for one in text
    )
