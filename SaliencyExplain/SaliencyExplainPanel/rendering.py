"""Volume rendering of a map: both signs in their colors, small values clear."""

import slicer

#: Opacity of the strongest values. Weaker ones fade, so that the inside stays visible.
_STRONGEST = 0.6


def available():
    """Whether the application has its Volume Rendering module."""
    return hasattr(slicer.modules, "volumerendering")


def is_shown(volume):
    """Whether the map is in the 3D views."""
    display = _display(volume)
    return bool(display is not None and display.GetVisibility())


def show(volume, visible):
    """Show or hide a map in the 3D views; whether there was something to do it with."""
    if not available():
        return False
    display = _display(volume)
    if display is None:
        if not visible:
            return True
        logic = slicer.modules.volumerendering.logic()
        display = logic.CreateDefaultVolumeRenderingNodes(volume)
    if visible:
        _paint(volume, display.GetVolumePropertyNode().GetVolumeProperty())
    display.SetVisibility(visible)
    return True


def _display(volume):
    if volume is None or not available():
        return None
    return slicer.modules.volumerendering.logic().GetFirstVolumeRenderingDisplayNode(volume)


def _paint(volume, properties):
    """Colors of the map's own table, opacity growing with |value| from the dead band on."""
    shown = volume.GetDisplayNode()
    low, high = shown.GetWindowLevelMin(), shown.GetWindowLevelMax()
    table = shown.GetColorNode()
    opacity, color = properties.GetScalarOpacity(), properties.GetRGBTransferFunction()
    opacity.RemoveAllPoints()
    color.RemoveAllPoints()
    count = table.GetNumberOfColors() if table is not None else 0
    entry = [0.0, 0.0, 0.0, 1.0]
    for index in range(count):
        value = low + (high - low) * index / max(1, count - 1)
        table.GetColor(index, entry)
        color.AddRGBPoint(value, *entry[:3])
        strength = abs(value) / max(abs(low), abs(high), 1e-30)
        opacity.AddPoint(value, _STRONGEST * strength if entry[3] > 0 else 0.0)
    properties.ShadeOff()
    properties.SetDisableGradientOpacity(True)
