"""Attention rollout and attention rows: where tokens got what they were made of.

With E_l the attention of block l, its heads made one, row q the weights of output token q, and a
the residual share (0.5)::

    rows      Out = q^T E_l                                     a row of one block
    rollout   Out = q^T A_L ... A_2 A_1,   A_l = rownorm( (1 - a) E_l + a I )

Abnar and Zuidema 2020, arXiv:2005.00928, section 3 (a = 0.5, mean of the heads).

q is a distribution over tokens: for an output with voxels, each voxel of the region gives its part
to the token that it is nearest to; without voxels, the token that the output was read from (a class
token, or all tokens that were pooled or flattened).

Differs from the paper: q^T is multiplied from the left, vector by matrix, so that no product of two
N x N matrices is made: beside the L matrices of N^2 numbers (their heads already made one) it needs
N numbers. Hence it also works where tokens attend within windows (Swin): each window is multiplied
by itself, and where tokens are merged, the relevance of the new one is shared out among those that
it was made of. Padding, which stands for no place, is left out of the rows before they are
normalised. Through sliding windows, voxels count with their parts b_w in the fusion, and the maps
are added: all maps together stand for one distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import MethodError
from .base import Attribution, Method, method, param

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from ..engine import AttentionCall, AttentionRecorder, Engine, TokenGrid, TokenMerge
    from ..model import Grid

__all__ = ["AttentionRollout", "AttentionRows"]

Box = tuple[slice, ...]

_QUERIES = ("automatic", "class_token", "mean")

#: Below this part of the relevance the tokens' path is taken to be broken.
_BROKEN = 1e-3


@dataclass(frozen=True, eq=False)
class _Shown:
    """What is shown: the tokens in space, the relevance of all tokens, modules, warnings."""

    placed: TokenGrid
    relevance: torch.Tensor
    names: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _AttentionMethod(Method):
    """What rows and rollout share: recording, the query, and bringing tokens onto the volume."""

    layer: str = param(
        "", help="name of the attention module, as an unknown one lists them; empty: the last"
    )
    heads: str = param(
        "mean",
        choices=("mean", "max", "min"),
        help="how the heads of one attention become one matrix",
    )
    query: str = param(
        "automatic",
        choices=_QUERIES,
        help="whose attention: of the region's tokens or those behind the output (automatic), of "
        "the class token, or of all tokens on average",
    )

    def passes(self) -> int:
        """One forward pass that fixes the region, one that is recorded."""
        return 2

    def window_passes(self, *, linear: bool) -> int:
        """Through sliding windows too."""
        return 2

    def attribute(self, engine: Engine) -> Attribution:
        """Map of shape (1, I, J, K); with one window also (1, i, j, k), one value a token."""
        from ..engine import on_network_grid, recorded_attention

        shown: _Shown | None = None
        padded = engine.plan.pad(engine.x)
        total = engine.x.new_zeros((1, *engine.plan.weight_sum.shape))
        lost = 0.0
        for window, region in _regions(engine):
            if region is not None and not region.any():
                engine.progress.step("window outside the region skipped")
                continue
            part = padded[(slice(None), slice(None), *window)]
            with recorded_attention(engine.model.network, part, self.heads) as recorder:
                engine.run_window(padded, window)
            start = recorder.call(self.layer)
            relevance, words = self._seed(engine, recorder, start, region)
            shown = self.carried(recorder, start, relevance)
            token_map = shown.relevance[shown.placed.tokens][None]
            lost += float(shown.relevance.sum() - token_map.sum())
            total[(slice(None), *window)] += on_network_grid(
                token_map, shown.placed.grid, tuple(part.shape[2:])
            )
        if shown is None:
            raise MethodError("No window reaches the region, so there is no attention to show.")
        single = len(engine.plan.windows) == 1
        return Attribution(
            total[(slice(None), *engine.plan.inside)],
            layer_map=token_map if single else None,
            layer_grid=_on_volume(shown.placed.grid, engine) if single else None,
            layers=shown.names,
            warnings=shown.warnings,
            used={"layer": start.name},
            details={"query": words, "share_without_a_place": round(max(lost, 0.0), 6)},
        )

    def carried(
        self, recorder: AttentionRecorder, start: AttentionCall, relevance: torch.Tensor
    ) -> _Shown:
        """Bring the query's relevance to the tokens that are shown."""
        raise MethodError("An attention method says how relevance is carried.")

    def _seed(
        self,
        engine: Engine,
        recorder: AttentionRecorder,
        start: AttentionCall,
        region: torch.Tensor | None,
    ) -> tuple[torch.Tensor, str]:
        """Relevance of all tokens at the queries of `start`, and what it is in words.

        ``region`` (I, J, K) sums to the window's part in the whole.
        """
        from ..engine import TokenMerge

        table, queries = recorder.table, start.queries
        relevance = start.weights.new_zeros(table.count)
        mass = 1.0 if region is None else float(region.sum())
        own = queries[(queries >= 0) & ~table.is_placed(queries)].unique()
        if self.query == "automatic" and region is not None:
            grid = table.lay_out(queries)
            relevance[grid.tokens] = grid.sum_of_voxels(region).to(relevance)
            return relevance, "tokens in the region"
        if self.query == "automatic" and recorder.output is not None:
            token = recorder.output[0, engine.frozen.output].long()
            relevance[token[token >= 0]] = mass
            for entry in reversed(table.tape[table.tape.index(start) + 1 :]):
                if isinstance(entry, TokenMerge):
                    relevance = _shared_out(relevance, entry, queries)
            if _sum_at(relevance, queries) > _BROKEN * mass:
                only = len(own) > 0 and float(relevance[own].sum()) > (1 - _BROKEN) * mass
                return relevance, "class token" if only else "tokens behind the output"
            relevance.zero_()
        if self.query == "class_token" and not len(own):
            raise MethodError(
                f"The attention in {start.name!r} has no class token. Choose query=automatic or "
                "query=mean."
            )
        if self.query != "mean" and len(own):
            relevance[own[0]] = mass
            return relevance, "class token"
        placed = table.lay_out(queries).tokens
        relevance[placed] = mass / placed.numel()
        return relevance, "mean over all tokens"


