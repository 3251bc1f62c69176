"""LRP: every rule against its equation on explicit matrices, AttnLRP against its own, Captum.

The twin here passes R (not R / a) through one matrix a layer, in double precision, as the papers
write it; nothing of the code under test is called.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from captum.attr import LRP as CaptumLRP  # noqa: N811 - a class, not a constant
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule
from monai.networks.blocks import Swish
from monai.networks.nets import (
    UNETR,
    DenseNet121,
    DynUNet,
    SegResNet,
    SEResNet50,
    SwinUNETR,
    UNet,
    ViT,
)
from references import (
    BatchNormNet,
    Classifier,
    LinearNet,
    Raising,
    StridedNet,
    as_model,
    counted_runs,
    fused_gradient,
    plain_gradient,
    run_engine,
    score,
    state_of,
)
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import _get_current_function_mode_stack as active_modes

from SaliencyExplainLib.engine import Engine, RelevanceRule, Share
from SaliencyExplainLib.errors import MethodError, ModelError
from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.methods import make_method
from SaliencyExplainLib.methods.lrp import RULES
from SaliencyExplainLib.model import Windows
from SaliencyExplainLib.run import explain
from SaliencyExplainLib.target import Target

EVERYWHERE = Target(output=1, region="everywhere")
EVERY_RULE = pytest.mark.parametrize("rule", RULES)
EPSILON, GAMMA = 0.01, 0.25


def scalar(output: torch.Tensor) -> torch.Tensor:
    return score(output, 1, torch.ones(output.shape[2:]))


def ours(network: nn.Module, image, target: Target = EVERYWHERE, *, options=None, **parameters):
    method = make_method("lrp", parameters)
    return run_engine(as_model(network, **(options or {})), image, target, method.attribute)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


# ------------------------------------------------------------------------------------------------
# The twin


def shared_back(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, r: np.ndarray, rule: str
) -> np.ndarray:
    """R of a layer's inputs from R of its outputs; z_ij in a matrix (outputs, inputs)."""
    parts = w * x
    z = parts.sum(1) + b
    if rule == "epsilon":
        stable = z + EPSILON * np.sqrt((z**2).mean()) * np.where(z > 0, 1, -1)
        return parts.T @ (r / stable)
    # A unit at zero has no relevance to pass on.
    parts, b, r, z = parts[z != 0], b[z != 0], r[z != 0], z[z != 0]
    # A unit below zero is mirrored: its own side is the negative one.
    own = np.where((parts > 0) == (z > 0)[:, None], parts, 0)
    own_bias = np.where((b > 0) == (z > 0), b, 0)
    if rule == "epsilon_gamma":
        total = z + GAMMA * (own.sum(1) + own_bias)
        return ((parts + GAMMA * own).T @ (r / total)).astype(float)
    positive = own / (own.sum(1) + own_bias)[:, None]
    if rule == "epsilon_plus":
        return positive.T @ r
    others = parts - own
    below = others.sum(1) + (b - own_bias)
    some = np.abs(below) > 0
    negative = np.divide(others, below[:, None], out=np.zeros_like(others), where=some[:, None])
    return (positive * np.where(some, 2, 1)[:, None] - negative).T @ r


def twin(layers: list[nn.Module], x: torch.Tensor, start: np.ndarray, rule: str) -> np.ndarray:
    """Relevance of the input of a chain of layers and activations; `start` is R of the output."""
    kept = []
    with torch.no_grad():
        for layer in layers:
            kept.append(x)
            x = layer(x)
    r = start
    for layer, x in zip(reversed(layers), reversed(kept), strict=True):
        if not isinstance(layer, nn.Conv3d | nn.ConvTranspose3d | nn.Linear):
            continue
        zero = torch.zeros_like(x)
        b = layer(zero).detach().flatten().numpy()
        jacobian = torch.autograd.functional.jacobian(layer, zero)
        w = jacobian.reshape(len(b), -1).numpy()
        used = "epsilon" if isinstance(layer, nn.Linear) else rule
        r = shared_back(x.flatten().numpy(), w, b, r, used)
    return r


