"""The scene of 3D Slicer: nodes become images, explanations become nodes.

The only part that imports ``slicer``.
It works inside the application and with ``slicer-core`` (``pip install slicer-core``), which is the
same scene without windows. Importing this package imports neither slicer nor torch; the first use
of a name does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .appraisals import (
        PublishedAppraisal,
        appraisal_from_map,
        explanation_from_map,
        publish_appraisal,
        regions_from_table,
        verdict_from_map,
    )
    from .colors import make_color_node, set_dead_band
    from .display import (
        jump_to,
        jump_to_peak,
        peak_world_ras,
        restore_layers,
        show_legend,
        show_over,
        show_results,
    )
    from .files import load_mrb, save_mrb
    from .host import in_app, new_scene, release_scene, scene_or_default
    from .inputs import add_image, add_segmentation
    from .layers import PublishedLayers, publish_layers
    from .nodes import image_from_node, image_from_nodes, volume_from_node, volume_from_nodes
    from .places import Roi, point_from_node, roi_from_node
    from .publishing import Published, publish
    from .segments import (
        Segments,
        labelmap_from_node,
        labelmap_from_segmentation,
        mask_from_segment,
        volume_from_segment,
    )
    from .study import PublishedStudy, publish_study

__all__ = [
    "Published",
    "PublishedAppraisal",
    "PublishedLayers",
    "PublishedStudy",
    "Roi",
    "Segments",
    "add_image",
    "add_segmentation",
    "appraisal_from_map",
    "explanation_from_map",
    "image_from_node",
    "image_from_nodes",
    "in_app",
    "jump_to",
    "jump_to_peak",
    "labelmap_from_node",
    "labelmap_from_segmentation",
    "load_mrb",
    "make_color_node",
    "mask_from_segment",
    "new_scene",
    "peak_world_ras",
    "point_from_node",
    "publish",
    "publish_appraisal",
    "publish_layers",
    "publish_study",
    "regions_from_table",
    "release_scene",
    "restore_layers",
    "roi_from_node",
    "save_mrb",
    "scene_or_default",
    "set_dead_band",
    "show_legend",
    "show_over",
    "show_results",
    "verdict_from_map",
    "volume_from_node",
    "volume_from_nodes",
    "volume_from_segment",
]

_HOMES = {
    "appraisals": (
        "PublishedAppraisal",
        "appraisal_from_map",
        "explanation_from_map",
        "publish_appraisal",
        "regions_from_table",
        "verdict_from_map",
    ),
    "colors": ("make_color_node", "set_dead_band"),
    "display": (
        "jump_to",
        "jump_to_peak",
        "peak_world_ras",
        "restore_layers",
        "show_legend",
        "show_over",
        "show_results",
    ),
    "files": ("load_mrb", "save_mrb"),
    "host": ("in_app", "new_scene", "release_scene", "scene_or_default"),
    "inputs": ("add_image", "add_segmentation"),
    "layers": ("PublishedLayers", "publish_layers"),
    "nodes": ("image_from_node", "image_from_nodes", "volume_from_node", "volume_from_nodes"),
    "places": ("Roi", "point_from_node", "roi_from_node"),
    "publishing": ("Published", "publish"),
    "segments": (
        "Segments",
        "labelmap_from_node",
        "labelmap_from_segmentation",
        "mask_from_segment",
        "volume_from_segment",
    ),
    "study": ("PublishedStudy", "publish_study"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
