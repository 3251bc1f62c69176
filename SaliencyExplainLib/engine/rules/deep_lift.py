"""DeepLift's multipliers for whatever a network computes, with exact completeness.

Shrikumar et al. 2017, arXiv:1704.02685, section 3.5.1 (rescale rule). A function y = f(t) between
an image and a baseline gets multipliers m with sum_i m_i (t - t0)_i = y - y0, and the chain rule
holds for them (eq. 3). With bars for the mean of image and baseline::

    linear            the weights
    one variable      m = (y - y0) / (t - t0);  f'(t mean) where t hardly differs from t0
    product u v       m_u = v mean, m_v = u mean: exact, since d(uv) = vbar du + ubar dv; so too for
                      matrix products, einsum, convolutions with computed kernels; u / v = u (1 / v)
    norms             centre (linear), square, mean, 1 / sqrt, product: m follows from the above
    softmax           p = exp(t - L) with L = log sum exp t: m = w at exp, and dL = sum w dt / sum w
                      for w = (p - p0) / (log p - log p0)
    max pooling       y - y0 goes to the image's place if y > y0, else to the baseline's

Differs from the paper, which has rules for linear functions and those of one variable: where peers
leave the others to the derivative, completeness is lost. The baseline is run first, and what enters
its nonlinearities is kept in the order of the calls until the image comes by.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ...errors import MethodError
from .functions import (
    Function,
    FunctionRule,
    attention,
    euclidean,
    gated_half,
    maximum_of,
    read_norm,
    spread,
    varies,
)
from .given import (
    NEAR,
    As,
    Normalised,
    Softmax,
    Times,
    flat,
    is_floating,
    largest,
    named,
    replaced,
    secant,
)

__all__ = ["DeepLiftRule"]

_ONE_VARIABLE = named("""
    abs acos arctan asin atan celu clamp clamp_max clamp_min cos cosh elu erf erfc exp exp2 expm1
    gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu log log10 log1p log2 log_sigmoid logit
    mish pow prelu reciprocal relu relu6 rpow rrelu rsqrt selu sigmoid silu sin sinh softplus
    softshrink sqrt square tan tanh threshold
""")
#: Linear but for kinks: the secant is exact however close.
_KINKED = named(
    """
    abs clamp clamp_max clamp_min hardshrink hardsigmoid hardtanh leaky_relu prelu relu relu6 rrelu
    softshrink threshold
"""
)
#: Smooth on a scale of 1; the others on the scale of their argument.
_UNIT = named(
    """
    atan arctan cos erf erfc exp exp2 expm1 gelu log_sigmoid mish sigmoid silu sin softplus tan tanh
"""
)
_PRODUCTS = named("""
    addbmm addmm addmv baddbmm bilinear bmm conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    conv_transpose3d convolution dot einsum linear matmul mm mul mv outer
