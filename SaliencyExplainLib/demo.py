"""The demo: the tissue model of this project on the brain template that nilearn carries.

Two outputs (grey matter, white matter), four methods; for each run the map, a row of a figure, a
region table and nodes of one scene. The template is the MNI ICBM152 2009a average (Fonov et al.
2011, https://doi.org/10.1016/j.neuroimage.2010.07.033) at 1 mm, cut to the brain so that one window
of the network holds it; its segments are made from its own tissue maps: grey and white matter where
their probability exceeds one half, CSF the rest of the brain mask.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import MissingPackageError, ModelError

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from .explanation import Explanation
    from .methods import Method
    from .model import Model
    from .regions import RegionTable

__all__ = ["RESULTS", "demo", "demo_model", "template"]

#: Names of the results, as a regular expression; those of an earlier demo are replaced.
RESULTS = r"scene\.mrb|regions\.csv|overlay_\w+\.png|grey_matter|white_matter"
TARGETS = ("grey matter", "white matter")
METHODS = ("gradient", "guided_backprop", "integrated_gradients", "grad_cam")
#: Points of the path of integrated gradients.
_STEPS, _QUICK_STEPS = 20, 6
# Air kept around the brain, in voxels of 1 mm: it is at most 180 mm long, the window 192 mm.
_MARGIN = 5
# Off the midline, through ventricle, deep grey matter and white matter.
_OFF_MIDLINE_MM = (22.0, 0.0, 6.0)


@dataclass(frozen=True)
class Run:
    """One method on one target."""

    explanation: Explanation
    table: RegionTable

    @property
    def target_name(self) -> str:
        """Name of the output."""
        return str(self.explanation.target["output_name"])

    @property
    def folder(self) -> str:
        """Where the run is saved, relative to the demo's folder."""
        return f"{self.target_name.replace(' ', '_')}/{self.explanation.method}"

    def line(self) -> str:
        """Value, time and completeness error in one line."""
        found = self.explanation
        error = found.completeness_error
        text = f"{self.target_name}, {found.title}: S = {found.value:.4g}, {found.seconds:.1f} s"
        return text + ("" if error is None else f", completeness error {error:.1%}")


