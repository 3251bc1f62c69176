"""What the shell accepts. Nothing here imports torch, so that ``--help`` is there at once."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["REDUCTIONS", "REGIONS", "SCORES", "TASKS", "make_parser"]

# The same as in target.py and model.py, which need torch; a test compares them.
REGIONS = ("prediction", "instance", "segment", "roi", "point", "everywhere")
SCORES = ("logit", "probability", "soft_volume", "value")
REDUCTIONS = ("mean", "sum")
TASKS = ("segmentation", "classification", "regression")

_PROGRAM = "python -m SaliencyExplainLib"
_EPILOGS = {
    "explain": f"""example:
  {_PROGRAM} explain --model BrainTissue --image t1.nii.gz --method integrated_gradients \\
      --target "white matter" --param steps=20 --segments tissues.nii.gz \\
      --output result

In --output it writes map.nrrd (map_0.nrrd, ... for several channels), overlay.png,
explanation.json, regions.csv with --segments, and scene.mrb with --scene. They appear together,
when all is done; those of an earlier run are replaced, other files stay.""",
    "layers": f"""example:
  {_PROGRAM} layers --model BrainTissue --image t1.nii.gz --target "white matter" --output layers

In --output it writes layers.png (a small picture a layer), layers.json (what each layer is, and
what speaks against its map) and layer_maps/ (each map on the layer's own grid).""",
    "evaluate": f"""examples:
  {_PROGRAM} evaluate --model BrainTissue --image t1.nii.gz --method integrated_gradients \\
      --target "white matter" --segments tissues.nii.gz --sanity --output trust
  {_PROGRAM} evaluate --model BrainTissue --image t1.nii.gz --target "white matter" \\
      --methods gradient,integrated_gradients,grad_cam --metrics quick --output trust

What it costs in passes over the volume is said before. In --output it writes report.html (one page
that opens anywhere and can be printed), figures/ (as PNG), explanation/ (the map and how it was
made), evaluation.json (everything), metrics.csv, and regions.csv, ranking.csv and comparison.csv
where there are any. They appear together, when all is done; those of an earlier run are replaced,
other files stay.""",
    "methods": f"""examples:
  {_PROGRAM} methods
  {_PROGRAM} methods integrated_gradients""",
    "model": f"""example:
  {_PROGRAM} model BrainTissue --layers""",
    "regions": f"""example:
  {_PROGRAM} regions --map result/map.nrrd --segments tissues.nii.gz --output regions.csv""",
    "study": f"""examples:
  {_PROGRAM} study
  {_PROGRAM} study background_removal --quick --output background

In --output it writes a page (NAME.md) with figures (.png) and tables (.csv), study.json with
everything, a folder of volumes for each case, and scene.mrb with --scene. What is done is kept in
work/, so that the same command goes on where it was stopped.""",
    "demo": f"""example:
  {_PROGRAM} demo --output demo-output""",
}


#: What was typed is shown, but not a whole page of it.
_LONGEST = 400


