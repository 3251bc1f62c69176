"""``python -m SaliencyExplainLib.worker``: jobs on stdin, answers on stdout."""  # noqa: N999 - Slicer's folder name

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve jobs until standard input ends."""
    parser = argparse.ArgumentParser(
        prog="python -m SaliencyExplainLib.worker",
        description="Runs explanations for another program, which starts it: one JSON message a "
        "line on standard input and output, arrays in files. It ends with its standard input. For "
        "the command line use: python -m SaliencyExplainLib explain --help",
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads of torch")
    parser.add_argument(
        "--heartbeat", type=float, default=1.0, metavar="S", help="seconds between signs of life"
    )
    options = parser.parse_args(arguments)
    lacking = _lacking()
    if lacking:
        sys.stderr.write(f"This Python ({sys.executable}) {lacking}\n")
        return 1
    if not __package__:
        _make_importable()
    from SaliencyExplainLib.worker.server import serve

    return serve(threads=options.threads, heartbeat_s=options.heartbeat)


def _lacking() -> str:
    """Say what keeps this Python from importing the library at all."""
    if sys.version_info < (3, 10):  # noqa: UP036 - whatever Python a person has chosen
        return f"is version {sys.version.split()[0]}; SaliencyExplain needs 3.10 or later"
    if importlib.util.find_spec("numpy") is None:
        return "has no numpy; install torch and monai, which bring it"
    return ""


def _make_importable() -> None:
    """Import the library from where this file lies, when it was run by its path.

    sys.path stays free of this folder, whose file names would hide other modules.
    """
    here = Path(__file__).resolve().parent
    sys.path[:] = [one for one in sys.path if Path(one or ".").resolve() != here]
    home = here.parent
    spec = importlib.util.spec_from_file_location(
        "SaliencyExplainLib", home / "__init__.py", submodule_search_locations=[str(home)]
    )
    assert spec is not None  # noqa: S101 - for the type checker: the file name ends in .py
    assert spec.loader is not None  # noqa: S101 - the same
    module = importlib.util.module_from_spec(spec)
    sys.modules["SaliencyExplainLib"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    sys.exit(main())
