"""Scene files: written whole, read back intact in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import slicer
import torch
from scene_cases import (
    a_map,
    a_transform,
    an_affine,
    an_explanation,
    an_input,
    hierarchy,
    some_regions,
)

import SaliencyExplainLib as sx
from SaliencyExplainLib.errors import SceneError
from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.scene import (
    files,
    load_mrb,
    new_scene,
    publish,
    release_scene,
    save_mrb,
    set_dead_band,
)

ROOT = Path(__file__).resolve().parents[2]


class _FullDisk:
    """A scene whose writing stops half-way."""

    def WriteToMRB(self, name: str) -> bool:
        Path(name).write_bytes(b"half")
        return False


_READER = """
import json, sys
from pathlib import Path
import scene_cases, test_scene_files
from SaliencyExplainLib.scene import load_mrb
print(json.dumps(test_scene_files.contents(load_mrb(sys.argv[1]))))
"""


@pytest.fixture
def scene():
    one = new_scene()
    yield one
    release_scene(one)


def _nodes(scene, kind):
    count = scene.GetNumberOfNodesByClass(kind)
    return [scene.GetNthNodeByClass(index, kind) for index in range(count)]


def right_handed(voxels, affine):
    """Reverse the last axis of a left-handed volume, shape (K, J, I), as Slicer's reader does."""
    if np.linalg.det(affine[:3, :3]) > 0:
        return voxels, affine
    flip = np.diag([1.0, 1, -1, 1])
    flip[2, 3] = voxels.shape[0] - 1
    return voxels[::-1], affine @ flip


def _volume(node):
    from SaliencyExplainLib.scene.nodes import ijk_to_ras

    display = node.GetDisplayNode()
    roles = ("inputVolume", "summary", "provenance", "regionTable")
    references = {role: node.GetNodeReference(f"SaliencyExplain.{role}") for role in roles}
    voxels, affine = right_handed(slicer.util.arrayFromVolume(node), ijk_to_ras(node))
    return {
        "voxels": voxels.ravel().tolist(),
        "ijk_to_ras": affine.tolist(),
        "window": [
            display.GetWindowLevelMin(),
            display.GetWindowLevelMax(),
            display.GetAutoWindowLevel(),
        ],
        "colors": _colors(display.GetColorNode()),
        "attributes": {name: node.GetAttribute(name) for name in sorted(node.GetAttributeNames())},
        "references": {
            role: other.GetName() for role, other in references.items() if other is not None
        },
        "transform": node.GetParentTransformNode().GetName()
        if node.GetParentTransformNode()
        else None,
        "description": node.GetDescription(),
    }


def _colors(node):
    from vtk.util import numpy_support

    table = numpy_support.vtk_to_numpy(node.GetLookupTable().GetTable())
    names = [node.GetColorName(index) for index in range(node.GetNumberOfColors())]
    return {
        "name": node.GetName(),
        "rgba": table.tolist(),
        "names": names,
        "band": node.GetAttribute("SaliencyExplain.deadBand"),
    }


def _table(node):
    table = node.GetTable()
    columns = {}
    for index in range(table.GetNumberOfColumns()):
        array = table.GetColumn(index)
        name = array.GetName()
        columns[name] = {
            "values": [repr(array.GetValue(row)) for row in range(array.GetNumberOfValues())],
            "title": node.GetColumnTitle(name),
            "unit": node.GetColumnUnitLabel(name),
            "description": node.GetColumnDescription(name),
        }
    return {"columns": columns, "titles_as_header": node.GetUseColumnTitleAsColumnHeader()}


def contents(scene) -> dict:
    """All that a reader of the scene can see, as JSON values."""
    return {
        "volumes": {
            node.GetName(): _volume(node)
            for node in _nodes(scene, "vtkMRMLScalarVolumeNode")
            if node.GetAttribute("SaliencyExplain.method")
        },
        "tables": {node.GetName(): _table(node) for node in _nodes(scene, "vtkMRMLTableNode")},
        "texts": {node.GetName(): node.GetText() for node in _nodes(scene, "vtkMRMLTextNode")},
        "charts": {
            node.GetName(): [
                node.GetTitle(),
                node.GetYAxisTitle(),
                node.GetNthPlotSeriesNode(0).GetTableNode().GetName(),
            ]
            for node in _nodes(scene, "vtkMRMLPlotChartNode")
        },
        "series_colors": [
            np.round(node.GetColor(), 6).tolist() for node in _nodes(scene, "vtkMRMLPlotSeriesNode")
        ],
        "hierarchy": {key: sorted(value) for key, value in hierarchy(scene).items()},
    }


