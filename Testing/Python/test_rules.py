"""DeconvNet and guided backpropagation: every kind of rectifier, however it is written.

The reference is a slow twin in which each activation is replaced by an autograd function of its
own (`references.with_rule`); on ReLU networks Captum too. Where Captum and MONAI silently give the
plain gradient, that is written down here.
"""

from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from captum.attr import Deconvolution
from captum.attr import GuidedBackprop as CaptumGuided
from monai.networks.blocks import Swish
from monai.networks.nets import DenseNet121, UNet
from monai.visualize import GuidedBackpropGrad
from references import (
    BatchNormNet,
    LinearNet,
    ScalarOf,
    as_model,
    fused_gradient,
    plain_gradient,
    run_engine,
    score,
    with_rule,
)
from torch import nn

from SaliencyExplainLib.engine import RectifierRule
from SaliencyExplainLib.methods import make_method
from SaliencyExplainLib.model import Windows
from SaliencyExplainLib.run import explain
from SaliencyExplainLib.target import Target

EVERYWHERE = Target(output=1, region="everywhere")
NAME = {True: "guided_backprop", False: "deconvnet"}
BOTH = pytest.mark.parametrize("guided", [True, False], ids=["guided", "deconvnet"])


def scalar(output: torch.Tensor) -> torch.Tensor:
    return score(output, 1, torch.ones(output.shape[2:]))


def ours(network: nn.Module, image, guided: bool, target: Target = EVERYWHERE, **options):
    model = as_model(network, **options)
    return run_engine(model, image, target, make_method(NAME[guided]).attribute)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


ACTIVATIONS = {
    "ReLU": nn.ReLU,
    "in-place ReLU": lambda: nn.ReLU(inplace=True),
    "LeakyReLU": lambda: nn.LeakyReLU(0.2),
    "in-place LeakyReLU": lambda: nn.LeakyReLU(0.2, inplace=True),
    "PReLU, one slope": nn.PReLU,
    "PReLU, one slope a channel": lambda: nn.PReLU(6, init=0.4),
    "RReLU": nn.RReLU,
    "ELU": nn.ELU,
    "in-place ELU": lambda: nn.ELU(inplace=True),
    "SELU": nn.SELU,
    "CELU": nn.CELU,
    "GELU": nn.GELU,
    "GELU by tanh": lambda: nn.GELU("tanh"),
    "SiLU": nn.SiLU,
    "Mish": nn.Mish,
    "Hardswish": nn.Hardswish,
    "Softplus": nn.Softplus,
    "ReLU6": nn.ReLU6,
}


@BOTH
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_rectifier_follows_the_rule(name, guided, a_volume):
    network = BatchNormNet(act=ACTIVATIONS[name]).eval()
    image = a_volume(1, 8, 8, 8)
    wanted = plain_gradient(with_rule(network, guided=guided), image.as_tensor(), scalar)
    assert relative(ours(network, image, guided).maps, wanted) < 1e-6
    # The rule matters here: without it the map is another one.
    assert relative(plain_gradient(network, image.as_tensor(), scalar), wanted) > 0.05


class Written(nn.Module):
    """The same two layers, with the rectifiers written as a function."""

    def __init__(self, first, second) -> None:
        super().__init__()
        self.net = BatchNormNet(act=nn.Identity)
        self.first, self.second = first, second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        body = self.net.body
        x = self.first(body[1](body[0](x)))
        return self.net.head(self.second(body[4](body[3](x))))


@BOTH
@pytest.mark.parametrize(
    ("first", "second", "act"),
    [
        (F.relu, torch.relu_, nn.ReLU),
        (torch.relu, lambda x: x.relu(), nn.ReLU),
        (lambda x: F.relu(x, inplace=True), lambda x: x.relu_(), nn.ReLU),
        (lambda x: F.leaky_relu(x, 0.01), lambda x: F.leaky_relu_(x, 0.01), nn.LeakyReLU),
        (lambda x: F.prelu(x, torch.tensor([0.25])), nn.PReLU(), nn.PReLU),
        (F.gelu, F.gelu, nn.GELU),
        (F.silu, lambda x: F.silu(x, inplace=True), nn.SiLU),
        (lambda x: F.threshold(x, 0, 0), F.relu, nn.ReLU),
    ],
    ids=["relu", "torch.relu", "in place", "leaky", "prelu", "gelu", "silu", "threshold"],
)
def test_rectifiers_written_as_functions_follow_the_rule_too(first, second, act, guided, a_volume):
    image = a_volume(1, 8, 8, 8)
    wanted = plain_gradient(
        with_rule(BatchNormNet(act=act).eval(), guided=guided), image.as_tensor(), scalar
    )
    assert relative(ours(Written(first, second), image, guided).maps, wanted) < 1e-6


