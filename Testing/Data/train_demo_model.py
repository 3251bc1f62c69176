"""Train the demo model: brain tissues of a T1-weighted head, from one template and no other data.

The MONAI bundle ``BrainTissue`` segments background, cerebrospinal fluid (CSF), grey matter and
white matter, the classes of Matos et al., AIAI 2019. Its ``configs/inference.json`` is written by
hand and is the only place where the network, the preprocessing and the inferer are described: this
script reads them from there, trains, measures the result exactly as the bundle runs it, and writes
``models/model.pt``, ``configs/metadata.json`` and ``docs/README.md``.

The only data is the MNI ICBM152 2009a template that the package nilearn carries: a T1-weighted
average of 152 brains, skull stripped, with maps of the probability of grey and white matter. A
network that only saw this would know one blurred brain without a head around it. So every training
step makes up a new head, in the spirit of SynthSeg (Billot et al. 2023,
https://doi.org/10.1016/j.media.2023.102789): the template is turned, scaled and warped, the tissue
borders are moved, the tissues get new intensities, and fluid, skull, fat, muscle, face and neck are
painted around it. Unlike SynthSeg the order of the intensities stays that of T1 (CSF < grey <
white) and part of the template's own texture is kept.

Examples
--------
Train (about ten minutes on two cores), measure and write the bundle::

    python Testing/Data/train_demo_model.py

Measure the model that is there, on one more head, and keep its label map::

    python Testing/Data/train_demo_model.py --steps 0 --evaluate head.nii.gz --labels labels.nii.gz
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import monai
import nibabel
import nilearn
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.metrics import compute_dice
from monai.transforms import (
    Compose,
    RandAdjustContrast,
    RandBiasField,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandHistogramShift,
    ScaleIntensityRangePercentilesd,
)
from nilearn.datasets import (
    load_mni152_brain_mask,
    load_mni152_gm_template,
    load_mni152_template,
    load_mni152_wm_template,
)
from scipy.ndimage import distance_transform_edt

_logger = logging.getLogger("train_demo_model")

_BUNDLE = Path(__file__).parents[2] / "SaliencyExplain/Resources/Models/BrainTissue"
_CLASSES = ("background", "CSF", "grey matter", "white matter")
_SPACING_MM = 2.0
# More than one window of the inferer, as whole heads are; training makes heads of one window.
_HELD_OUT_SHAPE = (112, 128, 104)
# Air around the template, so that the distance to the brain is known where a scalp can be.
_MARGIN_MM = 45
_HELD_OUT_HEADS = 8
# Added to the seed for heads that training has not seen.
_HELD_OUT_SEED = 1000
# Heads of 144 mm cost a third of those of the inferer's window. 64 voxels would be slower than 72:
# powers of two make the rows of a volume share cache lines.
_SMALL_SHAPE = (72, 72, 72)


@dataclass(frozen=True)
class Template:
    """The MNI template on its 1 mm grid, RAS.

    Parameters
    ----------
    maps : torch.Tensor, shape (1, 5, I, J, K)
        T1 intensity (0 to 1), probability of CSF, of grey and of white matter, and distance from
        the brain in mm (0 inside).
    origin_ras_mm : torch.Tensor, shape (3,)
        Position of the first voxel.
    tissue_means : torch.Tensor, shape (3,)
        Mean T1 intensity of CSF, grey and white matter.
    """

    maps: torch.Tensor
    origin_ras_mm: torch.Tensor
    tissue_means: torch.Tensor


@dataclass(frozen=True)
class Head:
    """A made-up head on the network's grid.

    Parameters
    ----------
    image : torch.Tensor, shape (1, I, J, K)
        Intensity as after the bundle's preprocessing, 0 to 1.
    labels : torch.Tensor, shape (1, I, J, K)
        Class index, int64.
    """

    image: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Training:
    """How the weights came about.

    Parameters
    ----------
    seed : int
        Of the weights' first values and of the heads.
    small_heads, large_heads : int
        Number of heads of 72 x 72 x 72 voxels, and then of the inferer's window.
    cpu_minutes : float
        Processor time on all cores together.
    """

    seed: int
    small_heads: int
    large_heads: int
    cpu_minutes: float


@dataclass(frozen=True)
class Report:
    """What was measured. Tuples hold CSF, grey and white matter.

    Parameters
    ----------
    training : Training
        How the weights came about.
    template_dice, held_out_dice : tuple of float
        Dice, 0 to 1, 1 is best: on the unmodified template (1 mm grid), and the mean over the
        held-out made-up heads (2 mm grid).
    volumes_ml : dict of str to tuple of float
        Predicted volumes, by the name of the volume.
    """

    training: Training
    template_dice: tuple[float, ...]
    held_out_dice: tuple[float, ...]
    volumes_ml: dict[str, tuple[float, ...]]


def read_template() -> tuple[nibabel.Nifti1Image, np.ndarray]:
    """Read the template that nilearn carries, on its 1 mm grid.

    Returns
    -------
    t1 : nibabel.Nifti1Image
        Intensity, 0 to 1, without skull.
    tissues : numpy.ndarray of float, shape (3, I, J, K)
        Probability of CSF, grey and white matter. nilearn carries no map of CSF: it is the rest of
        the brain mask.
    """
    t1 = load_mni152_template(resolution=1)
    grey = load_mni152_gm_template(resolution=1).get_fdata()
    white = load_mni152_wm_template(resolution=1).get_fdata()
    mask = load_mni152_brain_mask(resolution=1).get_fdata() > 0
    tissues = np.stack([1 - grey - white, grey, white]) * mask
    return t1, tissues.clip(0, 1)


def label_tissues(tissues: np.ndarray) -> np.ndarray:
    """Return the class index of each voxel, 0 where no tissue is.

    Parameters
    ----------
    tissues : numpy.ndarray of float, shape (3, I, J, K)
        Probability of CSF, grey and white matter.

    Returns
    -------
    numpy.ndarray of int, shape (I, J, K)
        0 to 3.
    """
    return np.where(tissues.sum(axis=0) > 0.5, tissues.argmax(axis=0) + 1, 0)


def load_template() -> Template:
    """Read the template and pad it with air.

    Returns
    -------
    Template
        What heads are made from.
    """
    t1, tissues = read_template()
    labels = label_tissues(tissues)
    intensity = t1.get_fdata() * (labels > 0)
    means = [intensity[labels == tissue].mean() for tissue in (1, 2, 3)]
    margin = [(_MARGIN_MM, _MARGIN_MM)] * 3
    distance_mm = distance_transform_edt(np.pad(labels, margin) == 0)
    maps = np.pad(np.stack([intensity, *tissues]), [(0, 0), *margin])
    maps = np.concatenate([maps, distance_mm[None]])[None]
    return Template(
        maps=torch.from_numpy(maps.astype(np.float32)),
        origin_ras_mm=torch.from_numpy(t1.affine[:3, 3] - _MARGIN_MM).float(),
        tissue_means=torch.tensor(means, dtype=torch.float32),
    )


class HeadMaker:
    """Make up heads from the template, one after the other, from one seed.

    Parameters
    ----------
    template : Template
        The brain all heads are made from.
    scale_intensity : ScaleIntensityRangePercentilesd
        The intensity step of the bundle's preprocessing.
    shape : sequence of int, length 3
        Voxels of 2 mm along I, J, K: the field of view.
    seed : int
        Seed of all chance in here; the same seed gives the same heads.
    """

    def __init__(
        self,
        template: Template,
        scale_intensity: ScaleIntensityRangePercentilesd,
        *,
        shape: Sequence[int],
        seed: int,
    ) -> None:
        self._template = template
        self._shape = tuple(shape)
        self._scale_intensity = scale_intensity
        self._generator = torch.Generator().manual_seed(seed)
        self._scanner = Compose(
            [
                RandGaussianSmooth((0.25, 0.7), (0.25, 0.7), (0.25, 0.7), prob=0.7),
                RandHistogramShift(num_control_points=(5, 10), prob=0.2),
                RandAdjustContrast(prob=0.5, gamma=(0.7, 1.5)),
                RandBiasField(degree=3, coeff_range=(-0.15, 0.15), prob=0.6),
                RandGaussianNoise(prob=0.7, std=0.03),
            ]
        ).set_random_state(seed=seed)

    def __call__(self) -> Head:
        """Make one head.

        Returns
        -------
        Head
            RAS, with this maker's shape.
        """
        positions = self._positions_ras_mm()
        t1, *tissues, distance_mm = self._sample(positions)
        tissues = torch.stack(tissues)
        means = self._template.tissue_means
        texture = t1 - torch.tensordot(means, tissues, dims=1)
        inside = tissues.sum(dim=0) > 0.5
        # A third of the heads keep the average's soft borders, the others get sharper, new ones.
        if self._chance(0.65):
            tissues = self._move_borders(tissues) * inside
            texture = texture * self._uniform(0.0, 0.5)
        else:
            texture = texture * self._uniform(0.5, 1.0)
        intensities = self._tissue_intensities()
        image = torch.tensordot(intensities, tissues, dims=1) + texture * inside
        labels = torch.where(inside, _winner(tissues) + 1, 0)
        # The others are skull stripped, as the template is.
        if self._chance(0.8):
            image, labels = self._surround(image, labels, distance_mm, positions, intensities)
        image = self._scanner(image[None].clamp(min=0)).abs()
        image = torch.as_tensor(image).as_subclass(torch.Tensor)
        image = self._scale_intensity({"image": image})["image"]
        return self._cut_field_of_view(Head(image=image, labels=labels[None]))

    def _uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self._generator).item()

    def _chance(self, probability: float) -> bool:
        return self._uniform(0.0, 1.0) < probability

    def _smooth_noise(self, channels: int, spacing_mm: float) -> torch.Tensor:
        """Return noise (C, I, J, K), standard normal at knots ``spacing_mm`` apart."""
        knots = [math.ceil(size * _SPACING_MM / spacing_mm) + 1 for size in self._shape]
        noise = torch.randn(1, channels, *knots, generator=self._generator)
        return torch.nn.functional.interpolate(
            noise, self._shape, mode="trilinear", align_corners=True
        )[0]

    def _positions_ras_mm(self) -> torch.Tensor:
        """Return where in the template each voxel of the head comes from, (3, I, J, K)."""
        axes = [(torch.arange(size) - (size - 1) / 2) * _SPACING_MM for size in self._shape]
        offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        pitch, roll, yaw = (math.radians(self._uniform(-18, 18)) for _ in range(3))
        matrix = _rotation(pitch, roll, yaw)
        # The average of 152 brains is 1.88 l with its fluid: most heads are smaller.
        size = self._uniform(0.80, 1.05)
        scale = torch.tensor([size * self._uniform(0.93, 1.07) for _ in range(3)])
        if self._chance(0.5):
            scale[0] = -scale[0]
        matrix = torch.diag(1 / scale) @ matrix
        # (0, -18, 0) lies near the middle of the template's head. A small field of view goes astray
        # further, so that it sees every part of the head.
        centre = torch.tensor([0.0, -18.0, 0.0])
        for axis, size in enumerate(self._shape):
            reach_mm = max(5.0, 120 - size * _SPACING_MM / 2)
            centre[axis] += self._uniform(-reach_mm, reach_mm)
        positions = torch.tensordot(matrix, offsets, dims=1) + centre[:, None, None, None]
        for spacing_mm, amplitude_mm in ((60, 5.0), (25, 2.0), (12, 1.0)):
            amplitude_mm = self._uniform(0, amplitude_mm)
            positions = positions + amplitude_mm * self._smooth_noise(3, spacing_mm)
        return positions

    def _sample(self, positions_ras_mm: torch.Tensor) -> torch.Tensor:
        """Return the template's five maps at the given positions, (5, I, J, K)."""
        maps = self._template.maps
        index = positions_ras_mm - self._template.origin_ras_mm[:, None, None, None]
        last = torch.tensor(maps.shape[2:]) - 1
        grid = 2 * index / last[:, None, None, None] - 1
        # grid_sample counts the axes from the last to the first.
        grid = grid.flip(0).permute(1, 2, 3, 0)[None]
        return torch.nn.functional.grid_sample(
            maps, grid, padding_mode="border", align_corners=True
        )[0]

    def _move_borders(self, tissues: torch.Tensor) -> torch.Tensor:
        """Return the tissues as 0 or 1, their borders moved at random, sulci opened by more CSF."""
        noise = self._uniform(0.02, 0.20) * self._smooth_noise(3, self._uniform(5, 12))
        bias = torch.tensor([self._uniform(0.0, 0.30), 0.0, self._uniform(-0.10, 0.10)])
        winner = _winner(tissues + noise + bias[:, None, None, None])
        return torch.stack([winner == tissue for tissue in range(3)]).float()

    def _tissue_intensities(self) -> torch.Tensor:
        """Return the intensity of CSF, grey and white matter, (3,), darker to brighter as in T1."""
        if self._chance(0.2):
            return self._template.tissue_means
        white = self._uniform(0.6, 1.0)
        grey = white * self._uniform(0.58, 0.87)
        return torch.tensor([grey * self._uniform(0.15, 0.65), grey, white])

    def _surround(
        self,
        image: torch.Tensor,
        labels: torch.Tensor,
        distance_mm: torch.Tensor,
        positions_ras_mm: torch.Tensor,
        tissue_intensities: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Paint fluid, meninges, skull, scalp, face and neck around a brain.

        The fluid between brain and skull is labelled as CSF, as it is within the template's mask.
        """
        wobble = self._smooth_noise(3, 20)
        layers = [self._uniform(-1.0, 4.0), self._uniform(-1.0, 1.5), self._uniform(2.0, 9.0)]
        layers.append(self._uniform(2.0, 9.0))
        fluid_end, dura_end, skull_end, scalp_end = np.cumsum(layers).tolist()
        depth_mm = distance_mm + self._uniform(0.3, 1.5) * wobble[0]
        outside = labels == 0
        face = self._face(positions_ras_mm, wobble[1])
        soft = self._soft_tissue(tissue_intensities)
        fat = self._uniform(0.6, 1.8) * (1 + 0.2 * wobble[2])
        scalp = torch.where(self._smooth_noise(1, 25)[0] > self._uniform(-1.5, 1.5), fat, soft)
        marrow = self._uniform(0.0, 0.7) if self._chance(0.5) else 0.0
        middle = (dura_end + skull_end) / 2
        thickness = self._uniform(0.5, 1.5)
        bone = torch.where((depth_mm - middle).abs() < thickness, marrow, self._uniform(0.0, 0.15))
        # Around the face the skull has gaps: nerves, vessels and joints reach the brain.
        gap = face & (self._smooth_noise(1, 15)[0] > self._uniform(-1.0, 1.0))
        bone = torch.where(gap, soft, bone)

        painted = torch.where(face, soft, torch.zeros_like(image))
        painted = torch.where(~face & (depth_mm < scalp_end), scalp, painted)
        painted = torch.where(depth_mm < skull_end, bone, painted)
        painted = torch.where(depth_mm < dura_end, self._uniform(0.2, 0.9), painted)
        painted = torch.where(depth_mm < fluid_end, tissue_intensities[0], painted)
        is_fluid = outside & (depth_mm < fluid_end)
        image = torch.where(outside, painted * (1 + 0.05 * wobble[1]), image)
        return image, torch.where(is_fluid, 1, labels)

    def _face(self, positions_ras_mm: torch.Tensor, wobble: torch.Tensor) -> torch.Tensor:
        """Return where face and neck are, bool (I, J, K): below a plane that rises to the front."""
        right, front, up = positions_ras_mm
        plane = self._uniform(-55, -25) + self._uniform(0.3, 0.6) * (front + 20).clamp(min=0)
        width, length = self._uniform(60, 95), self._uniform(80, 120)
        radius = (right / width) ** 2 + ((front + 10) / length) ** 2
        return (up + 5 * wobble < plane) & (radius + 0.2 * wobble < 1)

    def _soft_tissue(self, tissue_intensities: torch.Tensor) -> torch.Tensor:
        """Return patches of air, bone, fat, marrow and what looks like brain, (I, J, K)."""
        scores = self._smooth_noise(6, self._uniform(15, 40))
        scores = scores + self._uniform(0.0, 1.0) * self._smooth_noise(6, 10)
        values = [0.0, self._uniform(0.0, 0.3), self._uniform(0.7, 1.8), self._uniform(0.2, 1.0)]
        values += [tissue.item() * self._uniform(0.85, 1.15) for tissue in tissue_intensities[1:]]
        grain = self._uniform(0.0, 0.25) * self._smooth_noise(1, self._uniform(5, 12))[0]
        return torch.tensor(values)[_winner(scores)] * (1 + grain)

    def _cut_field_of_view(self, head: Head) -> Head:
        """Blank a slab at one or more sides, as at the edge of a scan or of a padded window."""
        image, labels = head.image.clone(), head.labels.clone()
        for axis in range(1, 4):
            for side in (False, True):
                if self._chance(0.35):
                    size = int(self._uniform(0, 0.3) * image.shape[axis])
                    start = image.shape[axis] - size if side else 0
                    image.narrow(axis, start, size).zero_()
                    labels.narrow(axis, start, size).zero_()
        return Head(image=image, labels=labels)


def _winner(scores: torch.Tensor) -> torch.Tensor:
    """Return the index of the largest of the first axis."""
    # On a CPU seven times faster than argmax along the first axis.
    return scores.max(dim=0).indices


def _rotation(pitch: float, roll: float, yaw: float) -> torch.Tensor:
    """Return the 3 x 3 rotation by three angles in radians around R, A and S."""
    angles = torch.zeros(3, 3)
    angles[2, 1], angles[0, 2], angles[1, 0] = pitch, roll, yaw
    return torch.linalg.matrix_exp(angles - angles.T)


def make_ahead(heads: HeadMaker, count: int) -> Iterator[Head]:
    """Make heads on a second core, the next one while one is in use.

    Parameters
    ----------
    heads : HeadMaker
        The source.
    count : int
        Number of heads.

    Yields
    ------
    Head
        In the order of their making.
    """
    with ThreadPoolExecutor(max_workers=1) as executor:
        # One worker: the heads come in the same order as without it.
        coming = executor.submit(heads)
        for _ in range(count):
            head, coming = coming.result(), executor.submit(heads)
            yield head
        coming.cancel()


def train(network: torch.nn.Module, heads: Iterable[Head], *, steps: int, rate: float) -> None:
    """Train a network in place, one head a step.

    Parameters
    ----------
    network : torch.nn.Module
        Gives 4 channels for 1.
    heads : iterable of Head
        As many as there are steps.
    steps : int
        Length of the one-cycle schedule.
    rate : float
        Highest learning rate of the schedule.
    """
    loss_function = DiceCELoss(softmax=True, to_onehot_y=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    network.train()
    started, recent = time.perf_counter(), []
    for step, head in enumerate(heads, start=1):
        optimizer.zero_grad()
        image = head.image[None].contiguous(memory_format=torch.channels_last_3d)
        loss = loss_function(network(image), head.labels[None])
        loss.backward()
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if step % 50 == 0 or step == steps:
            seconds = time.perf_counter() - started
            _logger.info("step %d/%d  loss %.3f  %.0f s", step, steps, np.mean(recent), seconds)
            recent.clear()
    network.eval()


@dataclass(frozen=True)
class Bundle:
    """The parts of the bundle's configuration.

    Parameters
    ----------
    folder : Path
        Where the bundle lies.
    network : torch.nn.Module
        One channel in, four channels (logits) out.
    preprocess, postprocess : Compose
        From a file to the network's input, and from logits to labels on the file's grid.
    inferer : SlidingWindowInferer
        Runs the network on windows.
    """

    folder: Path
    network: torch.nn.Module
    preprocess: Compose
    postprocess: Compose
    inferer: SlidingWindowInferer

    @property
    def scale_intensity(self) -> ScaleIntensityRangePercentilesd:
        """The one step of the preprocessing that made-up heads go through as well."""
        steps = self.preprocess.transforms
        return next(step for step in steps if isinstance(step, ScaleIntensityRangePercentilesd))


def open_bundle(folder: Path) -> Bundle:
    """Build what ``configs/inference.json`` describes; the weights are random.

    Parameters
    ----------
    folder : Path
        The bundle.

    Returns
    -------
    Bundle
        Its network in evaluation mode.
    """
    parser = ConfigParser()
    parser.read_config(folder / "configs/inference.json")
    return Bundle(
        folder=folder,
        network=parser.get_parsed_content("network_def").eval(),
        preprocess=parser.get_parsed_content("preprocessing"),
        postprocess=parser.get_parsed_content("postprocessing"),
        inferer=parser.get_parsed_content("inferer"),
    )


def segment(bundle: Bundle, file: Path) -> nibabel.Nifti1Image:
    """Run the bundle on one volume.

    Parameters
    ----------
    bundle : Bundle
        With trained weights.
    file : Path
        A T1-weighted volume.

    Returns
    -------
    nibabel.Nifti1Image
        Class index on the grid of the file, uint8.
    """
    data = bundle.preprocess({"image": str(file)})
    with torch.no_grad():
        data["pred"] = bundle.inferer(data["image"][None], bundle.network)[0]
    labels = bundle.postprocess(data)["pred"]
    return nibabel.Nifti1Image(labels[0].numpy().astype(np.uint8), labels.affine.numpy())


def measure_dice(labels: np.ndarray, reference: np.ndarray) -> tuple[float, ...]:
    """Return the overlap of two label maps.

    Parameters
    ----------
    labels, reference : numpy.ndarray of int, shape (I, J, K)
        Class index.

    Returns
    -------
    tuple of float
        Dice of CSF, grey and white matter: 0 to 1, 1 where both are equal, NaN where the reference
        has no such voxel.
    """
    one_hot = [
        torch.stack([torch.as_tensor(volume == tissue) for tissue in (1, 2, 3)])[None]
        for volume in (labels, reference)
    ]
    return tuple(compute_dice(*one_hot)[0].tolist())


def measure_volumes_ml(labels: nibabel.Nifti1Image) -> tuple[float, ...]:
    """Return the volumes of CSF, grey and white matter in ml.

    Parameters
    ----------
    labels : nibabel.Nifti1Image
        Class index.

    Returns
    -------
    tuple of float
        0 or more.
    """
    voxel_ml = abs(np.linalg.det(labels.affine[:3, :3])) / 1000
    counts = np.bincount(np.asarray(labels.dataobj).ravel(), minlength=len(_CLASSES))
    return tuple(float(count * voxel_ml) for count in counts[1:])


def measure_template(bundle: Bundle) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Run the bundle on the template that it was trained on.

    Parameters
    ----------
    bundle : Bundle
        With trained weights.

    Returns
    -------
    dice, volumes_ml : tuple of float
        For CSF, grey and white matter, on the template's own 1 mm grid.
    """
    t1, tissues = read_template()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "template.nii.gz"
        nibabel.save(t1, file)
        labels = segment(bundle, file)
    dice = measure_dice(np.asarray(labels.dataobj), label_tissues(tissues))
    return dice, measure_volumes_ml(labels)


def measure_held_out(bundle: Bundle, heads: HeadMaker, count: int) -> tuple[float, ...]:
    """Run the bundle's inferer on made-up heads it has not seen.

    Parameters
    ----------
    bundle : Bundle
        With trained weights.
    heads : HeadMaker
        With another seed than in training.
    count : int
        Number of heads.

    Returns
    -------
    tuple of float
        Mean Dice of CSF, grey and white matter.
    """
    dice = []
    for _ in range(count):
        head = heads()
        with torch.no_grad():
            logits = bundle.inferer(head.image[None], bundle.network)[0]
        dice.append(measure_dice(_winner(logits).numpy(), head.labels[0].numpy()))
    return tuple(np.nanmean(dice, axis=0).tolist())


def write_weights(bundle: Bundle) -> None:
    """Write the network's weights as a plain state dictionary.

    Parameters
    ----------
    bundle : Bundle
        With trained weights.
    """
    state = {
        name: value.detach().contiguous() for name, value in bundle.network.state_dict().items()
    }
    file = bundle.folder / "models/model.pt"
    file.parent.mkdir(exist_ok=True)
    torch.save(state, file)


def read_training(bundle: Bundle) -> Training:
    """Load the weights that are there, and what the bundle says about their training.

    Parameters
    ----------
    bundle : Bundle
        Its network gets the weights.

    Returns
    -------
    Training
        From ``configs/metadata.json``.
    """
    state = torch.load(bundle.folder / "models/model.pt", weights_only=True)
    bundle.network.load_state_dict(state)
    metadata = json.loads((bundle.folder / "configs/metadata.json").read_text("utf-8"))
    return Training(**metadata["training"])


def _by_tissue(values: Sequence[float], digits: int) -> dict[str, float]:
    rounded = (round(value, digits) for value in values)
    return dict(zip(_CLASSES[1:], rounded, strict=True))


def _channels() -> dict[str, object]:
    """Return ``network_data_format``: what goes in, what comes out."""
    common = {"spatial_shape": ["8*n", "8*n", "8*n"], "dtype": "float32", "is_patch_data": True}
    return {
        "inputs": {
            "image": {
                "type": "image",
                "format": "magnitude",
                "modality": "MR",
                "num_channels": 1,
                **common,
                "value_range": [0, 1],
                "channel_def": {"0": "T1"},
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
    }


def write_metadata(bundle: Bundle, report: Report) -> None:
    """Write ``configs/metadata.json``.

    Parameters
    ----------
    bundle : Bundle
        Where to.
    report : Report
        The figures in it.
    """
    metadata = {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
        "meta_schema_20240725.json",
        "version": "1.0.0",
        "changelog": {"1.0.0": "first version"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": nibabel.__version__},
        "name": "Brain tissue segmentation (demo)",
        "task": "Segmentation of CSF, grey and white matter in T1-weighted MRI of the head",
        "description": "A small residual U-Net (PReLU, InstanceNorm) to try out explanations with. "
        "Trained on heads made up from one template, not on patients.",
        "intended_use": "Demonstration only: neither validated on patients nor fit for diagnosis, "
        "treatment or research on the brain.",
        "authors": "SaliencyExplain contributors",
        "copyright": "SaliencyExplain contributors; MIT, see LICENSE",
        "license": "MIT",
        "data_source": "MNI ICBM152 2009a nonlinear T1 template (one average of 152 brains), as "
        f"carried by nilearn {nilearn.__version__}; licence of the template: see LICENSE. "
        "https://www.bic.mni.mcgill.ca/ServicesAtlases/ICBM152NLin2009",
        "data_type": "nifti",
        "image_classes": "1 channel, T1-weighted MRI, with or without skull",
        "label_classes": "argmax of the 4 channels",
        "pred_classes": "4 channels of logits (softmax): " + ", ".join(_CLASSES),
        "references": [
            "Fonov et al. 2011, https://doi.org/10.1016/j.neuroimage.2010.07.033",
            "Billot et al. 2023, https://doi.org/10.1016/j.media.2023.102789",
        ],
        "network_data_format": _channels(),
        "training": asdict(report.training),
        "eval_metrics": {
            "dice_template_1mm": _by_tissue(report.template_dice, 3),
            f"dice_{_HELD_OUT_HEADS}_held_out_made_up_heads_2mm": _by_tissue(
                report.held_out_dice, 3
            ),
            "predicted_volumes_ml": {
                name: _by_tissue(volumes, 0) for name, volumes in report.volumes_ml.items()
            },
        },
    }
    text = json.dumps(metadata, indent=4) + "\n"
    (bundle.folder / "configs/metadata.json").write_text(text, "utf-8")


def _row(title: str, values: Sequence[float], digits: int) -> str:
    return f"| {title} | " + " | ".join(f"{value:.{digits}f}" for value in values) + " |"


def write_readme(bundle: Bundle, report: Report) -> None:
    """Write ``docs/README.md``.

    Parameters
    ----------
    bundle : Bundle
        Where to.
    report : Report
        The figures in it.
    """
    rows = [
        _row("Dice, unmodified template (1 mm)", report.template_dice, 3),
        _row(f"Dice, {_HELD_OUT_HEADS} held-out made-up heads (2 mm)", report.held_out_dice, 3),
    ]
    rows += [
        _row(f"Predicted volume in ml, {name}", volumes, 0)
        for name, volumes in report.volumes_ml.items()
    ]
    size = sum(value.numel() for value in bundle.network.parameters())
    training = report.training
    text = _README.format(
        rows="\n".join(rows),
        thousands=round(size / 1000),
        heads=training.small_heads + training.large_heads,
        minutes=round(training.cpu_minutes),
        seed=training.seed,
    )
    (bundle.folder / "docs/README.md").write_text(text, "utf-8")


_README = """# Brain tissue segmentation (demo)

Background, CSF, grey and white matter in a T1-weighted MRI of the head, with or without skull: the
classes of Matos et al., AIAI 2019. A residual U-Net of {thousands} thousand weights with PReLU and
InstanceNorm, at 2 mm. **For demonstration only**: neither validated on patients nor fit for
diagnosis, treatment or research on the brain.

## Figures

Written by `Testing/Data/train_demo_model.py`.

| | CSF | grey matter | white matter |
| --- | --- | --- | --- |
{rows}

The template is the brain that the model was trained on, so the first row says that it has learnt,
not that it generalises. The held-out heads are made up from the same template with another seed. No
Dice was measured on a real head with labels drawn by people; real heads, where volumes of one stand
above, were looked at while the model was developed.

## Training

{heads} heads made up from the MNI ICBM152 2009a template that nilearn carries (T1 and the
probability of grey and white matter, skull stripped): turned, scaled, warped, tissue borders moved,
new intensities, skull, scalp, face and neck painted around. Loss: Dice and cross-entropy; Adam, one
cycle; {minutes} minutes of processor time; seed {seed}. CSF is what grey and white matter leave of
the brain mask, and in made-up heads the fluid around the brain as well.

## Known limits

- One brain's anatomy: no lesions, no children, no atrophy, no contrast agent, no other MR sequence.
- Thin sulci and the border between CSF and skull are poor: see the Dice of CSF.
- Muscle and fat of neck and face are sometimes called grey or white matter, most of all near the
  lower edge of the scan.

## Licence

MIT for configuration and weights; the notice of the template stands beside it in `LICENSE`.
"""


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--bundle", type=Path, default=_BUNDLE, help="folder of the bundle")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps",
        type=int,
        default=2500,
        help="training heads; 0 measures the weights that are there (default: %(default)s)",
    )
    parser.add_argument("--rate", type=float, default=8e-3, help="highest learning rate")
    parser.add_argument(
        "--evaluate", type=Path, metavar="FILE", help="also measure volumes in this T1 head"
    )
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="where to write that head's label map"
    )
    arguments = parser.parse_args()
    if arguments.labels and not arguments.evaluate:
        parser.error("--labels needs --evaluate: name the head to segment")
    return arguments


def train_bundle(bundle: Bundle, template: Template, arguments: argparse.Namespace) -> Training:
    """Train the bundle's network and write its weights.

    Parameters
    ----------
    bundle : Bundle
        Its network is trained in place.
    template : Template
        What heads are made from.
    arguments : argparse.Namespace
        ``seed``, ``steps`` and ``rate``.

    Returns
    -------
    Training
        What was done.
    """
    # One thread here and one that makes heads: two cores, and the result does not depend on how
    # sums are split between threads.
    torch.set_num_threads(1)
    # The last fifth is as large as the inferer's window, since InstanceNorm sees all of it.
    large = arguments.steps // 5
    small = arguments.steps - large
    makers = (
        HeadMaker(template, bundle.scale_intensity, shape=_SMALL_SHAPE, seed=arguments.seed),
        HeadMaker(
            template,
            bundle.scale_intensity,
            shape=bundle.inferer.roi_size,
            seed=arguments.seed + 1,
        ),
    )
    heads = itertools.chain(make_ahead(makers[0], small), make_ahead(makers[1], large))
    network = bundle.network.to(memory_format=torch.channels_last_3d)
    started = time.process_time()
    train(network, heads, steps=arguments.steps, rate=arguments.rate)
    minutes = (time.process_time() - started) / 60
    network.to(memory_format=torch.contiguous_format)
    write_weights(bundle)
    return Training(
        seed=arguments.seed,
        small_heads=small,
        large_heads=large,
        cpu_minutes=round(minutes, 1),
    )


def main() -> None:
    """Train, measure and write."""
    arguments = _parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(arguments.seed)
    bundle = open_bundle(arguments.bundle)
    template = load_template()
    if arguments.steps:
        training = train_bundle(bundle, template, arguments)
    else:
        training = read_training(bundle)
    held_out = HeadMaker(
        template,
        bundle.scale_intensity,
        shape=_HELD_OUT_SHAPE,
        seed=arguments.seed + _HELD_OUT_SEED,
    )
    template_dice, template_volumes_ml = measure_template(bundle)
    held_out_dice = measure_held_out(bundle, held_out, _HELD_OUT_HEADS)
    volumes_ml = {"template": template_volumes_ml}
    if arguments.evaluate:
        labels = segment(bundle, arguments.evaluate)
        volumes_ml[arguments.evaluate.name] = measure_volumes_ml(labels)
        if arguments.labels:
            nibabel.save(labels, arguments.labels)
    report = Report(training, template_dice, held_out_dice, volumes_ml)
    write_metadata(bundle, report)
    write_readme(bundle, report)
    _logger.info("%s", report)


if __name__ == "__main__":
    main()
