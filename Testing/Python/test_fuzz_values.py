"""Any value in any place of a target, a method or a metric: it fits, or a sentence says why not."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from cli_cases import a_tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st

import SaliencyExplainLib as sx
from SaliencyExplainLib.errors import (
    ImageError,
    MethodError,
    MetricError,
    SaliencyExplainError,
    TargetError,
)

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.integers(-3, 12),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=8),
    st.sampled_from(
        ["logit", "everywhere", "prediction", "mean", "1", "1e3", "nan", "inf", "auto"]
    ),
    st.binary(max_size=4),
    st.lists(st.floats(-50, 50), max_size=4),
    st.lists(st.lists(st.floats(-50, 50), min_size=3, max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.just(np.zeros(3)),
    st.just(np.float32(2.0)),
    st.just(np.int64(2)),
    st.just(object()),
    st.complex_numbers(max_magnitude=9),
)


def is_a_sentence(error: Exception) -> bool:
    said = str(error)
    return 15 < len(said) < 1500 and "Traceback" not in said and said.rstrip(")")[-1] in ".!?"


def values_of(cls: type[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any values for any of the fields."""
    names = [one.name for one in fields(cls)]
    return st.dictionaries(st.sampled_from(names), ODD, min_size=1, max_size=3)


@pytest.fixture(scope="module")
def a_model():
    return sx.load_model(
        a_tiny_network().eval(), task="segmentation", labels=["background", "lesion", "vessel"]
    )


@given(values=values_of(sx.Target))
@settings(max_examples=400, deadline=None)
def test_any_target_is_explained_or_refused_in_a_sentence(a_model, values):
    image = sx.make_image(np.random.default_rng(0).normal(size=(5, 6, 5)), np.diag([1, 2, 3, 1.0]))
    try:
        found = sx.explain(a_model, image, sx.Target(**values), "gradient")
    except SaliencyExplainError as error:
        told = error
    else:
        assert math.isfinite(found.value)
        return
    assert isinstance(told, TargetError), repr(told)
    assert is_a_sentence(told), told


@pytest.mark.parametrize("name", sorted(sx.methods()))
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_parameter_of_a_method_fits_or_is_refused_in_a_sentence(name, data):
    cls = sx.methods()[name]
    if not fields(cls):
        return
    values = data.draw(values_of(cls))
    try:
        made = sx.make_method(name, values)
    except SaliencyExplainError as error:
        told = error
    else:
        for one in fields(cls):
            value, low, high = getattr(made, one.name), *map(one.metadata.get, ("low", "high"))
            if isinstance(value, int | float) and not isinstance(value, bool):
                assert math.isfinite(value)
                assert low is None or value >= low
                assert high is None or value <= high
        return
    # A text for a label map is the path of its file, which is not there.
    assert isinstance(told, MethodError | ImageError), repr(told)
    assert is_a_sentence(told), told
    assert isinstance(told, ImageError) or any(one in str(told) for one in values), told


@pytest.mark.parametrize("name", sorted(sx.quality.metrics()))
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_parameter_of_a_metric_fits_or_is_refused_in_a_sentence(name, data):
    cls = sx.quality.metrics()[name]
    if not fields(cls):
        return
    values = data.draw(values_of(cls))
    try:
        made = sx.quality.make_metric(name, values)
    except MetricError as error:
        told = error
    else:
        assert isinstance(made, cls)
        return
    assert is_a_sentence(told), told
