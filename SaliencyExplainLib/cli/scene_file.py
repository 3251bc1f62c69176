"""Runs as a file that 3D Slicer opens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from ..explanation import Explanation
    from ..regions import RegionTable

__all__ = ["write_scene"]


def write_scene(
    path: Path, image: MetaTensor, runs: list[tuple[Explanation, RegionTable | None]]
) -> None:
    """Write a scene with the image and all runs, the first one shown.

    Raises
    ------
    MissingPackageError
        If there is no package ``slicer``.
    """
    from .. import scene
    from ..scene.nodes import node_from_map

    name = str(image.meta.get("filename_or_obj") or "image").split(",")[0].split(".")[0]
    made = scene.new_scene()
    try:
        voxels = image.as_tensor().numpy()
        count = voxels.shape[0]
        nodes = []
        for index in range(count):
            title = name if count == 1 else f"{name} {index}"
            node = made.AddNode(node_from_map(voxels[index], image.affine, title))
            node.CreateDefaultDisplayNodes()
            nodes.append(node)
        for number, (explanation, table) in enumerate(runs):
            scene.publish(explanation, made, input_volume=nodes, regions=table, show=number == 0)
        scene.save_mrb(made, path)
    finally:
        scene.release_scene(made)
