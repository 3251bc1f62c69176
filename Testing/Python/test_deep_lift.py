"""DeepLift: multipliers for every function, complete through norms, attention and windows.

References: Captum where it has rules; networks that write a norm or a softmax by hand, in steps
that have rules of their own; analytic answers; the plain gradient as the limit of a close baseline.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from captum.attr import DeepLift as CaptumDeepLift
from monai.networks.blocks import Swish
from monai.networks.nets import (
    UNETR,
    AttentionUnet,
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
    ScalarOf,
    StridedNet,
    as_model,
    counted_runs,
    fused,
    run_engine,
    score,
    state_of,
)
from torch import nn
from torch.overrides import _get_current_function_mode_stack as active_modes
from torch.utils.checkpoint import checkpoint

from SaliencyExplainLib.engine import BaselinePass, Engine
from SaliencyExplainLib.errors import MethodError, ModelError
from SaliencyExplainLib.image import make_image, read_image
from SaliencyExplainLib.methods import make_method
from SaliencyExplainLib.methods.baselines import make_baseline
from SaliencyExplainLib.model import Windows
from SaliencyExplainLib.run import explain
from SaliencyExplainLib.target import Target

EVERYWHERE = Target(output=1, region="everywhere")
#: Behind a norm the mean over all voxels is a constant.
CORNER = Target(output=1, region="roi", roi_ras_mm=((0, 0, 0), (3, 2, 2)))


def scalar(output: torch.Tensor) -> torch.Tensor:
    return score(output, 1, torch.ones(output.shape[2:]))


def ours(network: nn.Module, image, target: Target = EVERYWHERE, *, options=None, **parameters):
    method = make_method("deep_lift", parameters)
    return run_engine(as_model(network, **(options or {})), image, target, method.attribute)


def captums(network: nn.Module, image, baseline: torch.Tensor, value=scalar) -> torch.Tensor:
    # In double precision: Captum divides by differences as small as 1e-10.
    peer = CaptumDeepLift(ScalarOf(copy.deepcopy(network).double(), value))
    x = image.as_tensor()[None].double().requires_grad_()
    return peer.attribute(x, baseline.double())[0]


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def shared_out(found) -> bool:
    """Whether the map sums to the change, up to the rounding of what is shared out."""
    missing = found.completeness_error * abs(float(found.maps.double().sum()))
    return missing < 2e-5 * float(found.maps.abs().sum())


class Written(nn.Module):
    """Two convolutions with a function between and behind them, and a head."""

    def __init__(self, function, channels: int = 4, **modules: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.one = nn.Conv3d(1, channels, 3, padding=1)
        self.two = nn.Conv3d(channels, channels, 3, padding=1)
        self.head = nn.Conv3d(channels, 2, 1)
        self.function = function
        self.more = nn.ModuleDict(modules)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.function(self.one(x))
        return self.head(self.function(self.two(x)))


# ------------------------------------------------------------------------------------------------
# Captum


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("baseline", ["zero", "minimum", "blurred"])
@pytest.mark.parametrize(
    "act",
    [nn.ReLU, nn.ELU, lambda: nn.LeakyReLU(0.2), nn.Sigmoid, nn.Tanh, nn.Softplus],
    ids=["ReLU", "ELU", "LeakyReLU", "Sigmoid", "Tanh", "Softplus"],
)
def test_where_captum_has_rules_the_map_is_captums(act, baseline, a_volume):
    network, image = BatchNormNet(act=act).eval(), a_volume(1, 8, 8, 8)
    found = ours(network, image, baseline=baseline, blur_mm=2.0)
    reference = run_engine(
        as_model(network), image, EVERYWHERE, lambda e: make_baseline(baseline, e, 2.0)
    )
    assert relative(found.maps, captums(network, image, reference)) < 3e-5
    assert shared_out(found)


class Pooled(nn.Module):
    """A classifier with max pooling and dense layers."""

    def __init__(self, act=nn.Identity) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.features = nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1), act(), nn.MaxPool3d(2), nn.Conv3d(4, 4, 3)
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_through_max_pooling_and_dense_layers_the_map_is_captums(a_volume):
    network, image = Pooled().eval(), a_volume(1, 8, 8, 8)
    target, options = Target(output=1), {"task": "classification"}
    # Not from zero: of equal places under a constant the largest is a matter of rounding.
    found = ours(network, image, target, options=options, baseline="blurred", blur_mm=1.0)
    baseline = run_engine(
        as_model(network, **options), image, target, lambda e: make_baseline("blurred", e, 1.0)
    )
    wanted = captums(network, image, baseline, lambda o: o[0, 1])
    assert relative(found.maps, wanted) < 1e-5
    assert found.completeness_error < 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_captum_loses_completeness_at_max_pooling_behind_a_relu_and_we_do_not(a_volume):
    network, image = Pooled(nn.ReLU).eval(), a_volume(1, 8, 8, 8)
    target, options = Target(output=1), {"task": "classification"}
    found = ours(network, image, target, options=options, baseline="blurred", blur_mm=1.0)
    baseline = run_engine(
        as_model(network, **options), image, target, lambda e: make_baseline("blurred", e, 1.0)
    )
    assert shared_out(found)
    with torch.no_grad():
        change = float((network(image.as_tensor()[None]) - network(baseline))[0, 1])
    peer = captums(network, image, baseline, lambda o: o[0, 1])
    assert abs(float(peer.sum()) - change) > 0.01 * abs(change)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_on_monais_densenet121_the_map_is_captums(a_volume):
    torch.manual_seed(0)
    network, image = DenseNet121(3, 1, 3).eval(), a_volume(1, 32, 32, 32)
    found = ours(network, image, Target(output=1), options={"task": "classification"})
    wanted = captums(network, image, torch.zeros(1, 1, 32, 32, 32), lambda o: o[0, 1])
    assert relative(found.maps, wanted) < 1e-4
    assert found.completeness_error < 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_captum_loses_completeness_on_monais_unet_and_we_do_not(unet, a_volume):
    # PReLU and instance norm are not in Captum's table: they keep their derivative, silently.
    image = a_volume(1, 16, 16, 16)
    found = ours(unet, image, blur_mm=2.0)
    baseline = run_engine(
        as_model(unet), image, EVERYWHERE, lambda e: make_baseline("blurred", e, 2.0)
    )
    with torch.no_grad():
        change = float(scalar(unet(image.as_tensor()[None])) - scalar(unet(baseline)))
    assert float(found.maps.double().sum()) == pytest.approx(change, rel=1e-4)
    assert found.completeness_error < 1e-4
    peer = float(captums(unet, image, baseline).double().sum())
    assert abs(peer - change) > 0.5 * abs(change)


# ------------------------------------------------------------------------------------------------
# One variable: every activation, however it is written

ONE_VARIABLE = {
    "ReLU": F.relu,
    "in-place ReLU": lambda x: F.relu(x, inplace=True),
    "relu_ without its result": lambda x: (x.relu_(), x)[1],
    "LeakyReLU": lambda x: F.leaky_relu(x, 0.1, inplace=True),
    "PReLU": lambda x: F.prelu(x, torch.tensor([0.3, 0.1, 0.2, -0.4])),
    "RReLU": F.rrelu,
    "ELU": lambda x: F.elu(x, inplace=True),
    "SELU": F.selu,
    "CELU": F.celu,
    "GELU": F.gelu,
    "GELU by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "SiLU": lambda x: F.silu(x, inplace=True),
    "Swish": Swish(),
    "Mish": F.mish,
    "Hardswish": F.hardswish,
    "Hardsigmoid": F.hardsigmoid,
    "Hardtanh": F.hardtanh,
    "ReLU6": F.relu6,
    "Softplus": F.softplus,
    "LogSigmoid": F.logsigmoid,
    "Softsign": F.softsign,
    "Softshrink": lambda x: F.softshrink(x, 0.2),
    "Threshold": lambda x: F.threshold(x, 0.1, -1.0),
    "clamp": lambda x: x.clamp(-0.3, 0.4),
    "abs": torch.abs,
    "square": lambda x: x**2,
    "power of two": lambda x: 2**x,
    "exp and log": lambda x: torch.log(x.exp() + 1),
    "root": lambda x: (x.square() + 0.1).sqrt(),
    "GLU": lambda x: torch.cat([F.glu(x, 1)] * 2, 1),
    "exported operator": torch.ops.aten.gelu.default,
}


@pytest.mark.parametrize("name", ONE_VARIABLE)
def test_every_activation_is_complete(name, a_volume):
    network, image = Written(ONE_VARIABLE[name]), a_volume(1, 6, 6, 6)
    found = ours(network, image, CORNER, baseline="blurred", blur_mm=1.0)
    assert shared_out(found)
    assert found.warnings == ()


@pytest.mark.parametrize("name", ONE_VARIABLE)
def test_a_close_baseline_gives_the_gradient(name, a_volume):
    network, image = Written(ONE_VARIABLE[name]), a_volume(1, 6, 6, 6)

    def both(engine: Engine) -> float:
        return relative(BaselinePass(engine, engine.x).multipliers(), engine.gradient())

    assert run_engine(as_model(network), image, CORNER, both) < 1e-5


def test_the_multiplier_of_one_unit_is_the_secant(a_volume):
    class Cube(nn.Module):
        def forward(self, x):
            return torch.cat([x, x**3], 1)

    image = a_volume(1, 4, 4, 4)
    found = ours(Cube(), image, baseline="minimum").maps
    x, x0 = image.as_tensor(), image.as_tensor().min()
    assert torch.allclose(found, (x**3 - x0**3) / 64, rtol=1e-4, atol=1e-6)


def test_one_module_used_three_times_is_complete(a_volume):
    act = nn.GELU()

    class Reusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(6)
            self.conv, self.act = nn.Conv3d(2, 2, 3, padding=1), act

        def forward(self, x):
            for _ in range(3):
                x = self.act(self.conv(x))
            return x

    assert shared_out(ours(Reusing(), a_volume(2, 6, 6, 6)))


# ------------------------------------------------------------------------------------------------
# Several variables: products, norms, softmax, the largest


def by_hand(x: torch.Tensor, axes: tuple[int, ...], eps: float = 1e-5) -> torch.Tensor:
    """A normalisation in steps: mean, square, mean, reciprocal root, product."""
    x = x - x.mean(axes, keepdim=True)
    return x * ((x * x).mean(axes, keepdim=True) + eps).rsqrt()


def grouped_by_hand(x: torch.Tensor) -> torch.Tensor:
    return by_hand(x.reshape(1, 2, -1), (2,)).reshape(x.shape)


def last(function):
    return lambda x: function(x.movedim(1, -1)).movedim(-1, 1)


WEIGHT, SHIFT = torch.tensor([0.5, -1.0, 2.0, 0.3]), torch.tensor([0.1, 0.2, -0.3, 0.0])
NORMS = {
    "instance": (F.instance_norm, lambda x: by_hand(x, (2, 3, 4))),
    "instance with weights": (
        lambda x: F.instance_norm(x, weight=WEIGHT, bias=SHIFT),
        lambda x: (
            by_hand(x, (2, 3, 4)) * WEIGHT.reshape(1, 4, 1, 1, 1) + SHIFT.reshape(1, 4, 1, 1, 1)
        ),
    ),
    "group": (lambda x: F.group_norm(x, 2), grouped_by_hand),
    "layer": (
        last(lambda x: F.layer_norm(x, (4,), WEIGHT, SHIFT)),
        last(lambda x: by_hand(x, (-1,)) * WEIGHT + SHIFT),
    ),
    "batch without running statistics": (
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: by_hand(x, (0, 2, 3, 4)),
    ),
    "rms": (
        last(lambda x: F.rms_norm(x, (4,), eps=1e-3)),
        last(lambda x: x * (x.square().mean(-1, keepdim=True) + 1e-3).rsqrt()),
    ),
    "unit length": (
        lambda x: F.normalize(x, dim=1),
        lambda x: x / (x * x).sum(1, keepdim=True).sqrt(),
    ),
    "variance": (
        lambda x: x * x.var(1, keepdim=True) + x.std((2, 3), keepdim=True, unbiased=False),
        lambda x: (
            x * ((x - x.mean(1, keepdim=True)) ** 2).sum(1, keepdim=True) / 3
            + ((x - x.mean((2, 3), keepdim=True)) ** 2).mean((2, 3), keepdim=True).sqrt()
        ),
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_gives_what_its_steps_give(name, a_volume):
    norm, steps = NORMS[name]
    image = a_volume(1, 6, 6, 6)
    found = ours(Written(norm), image, CORNER, baseline="blurred", blur_mm=1.0)
    wanted = ours(Written(steps), image, CORNER, baseline="blurred", blur_mm=1.0)
    assert relative(found.maps, wanted.maps) < 1e-3
    assert shared_out(found)
    assert shared_out(wanted)
    assert found.warnings == wanted.warnings == ()


def mixed(x: torch.Tensor) -> torch.Tensor:
    tokens = x.flatten(2)
    return (tokens.softmax(-1) @ tokens.transpose(1, 2) @ tokens).reshape(x.shape)


SEVERAL = {
    "product": lambda x: x * x.flip(1),
    "in-place product": lambda x: x.clone().mul_(x.flip(1)),
    "product with a gate": lambda x: x * x.mean((2, 3, 4), keepdim=True).sigmoid(),
    "quotient": lambda x: x / (x.flip(1).square() + 0.5),
    "number over": lambda x: 1 / (x.square() + 0.5),
    "einsum": lambda x: torch.einsum("bcijk,bdijk->bcijk", x, x.flip(2)),
    "computed kernel": lambda x: F.conv3d(
        x, x.mean((2, 3, 4)).reshape(1, 4, 1, 1, 1) * torch.ones(4, 1, 1, 1, 1)
    ),
    "softmax and products": mixed,
    "softmax": lambda x: x.softmax(1),
    "log softmax": lambda x: F.log_softmax(x, 1),
    "log sum exp": lambda x: x + x.logsumexp((1, 2), keepdim=True),
    "the larger": lambda x: torch.maximum(x, x.flip(1)),
    "the smaller": lambda x: torch.min(x, x.flip(1)),
    "largest channel": lambda x: x - x.max(1, keepdim=True)[0],
    "largest of all": lambda x: x - x.max(),
    "largest over axes": lambda x: x - x.amax((2, 3, 4), keepdim=True),
    "smallest over axes": lambda x: x - x.amin((2, 3), keepdim=True),
    "smallest channel": lambda x: x - x.min(1, keepdim=True).values,
    "overlapping pooling": lambda x: F.max_pool3d(x, 3, 1, 1),
    "pooling with places": lambda x: x - F.max_pool3d(x, 3, 1, 1, return_indices=True)[0],
    "adaptive pooling": lambda x: x - F.adaptive_max_pool3d(x, 1),
    "residual in place": lambda x: x.clone().add_(F.silu(x)),
    "overwritten after it was read": lambda x: (F.gelu(x), x.mul_(2))[0],
}


@pytest.mark.parametrize("name", SEVERAL)
def test_functions_of_several_variables_are_complete(name, a_volume):
    network, image = Written(SEVERAL[name]), a_volume(1, 6, 6, 6)
    found = ours(network, image, CORNER, baseline="blurred", blur_mm=1.0)
    assert shared_out(found)
    assert found.warnings == ()


@pytest.mark.parametrize("name", list(SEVERAL)[:-1])
def test_functions_of_several_variables_give_the_gradient_in_the_limit(name, a_volume):
    network, image = Written(SEVERAL[name]), a_volume(1, 6, 6, 6)

    def both(engine: Engine) -> float:
        return relative(BaselinePass(engine, engine.x).multipliers(), engine.gradient())

    assert run_engine(as_model(network), image, CORNER, both) < 1e-4


def test_a_product_is_shared_out_by_the_mean_of_the_other_factor(a_volume):
    class Product(nn.Module):
        def forward(self, x):
            return torch.cat([x[:, :1], x[:, :1] * x[:, 1:]], 1)

    image = a_volume(2, 4, 4, 4)
    found = ours(Product(), image, baseline="minimum").maps
    x = image.as_tensor()
    x0 = x.amin((1, 2, 3), keepdim=True)
    mean = (x + x0) / 2
    wanted = torch.stack([(x - x0)[0] * mean[1], (x - x0)[1] * mean[0]]) / 64
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-7)


def test_a_softmax_with_masked_places_is_finite_and_complete(a_volume):
    def masked(x: torch.Tensor) -> torch.Tensor:
        t = x.clone()
        t[:, :1] = -torch.inf
        return t.softmax(1) * 50

    found = ours(Written(masked), a_volume(1, 6, 6, 6))
    assert torch.isfinite(found.maps).all()
    assert shared_out(found)


class Attending(nn.Module):
    """Self-attention over the voxels of each plane, in one of its forms."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.form = form
        self.embed = nn.Conv3d(1, 8, 1)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = self.norm(tokens + self._attended(tokens * 3))
        return self.head(tokens).transpose(1, 2).reshape(1, 2, *x.shape[2:])

    def _attended(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.form.startswith("module"):
            return self.attend(tokens, tokens, tokens, need_weights="weights" in self.form)[0]
        packed = F.linear(tokens, self.attend.in_proj_weight, self.attend.in_proj_bias)
        q, k, v = packed.reshape(1, -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        if self.form == "fused":
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            shares = (torch.einsum("bhxd,bhyd->bhxy", q, k) / 2).softmax(-1)
            mixed = torch.einsum("bhxy,bhyd->bhxd", shares, v)
        return self.attend.out_proj(mixed.transpose(1, 2).reshape(1, -1, 8))


@pytest.mark.parametrize("form", ["einsum", "fused", "module", "module with weights"])
def test_attention_is_complete_and_alike_in_every_form(form, a_volume):
    image = a_volume(1, 4, 4, 4)
    wanted = ours(Attending("einsum"), image, baseline="blurred", blur_mm=1.0)
    found = ours(Attending(form), image, baseline="blurred", blur_mm=1.0)
    assert relative(found.maps, wanted.maps) < 1e-4
    assert shared_out(found)
    assert found.warnings == ()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": torch.tensor([[True, False, True]] * 3)},
        {"attn_mask": torch.tensor([[0.5, -1.0, 0.0]] * 3)},
    ],
)
def test_attention_in_steps_is_torchs(options):
    from SaliencyExplainLib.engine.rules.functions import attention

    q, k, v = torch.randn(3, 1, 2, 3, 4, generator=torch.Generator().manual_seed(1))
    wanted = F.scaled_dot_product_attention(q, k, v, **options)
    assert torch.allclose(attention(q, k, v, **options), wanted, atol=1e-6)
    grouped = F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True, **options)
    found = attention(q, k[:, :1], v[:, :1], enable_gqa=True, **options)
    assert torch.allclose(found, grouped, atol=1e-6)


