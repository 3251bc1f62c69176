"""A whole-body CT through sliding windows: time and peak memory of gradient and layer methods.

A synthetic CT of 512 x 512 x 200 voxels (an elliptic body with organs, bones and lungs, in HU), a
MONAI UNet with windows of 96^3, overlap 0.25 and Gaussian fusion. Each method runs in a process of
its own, so that its peak is its own. Memory is the largest resident size of the process, less what
it held with the volume and the network loaded.

    python Testing/Benchmarks/whole_scan.py [--shape 512 512 200] [--methods gradient grad_cam]
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SHAPE = (512, 512, 200)
METHODS = ("gradient", "guided_backprop", "grad_cam", "hires_cam")


def synthetic_ct(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """HU values of a made-up trunk, shape (I, J, K), float32."""
    generator = np.random.default_rng(seed)
    axes = [np.linspace(-1, 1, size, dtype=np.float32) for size in shape]
    x, y, z = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None]

    def ball(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
        distance = sum(
            ((one - middle) / radius) ** 2
            for one, middle, radius in zip((x, y, z), centre, radii, strict=True)
        )
        return np.asarray(distance < 1)

    ct = np.full(shape, -1000.0, dtype=np.float32)
    ct[ball((0, 0, 0), (0.8, 0.55, 3.0))] = 40
    for side in (-0.35, 0.35):
        ct[ball((side, 0, 0.5), (0.28, 0.38, 0.5))] = -820
    ct[ball((-0.35, 0, -0.35), (0.35, 0.35, 0.35))] = 110
    ct[ball((0, 0.38, 0), (0.09, 0.1, 3.0))] = 450
    ct += generator.normal(0, 15, shape).astype(np.float32)
    return ct


def measure(shape: tuple[int, int, int], method: str) -> dict[str, object]:
    """Run one method in this process."""
    import torch
    from monai.inferers import SlidingWindowInferer
    from monai.networks.nets import UNet

    import SaliencyExplainLib as sx

    torch.manual_seed(0)
    torch.set_num_threads(2)
    network = UNet(3, 1, 3, (16, 32, 64, 128), (2, 2, 2), num_res_units=2)
    model = sx.load_model(
        network,
        task="segmentation",
        inferer=SlidingWindowInferer(96, overlap=0.25, mode="gaussian"),
    )
    affine = np.diag([0.8, 0.8, 2.5, 1.0])
    image = sx.make_image(synthetic_ct(shape)[None] / 1000, affine)
    middle = [float(one) for one in affine[:3, :3] @ (np.array(shape) / 2)]
    corners = tuple(tuple(one + side for one in middle) for side in (-60.0, 60.0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {}
    for name, target in {
        "everywhere": sx.Target(output=1, region="everywhere"),
        "12 cm box": sx.Target(output=1, roi_ras_mm=corners),
    }.items():
        started = time.perf_counter()
        made = sx.explain(model, image, target, method)
        found[name] = {
            "seconds": time.perf_counter() - started,
            "nonzero": float((made.map != 0).float().mean()),
        }
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"runs": found, "start_mb": before * 1024 / 1e6, "peak_mb": after * 1024 / 1e6}


def main() -> None:
    """Measure each method in a process of its own and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=SHAPE)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--output", type=Path, default=HERE / "whole_scan.md")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = tuple(arguments.shape)
    if arguments.one:
        print(json.dumps(measure(shape, arguments.one)))
        return
    size = " x ".join(map(str, shape))
    lines = [
        "# A whole scan through sliding windows",
        "",
        f"Synthetic CT of {size} voxels, MONAI UNet (16-32-64-128), windows of 96^3, overlap 0.25, "
        "Gaussian fusion, 3 classes; two torch threads. The volume alone has "
        f"{np.prod(shape) * 4 / 1e6:.0f} MB, the fused output of three classes three times that. "
        f"Machine: {platform.machine()}, {platform.system()}. Made by "
        "`python Testing/Benchmarks/whole_scan.py`.",
        "",
        "| method | everywhere, s | 12 cm box, s | loaded, MB | peak, MB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for method in arguments.methods:
        command = [sys.executable, __file__, "--one", method, "--shape", *map(str, shape)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        seconds = [f"{run['seconds']:.0f}" for run in found["runs"].values()]
        lines.append(
            f"| {method} | {' | '.join(seconds)} | {found['start_mb']:.0f} | "
            f"{found['peak_mb']:.0f} |"
        )
        print(lines[-1], flush=True)
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