def _a_full_scene(scene):
    """Two channels, layer map, unsigned map, regions, parent transform, tiny and large values."""
    voxels = a_map(channels=2, scale=1.2345678e-9)
    coarse = make_image(
        np.random.default_rng(1).normal(size=(1, 3, 3, 4)), an_affine() @ np.diag([2, 2, 2, 1.0])
    )
    explanation = an_explanation(voxels, layer_map=coarse)
    volume = an_input(scene, name='T1; "post": 50 % é')
    transform = a_transform(scene, np.diag([-1.0, 1, 2, 1]))
    transform.SetName("Registration")
    volume.SetAndObserveTransformNodeID(transform.GetID())
    published = publish(
        explanation, scene, input_volume=volume, regions=some_regions(explanation), layer_map=True
    )
    set_dead_band(published.color, 0.35)
    unsigned = an_explanation(
        np.abs(a_map(scale=1e4)),
        an_affine(left_handed=False),
        signed=False,
        method="grad_cam",
        title="Grad-CAM",
    )
    publish(unsigned, scene, input_volume=volume)


def test_a_scene_file_comes_back_intact_in_a_fresh_process(scene, tmp_path):
    _a_full_scene(scene)
    expected = json.loads(json.dumps(contents(scene)))
    assert len(expected["volumes"]) == 5
    path = save_mrb(scene, tmp_path / "new folder" / "result.mrb")
    paths = [str(ROOT), str(Path(__file__).parent)]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}{_READER}", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["volumes"].keys() == expected["volumes"].keys()
    for name, volume in expected["volumes"].items():
        other = found["volumes"][name]
        # The file's header keeps 17 digits of the directions, the origin goes through LPS: 1e-12 mm
        # is rounding.
        np.testing.assert_allclose(other.pop("ijk_to_ras"), volume.pop("ijk_to_ras"), atol=1e-12)
        np.testing.assert_allclose(other.pop("window"), volume.pop("window"), rtol=1e-12)
        assert other == volume
    del expected["volumes"], found["volumes"]
    assert found == expected


def test_a_scene_file_has_a_folder_of_its_own_name_inside(scene, tmp_path):
    import zipfile

    path = save_mrb(scene, tmp_path / "result.mrb")
    assert {name.split("/")[0] for name in zipfile.ZipFile(path).namelist()} == {"result"}
    assert [one.name for one in tmp_path.iterdir()] == ["result.mrb"]


def test_an_older_file_survives_a_failed_write(scene, tmp_path, monkeypatch):
    path = save_mrb(scene, tmp_path / "result.mrb")
    before = path.read_bytes()
    monkeypatch.setattr(files, "scene_or_default", lambda scene: _FullDisk())
    with pytest.raises(SceneError, match="could not be written"):
        save_mrb(scene, path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["result.mrb"]


def test_names_and_files_that_are_no_scenes_are_refused(scene, tmp_path):
    with pytest.raises(SceneError, match=r"ends in .mrb; 'scene.zip'"):
        save_mrb(scene, tmp_path / "scene.zip")
    with pytest.raises(SceneError, match="There is no file"):
        load_mrb(tmp_path / "none.mrb")
    broken = tmp_path / "broken.mrb"
    broken.write_bytes(b"no zip")
    with pytest.raises(SceneError, match="could not be read as a scene"):
        load_mrb(broken)
    (tmp_path / "file").write_text("")
    with pytest.raises(SceneError, match="could not be written"):
        save_mrb(scene, tmp_path / "file" / "result.mrb")


def test_a_scene_is_written_and_read_by_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = sx.scene.new_scene()
    sx.scene.add_image(written, sx.make_image(torch.ones(1, 3, 4, 5), np.eye(4)), "small")
    sx.scene.save_mrb(written, "scene.mrb")
    read = sx.scene.load_mrb("scene.mrb")
    assert read.GetFirstNodeByName("small") is not None
    assert Path.cwd() == tmp_path


def test_segments_added_to_a_scene_come_back_as_the_label_map() -> None:
    scene = sx.scene.new_scene()
    labels = sx.make_image(
        (torch.arange(60).reshape(1, 3, 4, 5) % 3).float(), np.diag([-1.0, 2, 3, 1])
    )
    volume = sx.scene.add_image(scene, labels, "scan")[0]
    node = sx.scene.add_segmentation(scene, labels, {1: "one", 2: "two", 5: "absent"})
    found = sx.scene.labelmap_from_segmentation(node, volume)
    assert torch.equal(found.labelmap.as_tensor(), labels.as_tensor())
    assert found.names == {1: "one", 2: "two"}


def test_a_label_map_without_the_named_labels_is_refused() -> None:
    empty = sx.make_image(torch.zeros(1, 3, 4, 5), np.eye(4))
    with pytest.raises(sx.errors.SceneError, match="None of the labels 1 occurs"):
        sx.scene.add_segmentation(sx.scene.new_scene(), empty, {1: "one"})