@method(
    "attention_rollout",
    unit="share of attention",
    title="Attention rollout",
    family="attention",
    summary="From which patches did attention, block upon block, mix into what the output reads?",
    paper="Abnar and Zuidema 2020, arXiv:2005.00928, section 3",
    signed=False,
    needs_layer=True,
    needs_gradient=False,
    weaknesses="attention is not attribution: it is the same for every class of the same region, "
    "knows neither values nor sign, skips past MLPs and decoders; coarse; flat in deep networks",
)
@dataclass(frozen=True)
class AttentionRollout(_AttentionMethod):
    """The query's row of the product of all attention matrices, residual connections in it."""

    residual: float = param(
        0.5, low=0.0, high=0.99, help="share of a token that goes past its attention, a"
    )

    def carried(
        self, recorder: AttentionRecorder, start: AttentionCall, relevance: torch.Tensor
    ) -> _Shown:
        """Carry it back through every block to the first tokens."""
        from ..engine import TokenMerge

        table, calls = recorder.table, recorder.calls
        shown = calls[0].queries
        used = calls[: calls.index(start) + 1]
        before = float(relevance.sum())
        for entry in reversed(table.tape[: table.tape.index(start) + 1]):
            if isinstance(entry, TokenMerge):
                relevance = _shared_out(relevance, entry, shown)
            else:
                relevance = _attended(relevance, entry, self.residual)
        reached = _sum_at(relevance, shown)
        if reached < _BROKEN * before:
            raise MethodError(
                f"The tokens of {start.name!r} could not be followed back to those of "
                f"{calls[0].name!r}, so attention cannot be rolled out between them. Choose "
                "attention rows, or another layer."
            )
        warnings = []
        if any(len(call.weights) > 1 for call in used):
            warnings.append(
                "This network attends within windows and merges tokens. Rollout was carried "
                "through both, which its paper does not define."
            )
        if reached < (1 - _BROKEN) * before:
            warnings.append(
                f"{1 - reached / before:.0%} of the rollout ended on tokens that could not be "
                "followed further back, and is missing from the map."
            )
        names = tuple(dict.fromkeys(call.name for call in used))
        return _Shown(table.lay_out(shown), relevance, names, tuple(warnings))