""")
_NORMS = ("batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm")
_POOLS: dict[str, Any] = {
    "max_pool1d": torch.nn.functional.max_pool1d_with_indices,
    "max_pool2d": torch.nn.functional.max_pool2d_with_indices,
    "max_pool3d": torch.nn.functional.max_pool3d_with_indices,
    "adaptive_max_pool1d": torch.nn.functional.adaptive_max_pool1d_with_indices,
    "adaptive_max_pool2d": torch.nn.functional.adaptive_max_pool2d_with_indices,
    "adaptive_max_pool3d": torch.nn.functional.adaptive_max_pool3d_with_indices,
}
_DIFFERENT = (
    "The network computes the image and the baseline in different ways (it decides by its values), "
    "so DeepLift cannot compare them. Use another baseline, or integrated_gradients."
)


class DeepLiftRule(FunctionRule):
    """First :meth:`recording` the baseline's pass, then :meth:`comparing` the image's with it."""

    def __init__(self) -> None:
        super().__init__()
        self._records: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._recording = True
        for name in _ONE_VARIABLE:
            self.handlers[name] = self._one_variable(name)
        for name in _PRODUCTS:
            self.handlers[name] = self._product
        for name in _NORMS:
            self.handlers[name] = self._norm(name)
        for name in _POOLS:
            self.handlers[name] = self._pool(name)
            self.handlers[f"{name}_with_indices"] = self._pool(name)
        self.handlers |= {
            "div": self._quotient,
            "softmax": self._softmax,
            "log_softmax": self._log_softmax,
            "logsumexp": self._log_sum,
            "max": self._max,
            "amax": self._amax,
            "min": self._min,
            "amin": self._amin,
            "var": self._var,
            "std": self._std,
            "linalg_vector_norm": self._length,
            "glu": self._seen(gated_half),
            "scaled_dot_product_attention": self._seen(attention),
        }

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep what the baseline's pass needs; the network runs inside, without gradient."""
        self._records.clear()
        self._recording = True
        yield

    @contextmanager
    def comparing(self) -> Iterator[None]:
        """Run the image inside, once, and pull it back; what was kept goes as it is used."""
        self._recording = False
        try:
            yield
            if self._records:
                raise MethodError(_DIFFERENT)
        finally:
            self._records.clear()

    def before_change(self, tensor: torch.Tensor) -> None:
        """Keep a copy of what the network is about to overwrite."""
        if not self._recording:
            return
        place = tensor.untyped_storage().data_ptr()
        for position, (name, kept) in enumerate(self._records):
            if any(one.untyped_storage().data_ptr() == place for one in kept):
                self._records[position] = name, tuple(one.clone() for one in kept)

    def _baseline(self, name: str, *values: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
        """While recording keep the values and return None; later return the baseline's."""
        if self._recording:
            self._records.append((name, values))
            return None
        kept = self._records.popleft() if self._records else ("", ())
        if kept[0] != name or [one.shape for one in kept[1]] != [one.shape for one in values]:
            raise MethodError(_DIFFERENT)
        return kept[1]

    # One variable

    def _one_variable(self, name: str) -> Callable[[Function, tuple[Any, ...], Any], Any]:
        def handle(function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
            place = next((i for i, one in enumerate(args) if is_floating(one)), None)
            if place is None or any(map(varies, args[place + 1 :])):
                return self._left(function, args, kwargs)

            def of(t: torch.Tensor) -> Any:
                return function(*args[:place], t, *args[place + 1 :], **kwargs)

            return self._rescaled(name, of, args[place])

        return handle

    def _rescaled(self, name: str, function: Function, t: torch.Tensor) -> torch.Tensor:
        baseline = self._baseline(name, t)
        if baseline is None or not varies(t):
            return function(t)  # type: ignore[no-any-return]
        with torch.no_grad():
            y = function(t)
            t0 = baseline[0]
            multiplier = secant(function, (t, t0), (y, function(t0)), _near(name, t, t0))
        return Times.apply(t, multiplier, (y,))  # type: ignore[no-any-return, no-untyped-call]

    def _left(self, function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        self.note(f"{getattr(function, '__name__', 'function')} of several", result)
        return result

    # Products

    def _product(self, function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
        everything = flat(args)
        tensors = [one for one in everything if is_floating(one) and not self.is_weight(one)]
        if len(tensors) < 2:
            return function(*args, **kwargs)
        baseline = self._baseline("product", *tensors)
        moving = [one for one in tensors if varies(one)]
        if baseline is None or len(moving) < 2:
            return function(*args, **kwargs)
        if len(moving) > 2:
            return self._left(function, args, kwargs)
        with torch.no_grad():
            value = function(*args, **kwargs)
        means = {
            id(one): As.apply(one, ((one.detach() + other) / 2,))  # type: ignore[no-untyped-call]
            for one, other in zip(tensors, baseline, strict=True)
            if varies(one)
        }
        at_mean = function(*replaced(args, means), **kwargs)
        return As.apply(at_mean, (value,))  # type: ignore[no-untyped-call]

    def _quotient(self, function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
        if kwargs.get("rounding_mode") or not is_floating(args[1]) or self.is_weight(args[1]):
            return function(*args, **kwargs)
        inverse = self._rescaled("reciprocal", torch.reciprocal, args[1])
        return self._product(torch.mul, (args[0], inverse), {})

    # Norms and softmax

    def _norm(self, name: str) -> Callable[[Function, tuple[Any, ...], Any], Any]:
        def handle(function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
            norm = read_norm(name, args, kwargs)
            if norm is None:
                return function(*args, **kwargs)
            baseline = self._baseline(name, args[0])
            if baseline is None or not varies(args[0]):
                return function(*args, **kwargs)
            with torch.no_grad():
                value = function(*args, **kwargs)
                centred, other = norm.centre(args[0]), norm.centre(baseline[0])
                r, r0 = norm.factor(centred), norm.factor(other)
                # (r - r0) / (variance - variance0), without the difference of close numbers.
                slope = -((r * r0) ** 2) / (r + r0)
                kept = (norm, (centred + other) / 2, (r + r0) / 2, slope)
            return Normalised.apply(args[0], kept, (value,))  # type: ignore[no-untyped-call]

        return handle

    def _shares(self, t: torch.Tensor, dim: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Multipliers w of exp in a softmax, and w / sum w, or None while recording."""
        baseline = self._baseline("softmax", t)
        if baseline is None or not varies(t):
            return None
        with torch.no_grad():
            z = t - t.logsumexp(dim, keepdim=True)
            z0 = baseline[0] - baseline[0].logsumexp(dim, keepdim=True)
            p, p0 = z.exp(), z0.exp()
            change = z - z0
            close = (p + p0) / 2 * (1 - change.square() / 12)
            w = torch.where(change.abs() <= NEAR, close, (p - p0) / change).nan_to_num(0)
            return w, w / w.sum(dim, keepdim=True)

    def _softmax(self, function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
        dim = args[1] if len(args) > 1 else kwargs["dim"]
        shares = self._shares(args[0], dim)
        if shares is None:
            return function(*args, **kwargs)
        with torch.no_grad():
            value = function(*args, **kwargs)
        w, part = shares
        return Softmax.apply(args[0], (w, part, dim), (value,))  # type: ignore[no-untyped-call]

    def _log_softmax(self, function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
        dim = args[1] if len(args) > 1 else kwargs["dim"]
        shares = self._shares(args[0], dim)
        if shares is None:
            return function(*args, **kwargs)
        with torch.no_grad():
            value = function(*args, **kwargs)
        part = shares[1]
        return Softmax.apply(args[0], (None, part, dim), (value,))  # type: ignore[no-untyped-call]

    def _log_sum(self, function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
        dim = args[1] if len(args) > 1 else kwargs["dim"]
        shares = self._shares(args[0], dim)
        if shares is None:
            return function(*args, **kwargs)
        with torch.no_grad():
            value = function(*args, **kwargs)
        keep = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
        result = (args[0] * shares[1]).sum(dim, keepdim=keep)
        return As.apply(result, (value,))  # type: ignore[no-untyped-call]

    # The largest

    def _pool(self, name: str) -> Callable[[Function, tuple[Any, ...], Any], Any]:
        with_places = _POOLS[name]

        def handle(function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
            options = {key: one for key, one in kwargs.items() if key != "return_indices"}
            start = args[1:6] if not name.startswith("adaptive") else args[1:2]
            if len(start) > 1 and start[1] in ([], ()):
                start = (start[0], None, *start[2:])
            baseline = self._baseline(name, args[0])
            if baseline is None or not varies(args[0]):
                return function(*args, **kwargs)
            with torch.no_grad():
                value, places = with_places(args[0], *start, **options)
                value0, places0 = with_places(baseline[0], *start, **options)
            axes = value.ndim - 2
            result = largest(
                args[0].flatten(-axes),
                baseline[0].flatten(-axes),
                (value.flatten(-axes), places.flatten(-axes)),
                (value0.flatten(-axes), places0.flatten(-axes)),
            ).reshape(value.shape)
            both = kwargs.get("return_indices") or function.__name__.endswith("with_indices")
            both = both or (name.startswith("adaptive") and args[2:3] == (True,))
            return (result, places) if both else result

        return handle

    def _max(self, function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
        if len(args) > 1 and isinstance(args[1], torch.Tensor):
            return self.seen(maximum_of, args[0], args[1])
        x = args[0]
        if not is_floating(x):
            return function(*args, **kwargs)
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        if dim is None:
            return self._over_all(x)
        keep = bool(args[2]) if len(args) > 2 else bool(kwargs.get("keepdim", False))
        result = function(*args, **kwargs)
        largest = self._over_last(x.movedim(dim, -1))
        if largest is None:
            return result
        value = largest.unsqueeze(dim) if keep else largest
        return torch.return_types.max((value, result[1]))

    def _over_all(self, x: torch.Tensor) -> torch.Tensor:
        largest = self._over_last(x.flatten())
        return x.max() if largest is None else largest

    def _amax(self, function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
        x = args[0]
        dims = args[1] if len(args) > 1 else kwargs.get("dim", ())
        axes = [dims] if isinstance(dims, int) else list(dims) or list(range(x.ndim))
        last = list(range(-len(axes), 0))
        largest = self._over_last(x.movedim(axes, last).flatten(last[0]))
        if largest is None:
            return function(*args, **kwargs)
        return largest.reshape(function(x.detach(), *args[1:], **kwargs).shape)

    def _over_last(self, x: torch.Tensor) -> torch.Tensor | None:
        baseline = self._baseline("max", x)
        if baseline is None or not varies(x):
            return None
        with torch.no_grad():
            pairs = [tuple(one.max(-1, keepdim=True)) for one in (x, baseline[0])]
        return largest(x, baseline[0], *pairs)[..., 0]

    def _min(self, function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
        if len(args) > 1 and isinstance(args[1], torch.Tensor):
            return -self.seen(maximum_of, -args[0], -args[1])
        if not is_floating(args[0]):
            return function(*args, **kwargs)
        found = self._max(torch.max, (-args[0], *args[1:]), kwargs)
        if isinstance(found, torch.Tensor):
            return -found
        return torch.return_types.min((-found[0], found[1]))

    def _amin(self, _function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
        return -self._amax(torch.amax, (-args[0], *args[1:]), kwargs)

    # In steps that have rules

    def _seen(self, steps: Function) -> Callable[[Function, tuple[Any, ...], Any], Any]:
        def handle(_function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
            return self.seen(steps, *args, **kwargs)

        return handle

    def _var(self, function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
        # torch has several signatures; the value says how the spread was divided.
        with torch.no_grad():
            value = function(*args, **kwargs)
        return self.seen(spread, args, kwargs, value)

    def _std(self, _function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
        return self.seen(torch.sqrt, self._var(torch.var, args, kwargs))

    def _length(self, function: Function, args: tuple[Any, ...], kwargs: Any) -> Any:
        order = args[1] if len(args) > 1 else kwargs.get("ord", 2)
        dim = args[2] if len(args) > 2 else kwargs.get("dim")
        keep = args[3] if len(args) > 3 else kwargs.get("keepdim", False)
        if order != 2:
            return self._left(function, args, kwargs)
        return self.seen(euclidean, args[0], dim, keep)


def _near(name: str, t: torch.Tensor, t0: torch.Tensor) -> torch.Tensor:
    """Where the derivative is better than a quotient of differences."""
    if name in _KINKED:
        return t == t0
    difference = (t - t0).abs()
    if name in _UNIT:
        return difference <= NEAR
    return difference <= NEAR * torch.maximum(t.abs(), t0.abs())
