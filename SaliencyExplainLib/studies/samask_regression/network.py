"""A network that predicts volumes of structures in ml from a whole head, and its training.

A small residual network for 3D scans with ReLU and batch normalisation, in the manner of HerstonNet
(arXiv:2009.03303), which is the volumetry of the authors of SAMASK. All that it sees passes through
each of its stages, so that a mask on one of them covers everything::

    stem      1 -> c channels, one voxel
    stage2    2c channels, two voxels, one residual block
    wide      2c channels, two voxels, one residual block: each feature sees 17 voxels
    kinds     4 maps, two voxels: hippocampus, ventricle, grey and white matter, of either side
    head      a linear layer on sums of the maps over 4 x 4 x 4, then z -> mean + deviation z in ml

The head begins as a count: the sum over the map of the output's kind, on its side or on both. First
the maps alone are trained to tell how much of each kind a voxel holds (in deviations of the
volume), then everything, by volumes and maps. From volumes alone, 240 heads do not teach such a
network to see a structure of 4 ml: tried with 136 updates of 8 heads, what it said of the
hippocampi correlated with the truth by 0.06.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from ...image import voxel_volume_ml
from ...model import Model
from ..heads import SyntheticHead, synthetic_head
from ..training import seeded, train
from ..work import Work

__all__ = ["OUTPUTS", "Heads", "VolumeNetwork", "trained_model", "usual_scale"]

#: What is predicted, by the names of the structures in the head.
OUTPUTS = (
    "left hippocampus",
    "right hippocampus",
    "left ventricle",
    "right ventricle",
    "grey matter",
    "white matter",
)
_LABELS = {name: label for label, name in SyntheticHead.NAMES.items()}
#: Labels of the kinds of the maps, and an output of each.
_KINDS = (((4, 5), 0), ((6, 7), 2), ((2,), 4), ((3,), 5))
_BATCH = 8
_LEARNING_RATE = 1e-2
#: Part of the updates that train the maps alone.
_MAPS_FIRST = 0.7
#: Voxels of the scan in one of the maps, and of the maps in one sum, along each axis.
_COARSE, _SUMMED = 2, 4
#: Factor of both hippocampi of a head, and of each side: sizes differ much, sides little.
_COMMON, _SIDE = (0.35, 1.65), (0.85, 1.15)


class _Block(nn.Module):
    """Two convolutions beside a shortcut, which is a convolution of its own where sizes change."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv3d(before, after, 3, stride, 1, bias=False)
        self.norm_one = nn.BatchNorm3d(after)
        self.relu_one = nn.ReLU()
        self.two = nn.Conv3d(after, after, 3, 1, 1, bias=False)
        self.norm_two = nn.BatchNorm3d(after)
        self.past = nn.Conv3d(before, after, stride, stride, bias=False)
        self.relu_two = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.relu_one(self.norm_one(self.one(x)))
        outer: torch.Tensor = self.relu_two(self.norm_two(self.two(inner)) + self.past(x))
        return outer


