"""What an output predicts. Imports torch: reached from a Trial only."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..errors import MetricError
from ..target import FrozenTarget

__all__ = ["predicted_mask", "probability_map"]


def probability_map(output: torch.Tensor, frozen: FrozenTarget, title: str) -> torch.Tensor:
    """Probability of the explained output everywhere, shape (I, J, K) or ().

    Raises
    ------
    MetricError
        If the network gives no probabilities.
    """
    if frozen.activation == "none" or frozen.score == "value":
        raise MetricError(
            f"{title} needs probabilities; this network gives a value. Choose a metric of the "
            "score."
        )
    return replace(frozen, mask=None).probability(output)


def predicted_mask(output: torch.Tensor, frozen: FrozenTarget, title: str) -> torch.Tensor:
    """Where a segmentation network predicts the explained output, shape (I, J, K).

    Raises
    ------
    MetricError
        If the output has no voxels or no classes.
    """
    if output.ndim != 5:
        raise MetricError(
            f"{title} compares predicted masks; this network's output has no voxels. Measure the "
            "score instead."
        )
    probability = probability_map(output, frozen, title)
    if frozen.activation == "softmax":
        return output[0].argmax(0) == frozen.output
    return probability > 0.5
