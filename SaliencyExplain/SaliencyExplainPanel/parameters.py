"""What the panel asks, as a parameter node: saved with the scene, so a loaded scene restores it.

Two things are not in it on purpose: trust in a model (a scene may come from anybody) and settings
of the computer (settings.py).
"""

import json
from enum import Enum
from typing import Annotated

from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

#: `contrast` that means: the class that comes second in the region.
RUNNER_UP = "runner_up"
#: Roles of node references that the wrapper does not manage: a class of a module that may load
#: later than this one, and lists with gaps.
ROI, POINT, CHANNEL = "roi", "point", "channel{index}"


class Region(Enum):
    """Where the explained score is taken. Members are stored by name, so the names stay."""

    AUTOMATIC = None
    PREDICTION = "prediction"
    SEGMENT = "segment"
    ROI = "roi"
    POINT = "point"
    INSTANCE = "instance"
    EVERYWHERE = "everywhere"

    def label(self):
        return {
            Region.AUTOMATIC: _("Automatic"),
            Region.PREDICTION: _("Where the class is predicted"),
            Region.SEGMENT: _("In a segment"),
            Region.ROI: _("In a box (ROI)"),
            Region.POINT: _("At a point"),
            Region.INSTANCE: _("In one connected part (a lesion)"),
            Region.EVERYWHERE: _("Everywhere"),
        }[self]


class Score(Enum):
    """The number that is explained."""

    AUTOMATIC = None
    LOGIT = "logit"
    PROBABILITY = "probability"
    SOFT_VOLUME = "soft_volume"
    VALUE = "value"

    def label(self):
        return {
            Score.AUTOMATIC: _("Automatic"),
            Score.LOGIT: _("Class score (logit)"),
            Score.PROBABILITY: _("Probability"),
            Score.SOFT_VOLUME: _("Soft volume (ml)"),
            Score.VALUE: _("Value (regression)"),
        }[self]


class Reduce(Enum):
    """How the voxels of the region become one number."""

    MEAN = "mean"
    SUM = "sum"

    def label(self):
        return {Reduce.MEAN: _("Mean"), Reduce.SUM: _("Sum")}[self]


class Task(Enum):
    """What the network does, where its file does not say."""

    AUTOMATIC = None
    SEGMENTATION = "segmentation"
    CLASSIFICATION = "classification"
    REGRESSION = "regression"

    def label(self):
        return {
            Task.AUTOMATIC: _("As the file says"),
            Task.SEGMENTATION: _("Segmentation"),
            Task.CLASSIFICATION: _("Classification"),
            Task.REGRESSION: _("Regression"),
        }[self]


@parameterNodeWrapper
class SaliencyExplainParameterNode:
    """What the panel asks.

    inputVolume - first (or only) input channel; the others are node references "channel1", ...
    segmentation, segmentID - segments for the region table; the segment that is explained
    everyFrame - explain each frame of the sequence that the volume belongs to
    modelPath, modelTask, modelLabels, modelChannels - model file and what it does not say itself
    modelCard - JSON of what the model said about itself when it was loaded last
    outputName, region, score, reduce, contrast, contrastWeight - the target
    method, methodParameters - name; JSON {method: {parameter: value}} of values that were changed
    fast - whether the network may compute in bfloat16
    runName, layerMap, show3D - what becomes of a result
    result, compareWith - the maps that are shown under Results
    opacity, legend - how they are shown; dead band and range are kept with each map
    """

    inputVolume: vtkMRMLScalarVolumeNode
    segmentation: vtkMRMLSegmentationNode
    segmentID: str = ""
    everyFrame: bool = False
    modelPath: str = ""
    modelTask: Task = Task.AUTOMATIC
    modelLabels: str = ""
    modelChannels: str = ""
    modelCard: str = ""
    outputName: str = ""
    region: Region = Region.AUTOMATIC
    score: Score = Score.AUTOMATIC
    reduce: Reduce = Reduce.MEAN
    contrast: str = ""
    contrastWeight: Annotated[float, WithinRange(0.0, 10.0)] = 1.0
    method: str = "integrated_gradients"
    methodParameters: str = ""
    fast: bool = False
    runName: str = ""
    layerMap: bool = False
    show3D: bool = False
    result: vtkMRMLScalarVolumeNode
    compareWith: vtkMRMLScalarVolumeNode
    opacity: Annotated[float, WithinRange(0.0, 1.0)] = 0.6
    legend: bool = True


def referenced(parameters, role):
    """Node of a role that the wrapper does not manage, or None."""
    return parameters.parameterNode.GetNodeReference(role)


def refer(parameters, role, node):
    """Set the node of such a role; None for none."""
    wanted = node.GetID() if node is not None else None
    if parameters.parameterNode.GetNodeReferenceID(role) != wanted:
        parameters.parameterNode.SetNodeReferenceID(role, wanted)
        parameters.parameterNode.Modified()


def channel_node(parameters, index):
    """Volume of an input channel, or None."""
    if index == 0:
        return parameters.inputVolume
    return referenced(parameters, CHANNEL.format(index=index))


def set_channel_node(parameters, index, node):
    """Choose the volume of an input channel."""
    if index == 0:
        parameters.inputVolume = node
    else:
        refer(parameters, CHANNEL.format(index=index), node)


def words(text):
    """Names with commas between them, as a list."""
    return [one.strip() for one in text.split(",") if one.strip()]


def model_options(parameters):
    """What was said about the model beyond its file: arguments of load_model."""
    given = {
        "task": parameters.modelTask.value,
        "labels": words(parameters.modelLabels),
        "channels": words(parameters.modelChannels),
    }
    return {name: value for name, value in given.items() if value}


def changed_parameters(parameters, method=None):
    """Values of a method's parameters that differ from its defaults."""
    return dict(_object(parameters.methodParameters).get(method or parameters.method, {}))


def set_changed_parameters(parameters, values, method=None):
    """Keep such values; those of the other methods stay."""
    kept = _object(parameters.methodParameters)
    kept[method or parameters.method] = dict(values)
    parameters.methodParameters = json.dumps({name: one for name, one in kept.items() if one})


def model_card(parameters):
    """What the model said about itself, as long as path and options are those it was said for."""
    card = _object(parameters.modelCard)
    asked = [parameters.modelPath, model_options(parameters)]
    return card if card.get("asked") == asked else {}


def set_model_card(parameters, card):
    """Keep what the model said about itself."""
    asked = [parameters.modelPath, model_options(parameters)]
    parameters.modelCard = json.dumps({**card, "asked": asked}) if card else ""


def _object(text):
    """A JSON object; empty for anything else, as a scene file may hold anything."""
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
