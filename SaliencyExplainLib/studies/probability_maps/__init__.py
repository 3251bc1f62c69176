"""Probability-map classifiers: what accuracy cannot see in a biased classifier, signed maps can.

After the talk "Interpretation of deep neural networks: Motivation for medical applications"
(M. Sdika) and Wargnier-Dauchelle et al., "A more interpretable classifier for multiple sclerosis"
(ISBI 2021): a classifier, patient with lesions against healthy, is fed with tissue probability maps
instead of the image. Here the truth about lesions and about the bias is known, since both are
planted: patients were scanned on another scanner than healthy people.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import Study

if TYPE_CHECKING:
    from ..results import StudyResult
    from ..work import Work

__all__ = ["STUDY"]


def _conduct(work: Work) -> StudyResult:
    from .pipeline import conduct

    return conduct(work)


STUDY = Study(
    name="probability_maps",
    title="Probability maps as input of a classifier",
    question="Is a classifier of patients more accurate, and are its signed maps nearer to the "
    "lesions, when it is fed with tissue probability maps; and do maps reveal a scanner bias that "
    "accuracy cannot see?",
    paper="Wargnier-Dauchelle, Grenier, Durand-Dubief, Cotton and Sdika, A more interpretable "
    "classifier for multiple sclerosis, ISBI 2021; and a talk of M. Sdika",
    minutes=6,
    quick_minutes=0.7,
    conduct=_conduct,
)
