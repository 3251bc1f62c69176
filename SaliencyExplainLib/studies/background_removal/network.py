"""The network that knows masked brains only: a small 3D U-Net with ReLU.

ReLU, so that guided backpropagation is the published one; instance norm without parameters; no
stride in the first layer, so that the lattice of strides stays faint in maps. Matos et al. 2019
train a 2D U-Net with Dice loss and SGD; here Dice loss and cross entropy, and AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .scans import TISSUES

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ...model import Model
    from .scans import Scan

__all__ = ["STRIDE", "as_model", "loss_over", "make_network"]

_CHANNELS, _STRIDES = (8, 16, 32, 48), (1, 2, 2)
#: A shift by this many voxels shifts all of the network's grids by whole voxels.
STRIDE = 4
_BATCH, _MOVE = 2, 3


def make_network() -> torch.nn.Module:
    """Return the network with weights drawn from torch's generator."""
    from monai.networks.nets import UNet

    return UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=len(TISSUES),
        channels=_CHANNELS,
        strides=_STRIDES,
        num_res_units=0,
        act="RELU",
    )


def as_model(network: torch.nn.Module) -> Model:
    """Return a network as a model of this library."""
    from ...model import Model

    return Model(network.eval(), "segmentation", labels=TISSUES, channels=("T1",))


def loss_over(
    brains: list[Scan],
) -> Callable[[torch.nn.Module, np.random.Generator], torch.Tensor]:
    """Return the loss of a batch of masked brains, each moved by up to three voxels."""
    import torch
    from monai.losses import DiceCELoss

    images = torch.stack([one.image.as_tensor() for one in brains])
    labels = torch.stack([one.tissues.as_tensor() for one in brains])
    loss = DiceCELoss(to_onehot_y=True, softmax=True)

    def of_batch(network: torch.nn.Module, chance: np.random.Generator) -> torch.Tensor:
        chosen = chance.integers(0, len(brains), _BATCH)
        move = tuple(int(one) for one in chance.integers(-_MOVE, _MOVE + 1, 3))
        image, truth = (torch.roll(one[chosen], move, (2, 3, 4)) for one in (images, labels))
        found: torch.Tensor = loss(network(image), truth)
        return found

    return of_batch
