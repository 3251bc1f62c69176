"""The jobs about trust: what was found on a map, and the page that tells it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WorkerError
from ..explanation import Explanation
from ..quality.plan import Plan, plan_work
from .jobs import RESULT, read_result, write_result
from .protocol import Evaluate, Report
from .questions import image_of, image_or_none, method_of, target_of

if TYPE_CHECKING:
    from ..model import Model

__all__ = ["Work", "appraise_map", "planned", "write_page"]

#: What the arguments of a plan are called in a request.
_WORDS = {
    "methods": "methods",
    "method": "method",
    "metrics": "metrics",
    "metric_parameters": "metric_parameters",
    "truth": "a mask of the evidence (truth)",
    "labelmap": "segments",
}


@dataclass(frozen=True)
class Work:
    """A request that has been looked at: what is to be done, and the map, if it is given."""

    plan: Plan
    explanation: Explanation | None


def planned(request: Evaluate) -> Work:
    """Look at a request before anything is loaded.

    Raises
    ------
    WorkerError
        If it names nothing that makes a map, or its explanation cannot be read.
    MethodError, MetricError
        If it asks for what does not exist or go together.
    """
    method = method_of(request.method, request.parameters) if request.method else None
    told = None
    if request.explanation:
        told = _given(request.explanation)
        if method is None and not request.parameters:
            method = _of_record(told)
    elif method is None and not request.methods:
        raise WorkerError(
            "An evaluation needs a map (explanation), the method that makes it (method), or "
            "several methods to choose from (methods)."
        )
    plan = plan_work(
        method,
        list(request.methods),
        request.metrics if isinstance(request.metrics, str) else list(request.metrics),
        request.metric_parameters,
        has_truth=request.truth is not None,
        has_labelmap=request.segments is not None,
        has_map=told is not None,
        sanity=request.sanity,
        draws=request.draws,
        words=_WORDS,
    )
    if request.report:
        from ..figure import require_matplotlib

        require_matplotlib()
    return Work(plan, told)


def appraise_map(
    request: Evaluate,
    work: Work,
    model: Model,
    progress: Callable[[float, str], None],
    cancelled: Callable[[], bool],
) -> dict[str, Any]:
    """Measure, check and rank, and write the result; what is told at once.

    Raises
    ------
    SaliencyExplainError
        With a sentence for people.
    """
    from ..quality import appraise
    from ..regions import region_table
    from ..report import verdict_of, write_report

    image, labelmap = image_of(request.image), image_or_none(request.segments)
    truth, names = image_or_none(request.truth), request.segment_names
    told, found = appraise(
        work.plan,
        model,
        image,
        target_of(request.question),
        work.explanation,
        truth=truth,
        labelmap=labelmap,
        names=names,
        fast=request.fast,
        progress=progress,
        cancelled=cancelled,
    )
    regions = None if labelmap is None else region_table(told, labelmap, names)
    files: list[Path] = []
    if request.report:
        progress(1.0, "drawing")
        files = write_report(
            told,
            image,
            request.report,
            regions=regions,
            contour=truth,
            contour_name="ground truth",
            **vars(found),
        )
    # A map that was given is there already.
    given = work.explanation is not None
    write_result(request.output, None if given else told, regions, appraisal=found)
    return {
        "verdict": verdict_of(told, found.evaluation, found.sanity).to_dict(),
        "planned": work.plan.passes,
        "report": [str(file) for file in files],
    }


def write_page(request: Report) -> dict[str, Any]:
    """Write what a result holds as a page.

    Raises
    ------
    WorkerError
        If the result holds no explanation.
    SaliencyExplainError
        If the folder cannot be written, or matplotlib is missing.
    """
    from ..report import write_report

    found = read_result(request.result)
    if found.explanation is None:
        raise WorkerError("The result holds no explanation. Give one that a run has written.")
    if not request.folder:
        raise WorkerError("The report needs a folder. Name one that can be written.")
    files = write_report(
        found.explanation,
        image_of(request.image),
        request.folder,
        regions=found.regions,
        contour=image_or_none(request.contour),
        contour_name=request.contour_name,
        **({} if found.appraisal is None else vars(found.appraisal)),
    )
    return {"folder": request.folder, "files": [str(file) for file in files]}


def _given(folder: str) -> Explanation:
    """The map of a result, or one that was saved."""
    if not (Path(folder) / RESULT).is_file():
        return Explanation.load(folder)
    told = read_result(folder).explanation
    if told is None:
        raise WorkerError(f"The result in {folder!r} holds no explanation.")
    return told


def _of_record(told: Explanation) -> Any:
    """Method of a record, where it holds all parameters; None where a metric has to say so."""
    from ..errors import MetricError
    from ..quality.trial import method_of as recorded

    try:
        return recorded(told)
    except MetricError:
        return None
