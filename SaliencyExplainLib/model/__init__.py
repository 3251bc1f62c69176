"""Any model file as one :class:`Model`: network, task, labels, preprocessing, inference."""

from .facts import layer_facts, model_facts
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
    "layer_facts",
    "load_model",
    "model_facts",
    "plan_windows",
    "trace_layers",
]
