"""``evaluate``: how far a map can be trusted, as numbers, tables and a report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MethodError
from .output import Progress, StagedFolder, json_values, print_json, say
from .plan import GROUPS, Plan, make_plan
from .question import load_options, read_region, read_segments, read_target

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from ..explanation import Explanation
    from ..methods import Method
    from ..model import Model
    from ..quality import Comparison, Evaluation, Ranking, SanityCheck
    from ..regions import RegionTable
    from ..report import Verdict
    from ..target import Target

__all__ = ["run_evaluate"]

#: Names of this command's results; those of an earlier run are replaced.
_RESULTS = (
    r"report\.html|figures|explanation|evaluation\.json|"
    r"(metrics|regions|ranking|comparison)\.csv"
)
#: Of a comparison of methods; structural similarity of a whole-body scan takes minutes.
_MEASURES = ("spearman", "top_k_iou")

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
    evaluation: Evaluation
    sanity: SanityCheck | None
    ranking: Ranking | None
    comparison: Comparison | None
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
            found = _work(options, plan, asked, progress)
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
    from .. import load_model, read_image, read_labelmap

    image = read_image(options.image, resample=options.resample)
    model = load_model(options.model, trusted=options.trust, **load_options(options))
    labelmap, names = read_segments(options, model, image)
    target, mask = read_target(options, labelmap, names)
    truth = None if options.truth is None else read_labelmap(options.truth)
    return _Asked(model, image, target, labelmap, names, mask, truth)


def _work(options: Any, plan: Plan, asked: _Asked, progress: _Tell) -> _Found:
    """Run everything that was planned."""
    from .. import explain, region_table
    from ..quality import compare, evaluate, rank, sanity_check
    from ..report import verdict_of

    shares = plan.shares()
    question = (asked.model, asked.image, asked.target)
    ranking = comparison = sanity = None
    known: Evaluation | None = None
    method = plan.method
    if plan.methods:
        ranking = rank(
            *question,
            plan.methods,
            plan.ranking_metrics,
            truth=asked.truth,
            labelmap=asked.labelmap,
            progress=_part(progress, *shares["ranking"]),
        )
        name = _chosen(ranking, method)
        told, known = ranking.explanations[name], ranking.evaluations[name]
        method = next(one for one in plan.methods if one.name == told.method)
        comparison = compare(ranking.explanations, _MEASURES)
    elif method is not None:
        told = explain(*question, method, _part(progress, *shares["map"]))
    rest = [one for one in plan.metrics if not plan.methods or one not in plan.ranking_metrics]
    measured = None
    if rest:
        measured = evaluate(
            told,
            asked.model,
            asked.image,
            rest,
            asked.target,
            asked.truth,
            asked.labelmap,
            names=asked.names,
            method=method,
            progress=_part(progress, *shares["metrics"]),
        )
    evaluation = _merged(plan, measured, known)
    if options.sanity and method is not None:
        sanity = sanity_check(
            *question,
            method,
            options.sanity,
            groups=GROUPS,
            draws=options.draws,
            progress=_part(progress, *shares["sanity"]),
        )
    progress(1.0, "writing")
    labelmap = asked.labelmap
    return _Found(
        explanation=told,
        regions=None if labelmap is None else region_table(told, labelmap, asked.names),
        evaluation=evaluation,
        sanity=sanity,
        ranking=ranking,
        comparison=comparison,
        verdict=verdict_of(told, evaluation, sanity),
    )


def _chosen(ranking: Ranking, method: Method | None) -> str:
    """Name, in the ranking, of the method that the report is about."""
    if method is None:
        return ranking.methods[0].name
    for name, one in ranking.explanations.items():
        if one.method == method.name:
            return name
    # A method with a layer has its name behind it.
    reasons = [reason for name, reason in ranking.failed if name.split(" ")[0] == method.name]
    told = reasons[0] if reasons else "it could not be run."
    raise MethodError(f"{method.title}, the method of the report, failed: {told}")


def _merged(plan: Plan, measured: Evaluation | None, known: Evaluation | None) -> Evaluation:
    """Rows of both in the order of the plan; what the ranking measured is not measured again."""
    made = [one for one in (measured, known) if one is not None]
    rows = [row for one in made for row in one.rows]
    order = [one.name for one in plan.metrics]
    order += [one.name for one in plan.ranking_metrics if one.name not in order]
    return replace(
        made[0],
        rows=tuple(row for name in order for row in rows if row.metric.partition(".")[0] == name),
        seconds=sum(one.seconds for one in made),
        skipped=plan.skipped,
    )


def _part(report: _Tell, start: float, length: float) -> _Tell:
    """Progress of one step as a part of the whole."""
    return lambda fraction, message: report(start + length * fraction, message)


def _write(folder: Path, options: Any, plan: Plan, asked: _Asked, found: _Found) -> None:
    from .. import write_report

    tables: Mapping[str, Any] = {
        "metrics": found.evaluation,
        "regions": found.regions,
        "ranking": found.ranking,
        "comparison": found.comparison,
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
        evaluation=found.evaluation,
        sanity=found.sanity,
        ranking=found.ranking,
        comparison=found.comparison,
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
        "evaluation": found.evaluation.to_dict(),
        "sanity": None if found.sanity is None else found.sanity.to_dict(),
        "ranking": None if found.ranking is None else found.ranking.to_dict(),
        "comparison": None if found.comparison is None else found.comparison.to_dict(),
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
    say(found.evaluation.to_text())
    for name, reason in found.evaluation.skipped:
        say(f"  not measured: {name} ({reason})")
    for one in (found.regions, found.sanity, found.ranking, found.comparison):
        if one is not None:
            say()
            say(one.to_text())
