"""``demo``: see :mod:`SaliencyExplainLib.demo`."""

from __future__ import annotations

from typing import Any

from .output import Progress, StagedFolder, print_json, say

__all__ = ["run_demo"]


def run_demo(options: Any) -> None:
    """Run the demo, print its numbers, and say where everything is."""
    from ..demo import RESULTS, demo

    with StagedFolder(options.output, RESULTS) as folder, Progress(quiet=options.quiet) as progress:
        facts = demo(
            folder,
            image=options.image,
            quick=options.quick,
            progress=progress,
            say=None if options.json else progress.say,
        )
    home = options.output.expanduser().absolute()
    if options.json:
        print_json({**facts, "output": home})
        return
    say(f"Everything is in {home}:")
    width = max(len(name) for name in facts["files"])
    for name, what in facts["files"].items():
        say(f"  {name:<{width}}  {what}")
