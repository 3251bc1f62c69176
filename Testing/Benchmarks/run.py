"""Cost of each method, here and in the peers that have it, in one run.

Every time is divided by the floor of one pass: a forward pass and a backward pass to the input with
frozen weights, taken in turn with the method in the same process. Peak memory is the resident size
above that before the call. Writes a table to Testing/Benchmarks/results.md (or --output). One torch
thread, so that times are CPU times.

    python Testing/Benchmarks/run.py [--size 96] [--repeats 3] [--only gradient ...]
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import captum.attr
import monai
import numpy as np
import torch
from monai.networks.nets import UNet
from monai.visualize import GradCAM, VanillaGrad

import SaliencyExplainLib as sx
from SaliencyExplainLib.engine import MemoryMeter

HERE = Path(__file__).parent
STEPS = 20
CLASS = 1


@dataclass(frozen=True)
class Row:
    """One method of one library: time as a multiple of the floor, and peak memory."""

    method: str
    library: str
    ratio: float
    low: float
    high: float
    megabytes: float
    floor: float


class Score(torch.nn.Module):
    """The same number for the peers: mean logit of one class inside a frozen mask."""

    def __init__(self, network: torch.nn.Module, mask: torch.Tensor) -> None:
        super().__init__()
        self.network = network
        self.mask = mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.network(x)[:, CLASS]
        return (logits * self.mask).flatten(1).sum(1, keepdim=True) / self.mask.sum()


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of CPU and peak memory in MB of one call."""
    gc.collect()
    with MemoryMeter(torch.device("cpu")) as meter:
        start = time.process_time()
        call()
        seconds = time.process_time() - start
    return seconds, float("nan") if meter.peak_mb is None else meter.peak_mb


def compare(
    name: str,
    library: str,
    floor_passes: float,
    call: Callable[[], object],
    one_pass: Callable[[], object],
    repeats: int,
) -> Row:
    """Run the method and the unit in turn; the ratio is taken pair by pair."""
    call()
    pairs = [(timed(one_pass), timed(call)) for _ in range(repeats)]
    ratios = [method[0] / unit[0] for unit, method in pairs]
    row = Row(
        name,
        library,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        statistics.median(method[1] for _, method in pairs),
        floor_passes,
    )
    spread = f"({row.low:.2f}-{row.high:.2f})"
    print(f"{name:<28}{library:<10}{row.ratio:>8.2f} x {spread}{row.megabytes:>9.0f} MB")
    return row


