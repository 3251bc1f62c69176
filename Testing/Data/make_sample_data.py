"""Write the sample brain of the panel's "Load demo": volume and segments, 2 mm.

From the MNI ICBM152 2009a template that nilearn carries (and the demo model was trained on):
`python Testing/Data/make_sample_data.py`. Needs nilearn and slicer-core.
"""

from pathlib import Path

import numpy as np
import slicer
from nilearn import datasets

from SaliencyExplainLib import scene as sx_scene
from SaliencyExplainLib.image import make_image, to_ras

FOLDER = Path(__file__).resolve().parents[2] / "SaliencyExplain" / "Resources" / "SampleData"
NAMES = {1: "CSF", 2: "Grey matter", 3: "White matter"}
SPACING_MM = 2
# Voxels of air kept around the brain.
MARGIN = 3


def main() -> None:
    """Write both files and their licence."""
    scan = datasets.load_mni152_template(resolution=SPACING_MM)
    maps = [
        load(resolution=SPACING_MM).get_fdata(dtype=np.float32) > 0.5
        for load in (
            datasets.load_mni152_wm_template,
            datasets.load_mni152_gm_template,
            datasets.load_mni152_brain_mask,
        )
    ]
    labels = np.select(maps, [3, 2, 1])
    index = np.argwhere(labels)
    low, high = np.maximum(index.min(0) - MARGIN, 0), index.max(0) + MARGIN + 1
    inside = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    affine = scan.affine.copy()
    affine[:3, 3] = to_ras(scan.affine, low)
    voxels = scan.get_fdata(dtype=np.float32)[inside]
    # Whole numbers pack well; 0.1 % steps are finer than the template's noise.
    voxels = np.round(1000 * voxels / voxels.max())
    scene = sx_scene.new_scene()
    (volume,) = sx_scene.add_image(scene, make_image(voxels, affine), "BrainT1Template")
    _as_short(volume)
    node = sx_scene.add_segmentation(
        scene, make_image(labels[inside], affine), NAMES, "BrainT1TemplateSegments"
    )
    FOLDER.mkdir(parents=True, exist_ok=True)
    _write(scene, volume, "vtkMRMLVolumeArchetypeStorageNode", "BrainT1Template.nrrd")
    _write(scene, node, "vtkMRMLSegmentationStorageNode", "BrainT1TemplateSegments.seg.nrrd")
    sx_scene.release_scene(scene)


def _as_short(volume: slicer.vtkMRMLScalarVolumeNode) -> None:
    import vtk

    cast = vtk.vtkImageCast()
    cast.SetInputData(volume.GetImageData())
    cast.SetOutputScalarTypeToShort()
    cast.Update()
    volume.SetAndObserveImageData(cast.GetOutput())


def _write(scene: slicer.vtkMRMLScene, node: object, storage_class: str, name: str) -> None:
    storage = scene.AddNewNodeByClass(storage_class)
    storage.SetFileName(str(FOLDER / name))
    storage.SetUseCompression(True)
    if not storage.WriteData(node):
        raise SystemExit(f"{FOLDER / name} could not be written.")


if __name__ == "__main__":
    main()
