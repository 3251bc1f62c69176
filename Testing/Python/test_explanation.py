"""What a run gives back: joined maps, JSON, and files that are written whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import SaliencyExplainLib as sx
from SaliencyExplainLib.errors import ImageError, SaliencyExplainError
from SaliencyExplainLib.explanation import write_text
from SaliencyExplainLib.image import make_image

AFFINE = np.array([[0, -2.0, 0, 5], [1.5, 0, 0.3, -7], [0, 0, 3.0, 11], [0, 0, 0, 1]])
COARSE = AFFINE @ np.diag([2.0, 2, 2, 1])


def an_explanation(channels: int = 1, **changes) -> sx.Explanation:
    random = np.random.default_rng(0)
    made = sx.Explanation(
        maps=make_image(random.normal(size=(channels, 4, 5, 6)), AFFINE),
        network_maps=make_image(random.normal(size=(channels, 3, 3, 3)), COARSE),
        value=1.5,
        target={"output": 1, "output_name": "liver", "region": "prediction"},
        method="gradient",
        title="Gradient",
        parameters={"steps": 3},
        signed=True,
    )
    return replace(made, **changes)


def test_one_channel_is_the_map_itself():
    made = an_explanation()
    assert torch.equal(made.map.as_tensor(), made.maps.as_tensor())


@pytest.mark.parametrize("name", ["map", "network_map"])
def test_channels_of_an_additive_method_are_summed(name):
    made = an_explanation(3)
    channels = getattr(made, f"{name}s")
    joined = getattr(made, name)
    np.testing.assert_allclose(joined[0], channels.numpy().sum(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(joined.affine, channels.affine)


@pytest.mark.parametrize("name", ["map", "network_map"])
def test_channels_may_be_joined_by_their_largest_magnitude(name):
    made = an_explanation(3, combine="max_abs")
    channels = getattr(made, f"{name}s")
    np.testing.assert_allclose(getattr(made, name)[0], np.abs(channels.numpy()).max(0))


def test_an_explanation_as_json_has_everything_but_the_voxels():
    made = an_explanation(2, completeness_error=0.01, warnings=("careful",), layers=("a.b",))
    told = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert told["value"] == 1.5
    assert told["target"]["output_name"] == "liver"
    assert (told["method"], told["parameters"]) == ("gradient", {"steps": 3})
    assert (told["warnings"], told["layers"]) == (["careful"], ["a.b"])
    assert told["completeness_error"] == 0.01
    np.testing.assert_allclose(told["map"]["ijk_to_ras"], AFFINE)
    assert (told["map"]["channels"], told["map"]["shape_ijk"]) == (2, [4, 5, 6])
    assert told["map"]["network_shape_ijk"] == [3, 3, 3]
    assert told["map"]["minimum"] == pytest.approx(float(made.map.min()))
    assert told["map"]["maximum"] == pytest.approx(float(made.map.max()))
    summed = float(made.network_map.as_tensor().double().sum())
    assert told["map"]["sum_on_network_grid"] == pytest.approx(summed)


@pytest.mark.parametrize("error", [float("inf"), float("nan")])
def test_json_has_no_infinity(error):
    told = an_explanation(completeness_error=error).to_dict()
    assert told["completeness_error"] is None
    json.dumps(told, allow_nan=False)


def test_saving_writes_the_map_and_the_facts(tmp_path):
    made = an_explanation()
    files = made.save(tmp_path / "run")
    assert [file.name for file in files] == ["map.nrrd", "explanation.json"]
    assert sorted(files) == sorted((tmp_path / "run").iterdir())
    back = sx.read_image(files[0])
    torch.testing.assert_close(back.as_tensor(), made.maps.as_tensor(), rtol=0, atol=0)
    np.testing.assert_allclose(back.affine, AFFINE)
    told = json.loads(files[1].read_text(encoding="utf-8"))
    assert told == json.loads(json.dumps(made.to_dict()))


def test_saving_writes_each_channel_and_the_layers_own_grid(tmp_path):
    layer = make_image(np.random.default_rng(1).normal(size=(2, 2, 2)), COARSE)
    made = an_explanation(2, layer_map=layer)
    files = made.save(tmp_path)
    names = ["map_0.nrrd", "map_1.nrrd", "map_layer_grid.nrrd", "explanation.json"]
    assert [file.name for file in files] == names
    for channel in range(2):
        back = sx.read_image(files[channel])
        assert torch.equal(back[0].as_tensor(), made.maps[channel].as_tensor())
    np.testing.assert_allclose(sx.read_image(files[2]).affine, COARSE)


def test_a_sheared_grid_is_saved_as_it_is(tmp_path):
    assert abs(AFFINE[:3, 0] @ AFFINE[:3, 2]) > 0.1
    file = an_explanation().save(tmp_path)[0]
    np.testing.assert_allclose(sx.read_image(file).affine, AFFINE, atol=1e-9)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageError, match="could not be written"):
        an_explanation().save(tmp_path / "file")


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_text(tmp_path / "a.json", "old")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(SaliencyExplainError, match=r"a\.json' could not be written .*No space"):
        write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_others_may_read_the_text(tmp_path):
    (tmp_path / "plain").write_text("")
    path = write_text(tmp_path / "a.json", "{}")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
