"""What the tests of nnU-Net folders share: where the data lie, the phantom, scores of a model."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

import SaliencyExplainLib as sx
from SaliencyExplainLib.engine import Engine
from SaliencyExplainLib.engine.progress import Progress
from SaliencyExplainLib.image import make_image

DATA = Path(__file__).resolve().parents[1] / "Data"
DATASET = DATA / "nnunet" / "Dataset901_Phantom"
TRAINER = "nnUNetTrainer__nnUNetPlans__3d_fullres"
FOLD = Path(TRAINER, "fold_0")
sys.path.insert(0, str(DATA))
from make_nnunet_folder import SPACINGS, phantom  # noqa: E402 - it stands beside the data

#: Who builds the networks; a test that needs it says so by this.
built = pytest.mark.skipif(
    not importlib.util.find_spec("dynamic_network_architectures"),
    reason="dynamic-network-architectures is not installed",
)


def a_scan(kind: str) -> MetaTensor:
    """The phantom, lying obliquely: nnU-Net does not look at directions."""
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(SPACINGS[kind])
    affine[:3, 3] = (-12, 7, 30)
    return make_image(phantom(0, SPACINGS[kind])[0].astype(np.float32), affine)


def changed(path: Path, change: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content))


def scores_of(model: sx.Model, prepared: MetaTensor) -> torch.Tensor:
    engine = Engine(model, prepared, sx.Target(), Progress(None, None))
    with engine.running():
        return engine.output(engine.x)[0]
