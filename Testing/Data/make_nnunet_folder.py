"""Make a tiny trained nnU-Net folder with nnunetv2's own code: the fixture of the nnU-Net tests.

    python -m pip install nnunetv2==2.8.1
    python Testing/Data/make_nnunet_folder.py Testing/Data/nnunet

Planning, preprocessing, training (CPU, two minutes) and prediction are nnunetv2's. Only the plan is
made small by hand: few features, a small patch. Beside the folder stands what nnunetv2 predicts on
:func:`phantom` (``expected.npz``), so that the tests need no nnunetv2.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

DATASET = "Dataset901_Phantom"
#: Millimetres a voxel along I, J, K: the coarsest axis is I, so the plan transposes. More than
#: three times the finest: nnU-Net resamples such slices apart; the second kind is below that.
SPACING = (3.0, 1.1, 0.9)
SPACINGS = {"thick": SPACING, "even": (2.2, 1.3, 1.0)}
#: Of the network's grid, in the plan's own order of axes.
TARGET_SPACING = [2.6, 1.1, 1.2]
SHAPE = (22, 34, 38)
LABELS = {"background": 0, "ball": 1, "rod": 2}


def phantom(
    seed: int = 0, spacing: tuple[float, float, float] = SPACING
) -> tuple[np.ndarray, np.ndarray]:
    """Two channels (CT, MRI) with nothing around a body, and its labels; axes I, J, K.

    Returns
    -------
    image : ndarray of int16, shape (2, 22, 34, 38)
    labels : ndarray of uint8, shape (22, 34, 38)
    """
    random = np.random.default_rng(seed)
    place = [
        np.arange(size, dtype=np.float64)[(slice(None), *[None] * (2 - axis))] * step
        for axis, (size, step) in enumerate(zip(SHAPE, spacing, strict=True))
    ]
    middle = [size * step / 2 for size, step in zip(SHAPE, spacing, strict=True)]
    moved = random.uniform(-3, 3, 3)

    def ball(centre: Any, radius: float) -> np.ndarray:
        return sum((one - at) ** 2 for one, at in zip(place, centre, strict=True)) < radius**2

    body = sum(((one - at) / (0.8 * at)) ** 2 for one, at in zip(place, middle, strict=True)) < 1
    labels = np.zeros(SHAPE, np.uint8)
    labels[ball(np.add(middle, moved), 7.0)] = 1
    rod = (place[1] - middle[1] * 0.6 - moved[1]) ** 2 + (place[2] - middle[2] * 0.7) ** 2 < 3.5**2
    labels[rod & (labels == 0) & (np.abs(place[0] - middle[0]) < 15)] = 2
    wave = np.sin(place[0] / 3) + np.cos(place[1] / 4) + np.sin(place[2] / 5)
    ct = np.where(body, 40 + 5 * wave, -1000) + 60 * (labels == 1) - 80 * (labels == 2)
    mri = np.where(body, 300 + 30 * wave, 0) + 200 * (labels == 2) - 90 * (labels == 1)
    # Nothing at all outside the body, as after skull stripping: nnU-Net crops it away.
    outside = ~(body | (labels > 0))
    image = np.stack([np.where(outside, 0, one) for one in (ct, mri)])
    return image.round().astype(np.int16), labels


def _write(folder: Path, cases: int) -> None:
    """Raw data as nnU-Net wants it."""
    import SimpleITK as sitk

    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True)

    def save(array: np.ndarray, path: Path) -> None:
        picture = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
        picture.SetSpacing(SPACING)
        sitk.WriteImage(picture, str(path), True)

    for case in range(cases):
        image, labels = phantom(case)
        where = "imagesTs" if case == 0 else "imagesTr"
        for channel in (0, 1):
            save(image[channel], folder / where / f"case_{case}_{channel:04d}.nii.gz")
        if case:
            save(labels, folder / "labelsTr" / f"case_{case}.nii.gz")
    facts = {
        "channel_names": {"0": "CT", "1": "MRI"},
        "labels": LABELS,
        "numTraining": cases - 1,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(facts))


def _shrink(plans: dict[str, Any]) -> None:
    """A network of a few thousand parameters and windows smaller than the phantom."""
    plans["configurations"] = {"3d_fullres": plans["configurations"]["3d_fullres"]}
    configuration = plans["configurations"]["3d_fullres"]
    configuration["patch_size"] = [8, 16, 20]
    configuration["batch_size"] = 2
    configuration["spacing"] = TARGET_SPACING
    arguments = configuration["architecture"]["arch_kwargs"]
    arguments |= {
        "n_stages": 3,
        "features_per_stage": [4, 6, 6],
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "n_conv_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
    }


def make(output: Path, work: Path) -> None:
    """Plan, preprocess, train, predict; the folder without logs goes to `output`."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (work / name).mkdir()
        os.environ[name] = str(work / name)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}
    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - nnunetv2 draws from the global generator
    _write(work / "nnUNet_raw" / DATASET, cases=6)
    extract_fingerprints([901], num_processes=1)
    plan_experiments([901])
    place = work / "nnUNet_preprocessed" / DATASET
    plans = json.loads((place / "nnUNetPlans.json").read_text())
    _shrink(plans)
    (place / "nnUNetPlans.json").write_text(json.dumps(plans, indent=1))
    preprocess([901], configurations=("3d_fullres",), num_processes=(1,))

    class Short(nnUNetTrainer):
        """Two hundred steps instead of a quarter of a million."""

    Short.__name__ = "nnUNetTrainer"
    facts = json.loads((place / "dataset.json").read_text())
    trainer = Short(
        plans | {"continue_training": False}, "3d_fullres", 0, facts, torch.device("cpu")
    )
    trainer.num_epochs, trainer.num_iterations_per_epoch = 4, 50
    trainer.num_val_iterations_per_epoch = 2
    # The planner wants one process at least; none is this process.
    os.environ |= {"nnUNet_n_proc_DA": "0"}
    trainer.run_training()

    trained = Path(trainer.output_folder_base)
    target = output / DATASET / trained.name
    (target / "fold_0").mkdir(parents=True, exist_ok=True)
    for name in ("plans.json", "dataset.json"):
        shutil.copy(trained / name, target / name)
    shutil.copy(trained / "fold_0" / "checkpoint_final.pth", target / "fold_0")
    _predict(nnUNetPredictor, trained, output)


