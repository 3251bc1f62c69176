"""Layer-wise relevance propagation: Bach et al. 2015, doi:10.1371/journal.pone.0130140.

Out(v) = R(v): the score is passed back layer by layer, each unit sharing its relevance out over
what it was made of. For transformers AttnLRP (Achtibat et al. 2024, arXiv:2402.05602). The rules
and where they differ from the papers are in :mod:`SaliencyExplainLib.engine.rules.relevance`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .base import Attribution, Method, method, param
from .deep_lift import DIVIDES, left_to_their_derivative, refuse_scripts

if TYPE_CHECKING:
    from ..engine import Engine
    from ..model import Model

__all__ = ["LRP"]

RULES = ("epsilon_plus", "epsilon", "epsilon_gamma", "alpha2_beta1")


@method(
    "lrp",
    title="Layer-wise relevance propagation",
    family="gradient",
    summary="Which voxels does the score come from, when each unit passes it on to its inputs?",
    paper="Bach et al. 2015, doi:10.1371/journal.pone.0130140; AttnLRP: arXiv:2402.05602",
    signed=True,
    weaknesses="the rule is part of the answer; biases and norms absorb relevance, so look at the "
    "share that arrives; zero intensity gets nothing; depends little on late weights "
    "(Sixt 2020)",
)
@dataclass(frozen=True)
class LRP(Method):
    """Relevance of each voxel, by a rule for each kind of layer."""

    single_precision: ClassVar[str] = DIVIDES

    rule: str = param(
        "epsilon_plus",
        choices=RULES,
        help="convolutions: contributions of the unit's own sign alone (epsilon_plus), all "
        "(epsilon), favoured (epsilon_gamma), or twice for and once against (alpha2_beta1); dense "
        "layers: epsilon",
    )
    epsilon: float = param(
        1e-3,
        low=0.0,
        high=1.0,
        help="stabiliser, as a part of the root mean square of a layer's output; absorbs weak "
        "and contradictory relevance",
    )
    gamma: float = param(
        0.25, low=0.0, high=100.0, help="how much contributions of the own sign are favoured"
    )

    def check(self, model: Model) -> None:
        """Refuse TorchScript."""
        refuse_scripts(model, self.title)

    def attribute(self, engine: Engine) -> Attribution:
        """Map of shape (C, I, J, K) in score units."""
        from ..engine import RelevanceRule, Share

        dense = Share(epsilon=self.epsilon)
        convolutions = {
            "epsilon_plus": Share(alpha=1.0),
            "epsilon": dense,
            "epsilon_gamma": Share(gamma=self.gamma),
            "alpha2_beta1": Share(alpha=2.0),
        }[self.rule]
        rule = RelevanceRule(convolutions, dense)

        @contextmanager
        def in_window(_window: Any) -> Iterator[None]:
            with rule.within(engine.model.network):
                yield

        maps = engine.x[0] * engine.gradient(rule=in_window)
        warnings = left_to_their_derivative(rule.unknown, self.title)
        if not engine.frozen.linear:
            warnings.append(
                f"{self.title} starts from what each output adds to the score to first order, "
                "since a probability is not a sum over outputs. The score 'logit' avoids this."
            )
        summed, score = float(maps.cpu().double().sum()), engine.start_value
        details = {"relevance_sum": summed, "score": score}
        return Attribution(maps, warnings=tuple(warnings), details=details)
