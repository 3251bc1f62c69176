"""A tiny model and image on disk, and what the tests of the shell share."""

from pathlib import Path

import numpy as np
import torch

from SaliencyExplainLib.image import make_image, write_image

SHAPE = (14, 16, 12)
LABELS = "background,lesion,vessel"


class TinyNetwork(torch.nn.Module):
    """Two convolutions; bright voxels are lesion, dark ones vessel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv3d(1, 4, 3, padding=1)
        self.act = torch.nn.ReLU()
        self.last = torch.nn.Conv3d(4, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = 0.1 * self.last(self.act(self.first(x)))
        return scores + torch.cat([0.0 * x, x, -x], dim=1)


def a_tiny_network() -> TinyNetwork:
    return TinyNetwork()


def write_inputs(folder: Path) -> None:
    """Write model (TorchScript and weights), image, label map and names."""
    network = TinyNetwork().eval()
    torch.jit.save(torch.jit.trace(network, torch.zeros(1, 1, 8, 8, 8)), folder / "model.ts")
    torch.save(network.state_dict(), folder / "weights.pt")
    affine = np.diag([-2.0, 1.5, 3.0, 1.0])
    affine[:3, 3] = (13.0, -12.0, -16.5)
    voxels = np.random.default_rng(0).normal(size=SHAPE)
    write_image(make_image(voxels, affine), folder / "scan.nii.gz")
    write_image(make_image(voxels[:-1], affine), folder / "smaller.nii.gz")
    labels = np.zeros(SHAPE)
    labels[2:6, 3:9, 2:8], labels[8:12, 3:9, 2:8] = 1, 4
    write_image(make_image(labels, affine), folder / "labels.nii.gz")
    (folder / "names.csv").write_text("label,name\n1,liver\n4,spleen\n")
    (folder / "names.json").write_text('{"1": "liver", "4": "spleen"}')


def explain_words(inputs: Path, out: Path, *more: object) -> list[str]:
    """Arguments of a run that works."""
    words = ["explain", "--model", inputs / "model.ts", "--trust", "--task", "segmentation"]
    words += ["--labels", LABELS, "--image", inputs / "scan.nii.gz", "--method", "gradient"]
    words += ["--target", "lesion", "--output", out]
    return [str(word) for word in (*words, *more)]


def failure(capsys) -> str:
    """The one sentence (or few) on standard error, without progress lines."""
    written = capsys.readouterr()
    assert written.out == ""
    lines = [line for line in written.err.splitlines() if "% " not in line]
    assert len(lines) == 1, written.err
    assert lines[0].startswith("Error: ")
    return lines[0]


def everything_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def replaced(words: list[str], option: str, value: object) -> list[str]:
    at = words.index(option)
    return [*words[: at + 1], str(value), *words[at + 2 :]]
