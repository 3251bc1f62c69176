"""The study's volumes and networks: one nodule a volume, with spicules or without.

Small networks of MONAI. With the DenseNet's growth all tapped features have C channels as in the
authors' Keras code; those of the ResNet have C / 4, C / 2 and C, as in the torch code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from monai.networks.nets import DenseNet, ResNet
from torch.nn import functional

from ..nodules import SpiculatedNodules, spiculated_nodules
from ..training import seeded, train
from .attach import DualAttentionNetwork, with_attention

if TYPE_CHECKING:
    from ..work import Work

__all__ = ["BACKBONES", "Contender", "Setting", "case", "contenders", "scores", "trained"]

#: First seeds of volumes that are trained on and tested on.
_TRAINING, _TEST = 1_000_000, 2_000_000
BACKBONES = ("DenseNet", "ResNet")


@dataclass(frozen=True)
class Setting:
    """Numbers of a run.

    Attributes
    ----------
    size, width_mm : int, float
        Voxels a side and width of a volume.
    noise : float
        Amplitude of the noise.
    training, test : int
        Volumes, half of them with spicules.
    steps, batch : int
        Updates of each network, and volumes in one.
    learning_rate : float
    augmentation : tuple of bool
        How each network is trained: without augmentation, with it, or once each.
    explained : int
        Spiculated test volumes whose maps are compared, a backbone.
    path_steps, samples, curve_steps : int
        Of integrated gradients, SmoothGrad, and of the deletion and insertion curves.
    """

    size: int
    width_mm: float
    noise: float
    training: int
    test: int
    steps: int
    batch: int
    learning_rate: float
    augmentation: tuple[bool, ...]
    explained: int
    path_steps: int
    samples: int
    curve_steps: int


@dataclass(frozen=True)
class Contender:
    """One of the networks that are compared."""

    backbone: str
    block: bool
    augmented: bool

    @property
    def name(self) -> str:
        """For people."""
        parts = [self.backbone, "block" * self.block, "augmented" * self.augmented]
        return " + ".join(part for part in parts if part)

    @property
    def file(self) -> str:
        """For files."""
        return self.name.lower().replace(" + ", "_")


def contenders(setting: Setting, backbone: str) -> list[Contender]:
    """Baseline, with the block, and both with augmentation."""
    return [
        Contender(backbone, block, augmented)
        for augmented in setting.augmentation
        for block in (False, True)
    ]


def case(setting: Setting, number: int, *, test: bool) -> SpiculatedNodules:
    """Make a volume; every second one has spicules."""
    return spiculated_nodules(
        setting.size,
        (_TEST if test else _TRAINING) + number,
        count=1,
        share=float(number % 2),
        noise=setting.noise,
        width_mm=setting.width_mm,
    )


def make_network(backbone: str) -> torch.nn.Module:
    """Return a network of MONAI with one output: whether the nodule has spicules."""
    if backbone == "DenseNet":
        return DenseNet(3, 1, 1, init_features=16, growth_rate=8, block_config=(2, 2, 2))
    return ResNet(
        "basic",
        [1, 1, 1, 1],
        [8, 16, 32, 64],
        n_input_channels=1,
        conv1_t_size=5,
        conv1_t_stride=2,
        no_max_pool=True,
        num_classes=1,
    )


class Volumes:
    """The training volumes, made when they are first needed."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._made: tuple[torch.Tensor, torch.Tensor] | None = None

    def all(self, work: Work) -> tuple[torch.Tensor, torch.Tensor]:
        """Volumes (n, 1, I, J, K) in half precision, and 1 where there are spicules."""
        if self._made is None:
            count, size = self.setting.training, self.setting.size
            found = torch.empty((count, 1, size, size, size), dtype=torch.float16)
            for number in range(count):
                work.check()
                scene = case(self.setting, number, test=False)
                found[number] = scene.image.as_tensor().half()
            self._made = found, (torch.arange(count) % 2).float()
        return self._made


def trained(work: Work, volumes: Volumes, variant: Contender) -> torch.nn.Module:
    """Return a network, trained now or before; both of a pair start from the same weights."""
    setting = volumes.setting

    def make() -> torch.nn.Module:
        network = make_network(variant.backbone)
        return with_attention(network) if variant.block else network

    def loss_of(network: torch.nn.Module, chance: np.random.Generator) -> torch.Tensor:
        images, classes = volumes.all(work)
        chosen = torch.from_numpy(chance.choice(len(images), setting.batch, replace=False))
        batch = images[chosen].float()
        if variant.augmented:
            batch = torch.stack([_turned(one, chance) for one in batch])
        answers = network(batch)[:, 0]
        return functional.binary_cross_entropy_with_logits(answers, classes[chosen])

    network = seeded(make, work.seed)
    train(
        work,
        variant.file,
        network,
        loss_of,
        steps=setting.steps,
        learning_rate=setting.learning_rate,
    )
    return network


def scores(network: torch.nn.Module, volumes: torch.Tensor) -> list[float]:
    """Logit of each volume (n, 1, I, J, K)."""
    with torch.no_grad():
        return list(network(volumes)[:, 0].tolist())


def branch_sizes(network: DualAttentionNetwork, volume: torch.Tensor) -> tuple[float, float]:
    """Size of what the block adds, against what it adds to: |E V| / |V| and |X G| / |X|.

    Parameters
    ----------
    network : DualAttentionNetwork
    volume : Tensor, shape (1, 1, I, J, K)
    """
    given: list[tuple[torch.Tensor, ...]] = []
    block = network.attention
    hook = block.register_forward_pre_hook(lambda _m, inputs: given.append(inputs))
    try:
        scores(network, volume)
    finally:
        hook.remove()
    query, key, value, deep = given[0]
    with torch.no_grad():
        attention = block.weights(query, key, deep.shape[2:])
        v, x = value.flatten(2).mT, deep.flatten(2).mT
        by_position = attention @ v
        by_channel = x @ (x.mT @ x)
    return float(by_position.norm() / v.norm()), float(by_channel.norm() / x.norm())


def _turned(volume: torch.Tensor, chance: np.random.Generator) -> torch.Tensor:
    """Turn and mirror a volume (1, I, J, K) at random: one of the 48 ways of a cube."""
    axes = (1 + chance.permutation(3)).tolist()
    flipped = [axis for axis in (1, 2, 3) if chance.random() < 0.5]
    return volume.permute(0, *axes).flip(flipped)
