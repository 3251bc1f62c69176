"""A small network of nnU-Net's form, and its training on nodules with and without spicules.

The published network is nnU-Net v1, 3d_fullres (Isensee et al. 2021,
doi:10.1038/s41592-020-01008-z; its Generic_UNet): each stage has two convolutions 3x3x3
with instance normalisation and LeakyReLU, the first of a stage strides; a transposed convolution
2x2x2 without bias comes back up, the skipped features are put beside it, and two convolutions
follow; the head is 1x1x1.

Differs from it: fewer and narrower stages, one size of scenes, 48 turns and mirrorings in the place
of nnU-Net's augmentation, no deep supervision, no five folds; a fifth of the training volumes has
no spicules and nothing to find, so that the spicules are the evidence and not one nodule against
the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from monai.losses import DiceCELoss

from ..nodules import SpiculatedNodules, spiculated_nodules
from ..training import seeded, train

if TYPE_CHECKING:
    from ...model import Model
    from ..work import Work

__all__ = ["NoduleNet", "as_model", "dice", "trained_network"]

#: Scenes to train on have these seeds and higher ones, those to test on smaller ones.
FIRST_TRAINING_SEED = 1_000_000_000
#: Part of the training volumes whose spicules are erased, with nothing to find: without them a
#: network with instance normalisation still called 29 % of the bodies once no spicule was left.
_ERASED = 0.2
_CLASSES = ("background", "spiculated nodule")


class _Conv3d(torch.nn.Conv3d):
    """A convolution that is as fast for one small volume as for two.

    PyTorch 2.13 on a CPU gives a single volume with channels x first x second axis <= 20480 to its
    slow kernel: 32 ms in the place of 1.8 for 4 to 4 channels of 48^3, one thread. A batch of two
    is given to oneDNN, which is asked for here by name. Can go when the limit goes.
    """

    def _conv_forward(
        self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        # A plain tensor: those without data, which tell the layers' grids, take the usual way.
        plain = type(input) is torch.Tensor and input.device.type == "cpu"
        if not (plain and input.dtype == torch.float32 and torch.backends.mkldnn.is_available()):
            usual: torch.Tensor = super()._conv_forward(input, weight, bias)
            return usual
        padding = [int(one) for one in self.padding]
        found: torch.Tensor = torch.mkldnn_convolution(
            input, weight, bias, padding, self.stride, self.dilation, self.groups
        )
        return found


class NoduleNet(torch.nn.Module):
    """Encoder, bottleneck and decoder with skip connections, two convolutions a stage.

    Parameters
    ----------
    channels : sequence of int
        Of the stages from the finest to the coarsest; each halves the resolution.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.encoder = torch.nn.ModuleList()
        before = 1
        for number, width in enumerate(channels):
            self.encoder.append(_stage(before, width, stride=1 if number == 0 else 2))
            before = width
        self.up = torch.nn.ModuleList()
        self.decoder = torch.nn.ModuleList()
        for width in reversed(channels[:-1]):
            self.up.append(torch.nn.ConvTranspose3d(before, width, 2, stride=2, bias=False))
            self.decoder.append(_stage(2 * width, width, stride=1))
            before = width
        self.head = torch.nn.Conv3d(before, len(_CLASSES), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, 2, I, J, K) of an image (B, 1, I, J, K)."""
        skipped: list[torch.Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            skipped.append(x)
        for up, stage, beside in zip(self.up, self.decoder, skipped[-2::-1], strict=True):
            x = stage(torch.cat([up(x), beside], dim=1))
        logits: torch.Tensor = self.head(x)
        return logits


def _stage(before: int, width: int, stride: int) -> torch.nn.Sequential:
    """Two convolutions with instance normalisation and LeakyReLU; the first may stride."""
    layers: list[torch.nn.Module] = []
    for inputs, step in ((before, stride), (width, 1)):
        layers += [
            _Conv3d(inputs, width, 3, stride=step, padding=1),
            torch.nn.InstanceNorm3d(width, affine=True),
            torch.nn.LeakyReLU(0.01),
        ]
    return torch.nn.Sequential(*layers)


def as_model(network: torch.nn.Module) -> Model:
    """The network as a model of this library."""
    from ...model import load_model

    return load_model(network, task="segmentation", labels=_CLASSES, channels=("intensity",))


def trained_network(
    work: Work, *, channels: Sequence[int], size: int, scenes: int, steps: int
) -> tuple[torch.nn.Module, list[float]]:
    """Train the network, or read it if it was trained.

    Parameters
    ----------
    work : Work
        Seed, progress, and where the weights are kept.
    channels : sequence of int
        Of the network's stages.
    size : int
        Voxels of the scenes along each axis.
    scenes, steps : int
        Different scenes, and updates of two scenes each, turned and mirrored at random.

    Returns
    -------
    network : torch.nn.Module
        A :class:`NoduleNet` in evaluation mode.
    losses : list of float
        One a step.
    """
    network = seeded(lambda: NoduleNet(channels), work.seed)
    loss = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)
    first = FIRST_TRAINING_SEED + work.seed * scenes
    kept: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def drawn(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        number = int(rng.integers(scenes))
        if number not in kept:
            scene = spiculated_nodules(size, first + number)
            mask = scene.labels.numpy()[0] == SpiculatedNodules.TARGET
            images = [one.numpy()[0].astype(np.float16) for one in (scene.image, scene.erased)]
            kept[number] = images[0], images[1], mask
        image, erased, mask = kept[number]
        if rng.random() < _ERASED:
            image, mask = erased, np.zeros_like(mask)
        return _turned((image, mask), rng)

    def loss_of(net: torch.nn.Module, rng: np.random.Generator) -> torch.Tensor:
        # Two volumes: of a single small one PyTorch convolves ten times slower (measured).
        images, masks = zip(*(drawn(rng) for _ in range(2)), strict=True)
        found: torch.Tensor = loss(net(torch.cat(images).float()), torch.cat(masks).float())
        return found

    losses = train(work, "network", network, loss_of, steps=steps, learning_rate=5e-3)
    return network, losses


def _turned(
    pair: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and mask with axes exchanged and mirrored alike, (1, 1, size, size, size) each."""
    axes = rng.permutation(3)
    flips = tuple(int(axis) for axis in np.flatnonzero(rng.random(3) < 0.5))
    turned = [np.flip(volume.transpose(axes), flips).copy() for volume in pair]
    return torch.from_numpy(turned[0])[None, None], torch.from_numpy(turned[1])[None, None]


def dice(found: np.ndarray, target: np.ndarray) -> float:
    """Dice overlap of two masks; 1 where both are empty."""
    total = float(found.sum() + target.sum())
    return 2 * float((found & target).sum()) / total if total else 1.0
