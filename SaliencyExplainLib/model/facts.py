"""What a model and its layers are, as plain values for shells, panels and records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .layers import LayerInfo
from .model import Model

__all__ = ["layer_facts", "model_facts"]


def model_facts(model: Model) -> dict[str, Any]:
    """Describe a model by plain values: numbers, texts, lists and dictionaries."""
    roi = getattr(model.inferer, "roi_size", None)
    return {
        "task": model.task,
        "labels": list(model.labels),
        "channels": list(model.channels),
        "input_channels": model.input_channels,
        "parameters": sum(one.numel() for one in model.network.parameters()),
        "activation": model.activation,
        "preprocessing": model.preprocess.describe(),
        "inference": model.inferer.describe(),
        "spacing_mm": model.preprocess.spacing_mm,
        "window": None if roi is None else list(roi),
        "scripted": model.scripted,
        "device": str(model.device),
        "format": model.provenance.get("format", ""),
        "name": model.provenance.get("name", ""),
        "sha256": model.provenance.get("sha256", ""),
        "provenance": model.provenance,
    }


def layer_facts(layers: Sequence[LayerInfo]) -> list[dict[str, Any]]:
    """Describe layers by plain values, in the order in which they run."""
    return [
        {
            "name": one.name,
            "kind": one.kind,
            "shape": list(one.shape),
            "origin_voxels": list(one.grid.origin),
            "spacing_voxels": list(one.grid.spacing),
            "place_followed": one.grid.exact,
            "feeds_instance_norm": one.feeds_instance_norm,
            "leaf": one.leaf,
            "activation": one.activation,
            "final": one.final,
            "passes_on": one.passes_on,
            "problem": one.problem,
        }
        for one in layers
    ]
