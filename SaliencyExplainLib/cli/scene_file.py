"""Runs as a file that 3D Slicer opens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from ..explanation import Explanation
    from ..regions import RegionTable

__all__ = ["write_scene"]


def write_scene(
    path: Path,
    image: MetaTensor,
    runs: Sequence[tuple[Explanation, RegionTable | None]],
    segments: tuple[MetaTensor, Mapping[int, str]] | None = None,
) -> None:
    """Write a scene with the image, its segments and all runs, the first one shown.

    Raises
    ------
    MissingPackageError
        If there is no package ``slicer``.
    """
    from .. import scene

    name = str(image.meta.get("filename_or_obj") or "image").split(",")[0].split(".")[0]
    made = scene.new_scene()
    try:
        nodes = scene.add_image(made, image, name)
        segmentation = None
        if segments is not None:
            segmentation = scene.add_segmentation(made, *segments, f"{name} segments")
        for number, (explanation, table) in enumerate(runs):
            scene.publish(
                explanation,
                made,
                input_volume=nodes,
                regions=table,
                segmentation=segmentation,
                show=number == 0,
            )
        scene.save_mrb(made, path)
    finally:
        scene.release_scene(made)
