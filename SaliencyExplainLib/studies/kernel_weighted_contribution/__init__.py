"""Kernel-weighted contribution over five layer sets, on nodules whose evidence is known.

After Mullan and Sonka 2023, doi:10.1117/1.JMI.10.5.054001. Importing this needs no torch.
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
    name="kernel_weighted_contribution",
    title="Kernel-weighted contribution over five layer sets",
    question=(
        "Which of KWC, Grad-CAM, Grad-CAM++ and Score-CAM, over which layers of a segmentation "
        "network, gives the best map, and is that the map that shows the known evidence?"
    ),
    paper=(
        "Mullan and Sonka 2023, Kernel-weighted contribution, J Med Imaging 10(5):054001, "
        "https://doi.org/10.1117/1.JMI.10.5.054001"
    ),
    minutes=15,
    quick_minutes=0.7,
    conduct=_conduct,
)
