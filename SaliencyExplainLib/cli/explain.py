"""``explain``: one output of a network for one image, into a folder."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MethodError, MissingPackageError, TargetError
from .output import Progress, StagedFolder, print_json, say
from .regions import read_names
from .scene_file import write_scene

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from ..explanation import Explanation
    from ..model import Model
    from ..regions import RegionTable
    from ..target import Target

__all__ = ["load_options", "outcome", "run_explain"]

#: As --segments: the regions that the model predicts.
PREDICTION = "prediction"
#: Options that say where.
_PLACES = ("segment", "point", "roi", "instance")
#: Names of this command's results; those of an earlier run are replaced.
_RESULTS = r"map(_\d+|_layer_grid)?\.nrrd|regions\.csv|overlay\.png|explanation\.json|scene\.mrb"


def run_explain(options: Any) -> None:
    """Explain, then write map, figure, table, provenance and scene together."""
    from .. import explain, load_model, make_method, read_image, region_table

    region = _region(options)
    method = make_method(options.method, _parameters(options.param))
    _check_packages(figure=not options.no_figure, scene=options.scene)
    with StagedFolder(options.output, _RESULTS) as folder:
        with Progress(quiet=options.quiet) as progress:
            progress(0.0, "reading")
            image = read_image(options.image, resample=options.resample)
            model = load_model(options.model, trusted=options.trust, **load_options(options))
            labelmap, names = _segments(options, model, image)
            mask = _mask(options.segment, labelmap, names)
            target = _target(options, region, mask)
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


def load_options(options: Any) -> dict[str, Any]:
    """Options of ``load_model`` that were given."""
    names = ("task", "labels", "channels", "network", "network_arguments", "device")
    given = {name: getattr(options, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


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


def _parameters(texts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise MethodError(f"A parameter is given as key=value; {text!r} was given.")
        if key in found:
            raise MethodError(f"The parameter {key!r} was given twice. Leave one out.")
        found[key] = value
    return found


def _region(options: Any) -> str | None:
    """Region that was named, or that follows from --segment, --point, --roi or --instance."""
    given = [name for name in _PLACES if getattr(options, name) is not None]
    if options.region == "instance" and given == ["point"]:
        return "instance"
    if len(given) > 1:
        raise TargetError(f"--{given[0]} and --{given[1]} name two regions. Leave one out.")
    if given and options.region not in (None, given[0]):
        raise TargetError(
            f"--{given[0]} does not go with --region {options.region}. Leave one out."
        )
    if not given and options.region in ("segment", "point", "roi"):
        raise TargetError(f"--region {options.region} needs --{options.region}. Say which one.")
    if options.segment is not None and options.segments is None:
        raise TargetError("--segment needs the label map that it is in. Give it with --segments.")
    return given[0] if given else options.region


def _target(options: Any, region: str | None, mask: MetaTensor | None) -> Target:
    from .. import Target

    corners = options.roi
    return Target(
        output=options.target,
        region=region,
        score=options.score,
        reduce=options.reduce,
        contrast=options.contrast,
        segment=mask,
        roi_ras_mm=None if corners is None else (tuple(corners[:3]), tuple(corners[3:])),
        point_ras_mm=None if options.point is None else tuple(options.point),
        instance=options.instance,
    )


def _segments(
    options: Any, model: Model, image: MetaTensor
) -> tuple[MetaTensor | None, dict[int, str]]:
    """Label map and names of its labels: from files, or what the model itself predicts."""
    from .. import predict, read_labelmap

    if str(options.segments) == PREDICTION:
        if model.activation != "softmax":
            raise TargetError(
                "The outputs of this model may overlap, so its prediction is no label map. "
                "Give one with --segments FILE."
            )
        return predict(model, image), dict(enumerate(model.labels))
    names = read_names(options.segment_names) if options.segment_names is not None else {}
    return (None if options.segments is None else read_labelmap(options.segments)), names


def _mask(wanted: str | None, labelmap: MetaTensor | None, names: dict[int, str]) -> Any:
    """Mask of the segment that is the region, or None."""
    if wanted is None or labelmap is None:
        return None
    from .. import make_image

    by_name = {name.casefold(): label for label, name in names.items()}
    label = int(wanted) if wanted.isdigit() else by_name.get(wanted.casefold())
    voxels = labelmap.as_tensor()
    if label is None or label == 0 or not bool((voxels == label).any()):
        present = [int(one) for one in voxels.unique().tolist() if one > 0]
        listed = ", ".join(f"{one} {names.get(one, '')}".strip() for one in present)
        raise TargetError(f"The label map has no segment {wanted!r}. It has: {listed or 'none'}.")
    return make_image(voxels == label, labelmap.affine)


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