# ------------------------------------------------------------------------------------------------
# Networks

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
    "AttentionUnet": (lambda: AttentionUnet(3, 1, 3, (8, 16, 32), (2, 2)), 16, "segmentation"),
    "UNETR": (lambda: UNETR(1, 3, (32, 32, 32), 8, 32, 64, 4), 32, "segmentation"),
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


@pytest.mark.parametrize("kind", ["logit", "probability"])
@pytest.mark.parametrize("name", EACH)
def test_networks_of_every_kind_are_complete(name, kind, a_volume):
    torch.manual_seed(0)
    make, size, task = NETWORKS[name]
    target = Target(output=1, score=kind, region="everywhere" if task == "segmentation" else None)
    found = ours(make(), a_volume(1, size, size, size), target, options={"task": task})
    assert found.completeness_error < 1e-4
    assert found.warnings == ()


def test_a_real_ct_through_windows_is_complete(real_data, unet):
    whole = read_image([real_data / "volumes" / "ct_abdomen.nii.gz"])
    centre = tuple(slice(size // 2 - 20, size // 2 + 20) for size in whole.shape[1:])
    voxels = whole.as_tensor()[(slice(None), *centre)]
    image = make_image((voxels - voxels.mean()) / voxels.std(), whole.affine)
    windows = {"inferer": Windows((24, 24, 24), (0.25,) * 3, "gaussian")}
    found = ours(unet, image, Target(output=1, score="soft_volume"), options=windows)
    assert found.used == {"baseline": "blurred"}
    assert found.completeness_error < 1e-3


# ------------------------------------------------------------------------------------------------
# Windows and scores


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_through_windows_the_map_is_the_sum_of_captums_maps_of_each_window(a_volume):
    network, image = BatchNormNet().eval(), a_volume(1, 12, 8, 8)
    found = ours(
        network, image, options={"inferer": Windows((8, 8, 8), (0.5,) * 3)}, baseline="zero"
    )
    starts, wanted = (0, 4), torch.zeros(1, 12, 8, 8)
    covered = torch.zeros(12)
    for start in starts:
        covered[start : start + 8] += 1
    for start in starts:
        window = slice(start, start + 8)
        weight = (1 / covered[window]).reshape(8, 1, 1) / (12 * 8 * 8)
        part = make_image(image.as_tensor()[:, window].clone(), np.eye(4))
        peer = captums(
            network, part, torch.zeros(1, 1, 8, 8, 8), lambda o, w=weight: (o[0, 1] * w).sum()
        )
        wanted[:, window] += peer
    assert relative(found.maps, wanted) < 1e-5


WINDOWS = {
    "whole": {},
    "constant windows": {"inferer": Windows((8, 8, 8), (0.5,) * 3)},
    "gaussian windows": {"inferer": Windows((8, 8, 8), (0.5,) * 3, "gaussian")},
    "padded window": {"inferer": Windows((16, 16, 16), (0.5,) * 3, padding_mode="replicate")},
}
TARGETS = {
    "logit": {"score": "logit"},
    "logit, contrast": {"score": "logit", "contrast": 0, "contrast_weight": 0.7},
    "probability": {"score": "probability"},
    "probability, contrast": {"score": "probability", "contrast": 2},
    "soft volume": {"score": "soft_volume"},
}


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("inference", WINDOWS)
def test_every_score_is_complete_through_every_inference(inference, kind, activation, a_volume):
    network = UNet(3, 2, 3, (4, 8), (2,), num_res_units=1)
    options = {**WINDOWS[inference], "activation": activation}
    image = a_volume(2, 12, 8, 8)
    target = Target(output=1, region="prediction", **TARGETS[kind])

    def both(engine: Engine):
        made = make_method("deep_lift", {"blur_mm": 1.0}).attribute(engine)
        baseline = make_baseline("blurred", engine, 1.0)
        with torch.no_grad():
            values = [engine.frozen.value(fused(engine.model, x)) for x in (engine.x, baseline)]
        return made, float(values[0] - values[1])

    torch.manual_seed(3)
    made, change = run_engine(as_model(network, **options), image, target, both)
    # Against MONAI's own fusion. 1e-6: the scores themselves are of order 1.
    assert float(made.maps.double().sum()) == pytest.approx(change, rel=1e-3, abs=1e-6)
    assert made.completeness_error < 1e-3


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kind", ["logit", "probability"])
def test_it_does_not_matter_whether_the_target_was_frozen_before(kind, before, a_volume):
    image = a_volume(1, 8, 8, 8)
    target = Target(output=1, score=kind)

    def work(engine: Engine):
        if before:
            _ = engine.start_value
        made = make_method("deep_lift").attribute(engine)
        # The engine is as it was: its gradient is the plain one, its target the given one.
        assert engine.scoring.target is target
        assert type(engine.frozen).__name__ == "FrozenTarget"
        return made.maps, engine.gradient()

    network = StridedNet()
    maps, gradient = run_engine(as_model(network), image, target, work)
    wanted = run_engine(as_model(network), image, target, lambda e: e.gradient())
    assert torch.equal(gradient, wanted)
    assert torch.equal(maps, ours(network, image, target).maps)


@pytest.mark.parametrize("kind", ["logit", "probability"])
@pytest.mark.parametrize("windows", [False, True])
def test_no_pass_is_made_that_was_not_announced(windows, kind, a_volume):
    network, method = StridedNet(), make_method("deep_lift")
    options = {"inferer": Windows((8, 8, 8), (0.5,) * 3)} if windows else {}
    target = Target(output=1, score=kind, region="everywhere")
    engine = Engine(as_model(network, **options), a_volume(1, 12 if windows else 8, 8, 8), target)
    with counted_runs(network) as runs, engine.running():
        method.attribute(engine)
    sweeps = method.window_passes(linear=kind == "logit") if windows else method.passes()
    assert len(runs) == engine.progress.done == sweeps * (2 if windows else 1)
    assert sum(runs) == (2 if windows else 1)


def test_windows_outside_the_region_are_left_out(a_volume):
    network, image = BatchNormNet(), a_volume(1, 24, 8, 8)
    target = Target(output=1, region="point", point_ras_mm=(2, 2, 2))
    options = {"inferer": Windows((8, 8, 8), (0.0,) * 3)}
    with counted_runs(network) as runs:
        found = ours(network, image, target, options=options)
    assert len(runs) == 3 + 2
    assert found.completeness_error < 1e-5
    assert not found.maps[:, 8:].any()


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_number_a_volume_is_complete(task, channels, a_volume):
    found = ours(
        Classifier(channels=channels),
        a_volume(channels, 8, 8, 8),
        Target(output=2),
        options={"task": task},
    )
    assert found.maps.shape == (channels, 8, 8, 8)
    assert found.completeness_error < 1e-5


def test_a_linear_network_gives_the_difference_times_its_weights(a_volume):
    image = a_volume(1, 8, 8, 8)
    found = ours(LinearNet(), image, baseline="minimum")
    leaf = image.as_tensor()[None].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(scalar(LinearNet()(leaf)), leaf)
    wanted = gradient[0] * (image.as_tensor() - image.as_tensor().min())
    assert torch.allclose(found.maps, wanted, atol=1e-7)


def test_an_image_that_is_its_own_baseline_gives_a_map_of_zeros():
    image = make_image(torch.zeros(1, 8, 8, 8), np.eye(4))
    found = ours(BatchNormNet(), image, baseline="zero")
    assert not found.maps.any()
    assert found.completeness_error == 0


# ------------------------------------------------------------------------------------------------
# What is refused, warned of, left behind


class _Odd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, upstream):
        return upstream * ctx.saved_tensors[0].cos()


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (torch.erfinv, "erfinv"),
        (lambda x: torch.atan2(x, x + 2), "atan2"),
        (_Odd.apply, "_Odd"),
        (lambda x: x.cumprod(1), "cumprod"),
    ],
    ids=["erfinv", "atan2", "custom", "cumprod"],
)
def test_a_function_without_a_rule_is_named(function, name, a_volume):
    found = ours(Written(lambda x: function(x.tanh() * 0.9)), a_volume(1, 6, 6, 6))
    assert any(
        f"no rule for {name}: the plain derivative was used there" in one for one in found.warnings
    )


