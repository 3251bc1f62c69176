"""A real worker process gives what this process gives, stays warm, and tells errors."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from worker_cases import (
    HERE,
    QUESTION,
    a_scan,
    a_source,
    an_environment,
    explain,
)

import SaliencyExplainLib as sx
from SaliencyExplainLib import worker
from SaliencyExplainLib.errors import (
    MethodError,
    ModelError,
    SaliencyExplainError,
    TargetError,
    UntrustedModelError,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def shared() -> Iterator[worker.Worker]:
    """One worker for many tests; it comes back by itself when a test has killed it."""
    with worker.Worker(threads=1, environ=an_environment(), hang_s=5) as made:
        yield made


# What it gives back


def test_a_worker_gives_the_same_as_this_process(shared, models):
    source = a_source(models)
    labels = np.zeros((1, 8, 9, 10))
    labels[:, 2:5] = 3
    segments, names = worker.Volume(labels, a_scan().affine), {3: "liver"}
    told = []
    result = explain(
        shared,
        source,
        method="smooth_grad",
        parameters={"samples": 4},
        segments=segments,
        segment_names=names,
        progress=lambda *step: told.append(step),
    )
    model = sx.load_model(source.path, **{**source.options, "network": "worker_networks:Plain"})
    target = sx.Target(output="lesion", region="everywhere")
    here = sx.explain(model, a_scan().as_image(), target, "smooth_grad", samples=4)
    table = sx.region_table(here, segments.as_image(), names)

    found = result.explanation
    np.testing.assert_array_equal(found.maps.voxels, here.maps.numpy())
    np.testing.assert_array_equal(found.network_maps.voxels, here.network_maps.numpy())
    np.testing.assert_array_equal(found.maps.affine, here.maps.affine.numpy())
    assert result.regions.to_csv() == table.to_csv()
    there, local = found.to_dict(), json.loads(json.dumps(here.to_dict()))
    for cost in ("seconds", "peak_memory_mb"):
        assert there.pop(cost) is not None
        local.pop(cost)
    assert there == local
    assert told[-1] == (1.0, "done")
    assert [fraction for fraction, _ in told] == sorted(fraction for fraction, _ in told)


def test_the_question_arrives_with_segment_box_point_and_contrast(shared, models):
    source, scan = a_source(models), a_scan()
    mask = np.zeros(scan.shape)
    mask[:, 3:5, 2:4, 1:3] = 1
    segment = worker.Volume(mask, scan.affine)
    ask = {"output": 1, "score": "probability", "reduce": "sum", "contrast": 0}
    found = shared.explain(source, scan, worker.Question(**ask), "gradient", segment=segment)
    target = found.explanation.target
    assert (target["region"], target["region_voxels"]) == ("segment", 8)
    assert (target["score"], target["reduce"], target["contrast"]) == ("probability", "sum", 0)
    corner, far = (scan.affine @ [1, 1, 1, 1])[:3], (scan.affine @ [2, 2, 2, 1])[:3]
    box = worker.Question(1, roi_ras_mm=[corner.tolist(), far.tolist()])
    assert shared.explain(source, scan, box).explanation.target["region"] == "roi"
    point = worker.Question(1, point_ras_mm=corner.tolist())
    assert shared.explain(source, scan, point).explanation.target["region_voxels"] == 1


def test_batch_size_and_fast_mode_arrive(shared, models):
    with pytest.raises(SaliencyExplainError, match="batch_size must be a whole number"):
        explain(shared, a_source(models), batch_size=0)
    plain = explain(shared, a_source(models)).explanation.warnings
    # A note says what the check of the fast mode found.
    fast = explain(shared, a_source(models), fast=True, batch_size=2).explanation.warnings
    assert len(fast) == len(plain) + 1


def test_a_label_map_parameter_arrives(shared, models):
    labels = np.zeros((1, 8, 9, 10))
    labels[:, 4:], labels[:, :4] = 1, 2
    parameters = {"regions": "segments", "segments": worker.Volume(labels, a_scan().affine)}
    found = explain(
        shared, a_source(models), method="region_ablation", parameters=parameters
    ).explanation
    assert found.parameters["segments"]["shape"] == [1, 8, 9, 10]
    # One value a region.
    assert len(np.unique(found.network_maps.voxels)) == 2


def test_a_prediction_comes_back_with_its_names(shared, models):
    source = a_source(models)
    labels = shared.predict(source, a_scan())
    model = sx.load_model(source.path, **source.options)
    np.testing.assert_array_equal(labels.voxels, sx.predict(model, a_scan().as_image()).numpy())


def test_a_model_is_described(shared, models):
    told = shared.load(a_source(models))
    assert (told["task"], told["labels"]) == ("segmentation", ["background", "lesion"])
    assert (told["channels"], told["parameters"]) == (["CT"], 56)
    assert (told["format"], told["device"], told["scripted"]) == ("state dict", "cpu", False)
    assert (told["window"], told["spacing_mm"]) == (None, None)
    assert told["text"].startswith("Plain, segmentation, 56 parameters, softmax")
    assert len(told["sha256"]) == 64


def test_the_demo_models_spacing_and_window_are_told(shared):
    path = HERE.parents[1] / "SaliencyExplain" / "Resources" / "Models" / "BrainTissue"
    told = shared.load(path)
    assert told["spacing_mm"] == [2.0, 2.0, 2.0]
    assert told["window"] == [96, 96, 96]
    model = sx.load_model(path)
    assert told["text"] == model.describe()
    found = shared.layers(path, methods=["grad_cam", "gradient"])
    assert [one["name"] for one in found["layers"]] == [one.name for one in model.layers()]
    here = next(one for one in model.layers() if one.name == found["defaults"]["grad_cam"])
    assert here.activation
    assert found["defaults"]["gradient"] is None
    told = next(one for one in found["layers"] if one["name"] == here.name)
    assert told["shape"] == list(here.shape)
    assert told["spacing_voxels"] == list(here.grid.spacing)


def test_layers_are_listed_for_an_image_or_a_shape(shared, models):
    by_image = shared.layers(a_source(models), a_scan())
    by_shape = shared.layers(a_source(models), shape=(1, 8, 9, 10))
    assert by_image["layers"] == by_shape["layers"]
    with pytest.raises(ModelError, match=r"input size is not known. Give an image"):
        shared.layers(a_source(models))
    with pytest.raises(MethodError, match="no method 'grad_can'"):
        shared.layers(a_source(models), a_scan(), methods=["grad_can"])


def test_a_worker_says_what_it_is(shared):
    told = shared.hello()
    import torch

    assert told["versions"]["torch"] == torch.__version__
    assert (told["missing"], told["problem"]) == ([], "")
    assert told["executable"] == sys.executable
    assert told["pid"] == shared.pid
    assert told["devices"][0]["name"] == "cpu"
    assert told["devices"][0]["memory_mb"] > told["devices"][0]["free_mb"] > 0


# Warm


def test_a_second_run_is_warm_and_within_a_second(shared, models):
    source = a_source(models)
    explain(shared, source)
    pid = shared.pid
    started = time.monotonic()
    explain(shared, source)
    assert time.monotonic() - started < 1
    assert shared.pid == pid
    assert shared.load(source)["warm"]


def test_a_model_that_was_written_again_is_loaded_again(shared, models, tmp_path):
    import torch
    import worker_networks

    source = a_source(tmp_path)
    first = explain(shared, source).explanation
    torch.manual_seed(5)
    torch.save(worker_networks.Plain().state_dict(), source.path)
    assert not shared.load(source)["warm"]
    second = explain(shared, source).explanation
    assert not np.array_equal(first.maps.voxels, second.maps.voxels)
    assert first.model["sha256"] != second.model["sha256"]


def test_other_options_are_another_model(shared, models):
    source = a_source(models)
    shared.load(source)
    other = worker.ModelSource(source.path, options={**source.options, "labels": ["air", "lesion"]})
    told = shared.load(other)
    assert (told["warm"], told["labels"]) == (False, ["air", "lesion"])


# Errors of the person


@pytest.mark.parametrize(
    ("more", "kind", "words"),
    [
        ({"method": "gradent"}, MethodError, "There is no method 'gradent'. Did you mean"),
        ({"parameters": {"step": 1}}, MethodError, "Gradient has no parameter 'step'"),
        ({"question": worker.Question("liver")}, TargetError, "'liver'"),
        ({"question": worker.Question(region="here")}, TargetError, "region"),
    ],
)
def test_a_wrong_question_is_told_as_in_this_process(shared, models, more, kind, words):
    given = {"question": QUESTION, "method": "gradient"} | more
    with pytest.raises(kind, match=words):
        shared.explain(a_source(models), a_scan(), **given)


def test_a_model_that_is_missing_or_misdescribed_is_told(shared, models):
    with pytest.raises(ModelError, match="There is no model at '/nowhere'"):
        shared.load("/nowhere")
    source = worker.ModelSource(a_source(models).path, options={"inferer": 1})
    with pytest.raises(ModelError, match=r"no option 'inferer' here. Options: task, labels"):
        shared.load(source)


def test_a_model_that_would_run_code_asks_for_trust_in_this_very_file(shared, tmp_path):
    import torch
    import worker_networks

    path = tmp_path / "net.ts"
    torch.jit.trace(worker_networks.Plain().eval(), torch.zeros(1, 1, 4, 4, 4)).save(str(path))
    options = {"task": "segmentation", "labels": ["a", "lesion"]}
    source = worker.ModelSource(str(path), options=options)
    with pytest.raises(UntrustedModelError, match=r"'net\.ts' is a TorchScript file") as caught:
        shared.load(source)
    trust = caught.value.trust
    assert trust.path == str(path)
    agreed = worker.ModelSource(str(path), trusted_sha256=trust.sha256, options=options)
    assert shared.load(agreed)["sha256"] == trust.sha256
    assert shared.load(worker.ModelSource(str(path), trusted=True, options=options))["scripted"]
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UntrustedModelError, match=r"not the file that was trusted: it has changed"):
        shared.load(agreed)
