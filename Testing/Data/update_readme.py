"""Write the table of methods into README.md from the methods' own declarations.

python Testing/Data/update_readme.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

import SaliencyExplainLib as sx

README = Path(__file__).resolve().parents[2] / "README.md"
START, END = "<!-- methods: written by Testing/Data/update_readme.py -->", "<!-- end of methods -->"


def table() -> str:
    """Return the table as Markdown."""
    lines = [
        "| name | what it answers | signed | layer | passes | source |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, method in sx.methods().items():
        passes = method().passes()
        signed, layer = ("yes" if fact else "no" for fact in (method.signed, method.needs_layer))
        cost = "by image" if passes is None else str(passes)
        lines.append(
            f"| `{name}` | {method.summary} | {signed} | {layer} | {cost} | {method.paper} |"
        )
    return "\n".join(lines)


def updated(text: str) -> str:
    """Return the README's text with the table of today."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table()}\n{END}{after}"


def main() -> int:
    """Update the file, or only tell whether it is up to date."""
    text = README.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        return int(updated(text) != text)
    README.write_text(updated(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
