"""A faster mode: the network's own arithmetic in bfloat16, checked against single precision.

A processor with bfloat16 units runs a U-Net two to three times faster in it, at about half the
memory; one without may be slower. So it is tried on one window first: a forward and a backward pass
in both, timed and compared. The score, the fusion of windows and all sums stay in single precision.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["FastCheck", "check_fast", "go_fast"]

#: Below this gain the fast mode is not worth its error.
_WORTH = 1.2
#: Passes that the check takes.
_CHECK_PASSES = 4
#: Below this cosine between the gradients the fast mode is another map.
_ALIKE = 0.9


@dataclass(frozen=True)
class FastCheck:
    """What bfloat16 gave on one window, against single precision.

    Attributes
    ----------
    used : bool
        Whether it was faster and alike enough.
    speedup : float
        Time of a forward and a backward pass in single precision, divided by that in bfloat16.
    gradient_cosine : float
        Cosine between the gradients of the target on that window.
    top_overlap : float
        Part of the 1 % of voxels with the largest gradient that are the same.
    score_error : float
        Difference of the window's part of the score, relative to single precision.
    """

    used: bool
    speedup: float
    gradient_cosine: float
    top_overlap: float
    score_error: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, four digits."""
        return {
            name: value if isinstance(value, bool) else float(f"{value:.4g}")
            for name, value in asdict(self).items()
        }

    def sentence(self) -> str:
        """What the reader of the map must know."""
        found = (
            f"on one window bfloat16 was {self.speedup:.1f} times as fast as single precision, "
            f"the cosine between the gradients was {self.gradient_cosine:.3f}"
        )
        if self.used:
            return (
                f"Fast mode: {found}, {self.top_overlap:.0%} of the strongest 1 % of voxels were "
                f"the same, and the score differed by {self.score_error:.1%}."
            )
        return f"Fast mode was not used, and the map is in single precision: {found}."


def go_fast(
    engine: Engine, sweeps: int | None, single_precision: str = ""
) -> tuple[FastCheck | None, str]:
    """Let an engine compute in bfloat16 if that is worth it and alike.

    Parameters
    ----------
    engine : Engine
        Running; its target is frozen here, in single precision.
    sweeps : int or None
        Sweeps that the method needs, if known.
    single_precision : str
        Why the method needs it, if it does, as a sentence without its end.

    Returns
    -------
    FastCheck or None
        None where the check would cost more than it could save.
    str
        What the reader of the map must know.
    """
    if single_precision:
        return (
            None,
            f"Fast mode was not used: {single_precision}, which bfloat16 cannot tell apart.",
        )
    passes = None if sweeps is None else sweeps * len(engine.plan.windows)
    if passes is not None and passes <= _CHECK_PASSES:
        return None, (
            f"Fast mode was not used: this run has {passes} pass{'es' * (passes > 1)} of the "
            f"network, and checking bfloat16 takes {_CHECK_PASSES}."
        )
    found = check_fast(engine)
    engine.fast = found.used
    return found, found.sentence()


def check_fast(engine: Engine) -> FastCheck:
    """Run the window that weighs most in the score in both precisions.

    Costs two passes in each of them; the target is frozen before, in single precision.
    """
    _, part, cotangent = engine.heaviest_window()
    results = {}
    for fast in (False, True):
        results[fast] = _timed(engine, part, cotangent, fast=fast)
    (slow_s, exact, score), (fast_s, rough, other) = results[False], results[True]
    cosine = float(torch.nn.functional.cosine_similarity(exact.flatten(), rough.flatten(), dim=0))
    speedup = slow_s / fast_s
    return FastCheck(
        used=speedup >= _WORTH and cosine >= _ALIKE,
        speedup=speedup,
        gradient_cosine=cosine,
        top_overlap=_top_overlap(exact, rough),
        score_error=abs(other - score) / abs(score) if score else 0.0,
    )


def _timed(
    engine: Engine, part: torch.Tensor, cotangent: torch.Tensor, *, fast: bool
) -> tuple[float, torch.Tensor, float]:
    """Seconds (the better of two passes), the gradient and the score of a window."""
    before = engine.fast
    engine.fast = fast
    seconds = []
    try:
        for _ in range(2):
            started = time.perf_counter()
            leaf = part.detach().clone().requires_grad_()
            with torch.enable_grad():
                output = engine.run_window(leaf, None)
                (gradient,) = torch.autograd.grad(output, leaf, cotangent)
            score = float((output.detach() * cotangent).sum())  # also waits for a GPU
            seconds.append(time.perf_counter() - started)
    finally:
        engine.fast = before
    return min(seconds), gradient.cpu().double(), score


def _top_overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    count = max(1, one.numel() // 100)
    top = set(one.abs().flatten().topk(count).indices.tolist())
    return len(top & set(other.abs().flatten().topk(count).indices.tolist())) / count
