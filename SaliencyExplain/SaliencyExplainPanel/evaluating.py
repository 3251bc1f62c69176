"""Measuring a map: its volumes go to the worker, numbers come back and are laid beside it."""

from pathlib import Path

from slicer.i18n import tr as _

import SaliencyExplainLib
from SaliencyExplainLib import worker

from . import remembered, runs
from .explaining import place_of, with_labelmaps
from .parameters import Region

#: Mode of the sanity check: the published one.
CASCADING = "cascading"


class Evaluating:
    """A run in one step, with the same face as Explaining.

    :param volume: the map.
    :param source: called with path and options of the model; a SaliencyExplainLib.worker
        ModelSource.
    :param sanity: whether the network is randomised, too.
    :param result: folder of the result that the map shows; "" makes the map again.
    """

    steps = 1

    def __init__(self, volume, source, sanity=False, result=""):
        self.asked, self._labelmaps = remembered.recall(volume)
        self._volume, self._sanity, self._result = volume, sanity, result
        self._source = source(self.asked.modelPath, self.asked.modelOptions)
        self._folder = worker.JobFolder()
        self._found = None

    @property
    def step(self):
        return 0 if self._found is None else 1

    def request(self):
        """Write the volumes and make the request."""
        asked, scene, folder = self.asked, SaliencyExplainLib.scene, self._folder
        remembered.in_scene(self._volume)
        segments, reference = None, None
        if asked.segmentation is not None:
            segments = scene.labelmap_from_segmentation(asked.segmentation, asked.volumes[0])
            reference = folder.put("segments", segments.volume)
        self._output = folder.output("appraisal")
        return worker.Evaluate(
            self._source,
            folder.put("image", scene.volume_from_nodes(list(asked.volumes))),
            worker.Question(**{**asked.question, **place_of(asked, folder)}),
            self._output,
            asked.method,
            with_labelmaps(asked.values, self._labelmaps, reference),
            self._result,
            segments=reference,
            segment_names=segments.names if segments is not None else {},
            sanity=CASCADING if self._sanity else "",
            fast=asked.fast,
        )

    def take(self):
        """Read what the worker wrote."""
        self._found = worker.read_result(self._output)
        return True

    def publish(self):
        """Lay what was found beside the map; SaliencyExplainLib.scene.PublishedAppraisal."""
        remembered.in_scene(self._volume)
        if self._found.explanation is not None:
            remembered.refuse_other(self._volume, self._found.explanation)
        return SaliencyExplainLib.scene.publish_appraisal(self._found.appraisal, self._volume)

    def close(self):
        """Remove the files of the run."""
        self._folder.remove()


class Reporting:
    """Writing the page of a map, with all that is known of it.

    :param volume: the map.
    :param folder: where the page goes.
    """

    steps = 1

    def __init__(self, volume, folder):
        self._volume, self._target = volume, folder
        self._folder = worker.JobFolder()
        self.step = 0

    def request(self):
        """Write the map and what is known of it, and make the request."""
        scene, folder, volume = SaliencyExplainLib.scene, self._folder, self._volume
        remembered.in_scene(volume)
        anatomy = runs.input_of(volume)
        if anatomy is None:
            raise SaliencyExplainLib.errors.SceneError(
                _("The volume that this map explains is not in the scene any more.")
            )
        result = folder.output("found")
        worker.jobs.write_result(
            result,
            scene.explanation_from_map(volume),
            scene.regions_from_table(runs.table_of(volume)),
            appraisal=scene.appraisal_from_map(volume),
        )
        return worker.Report(
            folder.put("image", scene.volume_from_node(anatomy)),
            result,
            self._target,
            *self._contour(folder),
        )

    def take(self):
        """There is nothing to read: the page is where it was wanted."""
        self.step = 1
        return True

    def publish(self):
        """Path of the page."""
        from SaliencyExplainLib.report.page import NAME

        return str(Path(self._target) / NAME)

    def close(self):
        """Remove the files of the run."""
        self._folder.remove()

    def _contour(self, folder):
        """Outline of the segment in which the map was made, and its name."""
        try:
            asked, _labelmaps = remembered.recall(self._volume)
        except SaliencyExplainLib.errors.SceneError:
            return None, ""
        if asked.region is not Region.SEGMENT:
            return None, ""
        segment = asked.segmentation.GetSegmentation().GetSegment(asked.segmentID)
        return place_of(asked, folder)["segment"], segment.GetName()


def plan_of(volume, sanity=False, has_map=False):
    """What measuring a map takes: a SaliencyExplainLib.quality.Plan, without torch.

    :raises SaliencyExplainLib.SaliencyExplainError: if it cannot be measured, with what to do.
    """
    # Only when a map is looked at: the panel opens without it.
    from SaliencyExplainLib.quality.plan import plan_work

    asked, labelmaps = remembered.recall(volume)
    # A label map changes no number of passes that is known beforehand.
    values = {name: one for name, one in asked.values.items() if name not in labelmaps}
    method = SaliencyExplainLib.make_method(asked.method, values)
    return plan_work(
        method,
        metrics="quick",
        has_map=has_map,
        has_labelmap=asked.segmentation is not None,
        sanity=CASCADING if sanity else "",
    )
