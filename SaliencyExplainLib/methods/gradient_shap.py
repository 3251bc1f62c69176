"""Gradient SHAP (expected gradients): Erion et al. 2021, arXiv:1906.10670, eq. 5.

Out(v) = E over x0 and a ~ U(0, 1) of [ (x - x0)(v) dS/dx( x0 + a (x - x0) + noise )(v) ].

The reference images x0 are, in turn, the zero, the minimum and the blurred image (or one of them).
With a single one and no noise this is integrated gradients by Monte Carlo. a is drawn once in each
of `samples` equal intervals (stratified), which leaves the expectation as it is and lowers the
variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .base import Attribution, Method, method, param
from .baselines import BASELINES, make_baseline
from .completeness import Completeness

if TYPE_CHECKING:
    import torch

    from ..engine import Engine

__all__ = ["GradientSHAP"]

_MIXED = "mixed"


@method(
    "gradient_shap",
    title="Gradient SHAP",
    family="gradient",
    summary="How is the score's change from several references to this image shared out?",
    paper="Erion et al. 2021, arXiv:1906.10670, eq. 5",
    signed=True,
    weaknesses="the references are part of the question; needs many samples to add up",
)
@dataclass(frozen=True)
class GradientSHAP(Method):
    """Gradients at random points between random references and the image, times the difference."""

    samples: int = param(20, low=1, high=2000, help="random points")
    baseline: str = param(
        _MIXED, choices=(_MIXED, *BASELINES[1:]), help="reference images; mixed: all three in turn"
    )
    blur_mm: float = param(
        12.0, low=0.5, high=100.0, unit="mm", help="standard deviation of the blurred reference"
    )
    noise: float = param(
        0.0, low=0.0, high=2.0, help="noise added to the points, as a part of the intensity range"
    )
    seed: int = param(0, low=0, high=2**31 - 1, help="seed of points and noise")

    def passes(self) -> int:
        """Samples, one sweep for S(x) and one for each reference."""
        return self.samples + 1 + len(self._choices())

    def attribute(self, engine: Engine) -> Attribution:
        """Map of shape (C, I, J, K) in score units."""
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        start = engine.start_value
        references = [make_baseline(choice, engine, self.blur_mm) for choice in self._choices()]
        used = [references[index % len(references)] for index in range(self.samples)]
        values = [engine.value(reference) for reference in references]
        sigma = self.noise * float(engine.x.max() - engine.x.min())
        order = torch.randperm(self.samples, generator=generator)
        total = engine.x.new_zeros(engine.x.shape[1:])
        points = (
            self._point(engine, reference, float(order[index]), sigma, generator)
            for index, reference in enumerate(used)
        )
        for reference, gradient in zip(used, engine.gradients(points), strict=True):
            total += (engine.x - reference)[0] * gradient
        maps = total / self.samples
        mean = sum(values[index % len(values)] for index in range(self.samples)) / self.samples
        added = Completeness.of(maps, start - mean)
        return Attribution(maps, completeness_error=added.error)

    def _point(
        self,
        engine: Engine,
        reference: torch.Tensor,
        stratum: float,
        sigma: float,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """A random point between a reference and the image, in its interval of the way."""
        import torch

        alpha = (stratum + float(torch.rand((), generator=generator))) / self.samples
        point = reference + alpha * (engine.x - reference)
        if sigma > 0:
            point = point + sigma * torch.randn(point.shape, generator=generator).to(point.device)
        return point

    def _choices(self) -> tuple[str, ...]:
        return BASELINES[1:][: self.samples] if self.baseline == _MIXED else (self.baseline,)
