"""Which of torch's operations keep, move or mix the tokens that their values belong to."""

from __future__ import annotations

from typing import Any

import torch

__all__ = [
    "KEPT",
    "LAYOUT",
    "POOLED",
    "PRODUCTS",
    "REGRID",
    "SOFTMAX",
    "VIEWS",
    "joins_channels",
]

_aten = torch.ops.aten
#: Matrix products -> position of their first factor.
PRODUCTS = {_aten.mm: 0, _aten.bmm: 0, _aten.addmm: 1, _aten.baddbmm: 1}
SOFTMAX = (_aten._softmax, _aten._safe_softmax)
#: Beside all pointwise operations: element by element, or alike for all elements of a token.
KEPT = (
    *SOFTMAX,
    _aten.clone,
    _aten._to_copy,
    _aten.copy_,
    _aten.native_layer_norm,
    _aten.native_group_norm,
    _aten.native_batch_norm,
    _aten._native_batch_norm_legit,
    _aten._native_batch_norm_legit_no_training,
    _aten.cudnn_batch_norm,
    _aten.miopen_batch_norm,
    _aten._fused_rms_norm,
    _aten._prelu_kernel,
)
VIEWS = (_aten.view, _aten._unsafe_view, _aten.reshape, _aten._reshape_alias)
#: They move values, and tokens with them.
LAYOUT = (
    *VIEWS,
    _aten.alias,
    _aten.cat,
    _aten.constant_pad_nd,
    _aten.detach,
    _aten.expand,
    _aten.flip,
    _aten.index,
    _aten.index_select,
    _aten.permute,
    _aten.repeat,
    _aten.roll,
    _aten.select,
    _aten.slice,
    _aten.split,
    _aten.split_with_sizes,
    _aten.squeeze,
    _aten.stack,
    _aten.t,
    _aten.transpose,
    _aten.unbind,
    _aten.unfold,
    _aten.unsqueeze,
)
POOLED = (_aten.mean, _aten.sum, _aten.amax)
#: They give features on another grid.
REGRID = (
    _aten.convolution,
    _aten.max_pool3d_with_indices,
    _aten.max_pool3d,
    _aten.avg_pool3d,
    _aten._adaptive_avg_pool3d,
    _aten.adaptive_avg_pool3d,
    _aten.upsample_trilinear3d,
    _aten.upsample_nearest3d,
)


def joins_channels(packet: Any, args: Any, output: torch.Tensor) -> bool:
    """Whether features of volumes are put behind each other along their channels."""
    return bool(
        packet is _aten.cat
        and output.ndim == 5
        and len(args) > 1
        and args[1] == 1
        and all(one.shape[2:] == output.shape[2:] for one in args[0])
    )
