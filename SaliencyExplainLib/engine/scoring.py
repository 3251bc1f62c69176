"""What the score asks of the network's output: the frozen target and dS/d(output)."""

from __future__ import annotations

import torch
from monai.data import MetaTensor

from ..model import Model, WindowPlan
from ..target import FrozenTarget, Target

__all__ = ["Scoring"]


class Scoring:
    """A target on one image, frozen on the first output that is seen.

    Parameters
    ----------
    target : Target
    model : Model
    image : MetaTensor, shape (C, I, J, K)
        On the network's grid; only its place is used.
    plan : WindowPlan

    Attributes
    ----------
    frozen : FrozenTarget or None
        None until :meth:`freeze`.
    value : float or None
        S of the output that it was frozen on.
    """

    def __init__(self, target: Target, model: Model, image: MetaTensor, plan: WindowPlan) -> None:
        self.target = target
        self.model = model
        self.image = image
        self.plan = plan
        self.frozen: FrozenTarget | None = None
        self.value: float | None = None
        self._weights: torch.Tensor | None = None

    def freeze(self, output: torch.Tensor) -> FrozenTarget:
        """Fix region and classes on the fused output, shape (1, O, I, J, K) or (1, O)."""
        frozen = self.target.freeze(output, self.model, self.image)
        self.value = float(frozen.value(output))
        weights = frozen.weights()
        if weights is not None:
            padded = torch.zeros(self.plan.weight_sum.shape, device=weights.device)
            padded[self.plan.inside] = weights
            self._weights = padded
        self.frozen = frozen
        return frozen

    def of_whole(self, output: torch.Tensor) -> torch.Tensor:
        """dS/d(output) where a single window is the whole volume, padding included.

        Parameters
        ----------
        output : Tensor, shape (B, O, I, J, K) or (B, O)
            Of several images; without gradient. The target is frozen on the first of them if it is
            not yet.
        """
        inside = (
            (slice(None), slice(None), *self.plan.inside) if output.ndim == 5 else (slice(None),)
        )
        cropped = output[inside]
        frozen = self.frozen or self.freeze(cropped[:1])
        if frozen.linear:
            weight = (
                torch.ones((), device=output.device) if self._weights is None else self._weights
            )
            one = frozen.linear_cotangent((1, *output.shape[1:]), weight)
            return one.expand(output.shape)
        cotangent = torch.zeros_like(output)
        cotangent[inside] = torch.cat(
            [frozen.cotangent(cropped[index : index + 1]) for index in range(len(cropped))]
        )
        return cotangent

    def dense(self, output: torch.Tensor) -> torch.Tensor | None:
        """dS/dY on the padded volume, shape (1, O, I, J, K), for a fused output Y.

        None where S is linear: then it is known without Y.
        """
        frozen = self.frozen or self.freeze(output)
        if frozen.linear:
            return None
        cotangent = frozen.cotangent(output)
        padded = cotangent.new_zeros((1, cotangent.shape[1], *self.plan.weight_sum.shape))
        padded[(slice(None), slice(None), *self.plan.inside)] = cotangent
        return padded

    def of_window(
        self, window: tuple[slice, ...], dense: torch.Tensor | None
    ) -> torch.Tensor | None:
        """b_w * dS/dY in a window, or None where it is zero everywhere."""
        if dense is not None:
            part = dense[(slice(None), slice(None), *window)] * self.plan.fraction(window)
            return part if part.any() else None
        assert self.frozen is not None and self._weights is not None  # noqa: S101, PT018 - windows have voxels, and the target was frozen on their fusion
        weights = self._weights[window]
        if not weights.any():
            return None
        shape = (1, len(self.frozen.names), *weights.shape)
        return self.frozen.linear_cotangent(shape, weights * self.plan.fraction(window))
