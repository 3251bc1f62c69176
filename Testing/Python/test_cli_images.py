"""The shell's ways to name images: channels by name, DICOM series, frames, what replaces NaN."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_cases import failure
from dicom_cases import a_series

from SaliencyExplainLib.cli import main
from SaliencyExplainLib.image import make_image, read_image, write_image

NETWORK = "test_cli_images:two_channels"


class TwoChannels(torch.nn.Module):
    """Answers with T1 alone, so that its gradient tells which volume became the first channel."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1] == self.channels
        return torch.cat([x[:, :1], -x[:, :1]], 1) * self.weight


def two_channels() -> torch.nn.Module:
    return TwoChannels(2)


def one_channel() -> torch.nn.Module:
    return TwoChannels(1)


def an_affine(spacing: float) -> np.ndarray:
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -spacing * 4
    return affine


@pytest.fixture
def folder(tmp_path) -> Path:
    torch.save(TwoChannels().state_dict(), tmp_path / "weights.pt")
    for name, spacing in (("t1", 1.0), ("flair", 2.0)):
        voxels = np.random.default_rng(0).normal(size=(9, 9, 9))
        write_image(make_image(voxels, an_affine(spacing)), tmp_path / f"{name}.nrrd")
    return tmp_path


def words(folder: Path, *images: object, network: str = NETWORK, more: tuple = ()) -> list[str]:
    given = ["explain", "--model", folder / "weights.pt", "--network", network]
    given += ["--task", "segmentation", "--labels", "a,b", "--target", "a", "--quiet"]
    given += ["--region", "everywhere", "--method", "input_x_gradient", "--param", "baseline=zero"]
    given += ["--no-figure", "--output", folder / "out", "--image", *images, *more]
    return [str(one) for one in given]


def test_named_volumes_go_to_the_channels_that_the_model_names(folder, capsys):
    images = (f"FLAIR={folder / 'flair.nrrd'}", f"t1={folder / 't1.nrrd'}")
    assert main(words(folder, *images, more=("--channels", "T1,FLAIR", "--resample"))) == 0
    t1, flair = (read_image(folder / "out" / f"map_{index}.nrrd") for index in (0, 1))
    # On the grid of T1, the model's first, though FLAIR was given first.
    np.testing.assert_allclose(t1.affine, an_affine(1.0))
    assert float(t1.abs().max()) > 0 == float(flair.abs().max())
    told = json.loads((folder / "out" / "explanation.json").read_text(encoding="utf-8"))
    assert "flair.nrrd was interpolated onto the grid of t1.nrrd." in told["warnings"]
    assert told["image"]["name"] == "t1.nrrd, flair.nrrd"
    assert "note: flair.nrrd was interpolated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("images", "more", "told"),
    [
        (("T1=t1.nrrd", "flair.nrrd"), (), "Some volumes of --image have a CHANNEL= in front"),
        (("T1=t1.nrrd", "T1=flair.nrrd"), (), "channel 'T1' was given twice"),
        (("T1=t1.nrrd", "T2=flair.nrrd"), ("--channels", "T1,FLAIR"), "'T2' is none of them"),
        (("T1=t1.nrrd", "FLAIR=flair.nrrd"), (), "does not name its input channels"),
        (("t1.nrrd", "flair.nrrd"), (), "lies on another grid than 't1.nrrd'"),
    ],
)
def test_names_that_do_not_fit_are_told(images, more, told, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(words(folder, *images, more=more)) == 1
    assert told in failure(capsys)


def test_a_file_with_an_equals_sign_in_its_name_is_a_file(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "t1.nrrd").rename(folder / "te=30.nrrd")
    assert main(words(folder, "te=30.nrrd", "te=30.nrrd")) == 0


def test_a_series_a_frame_and_a_filling_are_chosen(folder, capsys):
    one = {"network": "test_cli_images:one_channel"}
    places = [(0, 0, 2.0 * index) for index in range(4)]
    voxels = np.arange(1, 65).reshape(4, 4, 4)
    for number in (1, 2):
        a_series(folder / "head", voxels * number, places, number=number)
    assert main(words(folder, folder / "head", **one)) == 1
    assert "holds 2 series" in failure(capsys)
    assert main(words(folder, folder / "head", **one, more=("--series", "2"))) == 0
    assert read_image(folder / "out" / "map.nrrd").shape == (1, 4, 4, 4)
    film = np.stack([voxels, voxels]).astype(np.float32)
    film[1, 0, 0, 0] = np.nan
    write_image(make_image(film, np.eye(4)), folder / "film.nrrd")
    frame = ("--frame", "1")
    capsys.readouterr()
    assert main(words(folder, folder / "film.nrrd", **one, more=frame)) == 1
    assert "holds 1 values that are NaN" in failure(capsys)
    assert main(words(folder, folder / "film.nrrd", **one, more=(*frame, "--fill", "0"))) == 0
    told = json.loads((folder / "out" / "explanation.json").read_text(encoding="utf-8"))
    assert "1 values were NaN or infinite; 0 stands in their place." in told["warnings"]
