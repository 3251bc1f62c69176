"""The loss of a mask on a layer, as :mod:`.smooth_attention_mask` writes it down, and its slope."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ..engine import MaskedLayer

__all__ = ["Objective", "loss_and_gradient", "shown_by"]

#: Weight of the area budget.
_BUDGET = {"keep": 0.05, "delete": 1.0}


@dataclass(frozen=True)
class Objective:
    """The loss of a mask.

    Attributes
    ----------
    mode : {"keep", "delete"}
    start, effect : float
        S of the unperturbed image, and S less its value with the whole layer hidden.
    sigma : float
        Change of S that counts as 1.
    area, sparsity, smoothness, weight : float
        a, s, g and r of the loss.
    spacing : (float, float, float)
        Distance of the mask's points along each axis.
    """

    mode: str
    start: float
    effect: float
    sigma: float
    area: float
    sparsity: float
    smoothness: float
    spacing: tuple[float, ...]
    weight: float = 1.0

    def change(self, value: float) -> float:
        """Change of S in parts of sigma."""
        return abs(value - self.start) / self.sigma

    def fidelity(self, value: float) -> tuple[float, float]:
        """Distance r d of a score, and its derivative."""
        if self.mode == "keep":
            change = (value - self.start) / self.sigma
            return self.weight * change**2, 2 * self.weight * change / self.sigma
        sign = math.copysign(1.0, self.effect)
        left = max(0.0, abs(self.effect) - sign * (self.start - value)) / self.sigma
        return left**2, 2 * left * sign / self.sigma

    def regularity(self, mask: torch.Tensor) -> torch.Tensor:
        """Price of a mask's size and roughness; differentiable."""
        norm = mask.square().mean().clamp(min=1e-12).sqrt()  # zero has no slope
        over = (norm - self.area**0.5).clamp(min=0)
        size: torch.Tensor = self.sparsity * mask.mean() + _BUDGET[self.mode] * over**2
        mean = math.prod(self.spacing) ** (1 / 3)
        for axis, step in enumerate(self.spacing):
            squares = mask.diff(dim=axis + 1).square().sum() / mask.numel()
            size = size + self.smoothness * (mean / step) ** 2 * squares
        return size

    def loss(self, value: float, mask: torch.Tensor) -> float:
        """L of a mask and the score with it."""
        return self.fidelity(value)[0] + float(self.regularity(mask))


def loss_and_gradient(
    layer: MaskedLayer, objective: Objective, theta: torch.Tensor
) -> tuple[float, float, torch.Tensor]:
    """L of the mask sigmoid(theta), its S, and dL/d(theta)."""
    import torch

    leaf = theta.detach().clone().requires_grad_()
    with torch.enable_grad():
        mask = leaf.sigmoid()
        shown = shown_by(objective.mode, mask)
        value, slope = layer.value_and_gradient(shown)
        distance, change = objective.fidelity(value)
        price = objective.regularity(mask)
        (gradient,) = torch.autograd.grad(price + (change * slope * shown).sum(), leaf)
    return distance + float(price.detach()), value, gradient


def shown_by(mode: str, mask: torch.Tensor) -> torch.Tensor:
    """What the features are multiplied with."""
    return mask if mode == "keep" else 1 - mask
