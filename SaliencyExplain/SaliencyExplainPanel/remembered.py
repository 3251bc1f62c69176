"""What a map answers, kept with it: the question can be asked again, from a loaded scene too.

Trust in the model is not kept: a scene may come from anybody.
"""

import json

import slicer
from slicer.i18n import tr as _

import SaliencyExplainLib

from . import runs
from .asking import Asked, has_segment
from .parameters import Region

_PREFIX = "SaliencyExplain."
_ASKED = _PREFIX + "asked"
_KINDS = {
    "segmentation": "vtkMRMLSegmentationNode",
    "roi": "vtkMRMLMarkupsROINode",
    "point": "vtkMRMLMarkupsNode",
}
_ROLES = {name: f"{_PREFIX}asked.{name}" for name in _KINDS}
_PLAIN = {
    "segmentID": str,
    "modelPath": str,
    "modelOptions": dict,
    "question": dict,
    "method": str,
    "values": dict,
    "fast": bool,
}


def remember(volumes, asked, labelmaps):
    """Keep a question with the maps that answer it.

    :param asked: asking.Asked
    :param labelmaps: names of the method's parameters that got the segmentation.
    """
    facts = {name: getattr(asked, name) for name in _PLAIN}
    facts |= {"region": asked.region.name, "labelmaps": list(labelmaps)}
    for volume in volumes:
        volume.SetAttribute(_ASKED, json.dumps(facts))
        for name, role in _ROLES.items():
            node = getattr(asked, name)
            volume.SetNodeReferenceID(role, node.GetID() if node is not None else None)


def recall(volume):
    """The question that a map answers, as (asking.Asked, names of label map parameters).

    :raises SceneError: if it is not known, or something that it needs is gone.
    """
    try:
        facts = json.loads(volume.GetAttribute(_ASKED) or "")
        if any(not isinstance(facts[name], kind) for name, kind in _PLAIN.items()):
            raise TypeError(facts)
        region = Region[facts["region"]]
        nodes = {name: _node(volume, name) for name in _KINDS}
        asked = Asked(
            **{name: facts[name] for name in _PLAIN},
            **nodes,
            region=region,
            volumes=tuple(runs.inputs_of(volume)),
            frames=(),
            name="",
            layerMap=False,
            show3D=False,
        )
        labelmaps = [str(name) for name in facts["labelmaps"]]
    except (ValueError, KeyError, TypeError):
        # A scene file may hold anything.
        raise _error(
            _("What this map answers is not known here. Make it again with Apply, or measure it in "
              "the Python console: logic.evaluate().")
        ) from None  # fmt: skip
    _refuse_gone(volume, asked, labelmaps)
    return asked, labelmaps


def other_value(volume, explanation):
    """Whether a map that was made again explains another value than the one that is shown."""
    then, now = float(volume.GetAttribute(_PREFIX + "value") or "nan"), explanation.value
    # Other hardware, or bfloat16.
    return not abs(then - now) <= 0.05 * max(abs(then), abs(now)) + 1e-2


def refuse_other(volume, explanation):
    """:raises SceneError: if a map that was made again is not the one that is shown."""
    if other_value(volume, explanation):
        raise _error(
            _("This map explains {then:.4g}; the same question gives {now:.4g} now. Volume, "
              "segments or model have changed: make the map again with Apply.")
            .format(then=float(volume.GetAttribute(_PREFIX + "value") or "nan"),
                    now=explanation.value)
        )  # fmt: skip


def _node(volume, name):
    """Node of a role, if it is there and of the right kind."""
    node = volume.GetNodeReference(_ROLES[name])
    return node if node is not None and node.IsA(_KINDS[name]) else None


def _refuse_gone(volume, asked, labelmaps):
    wanted = volume.GetNumberOfNodeReferences(_PREFIX + "inputVolume")
    if not asked.volumes or len(asked.volumes) < wanted:
        raise _error(_("A volume that this map explains is not in the scene any more."))
    if asked.region is Region.SEGMENT and not has_segment(asked.segmentation, asked.segmentID):
        raise _error(_("The segment in which this map was made is not in the scene any more."))
    if asked.region is Region.ROI and asked.roi is None:
        raise _error(_("The box in which this map was made is not in the scene any more."))
    if asked.region is Region.POINT and asked.point is None:
        raise _error(_("The point at which this map was made is not in the scene any more."))
    if labelmaps and asked.segmentation is None:
        raise _error(_("The segments that this method used are not in the scene any more."))


def in_scene(volume):
    """:raises SceneError: if the map was removed meanwhile."""
    if volume.GetScene() is not slicer.mrmlScene:
        raise _error(
            _("'{name}' was removed from the scene. Nothing was added.").format(
                name=volume.GetName()
            )
        )


def _error(text):
    return SaliencyExplainLib.errors.SceneError(text)
