"""The sheet of all layers' maps, and the shell's command that makes it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from cli_cases import failure
from monai.networks.nets import UNet
from references import as_model

import SaliencyExplainLib as sx
from SaliencyExplainLib.cli import main
from SaliencyExplainLib.contact_sheet import contact_sheet, draw_contact_sheet
from SaliencyExplainLib.errors import ImageError


@pytest.fixture
def maps(a_volume):
    torch.manual_seed(0)
    model = as_model(UNet(3, 1, 2, (4, 8), (2,), norm="batch"))
    image = a_volume(1, 12, 12, 10)
    return image, sx.explain_layers(model, image, sx.Target(output=1, region="everywhere"))


def texts(figure) -> list[str]:
    return [one.get_text() for one in figure.texts]


def test_each_map_has_a_picture_with_its_number_and_name(maps):
    image, found = maps
    figure = draw_contact_sheet(image, found)
    assert [axes.get_gid() for axes in figure.axes] == [f"{i}-axial" for i in range(len(found))]
    joined = "".join(texts(figure)).replace("...", "")
    for number, one in enumerate(found):
        assert f"{number} {one.layers[0]}"[:12] in joined
        assert one.layers[0][-8:] in joined


def test_a_map_that_is_zero_everywhere_says_so(maps):
    image, found = maps
    found[1].maps[...] = 0
    assert texts(draw_contact_sheet(image, found)).count("zero everywhere") == 1


def test_the_plane_goes_where_it_is_told(maps):
    image, found = maps
    figure = draw_contact_sheet(image, found, at_ras_mm=(3, 4, 5), plane="coronal")
    assert any("coronal slice, A = 4.0 mm" in one for one in texts(figure))
    assert figure.axes[0].get_gid() == "0-coronal"


def test_the_plane_goes_through_the_middle_of_the_maps(maps):
    image, found = maps
    for one in found:
        one.maps[...] = 0
        one.maps[:, 2, 3, 7] = 1
    assert any("S = 7.0 mm" in one for one in texts(draw_contact_sheet(image, found)))


def test_nothing_to_draw_and_an_unknown_plane_are_refused(maps):
    image, found = maps
    with pytest.raises(ImageError, match="needs at least one explanation"):
        draw_contact_sheet(image, [])
    with pytest.raises(ImageError, match="must be one of axial, coronal, sagittal; 'top'"):
        draw_contact_sheet(image, found, plane="top")


def test_the_sheet_is_written_whole(maps, tmp_path):
    image, found = maps
    assert contact_sheet(image, found, tmp_path / "a" / "sheet.png").stat().st_size > 10_000
    assert [one.name for one in (tmp_path / "a").iterdir()] == ["sheet.png"]


# ------------------------------------------------------------------------------------------------
# The shell


@pytest.fixture
def files(tmp_path):
    torch.manual_seed(0)
    network = UNet(3, 1, 2, (4, 8), (2,), norm="batch")
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    affine = np.diag([2.0, 1.0, 1.5, 1.0])
    voxels = np.random.default_rng(0).normal(size=(12, 8, 10)).astype(np.float32)
    sx.write_image(sx.make_image(voxels[None], affine), tmp_path / "image.nii.gz")
    arguments = {
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 2,
        "channels": [4, 8],
        "strides": [2],
        "norm": "batch",
    }
    words = ["layers", "--model", tmp_path / "weights.pt", "--task", "segmentation"]
    words += ["--network", "monai.networks.nets:UNet", "--network-arguments", json.dumps(arguments)]
    words += ["--image", tmp_path / "image.nii.gz", "--target", "1", "--region", "everywhere"]
    return [str(one) for one in words], tmp_path / "out"


def test_the_shell_writes_sheet_list_and_volumes_on_their_own_grids(files, capsys):
    words, out = files
    assert main([*words, "--output", str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert sorted(one.name for one in out.iterdir()) == ["layer_maps", "layers.json", "layers.png"]
    listed = json.loads((out / "layers.json").read_text(encoding="utf-8"))["layers"]
    assert listed == answer["layers"]
    coarse = next(one for one in listed if one["spacing_voxels"] == [2, 2, 2])
    assert sx.read_image(out / coarse["file"]).shape == (1, *coarse["shape"][1:])
    assert len(list((out / "layer_maps").iterdir())) == len(listed)


def test_layers_may_be_named_in_the_shell(files, capsys):
    words, out = files
    chosen = "model.0.conv,model.0.adn.A"
    assert main([*words, "--layers", chosen, "--no-figure", "--output", str(out)]) == 0
    assert "Grad-CAM of 2 layers" in capsys.readouterr().out
    assert not (out / "layers.png").exists()


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--layers", "model.0.conf"], "no layer 'model.0.conf'. Nearest: model.0.conv"),
        (["--method", "occlusion"], "Occlusion needs passes of its own"),
        (["--layers", "a,a"], "named twice"),
        (["--instance", "1", "--point", "0", "0", "0"], "name two regions"),
    ],
)
def test_the_shell_says_in_a_sentence_what_does_not_fit(files, capsys, extra, sentence):
    words, out = files
    if "--instance" in extra:
        words = words[: words.index("--region")]
    assert main([*words, *extra, "--output", str(out), "--quiet"]) == 1
    assert sentence in failure(capsys)
    assert not out.exists()