@method(
    "attention_rows",
    unit="share of attention",
    title="Attention rows",
    family="attention",
    summary="To which patches does one attention block look from the region?",
    paper="Vaswani et al. 2017, arXiv:1706.03762, eq. 1 (the softmax); Dosovitskiy et al. 2020, "
    "arXiv:2010.11929",
    signed=False,
    needs_layer=True,
    needs_gradient=False,
    weaknesses="attention is not attribution: one block only, the same for every class of the same "
    "region, without values and sign; within its window where a network attends in windows; coarse",
)
@dataclass(frozen=True)
class AttentionRows(_AttentionMethod):
    """The query's rows of one attention matrix."""

    def carried(
        self, recorder: AttentionRecorder, start: AttentionCall, relevance: torch.Tensor
    ) -> _Shown:
        """One step, without the residual."""
        relevance = _attended(relevance, start, 0.0)
        return _Shown(recorder.table.lay_out(start.keys), relevance, (start.name,))


def _regions(engine: Engine) -> Iterator[tuple[Box, torch.Tensor | None]]:
    """Part of the region in each window, (i, j, k), all of them summing to 1; None without one."""
    mask = engine.frozen.mask
    if mask is None:
        yield engine.plan.windows[0], None
        return
    weights = mask.new_zeros(engine.plan.weight_sum.shape, dtype=engine.x.dtype)
    weights[engine.plan.inside] = mask / mask.sum()
    for window in engine.plan.windows:
        yield window, weights[window] * engine.plan.fraction(window)


def _attended(relevance: torch.Tensor, call: AttentionCall, residual: float) -> torch.Tensor:
    """r^T A, with A = rownorm( (1 - residual) E + residual I ); E without padded keys."""
    import torch

    seen, asked = call.keys >= 0, call.queries >= 0
    weights = (1 - residual) * call.weights.masked_fill(~seen[:, None], 0.0)
    total = weights.sum(-1) + residual
    rows = relevance[call.queries.clamp(min=0)] * asked / total.clamp(min=1e-30)
    sent = torch.einsum("wq,wqk->wk", rows, weights)
    moved = relevance.index_fill(0, call.queries[asked], 0.0)
    moved.index_add_(0, call.queries[asked], residual * rows[asked])
    return moved.index_add_(0, call.keys[seen], sent[seen])


def _shared_out(relevance: torch.Tensor, merge: TokenMerge, kept: torch.Tensor) -> torch.Tensor:
    """Relevance of merged tokens, given to their parents; that of the `kept` tokens stays."""
    import torch

    tokens = merge.tokens.long()
    share = merge.share.to(relevance) * (merge.parents >= 0)
    whole = share.sum(1, keepdim=True)
    pushed = (whole[:, 0] > 0) & (relevance[tokens] != 0) & ~torch.isin(tokens, kept)
    tokens, parents = tokens[pushed], merge.parents[pushed]
    given = relevance[tokens, None] * (share / whole.clamp(min=1e-30))[pushed]
    moved = relevance.index_fill(0, tokens, 0.0)
    real = parents >= 0
    return moved.index_add_(0, parents[real], given[real])


def _sum_at(relevance: torch.Tensor, tokens: torch.Tensor) -> float:
    """Relevance of some tokens together, each counted once."""
    return float(relevance[tokens[tokens >= 0].unique()].sum())


def _on_volume(grid: Grid, engine: Engine) -> Grid:
    """The tokens' grid in voxels of the volume: the padding in front is taken off."""
    from ..model import Grid

    before = [pair[0] for pair in engine.plan.padding]
    origin = [start - front for start, front in zip(grid.origin, before, strict=True)]
    return Grid((origin[0], origin[1], origin[2]), grid.spacing, grid.exact)
