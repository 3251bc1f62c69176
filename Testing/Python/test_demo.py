"""The demo, with a network of a few weights and a head of a few voxels."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from cli_cases import everything_below, failure
from monai.networks.nets import UNet

from SaliencyExplainLib import demo as demo_module
from SaliencyExplainLib.cli import main
from SaliencyExplainLib.demo import METHODS, TARGETS, demo, demo_model, template
from SaliencyExplainLib.errors import MissingPackageError, ModelError
from SaliencyExplainLib.image import make_image, ras_to_ijk, voxel_volume_ml, write_image

pytest.importorskip("slicer", reason="the demo writes a scene, which needs slicer-core")

ARGUMENTS = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 4,
    "channels": [4, 4, 4],
    "strides": [2, 2],
    "num_res_units": 1,
}
OUTPUTS = {"0": "background", "1": "CSF", "2": "grey matter", "3": "white matter"}


@pytest.fixture
def a_head(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(24, 20, 16))
    affine = np.diag([-3.0, 3.0, 4.0, 1.0])
    return write_image(make_image(voxels, affine), tmp_path / "inputs" / "head.nii.gz")


@pytest.fixture
def a_bundle(tmp_path):
    """A MONAI bundle like the demo's, with random weights that predict each class somewhere."""
    torch.manual_seed(0)
    network = UNet(**ARGUMENTS).eval()
    with torch.no_grad():
        middle = network(torch.randn(1, 1, 24, 24, 16)).mean((0, 2, 3, 4))
        biases = [one for name, one in network.named_parameters() if name.endswith("bias")]
        biases[-1].sub_(middle)
    folder = tmp_path / "inputs" / "BrainTissue"
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True)
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    steps = [{"_target_": "DivisiblePadd", "keys": "image", "k": 8}]
    config = {
        "network_def": {"_target_": "UNet", **ARGUMENTS},
        "preprocessing": {"_target_": "Compose", "transforms": steps},
        "inferer": {"_target_": "SimpleInferer"},
    }
    data = {
        "inputs": {"image": {"type": "image", "num_channels": 1, "channel_def": {"0": "T1"}}},
        "outputs": {
            "pred": {
                "type": "image",
                "format": "segmentation",
                "num_channels": 4,
                "channel_def": OUTPUTS,
            }
        },
    }
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "configs" / "metadata.json").write_text(json.dumps({"network_data_format": data}))
    return folder


@pytest.fixture
def the_bundle_in_place(a_bundle, monkeypatch):
    """The demo finds the tiny bundle where it looks for its own."""
    monkeypatch.setattr(demo_module, "demo_model", lambda bundle=None: demo_model(a_bundle))


def test_the_demo_explains_two_targets_with_four_methods(tmp_path, a_head, a_bundle):
    out = tmp_path / "out"
    out.mkdir()
    lines, fractions = [], []
    facts = demo(
        out,
        image=a_head,
        bundle=a_bundle,
        say=lines.append,
        progress=lambda fraction, message: fractions.append(fraction),
    )
    runs = [(run["target"], run["method"]) for run in facts["runs"]]
    assert runs == [(target, method) for target in TARGETS for method in METHODS]
    files = everything_below(out)
    for run in facts["runs"]:
        assert f"{run['folder']}/map.nrrd" in files
        assert f"{run['folder']}/explanation.json" in files
    assert {"overlay_grey_matter.png", "overlay_white_matter.png", "scene.mrb"} < files
    with (out / "regions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == set(METHODS)
    assert {row["name"] for row in rows} == {"outside", "CSF", "grey matter", "white matter"}
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert sum("S = " in line for line in lines) == 8
    assert any("completeness error" in line for line in lines)


@pytest.mark.usefixtures("the_bundle_in_place")
def test_the_quick_demo_has_one_target_and_says_where_everything_is(tmp_path, a_head, capsys):
    words = ["demo", "--quick", "--image", str(a_head), "--output", str(tmp_path / "out")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "4 runs: " in said
    assert f"Everything is in {tmp_path / 'out'}" in said
    for name in ("scene.mrb", "overlay_white_matter.png", "white_matter/grad_cam/"):
        assert name in said
        assert (tmp_path / "out" / name).exists()
    assert not (tmp_path / "out" / "grey_matter").exists()


@pytest.mark.usefixtures("the_bundle_in_place")
def test_the_demo_answers_in_json(tmp_path, a_head, capsys):
    words = ["demo", "--quick", "--image", str(a_head), "--output", str(tmp_path / "out"), "--json"]
    assert main(words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [run["method"] for run in answer["runs"]] == list(METHODS)
    assert answer["peak_memory_mb"] is None or answer["peak_memory_mb"] > 100


def test_a_missing_head_ends_in_a_sentence(tmp_path, a_bundle, the_bundle_in_place, capsys):
    words = ["demo", "--image", "nowhere.nii.gz", "--output", str(tmp_path / "out")]
    assert main(words) == 1
    assert "There is no file 'nowhere.nii.gz'" in failure(capsys)
    assert not (tmp_path / "out").exists()


def test_a_missing_model_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(ModelError, match="The demo's model is not there"):
        demo_model(tmp_path / "BrainTissue")


def test_a_missing_nilearn_is_named_with_its_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(MissingPackageError, match="pip install nilearn"):
        template()


def test_the_template_has_the_tissue_volumes_of_a_brain_and_fits_one_window():
    pytest.importorskip("nilearn", reason="the demo takes its brain from nilearn")
    image, labels, names = template()
    assert max(image.shape[1:]) <= 192
    millilitres = np.bincount(labels.numpy().astype(int).ravel()) * voxel_volume_ml(labels.affine)
    # The template is a little larger than a brain (about 600 ml grey, 500 ml white matter).
    assert 900 < millilitres[2] < 1200
    assert 500 < millilitres[3] < 700
    assert 50 < millilitres[1] < 400
    assert names == {1: "CSF", 2: "grey matter", 3: "white matter"}
    # The corpus callosum of MNI space is white matter.
    index = np.rint(ras_to_ijk(labels.affine, (0, -35, 14))).astype(int)
    assert labels[(0, *index)] == 3
