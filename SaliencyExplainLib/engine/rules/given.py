"""Values that are given, with a gradient of another function; and what all rules need."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .functions import Norm

__all__ = [
    "NEAR",
    "As",
    "Gate",
    "Normalised",
    "Shares",
    "Softmax",
    "Standardised",
    "Times",
    "flat",
    "is_floating",
    "largest",
    "named",
    "replaced",
    "secant",
]

#: Closer values lose more by rounding (1e-7 / 5e-3) than by taking the derivative half-way for the
#: secant ((5e-3)^2 / 24 for a function that bends on a scale of 1).
NEAR = 5e-3


def secant(
    function: Callable[..., Any],
    values: tuple[torch.Tensor, torch.Tensor],
    results: tuple[torch.Tensor, torch.Tensor],
    near: torch.Tensor,
) -> torch.Tensor:
    """(y - y0) / (t - t0), and the derivative half-way where t hardly differs from t0.

    Parameters
    ----------
    function : callable
        Acts on each element by itself.
    values, results : two Tensors each
        t and t0, y and y0.
    near : Tensor of bool
        Where the difference is too small to divide by; everywhere where there is none.
    """
    (t, t0), (y, y0) = values, results
    slope = (y - y0) / (t - t0)
    if not near.any():
        return slope
    with torch.enable_grad():
        middle = ((t.detach() + t0) / 2).requires_grad_()
        (derivative,) = torch.autograd.grad(function(middle).sum(), middle)
    return torch.where(near, derivative.nan_to_num(0, 0, 0), slope)


def _fresh(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, in a tensor that the network may overwrite: autograd forbids it of views."""
    if not tensor._is_view():
        return tensor
    storage = tensor.untyped_storage()
    return tensor.new_empty(0).set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def named(listed: str) -> frozenset[str]:
    """Names that stand in a text."""
    return frozenset(listed.split())


def is_floating(value: Any) -> bool:
    """Whether a value is a tensor of numbers that can vary."""
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def flat(args: tuple[Any, ...]) -> list[Any]:
    """Arguments, and those in lists among them."""
    found: list[Any] = []
    for one in args:
        found.extend(one if isinstance(one, list | tuple) else [one])
    return found


def replaced(args: tuple[Any, ...], new: dict[int, torch.Tensor]) -> tuple[Any, ...]:
    """Arguments with some tensors replaced, by their ids."""
    return tuple(
        tuple(new.get(id(each), each) for each in one)
        if isinstance(one, list | tuple) and any(isinstance(each, torch.Tensor) for each in one)
        else new.get(id(one), one)
        for one in args
    )


def largest(
    x: torch.Tensor,
    x0: torch.Tensor,
    found: tuple[torch.Tensor, ...],
    found0: tuple[torch.Tensor, ...],
) -> torch.Tensor:
    """The largest along the last axis: its change goes to one place, where x changed as much."""
    (value, places), (value0, places0) = found, found0
    with torch.no_grad():
        change = value - value0
        place = torch.where(change >= 0, places, places0)
        there = x.gather(-1, place) - x0.gather(-1, place)
        multiplier = torch.where(change == 0, 1.0 * (there == 0), change / there)
    result: torch.Tensor = As.apply(x.gather(-1, place) * multiplier, (value,))  # type: ignore[no-untyped-call]
    return result


# ------------------------------------------------------------------------------------------------
# A value that is given, and a gradient that is another function's. The value comes in a tuple, so
# that autograd takes it as new.


class As(torch.autograd.Function):
    """A given value; the gradient passes on unchanged."""

    @staticmethod
    def forward(_ctx: Any, _x: torch.Tensor, given: tuple[torch.Tensor]) -> torch.Tensor:
        """Return the given value."""
        return _fresh(given[0])

    @staticmethod
    def backward(_ctx: Any, *upstream: torch.Tensor) -> Any:
        """The gradient as it is."""
        return upstream[0], None


class Times(torch.autograd.Function):
    """A given value; the gradient is multiplied."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, multiplier: torch.Tensor, given: tuple[torch.Tensor]
    ) -> torch.Tensor:
        """Return the given value."""
        ctx.save_for_backward(multiplier)
        ctx.size = x.shape
        return _fresh(given[0])

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        """See the class."""
        (multiplier,) = ctx.saved_tensors
        return (upstream[0] * multiplier).sum_to_size(ctx.size), None, None


class Normalised(torch.autograd.Function):
    """dy = rbar dc + cbar slope 2 mean(cbar dc), with c = x - mean."""

    @staticmethod
    def forward(ctx: Any, _x: torch.Tensor, kept: Any, given: tuple[torch.Tensor]) -> torch.Tensor:
        """Return the given value."""
        ctx.norm = kept[0]
        ctx.save_for_backward(*kept[1:])
        return _fresh(given[0])

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        """See the class."""
        norm: Norm = ctx.norm
        middle, factor, slope = ctx.saved_tensors
        g = norm.scaled(upstream[0])
        count = middle.numel() / factor.numel()
        spread = (middle * g).sum(norm.axes, keepdim=True) * (2 / count) * slope
        g = g * factor + middle * spread
        if norm.centred:
            g = g - g.mean(norm.axes, keepdim=True)
        return g.reshape(upstream[0].shape), None, None


class Softmax(torch.autograd.Function):
    """dp = w (dt - dL), or d log p = dt - dL where there is no w; dL = sum of part * dt."""

    @staticmethod
    def forward(ctx: Any, _t: torch.Tensor, kept: Any, given: tuple[torch.Tensor]) -> torch.Tensor:
        """Return the given value."""
        w, part, ctx.dim = kept
        ctx.save_for_backward(w, part)
        return _fresh(given[0])

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        """See the class."""
        w, part = ctx.saved_tensors
        g = upstream[0] if w is None else upstream[0] * w
        return g - part * g.sum(ctx.dim, keepdim=True), None, None


class Gate(Times):
    """The output of a sigmoid, to be known by it."""


class Shares(torch.autograd.Function):
    """A given value; the gradient goes to z and to |w| |a|, each with its factor."""

    @staticmethod
    def forward(
        ctx: Any,
        _z: torch.Tensor,
        _magnitude: torch.Tensor,
        together: torch.Tensor,
        apart: torch.Tensor,
        given: tuple[torch.Tensor],
    ) -> torch.Tensor:
        """Return the given value."""
        ctx.save_for_backward(together, apart)
        return _fresh(given[0])

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        """See the class."""
        together, apart = ctx.saved_tensors
        return upstream[0] * together, upstream[0] * apart, None, None, None


class Standardised(torch.autograd.Function):
    """A given value; the gradient of (x - mean) * r * scale with r constant."""

    @staticmethod
    def forward(ctx: Any, _x: torch.Tensor, kept: Any, given: tuple[torch.Tensor]) -> torch.Tensor:
        """Return the given value."""
        ctx.norm = kept[0]
        ctx.save_for_backward(kept[1])
        return _fresh(given[0])

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        """See the class."""
        norm: Norm = ctx.norm
        (factor,) = ctx.saved_tensors
        g = norm.scaled(upstream[0]) * factor
        if norm.centred:
            g = g - g.mean(norm.axes, keepdim=True)
        return g.reshape(upstream[0].shape), None, None