def demo(
    folder: Path,
    *,
    image: Path | None = None,
    quick: bool = False,
    bundle: Path | None = None,
    progress: Callable[[float, str], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run the demo into an existing folder.

    Parameters
    ----------
    folder : Path
        Gets a folder a target and method, one figure a target, ``regions.csv`` and ``scene.mrb``.
    image : Path, optional
        Another T1-weighted head; its segments are then what the model itself predicts.
    quick : bool
        One target, fewer steps.
    bundle : Path, optional
        Another model with the outputs grey matter and white matter.
    progress : callable, optional
        Called with a fraction (0 to 1) and a message.
    say : callable, optional
        Called with each line for people.

    Returns
    -------
    dict
        ``runs`` (value, seconds, completeness error and region rows of each), ``seconds``,
        ``peak_memory_mb`` (of the process; None where the system does not tell) and ``files``.

    Raises
    ------
    MissingPackageError
        If nilearn, matplotlib or slicer-core is missing.
    ModelError
        If the model is not there.
    """
    from .cli.scene_file import write_scene
    from .figure import overlay, require_matplotlib
    from .image import read_image

    report, tell = progress or _silent, say or _silent
    started = time.perf_counter()
    require_matplotlib()
    report(0.0, "reading")
    model = demo_model(bundle)
    if image is None:
        scan, labels, names = template()
    else:
        scan = read_image(image)
        labels, names = predicted(model, scan)
    runs = []
    jobs = [(name, one) for name in TARGETS[-1 if quick else 0 :] for one in _methods(quick)]
    for number, (name, method) in enumerate(jobs):
        share = 1 / (len(jobs) + 1)
        part = _part(report, number * share, share, f"{name}, {method.title}")
        run = _run(model, scan, name, method, labels, names, part)
        run.explanation.save(folder / run.folder)
        tell(run.line())
        tell(run.table.to_text() + "\n")
        runs.append(run)
    report(len(jobs) / (len(jobs) + 1), "figures, tables and scene")
    files = {run.folder + "/": f"map and provenance of {run.explanation.title}" for run in runs}
    place = _crossing(labels)
    for name in dict.fromkeys(run.target_name for run in runs):
        figure = f"overlay_{name.replace(' ', '_')}.png"
        rows = [run.explanation for run in runs if run.target_name == name]
        overlay(scan, rows, folder / figure, at=place)
        files[figure] = f"the maps of {name} over the anatomy"
    _write_table(folder / "regions.csv", runs)
    results = [(run.explanation, run.table) for run in runs]
    write_scene(folder / "scene.mrb", scan, results, (labels, names))
    files["regions.csv"] = "all region tables"
    files["scene.mrb"] = "everything as a scene of 3D Slicer"
    seconds, memory = time.perf_counter() - started, _peak_memory_mb()
    report(1.0, "done")
    cost = f"{seconds:.0f} s" + ("" if memory is None else f", peak memory {memory:.0f} MB")
    tell(f"{len(runs)} runs: {cost}")
    return {
        "runs": [_facts(run) for run in runs],
        "seconds": seconds,
        "peak_memory_mb": memory,
        "files": files,
    }


def demo_model(bundle: Path | None = None) -> Model:
    """Load the demo's model: from the source tree, or from where 3D Slicer has installed it.

    Raises
    ------
    ModelError
        If it is not there.
    """
    from .model import load_model
    from .model.shipped import shipped_bundle

    found = shipped_bundle("BrainTissue") if bundle is None else bundle
    if not (found / "models").is_dir():
        raise ModelError(
            f"The demo's model is not there (looked for {found}). "
            "Run the demo from a complete copy of the project, or from 3D Slicer."
        )
    return load_model(found)


def template() -> tuple[MetaTensor, MetaTensor, dict[int, str]]:
    """Brain template, its segments, and their names.

    Raises
    ------
    MissingPackageError
        If nilearn is not installed.
    """
    import numpy as np

    from .image import make_image, to_ras

    try:
        from nilearn import datasets
    except ImportError as error:
        raise MissingPackageError(
            "The demo takes its brain from the package nilearn, which is not installed. "
            "Install it (pip install nilearn), or give a T1-weighted head with --image."
        ) from error
    scan = datasets.load_mni152_template(resolution=1)
    grey = datasets.load_mni152_gm_template(resolution=1).get_fdata(dtype=np.float32)
    white = datasets.load_mni152_wm_template(resolution=1).get_fdata(dtype=np.float32)
    brain = datasets.load_mni152_brain_mask(resolution=1).get_fdata(dtype=np.float32)
    labels = np.select([white > 0.5, grey > 0.5, brain > 0.5], [3, 2, 1])
    index = np.argwhere(labels)
    low = np.maximum(index.min(0) - _MARGIN, 0)
    inside = tuple(slice(a, b + _MARGIN + 1) for a, b in zip(low, index.max(0), strict=True))
    affine = scan.affine.copy()
    affine[:3, 3] = to_ras(scan.affine, low)
    image = make_image(scan.get_fdata(dtype=np.float32)[inside], affine, "MNI152 T1")
    names = {1: "CSF", 2: "grey matter", 3: "white matter"}
    return image, make_image(labels[inside], affine), names


def predicted(model: Model, image: MetaTensor) -> tuple[MetaTensor, dict[int, str]]:
    """Label map of what a segmentation model finds, and the names of its labels."""
    from .run import predict

    names = dict(enumerate(model.labels))
    return predict(model, image), {key: names[key] for key in names if key}


def _silent(*_: Any) -> None:
    """Stand in for a listener that is not there."""


def _methods(quick: bool) -> list[Method]:
    from .methods import make_method

    settings: Mapping[str, dict[str, Any]] = {
        "integrated_gradients": {"steps": _QUICK_STEPS if quick else _STEPS}
    }
    return [make_method(name, settings.get(name)) for name in METHODS]


def _run(
    model: Model,
    image: MetaTensor,
    name: str,
    method: Method,
    labels: MetaTensor,
    names: Mapping[int, str],
    progress: Callable[[float, str], None],
) -> Run:
    from .regions import region_table
    from .run import explain
    from .target import Target

    target = Target(output=name, region="prediction", score="logit", reduce="mean")
    explanation = explain(model, image, target, method, progress=progress)
    return Run(explanation, region_table(explanation, labels, names))


def _part(
    report: Callable[[float, str], None], start: float, length: float, what: str
) -> Callable[[float, str], None]:
    """Progress of one run as a part of the whole."""
    return lambda fraction, _message: report(start + length * fraction, what)


def _crossing(labels: MetaTensor) -> tuple[float, ...]:
    """Position in RAS mm where all rows of a figure are cut, so that they can be compared."""
    from .planes import centre_ras_mm

    centre = centre_ras_mm(labels)
    return tuple(float(one + off) for one, off in zip(centre, _OFF_MIDLINE_MM, strict=True))


def _write_table(path: Path, runs: list[Run]) -> None:
    from .explanation import write_text

    lines: list[str] = []
    for run in runs:
        head, *rows = run.table.to_csv().splitlines()
        if not lines:
            lines.append(f"target,method,{head}")
        lines += [f"{run.target_name},{run.explanation.method},{row}" for row in rows]
    write_text(path, "\n".join(lines) + "\n")


def _facts(run: Run) -> dict[str, Any]:
    from dataclasses import asdict

    found = run.explanation
    return {
        "target": run.target_name,
        "method": found.method,
        "value": found.value,
        "seconds": found.seconds,
        "completeness_error": found.completeness_error,
        "warnings": list(found.warnings),
        "regions": [asdict(row) for row in run.table.rows],
        "folder": run.folder,
    }


def _peak_memory_mb() -> float | None:
    """Largest resident size of this process so far in MB (10^6 bytes)."""
    try:
        import resource
    except ImportError:
        return None
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, kibibytes elsewhere.
    return size / 1e6 if sys.platform == "darwin" else size * 1024 / 1e6
