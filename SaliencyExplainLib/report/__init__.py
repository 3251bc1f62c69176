"""A report for people: one page that opens anywhere, with the verdict first.

>>> import SaliencyExplainLib as sx
>>> sx.write_report(explanation, image, "result", evaluation=evaluation)       # doctest: +SKIP

What the checks say together, in words and as JSON values, is :func:`verdict_of`.
"""

from __future__ import annotations

from .page import FIGURES, NAME, write_report
from .verdict import Check, Verdict, verdict_of

__all__ = ["FIGURES", "NAME", "Check", "Verdict", "verdict_of", "write_report"]
