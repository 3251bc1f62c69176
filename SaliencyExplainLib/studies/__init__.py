"""Studies: the published systems that this project grew from, end to end on 3D volumes.

>>> from SaliencyExplainLib import studies
>>> study = studies.studies()["background_removal"]
>>> result = study("folder", quick=True)                                       # doctest: +SKIP
>>> result.answer                                                              # doctest: +SKIP

Each ends in tables, figures, plots and volumes (:class:`StudyResult`), puts the published figures
beside its own, and goes on from where it was stopped. They are built from the parts of this
library; those that fit a user's own model and volume are functions of their own.

>>> scene = studies.spiculated_nodules(size=16, seed=1)
>>> scene.names[scene.TARGET]
'spiculated nodule'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .base import Study

if TYPE_CHECKING:
    from .nodules import SpiculatedNodules, spiculated_nodules
    from .results import StudyResult

__all__ = ["SpiculatedNodules", "Study", "StudyResult", "spiculated_nodules", "studies"]

#: Studies, each the variable STUDY of a module that imports no torch.
_STUDIES = (
    "samask_regression",
    "background_removal",
    "probability_maps",
    "kernel_weighted_contribution",
    "attention_vs_baseline",
)
_LATER = {
    "SpiculatedNodules": "nodules",
    "StudyResult": "results",
    "spiculated_nodules": "nodules",
}


def studies() -> dict[str, Study]:
    """Return all studies by name; neither torch nor MONAI is imported."""
    return {name: import_module(f".{name}", __name__).STUDY for name in _STUDIES}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_LATER[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