class VolumeNetwork(nn.Module):
    """Volumes in ml of :data:`OUTPUTS` from one scan, (B, 1, n, n, n) -> (B, 6).

    Parameters
    ----------
    size : int
        Voxels a side, a multiple of 16.
    mean_ml, deviation_ml : sequence of float
        Of the outputs over the training heads.
    spread : sequence of float
        Of each map over the voxels of the training heads, in deviations of the volume.
    channels : int
        Channels of the first stage.
    """

    mean_ml: torch.Tensor
    deviation_ml: torch.Tensor
    spread: torch.Tensor

    def __init__(
        self,
        size: int,
        mean_ml: Sequence[float],
        deviation_ml: Sequence[float],
        spread: Sequence[float],
        channels: int = 6,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(1, channels, 3, 1, 1, bias=False), nn.BatchNorm3d(channels), nn.ReLU()
        )
        self.stage2 = _Block(channels, 2 * channels, 2)
        self.wide = _Block(2 * channels, 2 * channels, 1)
        self.kinds = nn.Conv3d(2 * channels, len(_KINDS), 1)
        sums = size // (_COARSE * _SUMMED)
        self.head = nn.Linear(len(_KINDS) * sums**3, len(OUTPUTS))
        self._count(torch.tensor(mean_ml), torch.tensor(deviation_ml), sums)
        self.register_buffer("mean_ml", torch.tensor(mean_ml, dtype=torch.float32))
        self.register_buffer("deviation_ml", torch.tensor(deviation_ml, dtype=torch.float32))
        # The convolution before answers with numbers near 1.
        self.register_buffer(
            "spread", torch.tensor(spread, dtype=torch.float32).reshape(4, 1, 1, 1)
        )

    def _count(self, mean: torch.Tensor, deviation: torch.Tensor, size: int) -> None:
        """Let the head begin with the sum over the map of the output's kind on its side."""
        weights = torch.zeros((len(OUTPUTS), len(_KINDS), size, size, size))
        for number, name in enumerate(OUTPUTS):
            kind = next(k for k, (labels, _) in enumerate(_KINDS) if _LABELS[name] in labels)
            side = {"left": slice(None, size // 2), "right": slice(size // 2, None)}
            where = side.get(name.split()[0], slice(None))
            weights[number, kind, where] = deviation[_KINDS[kind][1]] / deviation[number]
        with torch.no_grad():
            self.head.weight.copy_(weights.flatten(1))
            self.head.bias.copy_(-mean / deviation)

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        """How much of each kind a voxel holds, in deviations, shape (B, 4, n/2, n/2, n/2)."""
        found: torch.Tensor = self.spread * self.kinds(self.wide(self.stage2(self.stem(x))))
        return found

    def volumes(self, maps: torch.Tensor) -> torch.Tensor:
        """Volumes in ml from the maps, shape (B, outputs)."""
        sums = _SUMMED**3 * nn.functional.avg_pool3d(maps, _SUMMED)
        standard = self.head(sums.flatten(1))
        millilitres: torch.Tensor = self.mean_ml + self.deviation_ml * standard
        return millilitres

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Predict volumes in ml."""
        return self.volumes(self.maps(x))


def usual_scale(seed: int) -> tuple[float, float]:
    """Factors of the left and right hippocampus of a usual head: both much alike."""
    chance = np.random.default_rng((23, seed))
    common, sides = chance.uniform(*_COMMON), chance.uniform(*_SIDE, 2)
    return float(common * sides[0]), float(common * sides[1])


class Heads:
    """The heads that a network is trained on; made when they are first needed.

    Parameters
    ----------
    work : Work
        Told about the progress.
    size, count : int
        Voxels a side; number of heads.
    first : int
        Seed of the first head; the others follow.
    """

    def __init__(self, work: Work, size: int, count: int, first: int = 0) -> None:
        self._work, self._size, self._count, self._first = work, size, count, first

    def head(self, number: int) -> SyntheticHead:
        """One of them."""
        seed = self._first + number
        return synthetic_head(self._size, seed, hippocampus_scale=usual_scale(seed))

    @cached_property
    def _made(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scans, volumes, kinds = [], [], []
        for number in range(self._count):
            self._work.tell(0.0, f"making head {number + 1} of {self._count}")
            one = self.head(number)
            scans.append(one.image.as_tensor().half())
            volumes.append([one.volumes_ml[name] for name in OUTPUTS])
            kinds.append(_kinds(one).half())
        return torch.stack(scans), torch.tensor(volumes), torch.stack(kinds)

    @property
    def scans(self) -> torch.Tensor:
        """Half precision, shape (count, 1, size, size, size)."""
        return self._made[0]

    @property
    def volumes_ml(self) -> torch.Tensor:
        """Shape (count, outputs)."""
        return self._made[1]

    @property
    def kinds_ml(self) -> torch.Tensor:
        """What voxels of the maps hold, half precision, shape (count, 4, size/2, ...)."""
        return self._made[2]


def _kinds(head: SyntheticHead) -> torch.Tensor:
    labels = head.labels.as_tensor()[0]
    inside = torch.stack([torch.isin(labels, torch.tensor(one)).float() for one, _ in _KINDS])
    voxel_ml = voxel_volume_ml(head.labels.affine) * _COARSE**3
    return nn.functional.avg_pool3d(inside, _COARSE) * voxel_ml


def trained_model(
    work: Work, heads: Heads, size: int, *, steps: int, channels: int = 6
) -> tuple[Model, list[float]]:
    """Train the network on heads, half of them mirrored at random with their sides exchanged.

    Parameters
    ----------
    work : Work
        Where the weights are kept.
    heads : Heads
        To train on.
    size : int
        Voxels a side.
    steps : int
        Updates with 4 heads each.
    channels : int
        Channels of the first stage.

    Returns
    -------
    model : Model
        Regression, its labels are :data:`OUTPUTS`.
    losses : list of float
        Of each step.
    """
    scale = work.remembered("scale", lambda: _scale(heads))
    deviation = torch.tensor(scale["deviation_ml"])
    unit = torch.stack([deviation[output] for _, output in _KINDS])[:, None, None, None]
    spread = torch.tensor(scale["kinds_ml"])[:, None, None, None] / unit
    network = seeded(
        lambda: VolumeNetwork(
            size, scale["mean_ml"], scale["deviation_ml"], spread.flatten().tolist(), channels
        ),
        work.seed,
    )
    mirrored = [OUTPUTS.index(_other_side(name)) for name in OUTPUTS]

    def batch(chance: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        chosen = chance.choice(len(heads.scans), _BATCH, replace=False)
        scans, volumes = heads.scans[chosen].float(), heads.volumes_ml[chosen]
        kinds = heads.kinds_ml[chosen].float() / unit
        for number in np.flatnonzero(chance.random(_BATCH) < 0.5):
            scans[number], kinds[number] = scans[number].flip(1), kinds[number].flip(1)
            volumes[number] = volumes[number][mirrored]
        return scans, volumes, kinds

    def by_maps(network: Any, chance: np.random.Generator) -> torch.Tensor:
        scans, _, kinds = batch(chance)
        return nn.functional.mse_loss(network.maps(scans) / spread, kinds / spread)

    def by_both(network: Any, chance: np.random.Generator) -> torch.Tensor:
        scans, volumes, kinds = batch(chance)
        maps = network.maps(scans)
        wrong = (network.volumes(maps) - volumes) / deviation
        by_volume = nn.functional.smooth_l1_loss(wrong, torch.zeros_like(wrong), beta=0.5)
        return by_volume + nn.functional.mse_loss(maps / spread, kinds / spread)

    first = round(_MAPS_FIRST * steps)
    with work.part(0.0, _MAPS_FIRST):
        losses = train(work, "maps", network, by_maps, steps=first, learning_rate=_LEARNING_RATE)
    with work.part(_MAPS_FIRST, 1.0):
        losses += train(
            work, "network", network, by_both, steps=steps - first, learning_rate=_LEARNING_RATE / 8
        )
    model = Model(
        network=network,
        task="regression",
        labels=OUTPUTS,
        channels=("T1",),
        activation="none",
        provenance={"format": "trained by the study samask_regression", "seed": work.seed},
    )
    return model, losses


def _scale(heads: Heads) -> dict[str, list[float]]:
    volumes = heads.volumes_ml
    return {
        "mean_ml": volumes.mean(0).tolist(),
        "deviation_ml": volumes.std(0).tolist(),
        "kinds_ml": heads.kinds_ml.float().std((0, 2, 3, 4)).tolist(),
    }


def _other_side(name: str) -> str:
    side, _, rest = name.partition(" ")
    return {"left": f"right {rest}", "right": f"left {rest}"}.get(side, name)
