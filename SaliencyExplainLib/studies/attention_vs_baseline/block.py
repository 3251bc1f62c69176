"""The multi-level dual attention block in 3D, and how a network gets it.

With query Q, key K, value V and deepest features X of one network, each of shape (N, C) for the N
voxels of X::

    position   E = softmax(s Q K^T)     (N, N)      O_p = E V     Y_p = norm(relu(O_p + V))
    channel    G = X^T X                (C, C)      O_c = X G     Y_c = norm(relu(O_c + X))
    Y = (Y_p + Y_c) / 2

Mishra, Mandal, Puhan 2019, IEEE Signal Process. Lett. 26(12):1793-1797 (multi-level dual attention,
MLDAM): "multi-level" because Q, K and V come from different depths, "dual" because it attends to
positions and to channels. There are no learned projections: the network itself has to make features
that suit. Two versions of the block are public, and they differ:

===========  =====================================  ============================================
             authors' Keras code                    torch code, Goncalves and Cardoso 2021
===========  =====================================  ============================================
softmax      of each row of Q K^T                   of all N x N entries together
product      E V: row n weighs for voxel n          V E, E not transposed: column n does
norm         layer norm over channels               batch norm
depths       four different layers                  V = X, shallower ones tiled to C channels
===========  =====================================  ============================================

Differs from both: "scaled", the default here, divides Q K^T by the square root of C as all later
attention does (Vaswani et al. 2017, arXiv:1706.03762, eq. 1). Without it the rows are one-hot as
soon as C is large. Else it is the authors' code. 3D: N = i j k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from ...errors import ModelError

__all__ = ["VARIANTS", "MultiLevelDualAttention", "Variant"]

#: Most voxels of the deepest features: E has this number squared.
_MOST_TOKENS = 4096


@dataclass(frozen=True)
class Variant:
    """What the versions of the block do differently.

    Attributes
    ----------
    scaled : bool
        Divide Q K^T by the square root of C.
    rows : bool
        Softmax of each row; else of all entries together.
    transposed : bool
        Output voxel n is made with column n of E, not with row n.
    layer_norm : bool
        Layer norm over the channels of each voxel; else batch norm.
    """

    scaled: bool
    rows: bool
    transposed: bool
    layer_norm: bool


VARIANTS = {
    "scaled": Variant(scaled=True, rows=True, transposed=False, layer_norm=True),
    "original": Variant(scaled=False, rows=True, transposed=False, layer_norm=True),
    "torch_port": Variant(scaled=False, rows=False, transposed=True, layer_norm=False),
}


class MultiLevelDualAttention(torch.nn.Module):
    """Multi-level dual attention over the voxels and the channels of a 3D network's features.

    Parameters
    ----------
    channels : int
        Channels C of the deepest features.
    variant : {"scaled", "original", "torch_port"}
        See the module's text; "scaled" is the authors' block with Q K^T / sqrt(C).

    Raises
    ------
    ModelError
        If the variant is unknown.

    References
    ----------
    Mishra, Mandal, Puhan 2019, doi:10.1109/LSP.2019.2949388; Goncalves, Cardoso, RECPAD 2021.

    Examples
    --------
    >>> block = MultiLevelDualAttention(8)
    >>> deep = torch.rand(2, 8, 4, 4, 4)
    >>> block(torch.rand(2, 4, 8, 8, 8), torch.rand(2, 8, 4, 4, 4), deep, deep).shape
    torch.Size([2, 8, 4, 4, 4])
    """

    def __init__(self, channels: int, variant: str = "scaled") -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ModelError(
                f"The block has no variant {variant!r}. Choose from {', '.join(VARIANTS)}."
            )
        self.channels = channels
        self.variant = variant
        self.position_norm = _norm(channels, VARIANTS[variant])
        self.channel_norm = _norm(channels, VARIANTS[variant])

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, deep: torch.Tensor
    ) -> torch.Tensor:
        """Attend.

        Parameters
        ----------
        query, key, value : Tensor, shape (B, c, i', j', k')
            Features of any depth: averaged onto the voxels of `deep`; fewer channels are repeated
            until there are C, more are cut off.
        deep : Tensor, shape (B, C, i, j, k)
            The deepest features X.

        Returns
        -------
        Tensor, shape (B, C, i, j, k)

        Raises
        ------
        ModelError
            If `deep` has other channels than the block, or more than 4096 voxels.
        """
        grid = deep.shape[2:]
        if deep.ndim != 5 or deep.shape[1] != self.channels or grid.numel() > _MOST_TOKENS:
            raise ModelError(
                f"The block takes features of {self.channels} channels and at most {_MOST_TOKENS} "
                f"voxels; {tuple(deep.shape)} (B, C, i, j, k) were given. Make the block for that "
                "number of channels, or attend deeper in the network."
            )
        attention = self.weights(query, key, grid)
        v, x = self._suited(value, grid), deep
        tokens = x.flatten(2)
        # (B, C, N) times (N, N): column n of the second factor weighs for voxel n.
        columns = attention if VARIANTS[self.variant].transposed else attention.mT
        mixed = (v.flatten(2) @ columns).view(x.shape)
        crossed = ((tokens @ tokens.mT) @ tokens).view(x.shape)
        # Sums and norms are made on volumes, so that it can be followed where their voxels lie.
        by_position = self.position_norm(functional.relu(v + mixed))
        by_channel = self.channel_norm(functional.relu(x + crossed))
        joined: torch.Tensor = (by_position + by_channel) / 2
        return joined

    def weights(self, query: torch.Tensor, key: torch.Tensor, grid: torch.Size) -> torch.Tensor:
        """Attention E between the voxels of a grid.

        Parameters
        ----------
        query, key : Tensor, shape (B, c, i', j', k')
            As for :meth:`forward`.
        grid : (i, j, k)
            Shape of the deepest features.

        Returns
        -------
        Tensor, shape (B, N, N)
            Row n (in "torch_port" column n) holds the weights of all voxels in output voxel n,
            voxels in the order of ``features.flatten(2)``. Rows sum to 1; in "torch_port" all of E
            does.
        """
        chosen = VARIANTS[self.variant]
        q, k = (self._suited(one, grid).flatten(2) for one in (query, key))
        logits = q.mT @ k
        if chosen.scaled:
            logits = logits / math.sqrt(self.channels)
        if chosen.rows:
            return logits.softmax(-1)
        return logits.flatten(1).softmax(-1).view(logits.shape)

    def extra_repr(self) -> str:
        """Channels and variant."""
        return f"{self.channels}, variant={self.variant!r}"

    def _suited(self, features: torch.Tensor, grid: torch.Size) -> torch.Tensor:
        """Features (B, c, i', j', k') as (B, C, i, j, k)."""
        if features.shape[2:] != grid:
            features = functional.adaptive_avg_pool3d(features, (grid[0], grid[1], grid[2]))
        if features.shape[1] != self.channels:
            times = -(-self.channels // features.shape[1])
            features = torch.cat([features] * times, 1)[:, : self.channels]
        return features


class ChannelNorm(torch.nn.Module):
    """Layer norm over the channels of each voxel, with a gain and a bias a channel.

    Parameters
    ----------
    channels : int
    eps : float
        Added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(channels))
        self.bias = torch.nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise features (B, C, i, j, k)."""
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + self.eps).sqrt()
        return scaled * self.weight[:, None, None, None] + self.bias[:, None, None, None]


def _norm(channels: int, variant: Variant) -> torch.nn.Module:
    return ChannelNorm(channels) if variant.layer_norm else torch.nn.BatchNorm3d(channels)
