"""How a worker is started: program, arguments and environment, for whoever starts processes.

The interpreter of this process is started as it is. A foreign one (a conda environment with CUDA)
gets an environment without the variables that point into 3D Slicer: it would not start with
PYTHONHOME, and it would load Slicer's libraries before its own. It runs isolated (``-I``), so
packages in the user's own site folder are not seen; this library is found by the path of the file
that is run, not through PYTHONPATH.

A prefix may put the worker elsewhere (``ssh host``, ``srun``, ``docker exec -i name``). Arrays go
through files: the folder of the job and the model must lie under the same path on both sides (a
shared file system), and `library` says where SaliencyExplainLib lies there.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import WorkerError

__all__ = ["Launch", "clean_environment", "launch"]

#: glibc gives large blocks back at once and asks for them again; keeping them saved a sixth of a
#: U-Net's forward and backward pass (96^3), more in batches. Other systems do not know the names.
_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}
_FOREIGN = ("PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD")
_FOREIGN_STARTS = ("PYTHON", "DYLD_", "QT_", "SLICER")


@dataclass(frozen=True)
class Launch:
    """A command: `environment` is complete, nothing else is inherited."""

    program: str
    arguments: list[str]
    environment: dict[str, str]


def launch(
    interpreter: str = "",
    prefix: Sequence[str] = (),
    library: str = "",
    threads: int = 0,
    environ: Mapping[str, str] | None = None,
) -> Launch:
    """Return how to start a worker.

    Parameters
    ----------
    interpreter : str
        A Python with torch and MONAI, as path or name; this process's own when left out.
    prefix : sequence of str
        Words in front of it.
    library : str
        Folder SaliencyExplainLib, where it lies elsewhere for the worker.
    threads : int
        Threads of torch; 0 leaves it to torch.
    environ : mapping, optional
        Environment to start from; that of this process when left out.

    Raises
    ------
    WorkerError
        If the interpreter does not exist here (without a prefix).
    """
    own = not interpreter or Path(interpreter) == Path(sys.executable)
    program = interpreter or sys.executable
    if not program:
        raise WorkerError("This process does not know its Python. Choose an interpreter.")
    if not prefix and shutil.which(program) is None:
        raise WorkerError(
            f"There is no Python {program!r} that can be run. Choose the file python (Windows: "
            "python.exe) of an environment with torch and MONAI."
        )
    home = Path(library) if library else Path(__file__).resolve().parents[1]
    words = [*prefix, program, *([] if own else ["-I"]), "-u", (home / "worker").as_posix()]
    if threads:
        words += ["--threads", str(threads)]
    inherited = dict(os.environ if environ is None else environ)
    variables = inherited if own else clean_environment(inherited)
    return Launch(words[0], words[1:], {**_ALLOCATOR, **variables})


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what leads a foreign interpreter into 3D Slicer."""
    return {
        key: value
        for key, value in environ.items()
        if key not in _FOREIGN and not key.startswith(_FOREIGN_STARTS)
    }
