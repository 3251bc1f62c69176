"""Scoring, exact gradients through sliding windows, layer recording, backward rules, memory, progress and cancelling."""

from .engine import Engine, LayerPass, Progress
from .interpolate import at_layer_voxels, on_network_grid
from .memory import MemoryMeter
from .record import find_layer, recorded
from .rules import RectifierRule

__all__ = [
    "Engine",
    "LayerPass",
    "MemoryMeter",
    "Progress",
    "RectifierRule",
    "at_layer_voxels",
    "find_layer",
    "on_network_grid",
    "recorded",
]
