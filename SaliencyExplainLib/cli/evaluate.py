"""``evaluate``: how far a map can be trusted, as numbers, tables and a report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import Progress, StagedFolder, json_values, print_json, say
from .plan import Plan, make_plan
from .question import load_options, read_images, read_region, read_segments, read_target

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from ..explanation import Explanation
    from ..model import Model
    from ..quality import Appraisal
    from ..regions import RegionTable
    from ..report import Verdict
    from ..target import Target

__all__ = ["run_evaluate"]

#: Names of this command's results; those of an earlier run are replaced.
_RESULTS = (
    r"report\.html|figures|explanation|evaluation\.json|"
    r"(metrics|regions|ranking|comparison)\.csv"
)

_Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class _Asked:
    """The question, read."""

    model: Model
    image: MetaTensor
    target: Target
    labelmap: MetaTensor | None
    names: dict[int, str]
    mask: MetaTensor | None
    truth: MetaTensor | None


@dataclass(frozen=True)
class _Found:
    """The answers."""

    explanation: Explanation
    regions: RegionTable | None
    appraisal: Appraisal
    verdict: Verdict


def run_evaluate(options: Any) -> None:
    """Explain, measure, check, rank, and write everything together."""
    from ..figure import require_matplotlib
    from ..report import NAME

    read_region(options)  # refused before anything is loaded
    plan = make_plan(options)
    require_matplotlib()
    with StagedFolder(options.output, _RESULTS) as folder:
        with Progress(quiet=options.quiet) as progress:
            asked = _read(options)
            if not options.json:
                progress.say(plan.words())
            progress(0.0, "starting")
            found = _work(plan, asked, progress)
            _write(folder, options, plan, asked, found)
        files = sorted(path.relative_to(folder).as_posix() for path in _files(folder))
    if options.json:
        home = options.output.expanduser().absolute()
        print_json({**_record(plan, found), "output": home, "files": files})
        return
    _tell(found)
    say(f"Written to {options.output}: {', '.join(files)}")
    say(f"Open {options.output / NAME} in a browser, and print it from there.")


def _read(options: Any) -> _Asked:
    from .. import load_model, read_labelmap

    model = load_model(options.model, trusted=options.trust, **load_options(options))
    image = read_images(options, model)
    labelmap, names = read_segments(options, model, image)
    target, mask = read_target(options, labelmap, names)
    truth = None if options.truth is None else read_labelmap(options.truth)
    return _Asked(model, image, target, labelmap, names, mask, truth)


def _work(plan: Plan, asked: _Asked, progress: _Tell) -> _Found:
    """Run everything that was planned."""
    from .. import region_table
    from ..quality import appraise
    from ..report import verdict_of

    told, found = appraise(
        plan,
        asked.model,
        asked.image,
        asked.target,
        truth=asked.truth,
        labelmap=asked.labelmap,
        names=asked.names,
        progress=progress,
    )
    progress(1.0, "writing")
    labelmap = asked.labelmap
    return _Found(
        explanation=told,
        regions=None if labelmap is None else region_table(told, labelmap, asked.names),
        appraisal=found,
        verdict=verdict_of(told, found.evaluation, found.sanity),
    )


def _write(folder: Path, options: Any, plan: Plan, asked: _Asked, found: _Found) -> None:
    from .. import write_report

    tables: Mapping[str, Any] = {
        "metrics": found.appraisal.evaluation,
        "regions": found.regions,
        "ranking": found.appraisal.ranking,
        "comparison": found.appraisal.comparison,
    }
    for name, one in tables.items():
        if one is not None:
            (folder / f"{name}.csv").write_text(one.to_csv(), encoding="utf-8")
    found.explanation.save(folder / "explanation")
    text = json.dumps(json_values(_record(plan, found)), indent=2, allow_nan=False)
    (folder / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    outline, named = asked.truth, "ground truth"
    if outline is None:
        outline, named = asked.mask, f"segment {options.segment}"
    write_report(
        found.explanation,
        asked.image,
        folder,
        regions=found.regions,
        **vars(found.appraisal),
        contour=outline,
        contour_name=named,
        window=None if options.window is None else tuple(options.window),
    )


def _record(plan: Plan, found: _Found) -> dict[str, Any]:
    """Everything but maps, as JSON values."""
    return {
        "verdict": found.verdict.to_dict(),
        "explanation": found.explanation.to_dict(),
        "regions": None if found.regions is None else [asdict(row) for row in found.regions.rows],
        **found.appraisal.to_dict(),
        "planned": {"passes": plan.passes, "steps": [asdict(step) for step in plan.steps]},
    }


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _tell(found: _Found) -> None:
    """Say what was found, the verdict first."""
    verdict = found.verdict
    say(f"{verdict.headline}. {verdict.sentence}")
    for warning in verdict.warnings:
        say(f"  note: {warning}")
    for check in verdict.checks:
        say(f"  {check.state:<9} {check.name}: {check.sentence}")
    say()
    measured = found.appraisal
    if measured.evaluation is not None:
        say(measured.evaluation.to_text())
        for name, reason in measured.evaluation.skipped:
            say(f"  not measured: {name} ({reason})")
    for one in (found.regions, measured.sanity, measured.ranking, measured.comparison):
        if one is not None:
            say()
            say(one.to_text())
