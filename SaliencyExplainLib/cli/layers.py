"""``layers``: class activation maps of all layers from one pass, as a sheet and as volumes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from ..errors import MethodError
from .output import Progress, StagedFolder, json_values, print_json, say
from .question import load_options, read_images, read_region, read_segments, read_target

if TYPE_CHECKING:
    from ..explanation import Explanation

__all__ = ["run_layers"]

#: Names of this command's results; those of an earlier run are replaced.
_RESULTS = r"layer_maps|layers\.json|layers\.png"


def run_layers(options: Any) -> None:
    """Make the maps, a contact sheet of them, and a list of what each layer is."""
    from .. import explain_layers, load_model, make_method

    read_region(options)  # refused before anything is loaded
    make_method(options.method)
    chosen = [name.strip() for name in options.layers.split(",")] if options.layers else None
    if chosen is not None and len(set(chosen)) < len(chosen):
        raise MethodError("A layer was named twice in --layers. Leave one out.")
    if not options.no_figure:
        from ..figure import require_matplotlib

        require_matplotlib()
    with StagedFolder(options.output, _RESULTS) as folder:
        with Progress(quiet=options.quiet) as progress:
            progress(0.0, "reading")
            model = load_model(options.model, trusted=options.trust, **load_options(options))
            image = read_images(options, model)
            labelmap, names = read_segments(options, model, image)
            target, _ = read_target(options, labelmap, names)
            found = explain_layers(
                model, image, target, (options.method,), chosen, progress=progress
            )
            infos = {one.name: one for one in model.layers(image)}
            rows = [_facts(one, infos.get(one.layers[0])) for one in found]
            _write_maps(folder, found, rows)
            text = json.dumps(json_values({"layers": rows}), indent=2, allow_nan=False)
            (folder / "layers.json").write_text(text + "\n", encoding="utf-8")
            if not options.no_figure:
                from ..contact_sheet import contact_sheet

                contact_sheet(image, found, folder / "layers.png", plane=options.plane)
        files = sorted(path.name for path in folder.iterdir())
    if options.json:
        home = options.output.expanduser().absolute()
        print_json({"layers": rows, "output": home, "files": files})
        return
    say(f"{found[0].title} of {len(found)} layers, {found[0].seconds:.1f} s")
    width = max(len(row["layer"]) for row in rows)
    for row in rows:
        problem = row["problem"].partition(":")[0]
        say(f"  {row['layer']:<{width}}  {row['kind']:<16} {problem}".rstrip())
    say(f"Written to {options.output}: {', '.join(files)}")


def _facts(explanation: Explanation, info: Any) -> dict[str, Any]:
    """What one map is, as JSON values."""
    name = explanation.layers[0]
    return {
        "layer": name,
        "kind": "" if info is None else info.kind,
        "shape": None if info is None else list(info.shape),
        "spacing_voxels": None if info is None else list(info.grid.spacing),
        "problem": "" if info is None else info.problem,
        "warnings": list(explanation.warnings),
        "largest": float(explanation.map.abs().max()),
    }


def _write_maps(folder: Any, found: list[Explanation], rows: list[dict[str, Any]]) -> None:
    """One volume a layer, on the layer's own grid where there is one."""
    from .. import write_image

    home = folder / "layer_maps"
    home.mkdir()
    for number, (one, row) in enumerate(zip(found, rows, strict=True)):
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", row["layer"])
        row["file"] = f"layer_maps/{number:03d}_{safe}.nrrd"
        write_image(one.map if one.layer_map is None else one.layer_map, folder / row["file"])
