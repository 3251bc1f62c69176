"""Small networks, maps and trials that the tests of the quality metrics share."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from references import as_model
from scipy.ndimage import gaussian_filter
from torch import nn

import SaliencyExplainLib as sx
from SaliencyExplainLib.engine import Engine
from SaliencyExplainLib.quality.base import make_metric
from SaliencyExplainLib.quality.shares import Shares
from SaliencyExplainLib.quality.trial import Trial

SIZE = 8
EVERYWHERE = sx.Target(output=1, region="everywhere", reduce="sum")


class Weighted(nn.Module):
    """Output 1 is w(v) x(v): with the sum everywhere, w x are the true parts of the score."""

    def __init__(self, weights: np.ndarray) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.from_numpy(weights).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = (x * self.weights).sum(1)
        return torch.stack([torch.zeros_like(seen), seen], 1)


def random_volume(seed: int = 0, size: int = SIZE, affine: Any = None) -> MetaTensor:
    voxels = np.random.default_rng(seed).normal(size=(size, size, size))
    return sx.make_image(voxels, np.eye(4) if affine is None else affine)


def weighted_model(seed: int = 1, size: int = SIZE) -> sx.Model:
    """Weights that agree with :func:`random_volume` more often than not: its score is positive."""
    weights = np.random.default_rng(seed).normal(size=(size, size, size))
    return as_model(Weighted(weights + 0.4 * random_volume(size=size).as_tensor().numpy()[0]))


def an_explanation(
    voxels: np.ndarray, *, unit: str = "score", value: float = 0.0, affine: Any = None, **facts: Any
) -> sx.Explanation:
    """An explanation of made-up maps, (I, J, K) or (C, I, J, K)."""
    maps = sx.make_image(
        np.asarray(voxels, dtype=np.float32), np.eye(4) if affine is None else affine
    )
    told = {
        "value": value,
        "target": {
            "output": 1,
            "output_name": "output 1",
            "region": "everywhere",
            "score": "logit",
            "reduce": "sum",
            "contrast": None,
        },
        "method": "input_x_gradient",
        "title": "Made up",
        "parameters": {"baseline": "zero", "blur_mm": 12.0},
        "signed": True,
    }
    return sx.Explanation(maps=maps, network_maps=maps, unit=unit, **{**told, **facts})


def of_weighted(
    model: sx.Model, image: MetaTensor, voxels: np.ndarray, **facts: Any
) -> sx.Explanation:
    """An explanation whose score is that of the model, with made-up maps."""
    weights = model.network.weights.detach().numpy()
    value = float((weights * image.as_tensor().numpy()).sum())
    return an_explanation(voxels, value=value, affine=image.affine, **facts)


def true_parts(model: sx.Model, image: MetaTensor) -> np.ndarray:
    """What each voxel adds to the score of a Weighted network."""
    return model.network.weights.detach().numpy() * image.as_tensor().numpy()[0]


@contextmanager
def a_trial(
    explanation: sx.Explanation, model: sx.Model, image: MetaTensor, target: sx.Target = EVERYWHERE
):
    """A trial on a running engine."""
    engine = Engine(model, image, target)
    with engine.running():
        trial = Trial(explanation, engine, shares=Shares())
        trial.begin(0.0, 1.0, "a test")
        yield trial


def measured(name: str, explanation: sx.Explanation, *what: Any, **options: Any) -> float:
    """Value of one metric; `options` of evaluate are told from the metric's by name."""
    of_evaluate = {"truth", "labelmap", "names", "target", "method"}
    given = {key: one for key, one in options.items() if key in of_evaluate}
    parameters = {key: one for key, one in options.items() if key not in of_evaluate}
    chosen = make_metric(name, parameters)
    found = sx.quality.evaluate(explanation, *what, metrics=[chosen], **given).rows[0]
    assert found.value is not None, found.reading
    return found.value


class Balls(nn.Module):
    """Five convolutions with batch norm and ReLU: balls are 1, cubes are 2."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for after in (width, width, 2 * width, 2 * width, width):
            layers += [nn.Conv3d(before, after, 3, padding=1), nn.BatchNorm3d(after), nn.ReLU()]
            before = after
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv3d(width, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def ball_and_cube(generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy volume with a bright ball and a dark cube, and its labels."""
    voxels = 3 * gaussian_filter(generator.normal(size=(size, size, size)), 1.0)
    labels = np.zeros(voxels.shape, dtype=np.int64)
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), -1)
    for label in (1, 2):
        radius = generator.uniform(3.5, 5.0)
        apart = np.abs(grid - generator.uniform(5, size - 5, 3))
        inside = (
            np.linalg.norm(apart, axis=-1) < radius if label == 1 else apart.max(-1) < 0.8 * radius
        )
        voxels[inside] += 1.5 if label == 1 else -1.5
        labels[inside] = label
    return voxels.astype(np.float32), labels


def train_balls(steps: int = 100, size: int = 18) -> Balls:
    """The network, trained for about 6 seconds."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    network = Balls()
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(steps):
        batch = [ball_and_cube(generator, size) for _ in range(4)]
        x = torch.from_numpy(np.stack([one[0] for one in batch]))[:, None]
        y = torch.from_numpy(np.stack([one[1] for one in batch]))
        loss = nn.functional.cross_entropy(network(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for one in network.parameters():
        one.grad = None
    return network.eval()
