"""Arrays between the two processes: a folder of .npy files, with their places in the messages.

The client makes the folder and removes it. A result appears under its name when all of it is
written, or not at all. Nothing here needs torch.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import SaliencyExplainError, WorkerError
from ..explanation import Explanation
from ..quality.appraisal import Appraisal
from ..region_rows import RegionTable
from ..volume import Volume, as_volume
from .protocol import Reference, json_values

__all__ = [
    "PREFIX",
    "RESULT",
    "JobFolder",
    "Result",
    "is_reference",
    "read_array",
    "read_result",
    "write_array",
    "write_result",
]

#: Start of the names of job folders. The worker removes no other folder.
PREFIX = "SaliencyExplain-job-"
#: What a whole result has.
RESULT = "result.json"


class JobFolder:
    """A temporary folder for the arrays of one or more jobs; leaving the context removes it.

    Parameters
    ----------
    parent : path, optional
        Where to make it: a folder that both sides see. The system's temporary folder when left out.

    Raises
    ------
    WorkerError
        If it cannot be made.
    """

    def __init__(self, parent: str | Path = "") -> None:
        try:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=str(parent) or None))
        except OSError as error:
            raise WorkerError(
                f"No folder for the job can be made in {str(parent) or tempfile.gettempdir()!r} "
                f"({error.strerror or error}). Free some space, or choose another folder."
            ) from error
        self._count = 0

    def __enter__(self) -> JobFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def put(self, name: str, volume: Any) -> dict[str, Any]:
        """Write a Volume or image and return the reference to it.

        Raises
        ------
        WorkerError
            If the disk is full.
        """
        self._count += 1
        return write_array(self.path / f"{self._count}-{name}.npy", volume)

    def output(self, name: str = "result") -> str:
        """Return the path of a folder for a result; it does not exist yet."""
        self._count += 1
        return str(self.path / f"{self._count}-{name}")

    def remove(self) -> None:
        """Remove the folder with everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)


@dataclass(frozen=True)
class Result:
    """What a job made.

    Attributes
    ----------
    explanation : Explanation or None
        Its maps are Volumes.
    regions : RegionTable or None
        Where segments were given.
    labels : Volume or None, shape (1, I, J, K) or (O, I, J, K)
        Of a prediction.
    label_names : dict of int to str
        What the numbers of `labels` mean.
    appraisal : Appraisal or None
        How far the map can be trusted.
    layers : tuple of Explanation
        Of several layers, in their order; without maps on the network's grid.
    """

    explanation: Explanation | None = None
    regions: RegionTable | None = None
    labels: Volume | None = None
    label_names: Mapping[int, str] | None = None
    appraisal: Appraisal | None = None
    layers: tuple[Explanation, ...] = ()


def write_array(path: Path, volume: Any) -> dict[str, Any]:
    """Write voxels as .npy and return the reference: {"npy", "ijk_to_ras", "name"}."""
    one = as_volume(volume)
    try:
        # Slicer's voxels come as a transposed view; their order is kept, not copied.
        np.save(path, one.voxels, allow_pickle=False)
    except OSError as error:
        raise WorkerError(
            f"{path.name!r} could not be written into {str(path.parent)!r} "
            f"({error.strerror or error}). Free some space."
        ) from error
    place = {"npy": str(path), "ijk_to_ras": one.affine.tolist(), "name": one.name}
    return {**place, "notes": list(one.notes)} if one.notes else place


def read_array(reference: Reference) -> Volume:
    """Read what a reference points at.

    Raises
    ------
    WorkerError
        If the file is missing or damaged: the two sides do not see the same folder.
    """
    try:
        voxels = np.load(reference["npy"], allow_pickle=False)
        notes = tuple(map(str, reference.get("notes", ())))
        return Volume(voxels, reference["ijk_to_ras"], str(reference.get("name", "")), notes)
    except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
        raise WorkerError(
            f"The file of the job {str(reference.get('npy'))!r} cannot be read ({error}). On "
            "another machine the folder of the job must lie under the same path."
        ) from error


def is_reference(value: Any) -> bool:
    """Whether a parameter's value is a reference to an array."""
    return isinstance(value, Mapping) and {"npy", "ijk_to_ras"} <= set(value)


def write_result(
    folder: str | Path,
    explanation: Explanation | None = None,
    regions: RegionTable | None = None,
    labels: Any = None,
    label_names: Mapping[int, str] | None = None,
    appraisal: Appraisal | None = None,
    layers: Sequence[Explanation] = (),
) -> None:
    """Write a result; the folder appears whole or not at all.

    Raises
    ------
    WorkerError
        If it exists already or cannot be written.
    """
    final = Path(folder)
    arrays = {"labels": labels}
    if explanation is not None:
        for name in ("maps", "network_maps", "layer_map"):
            arrays[name] = getattr(explanation, name)
    try:
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=final.parent))
        try:
            facts = {
                "explanation": None if explanation is None else explanation.to_dict(),
                "regions": None if regions is None else regions.to_records(),
                "label_names": label_names,
                "appraisal": None if appraisal is None else appraisal.to_dict(),
                "layers": len(layers),
                "arrays": {
                    name: _beside(write_array(part / f"{name}.npy", one))
                    for name, one in arrays.items()
                    if one is not None
                },
            }
            for index, one in enumerate(layers):
                # What only perturbing needs would double the files.
                told = replace(one, network_maps=None, saved=one.to_dict()["map"])
                write_result(part / str(index), told)
            text = json.dumps(json_values(facts), indent=1, allow_nan=False)
            (part / RESULT).write_text(text, encoding="utf-8")
            part.rename(final)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    except OSError as error:
        raise WorkerError(
            f"The result could not be written to {str(final)!r} ({error.strerror or error})."
        ) from error


def read_result(folder: str | Path) -> Result:
    """Read what :func:`write_result` wrote.

    Raises
    ------
    WorkerError
        If there is no whole result.
    """
    home = Path(folder)
    try:
        facts = json.loads((home / RESULT).read_text(encoding="utf-8"))
        arrays = {
            name: read_array({**one, "npy": str(home / one["npy"])})
            for name, one in facts["arrays"].items()
        }
        told, regions, names = facts["explanation"], facts["regions"], facts["label_names"]
        appraisal = facts["appraisal"]
        return Result(
            explanation=None
            if told is None
            else Explanation.from_dict(
                told, arrays["maps"], arrays.get("network_maps"), arrays.get("layer_map")
            ),
            regions=None if regions is None else RegionTable.from_records(regions),
            labels=arrays.get("labels"),
            label_names=None if names is None else {int(key): one for key, one in names.items()},
            appraisal=None if appraisal is None else Appraisal.from_dict(appraisal),
            layers=tuple(_layer(home / str(index)) for index in range(int(facts["layers"]))),
        )
    except WorkerError:
        raise
    except (OSError, ValueError, KeyError, TypeError, SaliencyExplainError) as error:
        raise WorkerError(
            f"The result in {str(home)!r} is not whole ({error}). Run again."
        ) from error


def _layer(folder: Path) -> Explanation:
    found = read_result(folder).explanation
    if found is None:
        raise WorkerError(f"The result in {str(folder)!r} is not whole. Run again.")
    return found


def _beside(reference: dict[str, Any]) -> dict[str, Any]:
    return {**reference, "npy": Path(reference["npy"]).name}
