"""The maps in a scene: which there are and what belongs to them."""

import json

_PREFIX = "SaliencyExplain."
_CHART = _PREFIX + "chart"


def maps(scene):
    """Volume nodes that were published, in the order in which they came into the scene."""
    found = []
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")):
        node = scene.GetNthNodeByClass(index, "vtkMRMLScalarVolumeNode")
        if node.GetAttribute(_PREFIX + "method"):
            found.append(node)
    return found


def input_of(volume):
    """Volume that was explained, or None."""
    return volume.GetNodeReference(_PREFIX + "inputVolume")


def inputs_of(volume):
    """Volumes that were explained, one a channel, as far as they are there."""
    role = _PREFIX + "inputVolume"
    count = volume.GetNumberOfNodeReferences(role)
    found = [volume.GetNthNodeReference(role, index) for index in range(count)]
    return [one for one in found if one is not None]


def metrics_of(volume):
    """Table of what was measured on a map, or that of the verdict; None for none."""
    for role in ("metrics", "verdict"):
        table = volume.GetNodeReference(_PREFIX + role)
        if table is not None:
            return table
    return None


def trust_chart_of(volume):
    """The most telling plot of how far a map can be trusted, or None."""
    for role in ("sanityChart", "deletionChart", "insertionChart"):
        chart = volume.GetNodeReference(_PREFIX + role)
        if chart is not None:
            return chart
    return None


def table_of(volume):
    """Region table of the run, or None."""
    return volume.GetNodeReference(_PREFIX + "regionTable")


def chart_of(volume):
    """Bar plot of the run, or None."""
    return volume.GetNodeReference(_CHART)


def remember_chart(published):
    """Let the maps refer to the bar plot of their run."""
    if published.chart is not None:
        for volume in published.volumes:
            volume.SetNodeReferenceID(_CHART, published.chart.GetID())


def is_signed(volume):
    return volume.GetAttribute(_PREFIX + "signed") == "true"


def title_of(volume):
    return volume.GetAttribute(_PREFIX + "title") or volume.GetName()


def provenance_of(volume):
    """The run's record as a dictionary; empty where it cannot be read."""
    try:
        found = json.loads(volume.GetAttribute(_PREFIX + "provenance") or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def neighbor(volumes, current, step):
    """Next or previous map, around the end; None without any."""
    if not volumes:
        return None
    ids = [one.GetID() for one in volumes]
    at = ids.index(current.GetID()) if current is not None and current.GetID() in ids else -1
    if at < 0:
        return volumes[0 if step > 0 else -1]
    return volumes[(at + step) % len(volumes)]
