"""Scores, exact gradients through sliding windows, layer records, backward rules, progress."""

from .channels import LayerChanges
from .engine import Engine, LayerPass
from .interpolate import at_layer_voxels, axis_weights, on_network_grid
from .memory import MemoryMeter
from .perturb import Perturber
from .progress import Progress
from .record import find_layer, recorded
from .region import RegionOutput
from .replay import Replay
from .rules import RectifierRule, run_as_written

__all__ = [
    "Engine",
    "LayerChanges",
    "LayerPass",
    "MemoryMeter",
    "Perturber",
    "Progress",
    "RectifierRule",
    "RegionOutput",
    "Replay",
    "at_layer_voxels",
    "axis_weights",
    "find_layer",
    "on_network_grid",
    "recorded",
    "run_as_written",
]
