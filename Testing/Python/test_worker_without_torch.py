"""The application's side: a process in which torch cannot be imported reads nodes and publishes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from worker_cases import QUESTION, a_scan, a_source, an_environment

from SaliencyExplainLib import worker

slicer = pytest.importorskip("slicer")

ROOT = Path(__file__).resolve().parents[2]
#: None in sys.modules makes every import of that name fail.
BLOCKED = "import sys\nfor name in ('torch', 'monai', 'skimage'): sys.modules[name] = None\n"

PUBLISH = """
import numpy as np
import slicer
from SaliencyExplainLib import Explanation, scene, worker
from SaliencyExplainLib.volume import Volume

result = worker.read_result({folder!r})
made = scene.new_scene()
(node,) = scene.add_image(made, Volume(np.ones((8, 9, 10)), result.explanation.maps.affine), "CT")
segmentation = scene.add_segmentation(made, Volume(np.ones((8, 9, 10)), node_affine := (
    result.explanation.maps.affine)), {{1: "liver"}})
published = scene.publish(result.explanation, made, input_volume=node, regions=result.regions,
                          segmentation=segmentation, layer_map=True)
back = scene.volume_from_node(published.volumes[0])
np.testing.assert_array_equal(back.voxels, result.explanation.maps.voxels)
np.testing.assert_allclose(back.affine, result.explanation.maps.affine)
assert published.table.GetNumberOfRows() == 2, published.table.GetNumberOfRows()
assert published.text.GetText()
scene.save_mrb(made, {folder!r} + "/a.mrb")
scene.release_scene(made)
result.explanation.save({folder!r} + "/saved", network_grid=True)
again = Explanation.load({folder!r} + "/saved")
assert again.to_dict() == result.explanation.to_dict()
"""

READ = """
import numpy as np
import slicer
from SaliencyExplainLib import scene, worker
from SaliencyExplainLib.volume import Volume

made = scene.new_scene()
affine = np.diag([2.0, 3, 4, 1])
nodes = scene.add_image(made, Volume(np.arange(2 * 60).reshape(2, 3, 4, 5), affine), "CT")
image = scene.volume_from_nodes(nodes)
assert image.shape == (2, 3, 4, 5) and image.name == "CT 0, CT 1", (image.shape, image.name)
np.testing.assert_array_equal(image.voxels.ravel(), np.arange(120))
labels = np.zeros((3, 4, 5)); labels[1] = 1; labels[2] = 2
segmentation = scene.add_segmentation(made, Volume(labels, affine), {1: "liver", 2: "spleen"})
segments = scene.labelmap_from_segmentation(segmentation, nodes[0])
np.testing.assert_array_equal(segments.volume.voxels[0], labels)
assert segments.names == {1: "liver", 2: "spleen"}
(spleen,) = [key for label, key in segments.ids.items() if label == 2]
mask = scene.volume_from_segment(segmentation, spleen, image)
np.testing.assert_array_equal(mask.voxels[0], labels == 2)
roi = made.AddNewNodeByClass("vtkMRMLMarkupsROINode")
roi.SetSize(4, 3, 4)
roi.SetCenter(2, 3, 4)
with worker.JobFolder() as folder:
    fields = scene.roi_from_node(roi, nodes[0]).question_fields(folder)
    assert fields["region"] == "roi", fields
    turn = slicer.vtkMRMLLinearTransformNode()
    made.AddNode(turn)
    matrix = np.eye(4); c, s = np.cos(0.5), np.sin(0.5); matrix[:2, :2] = [[c, -s], [s, c]]
    turn.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    roi.SetAndObserveTransformNodeID(turn.GetID())
    found = scene.roi_from_node(roi, nodes[0])
    fields = found.question_fields(folder)
    assert fields["region"] == "segment", fields
    inside = worker.jobs.read_array(fields["segment"])
    np.testing.assert_array_equal(inside.voxels, found.volume.voxels)
    assert 0 < inside.voxels.sum() < 60
    worker.Question(output=1, **fields)
scene.release_scene(made)
"""

CALL = """
from worker_cases import an_environment
from SaliencyExplainLib import worker
import numpy as np
AFFINE = np.diag([1.0, 1, 2, 1])
source = worker.ModelSource({path!r}, options={options!r})
with worker.Worker(threads=1, environ={{**an_environment()}}) as one:
    result = one.explain(source, worker.Volume(np.ones((8, 9, 10)), AFFINE),
                         worker.Question(1, region="everywhere"), "gradient")
assert result.explanation.map.shape == (1, 8, 9, 10)
"""


def run(code: str) -> None:
    path = {**an_environment(), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BLOCKED + code]
    done = subprocess.run(command, env=path, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def a_result(tmp_path_factory) -> Path:
    """What a worker wrote for a region table and a layer map."""
    home = tmp_path_factory.mktemp("result")
    labels = np.zeros((1, 8, 9, 10))
    labels[:, 2:5] = 1
    with worker.Worker(threads=1, environ=an_environment()) as one, worker.JobFolder(home) as job:
        request = worker.Explain(
            a_source(home),
            job.put("image", a_scan()),
            QUESTION,
            "gradient",
            {},
            str(home / "out"),
            job.put("segments", worker.Volume(labels, a_scan().affine)),
            {1: "liver"},
        )
        one._ask(request)
    return home / "out"


def test_a_result_is_published_saved_and_loaded_without_torch(a_result):
    run(PUBLISH.format(folder=str(a_result)))


def test_nodes_segments_and_markups_are_read_without_torch():
    run(READ)


def test_a_job_is_asked_for_without_torch(tmp_path):
    source = a_source(tmp_path)
    code = CALL.format(path=source.path, options=dict(source.options))
    run("import sys; sys.path.append('Testing/Python'); import types\n" + NO_TORCH_CASES + code)


#: The helpers of these tests import torch; the process without it needs only their environment.
NO_TORCH_CASES = """
import os
cases = types.ModuleType("worker_cases")
cases.an_environment = lambda: {**os.environ, "PYTHONPATH": os.path.abspath("Testing/Python")}
sys.modules["worker_cases"] = cases
"""


def test_the_client_imports_no_heavy_package():
    heavy = ("torch", "monai", "slicer", "vtk", "scipy", "skimage", "SimpleITK", "matplotlib", "qt")
    run(
        "for name in ('torch', 'monai', 'skimage'): del sys.modules[name]\n"
        "import SaliencyExplainLib.worker, SaliencyExplainLib.scene\n"
        f"found = [name for name in {heavy!r} if name in sys.modules]\n"
        "assert not found, found"
    )


def test_this_check_sees_torch():
    code = "import numpy as np\nfrom SaliencyExplainLib.volume import Volume\n"
    with pytest.raises(AssertionError, match="import of torch halted"):
        run(code + "Volume([[[1]]], np.eye(4)).as_tensor()")
