"""DeconvNet and guided backpropagation.

DeconvNet: Zeiler and Fergus 2013, arXiv:1311.2901. Guided backpropagation: Springenberg et al.
2015, arXiv:1412.6806, figure 1. The rule and what it covers beyond the papers (LeakyReLU, PReLU,
smooth rectifiers, functional and reused ones) is in
:mod:`SaliencyExplainLib.engine.rules.rectifiers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .base import Attribution, Method, method

if TYPE_CHECKING:
    from ..engine import Engine

__all__ = ["DeconvNet", "GuidedBackprop"]

_EDGES = (
    "acts like an edge detector: hardly changes when the network's weights are randomised (Adebayo "
    "2018), "
    "so do not read it as evidence alone"
)


class _Rectified(Method):
    """A gradient with another rule at the rectifiers."""

    guided: ClassVar[bool]

    def attribute(self, engine: Engine) -> Attribution:
        """Map of shape (C, I, J, K) in score units per intensity unit."""
        from ..engine import RectifierRule, run_as_written

        with run_as_written(engine.model.network), RectifierRule(guided=self.guided) as rule:
            maps = engine.gradient()
        warnings = []
        if not rule.seen:
            warnings.append(
                f"{self.title} met no rectifier (ReLU, LeakyReLU, PReLU, GELU, ...) in this "
                "network, "
                "so this map is the plain gradient."
            )
        if rule.smooth:
            warnings.append(
                f"{self.title} is defined for ReLU; for {', '.join(rule.smooth)} the rule of the "
                "positive branch "
                "was used with the activation's own slope."
            )
        return Attribution(maps, warnings=tuple(warnings))


@method(
    "deconvnet",
    unit="score / intensity",
    title="DeconvNet",
    family="gradient",
    summary="Which image structure do positive signals project back from the score?",
    paper="Zeiler and Fergus 2013, arXiv:1311.2901",
    signed=True,
    weaknesses=_EDGES + "; ignores which units were active",
    combine="max_abs",
)
@dataclass(frozen=True)
class DeconvNet(_Rectified):
    """Backward signals are clipped at zero at each rectifier, active or not."""

    guided: ClassVar[bool] = False


@method(
    "guided_backprop",
    unit="score / intensity",
    title="Guided backpropagation",
    family="gradient",
    summary="Which fine structures excite the units that raise the score?",
    paper="Springenberg et al. 2015, arXiv:1412.6806",
    signed=True,
    weaknesses=_EDGES,
    combine="max_abs",
)
@dataclass(frozen=True)
class GuidedBackprop(_Rectified):
    """Backward signals are clipped at zero at each rectifier and stopped where it was off."""

    guided: ClassVar[bool] = True
