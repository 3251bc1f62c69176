"""The classifiers, patient against healthy: what each is fed with, the network, its training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ...model import Model
from ..training import seeded, train
from .scans import Person, channels_of, person

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..work import Work

__all__ = ["KINDS", "Classifier", "Group", "Kind", "trained"]

_BATCH, _LEARNING_RATE = 12, 3e-3


@dataclass(frozen=True)
class Kind:
    """A classifier: what it is fed with, and which scanner the persons of its training were on.

    Attributes
    ----------
    key, title : str
    what : {"image", "brain", "maps"}
        The scan, the scan without what is outside of the brain, or tissue probability maps.
    design : {"mixed", "follows"}
        Scanner by chance, or one for the patients and one for the healthy.
    """

    key: str
    title: str
    what: str
    design: str

    @property
    def biased(self) -> bool:
        """Whether the scanner told the group in its training."""
        return self.design == "follows"


KINDS = (
    Kind("image_mixed", "image, scanners mixed", "image", "mixed"),
    Kind("image_biased", "image, scanner follows group", "image", "follows"),
    Kind("brain_biased", "brain only, scanner follows group", "brain", "follows"),
    Kind("maps_biased", "probability maps, scanner follows group", "maps", "follows"),
)


class Classifier(nn.Module):
    """Three convolutions, each with batch norm, ReLU and max pooling; the mean; a linear layer.

    Parameters
    ----------
    channels : int
        Of the input.
    width : int
        Features of the first convolution; the others have two and three times as many.

    Notes
    -----
    Input (B, C, I, J, K), output (B, 1), the logit of "patient". Max pooling, since a lesion is as
    large as a voxel and a mean over all voxels hides it. Batch norm, not instance norm: there the
    path of integrated gradients from a constant image would be flat but for its start.
    """

    def __init__(self, channels: int, width: int = 8) -> None:
        super().__init__()
        sizes = (channels, width, 2 * width, 3 * width)
        layers: list[nn.Module] = []
        for into, out in pairwise(sizes):
            layers += [
                nn.Conv3d(into, out, 3, padding=1, bias=False),
                nn.BatchNorm3d(out),
                nn.ReLU(),
                nn.MaxPool3d(2),
            ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(sizes[-1], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of "patient", shape (B, 1)."""
        logits: torch.Tensor = self.head(self.features(x).mean(dim=(2, 3, 4)))
        return logits


class Group:
    """The persons of the training; made when they are first asked for.

    Parameters
    ----------
    size : int
        Voxels a side.
    seeds : sequence of int
        One a person; odd ones are patients.
    lesions : tuple of int
        Smallest and largest number of a patient.
    tell : callable
        Told how far the making of the persons is.
    """

    def __init__(
        self,
        size: int,
        seeds: Sequence[int],
        lesions: tuple[int, int],
        tell: Callable[[float, str], None],
    ) -> None:
        self.size, self.seeds, self.lesions, self.tell = size, seeds, lesions, tell

    @cached_property
    def persons(self) -> list[Person]:
        """All persons, patients and healthy."""
        made = []
        for number, seed in enumerate(self.seeds):
            self.tell(number / len(self.seeds), f"making person {number + 1} of {len(self.seeds)}")
            made.append(person(self.size, seed, patient=seed % 2 == 1, lesions=self.lesions))
        return made

    def inputs(self, kind: Kind) -> NDArray[np.float32]:
        """What a classifier is trained with, shape (n, C, size, size, size)."""
        return np.stack([one.given(kind.what, one.scanner(kind.design)) for one in self.persons])

    def healthy_mean(self, kind: Kind) -> NDArray[np.float32]:
        """Mean input of the healthy, shape (C, size, size, size)."""
        healthy = [one for one in self.persons if not one.patient]
        total = sum(one.given(kind.what, one.scanner(kind.design)) for one in healthy)
        return np.asarray(total / len(healthy), dtype=np.float32)


def trained(work: Work, kind: Kind, group: Group, steps: int) -> Model:
    """Train a classifier on a group, or read it if it was trained before.

    Each batch is mirrored left to right in half of the steps.
    """
    channels = channels_of(kind.what)
    network = seeded(lambda: Classifier(len(channels)), work.seed)
    found: list[torch.Tensor] = []

    def loss_of(network: nn.Module, chance: np.random.Generator) -> torch.Tensor:
        if not found:
            found.append(torch.from_numpy(group.inputs(kind)))
            found.append(torch.tensor([float(one.patient) for one in group.persons]))
        inputs, truth = found
        drawn = chance.choice(len(truth), min(_BATCH, len(truth)), replace=False)
        batch = inputs[drawn]
        if chance.random() < 0.5:
            batch = batch.flip(2)
        logits = network(batch)[:, 0]
        return functional.binary_cross_entropy_with_logits(logits, truth[drawn])

    train(
        work,
        kind.key,
        network,
        loss_of,
        steps=steps,
        learning_rate=_LEARNING_RATE,
        weight_decay=1e-2,
    )
    return Model(
        network=network,
        task="classification",
        labels=("patient",),
        channels=channels,
        activation="sigmoid",
        provenance={"name": f"classifier of {kind.title}"},
    )
