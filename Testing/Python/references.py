"""Slow, plain twins of the engine and its methods, and the small networks that they are tried on.

Nothing here calls the code under test: scores, fusion, backward rules, maps and voxel positions
are written again from their equations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from scipy.ndimage import map_coordinates
from torch import nn

from SaliencyExplainLib.engine import Engine
from SaliencyExplainLib.methods import Method, methods
from SaliencyExplainLib.model import Model, WholeVolume, Windows
from SaliencyExplainLib.target import Target

# ------------------------------------------------------------------------------------------------
# Small networks


class BatchNormNet(nn.Module):
    """Three convolutions with batch norm and ReLU, on the input's grid, with a seed."""

    def __init__(self, channels: int = 1, outputs: int = 3, act: Callable[[], nn.Module] = nn.ReLU):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(
            nn.Conv3d(channels, 6, 3, padding=1),
            nn.BatchNorm3d(6),
            act(),
            nn.Conv3d(6, 6, 3, padding=1),
            nn.BatchNorm3d(6),
            act(),
        )
        self.head = nn.Conv3d(6, outputs, 1)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class StridedNet(nn.Module):
    """Down by 2, up by 2: a layer on a coarser grid, behind it the output's own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.down = nn.Conv3d(1, 4, 3, stride=2, padding=1)
        self.act = nn.ReLU()
        self.up = nn.Upsample(scale_factor=2, mode="trilinear")
        self.mix = nn.Conv3d(4, 4, 3, padding=1)
        self.act2 = nn.ReLU()
        self.head = nn.Conv3d(4, 2, 1)
        with torch.no_grad():
            # Both classes are predicted about as often.
            output = self(torch.randn(1, 1, 8, 8, 8))[0]
            self.head.bias[1] += (output[0] - output[1]).median()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act2(self.mix(self.up(self.act(self.down(x))))))


class Classifier(nn.Module):
    """Two convolutions, the mean over the volume, a linear head."""

    def __init__(self, outputs: int = 3, channels: int = 1) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.features = nn.Sequential(
            nn.Conv3d(channels, 5, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv3d(5, 6, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Linear(6, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3, 4)))


class LinearNet(nn.Module):
    """A convolution without padding tricks and a sum: S is linear in the input."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.conv = nn.Conv3d(channels, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class WithAttention(nn.Module):
    """A network beside an attention over its input's patches that adds nothing to the output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.embed = nn.Conv3d(1, 4, 2, stride=2)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = 9 * self.embed(x).flatten(2).mT
        return self.network(x) + 0 * self.attention(tokens, tokens, tokens)[0].mean()


def for_method(name: str, network: nn.Module) -> nn.Module:
    """The network, with an attention beside it where the method looks at attention."""
    return WithAttention(network) if methods()[name].family == "attention" else network


class Raising(nn.Module):
    """Passes its input on, and fails in its n-th real run."""

    def __init__(self, at: int = 1) -> None:
        super().__init__()
        self.left = at

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if type(x) is torch.Tensor and not is_fake(x):
            self.left -= 1
            if self.left == 0:
                raise RuntimeError("this layer is broken")
        return x


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether a tensor has no data (a run that only follows shapes)."""
    return type(tensor).__name__ == "FakeTensor"


# ------------------------------------------------------------------------------------------------
# Models, engines, counting


def as_model(network: nn.Module, **options: Any) -> Model:
    """Return a segmentation model of a network in eval mode, or another with options."""
    return Model(network.eval(), options.pop("task", "segmentation"), **options)


def run_engine(
    model: Model,
    image: MetaTensor,
    target: Target,
    work: Callable[[Engine], Any],
    batch_size: int | None = None,
) -> Any:
    """Do something with a running engine."""
    engine = Engine(model, image, target, batch_size=batch_size)
    with engine.running():
        return work(engine)


