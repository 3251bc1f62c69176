"""Models side by side: the same cases, the same method, what differs and which is more faithful.

After the protocol of Goncalves and Cardoso (RECPAD 2021): accuracy, precision, recall and F1 of
several classifiers, then maps of the cases that *all* of them get right, side by side. They show
pictures; here it is also measured how alike the maps are, how faithful each is to its own network,
and, where the evidence is known, how much of each map lies in it, with paired tests over the cases.

A difference map is  b / sum|b| - a / sum|a|:  maps of different networks have no common unit, so
each is first divided by its own sum of magnitudes, and the difference is one of shares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...errors import StudyError
from .answers import all_probabilities, class_number, predicted_class
from .tables import comparison_tables, models_table

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from ...explanation import Explanation
    from ...methods import Method
    from ...model import Model
    from ...quality import Metric
    from ...target import Target
    from ..results import StudyTable

__all__ = [
    "CaseComparison",
    "ModelComparison",
    "compare_case",
    "compare_models",
    "within",
]

#: Metrics of a map that are measured when none is named: with the model, and with the evidence.
FAITHFULNESS, EVIDENCE = ("deletion", "insertion"), ("relevance_mass", "relevance_rank")

Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class CaseComparison:
    """Maps of several models of one case.

    Attributes
    ----------
    case : int
        Which of the images it is.
    maps : mapping of str to Explanation
        By the model's name, which its title begins with.
    differences : mapping of str to Explanation
        For each model but the first, its map minus the first's, each as shares of its own sum of
        magnitudes; signed.
    similarity : mapping of str to (mapping of str to float)
        By measure, of each model but the first with the first.
    metrics : mapping of str to (mapping of str to float)
        By metric and model; NaN where it is not defined on that map.
    """

    case: int
    maps: Mapping[str, Explanation]
    differences: Mapping[str, Explanation]
    similarity: Mapping[str, Mapping[str, float]]
    metrics: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class ModelComparison:
    """Several models on the same cases.

    Attributes
    ----------
    names : tuple of str
        Of the models; the first is what the others are compared with.
    cases : tuple of CaseComparison
        Those that all models get right, or all where no labels were given.
    probabilities : mapping of str to (tuple of tuple of float)
        Of each class, by model and image; empty without labels.
    tables : tuple of StudyTable
        "models" (with labels), "similarity", "metrics".
    """

    names: tuple[str, ...]
    cases: tuple[CaseComparison, ...]
    probabilities: Mapping[str, tuple[tuple[float, ...], ...]]
    tables: tuple[StudyTable, ...]

    def table(self, name: str) -> StudyTable:
        """Return the table of that name.

        Raises
        ------
        StudyError
            If there is none.
        """
        for one in self.tables:
            if one.name == name:
                return one
        known = ", ".join(one.name for one in self.tables)
        raise StudyError(f"The comparison has no table {name!r}. Its tables are {known}.")


def compare_models(
    models: Mapping[str, Model],
    images: Sequence[MetaTensor],
    labels: Sequence[int | str] | None = None,
    method: str | Method | Mapping[str, Method] = "gradient",
    target: Target | None = None,
    truths: Sequence[MetaTensor | None] | None = None,
    metrics: Sequence[str | Metric] | None = None,
    progress: Tell | None = None,
    cancelled: Callable[[], bool] | None = None,
    **parameters: Any,
) -> ModelComparison:
    """Compare models on the same cases: their answers, their maps, and how faithful these are.

    Parameters
    ----------
    models : mapping of str to Model
        Two or more; the first is the baseline.
    images : sequence of MetaTensor, shape (C, I, J, K)
        The cases.
    labels : sequence of int or str, optional
        True class of each case, by number or label: models are scored, and only cases that all of
        them get right are explained. For classifiers only; without, every case is explained.
    method : str, Method or mapping of str to Method
        One for all models, or one for each by its name (layers are called differently).
    target : Target, optional
        What is explained.
    truths : sequence of MetaTensor or None, optional
        Mask of the known evidence of each case, where there is one.
    metrics : sequence of str or Metric, optional
        Of :func:`SaliencyExplainLib.quality.metrics`; left out: deletion and insertion (of the
        probability, where all models are classifiers), and with `truths` relevance mass and rank.
    progress, cancelled : callable, optional
        As for :func:`SaliencyExplainLib.explain`.
    **parameters
        Of the method, where it is named.

    Returns
    -------
    ModelComparison

    Raises
    ------
    StudyError
        If there are fewer than two models, lists of other lengths, a label is unknown, or no case
        is right in all models.
    SaliencyExplainError
        As :func:`SaliencyExplainLib.explain`.

    Examples
    --------
    >>> found = compare_models({"baseline": one, "attention": other}, images, labels,
    ...                        "gradient")                                        # doctest: +SKIP
    >>> print(found.table("models").to_markdown())                                # doctest: +SKIP
    """
    _check(models, images, labels, truths)
    names = tuple(models)
    chosen = list(range(len(images)))
    probabilities: dict[str, tuple[tuple[float, ...], ...]] = {}
    tables: list[StudyTable] = []
    first_part = 0.0 if labels is None else 0.2
    if labels is not None:
        classes = [class_number(models[names[0]], label) for label in labels]
        probabilities = all_probabilities(
            models, images, within(progress, 0, first_part), cancelled
        )
        predicted = {name: [predicted_class(p) for p in probabilities[name]] for name in names}
        tables.append(models_table(classes, predicted, len(probabilities[names[0]][0])))
        chosen = [
            case for case in chosen if all(predicted[name][case] == classes[case] for name in names)
        ]
        if not chosen:
            raise StudyError(
                f"None of the {len(images)} cases is classified correctly by all of "
                f"{', '.join(names)}. Give more cases, or leave out the labels."
            )
    cases = []
    for number, case in enumerate(chosen):
        start = first_part + (1 - first_part) * number / len(chosen)
        end = min(1.0, first_part + (1 - first_part) * (number + 1) / len(chosen))
        cases.append(
            replace(
                compare_case(
                    models,
                    images[case],
                    method,
                    target,
                    None if truths is None else truths[case],
                    metrics,
                    within(progress, start, end),
                    cancelled,
                    **parameters,
                ),
                case=case,
            )
        )
    tables += comparison_tables(names, cases)
    if progress is not None:
        progress(1.0, "done")
    return ModelComparison(names, tuple(cases), probabilities, tuple(tables))


def compare_case(
    models: Mapping[str, Model],
    image: MetaTensor,
    method: str | Method | Mapping[str, Method] = "gradient",
    target: Target | None = None,
    truth: MetaTensor | None = None,
    metrics: Sequence[str | Metric] | None = None,
    progress: Tell | None = None,
    cancelled: Callable[[], bool] | None = None,
    **parameters: Any,
) -> CaseComparison:
    """Compare the maps of several models of one case.

    Parameters
    ----------
    models, method, target, metrics, progress, cancelled, **parameters
        As for :func:`compare_models`.
    image : MetaTensor, shape (C, I, J, K)
    truth : MetaTensor, shape (1, I, J, K), optional
        Mask of the known evidence.

    Returns
    -------
    CaseComparison

    Raises
    ------
    StudyError
        If a method a model was given and one is missing.
    """
    from ...quality import compare, evaluate
    from ...run import explain

    usual = FAITHFULNESS + (() if truth is None else EVIDENCE)
    classifies = all(model.task == "classification" for model in models.values())
    wanted = [_metric(one, classifies) for one in (usual if metrics is None else metrics)]
    maps: dict[str, Explanation] = {}
    measured: dict[str, dict[str, float]] = {one.name: {} for one in wanted}
    for number, (name, model) in enumerate(models.items()):
        one = method
        if isinstance(method, Mapping):
            if name not in method:
                raise StudyError(f"No method was given for the model {name!r}. Give one for each.")
            one = method[name]
        start, middle, end = ((number + part) / len(models) for part in (0, 0.5, 1))
        found = explain(
            model,
            image,
            target,
            one,  # type: ignore[arg-type]  # a mapping was looked up above
            within(progress, start, middle),
            cancelled,
            **parameters,
        )
        maps[name] = replace(found, title=f"{name}: {found.title}")
        if wanted:
            rows = evaluate(
                found,
                model,
                image,
                wanted,
                target,
                truth,
                progress=within(progress, middle, end),
                cancelled=cancelled,
            ).rows
            for row in rows:
                if row.metric in measured:
                    measured[row.metric][name] = float("nan") if row.value is None else row.value
    names = list(maps)
    matrices = compare(maps).matrices
    return CaseComparison(
        case=0,
        maps=maps,
        differences={name: _difference(maps[names[0]], maps[name], names[0]) for name in names[1:]},
        similarity={
            measure: {name: float(matrix[0, at]) for at, name in enumerate(names) if at}
            for measure, matrix in matrices.items()
        },
        metrics=measured,
    )


def within(progress: Tell | None, start: float, end: float) -> Tell | None:
    """Let a part's progress count from `start` to `end`."""
    if progress is None:
        return None

    def tell(fraction: float, message: str) -> None:
        progress(min(end, start + (end - start) * fraction), message)

    return tell


