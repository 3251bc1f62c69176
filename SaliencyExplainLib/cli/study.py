"""``study``: a published system, end to end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import StudyError
from ..studies import studies
from .output import Progress, print_json, say

if TYPE_CHECKING:
    from ..studies import Study, StudyResult

__all__ = ["run_study"]


def run_study(options: Any) -> None:
    """List the studies, or run one into a folder."""
    known = studies()
    if options.name is None:
        _list(known, as_json=options.json)
        return
    if options.name not in known:
        raise StudyError(f"There is no study {options.name!r}. The studies are {', '.join(known)}.")
    if options.output is None:
        raise StudyError("Say where the results go: --output DIR.")
    from ..figure import require_matplotlib

    require_matplotlib()
    folder = Path(options.output).expanduser()
    if options.restart:
        from ..studies.work import Work

        Work.forget(folder)
    options.cancelled = (
        f"Cancelled. What is done is kept in {str(folder)!r}; the same command goes on there."
    )
    with Progress(quiet=options.quiet) as progress:
        found = known[options.name](
            folder, quick=options.quick, seed=options.seed, progress=progress
        )
    files = ["study.json", f"{found.name}.md"]
    if options.scene:
        _write_scene(folder / "scene.mrb", found)
        files.append("scene.mrb")
    if options.json:
        print_json({**found.to_dict(), "output": folder.absolute(), "files": files})
        return
    _tell(found)
    say(f"The page is {folder.absolute() / f'{found.name}.md'}.")


def _list(known: dict[str, Study], *, as_json: bool) -> None:
    facts = [
        {
            key: getattr(one, key)
            for key in ("name", "title", "question", "paper", "minutes", "quick_minutes")
        }
        for one in known.values()
    ]
    if as_json:
        print_json({"studies": facts})
        return
    for one in known.values():
        say(f"{one.name}  (about {one.minutes:g} minutes, quick {one.quick_minutes:g})")
        say(f"  {one.title}. {one.question}")
        say(f"  {one.paper}")


def _write_scene(path: Path, found: StudyResult) -> None:
    from .. import scene

    made = scene.new_scene()
    try:
        scene.publish_study(found, made)
        scene.save_mrb(made, path)
    finally:
        scene.release_scene(made)


def _tell(found: StudyResult) -> None:
    from ..studies.results import in_words

    say(f"{found.title}. {found.question}")
    for one in found.answer:
        say(f"  - {one}")
    for row in found.comparisons:
        say(f"  {row.verdict:<14} {row.what}: published {row.published}; ours {row.ours}")
    for table in found.tables:
        cells = [table.columns, *[tuple(map(in_words, row)) for row in table.rows]]
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        say()
        say(table.title)
        for line in cells:
            padded = zip(line, widths, strict=True)
            say("  " + "  ".join(f"{cell:<{width}}" for cell, width in padded).rstrip())
