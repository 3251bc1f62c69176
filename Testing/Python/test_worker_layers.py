"""Maps of several layers from the worker: the same as here, from one pass, or a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from worker_cases import QUESTION, a_scan, a_source, an_environment, an_explanation

import SaliencyExplainLib as sx
from SaliencyExplainLib import worker
from SaliencyExplainLib.errors import Cancelled, MethodError, SaliencyExplainError, WorkerError
from SaliencyExplainLib.worker import read_result
from SaliencyExplainLib.worker.jobs import write_result

TARGET = sx.Target(output="lesion", region="everywhere")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> worker.ModelSource:
    return a_source(tmp_path_factory.mktemp("models"), "Deep")


@pytest.fixture(scope="module")
def shared() -> Iterator[worker.Worker]:
    with worker.Worker(threads=1, environ=an_environment(), hang_s=20) as made:
        yield made


def test_layers_come_back_as_in_this_process(shared, source):
    told = []
    found = shared.explain_layers(
        source,
        a_scan(),
        QUESTION,
        ["grad_cam", "hires_cam"],
        progress=lambda *step: told.append(step),
    )
    model = sx.load_model(source.path, **source.options)
    here = sx.explain_layers(model, a_scan().as_image(), TARGET, ["grad_cam", "hires_cam"])
    assert [(one.method, one.layers) for one in found] == [(one.method, one.layers) for one in here]
    assert len({one.layers for one in found}) >= 2
    for one, other in zip(found, here, strict=True):
        np.testing.assert_allclose(one.maps.voxels, other.maps.numpy(), rtol=1e-6)
        np.testing.assert_allclose(one.layer_map.affine, other.layer_map.affine)
        # The network's grid is left out, but told.
        assert one.network_maps is None
        assert one.to_dict()["map"] == other.to_dict()["map"]
    assert told[-1] == (1.0, "done")


def test_chosen_layers_and_a_segment_arrive(shared, source):
    mask = np.zeros((1, 8, 9, 10))
    mask[:, 2:5, 2:5, 2:5] = 1
    segment = worker.Volume(mask, a_scan().affine)
    found = shared.explain_layers(
        source, a_scan(), worker.Question("lesion"), layers=["between"], segment=segment
    )
    (one,) = found
    assert one.layers == ("between",)
    assert (one.target["region"], one.target["region_voxels"]) == ("segment", 27)


@pytest.mark.parametrize(
    ("more", "kind", "words"),
    [
        ({"methods": ["gradient"]}, MethodError, "Gradient needs passes of its own at each layer"),
        ({"methods": ["grad_can"]}, MethodError, "Did you mean 'grad_cam'"),
        ({"layers": ["nowhere"]}, SaliencyExplainError, "no layer 'nowhere'"),
        ({"methods": [3]}, WorkerError, "The field 'methods' of the request ExplainLayers"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(shared, source, more, kind, words):
    with pytest.raises(kind, match=words):
        shared.explain_layers(source, a_scan(), QUESTION, **more)


def test_it_can_be_cancelled(shared, source, tmp_path):
    with pytest.raises(Cancelled):
        shared.explain_layers(source, a_scan(), QUESTION, cancelled=lambda: True)
    assert shared.explain_layers(source, a_scan(), QUESTION, layers=["last"])


def test_a_result_whose_layers_are_not_whole_is_told(tmp_path):
    write_result(tmp_path / "out", layers=[an_explanation(), an_explanation(value=2.5)])
    found = read_result(Path(tmp_path / "out"))
    assert [one.value for one in found.layers] == [1.5, 2.5]
    (tmp_path / "out" / "1" / "result.json").unlink()
    with pytest.raises(WorkerError, match="is not whole"):
        read_result(tmp_path / "out")
