"""A backward pass that compares an image with a baseline, through windows, with exact completeness.

Each window is run on the baseline first and then on the image. What the baseline's windows give is
fused on the way, so that S(baseline) costs nothing more. A score that is not linear in the output
gets multipliers as well: it is pulled back to the fused output by the same rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from monai.data import MetaTensor

from ...model import Model
from ...target import FrozenTarget, Target
from ..engine import Engine
from .deep_lift import DeepLiftRule

__all__ = ["BaselinePass"]


class BaselinePass:
    """One comparison of the engine's image with a baseline.

    Parameters
    ----------
    engine : Engine
        Running.
    baseline : Tensor, shape (1, C, I, J, K)
    """

    def __init__(self, engine: Engine, baseline: torch.Tensor) -> None:
        self.engine = engine
        self.baseline = baseline
        self.rule = DeepLiftRule()
        self._padded = engine.plan.pad(baseline)
        self._output: torch.Tensor | None = None

    def multipliers(self) -> torch.Tensor:
        """Return m with sum over voxels of m (x - baseline) = S(x) - S(baseline); (C, I, J, K)."""
        with self._score_by_secants():
            return self.engine.gradient(rule=self._window)

    def baseline_value(self) -> float:
        """S(baseline), after :meth:`multipliers`."""
        return float(self.engine.frozen.value(self._baseline_output()))

    @contextmanager
    def _window(self, window: tuple[slice, ...]) -> Iterator[None]:
        with self.rule.within(self.engine.model.network), torch.no_grad():
            with self.rule.recording():
                part = self.engine.run_window(self._padded, window)
            self._fuse(part, window)
            with self.rule.comparing(), torch.enable_grad():
                yield

    def _fuse(self, part: torch.Tensor, window: tuple[slice, ...]) -> None:
        """Windows outside the region never come here: a linear score does not look there."""
        plan = self.engine.plan
        if part.ndim == 2:
            self._output = part
            return
        if self._output is None:
            self._output = part.new_zeros((*part.shape[:2], *plan.weight_sum.shape))
        self._output[(slice(None), slice(None), *window)] += part * plan.fraction(window)

    def _baseline_output(self) -> torch.Tensor:
        """Fused output of the baseline."""
        if self._output is None:
            return self.engine.output(self.baseline)
        if self._output.ndim == 2:
            return self._output
        return self._output[(slice(None), slice(None), *self.engine.plan.inside)]

    @contextmanager
    def _score_by_secants(self) -> Iterator[None]:
        """Let the engine pull a score that is not linear back by multipliers."""
        scoring, target = self.engine.scoring, self.engine.scoring.target
        output: list[torch.Tensor] = []

        def baseline_output() -> torch.Tensor:
            # Through windows the score is pulled back before the first of them is run.
            if not output:
                output.append(self._baseline_output())
            return output[0]

        def compared(frozen: FrozenTarget) -> FrozenTarget:
            if frozen.linear:
                return frozen
            known = {one.name: getattr(frozen, one.name) for one in fields(frozen)}
            return _Compared(**known, plain=frozen, baseline_output=baseline_output)

        def restore() -> None:
            scoring.target = target
            if isinstance(scoring.frozen, _Compared):
                scoring.frozen = scoring.frozen.plain

        with ExitStack() as stack:
            stack.callback(restore)
            if scoring.frozen is None:
                scoring.target = _Asked(given=target, compared=compared)
            else:
                scoring.frozen = compared(scoring.frozen)
            yield


@dataclass(frozen=True)
class _Asked(Target):
    """A target whose frozen form is pulled back by secants."""

    given: Target | None = None
    compared: Callable[[FrozenTarget], FrozenTarget] | None = None

    def freeze(self, output: torch.Tensor, model: Model, image: MetaTensor) -> FrozenTarget:
        assert self.given is not None and self.compared is not None  # noqa: S101, PT018 - for types
        return self.compared(self.given.freeze(output, model, image))


@dataclass(frozen=True, kw_only=True)
class _Compared(FrozenTarget):
    """Its cotangent has <cotangent, output - output of the baseline> = S - S(baseline)."""

    plain: FrozenTarget
    baseline_output: Callable[[], torch.Tensor]

    def cotangent(self, output: torch.Tensor) -> torch.Tensor:
        """Multipliers of S at each output."""
        rule: Any = DeepLiftRule()
        leaf = output.detach().clone().requires_grad_()
        baseline = self.baseline_output()
        with rule:
            with rule.recording(), torch.no_grad():
                self.plain.value(baseline)
            with rule.comparing(), torch.enable_grad():
                value = self.plain.value(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
        return gradient
