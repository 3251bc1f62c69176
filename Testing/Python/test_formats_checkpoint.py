"""Weights as training code leaves them: prefixes, wrappers, CUDA, NumPy numbers, safetensors."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet

import SaliencyExplainLib as sx
from SaliencyExplainLib.errors import ModelError, UntrustedModelError
from SaliencyExplainLib.model import model_facts

NETWORK: dict[str, Any] = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "channels": [2, 4],
    "strides": [2],
}


def a_unet(seed: int = 7) -> UNet:
    """MONAI's U-Net: its own names all begin with ``model.``."""
    torch.manual_seed(seed)
    return UNet(**NETWORK)


def a_convolution() -> torch.nn.Module:
    torch.manual_seed(7)
    return torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.BatchNorm3d(2))


def under(prefix: str, network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in network.state_dict().items()}


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(
        torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items()
    )


def loaded(content: Any, network: torch.nn.Module, folder: Path, **options: Any) -> sx.Model:
    torch.save(content, folder / "weights.pth")
    return sx.load_model(
        folder / "weights.pth", task="segmentation", network=network, device="cpu", **options
    )


@pytest.mark.parametrize("make", [a_unet, a_convolution])
@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "model.", "net.", "network.", "_orig_mod.", "module.model.", "net.module."],
)
@pytest.mark.parametrize("key", [None, "state_dict", "model", "network_weights"])
def test_a_prefix_goes_only_where_it_is_not_the_networks_own(key, prefix, make, tmp_path):
    weights = under(prefix, make())
    empty = make()
    with torch.no_grad():
        for one in empty.parameters():
            one.zero_()
    model = loaded(weights if key is None else {key: weights}, empty, tmp_path)
    assert same_weights(model.network, make())


def test_the_loss_beside_a_lightning_network_is_left_out(tmp_path):
    weights = under("net.", a_convolution()) | {"loss.weight": torch.ones(2)}
    model = loaded({"state_dict": weights, "epoch": 3}, a_convolution(), tmp_path)
    assert same_weights(model.network, a_convolution())


def test_what_is_beside_the_prefix_is_not_left_out_when_the_rest_is_incomplete(tmp_path):
    weights = under("net.", a_convolution()) | {"loss.weight": torch.ones(2)}
    weights.pop("net.0.bias")
    with pytest.raises(ModelError, match="7 of its 7 tensors are missing"):
        loaded(weights, a_convolution(), tmp_path)


def test_what_does_not_fit_is_told_with_its_first_names(tmp_path):
    other = UNet(**NETWORK | {"channels": [2, 4, 8], "strides": [2, 2]})
    with pytest.raises(ModelError) as raised:
        loaded({"state_dict": under("module.", other)}, a_unet(), tmp_path)
    told = str(raised.value)
    own, theirs = a_unet().state_dict(), other.state_dict()
    missing = [name for name in own if name not in theirs]
    foreign = [name for name in theirs if name not in own]
    reshaped = [n for n in own if n in theirs and own[n].shape != theirs[n].shape]
    assert told.startswith("The weights in 'weights.pth' do not fit the network UNet: ")
    assert f"{len(missing)} of its {len(own)} tensors are missing ({', '.join(missing)});" in told
    assert f"{len(foreign)} in the file are not its own ({', '.join(foreign[:3])}, ...);" in told
    assert f"{len(reshaped)} have another shape ({reshaped[0]} is 4 x 2 x 3 x 3 x 3 in " in told
    assert told.endswith("Check the network's arguments against those it was trained with.")


def test_weights_of_a_graphics_card_are_read_without_one(tmp_path, monkeypatch):
    # What torch.save writes beside each tensor of the first graphics card.
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save({"state_dict": under("module.", a_unet())}, tmp_path / "weights.pth")
    monkeypatch.undo()
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="on a CUDA device"):
            torch.load(tmp_path / "weights.pth", weights_only=True)
    model = sx.load_model(
        tmp_path / "weights.pth", task="segmentation", network=a_unet(8), device="cpu"
    )
    assert same_weights(model.network, a_unet())
    assert model.device == torch.device("cpu")


NUMBERS = {
    "best_metric": np.float64(0.9),
    "losses": [np.float32(1.5), np.float16(2), np.int64(3), np.bool_(True)],
}


def test_numpy_numbers_beside_the_weights_need_no_trust(tmp_path):
    torch.save(NUMBERS, tmp_path / "plain.pt")
    with pytest.raises(Exception, match="numpy"):
        torch.load(tmp_path / "plain.pt", weights_only=True)
    before = set(torch.serialization.get_safe_globals())
    model = loaded({"state_dict": a_unet().state_dict()} | NUMBERS, a_unet(8), tmp_path)
    assert same_weights(model.network, a_unet())
    assert set(torch.serialization.get_safe_globals()) == before


def test_nothing_of_numpy_runs_for_them(tmp_path):
    class NoType:
        def __reduce__(self):
            return np.dtype, ("there is no such type",)

    with pytest.raises(TypeError, match="not understood"):
        np.dtype("there is no such type")
    model = loaded({"state_dict": a_unet().state_dict(), "x": NoType()}, a_unet(8), tmp_path)
    assert same_weights(model.network, a_unet())


@pytest.mark.parametrize("content", [np.zeros(3), {"x": np.zeros((2, 2))}])
def test_numpy_arrays_still_need_trust(content, tmp_path):
    with pytest.raises(UntrustedModelError, match="holds pickled Python objects"):
        loaded({"state_dict": a_unet().state_dict(), "x": content}, a_unet(8), tmp_path)


def test_a_number_that_hides_a_command_does_not_run_it(tmp_path):
    marker = tmp_path / "executed"

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    content = {"state_dict": a_unet().state_dict(), "best": [np.float64(1), Hostile()]}
    with pytest.raises(UntrustedModelError, match="holds pickled Python objects"):
        loaded(content, a_unet(8), tmp_path)
    assert not marker.exists()


def test_a_pickled_network_inside_a_trusted_checkpoint_gives_its_weights(tmp_path):
    with pytest.raises(UntrustedModelError, match="holds pickled"):
        loaded({"model": a_unet()}, a_unet(8), tmp_path)
    model = loaded({"model": a_unet()}, a_unet(8), tmp_path, trusted=True)
    assert same_weights(model.network, a_unet())


# safetensors


def test_safetensors_are_read_without_trust(tmp_path):
    files = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    files.save_file(under("module.", a_unet()), tmp_path / "weights.safetensors")
    model = sx.load_model(
        tmp_path / "weights.safetensors",
        task="segmentation",
        network="monai.networks.nets:UNet",
        network_arguments=NETWORK,
    )
    assert same_weights(model.network, a_unet())
    facts = model_facts(model)
    assert (facts["format"], facts["name"]) == ("safetensors", "weights.safetensors")
    assert len(facts["sha256"]) == 64


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", struct.pack("<Q", 10**15), struct.pack("<Q", 2) + b"{}" + b"x" * 9],
)
def test_damaged_safetensors_are_refused(content, tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    message = r"'weights\.safetensors' (could not be read as safetensors|holds no state dict)"
    with pytest.raises(ModelError, match=message):
        sx.load_model(path, task="segmentation", network=a_unet())


def test_safetensors_that_point_outside_are_refused(tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with pytest.raises(ModelError, match="could not be read as safetensors"):
        sx.load_model(path, task="segmentation", network=a_unet())