@contextmanager
def counted_runs(network: nn.Module) -> Iterator[list[bool]]:
    """List the network's real runs; True for those with gradient."""
    runs: list[bool] = []

    def note(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if not is_fake(inputs[0]):
            runs.append(torch.is_grad_enabled())

    hook = network.register_forward_pre_hook(note)
    try:
        yield runs
    finally:
        hook.remove()


def quick_parameters(cls: type[Method]) -> dict[str, Any]:
    """Parameters of a method that keep its run short: few steps, few samples."""
    found = {}
    for one in fields(cls):
        low = one.metadata["low"]
        whole = isinstance(one.default, int) and not isinstance(one.default, bool)
        if one.name == "supervoxels":
            # Fewer melt into one region on the small volumes here.
            found[one.name] = 30
        elif whole and low is not None and one.name != "seed":
            found[one.name] = int(min(one.default, max(low, 3)))
    return found


def state_of(network: nn.Module) -> dict[str, Any]:
    """Everything about a network that a run must leave as it was."""
    hooks = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
    )
    return {
        "modules": [(name, type(module)) for name, module in network.named_modules()],
        "hooks": [[len(getattr(one, kind)) for kind in hooks] for one in network.modules()],
        "training": [module.training for module in network.modules()],
        "requires_grad": [one.requires_grad for one in network.parameters()],
        "gradients": [one.grad for one in network.parameters()],
        "weights": [value.detach().clone().numpy().tobytes() for value in _values(network)],
        "own": [sorted(vars(module)) for module in network.modules()],
        "random": torch.get_rng_state().numpy().tobytes(),
        "grad_enabled": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
    }


def _values(network: nn.Module) -> list[torch.Tensor]:
    return [*network.parameters(), *network.buffers()]


# ------------------------------------------------------------------------------------------------
# The score and the fused inference, again


def fused(model: Model, x: torch.Tensor) -> torch.Tensor:
    """Output of the whole inference, by MONAI, differentiable."""
    if isinstance(model.inferer, WholeVolume):
        return model.network(x)
    windows: Windows = model.inferer
    return sliding_window_inference(
        x,
        windows.roi_size,
        1,
        model.network,
        overlap=windows.overlap,
        mode=windows.mode,
        sigma_scale=windows.sigma_scale,
        padding_mode=windows.padding_mode,
        cval=windows.cval,
    )


def score(
    output: torch.Tensor,
    channel: int,
    mask: torch.Tensor | None,
    *,
    kind: str = "logit",
    reduce: str = "mean",
    other: int | None = None,
    weight: float = 1.0,
    voxel_ml: float = 0.001,
) -> torch.Tensor:
    """Return S as it stands in the equations, of a softmax network."""
    values = output if kind in ("logit", "value") else output.softmax(1)
    chosen = values[0, channel]
    if other is not None:
        chosen = chosen - weight * values[0, other]
    if mask is None:
        return chosen
    total = (chosen * mask).sum()
    if kind == "soft_volume":
        return total * voxel_ml
    return total if reduce == "sum" else total / mask.sum()


def fused_gradient(
    model: Model, image: MetaTensor, scalar: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Return dS/dx by autograd through the whole fused inference; all windows in one graph."""
    leaf = image.as_tensor()[None].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(scalar(fused(model, leaf)), leaf)
    return gradient[0]


class ScalarOf(nn.Module):
    """A network with a scalar behind it: (B, C, I, J, K) to (B,), what Captum wants."""

    def __init__(self, network: nn.Module, scalar: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.network = network
        self.scalar = scalar

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.network(x)
        return torch.stack([self.scalar(output[i : i + 1]) for i in range(len(output))])


# ------------------------------------------------------------------------------------------------
# Backward rules, again: every activation is replaced by a function of its own


class _Rule(torch.autograd.Function):
    """f(x) forward; backward by the rule, from x alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, function: Any, guided: bool, smooth: bool) -> Any:
        ctx.save_for_backward(x.clone())
        ctx.function, ctx.guided, ctx.smooth = function, guided, smooth
        return function(x.clone())

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        (x,) = ctx.saved_tensors
        passed = torch.where(upstream[0] > 0, upstream[0], torch.zeros_like(x))
        if ctx.guided:
            passed = torch.where(x > 0, passed, torch.zeros_like(x))
            if ctx.smooth:
                with torch.enable_grad():
                    leaf = x.detach().requires_grad_()
                    (slope,) = torch.autograd.grad(ctx.function(leaf).sum(), leaf)
                passed = passed * slope
        return passed, None, None, None


_KINKED = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU)
_SMOOTH = (nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Softplus, nn.ReLU6)


class RuledActivation(nn.Module):
    """An activation that follows DeconvNet's or guided backpropagation's rule."""

    def __init__(self, activation: nn.Module, guided: bool) -> None:
        super().__init__()
        self.activation = copy.deepcopy(activation)
        if hasattr(self.activation, "inplace"):
            self.activation.inplace = False
        for parameter in self.activation.parameters():
            parameter.requires_grad_(False)
        self.guided = guided

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        smooth = isinstance(self.activation, _SMOOTH)
        return _Rule.apply(x, self.activation, self.guided, smooth)


