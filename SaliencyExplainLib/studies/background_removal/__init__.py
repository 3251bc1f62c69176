"""Background removal by guided backpropagation, end to end on made-up heads.

After Matos et al. 2019, "Interpretability of a Deep Learning Model for Rodents Brain Semantic
Segmentation", doi:10.1007/978-3-030-19823-7_25. Importing this needs no torch.
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
    name="background_removal",
    title="Background removal by guided backpropagation",
    question=(
        "A network that was trained on masked brains gets a whole head: can its own gradients show "
        "where the brain is, so that the background is removed and the segmentation comes right?"
    ),
    paper=(
        "Matos et al. 2019, Interpretability of a Deep Learning Model for Rodents Brain Semantic "
        "Segmentation, https://doi.org/10.1007/978-3-030-19823-7_25"
    ),
    minutes=8,
    quick_minutes=0.7,
    conduct=_conduct,
)
