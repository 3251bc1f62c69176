"""Volumes over time: which frames a volume belongs to, and a sequence of maps beside them."""

import slicer


def browser_of(volume):
    """Browser node that shows the volume as one frame of a sequence, or None."""
    if volume is None or volume.GetScene() is None:
        return None
    scene = volume.GetScene()
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode")):
        browser = scene.GetNthNodeByClass(index, "vtkMRMLSequenceBrowserNode")
        if browser.GetSequenceNode(volume) is not None:
            return browser
    return None


def frame_count(volume):
    """Number of frames that are browsed with the volume; 0 if it belongs to no sequence."""
    browser = browser_of(volume)
    return browser.GetNumberOfItems() if browser is not None else 0


def selected_frame(volume):
    """Index of the frame that is shown."""
    return max(0, browser_of(volume).GetSelectedItemNumber())


def frame_of(volume, index):
    """Volume node of one frame: the volume itself where it does not change over time.

    The browser stays where it is, so nothing flickers.
    """
    browser = browser_of(volume)
    sequence = browser.GetSequenceNode(volume) if browser is not None else None
    if sequence is None:
        return volume
    value = browser.GetMasterSequenceNode().GetNthIndexValue(index)
    found = sequence.GetDataNodeAtValue(value, False)
    return found if found is not None else volume


def add_maps(volume, mapNode, maps):
    """Browse one map a frame together with the volume.

    :param volume: the input, a frame of the sequence.
    :param mapNode: published map of the frame that is shown; it becomes the frame of the new
        sequence.
    :param maps: volume nodes outside the scene, one a frame; attributes that they lack are those
        of the published map.
    :return: the new vtkMRMLSequenceNode.
    """
    scene = volume.GetScene()
    browser = browser_of(volume)
    master = browser.GetMasterSequenceNode()
    sequence = slicer.vtkMRMLSequenceNode()
    sequence.SetName(f"{mapNode.GetName()} (sequence)")
    sequence.CopySequenceIndex(master)
    sequence.RemoveAllDataNodes()
    sequence.SetIndexName(master.GetIndexName())
    sequence.SetIndexUnit(master.GetIndexUnit())
    for index, one in enumerate(maps):
        one.SetName(mapNode.GetName())
        # Browsing copies the frame's attributes over those of the shown map.
        for name in mapNode.GetAttributeNames():
            if one.GetAttribute(name) is None:
                one.SetAttribute(name, mapNode.GetAttribute(name))
        one.SetDescription(mapNode.GetDescription())
        sequence.SetDataNodeAtValue(one, master.GetNthIndexValue(index))
    scene.AddNode(sequence)
    # Together: in between the browser would make a map of its own.
    with slicer.util.NodeModify(browser):
        browser.AddSynchronizedSequenceNode(sequence)
        # The published map keeps its name, colors and place in the hierarchy.
        browser.SetOverwriteProxyName(sequence, False)
        browser.AddProxyNode(mapNode, sequence, False)
    return sequence