class Reusing(nn.Module):
    """One ReLU module, used three times at signals of different sign."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.convs = nn.ModuleList([nn.Conv3d(n, 4, 3, padding=1) for n in (1, 4, 4)])
        self.act = nn.ReLU()
        self.head = nn.Conv3d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            x = self.act(conv(x))
        return self.head(x)


@BOTH
def test_one_module_used_three_times_follows_the_rule_at_each_call(guided, a_volume):
    image = a_volume(1, 8, 8, 8)
    wanted = plain_gradient(with_rule(Reusing(), guided=guided), image.as_tensor(), scalar)
    assert relative(ours(Reusing(), image, guided).maps, wanted) < 1e-6


@BOTH
def test_monais_default_unet_follows_the_rule(guided, unet, a_volume):
    image = a_volume(1, 16, 16, 16)
    wanted = plain_gradient(with_rule(unet, guided=guided), image.as_tensor(), scalar)
    # 1e-5: instance norms amplify the rounding of sums in another order.
    assert relative(ours(unet, image, guided).maps, wanted) < 1e-5


@BOTH
def test_the_rule_passes_through_sliding_windows(guided, a_volume):
    windows = Windows((8, 8, 8), (0.5,) * 3, "gaussian")
    image = a_volume(1, 12, 12, 8)
    network = BatchNormNet().eval()
    wanted = fused_gradient(
        as_model(with_rule(network, guided=guided), inferer=windows), image, scalar
    )
    assert relative(ours(network, image, guided, inferer=windows).maps, wanted) < 1e-5


def test_the_rule_is_that_of_springenberg_2015_figure_1():
    forward = torch.tensor([-1.0, 2.0, 3.0, -4.0], requires_grad=True)
    upstream = torch.tensor([5.0, -6.0, 7.0, -8.0])
    for guided, wanted in ((True, [0, 0, 7, 0]), (False, [5, 0, 7, 0])):
        with RectifierRule(guided=guided):
            (found,) = torch.autograd.grad(F.relu(forward), forward, upstream)
        assert found.tolist() == wanted
    (found,) = torch.autograd.grad(F.relu(forward), forward, upstream)
    assert found.tolist() == [0, -6, 7, 0]


# ------------------------------------------------------------------------------------------------
# Peers


@BOTH
def test_on_monais_densenet121_the_map_is_captums(guided, a_volume):
    torch.manual_seed(0)
    network = DenseNet121(3, 1, 3).eval()
    image = a_volume(1, 32, 32, 32)
    peer = (CaptumGuided if guided else Deconvolution)(network)
    wanted = peer.attribute(image.as_tensor()[None].clone().requires_grad_(), target=1)[0]
    found = ours(network, image, guided, Target(output=1), task="classification").maps
    assert relative(found, wanted) < 1e-6


@BOTH
def test_on_a_unet_with_relu_and_batch_norm_the_map_is_captums(guided, a_volume):
    torch.manual_seed(0)
    network = UNet(3, 1, 2, (4, 8, 16), (2, 2), act="RELU", norm="BATCH", num_res_units=1).eval()
    image = a_volume(1, 16, 16, 16)
    peer = (CaptumGuided if guided else Deconvolution)(ScalarOf(network, scalar))
    wanted = peer.attribute(image.as_tensor()[None].clone().requires_grad_())[0]
    assert relative(ours(network, image, guided).maps, wanted) < 1e-6


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_captum_and_monai_silently_give_the_plain_gradient_on_monais_unet_and_we_do_not(
    unet, a_volume
):
    image = a_volume(1, 16, 16, 16)
    x = image.as_tensor()[None]
    plain = plain_gradient(unet, image.as_tensor(), scalar)
    captum = CaptumGuided(ScalarOf(unet, scalar)).attribute(x.clone().requires_grad_())[0]
    assert relative(captum, plain) == 0
    # MONAI sums the logits of a class instead of averaging them.
    monai = GuidedBackpropGrad(unet)(x.clone(), index=1)[0] / x[0].numel()
    assert relative(torch.as_tensor(monai), plain) < 1e-6
    assert relative(ours(unet, image, guided=True).maps, plain) > 0.5


# ------------------------------------------------------------------------------------------------
# TorchScript


class Residual(nn.Module):
    """A LeakyReLU behind an addition: a block that TorchScript differentiates by itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.one = nn.Conv3d(1, 4, 3, padding=1)
        self.two = nn.Conv3d(4, 4, 3, padding=1)
        self.act = nn.LeakyReLU(0.1)
        self.head = nn.Conv3d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.one(x))
        y = self.act(self.two(y) + y) * 0.5 + 0.1
        return self.head(y)