class Chain(nn.Module):
    """Convolutions down and up with an activation behind each, seeded."""

    def __init__(self, act=nn.ReLU, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.layers = nn.Sequential(
            nn.Conv3d(1, 3, 3, padding=1, bias=bias),
            act(),
            nn.Conv3d(3, 4, 2, stride=2, bias=bias),
            act(),
            nn.ConvTranspose3d(4, 3, 2, stride=2, bias=bias),
            act(),
            nn.Conv3d(3, 2, 1, bias=bias),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@EVERY_RULE
@pytest.mark.parametrize("bias", [True, False], ids=["biased", "unbiased"])
@pytest.mark.parametrize(
    "act",
    [nn.ReLU, lambda: nn.PReLU(init=0.3), nn.GELU, nn.Tanh],
    ids=["ReLU", "PReLU", "GELU", "Tanh"],
)
def test_every_rule_is_its_equation(act, bias, rule, a_volume):
    network, image = Chain(act, bias), a_volume(1, 4, 4, 4)
    exact = copy.deepcopy(network).double()
    x = image.as_tensor()[None].double()
    with torch.no_grad():
        start = exact(x)
    start[:, 0] = 0
    wanted = twin(list(exact.layers), x, (start / 64).flatten().numpy(), rule)
    found = ours(network, image, rule=rule, epsilon=EPSILON, gamma=GAMMA).maps
    assert relative(found.double(), torch.from_numpy(wanted).reshape(1, 4, 4, 4)) < 1e-4


@EVERY_RULE
def test_dense_layers_follow_the_epsilon_rule(rule, a_volume):
    torch.manual_seed(2)
    network = nn.Sequential(
        nn.Conv3d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(81, 7), nn.ReLU(), nn.Linear(7, 3)
    )
    image = a_volume(1, 4, 4, 4)
    exact, x = copy.deepcopy(network).double(), image.as_tensor()[None].double()
    start = np.zeros(3)
    start[1] = float(exact(x)[0, 1])
    wanted = twin(list(exact), x, start, rule)
    options = {"task": "classification"}
    found = ours(
        network, image, Target(output=1), options=options, rule=rule, epsilon=EPSILON, gamma=GAMMA
    )
    assert relative(found.maps.double(), torch.from_numpy(wanted).reshape(1, 4, 4, 4)) < 1e-4


def test_one_unit_by_hand():
    # z = 2 * 3 - 1 * 4 + 1 = 3; contributions 6, -4; the bias holds 1.
    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(2, 1, 1)
            self.conv.weight.data = torch.tensor([2.0, -1.0]).reshape(1, 2, 1, 1, 1)
            self.conv.bias.data = torch.tensor([1.0])

        def forward(self, x):
            return self.conv(x)

    image = make_image(torch.tensor([3.0, 4.0]).reshape(2, 1, 1, 1), np.eye(4))
    wanted = {
        "epsilon": [6.0, -4.0],
        "epsilon_plus": [3 * 6 / 7, 0.0],
        "epsilon_gamma": [3 * 12 / 10, -3 * 4 / 10],
        "alpha2_beta1": [2 * 3 * 6 / 7, -3.0],
    }
    target = Target(output=0, region="everywhere")
    for rule, values in wanted.items():
        found = ours(Unit(), image, target, rule=rule, epsilon=0.0, gamma=1.0)
        assert found.maps.flatten().tolist() == pytest.approx(values, rel=1e-6)
        assert found.details["score"] == 3
        assert found.details["relevance_sum"] == pytest.approx(sum(values))


def test_without_epsilon_the_epsilon_rule_is_input_times_gradient(a_volume):
    image = a_volume(1, 8, 8, 8)
    for network in (StridedNet(), BatchNormNet().eval(), Chain(nn.LeakyReLU)):
        wanted = image.as_tensor() * plain_gradient(network, image.as_tensor(), scalar)
        assert relative(ours(network, image, rule="epsilon", epsilon=0.0).maps, wanted) < 1e-6


@pytest.mark.parametrize(
    ("rule", "peer"),
    [
        ("epsilon", lambda: EpsilonRule(epsilon=1e-9)),
        ("epsilon_gamma", lambda: GammaRule(gamma=GAMMA)),
        ("epsilon_plus", lambda: Alpha1_Beta0_Rule()),
    ],
)
def test_on_convolutions_with_relu_the_map_is_captums(rule, peer, a_volume):
    torch.manual_seed(4)
    network = nn.Sequential(
        nn.Conv3d(1, 4, 3, bias=False),
        nn.ReLU(),
        nn.Conv3d(4, 4, 3, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 2, bias=False),
    )
    # Captum's rules of sign take inputs and outputs to be positive.
    image = make_image(a_volume(1, 6, 6, 6).as_tensor().abs(), np.eye(4))
    exact = copy.deepcopy(network).double()
    for layer in exact:
        if isinstance(layer, nn.Conv3d):
            layer.rule = peer()
        elif isinstance(layer, nn.Linear | nn.Flatten):
            layer.rule = EpsilonRule(epsilon=1e-9)
    x = image.as_tensor()[None].double().requires_grad_()
    wanted = CaptumLRP(exact).attribute(x, target=1)[0].detach()
    options = {"task": "classification"}
    found = ours(
        network, image, Target(output=1), options=options, rule=rule, epsilon=0.0, gamma=GAMMA
    )
    assert relative(found.maps.double(), wanted) < 1e-4


# ------------------------------------------------------------------------------------------------
# Conservation


class Mixed(nn.Module):
    """Everything that passes relevance on: residuals, joins, pooling, up and down; no bias."""

    def __init__(self, act=nn.ReLU) -> None:
        super().__init__()
        torch.manual_seed(12)
        self.one = nn.Conv3d(1, 4, 3, padding=1, bias=False)
        self.two = nn.Conv3d(4, 4, 3, padding=1, bias=False)
        self.up = nn.ConvTranspose3d(4, 4, 2, stride=2, bias=False)
        self.head = nn.Conv3d(12, 2, 1, bias=False)
        self.act = act()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.one(x))
        x = x + self.act(self.two(x))
        low = F.max_pool3d(x, 2) + F.avg_pool3d(x, 2)
        wide = F.interpolate(low, scale_factor=2, mode="trilinear")
        return self.head(torch.cat([x, self.act(self.up(low)), wide], 1))


@EVERY_RULE
@pytest.mark.parametrize("act", [nn.ReLU, nn.PReLU, nn.GELU, nn.SiLU, nn.Tanh])
def test_without_biases_the_map_sums_to_the_score(act, rule, a_volume):
    found = ours(Mixed(act), a_volume(1, 8, 8, 8), rule=rule, epsilon=0.0)
    size = float(found.maps.abs().sum())
    assert abs(found.details["relevance_sum"] - found.details["score"]) < 1e-5 * size
    assert found.warnings == ()


def test_epsilon_absorbs_relevance(a_volume):
    image = a_volume(1, 8, 8, 8)
    sizes = [
        float(ours(Mixed(), image, rule="epsilon", epsilon=eps).maps.abs().sum())
        for eps in (0.0, 0.1, 1.0)
    ]
    assert sizes[0] > 1.05 * sizes[1] > 1.1 * sizes[2]


def test_the_larger_gamma_the_closer_to_the_plus_rule(a_volume):
    image = a_volume(1, 8, 8, 8)
    plus = ours(Mixed(), image, epsilon=0.0).maps
    far = [
        relative(ours(Mixed(), image, rule="epsilon_gamma", gamma=g, epsilon=0.0).maps, plus)
        for g in (0.0, 1.0, 100.0)
    ]
    assert far[0] > far[1] > far[2]
    assert far[2] < 0.1


@EVERY_RULE
def test_units_below_zero_keep_the_relevance_bounded(rule, unet, a_volume):
    # zennit's rule divides by z+ near 0 here: 1e8 of relevance for a score of 479.
    found = ours(unet, a_volume(1, 16, 16, 16), rule=rule)
    assert torch.isfinite(found.maps).all()
    assert abs(found.details["relevance_sum"]) < 30 * abs(found.details["score"])


# ------------------------------------------------------------------------------------------------
# Batch norm, other norms, gates


def with_batch_norm(kind: str) -> tuple[nn.Sequential, nn.Sequential]:
    """Layer, batch norm (with negative scales), ReLU, head; and the same with merged weights."""
    torch.manual_seed(13)
    transposed = kind == "transposed"
    first = (
        nn.ConvTranspose3d(1, 4, 3, padding=1, bias=kind != "unbiased")
        if transposed
        else nn.Conv3d(1, 4, 3, padding=1, bias=kind != "unbiased")
    )
    norm = nn.BatchNorm3d(4)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    norm.weight.data = torch.tensor([1.5, -0.7, 0.4, -2.0])
    norm.bias.data.normal_()
    head = nn.Conv3d(4, 2, 1)
    merged = fuse_conv_bn_eval(copy.deepcopy(first).eval(), norm.eval(), transpose=transposed)
    return nn.Sequential(first, norm, nn.ReLU(), head), nn.Sequential(merged, nn.ReLU(), head)


@EVERY_RULE
@pytest.mark.parametrize("kind", ["biased", "unbiased", "transposed"])
def test_a_batch_norm_is_merged_into_the_layer_before_it(kind, rule, a_volume):
    network, merged = with_batch_norm(kind)
    image = a_volume(1, 6, 6, 6)
    found = ours(network, image, rule=rule, epsilon=EPSILON).maps
    wanted = ours(merged, image, rule=rule, epsilon=EPSILON).maps
    assert relative(found, wanted) < 1e-5


@EVERY_RULE
def test_a_layer_that_was_changed_before_its_batch_norm_is_not_merged(rule, a_volume):
    maps = []
    for change in (torch.relu_, torch.relu):
        network, _ = with_batch_norm("biased")
        network[0].register_forward_hook(lambda _m, _i, out, change=change: change(out))
        maps.append(ours(network, a_volume(1, 6, 6, 6), rule=rule, epsilon=EPSILON).maps)
    assert torch.equal(*maps)


class Constant(nn.Module):
    """A norm whose deviation is a constant: by its own steps, the deviation detached."""

    def __init__(self, axes: tuple[int, ...], groups: int | None = None) -> None:
        super().__init__()
        self.axes, self.groups = axes, groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = x.shape
        x = x if self.groups is None else x.reshape(1, self.groups, -1)
        x = x - x.mean(self.axes, keepdim=True)
        return (x / (x.square().mean(self.axes, keepdim=True) + 1e-5).sqrt().detach()).reshape(
            shape
        )


@pytest.mark.parametrize(
    ("norm", "constant"),
    [
        (nn.InstanceNorm3d(4), Constant((2, 3, 4))),
        (nn.GroupNorm(2, 4), Constant((2,), 2)),
        (nn.LayerNorm((4, 6, 6, 6)), Constant((1, 2, 3, 4))),
    ],
    ids=["instance", "group", "layer"],
)
def test_the_deviation_of_a_norm_is_a_constant(norm, constant, a_volume):
    torch.manual_seed(14)
    first, head, image = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 2, 3), a_volume(1, 6, 6, 6)
    maps = []
    for one in (norm, constant):
        network = nn.Sequential(first, one, nn.ReLU(), nn.ConstantPad3d(1, 0.0), head)
        maps.append(image.as_tensor() * plain_gradient(network, image.as_tensor(), scalar))
    network = nn.Sequential(first, norm, nn.ReLU(), nn.ConstantPad3d(1, 0.0), head)
    found = ours(network, image, rule="epsilon", epsilon=0.0).maps
    assert relative(found, maps[1]) < 1e-5
    assert relative(found, maps[0]) > 0.01


