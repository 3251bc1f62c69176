"""Any model file as one :class:`Model`: network, task, labels, preprocessing, inference."""

from .inferer import WholeVolume, WindowPlan, Windows, plan_windows
from .layers import Grid, LayerInfo, trace_layers
from .load import load_model
from .model import Model
from .preprocess import Preprocess

__all__ = [
    "Grid",
    "LayerInfo",
    "Model",
    "Preprocess",
    "WholeVolume",
    "WindowPlan",
    "Windows",
    "load_model",
    "plan_windows",
    "trace_layers",
]
