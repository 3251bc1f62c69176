"""What is measured: each method here, and in each peer that has it, on the same network and target.

Captum, MONAI and zennit know no segmentation target: they get a network that returns the same
number, the mean logit of one class inside a frozen ball.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import captum.attr
import numpy as np
import torch
from measure import Case
from monai.inferers import SlidingWindowInferer, sliding_window_inference
from monai.networks.nets import UNet
from monai.visualize import GradCAM, VanillaGrad

import SaliencyExplainLib as sx

__all__ = ["Setting", "cases"]

STEPS = 20
CLASS = 1
#: What a forward pass costs in units of a forward and a backward one, measured on this network.
FORWARD = 0.37
ONE_PASS_CAMS = (
    "grad_cam",
    "grad_cam_plus_plus",
    "xgrad_cam",
    "hires_cam",
    "layer_cam",
    "seg_xres_cam",
)


class Score(torch.nn.Module):
    """The same number for the peers: mean logit of one class inside a frozen mask."""

    def __init__(self, network: torch.nn.Module, mask: torch.Tensor) -> None:
        super().__init__()
        self.network = network
        self.mask = mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.network(x)[:, CLASS]
        return (logits * self.mask).flatten(1).sum(1, keepdim=True) / self.mask.sum()


@dataclass
class Setting:
    """One network on one volume, for us and for the peers."""

    size: int
    norm: str
    network: torch.nn.Module = field(init=False)
    volume: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.network = UNet(
            3, 1, 4, (16, 32, 64, 128), (2, 2, 2), num_res_units=2, norm=self.norm
        ).eval()
        self.network.requires_grad_(False)
        self.volume = torch.randn(1, 1, *[self.size] * 3)
        self.image = sx.make_image(self.volume[0], np.eye(4))
        axis = torch.linspace(-1, 1, self.size)
        squares = [axis.reshape(shape) ** 2 for shape in ((-1, 1, 1), (1, -1, 1), (1, 1, -1))]
        self.ball = (squares[0] + squares[1] + squares[2] < 0.25).float()
        self.target = sx.Target(output=CLASS, segment=sx.make_image(self.ball, np.eye(4)))
        self.model = sx.load_model(self.network, task="segmentation")
        self.score = Score(self.network, self.ball)

    def one_pass(self) -> None:
        """The unit: forward, and backward to the input, with frozen weights."""
        leaf = self.volume.clone().requires_grad_()
        torch.autograd.grad(self.score(leaf).sum(), leaf)

    def ours(self, name: str, **parameters: Any) -> Callable[[], object]:
        """One of our methods."""
        return partial(sx.explain, self.model, self.image, self.target, name, **parameters)

    def layer(self, name: str) -> torch.nn.Module:
        """A module of the network."""
        return dict(self.network.named_modules())[name]

    def regions(self, parts: int) -> torch.Tensor:
        """Boxes as numbers, (I, J, K): `parts` along each axis."""
        step = -(-self.size // parts)
        index = torch.arange(self.size) // step
        return index[:, None, None] * parts**2 + index[None, :, None] * parts + index[None, None]


#: The last features at 48^3 (16 channels), and the bottleneck (128 channels, 12^3).
LAYER = "model.1.submodule.2.1.conv.unit0.adn.A"
BOTTLENECK = "model.1.submodule.1.submodule.1.submodule.conv.unit1.adn.A"


def cases(size: int) -> Iterator[tuple[Setting, Case]]:
    """Every case with the setting that its unit is measured on."""
    setting = Setting(size, "instance")
    for make in (_gradients, _cams, _layers, _perturbations):
        for one in make(setting):
            yield setting, one
    batch = Setting(size, "batch")
    for one in _occlusions(batch):
        yield batch, one
    for one in _windows(setting):
        yield setting, one


def _gradients(at: Setting) -> Iterator[Case]:
    add = partial(Case, "gradients")
    volume, score = at.volume, at.score
    yield add("gradient", "ours", 1, at.ours("gradient"))
    saliency = captum.attr.Saliency(score)
    yield add("gradient", "Captum", 1, lambda: saliency.attribute(volume, target=0, abs=False))
    yield add("gradient", "MONAI", 1, lambda: VanillaGrad(score)(volume.clone(), index=0))
    yield add("input_x_gradient", "ours", 1, at.ours("input_x_gradient"))
    product = captum.attr.InputXGradient(score)
    yield add("input_x_gradient", "Captum", 1, lambda: product.attribute(volume, target=0))
    yield add("deconvnet", "ours", 1, at.ours("deconvnet"))
    yield add("guided_backprop", "ours", 1, at.ours("guided_backprop"))
    for batch, note in ((1, ", one at a time"), (None, "")):
        path = {"steps": STEPS, "baseline": "zero", "batch_size": batch}
        yield add(
            f"integrated_gradients, 20{note}",
            "ours",
            STEPS,
            at.ours("integrated_gradients", **path),
        )
    integrated = captum.attr.IntegratedGradients(score)
    yield add(
        "integrated_gradients, 20",
        "Captum",
        STEPS,
        lambda: integrated.attribute(volume, target=0, n_steps=STEPS, internal_batch_size=1),
    )
    yield add(
        "integrated_gradients, 20, fast",
        "ours",
        STEPS,
        at.ours("integrated_gradients", steps=STEPS, baseline="zero", fast=True),
    )
    yield add("smooth_grad, 20", "ours", STEPS, at.ours("smooth_grad", samples=STEPS))
    noise = float(0.1 * (volume.max() - volume.min()))
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(score))
    yield add(
        "smooth_grad, 20",
        "Captum",
        STEPS,
        lambda: tunnel.attribute(
            volume, nt_samples=STEPS, nt_samples_batch_size=1, stdevs=noise, target=0, abs=False
        ),
    )
    yield add("gradient_shap, 20", "ours", STEPS, at.ours("gradient_shap", samples=STEPS))
    shap = captum.attr.GradientShap(score)
    yield add(
        "gradient_shap, 20",
        "Captum",
        STEPS,
        lambda: shap.attribute(volume, torch.zeros_like(volume), n_samples=STEPS, target=0),
    )
    yield add("deep_lift", "ours", 1 + FORWARD, at.ours("deep_lift", baseline="zero"))
    lift = captum.attr.DeepLift(score)
    yield add("deep_lift", "Captum", 2, lambda: lift.attribute(volume, target=0))
    yield add("lrp", "ours", 1, at.ours("lrp"))


def _cams(at: Setting) -> Iterator[Case]:
    add = partial(Case, "class activation maps")
    volume, score = at.volume, at.score
    for name in ONE_PASS_CAMS:
        yield add(name, "ours", 1, at.ours(name, layer=LAYER))
    module = at.layer(LAYER)
    yield add(
        "grad_cam",
        "Captum",
        1,
        lambda: captum.attr.LayerAttribution.interpolate(
            captum.attr.LayerGradCam(score, module).attribute(volume, target=0),
            (at.size,) * 3,
            "trilinear",
        ),
    )
    # A copy: MONAI leaves its hooks on the network.
    copied = copy.deepcopy(at.network)
    yield add(
        "grad_cam",
        "MONAI",
        1,
        lambda: GradCAM(copied, target_layers=LAYER)(
            volume.clone().requires_grad_(), class_idx=CLASS
        ),
    )
    yield add("eigen_cam", "ours", 3 * FORWARD, at.ours("eigen_cam", layer=LAYER))
    yield add("guided_grad_cam", "ours", 2, at.ours("guided_grad_cam", layer=LAYER))
    together = partial(sx.explain_layers, at.model, at.image, at.target)
    layers = [one.layers[0] for one in together(("grad_cam",))]
    yield add(f"grad_cam, all {len(layers)} layers", "ours", 1, lambda: together(("grad_cam",)))
    yield add(
        f"grad_cam, all {len(layers)} layers",
        "Captum",
        len(layers),
        lambda: [
            captum.attr.LayerGradCam(score, at.layer(name)).attribute(volume, target=0)
            for name in layers
        ],
    )
    yield add(f"6 kinds, all {len(layers)} layers", "ours", 1, lambda: together(ONE_PASS_CAMS))


def _layers(at: Setting) -> Iterator[Case]:
    add = partial(Case, "changes of a layer")
    channels = torch.arange(128)[None, :, None, None, None]
    yield add(
        "ablation_cam, 128 channels",
        "ours",
        128 * FORWARD,
        at.ours("ablation_cam", layer=BOTTLENECK),
    )
    ablation = captum.attr.LayerFeatureAblation(at.score, at.layer(BOTTLENECK))
    yield add(
        "ablation_cam, 128 channels",
        "Captum",
        128 * FORWARD,
        lambda: ablation.attribute(at.volume, target=0, layer_baselines=0, layer_mask=channels),
    )
    yield add(
        "KWC, 16 channels",
        "ours",
        32 * FORWARD,
        at.ours("kernel_weighted_contribution", layer=LAYER),
    )
    yield add("KWC, 16 channels", "by hooks", 32 * FORWARD, lambda: _kwc_by_hooks(at))
    yield add("score_cam, 16 channels", "ours", 16 * FORWARD, at.ours("score_cam", layer=LAYER))
    yield add("smooth_attention_mask", "ours", None, at.ours("smooth_attention_mask"))


def _kwc_by_hooks(at: Setting) -> None:
    """KWC as its public code runs it: the whole network twice a channel, a hook at the layer."""
    module = at.layer(LAYER)
    for channel in range(16):
        for only in (False, True):

            def change(
                _module: object,
                _inputs: object,
                output: torch.Tensor,
                only: bool = only,
                channel: int = channel,
            ) -> torch.Tensor:
                kept = torch.zeros(output.shape[1]) if only else torch.ones(output.shape[1])
                kept[channel] = float(only)
                return output * kept[None, :, None, None, None]

            hook = module.register_forward_hook(change)
            with torch.no_grad():
                (at.network(at.volume).softmax(1)[:, CLASS] * at.ball).sum()
            hook.remove()


def _perturbations(at: Setting) -> Iterator[Case]:
    add = partial(Case, "changes of the input, instance norm")
    third = at.size // 3
    regions = at.regions(3)
    labels = sx.make_image(regions.float() + 1, np.eye(4))
    yield add(
        "occlusion, 27 boxes",
        "ours",
        27 * FORWARD,
        at.ours("occlusion", box_mm=third, stride=1.0, baseline="zero"),
    )
    occlusion = captum.attr.Occlusion(at.score)
    box = (1, third, third, third)
    yield add(
        "occlusion, 27 boxes",
        "Captum",
        27 * FORWARD,
        lambda: occlusion.attribute(at.volume, box, strides=box, target=0),
    )
    yield add(
        "region_ablation, 27 regions",
        "ours",
        27 * FORWARD,
        at.ours("region_ablation", regions="segments", segments=labels, baseline="zero"),
    )
    ablation = captum.attr.FeatureAblation(at.score)
    yield add(
        "region_ablation, 27 regions",
        "Captum",
        27 * FORWARD,
        lambda: ablation.attribute(at.volume, target=0, feature_mask=regions[None, None]),
    )
    yield add(
        "kernel_shap, 27 regions, 60 samples",
        "ours",
        60 * FORWARD,
        at.ours("kernel_shap", regions="segments", segments=labels, baseline="zero", samples=60),
    )
    shap = captum.attr.KernelShap(at.score)
    yield add(
        "kernel_shap, 27 regions, 60 samples",
        "Captum",
        60 * FORWARD,
        lambda: shap.attribute(at.volume, target=0, feature_mask=regions[None, None], n_samples=60),
    )
    yield add("rise, 20 masks", "ours", 20 * FORWARD, at.ours("rise", masks=20))


def _occlusions(at: Setting) -> Iterator[Case]:
    add = partial(Case, "changes of the input, batch norm")
    sixth = at.size // 6
    box = (1, sixth, sixth, sixth)
    yield add(
        "occlusion, 216 boxes",
        "ours",
        216 * FORWARD,
        at.ours("occlusion", box_mm=sixth, stride=1.0, baseline="zero"),
    )
    occlusion = captum.attr.Occlusion(at.score)
    yield add(
        "occlusion, 216 boxes",
        "Captum",
        216 * FORWARD,
        lambda: occlusion.attribute(at.volume, box, strides=box, target=0),
    )


def _windows(at: Setting) -> Iterator[Case]:
    """Four windows in a row; the target lies in the first, the regions everywhere."""
    add = partial(Case, "sliding windows, 4 in a row")
    long = torch.randn(1, 1, at.size, at.size, at.size * 5 // 2)
    image = sx.make_image(long[0], np.eye(4))
    inferer = SlidingWindowInferer(at.size, overlap=0.5, mode="gaussian")
    model = sx.load_model(at.network, task="segmentation", inferer=inferer)
    mask = torch.zeros(long.shape[2:])
    mask[..., : at.size // 3] = at.ball[..., : at.size // 3]
    target = sx.Target(output=CLASS, segment=sx.make_image(mask, np.eye(4)))
    index = torch.arange(long.shape[4]) // (long.shape[4] // 8)
    regions = index.clamp(max=7).expand(long.shape[2:])
    labels = sx.make_image(regions.float() + 1, np.eye(4))

    def fused(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            output = sliding_window_inference(
                x, at.size, 1, at.network, overlap=0.5, mode="gaussian"
            )
        return (output[:, CLASS] * mask).flatten(1).sum(1, keepdim=True) / mask.sum()

    for name, parameters, runs in (
        ("region_ablation", {}, 8),
        ("kernel_shap", {"samples": 24}, 24),
    ):
        given = {"regions": "segments", "segments": labels, "baseline": "zero", **parameters}
        yield add(
            f"{name}, 8 regions, {runs} changes",
            "ours",
            (runs + 1) * 4 * FORWARD,
            partial(sx.explain, model, image, target, name, **given),
        )
    ablation = captum.attr.FeatureAblation(fused)
    yield add(
        "region_ablation, 8 regions, 8 changes",
        "Captum",
        9 * 4 * FORWARD,
        lambda: ablation.attribute(long, target=0, feature_mask=regions[None, None]),
    )
    shap = captum.attr.KernelShap(fused)
    yield add(
        "kernel_shap, 8 regions, 24 changes",
        "Captum",
        25 * 4 * FORWARD,
        lambda: shap.attribute(long, target=0, feature_mask=regions[None, None], n_samples=24),
    )
