"""The main verb of quality: one explanation, some metrics, one table."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MetricError
from ..explanation import Explanation, write_text
from ..methods import Method
from ..plain_text import cell_text
from .base import DIRECTIONS, NEEDS, Measured, Metric, Row, make_metric
from .shares import Shares
from .trial import Trial, target_of

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from ..engine import Engine
    from ..model import Model
    from ..target import Target
    from ..volume import Volume

__all__ = ["COLUMNS", "USUAL", "Evaluation", "evaluate"]

#: What is measured when no metric is named, where it applies: about 80 passes.
USUAL = (
    "deletion",
    "insertion",
    "faithfulness_correlation",
    "infidelity",
    "completeness",
    "prediction_preserved",
    "relative_entropy",
    "off_target_leakage",
    "pointing_game",
    "relevance_mass",
    "relevance_rank",
    "vxap",
    "density_ratio",
    "sparseness",
    "complexity",
)
#: Columns of the CSV file.
COLUMNS = (
    "metric",
    "value",
    "low",
    "high",
    "unit",
    "direction",
    "passes",
    "seconds",
    "reading",
)


@dataclass(frozen=True)
class Evaluation:
    """What the metrics found on one explanation.

    Attributes
    ----------
    rows : tuple of Row
        In the order of the metrics; the parts of a metric behind its own value.
    skipped : tuple of (metric, reason)
        Metrics of the usual set that do not apply here.
    method, title, target
        Of the explanation.
    seconds : float
        Wall time of all.
    """

    rows: tuple[Row, ...]
    method: str
    title: str
    target: dict[str, Any]
    seconds: float
    skipped: tuple[tuple[str, str], ...] = ()

    def __getitem__(self, name: str) -> Row:
        """Row of a metric, or of a part ("name.part").

        Raises
        ------
        MetricError
            If it was not measured.
        """
        for row in self.rows:
            if row.metric == name:
                return row
        known = ", ".join(row.metric for row in self.rows)
        raise MetricError(f"{name!r} was not measured. Measured: {known}.")

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "method": self.method,
            "title": self.title,
            "target": self.target,
            "seconds": round(self.seconds, 3),
            "rows": [row.to_dict() for row in self.rows],
            "skipped": [{"metric": name, "reason": reason} for name, reason in self.skipped],
        }

    def to_csv(self) -> str:
        """Return the rows as CSV text with a header line; curves and lists are left out."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self.rows:
            low, high = row.interval or (None, None)
            numbers = ["" if one is None else f"{one:.6g}" for one in (row.value, low, high)]
            cost = [f"{row.passes:.6g}", f"{row.seconds:.3f}"]
            told = [DIRECTIONS[row.direction], *cost, cell_text(row.reading)]
            writer.writerow([row.metric, *numbers, cell_text(row.unit), *told])
        return buffer.getvalue()

    def to_text(self) -> str:
        """Return the rows for a terminal."""
        lines = [f"{'metric':<38}{'value':>11}  reading", "-" * 78]
        for row in self.rows:
            value = "-" if row.value is None else f"{row.value:.4g}"
            lines.append(f"{row.metric[:37]:<38}{value:>11}  {row.reading}")
        return "\n".join(lines)

    def save(self, path: str | Path) -> Path:
        """Write ``.json`` (everything) or ``.csv`` (the rows).

        Raises
        ------
        SaliencyExplainError
            If the name ends otherwise, or the folder cannot be written.
        """
        path = Path(path)
        return write_text(path, as_file(path, self.to_dict(), self.to_csv))


