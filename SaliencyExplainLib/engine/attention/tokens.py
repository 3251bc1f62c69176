"""The tokens of a transformer: where each lies in the volume, and which finer ones it was made of.

A token is a number in a :class:`TokenTable`. Voxels or features become tokens where a network
flattens a volume; tokens become one where a linear layer mixes them (patch merging, pooling). A
number below 0 stands for what a network pads with: nothing of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import MethodError
from ...model import Grid

__all__ = [
    "NOTHING",
    "AttentionCall",
    "TokenGrid",
    "TokenMerge",
    "TokenTable",
    "is_constant",
    "slim",
]

#: Token number of padding.
NOTHING = -1

#: Positions are told apart to this part of a voxel.
_PART = 1024


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One use of attention.

    Attributes
    ----------
    name : str
        Qualified name of the innermost module around it; empty for the network's own forward.
    weights : Tensor, shape (W, Q, K)
        The heads made one: row q holds the weights of the keys in output token q. W > 1 where
        attention stays in windows.
    queries, keys : Tensor of int, shapes (W, Q) and (W, K)
        Token numbers.
    """

    name: str
    weights: torch.Tensor
    queries: torch.Tensor
    keys: torch.Tensor


@dataclass(frozen=True, eq=False)
class TokenMerge:
    """Tokens that were made of others.

    Attributes
    ----------
    tokens : Tensor of int, shape (n,)
    parents : Tensor of int, shape (n, k)
        :data:`NOTHING` where a token has fewer.
    share : Tensor, shape (k,)
        How often each column of parents went in, one a feature that the layer mixed.
    """

    tokens: torch.Tensor
    parents: torch.Tensor
    share: torch.Tensor