def _predict(kind: Any, trained: Path, output: Path) -> None:
    """What nnunetv2 makes of the phantom: its network's input, scores and labels."""
    import torch

    predictor = kind(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(trained), (0,), "checkpoint_final.pth")
    found: dict[str, np.ndarray] = {}
    for name, spacing in SPACINGS.items():
        image, truth = phantom(0, spacing)
        array = image.transpose(0, 3, 2, 1).astype(np.float32)
        properties = {"spacing": list(spacing[::-1])}
        preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
        prepared, _, _ = preprocessor.run_case_npy(
            array, None, dict(properties), predictor.plans_manager,
            predictor.configuration_manager, predictor.dataset_json,
        )  # fmt: skip
        scores = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(prepared))
        labels, _ = predictor.predict_single_npy_array(array, dict(properties), None, None, True)
        labels = np.asarray(labels).transpose(2, 1, 0)
        right = float((labels == truth).mean())
        print(f"{name}: {right:.4f} of the voxels are right; labels {np.bincount(labels.ravel())}")
        found[f"{name}_shape"] = np.array(prepared.shape[1:])
        found[f"{name}_prepared"] = prepared[:, ::3, ::3, ::3].astype(np.float32)
        found[f"{name}_scores"] = scores.numpy()[:, ::3, ::3, ::3].astype(np.float32)
        found[f"{name}_labels"] = labels.astype(np.uint8)
    np.savez_compressed(output / "expected.npz", **found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder for the trained folder")
    with tempfile.TemporaryDirectory() as folder:
        make(parser.parse_args().output, Path(folder))
