"""Layer-wise relevance propagation as another backward pass.

With R(a) the relevance of an activation, c(a) = R(a) / a is passed back instead of R: where R_i is
a share of z_ij = a_i w_ij, c needs no division by a, shapes and additions take care of themselves,
and LRP-0 is the gradient (Montavon et al. 2019, doi:10.1007/978-3-030-28954-6_10). For a layer
z_j = sum_i z_ij + b_j every rule gives the positive and the negative contributions each a factor::

    epsilon       P = N = z / (z + eps sign z)            eps = epsilon * root mean square of z
    gamma         z > 0:  P = (1 + gamma) z / (z + gamma z+),  N = z / (z + gamma z+)
    alpha, beta   z > 0:  P = alpha z / z+,  N = -beta z / z-        (alpha - beta = 1)
    plus          alpha = 1, beta = 0
    z < 0         the same, mirrored (P <-> N, z+ <-> z-)

and c_i = w^T (P + N)/2 c + sign(a_i) |w|^T (P - N)/2 c. As z+ = (z - b + |w| |a|)/2 + b+ every rule
costs two convolutions forward and two back, for inputs of either sign. Other functions::

    activation     relevance passes unchanged: c = (f(t) - f(0)) / t; what f(0) holds is absorbed
    batch norm     merged into the layer before it;  other norms: the deviation is a constant
                   (Ali et al. 2022, arXiv:2202.07304), then linear
    sum, join      in proportion (linear);  max pooling: winner takes all
    product        half to each factor; all to the signal where the other is a sigmoid gate
    softmax        R_i = t_i (R_i - s_i sum R), its derivative      (Achtibat et al. 2024,
                                                                     arXiv:2402.05602, eq. 8-16)

Biases absorb what they contribute. Differs from Bach et al. 2015
(doi:10.1371/journal.pone.0130140): units below zero are mirrored (else a net with PReLU or instance
norm divides by z+ near 0; a peer's relevance there sums to 1e8 for a score of 479); and where one
side is empty the other gets all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .functions import Function, FunctionRule, attention, gated_half, read_norm, varies
from .given import (
    NEAR,
    Gate,
    Shares,
    Standardised,
    Times,
    flat,
    is_floating,
    named,
    replaced,
    secant,
)

__all__ = ["RelevanceRule", "Share"]

_CONVOLUTIONS = named("""
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
""")
_DENSE = ("linear", "matmul", "mm", "bmm", "mv", "einsum")
#: Passed unchanged up to f(0). Rectifiers with their kink at 0 have the gradient for it.
_ACTIVATIONS = named("""
    celu clamp clamp_max clamp_min elu erf expm1 gelu hardshrink hardswish hardtanh mish relu6 selu
    sigmoid hardsigmoid silu softplus softshrink square tanh threshold log_sigmoid
""")
_GATES = ("sigmoid", "hardsigmoid")
_AS_GRADIENT = named(
    """
    relu leaky_relu prelu rrelu abs softmax max min amax amin max_pool1d max_pool2d max_pool3d
    max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d
    """
)
_VIEWS = ("View", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Permute", "Transpose", "Clone")


@dataclass(frozen=True)
class Share:
    """How a layer's relevance is shared out; see the module's text.

    Attributes
    ----------
    epsilon : float
        Part of the root mean square of the layer's output; without gamma and alpha.
    gamma : float
        How much more the contributions of a unit's own sign count.
    alpha : float or None
        alpha-beta rule with beta = alpha - 1, instead of gamma.
    """

    epsilon: float = 0.0
    gamma: float = 0.0
    alpha: float | None = None

    @property
    def signs(self) -> bool:
        """Whether positive and negative contributions are told apart."""
        return self.gamma > 0 or self.alpha is not None

    def factors(self, z: torch.Tensor, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors of the contributions of a unit's own sign, and of the others.

        Parameters
        ----------
        z : Tensor
            What the layer gives.
        own : Tensor
            The part of z that has its sign: z+ or z-.
        """
        if self.alpha is None:
            below = z + self.gamma * own
            part = torch.where(below == 0, 0.0, z / below)
            return (1 + self.gamma) * part, part
        others = z - own
        one_sided = others.abs() <= 1e-6 * own.abs()
        alpha = torch.where(one_sided, 1.0, self.alpha)
        mine = torch.where(own == 0, 0.0, alpha * z / own)
        return mine, torch.where(one_sided, 0.0, (1 - alpha) * z / others)


