"""Logic for the Python console and for other modules: nodes in, nodes out."""

import dataclasses
from pathlib import Path

from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

import SaliencyExplainLib

from . import packages, remembered, runs
from .parameters import Region, SaliencyExplainParameterNode
from .similarity import similarity

#: Beside the module file, from the source tree and installed.
RESOURCES = Path(__file__).resolve().parent.parent / "Resources"
#: Maps of which the logic keeps what no scene holds.
MOST_KEPT = 4


class SaliencyExplainLogic(ScriptedLoadableModuleLogic):
    """Nodes in, nodes out: for the Python console and for other modules.

    It computes inside the Slicer process, which waits meanwhile; the panel uses another process.

    One volume, a model file, and the numbers in each segment::

        from SaliencyExplain import SaliencyExplainLogic
        logic = SaliencyExplainLogic()
        target = logic.makeTarget("spleen")
        published = logic.explain(getNode("CTChest"), "/models/spleen_bundle", target,
                                  "integrated_gradients", parameters={"steps": 32},
                                  segmentationNode=getNode("Segmentation"))
        published.volumes[0]     # the map; published.table: one row a segment

    A network of your own, four channels, and a segment of the scene as the place::

        from SaliencyExplain import Region, SaliencyExplainLogic
        volumes = [getNode(name) for name in ("FLAIR", "T1", "T1c", "T2")]
        logic = SaliencyExplainLogic()
        target = logic.makeTarget("tumor", Region.SEGMENT, volumes[0], getNode("Segmentation"),
                                  "Segment_1")
        logic.explain(volumes, network, target, "gradient",
                      modelOptions={"task": "segmentation", "labels": ["background", "tumor"]})

    The same question to several methods, compared::

        maps = {}
        for method in ("gradient", "smooth_grad", "occlusion"):
            published = logic.explain(volume, model, target, method, show=False)
            maps[method] = published.volumes[0]
        logic.similarity(maps["gradient"], maps["occlusion"]).spearman

    How far one of them can be trusted, and a page that tells it::

        found = logic.evaluate(maps["gradient"], model, sanityCheck=True)
        found.verdict.headline
        found.tables["metrics"]  # a table node: one row a metric
        logic.saveReport(maps["gradient"], "/tmp/report")

    A published system, end to end (a shell runs it without stopping Slicer; then publishStudy)::

        logic.runStudy("background_removal", "/tmp/background", quick=True)
    """

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        # A map on the network's grid is in no scene; those of the last runs are kept here.
        self._made = {}

    def getParameterNode(self):
        return SaliencyExplainParameterNode(super().getParameterNode())

    def setupSentence(self):
        """What has to be installed before a model can be loaded; empty when nothing is missing."""
        return packages.sentence()

    def ensurePackages(self, confirmed=None):
        """Install what is missing after one question; raises MissingPackageError if it stays so."""
        packages.ensure(RESOURCES / "requirements.txt", confirmed)

    def makeTarget(
        self,
        outputName,
        region=Region.AUTOMATIC,
        volumeNode=None,
        segmentationNode=None,
        segmentID="",
        markupsNode=None,
        **options,
    ):
        """Make a target: a class by its name, and where.

        :param outputName: name of the class; "" for the only or the predicted one.
        :param region: member of Region. SEGMENT needs volumeNode, segmentationNode and segmentID;
            ROI and POINT need volumeNode and markupsNode.
        :param options: further arguments of SaliencyExplainLib.Target (score, contrast...).
        """
        sx = SaliencyExplainLib
        place = {"region": region.value}
        if region is Region.SEGMENT:
            place["segment"] = sx.scene.mask_from_segment(segmentationNode, segmentID, volumeNode)
        elif region is Region.ROI:
            place = sx.scene.roi_from_node(markupsNode, volumeNode).target_fields()
        elif region is Region.POINT:
            place["point_ras_mm"] = sx.scene.point_from_node(markupsNode, volumeNode)
        return sx.Target(output=outputName or None, **place, **options)

    def explain(
        self,
        volumeNodes,
        model,
        target=None,
        method="integrated_gradients",
        segmentationNode=None,
        parameters=None,
        progress=None,
        cancelled=None,
        trusted=False,
        modelOptions=None,
        name=None,
        show=True,
    ):
        """Explain a model on volumes of the scene and publish the result.

        :param volumeNodes: a volume node, or a list of them: the channels of the model in its
            order.
        :param model: SaliencyExplainLib.Model, path of a model file, or torch.nn.Module.
        :param target: SaliencyExplainLib.Target; by default the only or the predicted class.
        :param method: name from SaliencyExplainLib.methods().
        :param segmentationNode: optional; its segments become the rows of the region table.
        :param parameters: dictionary of the method's parameters.
        :param progress: called with a fraction (0 to 1) and a message between passes.
        :param cancelled: called between passes; returning True stops the run.
        :param trusted: whether code that a model file carries may run.
        :param modelOptions: further arguments of SaliencyExplainLib.load_model (task, labels,
            preprocess...).
        :param name: start of the names of all new nodes; volume, method and class when left out.
        :param show: whether the map is laid over the volume in the slice views.
        :return: SaliencyExplainLib.scene.Published with the new nodes.
        :raises SaliencyExplainLib.SaliencyExplainError: with what to do. The scene is then as it
            was.
        """
        sx = SaliencyExplainLib
        nodes = list(volumeNodes) if isinstance(volumeNodes, (list, tuple)) else [volumeNodes]
        image = sx.scene.image_from_nodes(nodes)
        segments = None
        if segmentationNode is not None:
            segments = sx.scene.labelmap_from_segmentation(segmentationNode, nodes[0])
        if not isinstance(model, sx.Model):
            model = sx.load_model(model, trusted=trusted, **(modelOptions or {}))
        explanation = sx.explain(
            model,
            image,
            target,
            method,
            progress=progress,
            cancelled=cancelled,
            **(parameters or {}),
        )
        regions = None
        if segments is not None:
            regions = sx.region_table(explanation, segments.labelmap, segments.names)
        scene = nodes[0].GetScene()
        if scene is None:
            raise sx.errors.SceneError(
                _("The input volume was removed while the network ran. Nothing was added.")
            )
        published = sx.scene.publish(
            explanation,
            scene,
            input_volume=nodes,
            regions=regions,
            segmentation=segmentationNode,
            name=name,
            show=show,
            warnings=segments.warnings if segments is not None else (),
        )
        runs.remember_chart(published)
        self._made[published.volumes[0].GetID()] = explanation
        for nodeID in list(self._made)[:-MOST_KEPT]:
            del self._made[nodeID]
        return published

    def evaluate(
        self,
        mapNode,
        model,
        target=None,
        metrics="quick",
        sanityCheck=False,
        methods=(),
        segmentationNode=None,
        truthSegmentID="",
        parameters=None,
        progress=None,
        cancelled=None,
        trusted=False,
        modelOptions=None,
    ):
        """Find out how far a map can be trusted and lay the answer beside it.

        A map that this object has not made itself is made again first; what measuring costs is in
        SaliencyExplainLib.quality.plan_work.

        :param mapNode: a published map.
        :param model: as for explain(); the one that was explained.
        :param target: the explained target; needed where it was in a segment, a box or at a point.
        :param metrics: "quick", "usual", "all", or a list of names from
            SaliencyExplainLib.quality.metrics().
        :param sanityCheck: whether to see if the map notices that the network is randomised.
        :param methods: names of methods to be ranked.
        :param segmentationNode: optional; for metrics that look at segments.
        :param truthSegmentID: its segment that holds the evidence which is known to be right.
        :param parameters: parameters of the method that its record does not hold (label maps).
        :param progress, cancelled, trusted, modelOptions: as for explain().
        :return: SaliencyExplainLib.scene.PublishedAppraisal with verdict, tables and charts.
        :raises SaliencyExplainLib.SaliencyExplainError: with what to do. The scene is then as it
            was.
        """
        sx = SaliencyExplainLib
        from SaliencyExplainLib.quality.trial import method_of, target_of

        told = sx.scene.explanation_from_map(mapNode)
        nodes = runs.inputs_of(mapNode)
        if not nodes:
            raise sx.errors.SceneError(
                _("The volume that this map explains is not in the scene any more.")
            )
        known = self._known(mapNode)
        if parameters:
            names = {one.name for one in dataclasses.fields(sx.make_method(told.method))}
            kept = {name: one for name, one in told.parameters.items() if name in names}
            method = sx.make_method(told.method, {**kept, **parameters})
        else:
            method = method_of(told)
        segments = truth = None
        if segmentationNode is not None:
            segments = sx.scene.labelmap_from_segmentation(segmentationNode, nodes[0])
        if truthSegmentID:
            truth = sx.scene.mask_from_segment(segmentationNode, truthSegmentID, nodes[0])
        plan = sx.quality.plan_work(
            method,
            methods,
            metrics,
            has_map=known is not None,
            has_truth=truth is not None,
            has_labelmap=segments is not None,
            sanity="cascading" if sanityCheck else "",
        )
        if not isinstance(model, sx.Model):
            model = sx.load_model(model, trusted=trusted, **(modelOptions or {}))
        made, found = sx.quality.appraise(
            plan,
            model,
            sx.scene.image_from_nodes(nodes),
            target_of(told) if target is None else target,
            known,
            truth=truth,
            labelmap=None if segments is None else segments.labelmap,
            names=None if segments is None else segments.names,
            progress=progress,
            cancelled=cancelled,
        )
        remembered.refuse_other(mapNode, made)
        return sx.scene.publish_appraisal(found, mapNode)

    def saveReport(self, mapNode, folder):
        """Write a page with a map, its numbers and what was found on it; nothing is measured.

        :param folder: gets report.html, which needs no other file, and figures/.
        :return: path of the page.
        :raises SaliencyExplainLib.SaliencyExplainError: if the volume is gone, or the folder cannot
            be written.
        """
        sx = SaliencyExplainLib
        anatomy = runs.input_of(mapNode)
        if anatomy is None:
            raise sx.errors.SceneError(
                _("The volume that this map explains is not in the scene any more.")
            )
        found = sx.scene.appraisal_from_map(mapNode)
        return sx.write_report(
            sx.scene.explanation_from_map(mapNode),
            sx.scene.image_from_node(anatomy),
            folder,
            regions=sx.scene.regions_from_table(runs.table_of(mapNode)),
            **(vars(found) if found is not None else {}),
        )[0]

    def runStudy(self, name, folder=None, quick=False, seed=1, progress=None, cancelled=None):
        """Run a published system end to end; its volumes, tables and plots come into the scene.

        :param name: from SaliencyExplainLib.studies.studies().
        :param folder: where what is done is kept, so that the same call goes on where it was
            stopped, and where the page with the results is written; left out: nothing is written.
        :param quick: a small version, under two minutes; the usual one takes up to twenty.
        :param seed: of everything that is random.
        :param progress, cancelled: as for explain().
        :return: SaliencyExplainLib.scene.PublishedStudy with the new nodes.
        :raises SaliencyExplainLib.SaliencyExplainError: with what to do. The scene is then as it
            was.
        """
        sx = SaliencyExplainLib
        known = sx.studies.studies()
        if name not in known:
            raise sx.errors.StudyError(
                _("There is no study {name}. The studies are {known}.").format(
                    name=repr(name), known=", ".join(known)
                )
            )
        found = known[name](folder, quick=quick, seed=seed, progress=progress, cancelled=cancelled)
        return sx.scene.publish_study(found)

    def publishStudy(self, folder):
        """Put into the scene what the shell's study wrote into a folder; needs no torch.

        :return: SaliencyExplainLib.scene.PublishedStudy with the new nodes.
        :raises SaliencyExplainLib.SaliencyExplainError: if there is no finished study.
        """
        sx = SaliencyExplainLib
        return sx.scene.publish_study(sx.studies.StudyResult.load(folder))

    def _known(self, mapNode):
        """What explain() has made for a map, as long as the map shows it."""
        made = self._made.get(mapNode.GetID())
        if made is None or mapNode.GetAttribute("SaliencyExplain.value") != repr(float(made.value)):
            return None
        return made

    def similarity(self, firstMap, secondMap):
        """How alike two maps are: rank correlation and overlap of their strongest voxels.

        :return: an object with spearman, overlap and voxels; None where the maps do not overlap.
        """
        return similarity(firstMap, secondMap)