def with_rule(network: nn.Module, *, guided: bool) -> nn.Module:
    """Copy a network and replace each rectifier by one that follows the rule."""
    twin = copy.deepcopy(network)
    replaced: dict[int, RuledActivation] = {}
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _KINKED + _SMOOTH) and not isinstance(parent, RuledActivation):
                one = replaced.setdefault(id(child), RuledActivation(child, guided))
                setattr(parent, name, one)
    return twin


def plain_gradient(
    network: nn.Module, image: torch.Tensor, scalar: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Return dS/dx of one whole volume."""
    leaf = image.clone()[None].requires_grad_()
    (gradient,) = torch.autograd.grad(scalar(network(leaf)), leaf)
    return gradient[0]


# ------------------------------------------------------------------------------------------------
# Maps from features and gradients, again, in NumPy


def grad_cam_map(features: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    weights = gradients.reshape(len(gradients), -1).mean(1)
    return np.maximum(sum(w * a for w, a in zip(weights, features, strict=True)), 0)


def grad_cam_plus_plus_map(features: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    total = np.zeros(features.shape[1:])
    for a, g in zip(features.astype(float), gradients.astype(float), strict=True):
        below = 2 * g**2 + g**3 * a.sum()
        alpha = np.divide(g**2, below, out=np.zeros_like(g), where=below != 0)
        # The mean over positions, as for Grad-CAM: a constant factor that the paper leaves out.
        total += (alpha * np.maximum(g, 0)).sum() / g.size * a
    return np.maximum(total, 0)


def hires_cam_map(features: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    return (gradients * features).sum(0)


def layer_cam_map(features: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    return np.maximum((np.maximum(gradients, 0) * features).sum(0), 0)


def features_and_gradients(
    network: nn.Module,
    layer: str,
    x: torch.Tensor,
    scalar: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[np.ndarray, np.ndarray]:
    """Record A and dS/dA of a layer with a hook and autograd; x has the shape (1, C, I, J, K)."""
    kept: list[torch.Tensor] = []
    hook = network.get_submodule(layer).register_forward_hook(
        lambda _m, _i, out: (kept.append(out), out.clone())[1]
    )
    with torch.enable_grad():
        value = scalar(network(x.clone().requires_grad_()))
    hook.remove()
    (gradient,) = torch.autograd.grad(value, kept[-1])
    return kept[-1].detach()[0].numpy(), gradient[0].numpy()


def at_positions(volume: np.ndarray, positions: Sequence[np.ndarray]) -> np.ndarray:
    """Read a volume (i, j, k) linearly at positions along each axis, constant beyond its edges."""
    mesh = np.meshgrid(*positions, indexing="ij")
    return map_coordinates(volume.astype(float), mesh, order=1, mode="nearest")


def windowed_cam(
    model: Model,
    image: MetaTensor,
    layer: str,
    placing: tuple[float, float],
    scalar: Callable[[torch.Tensor], torch.Tensor],
    method: str,
) -> np.ndarray:
    """Layer map through sliding windows, with all windows in one graph.

    `placing` is (origin, spacing) of the layer's voxels in voxels of a window, the same along each
    axis. The fusion weights are those of mode "constant": one over the number of windows.
    """
    from monai.data.utils import dense_patch_slices

    windows: Windows = model.inferer
    shape = tuple(image.shape[1:])
    steps = [int(w * (1 - o)) for w, o in zip(windows.roi_size, windows.overlap, strict=True)]
    places = dense_patch_slices(shape, windows.roi_size, steps)
    covered = np.zeros(shape)
    for place in places:
        covered[place] += 1
    x = image.as_tensor()[None]
    kept: list[torch.Tensor] = []
    hook = model.network.get_submodule(layer).register_forward_hook(
        lambda _m, _i, out: (kept.append(out), out.clone())[1]
    )
    output = 0
    with torch.enable_grad():
        for place in places:
            part = model.network(x[(slice(None), slice(None), *place)].clone().requires_grad_())
            back = [(p.start, full - p.stop) for p, full in zip(place, shape, strict=True)]
            amounts = [one for pair in reversed(back) for one in pair]
            output = output + F.pad(part / torch.tensor(covered[place]), amounts)
        gradients = torch.autograd.grad(scalar(output.float()), kept)
    hook.remove()
    a = [one.detach()[0].numpy().astype(float) for one in kept]
    g = [one[0].numpy().astype(float) for one in gradients]
    origin, spacing = placing
    down = [origin + spacing * np.arange(size) for size in a[0].shape[1:]]
    up = [(np.arange(size) - origin) / spacing for size in windows.roi_size]
    parts = [at_positions(1 / covered[place], down) for place in places]
    if method in ("grad_cam", "grad_cam_plus_plus"):
        weights = _shared_weights(a, g, parts, method)
        maps = [np.maximum(np.einsum("c,cijk->ijk", weights, one), 0) for one in a]
    else:
        one_map = hires_cam_map if method == "hires_cam" else layer_cam_map
        maps = [one_map(one, other) for one, other in zip(a, g, strict=True)]
    total = np.zeros(shape)
    for place, one in zip(places, maps, strict=True):
        # g already holds the window's part in the fusion; a map weighted by channel does not.
        share = 1 / covered[place] if method.startswith("grad_cam") else 1.0
        total[place] += at_positions(one, up) * share
    return total


def _shared_weights(
    a: list[np.ndarray], g: list[np.ndarray], parts: list[np.ndarray], method: str
) -> np.ndarray:
    """One weight a channel over all windows' positions; each counts as its part in the fusion."""
    count = sum(part.sum() for part in parts)
    channels = range(len(a[0]))
    if method == "grad_cam":
        return np.array([sum(one[k].sum() for one in g) for k in channels]) / count
    sums = [
        sum((one[k] * part).sum() for one, part in zip(a, parts, strict=True)) for k in channels
    ]
    found = []
    for k in channels:
        total = 0.0
        for one, part in zip(g, parts, strict=True):
            whole = one[k] / part
            below = 2 * whole**2 + whole**3 * sums[k]
            alpha = np.divide(whole**2, below, out=np.zeros_like(whole), where=below != 0)
            total += (part * alpha * np.maximum(whole, 0)).sum()
        found.append(total / count)
    return np.array(found)


# ------------------------------------------------------------------------------------------------
# Where a feature voxel lies, measured


def only_geometry(network: nn.Module) -> nn.Module:
    """Copy a network and leave only what moves voxels, which makes it linear.

    No norms, identity activations, open gates; weights are positive constants, the centre tap
    alone in kernels of odd size. So a feature voxel is a weighted mean of input voxels (nothing
    of which lies beyond the border), and what it makes of the coordinates is its own place.
    """
    twin = copy.deepcopy(network).eval()
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MaxPool3d):
                pool = nn.AvgPool3d(child.kernel_size, child.stride, child.padding)
                setattr(parent, name, pool)
            elif isinstance(child, nn.Sigmoid):
                setattr(parent, name, _Open())
            elif isinstance(child, _KINKED + _SMOOTH) or _is_norm(child):
                setattr(parent, name, nn.Identity())
    for module in twin.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim == 5:
            _centre_only(module, weight)
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            nn.init.zeros_(module.bias)
    return twin


