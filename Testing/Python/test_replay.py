"""Running a network again from a layer on gives what the whole network gives."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import DenseNet121, DynUNet, SegResNet, UNet
from torch import nn

from SaliencyExplainLib.engine import Replay
from SaliencyExplainLib.engine.engine import main_output
from SaliencyExplainLib.errors import MethodError
from SaliencyExplainLib.model import trace_layers


class Reused(nn.Module):
    """One block used three times, with functional code between."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1), nn.ReLU(inplace=True))
        self.last = nn.Conv3d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = self.first(x)
        x = self.block(start)
        x = self.block(x) + start.tanh()
        return self.last(torch.cat([self.block(x)[:, :2], x[:, 2:]], 1))


class SideEffect(nn.Module):
    """Relies on what an in-place module did to its input: a record cannot answer for that."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 4, 3, padding=1)
        self.rectifier = nn.ReLU(inplace=True)
        self.second = nn.Conv3d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        self.rectifier(x)
        return self.second(x) + x


NETWORKS = {
    "UNet": lambda: UNet(3, 1, 3, (4, 8, 16), (2, 2), num_res_units=2),
    "SegResNet with in-place additions": lambda: SegResNet(init_filters=8, out_channels=2),
    "DynUNet": lambda: DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 16]),
    "DenseNet121": lambda: DenseNet121(spatial_dims=3, in_channels=1, out_channels=3),
    "a block used three times": Reused,
}


@pytest.fixture(params=list(NETWORKS), ids=str)
def a_network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[request.param]().eval()


def changed_by_hook(
    network: nn.Module, x: torch.Tensor, layer: str, features: torch.Tensor
) -> torch.Tensor:
    """The whole network with a layer's last output exchanged: the slow twin."""
    module, calls = network.get_submodule(layer), []
    count = module.register_forward_hook(lambda *_: calls.append(1))
    network(x)
    count.remove()
    left = [len(calls)]

    def exchange(_module: nn.Module, _inputs: object, _output: object) -> torch.Tensor | None:
        left[0] -= 1
        return features.clone() if left[0] == 0 else None

    hook = module.register_forward_hook(exchange)
    try:
        return main_output(network(x))
    finally:
        hook.remove()


@torch.no_grad()
def test_changed_features_give_the_output_of_the_whole_network_bit_for_bit(
    a_network: nn.Module,
) -> None:
    x = torch.randn(1, 1, 32, 32, 32)
    layers = [layer.name for layer in trace_layers(a_network, x.shape[1:])]
    mattered = 0
    for name in layers[:: max(1, len(layers) // 8)]:
        replay = Replay(a_network, x, name, main_output)
        features = replay.features.clone()
        features[:, 0] = 0
        assert replay.exact, name
        expected = changed_by_hook(a_network, x, name, features)
        assert torch.equal(replay.run(features), expected), name
        mattered += not torch.equal(expected, replay.output)
    assert mattered >= 3


@torch.no_grad()
def test_a_batch_of_changes_gives_each_its_own_output(a_network: nn.Module) -> None:
    x = torch.randn(1, 1, 32, 32, 32)
    layers = [layer.name for layer in trace_layers(a_network, x.shape[1:])]
    replay = Replay(a_network, x, layers[len(layers) // 2], main_output)
    changes = torch.cat([replay.features, 0.5 * replay.features])
    outputs = replay.run(changes)
    torch.testing.assert_close(outputs[:1], replay.output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs[1:], replay.run(changes[1:]), rtol=1e-4, atol=1e-5)


def test_the_network_is_left_as_it_was(a_network: nn.Module) -> None:
    x = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        before = main_output(a_network(x))
        name = trace_layers(a_network, x.shape[1:])[3].name
        replay = Replay(a_network, x, name, main_output)
        with pytest.raises((RuntimeError, ValueError)):
            replay.run(torch.zeros(1, 99, 2, 2, 2))
        assert torch.equal(main_output(a_network(x)), before)
    for module in a_network.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@torch.no_grad()
def test_only_what_follows_the_layer_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = UNet(3, 1, 3, (4, 8, 16), (2, 2), num_res_units=2).eval()
    last = trace_layers(network, (1, 32, 32, 32))[-6].name
    replay = Replay(network, torch.randn(1, 1, 32, 32, 32), last, main_output)
    original, computed = nn.Conv3d._conv_forward, []
    monkeypatch.setattr(
        nn.Conv3d, "_conv_forward", lambda self, *a: computed.append(self) or original(self, *a)
    )
    replay.run(replay.features)
    total = sum(isinstance(module, nn.Conv3d) for module in network.modules())
    assert len(computed) < total / 3


@torch.no_grad()
def test_code_that_relies_on_side_effects_falls_back_to_the_whole_network() -> None:
    torch.manual_seed(0)
    network = SideEffect().eval()
    x = torch.randn(1, 1, 8, 8, 8)
    replay = Replay(network, x, "second", main_output)
    assert not replay.exact
    features = 0.5 * replay.features
    assert torch.equal(replay.run(features), changed_by_hook(network, x, "second", features))


def test_gradients_flow_through_a_replay() -> None:
    torch.manual_seed(0)
    network = Reused().eval().requires_grad_(False).double()
    x = torch.randn(1, 1, 8, 8, 8).double()
    replay = Replay(network, x, "first", main_output)
    leaf = replay.features.clone().requires_grad_()
    (slope,) = torch.autograd.grad(replay.run(leaf).sum(), leaf)
    step = 1e-7 * torch.randn_like(leaf)
    with torch.no_grad():
        measured = replay.run(leaf + step).sum() - replay.run(leaf - step).sum()
    assert float((2 * step * slope).sum()) == pytest.approx(float(measured), rel=1e-4)


def test_torchscript_is_refused() -> None:
    scripted = torch.jit.trace(nn.Conv3d(1, 1, 1), torch.zeros(1, 1, 4, 4, 4))
    with pytest.raises(MethodError, match="TorchScript"):
        Replay(scripted, torch.zeros(1, 1, 4, 4, 4), "conv", main_output)