@dataclass(frozen=True)
class _Layer:
    """The layer that ran last, in case that a batch norm follows."""

    output: torch.Tensor
    z: torch.Tensor
    magnitude: torch.Tensor | None
    bias: torch.Tensor | None
    share: Share


class RelevanceRule(FunctionRule):
    """Passes c = R / a back.

    Parameters
    ----------
    convolutions, dense : Share
        Rules of convolutions and of dense layers.
    """

    derivatives = _AS_GRADIENT

    def __init__(self, convolutions: Share, dense: Share) -> None:
        super().__init__()
        self._last: _Layer | None = None
        for names, share in ((_CONVOLUTIONS, convolutions), (_DENSE, dense)):
            for name in names:
                self.handlers[name] = self._layer(share)
        for name in ("instance_norm", "group_norm", "layer_norm", "rms_norm", "batch_norm"):
            self.handlers[name] = self._norm(name)
        for name in _ACTIVATIONS:
            self.handlers[name] = self._activation(gate=name in _GATES)
        self.handlers |= {
            **dict.fromkeys(("mul", "addmm", "addbmm", "baddbmm", "dot", "outer"), self._product),
            "div": self._quotient,
            "pow": self._power,
            "glu": self._seen(gated_half),
            "scaled_dot_product_attention": self._seen(attention),
        }

    def before_change(self, _tensor: torch.Tensor) -> None:
        """Forget the last layer: it may be what is overwritten."""
        self._last = None

    # Layers with weights

    def _layer(self, share: Share) -> Callable[[Function, tuple[Any, ...], Any], Any]:
        def handle(function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
            tensors = [one for one in flat(args) if is_floating(one)]
            moving = [one for one in tensors if varies(one)]
            if len(moving) != 1 or len(tensors) < 2:
                return self._product(function, args, kwargs)
            z = function(*args, **kwargs)
            magnitude = bias = None
            if share.signs:
                bias = args[2] if len(args) > 2 else kwargs.get("bias")
                bias = bias if is_floating(bias) else None
                absolute = {id(one): one.abs() for one in tensors if one is not bias}
                absolute |= {} if bias is None else {id(bias): torch.zeros_like(bias)}
                magnitude = function(*replaced(args, absolute), **kwargs)
                if bias is not None and not function.__name__.startswith("linear"):
                    bias = bias.reshape(1, -1, *[1] * (z.ndim - 2))
            return self._shared(z, magnitude, bias, share)

        return handle

    def _shared(
        self,
        z: torch.Tensor,
        magnitude: torch.Tensor | None,
        bias: torch.Tensor | None,
        share: Share,
    ) -> torch.Tensor:
        """Give z, and pull back by the rule."""
        with torch.no_grad():
            if magnitude is None:
                together, apart = _stabilised(z, share.epsilon), None
                if together is None:
                    return z
            else:
                inner = z if bias is None else z - bias
                zero = z.new_zeros(())
                low, high = (zero, zero) if bias is None else (bias.clamp(max=0), bias.clamp(min=0))
                own = torch.where(
                    z > 0, (inner + magnitude) / 2 + high, (inner - magnitude) / 2 + low
                )
                mine, others = share.factors(z, own)
                together, apart = (mine + others) / 2, (mine - others).mul_(z.sign()) / 2
            value = z.detach().clone()
        if apart is None:
            output = Times.apply(z, together, (value,))  # type: ignore[no-untyped-call]
        else:
            output = Shares.apply(z, magnitude, together, apart, (value,))  # type: ignore[no-untyped-call]
        self._last = _Layer(output, z, magnitude, bias, share)
        return output  # type: ignore[no-any-return]

    def _norm(self, name: str) -> Callable[[Function, tuple[Any, ...], Any], Any]:
        def handle(function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
            x = args[0]
            norm = read_norm(name, args, kwargs)
            if not varies(x):
                return function(*args, **kwargs)
            if norm is None:
                return self._merged(function, args, kwargs)
            with torch.no_grad():
                value = function(*args, **kwargs)
                factor = norm.factor(norm.centre(x))
            return Standardised.apply(x, (norm, factor), (value,))  # type: ignore[no-untyped-call]

        return handle

    def _merged(self, function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Batch norm as part of the layer before it: scale and shift go into weights and bias."""
        last, self._last = self._last, None
        if last is None or args[0] is not last.output:
            return function(*args, **kwargs)
        z = function(last.z, *args[1:], **kwargs)
        with torch.no_grad():
            one = (slice(1), slice(None), *[slice(1)] * (last.z.ndim - 2))
            like = torch.zeros_like(last.z[one])
            shift = function(like, *args[1:], **kwargs)
            scale = function(like + 1, *args[1:], **kwargs) - shift
            bias = shift if last.bias is None else function(last.bias, *args[1:], **kwargs)
        magnitude = None if last.magnitude is None else last.magnitude * scale.abs()
        return self._shared(z, magnitude, bias, last.share)

    # Activations and products

    def _activation(self, *, gate: bool) -> Callable[[Function, tuple[Any, ...], Any], Any]:
        def handle(function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
            t = args[0]
            if not varies(t) or any(map(varies, args[1:])):
                return function(*args, **kwargs)

            def of(one: torch.Tensor) -> torch.Tensor:
                return function(one, *args[1:], **kwargs)  # type: ignore[no-any-return]

            with torch.no_grad():
                y, zero = of(t), torch.zeros_like(t)
                multiplier = secant(of, (t, zero), (y, of(zero)), t.abs() <= NEAR)
            passed = Gate if gate else Times
            return passed.apply(t, multiplier, (y,))  # type: ignore[no-untyped-call]

        return handle

    def _product(self, function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
        moving = [one for one in flat(args) if varies(one)]
        if len(moving) < 2:
            return function(*args, **kwargs)
        gates = [one for one in moving if _is_gate(one)]
        if 0 < len(gates) < len(moving):
            still = {id(one): one.detach() for one in gates}
            return function(*replaced(args, still), **kwargs)
        if len(moving) > 2:
            self.unknown[f"{function.__name__} of {len(moving)} factors"] += 1
        result = function(*args, **kwargs)
        part = result.new_full((), 1 / len(moving))
        return Times.apply(result, part, (result.detach(),))  # type: ignore[no-untyped-call]

    def _quotient(self, function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
        """The denominator is a constant, as the deviation in a norm."""
        if len(args) > 1 and varies(args[1]):
            if not varies(args[0]):
                self.note("div", args[1])
                return function(*args, **kwargs)
            args = (args[0], args[1].detach(), *args[2:])
        return function(*args, **kwargs)

    def _power(self, function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
        exponent = args[1] if len(args) > 1 else kwargs.get("exponent")
        if isinstance(exponent, int | float) and exponent >= 1:
            return self._activation(gate=False)(function, args, kwargs)
        result = function(*args, **kwargs)
        self.note("pow", result)
        return result

    def _seen(self, steps: Function) -> Callable[[Function, tuple[Any, ...], Any], Any]:
        def handle(_function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
            return self.seen(steps, *args, **kwargs)

        return handle


def _stabilised(z: torch.Tensor, epsilon: float) -> torch.Tensor | None:
    """Return z / (z + eps sign z), eps a part of the root mean square of z; None for 1."""
    if epsilon == 0:
        return None
    size = z.abs()
    below = size + epsilon * size.square().mean().sqrt()
    return torch.where(below == 0, 0.0, size / below)


def _is_gate(tensor: torch.Tensor) -> bool:
    """Whether a tensor comes out of a sigmoid, but for its shape."""
    node = tensor.grad_fn
    while node is not None and type(node).__name__.startswith(_VIEWS):
        node = node.next_functions[0][0]
    return getattr(node, "_forward_cls", None) is Gate