def scripted(network: nn.Module) -> nn.Module:
    """Script a network and pass it through a file, so that nothing of it was run before."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(network.eval()), file)
    file.seek(0)
    return torch.jit.load(file)


FORMS = {
    "scripted": scripted,
    "traced": lambda network: torch.jit.trace(network.eval(), torch.zeros(1, 1, 8, 8, 8)),
    "frozen": lambda network: torch.jit.freeze(scripted(network)),
    "scripted inside a module": lambda network: nn.Sequential(scripted(network)),
    "exported": lambda network: torch.export.export(
        network.eval(), (torch.zeros(1, 1, 8, 8, 8),)
    ).module(),
}


@BOTH
@pytest.mark.parametrize("form", FORMS)
def test_a_compiled_network_follows_the_rule_in_every_run(form, guided, a_volume):
    image = a_volume(1, 8, 8, 8)
    wanted = ours(Residual(), image, guided).maps
    network = FORMS[form](Residual())
    for _ in range(3):
        found = run_engine(_model(network), image, EVERYWHERE, make_method(NAME[guided]).attribute)
        assert relative(found.maps, wanted) < 1e-6
        # Plain gradients in between let TorchScript compile what it likes.
        for _ in range(3):
            run_engine(_model(network), image, EVERYWHERE, lambda e: e.gradient())


def _model(network: nn.Module):
    from SaliencyExplainLib.model import Model

    return Model(network, "segmentation")


def test_torchscript_hides_rectifiers_from_the_rule_when_it_is_left_alone(a_volume):
    # Why `run_as_written` exists; when this fails, torch has changed and it may go.
    network, x = scripted(Residual()), a_volume(1, 8, 8, 8).as_tensor()[None]
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    seen = []
    for _ in range(3):
        leaf = x.clone().requires_grad_()
        with RectifierRule(guided=True) as rule:
            torch.autograd.grad(scalar(network(leaf)), leaf)
        seen.append(sum(rule.seen.values()))
    assert seen[0] == 2
    assert seen[-1] < 2


def test_torchscript_is_as_fast_as_before_afterwards(a_volume):
    before = torch._C._get_graph_executor_optimize()
    ours(scripted(Residual()), a_volume(1, 8, 8, 8), guided=True)
    assert torch._C._get_graph_executor_optimize() is before


# ------------------------------------------------------------------------------------------------
# Warnings


@BOTH
def test_a_network_without_rectifiers_is_told_that_this_is_the_plain_gradient(guided, a_volume):
    image = a_volume(1, 8, 8, 8)
    found = ours(LinearNet(), image, guided)
    assert torch.equal(found.maps, plain_gradient(LinearNet(), image.as_tensor(), scalar))
    assert len(found.warnings) == 1
    assert "met no rectifier" in found.warnings[0]
    assert "plain gradient" in found.warnings[0]


def test_a_rectifier_made_of_other_operations_is_told_as_none(a_volume):
    # MONAI's Swish multiplies by a sigmoid: nothing tells it from a gate.
    found = ours(BatchNormNet(act=Swish), a_volume(1, 8, 8, 8), guided=True)
    assert "met no rectifier" in found.warnings[0]


@BOTH
@pytest.mark.parametrize("name", ["ELU", "GELU", "SiLU", "ReLU6"])
def test_a_smooth_rectifier_is_named_in_a_warning(name, guided, a_volume):
    found = ours(BatchNormNet(act=ACTIVATIONS[name]), a_volume(1, 8, 8, 8), guided)
    assert len(found.warnings) == 1
    assert f"for {name} the rule of the positive branch" in found.warnings[0]


@BOTH
@pytest.mark.parametrize("name", ["ReLU", "LeakyReLU", "PReLU, one slope"])
def test_a_rectifier_with_a_kink_needs_no_warning(name, guided, a_volume):
    network = BatchNormNet(act=ACTIVATIONS[name])
    assert ours(network, a_volume(1, 8, 8, 8), guided).warnings == ()


def test_the_warnings_reach_the_explanation(a_volume):
    explanation = explain(
        as_model(LinearNet()), a_volume(1, 8, 8, 8), EVERYWHERE, "guided_backprop"
    )
    assert any("met no rectifier" in warning for warning in explanation.warnings)


def test_the_rule_ends_with_its_block(a_volume):
    network, image = BatchNormNet().eval(), a_volume(1, 8, 8, 8)
    plain = plain_gradient(network, image.as_tensor(), scalar)
    ours(network, image, guided=True)
    assert torch.equal(plain_gradient(network, image.as_tensor(), scalar), plain)
