"""Scores, exact gradients through sliding windows, layer records, backward rules, progress."""

from .batch import Batch
from .channels import LayerChanges
from .engine import Engine, WindowRule, main_output, network_errors
from .interpolate import at_layer_voxels, axis_weights, on_network_grid
from .layer_sweep import LayerPass, sweep_features, sweep_layers
from .memory import MemoryMeter
from .perturb import Perturber
from .precision import FastCheck, check_fast, go_fast
from .progress import Progress
from .record import find_layer, recorded
from .region import RegionOutput
from .replay import Replay
from .rules import RectifierRule, run_as_written

__all__ = [
    "Batch",
    "Engine",
    "FastCheck",
    "LayerChanges",
    "LayerPass",
    "MemoryMeter",
    "Perturber",
    "Progress",
    "RectifierRule",
    "RegionOutput",
    "Replay",
    "WindowRule",
    "at_layer_voxels",
    "axis_weights",
    "check_fast",
    "find_layer",
    "go_fast",
    "main_output",
    "network_errors",
    "on_network_grid",
    "recorded",
    "run_as_written",
    "sweep_features",
    "sweep_layers",
]