def main() -> None:
    """Run the benchmark and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=96, help="voxels along each axis")
    parser.add_argument("--repeats", type=int, default=3, help="timed pairs of each method")
    parser.add_argument("--only", nargs="*", default=[], help="methods to run; all when left out")
    parser.add_argument("--output", type=Path, default=HERE / "results.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = (
        UNet(3, 1, 4, (16, 32, 64, 128), (2, 2, 2), num_res_units=2).eval().requires_grad_(False)
    )
    volume = torch.randn(1, 1, *[arguments.size] * 3)
    image = sx.make_image(volume[0], np.eye(4))
    axis = torch.linspace(-1, 1, arguments.size)
    ball = (axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None] ** 2) < 0.25
    target = sx.Target(
        output=CLASS, region="segment", segment=sx.make_image(ball.float(), np.eye(4))
    )
    model = sx.load_model(network, task="segmentation")
    score = Score(network, ball.float())
    layer = "model.1.submodule.2.1.conv.unit0.adn.A"
    module = dict(network.named_modules())[layer]
    bottleneck = "model.1.submodule.1.submodule.1.submodule.conv.unit1.adn.A"
    channel_mask = torch.arange(128)[None, :, None, None, None]
    third = arguments.size // 3
    # What a forward pass costs in units of forward and backward, measured on this network.
    forward = 0.37

    def one_pass() -> None:
        leaf = volume.clone().requires_grad_()
        torch.autograd.grad(score(leaf).sum(), leaf)

    def ours(name: str, **parameters: object) -> Callable[[], object]:
        return lambda: sx.explain(model, image, target, name, **parameters)

    def smooth() -> object:
        tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(score))
        noise = float(0.1 * (volume.max() - volume.min()))
        return tunnel.attribute(
            volume, nt_samples=STEPS, nt_samples_batch_size=1, stdevs=noise, target=0, abs=False
        )

    cases: list[tuple[str, str, float, Callable[[], object]]] = [
        ("gradient", "ours", 1, ours("gradient")),
        (
            "gradient",
            "Captum",
            1,
            lambda: captum.attr.Saliency(score).attribute(volume, target=0, abs=False),
        ),
        ("gradient", "MONAI", 1, lambda: VanillaGrad(score)(volume.clone(), index=0)),
        ("input_x_gradient", "ours", 1, ours("input_x_gradient")),
        (
            "input_x_gradient",
            "Captum",
            1,
            lambda: captum.attr.InputXGradient(score).attribute(volume, target=0),
        ),
        ("deconvnet", "ours", 1, ours("deconvnet")),
        ("guided_backprop", "ours", 1, ours("guided_backprop")),
        (
            "integrated_gradients",
            "ours",
            STEPS,
            ours("integrated_gradients", steps=STEPS, baseline="zero"),
        ),
        (
            "integrated_gradients",
            "Captum",
            STEPS,
            lambda: captum.attr.IntegratedGradients(score).attribute(
                volume, target=0, n_steps=STEPS, internal_batch_size=1
            ),
        ),
        ("smooth_grad", "ours", STEPS, ours("smooth_grad", samples=STEPS)),
        ("smooth_grad", "Captum", STEPS, smooth),
        ("grad_cam", "ours", 1, ours("grad_cam", layer=layer)),
        (
            "grad_cam",
            "Captum",
            1,
            lambda: captum.attr.LayerAttribution.interpolate(
                captum.attr.LayerGradCam(score, module).attribute(volume, target=0),
                (arguments.size,) * 3,
                "trilinear",
            ),
        ),
        (
            "grad_cam",
            "MONAI",
            1,
            lambda: GradCAM(network, target_layers=layer)(
                volume.clone().requires_grad_(), class_idx=CLASS
            ),
        ),
        ("grad_cam_plus_plus", "ours", 1, ours("grad_cam_plus_plus", layer=layer)),
        ("hires_cam", "ours", 1, ours("hires_cam", layer=layer)),
        ("layer_cam", "ours", 1, ours("layer_cam", layer=layer)),
        (
            "occlusion, 27 boxes",
            "ours",
            27 * forward,
            ours("occlusion", box_mm=third, stride=1.0, baseline="zero"),
        ),
        (
            "occlusion, 27 boxes",
            "Captum",
            27 * forward,
            lambda: captum.attr.Occlusion(score).attribute(
                volume, (1, third, third, third), strides=(1, third, third, third), target=0
            ),
        ),
        (
            "ablation_cam, 128 channels",
            "ours",
            128 * forward,
            ours("ablation_cam", layer=bottleneck),
        ),
        (
            "ablation_cam, 128 channels",
            "Captum",
            128 * forward,
            lambda: captum.attr.LayerFeatureAblation(
                score, dict(network.named_modules())[bottleneck]
            ).attribute(volume, target=0, layer_baselines=0, layer_mask=channel_mask),
        ),
        (
            "KWC, 16 channels",
            "ours",
            32 * forward,
            ours("kernel_weighted_contribution", layer=layer),
        ),
    ]
    rows = [
        compare(name, library, floor, call, one_pass, arguments.repeats)
        for name, library, floor, call in cases
        if not arguments.only or name.split(",")[0] in arguments.only
    ]
    unit = [timed(one_pass) for _ in range(arguments.repeats)]
    arguments.output.write_text(_table(rows, arguments.size, unit), encoding="utf-8")
    print(f"written: {arguments.output}")


def _table(rows: list[Row], size: int, unit: list[tuple[float, float]]) -> str:
    seconds, megabytes = (statistics.median(values) for values in zip(*unit, strict=True))
    lines = [
        "# Cost of the methods",
        "",
        f"MONAI UNet (16-32-64-128, two residual units), {size}^3 voxels, mean logit of one class "
        "inside a ball. "
        "Unit: one forward pass and one backward pass to the input with frozen weights, "
        f"{seconds:.2f} s of CPU and "
        f"{megabytes:.0f} MB here. One torch thread; median (minimum - maximum) of pairs run in "
        "turn.",
        "",
        f"Machine: {_processor()}, {platform.system()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, "
        f"MONAI {monai.__version__}, Captum {captum.__version__}. Made by `make bench`.",
        "",
        "| method | library | units needed | time / unit | peak MB |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.method} | {row.library} | {row.floor:.3g} | {row.ratio:.2f} ({row.low:.2f} - "
        f"{row.high:.2f}) | "
        f"{row.megabytes:.0f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    names = [
        line.partition(":")[2].strip()
        for line in text.splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