class _Open(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(x)


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ or "Dropout" in type(module).__name__


def _centre_only(module: nn.Module, weight: torch.Tensor) -> None:
    with torch.no_grad():
        odd = all(size % 2 for size in weight.shape[2:])
        if odd and not getattr(module, "transposed", False):
            weight.zero_()
            weight[(slice(None), slice(None), *(size // 2 for size in weight.shape[2:]))] = 1.0
        else:
            weight.fill_(1.0)
        weight /= weight.shape[1]


def measured_centres(
    network: nn.Module, shape: Sequence[int]
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Where the inner voxels of every layer of such a copy lie, along the three axes.

    Returns
    -------
    dict of str to list of (indices, centres)
        Voxels from one to three quarters of each axis, in the middle of the others.
    """
    kept: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: kept.update({name: out}))
        for name, module in network.named_modules()
    ]
    ones = torch.ones(shape)
    ramps = [
        ones * torch.arange(size).reshape([-1 if axis == one else 1 for one in range(4)])
        for axis, size in enumerate(shape)
    ][1:]
    with torch.no_grad():
        network(torch.stack([ones, *ramps]))
    for hook in hooks:
        hook.remove()
    return {name: _inner_centres(out) for name, out in kept.items() if out.ndim == 5}


def _inner_centres(features: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    mass, *moments = features.sum(1).double().numpy()
    found = []
    for axis, moment in enumerate(moments):
        size = mass.shape[axis]
        indices = np.arange(size // 4, max(size // 4 + 1, 3 * size // 4))
        place: list[Any] = [one // 2 for one in mass.shape]
        place[axis] = indices
        found.append((indices, moment[tuple(place)] / mass[tuple(place)]))
    return found


#: Numbers of passes, made small.
_COUNTS = ("steps", "samples", "masks", "iterations", "permutations", "batch")


def cheap(name: str) -> dict[str, Any]:
    """Parameters of a method that make it quick."""
    known = {one.name: one for one in fields(methods()[name])}
    return {key: max(2, known[key].metadata["low"]) for key in _COUNTS if key in known}