@EVERY_RULE
def test_a_gate_lets_all_relevance_through_to_its_signal(rule, a_volume):
    # x * sigmoid(x) is SiLU: the relevance of its output passes unchanged to x.
    image = a_volume(1, 6, 6, 6)
    wanted = ours(Mixed(nn.SiLU), image, rule=rule, epsilon=0.0).maps
    assert relative(ours(Mixed(Swish), image, rule=rule, epsilon=0.0).maps, wanted) < 1e-3


def test_a_gate_is_known_through_reshaping(a_volume):
    class Gated(nn.Module):
        def __init__(self, still: bool) -> None:
            super().__init__()
            torch.manual_seed(15)
            self.conv, self.still = nn.Conv3d(1, 2, 1), still

        def forward(self, x):
            x = self.conv(x)
            gate = x.mean((2, 3, 4)).sigmoid().view(1, 2, 1, 1, 1).expand_as(x)
            return x * (gate.detach() if self.still else gate)

    image = a_volume(1, 4, 4, 4)
    found, wanted = (ours(Gated(still), image, epsilon=0.0).maps for still in (False, True))
    assert torch.equal(found, wanted)


def test_each_factor_of_a_product_gets_half(a_volume):
    class Product(nn.Module):
        def forward(self, x):
            return torch.cat([x[:, :1], x[:, :1] * x[:, 1:]], 1)

    image = a_volume(2, 4, 4, 4)
    found = ours(Product(), image).maps
    x = image.as_tensor()
    wanted = (x[0] * x[1] / 2 / 64).expand(2, 4, 4, 4)
    assert torch.allclose(found, wanted, atol=1e-7)


