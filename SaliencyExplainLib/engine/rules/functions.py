"""Functions of a network, replaced as they are called: the ground of DeepLift and LRP.

A :class:`FunctionRule` sees every function of torch that a network calls, however it is written:
``nn.GELU``, ``F.gelu``, ``x.relu_()``, ``a * b``, one module used five times. Nothing in the
network is touched. A function that torch writes in Python (``F.multi_head_attention_forward``) is
opened: it runs step by step, and its steps are seen, so rules are needed for torch's own operations
alone. TorchScript networks do not pass here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any, ClassVar

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointError

from ...errors import MethodError
from .given import named

__all__ = [
    "FunctionRule",
    "Norm",
    "attention",
    "euclidean",
    "gated_half",
    "maximum_of",
    "read_norm",
    "spread",
    "varies",
]

Function = Callable[..., Any]
Handler = Callable[[Function, tuple[Any, ...], dict[str, Any]], Any]

_FIRST = ("input", "self", "query")
_SECOND = ("other", "mat2", "exponent", "weight", "key")
_NOT_ASKED = {
    name: lambda *_arguments: False
    for name in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
}
_ALIASES = {
    "absolute": "abs",
    "clip": "clamp",
    "divide": "div",
    "itruediv": "div",
    "maximum": "max",
    "minimum": "min",
    "multiply": "mul",
    "true_divide": "div",
    "truediv": "div",
    "imul": "mul",
    "ipow": "pow",
    "float_power": "pow",
}
#: Linear in what varies (with constant weights), or without influence on values.
_LINEAR = named(
    """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d add alpha_dropout as_strided
    as_subclass avg_pool1d avg_pool2d avg_pool3d baddbmm addmm addmv addbmm iadd isub bilinear
    broadcast_tensors broadcast_to cat channel_shuffle chunk clone col2im concat concatenate
    contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
    copy cpu cuda cumsum detach diag diagonal double dropout dropout2d dropout3d
    dsplit expand expand_as feature_alpha_dropout feature_dropout flatten flip float fold gather get
    getitem grid_sampler grid_sampler_2d grid_sampler_3d half hsplit hstack identity im2col
    index_add index_copy index_put index_select lerp linear masked_fill masked_scatter masked_select
    mean movedim moveaxis narrow nan_to_num native_dropout neg negative numpy_T pad permute
    pixel_shuffle pixel_unshuffle positive ravel repeat repeat_interleave requires_grad reshape
    reshape_as resolve_conj resolve_neg roll rot90 rsub scatter scatter_add select set setitem
    slice split split_with_sizes squeeze stack sub subtract sum swapaxes swapdims t take
    take_along_dim tensor_split tile to trace transpose tril triu type type_as unbind unflatten
    unfold unsafe_chunk unsafe_split unsqueeze upsample_bicubic2d upsample_bilinear2d
    upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_nearest_exact1d upsample_nearest_exact2d upsample_nearest_exact3d
    upsample_trilinear3d view view_as vsplit
    vstack where zero constant_pad_nd
    reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
    replication_pad2d replication_pad3d einsum matmul mm bmm mv dot mul div batch_norm
    """
)


class FunctionRule(TorchFunctionMode):
    """While active, functions that a network calls follow other rules backward.

    Subclasses fill ``self.handlers``: by a function's plain name, what is called instead of it,
    with the function (never in place), its arguments and its keywords.

    Attributes
    ----------
    unknown : Counter
        Nonlinear functions without a rule that were met, by name: they kept their derivative.
    """

    #: Nonlinear functions whose derivative is the rule.
    derivatives: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.handlers: dict[str, Handler] = {}
        self.unknown: Counter[str] = Counter()
        self._inside = True
        self._opened: dict[Any, FunctionType] = {}
        self._opening: list[Any] = []
        self._weights: frozenset[int] = frozenset()

    @contextmanager
    def within(self, network: torch.nn.Module) -> Iterator[None]:
        """Be active, but only while this network runs: the score behind it has rules of its own."""

        def enter(*_arguments: Any) -> None:
            self._inside = True

        def leave(*_arguments: Any) -> None:
            self._inside = False

        weights = (*network.parameters(), *network.buffers())
        self._weights = frozenset(one.untyped_storage().data_ptr() for one in weights)
        with ExitStack() as stack:
            stack.callback(enter)
            leave()
            stack.callback(network.register_forward_pre_hook(enter).remove)
            stack.callback(network.register_forward_hook(leave, always_call=True).remove)
            stack.enter_context(self)
            try:
                yield
            except CheckpointError as error:
                raise MethodError(
                    "The network computes parts of itself again on the way back (activation "
                    "checkpointing), where its functions cannot be followed. Load it with "
                    "checkpointing switched off."
                ) from error

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self._inside:
            return func(*args, **kwargs)
        name, in_place = _plain_name(func)
        if self._can_be_opened(func):
            return self._run_opened(func, args, kwargs)
        self._note_custom(args)
        handler = self.handlers.get(name)
        if handler is None or "out" in kwargs:
            if in_place and isinstance(args[0], torch.Tensor):
                self.before_change(args[0])
            result = func(*args, **kwargs)
            self.note(name, result)
            return result
        args, kwargs = _ordered(args, kwargs)
        if not in_place:
            return handler(func, args, kwargs)

        def out_of_place(changed: torch.Tensor, *others: Any, **options: Any) -> Any:
            return func(changed.clone(), *others, **options)

        result = handler(out_of_place, args, kwargs)
        self.before_change(args[0])
        return args[0].copy_(result)

    def before_change(self, tensor: torch.Tensor) -> None:
        """Be told that the network is about to write into a tensor."""

    def is_weight(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is a parameter or buffer of the network, or a part of one."""
        return tensor.untyped_storage().data_ptr() in self._weights

    def seen(self, function: Function, *args: Any, **kwargs: Any) -> Any:
        """Run a function whose steps are seen by this rule."""
        with self:
            return function(*args, **kwargs)

    def _can_be_opened(self, func: Function) -> bool:
        return (
            isinstance(func, FunctionType)
            and (func.__module__ or "").partition(".")[0] == "torch"
            and func not in self._opening
        )

    def _run_opened(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a Python function of torch without its first question, who overrides it."""
        opened = self._opened.get(func)
        if opened is None:
            opened = FunctionType(
                func.__code__,
                {**func.__globals__, **_NOT_ASKED},
                func.__name__,
                func.__defaults__,
                func.__closure__,
            )
            opened.__kwdefaults__ = func.__kwdefaults__
            self._opened[func] = opened
        self._opening.append(func)
        try:
            return self.seen(opened, *args, **kwargs)
        finally:
            self._opening.pop()

    def note(self, name: str, result: Any) -> None:
        """Remember a nonlinear function that was left to its derivative."""
        if name in _LINEAR or name in self.derivatives:
            return
        if varies(*(result if isinstance(result, tuple) else (result,))):
            self.unknown[name] += 1

    def _note_custom(self, args: tuple[Any, ...]) -> None:
        """Remember what an autograd function of the network's own has made."""
        for one in args:
            made_by = getattr(getattr(one, "grad_fn", None), "_forward_cls", None)
            if made_by is not None and not made_by.__module__.startswith(__package__):
                self.unknown[made_by.__name__] += 1


def varies(*values: Any) -> bool:
    """Whether one of the values depends on the image (weights are frozen)."""
    return any(isinstance(one, torch.Tensor) and one.requires_grad for one in values)


def _plain_name(func: Function) -> tuple[str, bool]:
    """Name of a function without underscores and aliases, and whether it works in place."""
    # An exported program calls "relu.default".
    name = getattr(func, "__name__", type(func).__name__).partition(".")[0]
    dunder = name.startswith("__") and name.endswith("__")
    in_place = dunder and name in ("__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__")
    in_place |= name == "__setitem__" or (name.endswith("_") and not dunder)
    name = name.strip("_")
    return _ALIASES.get(name, name), in_place


def _ordered(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The first two operands by position, however they were given."""
    kwargs = dict(kwargs)
    for position, names in enumerate((_FIRST, _SECOND)):
        if len(args) == position:
            args = (*args, *(kwargs.pop(name) for name in names if name in kwargs))
    return args, kwargs


# ------------------------------------------------------------------------------------------------
# Functions that are read alike by all rules


@dataclass(frozen=True)
class Norm:
    """A normalisation y = (x - mean) * r * scale + shift with r = 1 / sqrt(variance + eps).

    Attributes
    ----------
    grouped : tuple of int
        Shape in which the statistics are taken over `axes`.
    centred : bool
        Whether the mean is taken away (not by an RMS norm).
    scale : Tensor or None
        Shaped for the input.
    """

    grouped: tuple[int, ...]
    axes: tuple[int, ...]
    centred: bool
    eps: float
    scale: torch.Tensor | None

    def centre(self, x: torch.Tensor) -> torch.Tensor:
        """Take the mean away; in the grouped shape."""
        x = x.reshape(self.grouped)
        return x - x.mean(self.axes, keepdim=True) if self.centred else x

    def factor(self, centred: torch.Tensor) -> torch.Tensor:
        """1 / standard deviation."""
        return (centred.square().mean(self.axes, keepdim=True) + self.eps).rsqrt()

    def scaled(self, gradient: torch.Tensor) -> torch.Tensor:
        """A gradient behind the norm, at its normalised values, in the grouped shape."""
        return (gradient if self.scale is None else gradient * self.scale).reshape(self.grouped)


_SIGNATURES = {
    "instance_norm": "x weight bias mean var statistics momentum eps",
    "batch_norm": "x weight bias mean var statistics momentum eps",
    "group_norm": "x groups weight bias eps",
    "layer_norm": "x shape weight bias eps",
    "rms_norm": "x shape weight eps",
}


def read_norm(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Norm | None:
    """Read a call of a normalisation; None where it is affine with constant statistics."""
    given = dict(zip(_SIGNATURES[name].split(), args, strict=False)) | dict(kwargs)
    given.setdefault("statistics", given.get("use_input_stats", given.get("training", True)))
    x, weight = given["x"], given.get("weight")
    eps = given.get("eps")
    if name in ("layer_norm", "rms_norm"):
        count = len(given.get("shape", given.get("normalized_shape", ())))
        axes = tuple(range(x.ndim - count, x.ndim))
        if eps is None:
            eps = torch.finfo(x.dtype).eps if name == "rms_norm" else 1e-5
        return Norm(tuple(x.shape), axes, name == "layer_norm", eps, weight)
    scale = None if weight is None else weight.reshape(1, -1, *[1] * (x.ndim - 2))
    eps = 1e-5 if eps is None else eps
    if name == "group_norm":
        groups = int(given.get("groups") or given["num_groups"])
        return Norm((x.shape[0], groups, x[0].numel() // groups), (2,), True, eps, scale)
    if not given["statistics"]:
        return None
    axes = tuple(range(2, x.ndim)) if name == "instance_norm" else (0, *range(2, x.ndim))
    return Norm(tuple(x.shape), axes, True, eps, scale)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    _dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    **_options: Any,
) -> torch.Tensor:
    """Scaled dot-product attention in three steps (Vaswani et al. 2017, eq. 1)."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
    scores = torch.matmul(query * scale, key.transpose(-2, -1))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(
            ~attn_mask, -torch.inf
        )
    if attn_mask is not None:
        scores = scores + attn_mask
    return torch.matmul(scores.softmax(-1), value)


def gated_half(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Gated linear unit: one half times the sigmoid of the other."""
    signal, gate = x.chunk(2, dim)
    return signal * gate.sigmoid()


def maximum_of(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The larger of two, with one rectifier."""
    return other + torch.relu(one - other)


def spread(args: tuple[Any, ...], kwargs: Any, value: torch.Tensor) -> torch.Tensor:
    """Variance in steps, for the arguments of torch.var; its value says whether axes were kept."""
    x = args[0]
    dim = kwargs.get("dim", args[1] if len(args) > 1 and not isinstance(args[1], bool) else None)
    axes = tuple(range(x.ndim)) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    keep = value.ndim == x.ndim
    centred = x - x.mean(axes, keepdim=True)
    spread = centred.square().sum(axes, keepdim=keep)
    count = x.numel() / max(1, value.numel())
    correction = kwargs.get("correction", 1)
    unbiased = kwargs.get("unbiased", next((one for one in args[1:] if one is False), True))
    result: torch.Tensor = spread / (count - (correction if unbiased else 0))
    return result


def euclidean(x: torch.Tensor, dim: Any, keep: bool) -> torch.Tensor:
    """Euclidean length in steps."""
    axes = tuple(range(x.ndim)) if dim is None else dim
    return x.square().sum(axes, keepdim=keep).sqrt()
