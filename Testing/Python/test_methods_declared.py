"""The declaration of every method: its facts, its parameters, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import MISSING, FrozenInstanceError, dataclass, fields, replace

import pytest
import torch
from references import StridedNet, as_model, for_method, quick_parameters

from SaliencyExplainLib.errors import MethodError
from SaliencyExplainLib.methods import base, describe_method, make_method, method, methods, param
from SaliencyExplainLib.methods.base import Method
from SaliencyExplainLib.run import explain
from SaliencyExplainLib.target import Target

NAMES = sorted(methods())
EVERY_METHOD = pytest.mark.parametrize("name", NAMES)
PARAMETERS = [(name, one) for name in NAMES for one in fields(methods()[name])]
NUMBERS = [
    (name, one)
    for name, one in PARAMETERS
    if isinstance(one.default, int | float) and not isinstance(one.default, bool)
]
CHOICES = [(name, one) for name, one in PARAMETERS if one.metadata["choices"]]
SWITCHES = [(name, one) for name, one in PARAMETERS if isinstance(one.default, bool)]


def each(pairs):
    """One test a parameter, named after it."""
    return pytest.mark.parametrize(
        ("name", "one"), pairs, ids=[f"{name}-{one.name}" for name, one in pairs]
    )


@pytest.fixture
def an_empty_registry(monkeypatch):
    """A registry of the test's own."""
    monkeypatch.setattr(base, "_REGISTRY", {})


@pytest.fixture
def declare(an_empty_registry):
    """Declare a small method with a few parameters under a name."""

    def make(name: str) -> type[Method]:
        @method(
            name,
            title="Made up",
            family="gradient",
            summary="Why?",
            paper="none",
            signed=True,
            weaknesses="all",
        )
        @dataclass(frozen=True)
        class MadeUp(Method):
            count: int = param(3, low=1, high=9, help="how many")
            width: float = param(0.5, low=0.0, high=2.0, unit="mm", help="how wide")
            fast: bool = param(False, help="whether to hurry")
            kind: str = param("a", choices=("a", "b"), help="which")
            label: str = param("", help="what it is called")

        return MadeUp

    return make


# ------------------------------------------------------------------------------------------------
# Facts


def test_the_methods_of_the_first_release_are_there():
    wanted = {
        "gradient",
        "input_x_gradient",
        "deconvnet",
        "guided_backprop",
        "integrated_gradients",
        "smooth_grad",
        "grad_cam",
        "grad_cam_plus_plus",
        "hires_cam",
        "layer_cam",
    }
    assert wanted <= set(NAMES)


@EVERY_METHOD
def test_every_method_says_what_it_is(name):
    cls = methods()[name]
    assert cls.name == name
    for text in (cls.title, cls.family, cls.summary, cls.paper, cls.weaknesses):
        assert text.strip() == text != ""
    assert "?" in cls.summary
    assert cls.combine in ("sum", "max_abs")
    assert isinstance(cls.signed, bool)
    assert isinstance(cls.needs_layer, bool)


@EVERY_METHOD
def test_a_method_needs_a_layer_where_it_has_one_to_choose(name):
    cls = methods()[name]
    assert cls.needs_layer == any(one.name == "layer" for one in fields(cls))


@EVERY_METHOD
def test_every_method_says_how_many_sweeps_it_needs(name):
    made = make_method(name)
    sweeps = [made.passes(), made.window_passes(linear=True), made.window_passes(linear=False)]
    # None, where it depends on the image or the layer.
    assert sweeps == [None] * 3 or 1 <= sweeps[0] <= sweeps[1] <= sweeps[2]


@EVERY_METHOD
def test_a_method_cannot_be_changed_once_made(name):
    made = make_method(name)
    with pytest.raises((FrozenInstanceError, TypeError)):
        made.samples = 5


def test_titles_are_told_apart():
    titles = [cls.title for cls in methods().values()]
    assert len(set(titles)) == len(titles)


# ------------------------------------------------------------------------------------------------
# Parameters


@each(PARAMETERS)
def test_every_parameter_is_explained(name, one):
    assert one.default is not MISSING
    assert one.metadata["help"].strip()
    assert not one.metadata["help"].endswith(".")


@each(NUMBERS)
def test_the_default_of_a_number_lies_within_its_range(name, one):
    assert one.metadata["low"] <= one.default <= one.metadata["high"]
    assert one.metadata["low"] < one.metadata["high"]


