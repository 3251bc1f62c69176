"""Attention against baseline: what a dual attention block does to a network and to its maps.

After Goncalves and Cardoso, "Preliminary Study on the Impact of Attention Mechanisms for Medical
Image Classification" (RECPAD 2021), with the block of Mishra, Mandal, Puhan 2019 (MLDAM), in 3D:
DenseNet and ResNet of MONAI, each with and without the block and with and without augmentation,
on volumes whose evidence is known. They compare pictures of the signed gradient; here similarity,
faithfulness and how much of each map lies in the evidence are measured too, and what each network
really used: its answer with the evidence erased.
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
    name="attention_vs_baseline",
    title="Attention against baseline",
    question="Does a multi-level dual attention block make a 3D classifier more accurate, and its "
    "maps more faithful or nearer to the evidence?",
    paper="Goncalves and Cardoso, RECPAD 2021; the block: Mishra, Mandal, Puhan 2019, "
    "https://doi.org/10.1109/LSP.2019.2949388",
    minutes=5,
    quick_minutes=0.5,
    conduct=_conduct,
)
