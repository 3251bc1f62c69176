"""The page of a study: question, findings, published figures beside ours, tables, figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .results import StudyTable, escaped, in_words

if TYPE_CHECKING:
    from .results import StudyResult

__all__ = ["page"]


def page(result: StudyResult) -> str:
    """Return the page of a study as Markdown; its figures lie beside it.

    Parameters
    ----------
    result : StudyResult

    Returns
    -------
    str
    """
    quick = " --quick" if result.settings.get("quick") else ""
    seed = result.settings.get("seed", 1)
    command = f"python -m SaliencyExplainLib study {result.name}{quick} --seed {seed} --output DIR"
    parts = [
        f"# {result.title}",
        f"*After {result.paper}*" if result.paper else "",
        f"**Question.** {result.question}",
        "## Findings",
        "\n".join(f"- {one}" for one in result.answer),
    ]
    if result.comparisons:
        rows = tuple(
            (one.what, one.published, one.ours, one.verdict, one.why) for one in result.comparisons
        )
        columns = ("what", "published", "ours", "verdict", "why")
        parts += [
            "## Published figures beside ours",
            StudyTable("published", "", columns, rows).to_markdown(),
        ]
    for figure in result.figures:
        parts += [f"![{escaped(figure.caption)}]({figure.name}.png)", f"*{figure.caption}*"]
    for table in result.tables:
        parts += [f"## {table.title}", table.to_markdown(), table.note]
    if result.differs:
        parts += ["## What differs from the publication"]
        parts += ["\n".join(f"- {one}" for one in result.differs)]
    settings = ", ".join(f"{key} {in_words(one)}" for key, one in result.settings.items())
    versions = ", ".join(f"{key} {one}" for key, one in result.versions.items())
    parts += [
        "## How it was made",
        f"```sh\n{command}\n```",
        f"Settings: {settings}. It took {result.seconds:.0f} s. Versions: {versions}.",
    ]
    return "\n\n".join(one for one in parts if one) + "\n"
