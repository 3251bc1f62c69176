"""Which methods can be trusted where the truth is known: methods x metrics on made-up nodules.

Every case is a scene of ``SaliencyExplainLib.studies.spiculated_nodules`` that the model
``SpiculatedNodules`` was not trained on. What is explained: the mean logit of "spiculated nodule"
over its prediction. The evidence for it is known: the spicules (label 2), which no label contains,
and the bodies that carry them (label 3); plain nodules (label 1) are bait. Writes a table of means
with 95 % intervals (bootstrap over cases) to Testing/Benchmarks/trust.md (or --output).

    python Testing/Benchmarks/trust.py [--cases 30] [--first 0] [--only gradient ...]

What was measured is kept in build/trust (or --cache), so that a run that was stopped goes on where
it was, and several may share the work by --first; other weights or settings start anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from measure import processor
from scipy.ndimage import gaussian_filter

import SaliencyExplainLib as sx
from SaliencyExplainLib import quality
from SaliencyExplainLib.studies import SpiculatedNodules, spiculated_nodules

HERE = Path(__file__).parent
BUNDLE = HERE.parents[1] / "SaliencyExplain/Resources/Models/SpiculatedNodules"
SIZE = 64
TARGET = sx.Target(output="spiculated nodule", region="prediction", score="logit", reduce="mean")

#: Second of the encoder's layers, half the resolution of the image.
ENCODER = "model.1.submodule.0.adn.A"
#: Method and its settings where they are not the usual ones: cheap ones, for many cases.
METHODS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("gradient", {}),
    ("input_x_gradient", {}),
    ("guided_backprop", {}),
    ("deconvnet", {}),
    ("integrated_gradients", {"steps": 8}),
    ("smooth_grad", {"samples": 6}),
    ("gradient_shap", {"samples": 6}),
    ("deep_lift", {}),
    ("lrp", {}),
    ("grad_cam", {}),
    ("grad_cam_plus_plus", {}),
    ("xgrad_cam", {}),
    ("hires_cam", {}),
    ("layer_cam", {}),
    ("seg_xres_cam", {}),
    ("guided_grad_cam", {}),
    ("eigen_cam", {}),
    ("score_cam", {}),
    ("ablation_cam", {}),
    ("kernel_weighted_contribution", {}),
    # Before anything was put together: where the spicules are seen.
    ("grad_cam", {"layer": ENCODER}),
    ("kernel_weighted_contribution", {"layer": ENCODER}),
    ("smooth_attention_mask", {"steps": 20}),
    ("occlusion", {"box_mm": 32.0, "stride": 1.0}),
    ("rise", {"masks": 32, "cell_mm": 16.0}),
    ("region_ablation", {}),
)

#: Metrics, made once; their parameters are part of what was measured.
METRICS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("attribution_quality", {}),
    ("relevance_mass", {}),
    ("relevance_rank", {}),
    ("pointing_game", {}),
)


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Parameters
    ----------
    key : str
        Of the measured value.
    title : str
        Its heading.
    digits : int
        Behind the point.
    """

    key: str
    title: str
    digits: int = 2


QUALITY = (
    Column("attribution_quality", "AQ"),
    Column("attribution_quality.prediction_preserved", "PP"),
    Column("attribution_quality.relative_entropy", "RE"),
    Column("attribution_quality.relative_foreground", "RFA"),
    Column("attribution_quality.external_peaks", "EPA"),
)
PLACE = (
    Column("relevance_mass", "mass"),
    Column("relevance_rank", "rank"),
    Column("pointing_game", "pointing"),
    Column("density.2", "spicules"),
    Column("density.3", "bodies"),
    Column("density.1", "bait"),
    Column("seconds", "CPU s"),
)

Control = Callable[[SpiculatedNodules, np.random.Generator], np.ndarray]


def _smooth(_: SpiculatedNodules, chance: np.random.Generator) -> np.ndarray:
    field = gaussian_filter(chance.standard_normal((SIZE,) * 3), 3.0, mode="wrap")
    return field - field.min()


