"""The sample brain and the demo model that come with the extension; no network is needed."""

import hashlib

import slicer
from slicer.i18n import tr as _

CATEGORY = "SaliencyExplain"
SAMPLE, SEGMENTS = "BrainT1Template", "BrainT1TemplateSegments"
_SAMPLE_FILE, _SEGMENTS_FILE = f"{SAMPLE}.nrrd", f"{SEGMENTS}.seg.nrrd"


class Demo:
    """Where the demo's files are, and how they get into the scene.

    :param resources: the module's Resources folder.
    """

    def __init__(self, resources):
        self.model = resources / "Models" / "BrainTissue"
        self._folder = resources / "SampleData"
        self._icon = resources / "Icons" / "SaliencyExplain.png"

    def load(self):
        """Volume and segmentation: those of this name in the scene, else new ones.

        :raises RuntimeError: if a file cannot be read, as Slicer's readers do.
        """
        volume = _present(SAMPLE, "vtkMRMLScalarVolumeNode") or slicer.util.loadVolume(
            str(self._folder / _SAMPLE_FILE), {"name": SAMPLE}
        )
        segmentation = _present(SEGMENTS, "vtkMRMLSegmentationNode")
        if segmentation is None:
            segmentation = slicer.util.loadSegmentation(
                str(self._folder / _SEGMENTS_FILE), {"name": SEGMENTS}
            )
            # Filled segments would hide the map.
            display = segmentation.GetDisplayNode()
            if display is not None:
                display.SetVisibility2DFill(False)
        return volume, segmentation

    def register(self):
        """Offer the sample in the Sample Data module."""
        import SampleData

        logic = SampleData.SampleDataLogic
        # Since April 2026 a category can have a translated title.
        if hasattr(logic, "registerCustomSampleDataCategory"):
            logic.registerCustomSampleDataCategory(CATEGORY, title=_("Saliency Explain"))
        files = [self._folder / name for name in (_SAMPLE_FILE, _SEGMENTS_FILE)]
        logic.registerCustomSampleDataSource(
            category=CATEGORY,
            sampleName=SAMPLE,
            thumbnailFileName=str(self._icon),
            uris=[one.as_uri() for one in files],
            fileNames=[one.name for one in files],
            nodeNames=[SAMPLE, SEGMENTS],
            loadFileTypes=["VolumeFile", "SegmentationFile"],
            checksums=[f"SHA256:{_sha256(one)}" for one in files],
        )


def _present(name, kind):
    found = slicer.mrmlScene.GetFirstNodeByName(name)
    return found if found is not None and found.IsA(kind) else None


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
