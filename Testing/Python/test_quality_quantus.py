"""The same numbers as Quantus 0.6, where it measures the same thing on three axes.

Quantus is no dependency; without it the twins in the other test files stand alone.
"""

from __future__ import annotations

import numpy as np
import pytest
from quality_cases import an_explanation, measured, random_volume
from references import Classifier, as_model

import SaliencyExplainLib as sx

quantus = pytest.importorskip("quantus", reason="Quantus is not installed")

SHAPE = (8, 8, 8)


@pytest.fixture
def a_case():
    network = Classifier().eval()
    model = as_model(network, task="classification")
    image = random_volume()
    target = sx.Target(output=2)
    return model, image, sx.explain(model, image, target, "gradient")


@pytest.fixture
def a_map() -> np.ndarray:
    return np.random.default_rng(0).normal(size=SHAPE)


@pytest.fixture
def a_mask() -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[2:6, 3:6, 1:4] = True
    return mask


def of_batch(metric, network, x, a, **options) -> float:
    """Quantus's value for one image of class 2; it is called the way it calls itself."""
    batch = {"x_batch": x[None], "y_batch": np.array([2]), "a_batch": a[None].copy()}
    found = metric(model=network, **batch, device="cpu", channel_first=True, **options)
    return float(np.ravel(found)[0])


def quiet(**options) -> dict:
    return {"disable_warnings": True, "display_progressbar": False, **options}


def test_spread_is_the_same(a_case, a_map):
    _, image, _ = a_case
    network, x = Classifier().eval(), image.as_tensor().numpy()
    found = an_explanation(a_map)
    raw = quiet(abs=True, normalise=False)
    sizes = a_map[None].astype(np.float64)
    theirs = of_batch(quantus.Sparseness(**raw), network, x, sizes)
    assert measured("sparseness", found) == pytest.approx(theirs, rel=1e-4)
    theirs = of_batch(quantus.Complexity(**raw), network, x, sizes)
    assert measured("complexity", found) == pytest.approx(theirs, rel=1e-4)
    theirs = of_batch(
        quantus.EffectiveComplexity(eps=0.1 * np.abs(a_map).max(), **raw), network, x, sizes
    )
    assert measured("effective_complexity", found) == theirs


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("pointing_game", "PointingGame"),
        ("relevance_mass", "RelevanceMassAccuracy"),
        ("relevance_rank", "RelevanceRankAccuracy"),
    ],
)
def test_localisation_is_the_same(a_case, a_map, a_mask, name, theirs):
    _, image, _ = a_case
    network, x = Classifier().eval(), image.as_tensor().numpy()
    metric = getattr(quantus, theirs)(**quiet(abs=True, normalise=False))
    expected = of_batch(
        metric, network, x, a_map[None].astype(np.float64), s_batch=a_mask[None, None]
    )
    truth = sx.make_image(a_mask.astype(float), np.eye(4))
    found = measured(name, an_explanation(a_map), truth=truth, part="absolute")
    assert found == pytest.approx(expected, rel=1e-5)


def test_faithfulness_correlation_is_the_same_on_average(a_case):
    """Their subsets are drawn otherwise: with single voxels of a half, over many draws."""
    model, image, found = a_case
    x = image.as_tensor().numpy()
    a = (found.maps.as_tensor() * image.as_tensor()).numpy().astype(np.float64)
    metric = quantus.FaithfulnessCorrelation(
        nr_runs=400, subset_size=256, perturb_baseline="black", abs=False, normalise=False,
        perturb_func=lambda arr, indices, **_: _zeroed(arr, indices),
        return_aggregate=False, **quiet(),
    )  # fmt: skip
    np.random.seed(0)  # noqa: NPY002 - theirs draws from the global generator
    theirs = of_batch(metric, model.network, x, a, softmax=False)
    options = {"sets": 400, "hidden": 50.0, "block_mm": 0.0, "baseline": "zero"}
    asked = [sx.quality.make_metric("faithfulness_correlation", options)]
    row = sx.quality.evaluate(found, model, image, asked).rows[0]
    assert theirs > 0.3
    assert row.value == pytest.approx(theirs, abs=0.1)


def _zeroed(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
    changed = values.copy()
    changed[np.arange(len(values))[:, None], indices] = 0
    return changed
