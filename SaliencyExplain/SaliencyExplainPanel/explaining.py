"""One run: the volumes go to the worker, the maps come back, and only then the scene changes."""

import json

import slicer
from slicer.i18n import tr as _

import SaliencyExplainLib
from SaliencyExplainLib import worker

from . import remembered, rendering, sequences
from .asking import placed
from .parameters import Region


class Explaining:
    """The steps of a run, one request a frame; it knows neither Qt nor the process.

    :param asked: asking.Asked
    :param source: SaliencyExplainLib.worker.ModelSource
    :param labelmaps: names of the method's parameters that get the segmentation
    :param keep: called with the published map and the folder of its result, before that is removed
    """

    def __init__(self, asked, source, labelmaps=(), keep=None):
        self.asked = asked
        self._source = source
        self._labelmaps = labelmaps
        self._keep = keep
        self._folder = worker.JobFolder()
        self._results = []
        self._outputs = []
        self._segments = None

    @property
    def steps(self):
        return max(1, len(self.asked.frames))

    @property
    def step(self):
        """Number of finished steps."""
        return len(self._results)

    def request(self):
        """Write the next volumes and make the request for them."""
        asked, scene = self.asked, SaliencyExplainLib.scene
        nodes = asked.volumes
        self._refuse_gone()
        if asked.frames:
            frame = asked.frames[self.step]
            nodes = [sequences.frame_of(one, frame) for one in nodes]
        folder = self._folder
        image = folder.put(f"image{self.step}", scene.volume_from_nodes(list(nodes)))
        if self._segments is None and asked.segmentation is not None:
            self._segments = scene.labelmap_from_segmentation(asked.segmentation, asked.volumes[0])
            self._reference = folder.put("segments", self._segments.volume)
        reference = self._reference if self._segments is not None else None
        self._outputs.append(folder.output(f"result{self.step}"))
        return worker.Explain(
            self._source,
            image,
            worker.Question(**{**asked.question, **place_of(asked, folder)}),
            asked.method,
            with_labelmaps(asked.values, self._labelmaps, reference),
            self._outputs[-1],
            segments=reference,
            segment_names=self._segments.names if self._segments is not None else {},
            fast=asked.fast,
        )

    def take(self):
        """Read what the worker wrote; True when that was the last step."""
        self._results.append(worker.read_result(self._outputs[-1]))
        return self.step == self.steps

    def publish(self):
        """Put the results into the scene; SaliencyExplainLib.scene.Published.

        With frames, the map of the frame that is shown is published, and becomes a sequence.
        """
        asked = self.asked
        self._refuse_gone()
        shown = 0
        if asked.frames:
            shown = min(sequences.selected_frame(asked.volumes[0]), self.steps - 1)
        # Before anything is added: what can fail must leave the scene as it was.
        maps = self._frame_maps() if asked.frames else []
        result = self._results[shown]
        warnings = self._segments.warnings if self._segments is not None else ()
        published = SaliencyExplainLib.scene.publish(
            result.explanation,
            slicer.mrmlScene,
            input_volume=list(asked.volumes),
            regions=result.regions,
            segmentation=asked.segmentation,
            name=asked.name or None,
            layer_map=asked.layerMap,
            warnings=warnings,
        )
        remembered.remember(published.volumes, asked, self._labelmaps)
        if self._keep is not None:
            self._keep(published.volumes[0], self._outputs[shown])
        if asked.frames:
            sequences.add_maps(asked.volumes[0], published.volumes[0], maps)
        if asked.show3D:
            rendering.show(published.volumes[0], True)
        return published

    def close(self):
        """Remove the files of the run."""
        self._folder.remove()

    def _frame_maps(self):
        """The map of each frame as a node outside the scene, with what differs between frames."""
        from SaliencyExplainLib.scene.nodes import node_from_map
        from SaliencyExplainLib.scene.publishing import PREFIX

        maps = []
        for result in self._results:
            found = result.explanation
            node = node_from_map(found.map.voxels[0], found.maps.affine, "")
            node.SetAttribute(f"{PREFIX}value", repr(float(found.value)))
            node.SetAttribute(f"{PREFIX}provenance", json.dumps(found.to_dict(), default=str))
            maps.append(node)
        return maps

    def _refuse_gone(self):
        """Nodes may be removed while the network runs."""
        asked = self.asked
        for node in (*asked.volumes, asked.segmentation, asked.roi, asked.point):
            if node is not None and node.GetScene() is not slicer.mrmlScene:
                raise SaliencyExplainLib.errors.SceneError(
                    _("'{name}' was removed from the scene. Nothing was added.").format(
                        name=node.GetName()
                    )
                )


def place_of(asked, folder):
    """Where the score is taken, as fields of a question; a mask goes into the folder."""
    scene, volume = SaliencyExplainLib.scene, asked.volumes[0]
    if asked.region is Region.SEGMENT:
        mask = scene.volume_from_segment(asked.segmentation, asked.segmentID, volume)
        return {"segment": folder.put("mask", mask)}
    pointed = asked.region in (Region.POINT, Region.INSTANCE)
    if pointed and placed(asked.point):
        return {"point_ras_mm": scene.point_from_node(asked.point, volume)}
    if asked.region is Region.ROI:
        return scene.roi_from_node(asked.roi, volume).question_fields(folder)
    return {}


def with_labelmaps(values, names, reference):
    """Parameters of a method, those of these names with the segmentation."""
    return {**values, **(dict.fromkeys(names, reference) if reference is not None else {})}
