"""DeepLift: Shrikumar et al. 2017, arXiv:1704.02685, equations 1 to 4.

Out(v) = (x - x0)(v) * m(v), with multipliers m from the chain rule of differences, so that
sum_v Out(v) = S(x) - S(x0). The rules, and what they cover beyond the paper (every activation,
products, norms, attention, scores that are not linear), are in
:mod:`SaliencyExplainLib.engine.rules.deep_lift`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..errors import MethodError
from .base import Attribution, Method, method, param
from .baselines import BASELINES, make_baseline, resolve
from .completeness import Completeness

if TYPE_CHECKING:
    from ..engine import Engine
    from ..model import Model

__all__ = ["DIVIDES", "DeepLift", "left_to_their_derivative", "refuse_scripts"]

_TOLERATED = 0.01


def refuse_scripts(model: Model, title: str) -> None:
    """Refuse networks whose functions cannot be followed."""
    import torch

    if any(isinstance(one, torch.jit.ScriptModule) for one in model.network.modules()):
        raise MethodError(
            f"{title} follows each function of the network, which TorchScript does not allow. Load "
            "the original network with its state dict or as torch.export saves it (.pt2), or "
            "choose integrated_gradients."
        )


def left_to_their_derivative(unknown: dict[str, int], title: str) -> list[str]:
    """Return the warning about functions without a rule, if there were any."""
    if not unknown:
        return []
    listed = ", ".join(sorted(unknown))
    return [f"{title} has no rule for {listed}: the plain derivative was used there."]


#: Why these methods keep single precision.
DIVIDES = "this method divides by differences of numbers that are close to each other"


@method(
    "deep_lift",
    title="DeepLift",
    family="gradient",
    summary="How is the score's change from a baseline shared out, in one comparison of the two?",
    paper="Shrikumar et al. 2017, arXiv:1704.02685, rescale rule",
    signed=True,
    weaknesses="the baseline is part of the question; opposite effects that cancel inside a unit "
    "are not told apart",
)
@dataclass(frozen=True)
class DeepLift(Method):
    """Differences from a baseline, passed back by secants; sums to S(x) - S(baseline)."""

    single_precision: ClassVar[str] = DIVIDES

    baseline: str = param(
        "automatic",
        choices=BASELINES,
        help="what the image is compared with; automatic: blurred if the network normalises "
        "images, else zero",
    )
    blur_mm: float = param(
        12.0, low=0.5, high=100.0, unit="mm", help="standard deviation of the blurred baseline"
    )

    def passes(self) -> int:
        """The baseline forward, the image forward and backward."""
        return 2

    def window_passes(self, *, linear: bool) -> int:
        """A sweep for the region; the baseline's output beforehand where S is not linear."""
        return 3 if linear else 4

    def check(self, model: Model) -> None:
        """Refuse TorchScript."""
        refuse_scripts(model, self.title)

    def attribute(self, engine: Engine) -> Attribution:
        """Map of shape (C, I, J, K) in score units."""
        from ..engine import BaselinePass

        choice = resolve(self.baseline, engine)
        baseline = make_baseline(choice, engine, self.blur_mm)
        comparison = BaselinePass(engine, baseline)
        maps = comparison.multipliers() * (engine.x - baseline)[0]
        added = Completeness.of(maps, engine.start_value - comparison.baseline_value())
        warnings = (
            *left_to_their_derivative(comparison.rule.unknown, self.title),
            *added.warnings(_TOLERATED, "Use another baseline, or integrated_gradients."),
        )
        return Attribution(
            maps, completeness_error=added.error, warnings=warnings, used={"baseline": choice}
        )
