"""SAMASK on a network that measures volumes: where it looks for each structure.

After Konate et al. 2021, "SAMASK: Explainability of deep CNN brain volumetric measurement using
smooth attention mask". A network is trained to predict the volumes of six structures from made-up
heads, in which every structure is known. Each output gets a smooth attention mask; shares and
densities of the masks by region, the neighbourhood, left against right in asymmetric heads, the
change of the prediction, the stability over random starts and the time are measured, and the masks
are compared with DeconvNet, gradient and guided backpropagation.

:func:`attention_by_region` does the same for any model and scan.
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
    name="samask_regression",
    title="SAMASK: attention of a network that measures brain structures",
    question="Does a network that predicts volumes look at the structure that it measures, and "
    "does a smooth attention mask show that better than gradient, guided backpropagation and "
    "DeconvNet?",
    paper="Konate et al. 2021, SAMASK: Explainability of deep CNN brain volumetric measurement "
    "using Smooth Attention MASK (Herston Health Precinct Symposium, DISC-0051); network after "
    "HerstonNet, https://arxiv.org/abs/2009.03303",
    minutes=15,
    quick_minutes=0.7,
    conduct=_conduct,
)
