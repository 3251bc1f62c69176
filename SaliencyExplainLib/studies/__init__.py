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
    from .attention_vs_baseline.attach import DualAttentionNetwork, with_attention
    from .attention_vs_baseline.block import MultiLevelDualAttention
    from .attention_vs_baseline.compare import ModelComparison, compare_models
    from .background_removal.align import Placement, align_template
    from .background_removal.enhance import LogNormalFit, enhance_log_normal
    from .background_removal.register import register_template
    from .background_removal.removal import (
        BackgroundRemoval,
        Template,
        make_template,
        remove_background,
    )
    from .kernel_weighted_contribution.combining import combine_layers
    from .kernel_weighted_contribution.compare import LayerSetComparison, compare_layer_sets
    from .kernel_weighted_contribution.layer_sets import LayerSet, layer_sets
    from .kernel_weighted_contribution.measures import layer_set_maps
    from .nodules import SpiculatedNodules, spiculated_nodules
    from .probability_maps.outside import OutsideShares, attribution_outside
    from .probability_maps.signed import SignedMaps, SignedShare, signed_maps
    from .results import StudyResult
    from .samask_regression.attention import Attention, AttentionRow, attention_by_region

__all__ = [
    "Attention",
    "AttentionRow",
    "BackgroundRemoval",
    "DualAttentionNetwork",
    "LayerSet",
    "LayerSetComparison",
    "LogNormalFit",
    "ModelComparison",
    "MultiLevelDualAttention",
    "OutsideShares",
    "Placement",
    "SignedMaps",
    "SignedShare",
    "SpiculatedNodules",
    "Study",
    "StudyResult",
    "Template",
    "align_template",
    "attention_by_region",
    "attribution_outside",
    "combine_layers",
    "compare_layer_sets",
    "compare_models",
    "enhance_log_normal",
    "layer_set_maps",
    "layer_sets",
    "make_template",
    "register_template",
    "remove_background",
    "signed_maps",
    "spiculated_nodules",
    "studies",
    "with_attention",
]

#: Studies, each the variable STUDY of a module that imports no torch.
_STUDIES = (
    "samask_regression",
    "background_removal",
    "probability_maps",
    "kernel_weighted_contribution",
    "attention_vs_baseline",
)
_LATER = {
    "Attention": "samask_regression.attention",
    "AttentionRow": "samask_regression.attention",
    "BackgroundRemoval": "background_removal.removal",
    "DualAttentionNetwork": "attention_vs_baseline.attach",
    "LayerSet": "kernel_weighted_contribution.layer_sets",
    "LayerSetComparison": "kernel_weighted_contribution.compare",
    "LogNormalFit": "background_removal.enhance",
    "ModelComparison": "attention_vs_baseline.compare",
    "MultiLevelDualAttention": "attention_vs_baseline.block",
    "OutsideShares": "probability_maps.outside",
    "Placement": "background_removal.align",
    "SignedMaps": "probability_maps.signed",
    "SignedShare": "probability_maps.signed",
    "SpiculatedNodules": "nodules",
    "StudyResult": "results",
    "Template": "background_removal.removal",
    "align_template": "background_removal.align",
    "attention_by_region": "samask_regression.attention",
    "attribution_outside": "probability_maps.outside",
    "combine_layers": "kernel_weighted_contribution.combining",
    "compare_layer_sets": "kernel_weighted_contribution.compare",
    "compare_models": "attention_vs_baseline.compare",
    "enhance_log_normal": "background_removal.enhance",
    "layer_set_maps": "kernel_weighted_contribution.measures",
    "layer_sets": "kernel_weighted_contribution.layer_sets",
    "make_template": "background_removal.removal",
    "register_template": "background_removal.register",
    "remove_background": "background_removal.removal",
    "signed_maps": "probability_maps.signed",
    "spiculated_nodules": "nodules",
    "with_attention": "attention_vs_baseline.attach",
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
