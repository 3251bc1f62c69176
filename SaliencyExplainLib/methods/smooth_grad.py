"""SmoothGrad: Smilkov 2017, arXiv:1706.03825; squared and VarGrad: Hooker 2018, arXiv:1806.10758.

With g_i the gradient at x + n_i, n_i ~ N(0, (noise * (max x - min x))^2)::

    smooth   1/n sum g_i        squared   1/n sum g_i^2        variance   1/n sum (g_i - mean)^2

Differs from MONAI, whose SmoothGrad gives sqrt(sum g_i^2) / n by default (unsigned, and dependent
on n). The noise comes from a generator with a recorded seed on the CPU, so that every device draws
the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .base import Attribution, Method, method, param

if TYPE_CHECKING:
    from ..engine import Engine

__all__ = ["SmoothGrad"]

_KINDS = ("smooth", "squared", "variance")


@method(
    "smooth_grad",
    unit="score / intensity",
    title="SmoothGrad",
    family="gradient",
    summary="Which change does the score follow on average in a neighbourhood of this image?",
    paper="Smilkov et al. 2017, arXiv:1706.03825",
    signed=True,
    weaknesses="depends on the noise level; less sensitive to the weights than the gradient",
)
@dataclass(frozen=True)
class SmoothGrad(Method):
    """Mean (or mean square, or variance) of the gradient over noisy copies of the image."""

    samples: int = param(20, low=1, high=512, help="noisy copies of the image")
    noise: float = param(
        0.1,
        low=0.0,
        high=2.0,
        help="standard deviation of the noise as a part of the intensity range",
    )
    kind: str = param(
        "smooth", choices=_KINDS, help="what is averaged: the gradient, its square, or its variance"
    )
    seed: int = param(0, low=0, high=2**31 - 1, help="seed of the noise")

    def passes(self) -> int:
        """Samples, and one forward sweep that fixes the region."""
        return self.samples + 1

    def window_passes(self, *, linear: bool) -> int:
        """No sweep more; where S is not linear, a forward one before each gradient."""
        return self.passes() + (0 if linear else self.samples)

    def is_signed(self) -> bool:
        """Squares and variances have no sign."""
        return self.kind == "smooth"

    def attribute(self, engine: Engine) -> Attribution:
        """Map of shape (C, I, J, K): score units per intensity unit, or its square."""
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        sigma = self.noise * float(engine.x.max() - engine.x.min())
        mean = engine.x.new_zeros(engine.x.shape[1:])
        square = torch.zeros_like(mean)
        noisy = (
            engine.x + sigma * torch.randn(engine.x.shape, generator=generator).to(engine.x.device)
            for _ in range(self.samples)
        )
        for index, gradient in enumerate(engine.gradients(noisy), start=1):
            # Welford's running moments: neither a list of maps nor cancellation of large numbers.
            step = gradient - mean
            mean += step / index
            square += step * (gradient - mean)
        variance = square / self.samples
        maps = {"smooth": mean, "squared": variance + mean**2, "variance": variance}[self.kind]
        return Attribution(maps)
