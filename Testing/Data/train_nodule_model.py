"""Train the model whose evidence is known: nodules that have spicules, in made-up volumes.

The MONAI bundle ``SpiculatedNodules`` segments the bodies of nodules with spicules and leaves the
same bodies without spicules alone (:mod:`SaliencyExplainLib.studies.nodules`, after Mullan and
Sonka 2023, https://doi.org/10.1117/1.JMI.10.5.054001). Its ``configs/inference.json`` is written by
hand and is the only place where the network is described: this script reads it from there, trains,
measures the result, and writes ``models/model.pt``, ``configs/metadata.json`` and
``docs/README.md``.

The network must use the spicules, or the truth of the volumes would not be its truth. So what is
measured is not only Dice, but also what it makes of the plain nodules, of the same volumes with the
spicules erased, and of the plain nodules once spicules are painted on them.

Batch norm, not the instance norm of the original nnU-Net: with frozen statistics a voxel outside of
the receptive field has no influence at all, while an instance norm lets every voxel of the volume
matter for every other one.

Examples
--------
Train (some minutes on two cores), measure and write the bundle::

    python Testing/Data/train_nodule_model.py

Measure the model that is there::

    python Testing/Data/train_nodule_model.py --steps 0
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean

import monai
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss

from SaliencyExplainLib.studies import SpiculatedNodules, spiculated_nodules

_logger = logging.getLogger("train_nodule_model")

_BUNDLE = Path(__file__).parents[2] / "SaliencyExplain/Resources/Models/SpiculatedNodules"
_CLASSES = ("background", "spiculated nodule")
_SIZE = 64
#: Scenes with a smaller seed are never trained on.
_FIRST_TRAINING_SEED = 1_000_000
_HELD_OUT = 40


@dataclass(frozen=True)
class Training:
    """How the weights came about.

    Parameters
    ----------
    seed : int
        Of the weights' first values, of the scenes and of their order.
    scenes, steps : int
        Number of different volumes, and of optimisation steps of one volume each, turned and
        mirrored at random.
    cpu_minutes : float
        Processor time of all threads, without the making of scenes.
    """

    seed: int
    scenes: int
    steps: int
    cpu_minutes: float


@dataclass(frozen=True)
class Figures:
    """What the model does on one scene, or the means over all held-out ones; all 0 to 1.

    Parameters
    ----------
    dice : float
        Overlap of the prediction with the bodies of the spiculated nodules.
    plain_called : float
        Part of the voxels of plain nodules that is predicted (false positive rate).
    dice_erased : float
        Dice once the spicules are erased from the image.
    target_called_erased : float
        Part of the voxels of the formerly spiculated bodies that is then still predicted.
    plain_called_painted : float
        Part of the voxels of plain nodules that is predicted once they have spicules.
    """

    dice: float
    plain_called: float
    dice_erased: float
    target_called_erased: float
    plain_called_painted: float


def open_network(folder: Path) -> torch.nn.Module:
    """Build the network that ``configs/inference.json`` describes; the weights are random.

    Parameters
    ----------
    folder : Path
        The bundle.

    Returns
    -------
    torch.nn.Module
        In evaluation mode.
    """
    parser = ConfigParser()
    parser.read_config(folder / "configs/inference.json")
    return parser.get_parsed_content("network_def").eval()


def make_scenes(first_seed: int, count: int) -> Iterator[SpiculatedNodules]:
    """Make scenes on a second core, the next one while one is in use.

    Parameters
    ----------
    first_seed : int
        Of the first scene; the next has the next seed.
    count : int
        Number of scenes.

    Yields
    ------
    SpiculatedNodules
        In the order of their seeds.
    """
    with ThreadPoolExecutor(max_workers=1) as executor:
        coming = [executor.submit(spiculated_nodules, _SIZE, first_seed)]
        for number in range(1, count + 1):
            if number < count:
                coming.append(executor.submit(spiculated_nodules, _SIZE, first_seed + number))
            yield coming.pop(0).result()


class Volumes:
    """Draw training volumes: scenes as they become ready, again and again, each time turned.

    Parameters
    ----------
    seed : int
        Of scenes, order and orientation.
    scenes : int
        Number of different scenes.
    steps : int
        Number of volumes that will be drawn.
    """

    def __init__(self, *, seed: int, scenes: int, steps: int) -> None:
        self._chance = np.random.default_rng(seed)
        self._scenes = scenes
        self._steps = steps
        self._first_seed = _FIRST_TRAINING_SEED * (seed + 1)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield image and target mask, (1, 1, size, size, size) each."""
        ready: list[tuple[np.ndarray, np.ndarray]] = []
        coming = make_scenes(self._first_seed, self._scenes)
        # A new scene every so many steps, so that all have been seen after three quarters.
        pace = max(1, int(0.75 * self._steps / self._scenes))
        for step in range(self._steps):
            if step % pace == 0 and len(ready) < self._scenes:
                scene = next(coming)
                mask = scene.labels.numpy()[0] == scene.TARGET
                ready.append((scene.image.numpy()[0].astype(np.float16), mask))
                chosen = len(ready) - 1
            else:
                chosen = int(self._chance.integers(len(ready)))
            yield self._turned(*ready[chosen])

    def _turned(self, image: np.ndarray, mask: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        axes = self._chance.permutation(3)
        flips = tuple(int(axis) for axis in np.flatnonzero(self._chance.random(3) < 0.5))
        turned = [np.flip(volume.transpose(axes), flips).copy() for volume in (image, mask)]
        first, second = (torch.from_numpy(volume)[None, None] for volume in turned)
        return first.float(), second.long()


def train(network: torch.nn.Module, volumes: Volumes, *, steps: int, rate: float) -> None:
    """Train a network in place, one volume a step.

    Parameters
    ----------
    network : torch.nn.Module
        Gives 2 channels for 1.
    volumes : Volumes
        Yields as many as there are steps.
    steps : int
        Length of the one-cycle schedule.
    rate : float
        Highest learning rate of the schedule.
    """
    loss_function = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    network.train()
    started, recent = time.perf_counter(), []
    for step, (image, mask) in enumerate(volumes, start=1):
        optimizer.zero_grad()
        image = image.contiguous(memory_format=torch.channels_last_3d)
        loss = loss_function(network(image), mask)
        loss.backward()
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if step % 50 == 0 or step == steps:
            seconds = time.perf_counter() - started
            _logger.info("step %d/%d  loss %.3f  %.0f s", step, steps, fmean(recent), seconds)
            recent.clear()
    network.eval()


def predicted(network: torch.nn.Module, image: torch.Tensor) -> np.ndarray:
    """Mask of what the network calls a spiculated nodule, (I, J, K).

    Parameters
    ----------
    network : torch.nn.Module
        In evaluation mode.
    image : MetaTensor, shape (1, I, J, K)
        Of a scene.
    """
    with torch.no_grad():
        logits = network(image.as_tensor()[None])[0]
    return (logits[1] > logits[0]).numpy()


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    """Overlap of two masks, 0 to 1.

    Parameters
    ----------
    found, truth : numpy.ndarray of bool
        Not both empty.
    """
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def measure(network: torch.nn.Module, seeds: Sequence[int], size: int = _SIZE) -> Figures:
    """Measure on scenes that training has not seen.

    Parameters
    ----------
    network : torch.nn.Module
        In evaluation mode.
    seeds : sequence of int
        Of the scenes.
    size : int
        Voxels along each axis.

    Returns
    -------
    Figures
        Means over the scenes; plain nodules only over scenes that have some.
    """
    rows = []
    for seed in seeds:
        scene = spiculated_nodules(size, seed)
        painted = spiculated_nodules(size, seed, share=1.0)
        labels = scene.labels.numpy()[0]
        target, plain = labels == scene.TARGET, labels == scene.PLAIN
        found, found_erased, found_painted = (
            predicted(network, image) for image in (scene.image, scene.erased, painted.image)
        )
        rows.append(
            Figures(
                dice=dice(found, target),
                plain_called=found[plain].mean() if plain.any() else np.nan,
                dice_erased=dice(found_erased, target),
                target_called_erased=found_erased[target].mean(),
                plain_called_painted=found_painted[plain].mean() if plain.any() else np.nan,
            )
        )
    return Figures(
        **{
            one.name: round(float(np.nanmean([getattr(row, one.name) for row in rows])), 4)
            for one in fields(Figures)
        }
    )


def halved(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """State dictionary with weights of half precision, which is half as large a file.

    Parameters
    ----------
    network : torch.nn.Module
        Gets the rounded weights as well, so that what is measured is what is written.
    """
    state = {
        name: value.detach().contiguous().to(torch.float16 if value.is_floating_point() else None)
        for name, value in network.state_dict().items()
    }
    network.load_state_dict(state)
    return state


def train_network(
    network: torch.nn.Module, *, seed: int, scenes: int, steps: int, rate: float
) -> Training:
    """Train in place, the same way on every machine with the same packages.

    Parameters
    ----------
    network : torch.nn.Module
        With its first weights.
    seed, scenes, steps : int
        See :class:`Training`.
    rate : float
        Highest learning rate.

    Returns
    -------
    Training
        What was done.
    """
    # One thread here and one that makes scenes: two cores, and the result does not depend on how
    # sums are split between threads.
    torch.set_num_threads(1)
    started = time.thread_time()
    network.to(memory_format=torch.channels_last_3d)
    train(network, Volumes(seed=seed, scenes=scenes, steps=steps), steps=steps, rate=rate)
    network.to(memory_format=torch.contiguous_format)
    minutes = (time.thread_time() - started) / 60
    return Training(seed=seed, scenes=scenes, steps=steps, cpu_minutes=round(minutes, 1))


def write_metadata(folder: Path, training: Training, full: Figures, half: Figures) -> None:
    """Write ``configs/metadata.json``.

    Parameters
    ----------
    folder : Path
        The bundle.
    training : Training
        How the weights came about.
    full, half : Figures
        Measured with the weights as trained, and as written.
    """
    common = {
        "spatial_shape": ["8*n", "8*n", "8*n"],
        "dtype": "float32",
        "is_patch_data": False,
    }
    metadata = {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
        "meta_schema_20240725.json",
        "version": "1.0.0",
        "changelog": {"1.0.0": "first version"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {},
        "name": "Spiculated nodules (known evidence)",
        "task": "Segmentation of nodules that have spicules, in made-up volumes",
        "description": "A small U-Net (ReLU, BatchNorm) whose evidence is known, to measure "
        "explanations with.",
        "intended_use": "Evaluation of attribution methods only: it knows nothing of patients.",
        "authors": "SaliencyExplain contributors",
        "copyright": "SaliencyExplain contributors; MIT",
        "license": "MIT",
        "data_source": "SaliencyExplainLib.studies.spiculated_nodules",
        "data_type": "made up",
        "image_classes": "1 channel, intensity in [-1, 1]",
        "label_classes": "argmax of the 2 channels",
        "pred_classes": "2 channels of logits (softmax): " + ", ".join(_CLASSES),
        "references": ["Mullan and Sonka 2023, https://doi.org/10.1117/1.JMI.10.5.054001"],
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "n/a",
                    "num_channels": 1,
                    **common,
                    "value_range": [-1, 1],
                    "channel_def": {"0": "intensity"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": len(_CLASSES),
                    **common,
                    "value_range": [],
                    "channel_def": {str(index): name for index, name in enumerate(_CLASSES)},
                }
            },
        },
        "training": asdict(training),
        "eval_metrics": {
            f"{_HELD_OUT}_held_out_scenes": asdict(half),
            f"{_HELD_OUT}_held_out_scenes_before_rounding": asdict(full),
        },
    }
    text = json.dumps(metadata, indent=4) + "\n"
    (folder / "configs/metadata.json").write_text(text, "utf-8")


_README = """# Spiculated nodules (known evidence)

A U-Net of {thousands} thousand weights (ReLU, BatchNorm) that segments the bodies of nodules that
have spicules, and leaves the same bodies without spicules alone. Its volumes are made up by
`SaliencyExplainLib.studies.spiculated_nodules`, after Mullan and Sonka 2023
(https://doi.org/10.1117/1.JMI.10.5.054001). The spicules are not part of the label, but the only
evidence for it: so it is known where a map of this model has to be high. **For the evaluation of
attribution methods only**: it knows nothing of patients.

## Figures

Means over {held_out} scenes of {size}^3 voxels that training has not seen (seeds 0 to {last}),
written by `Testing/Data/train_nodule_model.py`.

| | |
| --- | --- |
| Dice with the bodies of spiculated nodules | {half.dice:.4f} |
| Part of the plain nodules' voxels that is predicted (wrongly) | {half.plain_called:.4f} |
| Dice once the spicules are erased from the image | {half.dice_erased:.4f} |
| Part of the same bodies' voxels that is then predicted | {half.target_called_erased:.4f} |
| Part of the plain nodules' voxels that is predicted once spicules are painted on them | \
{half.plain_called_painted:.4f} |

The last three rows say that the spicules are the evidence: bodies, noise and all else are the same.
All figures are of the weights in the file, which are rounded to half precision; Dice before that:
{full.dice:.4f}.

## Training

{training.steps} steps of one volume, from {training.scenes} scenes turned and mirrored at random.
Loss: Dice and cross-entropy; Adam, one cycle; {training.cpu_minutes:.0f} minutes of processor time
and the making of the scenes; seed {training.seed}. On one machine two trainings give the same
weights: two short trainings were bit for bit the same; the whole one was not repeated to its end.

## Known limits

- For scenes of {size}^3 voxels of 2 mm only: at other sizes the same scene looks different to it
  (Dice 0.60 on 4 scenes of 48^3, 0.36 on 2 of 128^3).
- Voxels that a spicule fills by less than half have no label, but their brightness.

## Licence

MIT for configuration and weights.
"""


def write_readme(
    network: torch.nn.Module, folder: Path, training: Training, full: Figures, half: Figures
) -> None:
    """Write ``docs/README.md``.

    Parameters
    ----------
    network : torch.nn.Module
        Its weights are counted.
    folder : Path
        The bundle.
    training : Training
        How the weights came about.
    full, half : Figures
        Measured with the weights as trained, and as written.
    """
    text = _README.format(
        thousands=round(sum(value.numel() for value in network.parameters()) / 1000),
        held_out=_HELD_OUT,
        last=_HELD_OUT - 1,
        size=_SIZE,
        half=half,
        full=full,
        training=training,
    )
    (folder / "docs").mkdir(exist_ok=True)
    (folder / "docs/README.md").write_text(text, "utf-8")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--bundle", type=Path, default=_BUNDLE, help="folder of the bundle")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps",
        type=int,
        default=1200,
        help="volumes; 0 measures the weights that are there (default: %(default)s)",
    )
    parser.add_argument("--scenes", type=int, default=240, help="different scenes")
    parser.add_argument("--rate", type=float, default=1e-2, help="highest learning rate")
    return parser.parse_args()


def main() -> None:
    """Train, measure and write."""
    arguments = _parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(arguments.seed)
    torch.use_deterministic_algorithms(True)
    network = open_network(arguments.bundle)
    file = arguments.bundle / "models/model.pt"
    if not arguments.steps:
        network.load_state_dict(torch.load(file, weights_only=True))
        _logger.info("%s", measure(network, range(_HELD_OUT)))
        return
    training = train_network(
        network,
        seed=arguments.seed,
        scenes=arguments.scenes,
        steps=arguments.steps,
        rate=arguments.rate,
    )
    full = measure(network, range(_HELD_OUT))
    file.parent.mkdir(exist_ok=True)
    torch.save(halved(network), file)
    half = measure(network, range(_HELD_OUT))
    write_metadata(arguments.bundle, training, full, half)
    write_readme(network, arguments.bundle, training, full, half)
    _logger.info("%s\nas trained: %s\nas written: %s", training, full, half)


if __name__ == "__main__":
    main()