class _Parser(argparse.ArgumentParser):
    """Ends with one sentence instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        told = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}..."
        self.exit(2, f"Error: {told[:1].upper()}{told[1:]}. See {self.prog} --help.\n")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; the parsed arguments carry ``run``, the command to call with them."""
    common = _Parser(add_help=False)
    common.add_argument(
        "--json", action="store_true", help="write one JSON object to standard output"
    )
    common.add_argument("--quiet", action="store_true", help="no progress on standard error")
    common.add_argument("--debug", action="store_true", help="show where an error came from")
    parser: argparse.ArgumentParser = _Parser(
        prog=_PROGRAM,
        description="Which voxels and which structures made a trained network say what it said.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, home: str, summary: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            parents=[common],
            help=summary,
            description=f"{summary[:1].upper()}{summary[1:]}.",
            epilog=_EPILOGS[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(run=_later(home, name))
        return made

    _explain(command("explain", "explain", "explain one output of a network for an image"))
    _layers(command("layers", "layers", "show the maps of all layers, from one pass"))
    _evaluate(command("evaluate", "evaluate", "say how far a map can be trusted, with a report"))
    methods = command("methods", "describe", "list the attribution methods, or describe one")
    methods.add_argument("name", nargs="?", metavar="NAME", help="method to describe")
    model = command("model", "describe", "describe a model file")
    model.add_argument(
        "model",
        metavar="PATH",
        help="bundle or nnU-Net folder, .zip, or a .ts, .pt2, .pt, .pth, .safetensors file",
    )
    _model_options(model)
    model.add_argument("--layers", action="store_true", help="list the layers and their shapes")
    model.add_argument(
        "--shape", nargs=4, type=int, metavar=("C", "I", "J", "K"), help="input shape for --layers"
    )
    regions = command("regions", "regions", "summarise an existing map in segments")
    regions.add_argument(
        "--map", required=True, type=Path, metavar="FILE", help="map of one channel"
    )
    _segments(regions, required=True)
    regions.add_argument("--output", type=Path, metavar="FILE.csv", help="write the table here")
    study = command("study", "study", "run a published system end to end, and compare with it")
    study.add_argument("name", nargs="?", metavar="NAME", help="left out: list the studies")
    _study(study)
    demo = command("demo", "demo", "explain the small model that comes with this project")
    demo.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for the results"
    )
    demo.add_argument("--image", type=Path, metavar="FILE", help="another T1-weighted head")
    demo.add_argument("--quick", action="store_true", help="one target and fewer steps")
    return parser


def _later(home: str, name: str) -> Callable[[Any], None]:
    """Import a command when it is called."""

    def run(options: Any) -> None:
        getattr(importlib.import_module(f".{home}", __package__), f"run_{name}")(options)

    return run


def _explain(parser: argparse.ArgumentParser) -> None:
    _model_and_image(parser)
    add = parser.add_argument
    add("--method", required=True, metavar="NAME", help="see: methods")
    add("--param", action="append", default=[], metavar="KEY=VALUE", help="parameter of the method")
    add("--fast", action="store_true", help="bfloat16 where a check finds it faster and alike")
    add("--batch", type=int, metavar="N", help="images or windows at a time; left out: what fits")
    _target(parser)
    results = _results(parser)
    add = results.add_argument
    add("--scene", action="store_true", help="also write scene.mrb for 3D Slicer")
    add("--window", nargs=2, type=float, metavar=("LOW", "HIGH"), help="grey values of overlay.png")
    add("--no-figure", action="store_true", help="no overlay.png (needs no matplotlib)")


def _layers(parser: argparse.ArgumentParser) -> None:
    _model_and_image(parser)
    add = parser.add_argument
    add("--method", default="grad_cam", metavar="NAME", help="grad_cam (default), hires_cam, ...")
    add("--layers", metavar="A,B,...", help="layers by name; left out: all with features")
    _target(parser)
    results = _results(parser)
    add = results.add_argument
    add("--plane", choices=("axial", "coronal", "sagittal"), default="axial", help="of layers.png")
    add("--no-figure", action="store_true", help="no layers.png (needs no matplotlib)")


def _evaluate(parser: argparse.ArgumentParser) -> None:
    _model_and_image(parser)
    add = parser.add_argument
    add("--method", metavar="NAME", help="see: methods; left out: the best of --methods")
    add("--param", action="append", default=[], metavar="KEY=VALUE", help="parameter of --method")
    _target(parser)
    checks = parser.add_argument_group("what is measured")
    add = checks.add_argument
    add("--metrics", metavar="A,B,...", help="by name, or usual (default), quick, all")
    changed = "parameter of a metric, for example deletion.steps=5"
    add("--metric-param", action="append", default=[], metavar="METRIC.KEY=VALUE", help=changed)
    add("--methods", metavar="A,B,...", help="rank these methods: which one should I use here?")
    add(
        "--sanity",
        nargs="?",
        const="cascading",
        choices=("cascading", "independent"),
        help="whether the map depends on what the network learned: randomise its weights",
    )
    add("--draws", type=_count, default=3, metavar="N", help="random networks a stage (default 3)")
    add("--repeatability", action="store_true", help="run the method again on changed scans")
    add("--truth", type=Path, metavar="LABELMAP", help="evidence that is known to be right (> 0)")
    results = _results(parser)
    add = results.add_argument
    add("--window", nargs=2, type=float, metavar=("LOW", "HIGH"), help="grey values of the maps")


def _study(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", type=Path, metavar="DIR", help="folder for results, and to go on from")
    add("--quick", action="store_true", help="a small version, under two minutes")
    add("--seed", type=int, default=1, metavar="N", help="of all that is random (default 1)")
    add("--restart", action="store_true", help="forget what an earlier run left in the folder")
    add("--scene", action="store_true", help="also write scene.mrb for 3D Slicer")


def _model_and_image(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="M",
        help="bundle or nnU-Net folder, .zip, or a .ts, .pt2, .pt, .pth, .safetensors file",
    )
    _model_options(parser)
    add(
        "--image",
        required=True,
        nargs="+",
        metavar="F",
        help="volume file or folder of DICOM slices; several are channels, or CHANNEL=F for each",
    )
    add("--resample", action="store_true", help="interpolate volumes onto the first one's grid")
    add("--series", metavar="NAME", help="series of a DICOM folder: number, description or UID")
    add("--frame", type=int, metavar="N", help="one frame of a 4-D file, from 0; left out: all")
    add("--fill", type=float, metavar="VALUE", help="put this in place of NaN and infinity")


def _target(parser: argparse.ArgumentParser) -> None:
    target = parser.add_argument_group("target: what is explained")
    add = target.add_argument
    add("--target", metavar="OUTPUT", help="output by name or number; left out where there is one")
    add("--region", choices=REGIONS, help="where; left out: prediction, or what was given below")
    add("--segment", metavar="N", help="region: label (or name) in --segments")
    add("--point", nargs=3, type=float, metavar=("R", "A", "S"), help="region: position, RAS mm")
    instance = "region: connected part of the prediction, 1 is the largest"
    add("--instance", type=int, metavar="N", help=instance)
    corners = ("RMIN", "AMIN", "SMIN", "RMAX", "AMAX", "SMAX")
    add("--roi", nargs=6, type=float, metavar=corners, help="region: box, RAS mm")
    add("--score", choices=SCORES, help="left out: logit, for regression value")
    add("--reduce", choices=REDUCTIONS, default="mean", help="how the region's voxels are joined")
    add("--contrast", metavar="OUTPUT", help="output that is subtracted, or runner_up")
    _segments(parser, required=False)


def _results(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    results = parser.add_argument_group("results")
    results.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for the results"
    )
    return results


def _model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    add = group.add_argument
    add("--trust", action="store_true", help="allow code in the model file to run")
    add("--task", choices=TASKS, help="for a model file that does not say it")
    add("--labels", type=_listed, metavar="A,B,...", help="names of the outputs")
    add("--channels", type=_listed, metavar="A,B,...", help="names of the input channels")
    add("--network", metavar="PKG.MOD:FACTORY", help="network of a state dict")
    add("--network-arguments", type=_object, metavar="JSON", help='for example {"in_channels": 1}')
    add("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps; left out: the GPU there is")


def _segments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    group = parser.add_argument_group("segments")
    add = group.add_argument
    add(
        "--segments",
        required=required,
        type=Path,
        metavar="LABELMAP",
        help="for the region table" + ("" if required else "; 'prediction': what the model finds"),
    )
    add(
        "--segment-names",
        type=Path,
        metavar="FILE",
        help=".csv (label,name) or .json ({label: name})",
    )


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object such as {{...}}")
    return value


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on is needed; {text!r} was given")
    return int(text)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))