#: Maps that no method made, (I, J, K), 0 or more.
CONTROLS: dict[str, Control] = {
    "even map": lambda *_: np.ones((SIZE,) * 3),
    "random voxels": lambda _, chance: chance.random((SIZE,) * 3),
    "random, smooth": _smooth,
    "the image, brightness above 0": lambda scene, _: scene.image.numpy()[0].clip(0),
    "the truth": lambda scene, _: scene.evidence.numpy()[0],
}


def as_explanation(values: np.ndarray, like: sx.Explanation, title: str) -> sx.Explanation:
    """Return a map that no method made, in the place of one that a method made.

    Parameters
    ----------
    values : numpy.ndarray, shape (I, J, K)
        0 or more.
    like : Explanation
        Of the same image and target.
    title : str
        For people.
    """
    made = sx.make_image(values, like.maps.affine)
    return replace(
        like,
        maps=made,
        network_maps=made,
        layer_map=None,
        method=title,
        title=title,
        unit="relative",
        signed=False,
        warnings=(),
    )


def evaluated(
    explanation: sx.Explanation, model: sx.Model, scene: SpiculatedNodules
) -> dict[str, float | None]:
    """Measure one map.

    Parameters
    ----------
    explanation : Explanation
        Of the scene's image.
    model : Model
        That was explained.
    scene : SpiculatedNodules
        Image and truth.

    Returns
    -------
    dict
        Value by metric; None where it is not defined.
    """
    found = quality.evaluate(
        explanation,
        model,
        scene.image,
        [quality.make_metric(name, parameters) for name, parameters in METRICS],
        TARGET,
        truth=scene.evidence,
        labelmap=scene.labels,
        names=scene.names,
    )
    values = {row.metric: row.value for row in found.rows}
    table = sx.region_table(explanation, scene.labels, scene.names)
    # A scene may have no plain nodule.
    present = {row.label: row.density_ratio for row in table.rows if row.voxels}
    for label in scene.names:
        values[f"density.{label}"] = present.get(label)
    return values


class Cache:
    """What was measured in one case, a file each.

    Parameters
    ----------
    folder : Path
        Is made.
    seed : int
        The case.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / f"{seed:04d}.json"
        self.rows: dict[str, dict[str, float | None]] = {}
        if self._file.exists():
            self.rows = json.loads(self._file.read_text("utf-8"))

    def keep(self, name: str, values: dict[str, float | None]) -> None:
        """Keep a row; a stop while it is written leaves the old file."""
        self.rows[name] = values
        draft = self._file.with_suffix(".part")
        draft.write_text(json.dumps(self.rows, indent=1), "utf-8")
        draft.replace(self._file)


def fingerprint(bundle: Path) -> str:
    """Short hash of all that decides what is measured, but for the library's own code."""
    told = json.dumps([METRICS, SIZE, repr(TARGET)], sort_keys=True)
    weights = (bundle / "models/model.pt").read_bytes()
    return hashlib.sha256(weights + told.encode()).hexdigest()[:12]


def labelled(name: str, parameters: Mapping[str, Any]) -> str:
    """Name of a method with its settings, as in the table."""
    told = ", ".join(
        f"{key} {value}" if isinstance(value, str) else f"{key} {value:g}"
        for key, value in parameters.items()
    )
    return f"{name} ({told})" if told else name


def run_case(model: sx.Model, seed: int, cache: Cache, only: Sequence[str]) -> None:
    """Measure all methods and controls of one case that are not in the cache.

    Parameters
    ----------
    model : Model
        The nodule model.
    seed : int
        Of the scene.
    cache : Cache
        Is filled.
    only : sequence of str
        Names of methods; all when empty.
    """
    scene = spiculated_nodules(SIZE, seed)
    for name, parameters in METHODS:
        label = labelled(name, parameters)
        if label in cache.rows or (only and name not in only):
            continue
        started = time.process_time()
        explanation = sx.explain(model, scene.image, TARGET, name, **parameters)
        seconds = time.process_time() - started
        cache.keep(label, {"seconds": seconds, **evaluated(explanation, model, scene)})
    missing = [name for name in CONTROLS if name not in cache.rows]
    if missing:
        like = sx.explain(model, scene.image, TARGET, "gradient")
    for name in missing:
        values = CONTROLS[name](scene, np.random.default_rng(seed))
        made = as_explanation(values, like, name)
        cache.keep(name, {"seconds": None, **evaluated(made, model, scene)})


def interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """95 % percentile interval of the mean, by drawing cases with replacement.

    Parameters
    ----------
    values : sequence of float
        One a case.
    draws : int
        Number of draws; their seed is fixed.
    """
    chosen = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    low, high = np.percentile(np.asarray(values)[chosen].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _cell(values: Sequence[float | None], column: Column, cases: int) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return ""
    text = f"{fmean(there):.{column.digits}f}"
    if column.key != "seconds":
        low, high = interval(there)
        text += f" ({low:.{column.digits}f} to {high:.{column.digits}f})"
    # Bait is missing in cases without a plain nodule; that is no failure of a method.
    if len(there) < cases and not column.key.startswith("density"):
        text += f" n={len(there)}"
    return text


def _measured(cases: Sequence[Cache]) -> list[str]:
    """Methods that were measured in all cases."""
    names = [labelled(*one) for one in METHODS]
    return [name for name in names if all(name in case.rows for case in cases)]


def _rows(cases: Sequence[Cache], columns: Sequence[Column]) -> list[str]:
    names = sorted(_measured(cases), key=lambda name: -fmean(_of(cases, name, "relevance_rank")))
    lines = [
        "| map | " + " | ".join(column.title for column in columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for name in [*names, *CONTROLS]:
        cells = [
            _cell([case.rows[name][column.key] for case in cases], column, len(cases))
            for column in columns
        ]
        shown = f"*{name}*" if name in CONTROLS else name
        lines.append(f"| {shown} | " + " | ".join(cells) + " |")
    return lines


def _of(cases: Sequence[Cache], name: str, key: str) -> list[float]:
    found = [case.rows[name][key] for case in cases]
    return [value for value in found if value is not None] or [0.0]


_TEXT = """# How far the methods can be trusted where the truth is known

{cases} scenes with 8 nodules each (`spiculated_nodules`, {size}^3 voxels of 2 mm, seeds {first} to
{last}, none of them trained on), half of the nodules with spicules. The model SpiculatedNodules
segments the bodies of those with spicules; its Dice on these scenes is {dice:.3f}. Explained: the
mean logit of "spiculated nodule" over its prediction. Evidence: spicules and the bodies that carry
them, {share:.1%} of the volume on average. Plain nodules are bait.

Mean over the scenes (95 % interval of the mean: bootstrap over scenes, 2000 draws). Maps are in the
order of their rank accuracy; those in italics were made by no method. `n=` says in how many scenes
a value was defined, where not in all. CAMs without a layer in brackets look at the one that they
choose by themselves, {layer}. The other settings in brackets are cheaper than the usual ones:
occlusion, RISE and region ablation are so coarse here that their rows say nothing of finer ones.

Made by `python Testing/Benchmarks/trust.py --cases {cases}` (weights and metrics: {made_of}).
{machine}

## Faithfulness: what the network makes of the image seen through the map

AQ = PP / RE + RFA (1 + EPA), Attribution Quality (even map: exactly 1; higher is better, but tiny
masks inflate it, so read its parts). PP: prediction preserved. RE: information left in the image
(lower is better). RFA: how much higher the map is in the bodies than in the background. EPA: part
of the highest 1 % outside of the bodies, as peaks, that hits spicules; the truth has none, for more
than 1 % of it are highest.

{quality}

## Place: whether the map is high where the evidence is

Mass: part of the map's evidence inside spicules and carrying bodies. Rank: part of the highest
voxels, as many as the evidence has, that lies in it. Pointing: how often the highest voxel lies in
it. Spicules, bodies, bait: density of |map| there over its mean density (even map: 1). CPU s: of
making one map, on one thread. A voxel that spicules fill by less than half has no label, so a right
map has some of its mass just outside of the evidence, too.

{place}

## Reading

{reading}
"""


def _surely_above(
    cases: Sequence[Cache], key: str, than: Callable[[Cache, str], float | None]
) -> list[str]:
    """Methods whose value, minus another of the same scene, has an interval above 0."""
    found = []
    for name in _measured(cases):
        pairs = [(case.rows[name][key], than(case, name)) for case in cases]
        apart = [a - b for a, b in pairs if a is not None and b is not None]
        if apart and interval(apart)[0] > 0:
            found.append(name)
    return found


def _reading(cases: Sequence[Cache]) -> str:
    even = [case.rows["even map"]["attribution_quality"] for case in cases]
    total = len(_measured(cases))
    better = _surely_above(cases, "attribution_quality", lambda *_: 1.0)
    image = _surely_above(
        cases,
        "relevance_rank",
        lambda case, _: case.rows["the image, brightness above 0"]["relevance_rank"],
    )
    find = _surely_above(cases, "density.2", lambda case, name: case.rows[name]["density.1"])
    outside = _surely_above(cases, "density.2", lambda case, name: case.rows[name]["density.3"])
    return "\n".join(
        [
            f"- AQ of the even map: {min(even)!r} to {max(even)!r}.",
            _told("AQ is above 1, the even map's, for", better, total),
            _told("Rank accuracy is above that of the image's own brightness for", image, total),
            _told("Spicules are denser than bait for", find, total),
            _told("Spicules are denser than the bodies that carry them for", outside, total),
            "",
            "Above and denser: the 95 % interval of the paired difference over the scenes is "
            "above 0.",
        ]
    )


def _told(what: str, names: Sequence[str], total: int) -> str:
    return f"- {what} {len(names)} of {total} methods: {', '.join(names) or 'none'}."


def table(cases: Sequence[Cache], first: int, model: sx.Model, made_of: str) -> str:
    """Return the table as Markdown.

    Parameters
    ----------
    cases : sequence of Cache
        With all controls; methods that are not in all of them are left out.
    first : int
        Seed of the first case.
    model : Model
        The nodule model.
    made_of : str
        Fingerprint of weights and metrics.
    """
    shares, overlaps = [], []
    for seed in range(first, first + len(cases)):
        scene = spiculated_nodules(SIZE, seed)
        found = sx.predict(model, scene.image).numpy()[0] > 0
        target = scene.labels.numpy()[0] == scene.TARGET
        overlaps.append(2 * (found & target).sum() / (found.sum() + target.sum()))
        shares.append(scene.evidence.numpy().mean())
    return _TEXT.format(
        cases=len(cases),
        size=SIZE,
        first=first,
        last=first + len(cases) - 1,
        dice=fmean(overlaps),
        share=fmean(shares),
        layer=sx.explain(model, scene.image, TARGET, "grad_cam").layers[0],
        made_of=made_of,
        machine=f"{processor()}, {platform.system()}, torch {torch.__version__}, one thread.",
        quality="\n".join(_rows(cases, QUALITY)),
        place="\n".join(_rows(cases, PLACE)),
        reading=_reading(cases),
    )


def main() -> None:
    """Measure what is not in the cache, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=30, help="scenes (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="seed of the first scene")
    parser.add_argument("--only", nargs="*", default=[], help="methods to run; all when left out")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="folder of the model")
    parser.add_argument("--cache", type=Path, default=HERE.parents[1] / "build" / "trust")
    parser.add_argument("--output", type=Path, default=HERE / "trust.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = sx.load_model(arguments.bundle)
    made_of = fingerprint(arguments.bundle)
    cases = []
    for seed in range(arguments.first, arguments.first + arguments.cases):
        started = time.perf_counter()
        cases.append(Cache(arguments.cache / made_of, seed))
        run_case(model, seed, cases[-1], arguments.only)
        print(f"scene {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    arguments.output.write_text(table(cases, arguments.first, model, made_of), "utf-8")
    print(f"written: {arguments.output}")


if __name__ == "__main__":
    main()
