"""Scores, exact gradients through sliding windows, layer records, backward rules, progress."""

from .attention import (
    AttentionCall,
    AttentionRecorder,
    TokenGrid,
    TokenMerge,
    TokenTable,
    recorded_attention,
)
from .batch import Batch
from .channels import LayerChanges
from .engine import Engine, WindowRule, main_output, network_errors
from .interpolate import at_layer_voxels, axis_weights, on_network_grid
from .layer_mask import MaskedLayer
from .layer_sweep import LayerPass, sweep_features, sweep_layers
from .memory import MemoryMeter
from .paths import sole_carriers
from .perturb import Perturber
from .precision import FastCheck, check_fast, go_fast
from .progress import Progress
from .record import find_layer, recorded
from .region import RegionOutput
from .replay import Replay
from .rules import RectifierRule, RelevanceRule, Share, run_as_written
from .rules.baseline_pass import BaselinePass

__all__ = [
    "AttentionCall",
    "AttentionRecorder",
    "BaselinePass",
    "Batch",
    "Engine",
    "FastCheck",
    "LayerChanges",
    "LayerPass",
    "MaskedLayer",
    "MemoryMeter",
    "Perturber",
    "Progress",
    "RectifierRule",
    "RegionOutput",
    "RelevanceRule",
    "Replay",
    "Share",
    "TokenGrid",
    "TokenMerge",
    "TokenTable",
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
    "recorded_attention",
    "run_as_written",
    "sole_carriers",
    "sweep_features",
    "sweep_layers",
]