@each(CHOICES)
def test_the_default_of_a_choice_is_one_of_them(name, one):
    assert one.default in one.metadata["choices"]
    assert len(set(one.metadata["choices"])) == len(one.metadata["choices"]) > 1


@each(NUMBERS)
@pytest.mark.parametrize("end", ["low", "high"])
def test_the_ends_of_a_range_are_allowed(name, one, end):
    value = type(one.default)(one.metadata[end])
    assert getattr(make_method(name, {one.name: value}), one.name) == value


@each(NUMBERS)
@pytest.mark.parametrize("end", ["low", "high"])
def test_a_number_beyond_its_range_is_refused(name, one, end):
    value = type(one.default)(one.metadata[end]) + (-1 if end == "low" else 1)
    with pytest.raises(MethodError, match=rf"{one.name} must be .* from .*; -?[\d.e+]+ was given"):
        make_method(name, {one.name: value})


@each(NUMBERS)
@pytest.mark.parametrize("value", ["many", None, [1], True, float("nan"), float("inf")])
def test_what_is_no_number_is_refused(name, one, value):
    with pytest.raises(MethodError, match=rf"{one.name} must be a(?: whole)? number from"):
        make_method(name, {one.name: value})


@each([(name, one) for name, one in NUMBERS if isinstance(one.default, int)])
def test_half_of_a_whole_number_is_refused(name, one):
    with pytest.raises(MethodError, match=f"{one.name} must be a whole number"):
        make_method(name, {one.name: one.metadata["low"] + 0.5})


@each(CHOICES)
@pytest.mark.parametrize("value", ["nonsense", 3, None])
def test_what_is_no_choice_is_refused_with_the_choices(name, one, value):
    with pytest.raises(
        MethodError, match=f"{one.name} must be one of {one.metadata['choices'][0]}"
    ):
        make_method(name, {one.name: value})


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("count", 0, "count must be a whole number from 1 to 9; 0 was given"),
        ("count", 2.5, "count must be a whole number"),
        ("count", True, "count must be a whole number"),
        ("width", 2.1, "width must be a number from 0 to 2 mm; 2.1 was given"),
        ("width", "wide", "width must be a number"),
        ("fast", "perhaps", "fast must be true or false; 'perhaps' was given"),
        ("fast", 1, "fast must be true or false"),
        ("kind", "c", "kind must be one of a, b; 'c' was given"),
        ("label", 5, "label must be a text; 5 was given"),
    ],
)
def test_each_kind_of_parameter_refuses_what_does_not_fit(declare, parameter, value, message):
    declare("made_up")
    with pytest.raises(MethodError, match=message):
        make_method("made_up", {parameter: value})


def test_texts_from_a_shell_become_the_parameters_types(declare):
    declare("made_up")
    texts = {"count": " 7 ", "width": "1e-1", "fast": "Yes", "kind": "b", "label": "12"}
    made = make_method("made_up", texts)
    assert made.parameters() == {
        "count": 7,
        "width": 0.1,
        "fast": True,
        "kind": "b",
        "label": "12",
    }


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("no", False), ("0", False)]
)
def test_a_switch_is_read_from_words(declare, text, value):
    declare("made_up")
    assert make_method("made_up", {"fast": text}).fast is value


@pytest.mark.parametrize(("parameter", "text"), [("count", "7.5"), ("width", "1,5"), ("count", "")])
def test_a_text_that_is_no_number_is_refused_as_it_was_given(declare, parameter, text):
    declare("made_up")
    with pytest.raises(MethodError, match=f"{parameter} must be .*'{text}' was given"):
        make_method("made_up", {parameter: text})


@EVERY_METHOD
def test_parameters_make_an_equal_method_again_through_json_too(name):
    made = make_method(name, quick_parameters(methods()[name]))
    again = make_method(name, json.loads(json.dumps(made.parameters())))
    assert again == made
    assert type(again) is type(made)


@EVERY_METHOD
def test_parameters_written_as_texts_make_an_equal_method_again(name):
    made = make_method(name, quick_parameters(methods()[name]))
    texts = {key: str(value) for key, value in made.parameters().items() if value is not None}
    assert make_method(name, texts) == made


