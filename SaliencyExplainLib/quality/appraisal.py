"""Everything that is found on one map, together: the work of a plan, and its record.

Shell and worker do the work with :func:`appraise`. The record is plain data: panel and scene read
it back without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import MethodError, MetricError
from .comparison import Comparison, compare
from .decoding import comparison_from, evaluation_from, ranking_from, sanity_from
from .evaluation import Evaluation, evaluate
from .method_ranking import Ranking, rank
from .plan import GROUPS, Plan
from .randomisation import sanity_check
from .sanity_verdict import SanityCheck
from .trial import method_of

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from ..explanation import Explanation
    from ..methods import Method
    from ..model import Model
    from ..target import Target
    from ..volume import Volume

__all__ = ["Appraisal", "appraise"]

#: Of a comparison of methods; structural similarity of a whole-body scan takes minutes.
_MEASURES = ("spearman", "top_k_iou")

_Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class Appraisal:
    """What was found on a map; None for what was not asked.

    Attributes
    ----------
    evaluation : Evaluation or None
    sanity : SanityCheck or None
    ranking : Ranking or None
    comparison : Comparison or None
        Of the ranked maps.
    """

    evaluation: Evaluation | None = None
    sanity: SanityCheck | None = None
    ranking: Ranking | None = None
    comparison: Comparison | None = None

    def updated(self, newer: Appraisal) -> Appraisal:
        """Take each part that `newer` has from there."""
        found = {name: one for name, one in vars(newer).items() if one is not None}
        return replace(self, **found)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without maps."""
        return {
            name: None if one is None else one.to_dict()
            for name, one in (
                ("evaluation", self.evaluation),
                ("sanity", self.sanity),
                ("ranking", self.ranking),
                ("comparison", self.comparison),
            )
        }

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Appraisal:
        """Read what :meth:`to_dict` gave.

        Raises
        ------
        MetricError
            If this is no such record.
        """
        readers: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "evaluation": evaluation_from,
            "sanity": sanity_from,
            "ranking": ranking_from,
            "comparison": comparison_from,
        }
        try:
            found = {name: facts.get(name) for name in readers}
            made = {
                name: None if one is None else readers[name](one) for name, one in found.items()
            }
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise MetricError(
                f"This is no record of what was found on a map ({type(error).__name__}: {error}). "
                "Measure again."
            ) from error
        return cls(**made)


def appraise(
    plan: Plan,
    model: Model,
    image: MetaTensor,
    target: Target | None = None,
    explanation: Explanation | None = None,
    *,
    truth: MetaTensor | Volume | None = None,
    labelmap: MetaTensor | Volume | None = None,
    names: Mapping[int, str] | None = None,
    fast: bool = False,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> tuple[Explanation, Appraisal]:
    """Do what was planned.

    Parameters
    ----------
    plan : Plan
        From :func:`SaliencyExplainLib.quality.plan.plan_work`.
    model, image, target
        What is explained.
    explanation : Explanation, optional
        The map; made by the plan's method when left out. With a ranking: the best method's.
    truth, labelmap, names
        As for :func:`evaluate`.
    fast : bool
        As for :func:`SaliencyExplainLib.explain`, for the map.
    progress, cancelled : callable, optional
        As for :func:`evaluate`; all steps together are one progress.

    Returns
    -------
    Explanation, Appraisal

    Raises
    ------
    MethodError
        If the plan names no method and no map is given, or the method of the report failed.
    MetricError
        As :func:`evaluate`, :func:`rank` and :func:`sanity_check`.
    """
    from ..run import explain

    shares, tell = plan.shares(), progress or _silent
    question = (model, image, target)
    known, ranking, told, method = None, None, explanation, plan.method
    comparison = None
    if plan.methods:
        ranking = rank(
            *question,
            plan.methods,
            plan.ranking_metrics,
            truth=truth,
            labelmap=labelmap,
            progress=_part(tell, *shares["ranking"]),
            cancelled=cancelled,
        )
        comparison = compare(ranking.explanations, _MEASURES)
        if told is None:
            name = _chosen(ranking, method)
            told, known = ranking.explanations[name], ranking.evaluations[name]
            method = next(one for one in plan.methods if one.name == told.method)
    if told is None:
        if method is None:
            raise MethodError("Name the method that makes the map, or give the map.")
        told = explain(*question, method, _part(tell, *shares["map"]), cancelled, fast=fast)
    measured = None
    rest = [one for one in plan.metrics if known is None or one not in plan.ranking_metrics]
    if rest:
        measured = evaluate(
            told,
            model,
            image,
            rest,
            target,
            truth,
            labelmap,
            names=names,
            method=method,
            progress=_part(tell, *shares.get("metrics", (0.0, 0.0))),
            cancelled=cancelled,
        )
    sanity = None
    if plan.sanity:
        sanity = sanity_check(
            *question,
            method_of(told) if method is None else method,
            plan.sanity,
            groups=GROUPS,
            draws=plan.draws,
            progress=_part(tell, *shares["sanity"]),
            cancelled=cancelled,
        )
    evaluation = _merged(plan, measured, known)
    return told, Appraisal(evaluation, sanity, ranking, comparison)


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


def _merged(plan: Plan, measured: Evaluation | None, known: Evaluation | None) -> Evaluation | None:
    """Rows of both in the order of the plan; what the ranking measured is not measured again."""
    made = [one for one in (measured, known) if one is not None]
    if not made:
        return None
    rows = [row for one in made for row in one.rows]
    order = [one.name for one in plan.metrics]
    order += [one.name for one in plan.ranking_metrics if one.name not in order]
    return replace(
        made[0],
        rows=tuple(row for name in order for row in rows if row.metric.partition(".")[0] == name),
        seconds=sum(one.seconds for one in made),
        skipped=plan.skipped,
    )


def _silent(_fraction: float, _message: str) -> None:
    """Nobody listens."""


def _part(report: _Tell, start: float, length: float) -> _Tell:
    """Progress of one step as a part of the whole."""
    return lambda fraction, message: report(start + length * fraction, message)
