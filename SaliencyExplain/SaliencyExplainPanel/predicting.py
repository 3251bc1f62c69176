"""The model's own prediction as a segmentation: regions for the table where there are none yet."""

import slicer
from slicer.i18n import tr as _

import SaliencyExplainLib
from SaliencyExplainLib import worker


class Predicting:
    """A run in one step, with the same face as Explaining."""

    steps = 1

    def __init__(self, volumes, source, name):
        self._volumes, self._source, self._name = volumes, source, name
        self._folder = worker.JobFolder()
        self._output = self._folder.output("prediction")
        self._result = None

    @property
    def step(self):
        return 0 if self._result is None else 1

    def request(self):
        volumes = SaliencyExplainLib.scene.volume_from_nodes(list(self._volumes))
        return worker.Predict(self._source, self._folder.put("image", volumes), self._output)

    def take(self):
        self._result = worker.read_result(self._output)
        return True

    def publish(self):
        """Add the segmentation; its node."""
        volume, labels = self._volumes[0], self._result.labels
        if volume.GetScene() is not slicer.mrmlScene:
            raise SaliencyExplainLib.errors.SceneError(
                _("The input volume was removed from the scene. Nothing was added.")
            )
        if labels.voxels.shape[0] != 1:
            raise SaliencyExplainLib.errors.SceneError(
                _("The model's classes may overlap, so its prediction is no label map.")
            )
        names = self._result.label_names or {}
        node = SaliencyExplainLib.scene.add_segmentation(
            slicer.mrmlScene, labels, names, f"{volume.GetName()} {self._name}"
        )
        node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
        return node

    def close(self):
        self._folder.remove()
