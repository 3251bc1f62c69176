"""``explain``: one output of a network for one image, into a folder."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MissingPackageError
from .output import Progress, StagedFolder, print_json, say
from .plan import parameters
from .question import load_options, read_images, read_region, read_segments, read_target
from .scene_file import write_scene

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from ..explanation import Explanation
    from ..regions import RegionTable

__all__ = ["outcome", "run_explain"]

#: Names of this command's results; those of an earlier run are replaced.
_RESULTS = r"map(_\d+|_layer_grid)?\.nrrd|regions\.csv|overlay\.png|explanation\.json|scene\.mrb"


def run_explain(options: Any) -> None:
    """Explain, then write map, figure, table, provenance and scene together."""
    from .. import explain, load_model, make_method, region_table

    read_region(options)  # refused before anything is loaded
    method = make_method(options.method, parameters(options.param))
    _check_packages(figure=not options.no_figure, scene=options.scene)
    with StagedFolder(options.output, _RESULTS) as folder:
        with Progress(quiet=options.quiet) as progress:
            progress(0.0, "reading")
            model = load_model(options.model, trusted=options.trust, **load_options(options))
            image = read_images(options, model)
            labelmap, names = read_segments(options, model, image)
            target, mask = read_target(options, labelmap, names)
            found = explain(
                model,
                image,
                target,
                method,
                progress=progress,
                fast=options.fast,
                batch_size=options.batch,
            )
            table = None if labelmap is None else region_table(found, labelmap, names)
            _write(folder, options, image, found, table, labelmap, mask)
        files = sorted(path.name for path in folder.iterdir())
    if options.json:
        rows = None if table is None else [asdict(row) for row in table.rows]
        home = options.output.expanduser().absolute()
        print_json({**found.to_dict(), "regions": rows, "output": home, "files": files})
        return
    say(outcome(found))
    if table is not None:
        say(table.to_text())
    say(f"Written to {options.output}: {', '.join(files)}")


def outcome(explanation: Explanation) -> str:
    """Say what was found, in a few lines."""
    target = explanation.target
    kind = " ".join(str(one) for one in (target.get("reduce"), target.get("score")) if one)
    lines = [
        f"{explanation.title}: {target.get('output_name', target.get('output'))!s}",
        f"  explained value     {explanation.value:.6g} ({kind})",
    ]
    if target.get("region"):
        which = target.get("instance")
        number = f" {which['number']} of {which['of']}" if which else ""
        size = f"{target['region_voxels']} voxels"
        lines.append(f"  region              {target['region']}{number}, {size}")
    if explanation.completeness_error is not None:
        lines.append(f"  completeness error  {explanation.completeness_error:.2%}")
    memory = explanation.peak_memory_mb
    cost = f"{explanation.seconds:.1f} s" + ("" if memory is None else f", {memory:.0f} MB")
    lines.append(f"  cost                {cost}")
    return "\n".join(lines + [f"  note: {warning}" for warning in explanation.warnings])


def _check_packages(*, figure: bool, scene: bool) -> None:
    """Before a long run, not after it."""
    if figure:
        from ..figure import require_matplotlib

        require_matplotlib()
    if scene and importlib.util.find_spec("slicer") is None:
        raise MissingPackageError(
            "--scene needs the package slicer-core, which is not installed. "
            "Install it (pip install slicer-core), or leave --scene out."
        )


def _write(
    folder: Path,
    options: Any,
    image: MetaTensor,
    found: Explanation,
    table: RegionTable | None,
    labelmap: MetaTensor | None,
    mask: MetaTensor | None,
) -> None:
    found.save(folder)
    if table is not None:
        table.to_csv(folder / "regions.csv")
    if not options.no_figure:
        from ..figure import overlay

        window = None if options.window is None else tuple(options.window)
        name = f"segment {options.segment}"
        overlay(
            image, found, folder / "overlay.png", contour=mask, contour_name=name, window=window
        )
    if options.scene:
        segments = None
        if labelmap is not None and table is not None:
            named = {row.label: row.name for row in table.rows if row.label and row.voxels}
            segments = (labelmap, named) if named else None
        write_scene(folder / "scene.mrb", image, [(found, table)], segments)
