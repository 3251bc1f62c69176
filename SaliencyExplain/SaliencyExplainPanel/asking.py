"""From the parameter node to a job: what is missing before Apply, and what Apply asks.

Nothing here knows Qt; nothing changes the scene.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from slicer.i18n import tr as _

import SaliencyExplainLib

from . import parameters as asked_for
from . import sequences
from .parameters import POINT, ROI, Region


@dataclass(frozen=True)
class Asked:
    """What Apply asks; later changes in the panel do not touch a run.

    volumes - one node a channel;  frames - indices of frames, empty without a sequence
    question - fields of the worker's Question but place;  values - parameters of the method
    """

    volumes: tuple
    segmentation: object
    segmentID: str
    region: Region
    roi: object
    point: object
    modelPath: str
    modelOptions: dict
    question: dict
    method: str
    values: dict
    fast: bool
    frames: tuple
    name: str
    layerMap: bool
    show3D: bool


def ask(parameters):
    """Read the parameter node."""
    contrast = parameters.contrast or None
    return Asked(
        volumes=tuple(channel_nodes(parameters)),
        segmentation=parameters.segmentation,
        segmentID=parameters.segmentID,
        region=parameters.region,
        roi=asked_for.referenced(parameters, ROI),
        point=asked_for.referenced(parameters, POINT),
        modelPath=parameters.modelPath,
        modelOptions=asked_for.model_options(parameters),
        question={
            "output": parameters.outputName or None,
            "region": parameters.region.value,
            "score": parameters.score.value,
            "reduce": parameters.reduce.value,
            "contrast": contrast,
            "contrast_weight": parameters.contrastWeight,
        },
        method=parameters.method,
        values=asked_for.changed_parameters(parameters),
        fast=parameters.fast,
        frames=_frames(parameters),
        name=parameters.runName.strip(),
        layerMap=parameters.layerMap,
        show3D=parameters.show3D,
    )


def channel_names(parameters):
    """Names of the input channels, as far as they are known; at least one."""
    return list(asked_for.model_card(parameters).get("channels") or [""])


def channel_nodes(parameters):
    """Chosen volumes, one a channel; None where none is."""
    count = len(channel_names(parameters))
    return [asked_for.channel_node(parameters, index) for index in range(count)]


def problems(parameters):
    """Why Apply cannot run, one sentence each."""
    if parameters is None:
        return [_("The scene is being closed.")]
    return [
        *_input_problems(parameters),
        *_model_problems(parameters),
        *_target_problems(parameters),
        *_method_problems(parameters),
    ]


def _input_problems(parameters):
    names, nodes = channel_names(parameters), channel_nodes(parameters)
    found = []
    for name, node in zip(names, nodes, strict=True):
        if node is None:
            found.append(
                _("Choose an input volume.")
                if len(names) == 1
                else _("Choose a volume for the channel '{name}' under Inputs.").format(name=name)
            )
        elif node.GetImageData() is None:
            found.append(
                _("The volume '{name}' holds no voxels. Choose another one.").format(
                    name=node.GetName()
                )
            )
    seen = {}
    for name, node in zip(names, nodes, strict=True):
        if node is not None and node.GetID() in seen:
            found.append(
                _("The channels '{first}' and '{second}' have the same volume.").format(
                    first=seen[node.GetID()], second=name
                )
            )
        elif node is not None:
            seen[node.GetID()] = name
    return found


def _model_problems(parameters):
    if not parameters.modelPath:
        return [_("Choose a model file or folder, or press Load demo.")]
    if not asked_for.model_card(parameters):
        return [_("Press Load model; its classes are then listed.")]
    return []


def _target_problems(parameters):
    card = asked_for.model_card(parameters)
    labels = card.get("labels") or []
    found = []
    if labels and parameters.outputName not in labels:
        found.append(_("Choose a class under Target."))
    region = parameters.region
    if region is Region.SEGMENT and not has_segment(parameters.segmentation, parameters.segmentID):
        found.append(_("Choose a segmentation under Inputs and a segment under Target."))
    if region is Region.ROI and asked_for.referenced(parameters, ROI) is None:
        found.append(_("Choose or create a box under Target."))
    if region is Region.POINT and not placed(asked_for.referenced(parameters, POINT)):
        found.append(_("Choose a point list under Target and place its first point."))
    if parameters.contrast and parameters.contrast == parameters.outputName:
        found.append(_("Choose another class under 'Rather than', or none."))
    return found


def _method_problems(parameters):
    method = SaliencyExplainLib.methods().get(parameters.method)
    if method is None:
        return [_("Choose a method.")]
    found = []
    if method.needs_layer and asked_for.model_card(parameters).get("scripted"):
        found.append(
            _(
                "{method} looks into a layer, which a TorchScript model does not allow. Save the "
                "network with torch.export (.pt2) instead, or choose another method."
            ).format(method=method.title)
        )
    if labelmaps_wanted(parameters) and parameters.segmentation is None:
        found.append(
            _("{method} needs a segmentation: choose one under Inputs.").format(method=method.title)
        )
    return found


def labelmaps_wanted(parameters):
    """Names of the method's label map parameters that its other values ask for.

    Such a parameter has the name of the choice that needs it ("segments").
    """
    method = SaliencyExplainLib.methods().get(parameters.method)
    if method is None:
        return []
    values = asked_for.changed_parameters(parameters)
    fields = dataclasses.fields(method)
    chosen = {values.get(one.name, one.default) for one in fields if one.metadata["choices"]}
    return [one.name for one in fields if one.metadata["kind"] == "labelmap" and one.name in chosen]


def has_segment(segmentation, segmentID):
    """Whether a segmentation node has a segment of this ID."""
    if segmentation is None or not segmentID:
        return False
    return segmentation.GetSegmentation().GetSegment(segmentID) is not None


def model_name(parameters):
    """Name of the model file, for texts."""
    return Path(parameters.modelPath).name


def _frames(parameters):
    count = sequences.frame_count(parameters.inputVolume) if parameters.everyFrame else 0
    return tuple(range(count)) if count > 1 else ()


def placed(point):
    """Whether the first point of a point list (or None) was put somewhere."""
    return (
        point is not None
        and point.GetNumberOfControlPoints() > 0
        and point.GetNthControlPointPositionStatus(0) == point.PositionDefined
    )
