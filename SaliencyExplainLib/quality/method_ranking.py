"""Which method here? The same metrics on the user's own model, image and target, for each method.

Within a metric methods are ranked by value, best first; two whose 95 percent intervals overlap, or
whose values differ by less than 1 percent of the spread where there is no interval, share a rank.
The mean rank over the metrics orders the methods. How sure that order is: the metrics are drawn
1000 times with replacement; the interval of a mean rank, the part of the draws in which a method is
best, and which methods cannot be told from the best (their rank differs from its in fewer than 95
percent of the draws) are all told. With one metric there is nothing to draw.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import Cancelled, MetricError, SaliencyExplainError
from ..explanation import Explanation, write_text
from ..methods import Method, make_method
from .base import Metric, Row, finite, make_metric
from .evaluation import Evaluation, as_file, evaluate, labels_of
from .shared_ranks import shared_ranks
from .shares import Shares

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from ..model import Model
    from ..target import Target
    from ..volume import Volume

__all__ = ["RANKING_METRICS", "RankedMethod", "Ranking", "rank"]

#: What methods are ranked by when nothing is named.
RANKING_METRICS = ("deletion", "insertion", "road", "faithfulness_correlation")
_DRAWS = 1000
#: Passes of a method that does not know them beforehand, for the progress alone.
_UNKNOWN_PASSES = 50


@dataclass(frozen=True)
class RankedMethod:
    """One method in the ranking.

    Attributes
    ----------
    name, title : str
    mean_rank : float
        1 is best.
    interval : (low, high) or None
        95 percent interval of the mean rank; None with a single metric.
    best_share : float or None
        Part of the draws in which it has the best mean rank; ties share.
    tied : bool
        Whether it cannot be told from the best.
    ranks : mapping of metric to rank
    rows : mapping of metric to Row
    seconds, passes : float
        Of making the map, and the passes that the method announces (0 where unknown).
    """

    name: str
    title: str
    mean_rank: float
    interval: tuple[float, float] | None
    best_share: float | None
    tied: bool
    ranks: Mapping[str, float]
    rows: Mapping[str, Row]
    seconds: float
    passes: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "name": self.name,
            "title": self.title,
            "mean_rank": self.mean_rank,
            "interval": None if self.interval is None else list(self.interval),
            "best_share": self.best_share,
            "tied": self.tied,
            "ranks": {key: finite(one) for key, one in self.ranks.items()},
            "values": {key: finite(row.value) for key, row in self.rows.items()},
            "seconds": round(self.seconds, 3),
            "passes": self.passes,
        }


@dataclass(frozen=True)
class Ranking:
    """Methods, best first, and what that rests on.

    Attributes
    ----------
    methods : tuple of RankedMethod
    metrics : tuple of str
        Those that were defined for at least one method.
    answer : str
        The result in words.
    failed : tuple of (method, reason)
        Methods that could not be run here.
    explanations : mapping of name to Explanation
        The maps, to be shown or compared; ``evaluations`` likewise.
    undefined : tuple of (metric, reason)
        Metrics that are defined for none of the maps.
    """

    methods: tuple[RankedMethod, ...]
    metrics: tuple[str, ...]
    answer: str
    failed: tuple[tuple[str, str], ...]
    explanations: Mapping[str, Explanation]
    evaluations: Mapping[str, Evaluation]
    undefined: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without maps."""
        return {
            "answer": self.answer,
            "metrics": list(self.metrics),
            "methods": [one.to_dict() for one in self.methods],
            "failed": [{"method": name, "reason": reason} for name, reason in self.failed],
            "undefined": [{"metric": name, "reason": reason} for name, reason in self.undefined],
            "evaluations": {name: one.to_dict() for name, one in self.evaluations.items()},
        }

    def to_csv(self) -> str:
        """Return a row a method as CSV text."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        head = ["method", "mean_rank", "low", "high", "best_share", "tied", "seconds", "passes"]
        writer.writerow([*head, *self.metrics])
        for one in self.methods:
            numbers = [one.mean_rank, *(one.interval or (None, None)), one.best_share]
            values = [one.rows[name].value if name in one.rows else None for name in self.metrics]
            cells = ["" if value is None else f"{value:.6g}" for value in (*numbers, *values)]
            cost = [f"{one.seconds:.3f}", f"{one.passes:g}"]
            writer.writerow([one.name, *cells[:4], int(one.tied), *cost, *cells[4:]])
        return buffer.getvalue()

    def to_text(self) -> str:
        """Return the table for a terminal, with the answer."""
        head = f"{'method':<28}{'rank':>6}{'95 %':>13}{'seconds':>9}"
        lines = [head + "".join(f"{name[:14]:>16}" for name in self.metrics)]
        for one in self.methods:
            span = "" if one.interval is None else f"{one.interval[0]:.1f} to {one.interval[1]:.1f}"
            cells = []
            for name in self.metrics:
                value = one.rows[name].value if name in one.rows else None
                cells.append(f"{'-' if value is None else f'{value:.4g}':>16}")
            mark = "=" if one.tied and one is not self.methods[0] else ""
            lines.append(
                f"{one.name[:27]:<28}{one.mean_rank:>5.2f}{mark:<1}{span:>13}{one.seconds:>9.2f}"
                + "".join(cells)
            )
        left_out = [f"{name}: {reason}" for name, reason in (*self.failed, *self.undefined)]
        return "\n".join([*lines, *left_out, self.answer])

    def save(self, path: str | Path) -> Path:
        """Write ``.json`` (everything but maps) or ``.csv`` (a row a method).

        Raises
        ------
        SaliencyExplainError
            If the name ends otherwise, or the folder cannot be written.
        """
        path = Path(path)
        return write_text(path, as_file(path, self.to_dict(), self.to_csv))


def rank(
    model: Model,
    image: MetaTensor,
    target: Target | None,
    methods: Sequence[str | Method],
    metrics: Sequence[str | Metric] | None = None,
    *,
    truth: MetaTensor | Volume | None = None,
    labelmap: MetaTensor | Volume | None = None,
    seed: int = 0,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Ranking:
    """Answer "which method should I use here?" by numbers.

    Parameters
    ----------
    model, image, target, progress, cancelled
        As for :func:`SaliencyExplainLib.explain`.
    methods : sequence of str or Method
        At least two.
    metrics : sequence of str or Metric, optional
        Those with a better end; :data:`RANKING_METRICS` when left out.
    truth, labelmap : optional
        As for :func:`evaluate`.
    seed : int
        Of the draws of metrics.

    Returns
    -------
    Ranking
        A method that fails on this model is told in ``failed`` and does not stop the others.

    Raises
    ------
    MetricError
        If there are fewer than two methods, a metric has no better end, or fewer than two methods
        could be run.
    """
    from ..run import explain

    made = _distinct([one if isinstance(one, Method) else make_method(one) for one in methods])
    chosen = [one if isinstance(one, Metric) else make_metric(one) for one in _named(metrics)]
    _check(made, chosen)
    shares = Shares(progress, cancelled)
    costs = {name: _cost(one, chosen) for name, one in made.items()}
    total, done = sum(map(sum, costs.values())), 0.0
    maps: dict[str, Explanation] = {}
    found: dict[str, Evaluation] = {}
    failed = []
    for name, one in made.items():
        run, measure = (cost / total for cost in costs[name])
        try:
            maps[name] = explain(
                model, image, target, one, shares.teller(done, run, one.title), cancelled
            )
            found[name] = evaluate(
                maps[name],
                model,
                image,
                chosen,
                target,
                truth,
                labelmap,
                method=one,
                progress=shares.teller(done + run, measure, f"{one.title}, metrics"),
                cancelled=cancelled,
            )
        except Cancelled:
            raise
        except SaliencyExplainError as error:
            failed.append((name, str(error)))
            maps.pop(name, None)
        done += run + measure
    if len(found) < 2:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed)
        raise MetricError(f"Fewer than two methods could be ranked. {reasons}")
    ranked, names = _ranked(found, maps, made, labels_of(chosen), seed)
    if progress is not None:
        progress(1.0, "done")
    first = next(iter(found.values()))
    undefined = tuple(
        (name, first[name].reading) for name in labels_of(chosen) if name not in names
    )
    return Ranking(ranked, names, _answer(ranked, names), tuple(failed), maps, found, undefined)


def _ranked(
    found: Mapping[str, Evaluation],
    maps: Mapping[str, Explanation],
    made: Mapping[str, Method],
    metrics: Sequence[str],
    seed: int,
) -> tuple[tuple[RankedMethod, ...], tuple[str, ...]]:
    """Methods, best first, and the metrics that count."""
    names = list(found)
    rows = {metric: [found[name][metric] for name in names] for metric in metrics}
    used = [metric for metric in metrics if any(row.value is not None for row in rows[metric])]
    if not used:
        reasons = "; ".join(rows[metric][0].reading for metric in metrics)
        raise MetricError(f"No metric is defined for any of the maps: {reasons}")
    table = np.stack(
        [
            shared_ranks(
                [np.nan if row.value is None else row.value for row in rows[metric]],
                [row.interval for row in rows[metric]],
                higher=rows[metric][0].direction == "higher",
            )
            for metric in used
        ]
    )
    means = table.mean(0)
    draws = np.random.default_rng(seed).integers(0, len(used), (_DRAWS, len(used)))
    drawn = table[draws].mean(1)
    order = np.lexsort(([maps[name].seconds for name in names], means))
    best = drawn == drawn.min(1, keepdims=True)
    shares = (best / best.sum(1, keepdims=True)).mean(0)
    apart = (drawn > drawn[:, order[0], None]).mean(0)
    certain = len(used) > 1
    ranked = []
    for index in order.tolist():
        name = names[index]
        low, high = np.percentile(drawn[:, index], [2.5, 97.5])
        same = bool(apart[index] < 0.95) if certain else bool(means[index] == means[order[0]])
        ranked.append(
            RankedMethod(
                name=name,
                title=maps[name].title,
                mean_rank=float(means[index]),
                interval=(float(low), float(high)) if certain else None,
                best_share=float(shares[index]) if certain else None,
                tied=same,
                ranks={metric: float(table[row, index]) for row, metric in enumerate(used)},
                rows={metric: rows[metric][index] for metric in used},
                seconds=maps[name].seconds,
                passes=float(made[name].passes() or 0),
            )
        )
    return tuple(ranked), tuple(used)


def _answer(ranked: Sequence[RankedMethod], metrics: Sequence[str]) -> str:
    best = ranked[0]
    told = f"Best here: {best.title} ({best.name}), mean rank {best.mean_rank:.2f} of {len(ranked)}"
    told += f" over {len(metrics)} metric{'s' if len(metrics) != 1 else ''}, {best.seconds:.2g} s"
    if best.best_share is None:
        told += ". One metric alone gives no confidence."
    else:
        told += f"; best in {best.best_share:.0%} of redrawn metrics."
    tied = [one.name for one in ranked[1:] if one.tied]
    return told + (f" Not told apart from it: {', '.join(tied)}." if tied else "")


def _distinct(made: Sequence[Method]) -> dict[str, Method]:
    """Methods by names that differ."""
    named: dict[str, Method] = {}
    for one in made:
        layer = str(one.parameters().get("layer") or "")
        name = f"{one.name} {layer}".strip()
        count = sum(key == name or key.startswith(f"{name} (") for key in named)
        named[f"{name} ({count + 1})" if count else name] = one
    return named


def _named(metrics: Sequence[str | Metric] | None) -> Sequence[str | Metric]:
    if isinstance(metrics, str):
        raise MetricError(f"metrics is a list; give [{metrics!r}].")
    return RANKING_METRICS if metrics is None else metrics


def _check(made: Mapping[str, Method], chosen: Sequence[Metric]) -> None:
    if len(made) < 2:
        raise MetricError(f"A ranking needs at least two methods; {len(made)} was given.")
    if not chosen:
        raise MetricError("A ranking needs at least one metric.")
    for one in chosen:
        if one.direction == "none":
            raise MetricError(f"{one.title} has no better end, so nothing can be ranked by it.")


def _cost(method: Method, chosen: Sequence[Metric]) -> tuple[float, float]:
    """Expected passes of the run and of its metrics."""
    run = method.passes() or _UNKNOWN_PASSES
    measured = sum(1 + one.passes() * (run if one.reruns else 1) for one in chosen)
    return float(run), float(measured)