def _check(
    models: Mapping[str, Model],
    images: Sequence[MetaTensor],
    labels: Sequence[int | str] | None,
    truths: Sequence[MetaTensor | None] | None,
) -> None:
    if len(models) < 2:
        raise StudyError(f"A comparison needs two models or more; {len(models)} was given.")
    if not images:
        raise StudyError("A comparison needs at least one image; none was given.")
    for what, given in (("labels", labels), ("masks of evidence (truths)", truths)):
        if given is not None and len(given) != len(images):
            raise StudyError(f"{len(images)} images need as many {what}; {len(given)} were given.")


def _metric(metric: str | Metric, classifies: bool) -> Metric:
    """A metric by its name.

    Curves without their random control, which doubles the passes, and of a classifier's
    probability: logits of different networks have no common scale, and one that is normalised
    between the image and a baseline of nearly its score has no bound.
    """
    from ...quality import make_metric

    if not isinstance(metric, str):
        return metric
    ordinate = "probability" if classifies else "score"
    curves = {"control": False, "ordinate": ordinate}
    return make_metric(metric, curves if metric in FAITHFULNESS else None)


def _difference(first: Explanation, second: Explanation, baseline: str) -> Explanation:
    """Shares of the second map minus shares of the first."""
    from ...image import make_image

    shares = []
    for one in (first, second):
        values = one.map.as_tensor()
        total = float(values.abs().sum())
        shares.append(values / total if total > 0 else values)
    return replace(
        second,
        maps=make_image(shares[1] - shares[0], second.map.affine),
        network_maps=None,
        layer_map=None,
        title=f"{second.title}, minus {baseline}",
        signed=True,
        unit="share of the map",
        combine="sum",
        value=second.value - first.value,
        completeness_error=None,
        warnings=(),
        details={"minus": baseline},
    )
