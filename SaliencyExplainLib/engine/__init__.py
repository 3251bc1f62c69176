"""Scores, exact gradients through sliding windows, layer records, backward rules, progress."""

from .engine import Engine, LayerPass
from .interpolate import at_layer_voxels, axis_weights, on_network_grid
from .memory import MemoryMeter
from .progress import Progress
from .record import find_layer, recorded
from .replay import Replay
from .rules import RectifierRule, run_as_written

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
    "run_as_written",
]
