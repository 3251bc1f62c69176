"""The fast mode: used only where a check against single precision allows it, its error stated."""

from __future__ import annotations

import pytest
import torch
from references import as_model
from torch import nn

from SaliencyExplainLib.engine import Engine, precision
from SaliencyExplainLib.model import Windows
from SaliencyExplainLib.run import explain
from SaliencyExplainLib.target import Target


class Cancelling(nn.Module):
    """Adds a large number and takes it away again, which bfloat16 cannot do."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Conv3d(1, 2, 1)
        self.large.weight.data[:] = 1000.0
        self.small = nn.Conv3d(2, 2, 1, bias=False)
        self.small.weight.data = torch.tensor([[1.0, -1.001], [1.0, -1.0]]).reshape(2, 2, 1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.small(self.large(x).sin())


@pytest.fixture
def always_worth_it(monkeypatch):
    monkeypatch.setattr(precision, "_WORTH", 0.0)


@pytest.fixture
def never_worth_it(monkeypatch):
    monkeypatch.setattr(precision, "_WORTH", float("inf"))


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))


@pytest.mark.parametrize(
    "inferer", [None, Windows((16, 16, 16), (0.5,) * 3)], ids=["whole", "windows"]
)
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("smooth_grad", {"samples": 6}), ("integrated_gradients", {"steps": 6})],
)
@pytest.mark.usefixtures("always_worth_it")
def test_the_fast_map_is_near_the_exact_one_and_its_error_is_stated(
    unet, a_volume, name, parameters, inferer
):
    model = as_model(unet) if inferer is None else as_model(unet, inferer=inferer)
    image, target = a_volume(1, 24, 16, 16), Target(output=1, region="everywhere")
    exact = explain(model, image, target, name, **parameters)
    rough = explain(model, image, target, name, fast=True, **parameters)
    stated = rough.details["fast"]
    assert stated["used"]
    assert 0.9 <= stated["gradient_cosine"] < 1
    assert 0.5 < stated["top_overlap"] <= 1
    assert cosine(exact.maps.as_tensor(), rough.maps.as_tensor()) > 0.9
    assert not torch.equal(exact.maps.as_tensor(), rough.maps.as_tensor())
    assert rough.value == exact.value
    assert any("Fast mode: on one window bfloat16 was" in note for note in rough.warnings)
    assert rough.maps.dtype == torch.float32


@pytest.mark.usefixtures("never_worth_it")
def test_a_processor_without_gain_computes_in_single_precision_and_says_so(unet, a_volume):
    image, target = a_volume(1, 16, 16, 16), Target(output=1, region="everywhere")
    exact, rough = (
        explain(as_model(unet), image, target, "smooth_grad", samples=5, fast=fast)
        for fast in (False, True)
    )
    assert torch.equal(exact.maps.as_tensor(), rough.maps.as_tensor())
    assert any(note.startswith("Fast mode was not used") for note in rough.warnings)
    assert rough.details["fast"]["used"] is False


@pytest.mark.usefixtures("always_worth_it")
def test_a_network_that_bfloat16_breaks_is_computed_in_single_precision(a_volume):
    image, target = a_volume(1, 8, 8, 8), Target(output=0, region="everywhere")
    model = as_model(Cancelling())
    made = explain(model, image, target, "smooth_grad", samples=5, fast=True)
    exact = explain(model, image, target, "smooth_grad", samples=5)
    assert made.details["fast"]["gradient_cosine"] < 0.9
    assert made.details["fast"]["used"] is False
    assert torch.equal(made.maps.as_tensor(), exact.maps.as_tensor())


def test_a_run_of_few_passes_is_not_checked(unet, a_volume):
    image, target = a_volume(1, 16, 16, 16), Target(output=1, region="everywhere")
    made = explain(as_model(unet), image, target, "gradient", fast=True)
    assert made.warnings == (
        "Fast mode was not used: this run has 1 pass of the network, and checking bfloat16 takes "
        "4.",
    )
    assert "fast" not in made.details


@pytest.mark.usefixtures("always_worth_it")
def test_a_run_that_is_not_fast_says_nothing_of_it(unet, a_volume):
    image, target = a_volume(1, 16, 16, 16), Target(output=1, region="everywhere")
    made = explain(as_model(unet), image, target, "smooth_grad", samples=5)
    assert made.warnings == ()
    assert made.details == {}


@pytest.mark.parametrize("name", ["ablation_cam", "occlusion", "deep_lift", "lrp"])
@pytest.mark.usefixtures("always_worth_it")
def test_methods_that_need_single_precision_keep_it_and_say_so(unet, a_volume, name):
    image, target = a_volume(1, 16, 16, 16), Target(output=1, region="everywhere")
    exact, made = (
        explain(as_model(unet), image, target, name, fast=fast) for fast in (False, True)
    )
    assert torch.equal(exact.maps.as_tensor(), made.maps.as_tensor())
    assert any("bfloat16 cannot tell apart" in note for note in made.warnings)


def test_what_the_network_gives_is_in_single_precision_in_fast_mode_too(unet, a_volume):
    engine = Engine(as_model(unet), a_volume(1, 16, 16, 16), Target(output=1, region="everywhere"))
    engine.fast = True
    with engine.running(), torch.no_grad():
        rough = engine.run_window(engine.x, None)
        engine.fast = False
        exact = engine.run_window(engine.x, None)
    assert rough.dtype == exact.dtype == torch.float32
    assert not torch.equal(rough, exact)
