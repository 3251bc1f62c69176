"""Fixtures that several test files share: real volumes, small networks, random volumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import UNet

from SaliencyExplainLib.image import make_image

# Small volumes are slower on several threads than on one, much slower on a busy machine.
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real volumes and models that lies beside a development checkout."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder of real volumes and models is not beside this checkout")
    return folder


@pytest.fixture
def unet() -> UNet:
    """MONAI's U-Net with its defaults (PReLU, instance norm), 1 channel to 3 classes."""
    torch.manual_seed(0)
    return UNet(3, 1, 3, (8, 16, 32), (2, 2), num_res_units=1).eval()


@pytest.fixture
def a_volume() -> Callable[..., MetaTensor]:
    """Make a random volume of a shape (C, I, J, K), 1 mm, RAS."""

    def make(*shape: int, seed: int = 0) -> MetaTensor:
        return make_image(
            torch.randn(shape, generator=torch.Generator().manual_seed(seed)), np.eye(4)
        )

    return make
