"""Which device a network runs on."""

from __future__ import annotations

import pytest
import torch

import SaliencyExplainLib as sx
from SaliencyExplainLib.errors import ModelError
from SaliencyExplainLib.model import device as devices
from SaliencyExplainLib.model import load


@pytest.fixture
def a_computer(monkeypatch):
    """Pretend to have GPUs."""

    def has(*, cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return has


@pytest.mark.parametrize(
    ("gpus", "chosen"),
    [
        ({}, "cpu"),
        ({"mps": True}, "mps"),
        ({"cuda": 2}, "cuda"),
        ({"cuda": 1, "mps": True}, "cuda"),
    ],
)
def test_the_gpu_there_is_is_chosen_automatically(a_computer, gpus, chosen):
    a_computer(**gpus)
    assert devices.choose_device() == torch.device(chosen)


def test_a_device_that_is_named_is_taken(a_computer):
    a_computer(cuda=2)
    assert devices.choose_device("cpu") == torch.device("cpu")
    assert devices.choose_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize("wanted", ["cuda", "cuda:0", "mps", "xpu", "gpu", "cuda:x", 3.5])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(a_computer, wanted):
    a_computer()
    with pytest.raises(ModelError, match="is not there: PyTorch finds cpu on this computer"):
        devices.choose_device(wanted)


def test_a_gpu_beyond_the_last_is_refused(a_computer):
    a_computer(cuda=2)
    with pytest.raises(
        ModelError, match=r"no cuda:2: this computer has 2 CUDA GPUs, counted from 0"
    ):
        devices.choose_device("cuda:2")


def test_a_file_goes_to_the_gpu_and_a_network_stays_where_it_is(monkeypatch, tmp_path):
    asked = []

    def note(wanted):
        asked.append(wanted)
        return torch.device("cpu")

    monkeypatch.setattr(load, "choose_device", note)
    network = torch.nn.Conv3d(1, 2, 1)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    sx.load_model(network, task="segmentation")
    assert asked == []
    fill = {"task": "segmentation", "network": torch.nn.Conv3d(1, 2, 1)}
    sx.load_model(tmp_path / "weights.pt", **fill)
    sx.load_model(tmp_path / "weights.pt", device="cpu", **fill)
    sx.load_model(network, task="segmentation", device="mps")
    assert asked == ["auto", "cpu", "mps"]