def test_a_denominator_is_a_constant(a_volume):
    class Quotient(nn.Module):
        def forward(self, x):
            return torch.cat([x, x / (x.square().sum(1, keepdim=True) + 1)], 1)

    image = a_volume(1, 4, 4, 4)
    x = image.as_tensor()
    assert torch.allclose(ours(Quotient(), image).maps, x / (x**2 + 1) / 64, atol=1e-7)


# ------------------------------------------------------------------------------------------------
# AttnLRP


class Attending(nn.Module):
    """Self-attention of one head without biases, in one of its forms."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(16)
        self.form = form
        self.attend = nn.MultiheadAttention(4, 1, bias=False, batch_first=True)
        self.attend.in_proj_weight.data *= 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        if self.form == "module":
            found = self.attend(tokens, tokens, tokens, need_weights=False)[0]
        else:
            q, k, v = F.linear(tokens, self.attend.in_proj_weight).chunk(3, -1)
            if self.form == "fused":
                mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
            else:
                mixed = (q @ k.transpose(1, 2) / 2).softmax(-1) @ v
            found = self.attend.out_proj(mixed)
        return found.transpose(1, 2).reshape(x.shape)


def attn_lrp(network: Attending, x: np.ndarray, channel: int) -> np.ndarray:
    """Relevance of the tokens (n, 4) by the equations of arXiv:2402.05602, R by R."""
    w = network.attend.in_proj_weight.detach().double().numpy().reshape(3, 4, 4)
    out = network.attend.out_proj.weight.detach().double().numpy()
    q, k, v = (x @ one.T for one in w)
    t = q @ k.T / 2
    s = np.exp(t - t.max(1, keepdims=True))
    s /= s.sum(1, keepdims=True)
    mixed = s @ v
    r = np.zeros_like(mixed)
    r[:, :] = mixed * out[channel] / len(x)
    # Products, eq. 14 (uniform); softmax, eq. 11; each R_i = sum_j a_i b_j / (2 o) R.
    ratio = r / mixed
    r_v = v * (s.T @ ratio) / 2
    r_s = s * (ratio @ v.T) / 2
    r_t = t * (r_s - s * r_s.sum(1, keepdims=True))
    ratio = np.divide(r_t, t * 2, out=np.zeros_like(t), where=t != 0)
    r_q, r_k = q * (ratio @ k) / 2, k * (ratio.T @ q) / 2
    total = np.zeros_like(x)
    for one, value, relevance in zip(w, (q, k, v), (r_q, r_k, r_v), strict=True):
        total += x * ((relevance / value) @ one)
    return total


@pytest.mark.parametrize("form", ["steps", "fused", "module"])
def test_attention_follows_attn_lrp_in_every_form(form, a_volume):
    network, image = Attending(form), a_volume(4, 2, 2, 2)
    found = ours(network, image, rule="epsilon", epsilon=0.0)
    x = image.as_tensor().double().flatten(1).T.numpy()
    wanted = torch.from_numpy(attn_lrp(network, x, 1)).T.reshape(4, 2, 2, 2)
    assert relative(found.maps.double(), wanted) < 1e-4
    assert found.warnings == ()
    # The rules matter: the gradient gives another map.
    plain = image.as_tensor() * plain_gradient(network, image.as_tensor(), scalar)
    assert relative(plain.double(), wanted) > 0.1


def test_the_two_factors_of_an_attention_conserve_its_relevance(a_volume):
    class Scores(nn.Module):
        def forward(self, x):
            return (
                torch.einsum("bcijk,bdijk->bcdi", x[:, :2], x[:, 2:])[..., None, None]
                .sum(2)
                .expand(1, 2, *x.shape[2:])
            )

    found = ours(Scores(), a_volume(4, 2, 2, 2))
    assert found.details["relevance_sum"] == pytest.approx(found.details["score"], rel=1e-5)
    assert float(found.maps[:2].sum()) == pytest.approx(found.details["score"] / 2, rel=1e-5)


# ------------------------------------------------------------------------------------------------
# Networks, windows, tasks

NETWORKS = {
    "UNet": (lambda: UNet(3, 1, 3, (8, 16, 32), (2, 2), num_res_units=2), 16, "segmentation"),
    "SegResNet": (
        lambda: SegResNet(init_filters=8, in_channels=1, out_channels=3),
        16,
        "segmentation",
    ),
    "DynUNet": (
        lambda: DynUNet(3, 1, 3, [3] * 3, [1, 2, 2], [2, 2], filters=[8, 16, 16], res_block=True),
        16,
        "segmentation",
    ),
    "UNETR": (lambda: UNETR(1, 3, (32, 32, 32), 8, 32, 64, 4), 32, "segmentation"),
    "DenseNet": (lambda: DenseNet121(3, 1, 3), 32, "classification"),
    "SEResNet": (lambda: SEResNet50(spatial_dims=3, in_channels=1), 32, "classification"),
    "ViT": (
        lambda: ViT(1, (16,) * 3, (8,) * 3, 32, 64, 2, 4, classification=True, num_classes=3),
        16,
        "classification",
    ),
    "SwinUNETR": (
        lambda: SwinUNETR(in_channels=1, out_channels=3, feature_size=12, depths=(1, 1, 1, 1)),
        64,
        "segmentation",
    ),
}
EACH = [pytest.param(n, marks=[pytest.mark.slow] * (n == "SwinUNETR")) for n in NETWORKS]


@EVERY_RULE
@pytest.mark.parametrize("name", EACH)
def test_networks_of_every_kind_get_a_finite_map_without_warnings(name, rule, a_volume):
    torch.manual_seed(0)
    make, size, task = NETWORKS[name]
    target = EVERYWHERE if task == "segmentation" else Target(output=1)
    found = ours(make(), a_volume(1, size, size, size), target, options={"task": task}, rule=rule)
    assert torch.isfinite(found.maps).all()
    assert found.maps.any()
    assert found.warnings == ()


def test_functions_in_place_pass_relevance_as_the_others_do(a_volume):
    class Writing(nn.Module):
        def __init__(self, in_place: bool) -> None:
            super().__init__()
            torch.manual_seed(17)
            self.one, self.two = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 2, 1)
            self.in_place = in_place

        def forward(self, x):
            x = self.one(x)
            if self.in_place:
                F.silu(x, inplace=True)
                x = x.mul_(x.flip(1))
                x += 1
            else:
                x = F.silu(x)
                x = x * x.flip(1) + 1
            return self.two(x)

    image = a_volume(1, 6, 6, 6)
    maps = [ours(Writing(one), image).maps for one in (True, False)]
    assert torch.equal(*maps)


WINDOWS = Windows((8, 8, 8), (0.5,) * 3, "gaussian")


def test_through_windows_input_times_gradient_comes_back_exactly(a_volume):
    image, network = a_volume(1, 12, 8, 8), BatchNormNet().eval()
    options = {"inferer": WINDOWS}
    wanted = image.as_tensor() * fused_gradient(as_model(network, **options), image, scalar)
    found = ours(network, image, options=options, rule="epsilon", epsilon=0.0)
    assert relative(found.maps, wanted) < 1e-5


@EVERY_RULE
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_through_windows_the_map_is_the_sum_of_each_windows_relevance(mode, rule, a_volume):
    network, image = Chain(lambda: nn.PReLU(init=0.3)), a_volume(1, 12, 8, 8)
    windows = Windows((8, 8, 8), (0.5,) * 3, mode)
    found = ours(network, image, options={"inferer": windows}, rule=rule, epsilon=EPSILON)
    from monai.data.utils import compute_importance_map

    importance = compute_importance_map((8, 8, 8), mode, 0.125, dtype=torch.float32)
    total, wanted = torch.zeros(12, 8, 8), torch.zeros(1, 12, 8, 8)
    for start in (0, 4):
        total[start : start + 8] += importance
    exact = copy.deepcopy(network).double()
    for start in (0, 4):
        x = image.as_tensor()[None, :, start : start + 8].double()
        weight = (importance / total[start : start + 8] / total.numel()).double()
        with torch.no_grad():
            r = exact(x) * weight
        r[:, 0] = 0
        part = twin(list(exact.layers), x, r.flatten().numpy(), rule)
        wanted[:, start : start + 8] += torch.from_numpy(part).reshape(1, 8, 8, 8)
    assert relative(found.maps, wanted) < 2e-4


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_one_number_a_volume_and_several_channels(task, a_volume):
    found = ours(
        Classifier(channels=3), a_volume(3, 8, 8, 8), Target(output=2), options={"task": task}
    )
    assert found.maps.shape == (3, 8, 8, 8)
    assert torch.isfinite(found.maps).all()


def test_a_contrast_is_the_difference_of_two_maps_of_the_epsilon_rule(a_volume):
    image, settings = a_volume(1, 6, 6, 6), {"rule": "epsilon", "epsilon": EPSILON}
    contrast = Target(output=1, region="everywhere", contrast=0, contrast_weight=0.5)
    one, other = (
        ours(Chain(), image, Target(output=c, region="everywhere"), **settings).maps for c in (1, 0)
    )
    assert torch.allclose(
        ours(Chain(), image, contrast, **settings).maps, one - other / 2, atol=1e-6
    )


@pytest.mark.parametrize("windows", [False, True])
def test_one_pass_is_enough(windows, a_volume):
    network, method = StridedNet(), make_method("lrp")
    options = {"inferer": Windows((8, 8, 8), (0.5,) * 3)} if windows else {}
    engine = Engine(
        as_model(network, **options), a_volume(1, 12 if windows else 8, 8, 8), EVERYWHERE
    )
    with counted_runs(network) as runs, engine.running():
        method.attribute(engine)
    sweeps = method.window_passes(linear=True) if windows else method.passes()
    assert len(runs) == engine.progress.done == sweeps * (2 if windows else 1)


# ------------------------------------------------------------------------------------------------
# What is refused, warned of, left behind


@pytest.mark.parametrize("kind", ["probability", "soft_volume"])
def test_a_score_that_is_no_sum_over_outputs_is_told(kind, a_volume):
    target = Target(output=1, region="everywhere", score=kind)
    found = ours(Chain(), a_volume(1, 6, 6, 6), target)
    assert any("to first order" in one and "'logit'" in one for one in found.warnings)


@pytest.mark.parametrize("name", ["exp", "reciprocal", "pow", "log_softmax"])
def test_a_function_without_a_rule_is_named(name, a_volume):
    functions = {
        "exp": torch.exp,
        "reciprocal": torch.reciprocal,
        "pow": lambda x: (x.abs() + 1) ** 0.5,
        "log_softmax": lambda x: F.log_softmax(x, 1),
    }

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(1, 2, 1)

        def forward(self, x):
            return functions[name](self.conv(x))

    found = ours(Odd(), a_volume(1, 6, 6, 6))
    assert len(found.warnings) == 1
    assert f"no rule for {name}: the plain derivative was used there" in found.warnings[0]


def test_a_torchscript_network_is_refused(a_volume):
    model = as_model(torch.jit.script(LinearNet()))
    with pytest.raises(MethodError, match=r"Layer-wise.* which TorchScript does not allow"):
        explain(model, a_volume(1, 8, 8, 8), EVERYWHERE, "lrp")


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails, a_volume):
    network = nn.Sequential(BatchNormNet(), Raising(1) if fails else nn.Identity()).eval()
    before = state_of(network)
    if fails:
        with pytest.raises(ModelError, match="this layer is broken"):
            ours(network, a_volume(1, 8, 8, 8))
    else:
        ours(network, a_volume(1, 8, 8, 8))
    assert state_of(network) == before
    assert active_modes() == []


def test_the_explanation_holds_what_arrived(a_volume):
    explanation = explain(as_model(Chain()), a_volume(1, 8, 8, 8), EVERYWHERE, "lrp")
    assert explanation.details["score"] == explanation.value
    summed = float(explanation.network_maps.as_tensor().double().sum())
    assert explanation.details["relevance_sum"] == pytest.approx(summed, rel=1e-4)


def test_a_product_of_three_factors_is_told(a_volume):
    network = nn.Conv3d(3, 2, 1)

    class Triple(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = network

        def forward(self, x):
            a, b, c = self.conv(x), self.conv(x + 1), self.conv(x + 2)
            return torch.einsum("bcijk,bcijk,bcijk->bcijk", a, b, c)

    found = ours(Triple(), a_volume(3, 4, 4, 4))
    assert any("einsum of 3 factors" in one for one in found.warnings)


def test_the_shares_of_a_unit_follow_its_own_sign():
    z, own = torch.tensor([3.0, -3.0, 0.0]), torch.tensor([4.0, -5.0, 0.0])
    mine, others = Share(alpha=2.0).factors(z, own)
    assert torch.allclose(mine, torch.tensor([2 * 3 / 4, 2 * 3 / 5, 0.0]))
    assert torch.allclose(others, torch.tensor([-1 * 3 / -1, -1 * -3 / 2, 0.0]))
    assert RelevanceRule(Share(), Share()).unknown == {}