@dataclass(frozen=True, eq=False)
class TokenGrid:
    """Tokens that fill a box: their numbers (i, j, k) and where the grid lies."""

    tokens: torch.Tensor
    grid: Grid

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of tokens along each axis."""
        return tuple(self.tokens.shape)

    def sum_of_voxels(self, volume: torch.Tensor) -> torch.Tensor:
        """Sum of a volume (I, J, K) over the voxels that each token is nearest to, (i, j, k)."""
        for axis, size in enumerate(self.shape):
            voxels = torch.arange(volume.shape[0], device=volume.device)
            place = (voxels - self.grid.origin[axis]) / self.grid.spacing[axis]
            nearest = (place + 0.5).floor().clamp(0, size - 1).long()
            summed = volume.new_zeros((size, *volume.shape[1:]))
            # The axis that is done goes to the back: after three turns the order is the old one.
            volume = summed.index_add_(0, nearest, volume).movedim(0, -1)
        return volume


class TokenTable:
    """The tokens of one forward pass, their positions and their parents.

    Attributes
    ----------
    shape : (I, J, K)
        The network's input.
    tape : list of AttentionCall or TokenMerge
        In the order in which they happened.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.shape = shape
        self.device = device
        self.tape: list[AttentionCall | TokenMerge] = []
        self.count = 0
        self._positions: list[torch.Tensor] = []

    @property
    def positions(self) -> torch.Tensor:
        """Centre of each token in input voxels, (count, 3); NaN for one without a place."""
        if len(self._positions) > 1:
            self._positions = [torch.cat(self._positions)]
        return self._positions[0] if self._positions else torch.zeros(0, 3, device=self.device)

    def new(self, positions: torch.Tensor) -> torch.Tensor:
        """Number new tokens at positions (n, 3)."""
        self._positions.append(positions.to(self.device, torch.float32))
        first, self.count = self.count, self.count + len(positions)
        return torch.arange(first, self.count, dtype=torch.int32, device=self.device)

    def special(self, count: int) -> torch.Tensor:
        """Number new tokens that stand for no place (class tokens)."""
        return self.new(torch.full((count, 3), torch.nan))

    def on_grid(self, grid: Grid, shape: tuple[int, ...]) -> torch.Tensor:
        """Number new tokens on a grid, shape (i, j, k)."""
        axes = [
            origin + step * torch.arange(size)
            for origin, step, size in zip(grid.origin, grid.spacing, shape, strict=True)
        ]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        return self.new(places).view(shape)

    def is_placed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Whether each token stands for a place in the volume."""
        return (tokens >= 0) & ~self.positions[tokens.clamp(min=0).long(), 0].isnan()

    def merged(self, rows: torch.Tensor) -> torch.Tensor:
        """Number one new token a row of parents (n, k).

        It lies in the middle of its parents; where some are padding, as far from its first parent
        as in a row without padding, so that the grid stays regular at its end.
        """
        changes = (rows[:, 1:] != rows[:, :-1]).any(0)
        starts = torch.cat([changes.new_ones(1), changes]).nonzero()[:, 0]
        ends = torch.cat([starts[1:], starts.new_tensor([rows.shape[1]])])
        parents = rows[:, starts].long()
        real = self.is_placed(parents)
        places = self.positions[parents.clamp(min=0)]
        low = places.masked_fill(~real[..., None], torch.inf).amin(1)
        high = places.masked_fill(~real[..., None], -torch.inf).amax(1)
        middle = (low + high) / 2
        whole = real.all(1)
        if whole.any():
            offset = (middle - places[:, 0])[whole][0]
            ragged = real[:, 0] & ~whole
            middle[ragged] = (places[:, 0] + offset)[ragged]
        tokens = self.new(torch.where(real.any(1)[:, None], middle, torch.nan))
        self.tape.append(TokenMerge(tokens, parents, (ends - starts).float()))
        return tokens

    def regridded(self, old: TokenGrid, grid: Grid, shape: tuple[int, ...]) -> torch.Tensor:
        """Number new tokens on a finer or coarser grid over the same volume, shape (i, j, k).

        A coarse token has those as parents that lie nearest to it, a fine one the nearest.
        """
        tokens = self.on_grid(grid, shape)
        parents = old.tokens
        for axis in range(3):
            index = _parents_along(old, grid, shape, axis).to(self.device)
            picked = parents.index_select(axis, index.clamp(min=0).flatten())
            picked = picked.unflatten(axis, tuple(index.shape))
            around = [1] * picked.ndim
            around[axis], around[axis + 1] = index.shape
            picked = picked.masked_fill(index.view(around) < 0, NOTHING)
            parents = picked.movedim(axis + 1, -1)
        rows = parents.reshape(tokens.numel(), -1).long()
        share = torch.ones(rows.shape[1], device=self.device)
        self.tape.append(TokenMerge(tokens.flatten(), rows, share))
        return tokens

    def lay_out(self, tokens: torch.Tensor) -> TokenGrid:
        """Arrange tokens in space; those without a place are left out.

        Raises
        ------
        MethodError
            If they do not fill a regular grid.
        """
        tokens = tokens.flatten()
        tokens = tokens[self.is_placed(tokens)].unique().long()
        places = (self.positions[tokens] * _PART).round() / _PART
        axes = [places[:, axis].unique(return_inverse=True) for axis in range(3)]
        shape = tuple(len(values) for values, _ in axes)
        steps = [values.diff() for values, _ in axes]
        regular = all(len(step) == 0 or step.max() - step.min() < 4 / _PART for step in steps)
        if not len(tokens) or torch.Size(shape).numel() != len(tokens) or not regular:
            raise MethodError(
                f"The {len(tokens)} tokens of this attention do not lie on a regular grid in the "
                "volume, so there is no map of them. Choose another attention module (layer), or a "
                "gradient method."
            )
        flat = (axes[0][1] * shape[1] + axes[1][1]) * shape[2] + axes[2][1]
        origin = tuple(float(values[0]) for values, _ in axes)
        spacing = tuple(
            float(step[0]) if len(step) else float(size)
            for step, size in zip(steps, self.shape, strict=True)
        )
        return TokenGrid(tokens[flat.argsort()].view(shape), Grid(origin, spacing))  # type: ignore[arg-type]  # three axes


def _parents_along(old: TokenGrid, grid: Grid, shape: tuple[int, ...], axis: int) -> torch.Tensor:
    """Indices along one axis of the old tokens that each new one is made of, (m, k)."""
    size, count = old.shape[axis], shape[axis]
    before = old.grid.origin[axis] + old.grid.spacing[axis] * torch.arange(size)
    after = grid.origin[axis] + grid.spacing[axis] * torch.arange(count)
    distance = (before[:, None] - after[None]).abs()
    if count >= size:
        return distance.argmin(0)[:, None]
    nearest = distance.argmin(1)
    lists = [(nearest == one).nonzero()[:, 0] for one in range(count)]
    return torch.nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=NOTHING)


def is_constant(tokens: torch.Tensor, axis: int) -> bool:
    """Whether the tokens are the same along an axis."""
    if tokens.shape[axis] == 1 or tokens.stride(axis) == 0:
        return True
    if not torch.equal(tokens.select(axis, 0), tokens.select(axis, 1)):
        return False
    return bool((tokens == tokens.narrow(axis, 0, 1)).all())


def slim(tokens: torch.Tensor) -> torch.Tensor:
    """The same tokens; axes along which they do not change take no memory."""
    for axis in range(tokens.ndim):
        if tokens.shape[axis] > 1 and tokens.stride(axis) != 0 and is_constant(tokens, axis):
            tokens = tokens.narrow(axis, 0, 1).clone().expand(tokens.shape)
    return tokens