def evaluate(
    explanation: Explanation,
    model: Model | None = None,
    image: MetaTensor | None = None,
    metrics: Sequence[str | Metric] | None = None,
    target: Target | None = None,
    truth: MetaTensor | Volume | None = None,
    labelmap: MetaTensor | Volume | None = None,
    *,
    names: Mapping[int, str] | None = None,
    method: Method | None = None,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Evaluation:
    """Measure how far a map can be trusted.

    Parameters
    ----------
    explanation : Explanation
        What :func:`SaliencyExplainLib.explain` gave.
    model, image : Model and MetaTensor, optional
        What was explained. Without them only metrics of the map alone are measured, and torch is
        not needed.
    metrics : sequence of str or Metric, optional
        Names (:func:`metrics`), or metrics made by :func:`make_metric`; those of :data:`USUAL` that
        apply when left out.
    target : Target, optional
        The explained target; needed where its region was a segment, ROI or point.
    truth : MetaTensor or Volume, shape (1, I, J, K), optional
        Mask of the evidence that is known to be right.
    labelmap : MetaTensor or Volume, shape (1, I, J, K), optional
        Segments; `names` of their labels.
    method : Method, optional
        For metrics that run it again; from the explanation's record when left out.
    progress : callable, optional
        Called with a fraction (0 to 1) and a message.
    cancelled : callable, optional
        Asked before each pass; True stops with :class:`SaliencyExplainLib.Cancelled`.

    Returns
    -------
    Evaluation
        A metric that is not defined on this map has the value None, and says why.

    Raises
    ------
    MetricError
        If a named metric is unknown or lacks what it needs, or model, image and target are not
        those of the explanation.
    """
    started = time.perf_counter()
    has = {"model": model is not None and image is not None}
    has |= {"truth": truth is not None, "labelmap": labelmap is not None}
    chosen, skipped = _chosen(metrics, has)
    shares = Shares(progress, cancelled)
    with ExitStack() as stack:
        engine = None
        if any("model" in one.needs for one in chosen):
            assert model is not None  # noqa: S101 - _chosen has looked
            assert image is not None  # noqa: S101
            engine = stack.enter_context(_running(model, image, explanation, target, shares))
        trial = Trial(
            explanation,
            engine,
            truth=truth,
            labelmap=labelmap,
            names=names,
            method=method,
            shares=shares,
        )
        if engine is not None:
            trial.check_fit()
        rows = _measure(trial, chosen)
    if progress is not None:
        progress(1.0, "done")
    return Evaluation(
        rows=tuple(rows),
        method=explanation.method,
        title=explanation.title,
        target=explanation.target,
        seconds=time.perf_counter() - started,
        skipped=tuple(skipped),
    )


def _chosen(
    wanted: Sequence[str | Metric] | None, has: Mapping[str, bool]
) -> tuple[list[Metric], list[tuple[str, str]]]:
    """Metrics to measure, and those of the usual set that do not apply."""
    if isinstance(wanted, str):
        raise MetricError(f"metrics is a list; give [{wanted!r}].")
    chosen, skipped = [], []
    for one in USUAL if wanted is None else wanted:
        made = one if isinstance(one, Metric) else make_metric(one)
        missing = [NEEDS[need] for need in made.needs if not has[need]]
        if not missing:
            chosen.append(made)
        elif wanted is None:
            skipped.append((made.name, f"needs {missing[0]}"))
        else:
            raise MetricError(f"{made.title} needs {' and '.join(missing)}. Give it, too.")
    return chosen, skipped


def _running(
    model: Model,
    image: MetaTensor,
    explanation: Explanation,
    target: Target | None,
    shares: Shares,
) -> Any:
    """Context of a running engine on what was explained."""
    from ..engine import Engine
    from ..image import as_image

    engine: Engine = Engine(
        model,
        model.prepare(as_image(image)),
        target or target_of(explanation),
        shares.part(0, 0.01, "the region"),
    )
    return engine.running()


def labels_of(chosen: Sequence[Metric]) -> list[str]:
    """Name of each metric; one that is there twice with its other parameters in brackets."""
    names = [one.name for one in chosen]
    labels = []
    for one in chosen:
        given = {
            part.name: getattr(one, part.name)
            for part in fields(one)
            if getattr(one, part.name) != part.default
        }
        brackets = ", ".join(f"{key}={value}" for key, value in given.items())
        twice = names.count(one.name) > 1 and brackets
        labels.append(f"{one.name}[{brackets}]" if twice else one.name)
    return labels


def _measure(trial: Trial, chosen: Sequence[Metric]) -> list[Row]:
    """Rows of all metrics, each told as its part of all expected passes."""
    expected = [1 + one.passes() * (_sweeps(trial) if one.reruns else 1) for one in chosen]
    total, done, rows = sum(expected), 0, []
    for one, label, passes in zip(chosen, labels_of(chosen), expected, strict=True):
        trial.shares.check()
        trial.begin(done / total, passes / total, one.title)
        rows += _rows(trial, one, label)
        done += passes
    return rows


def _rows(trial: Trial, one: Metric, label: str) -> list[Row]:
    before, started = trial.passes, time.perf_counter()
    try:
        found: Sequence[Measured] = one.measure(trial)
    except MetricError as error:
        found = [Measured(None, str(error))]
    passes = trial.passes - before
    seconds = time.perf_counter() - started
    return [
        Row(
            metric=f"{label}.{item.part}" if item.part else label,
            title=f"{one.title}: {item.part.replace('_', ' ')}" if item.part else one.title,
            value=item.value,
            interval=item.interval,
            unit=one.unit if item.unit is None else item.unit,
            direction=item.direction or one.direction,
            passes=0.0 if item.part else passes,
            seconds=0.0 if item.part else seconds,
            reading=item.reading,
            details=item.details,
        )
        for item in found
    ]


def _sweeps(trial: Trial) -> int:
    """Passes of one run of the method, as far as they are known beforehand."""
    try:
        method = trial.method
    except MetricError:
        return 1
    return method.passes() or 50


def as_file(path: Path, facts: Mapping[str, Any], to_csv: Callable[[], str]) -> str:
    """Text of a file that ends in .json or .csv."""
    if path.suffix.lower() == ".json":
        return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    if path.suffix.lower() == ".csv":
        return to_csv()
    raise MetricError(f"{path.name!r} must end in .json or .csv.")