def test_a_changed_copy_is_checked_as_well(declare):
    made = declare("made_up")()
    assert replace(made, count=4).count == 4
    with pytest.raises(MethodError, match="count must be a whole number"):
        replace(made, count=10)


@EVERY_METHOD
def test_the_same_parameters_give_the_same_map(name, a_volume):
    image, parameters = a_volume(1, 8, 8, 8), quick_parameters(methods()[name])
    network = for_method(name, StridedNet())
    maps = []
    for _ in range(2):
        torch.manual_seed(len(maps))
        explanation = explain(as_model(network), image, Target(output=1), name, **parameters)
        maps.append(explanation.maps.as_tensor())
    assert torch.equal(*maps)


@EVERY_METHOD
def test_the_recorded_parameters_give_the_same_map_again(name, a_volume):
    # What was chosen by itself stands in the record, and does the same when it is asked for.
    image, model = a_volume(1, 8, 8, 8), as_model(for_method(name, StridedNet()))
    parameters = quick_parameters(methods()[name])
    first = explain(model, image, Target(output=1), name, **parameters)
    declared = {one.name for one in fields(methods()[name])}
    recorded = {key: value for key, value in first.parameters.items() if key in declared}
    again = explain(model, image, Target(output=1), first.method, **recorded)
    assert torch.equal(again.maps.as_tensor(), first.maps.as_tensor())


# ------------------------------------------------------------------------------------------------
# Names


@pytest.mark.parametrize("function", [make_method, describe_method])
def test_an_unknown_method_is_refused_with_the_nearest_name(function):
    with pytest.raises(MethodError, match=r"no method 'gradcam'\. Did you mean 'grad_cam'"):
        function("gradcam")


def test_an_unknown_method_is_refused_with_all_names():
    with pytest.raises(MethodError, match=r"no method 'xyz'\. All: .*gradient, "):
        make_method("xyz")


def test_an_unknown_parameter_is_refused_with_the_nearest_and_all_names():
    with pytest.raises(
        MethodError, match=r"no parameter 'step'\. Did you mean 'steps'\? It has: steps, baseline"
    ):
        make_method("integrated_gradients", {"step": 5})


def test_a_parameter_for_a_method_without_any_is_refused():
    with pytest.raises(MethodError, match=r"Gradient has no parameter 'steps'\. It has none\."):
        make_method("gradient", {"steps": 5})


def test_a_name_that_is_taken_is_refused_with_both_files(declare):
    declare("made_up")
    with pytest.raises(
        MethodError, match=rf"'made_up': in .*{__name__}\.py and .*{__name__}\.py\. Rename one"
    ):
        declare("made_up")


def test_a_refused_name_leaves_the_first_method_in_place(declare):
    first = declare("made_up")
    with pytest.raises(MethodError, match="Rename one"):
        declare("made_up")
    assert methods()["made_up"] is first


def test_the_list_of_methods_is_a_copy():
    methods().clear()
    assert set(methods()) == set(NAMES)


def test_a_method_that_makes_no_map_says_what_is_missing(declare):
    with pytest.raises(MethodError, match=r"Define attribute\(engine\)"):
        declare("made_up")().attribute(None)


def test_parameters_beside_a_method_that_is_made_already_are_refused(a_volume):
    with pytest.raises(MethodError, match=r"made already\. Give its parameters there: steps"):
        explain(
            as_model(StridedNet()),
            a_volume(1, 8, 8, 8),
            Target(output=1),
            make_method("integrated_gradients"),
            steps=3,
        )


# ------------------------------------------------------------------------------------------------
# The card


@EVERY_METHOD
def test_the_card_names_every_parameter_with_its_default_and_help(name):
    card = describe_method(name)
    for one in fields(methods()[name]):
        line = next(line for line in card.splitlines() if line.startswith(f"    {one.name} = "))
        assert repr(one.default) in line
        assert one.metadata["help"] in line
        for limit in one.metadata["choices"] or ():
            assert limit in line


@EVERY_METHOD
def test_the_card_tells_question_cost_weaknesses_and_source(name):
    cls, card = methods()[name], describe_method(name)
    for text in (cls.title, cls.summary, cls.weaknesses, cls.paper):
        assert text in card
    passes = make_method(name).passes()
    assert (f"{passes} pass" if passes else "depend") in card


def test_a_range_is_written_with_its_unit():
    assert "blur_mm = 12.0 (0.5 to 100 mm)" in describe_method("integrated_gradients")