def test_what_is_incomplete_is_told(a_volume):
    found = ours(Written(lambda x: (x * 3).cumprod(1)), a_volume(1, 6, 6, 6))
    assert found.completeness_error > 0.01
    assert any("completeness error" in one and "sums to" in one for one in found.warnings)


def test_a_torchscript_network_is_refused(a_volume):
    for network in (torch.jit.script(LinearNet()), nn.Sequential(torch.jit.script(LinearNet()))):
        model = as_model(network)
        with pytest.raises(MethodError, match=r"which TorchScript does not allow.*integrated"):
            explain(model, a_volume(1, 8, 8, 8), EVERYWHERE, "deep_lift")


@pytest.mark.parametrize(
    ("loud", "quiet"),
    [(F.gelu, torch.sin), (F.gelu, lambda x: x), (lambda x: x, F.gelu)],
    ids=["another", "one more", "one less"],
)
def test_a_network_that_decides_by_its_values_is_refused(loud, quiet, a_volume):
    class Deciding(nn.Module):
        def forward(self, x):
            return torch.cat([x, loud(x) if x.sum() else quiet(x)], 1)

    with pytest.raises(MethodError, match=r"decides by its values.*integrated_gradients"):
        ours(Deciding(), a_volume(1, 6, 6, 6), baseline="zero")


@pytest.mark.parametrize("name", ["deep_lift", "lrp"])
def test_activation_checkpointing_is_refused(name, a_volume):
    def again(x: torch.Tensor) -> torch.Tensor:
        return checkpoint(lambda y: F.gelu(y) * y.tanh(), x, use_reentrant=False)

    with pytest.raises(MethodError, match=r"activation checkpointing.*switched off"):
        explain(as_model(Written(again)), a_volume(1, 6, 6, 6), EVERYWHERE, name)


@contextmanager
def unchanged(network: nn.Module):
    before = state_of(network)
    yield
    assert state_of(network) == before
    assert active_modes() == []


def test_nothing_is_left_behind(unet, a_volume):
    with unchanged(unet):
        ours(unet, a_volume(1, 8, 8, 8))


@pytest.mark.parametrize("at", [1, 2])
def test_nothing_is_left_behind_by_a_network_that_fails(at, a_volume):
    network = nn.Sequential(LinearNet(), nn.GELU(), Raising(at)).eval()
    with unchanged(network), pytest.raises(ModelError, match="this layer is broken"):
        ours(network, a_volume(1, 8, 8, 8))
