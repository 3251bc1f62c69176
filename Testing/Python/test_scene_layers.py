"""Maps of several layers in the scene: a sequence that can be browsed, all of it or nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import slicer
from scene_cases import (
    a_map,
    a_transform,
    an_affine,
    an_explanation,
    an_input,
    hierarchy,
    node_ids,
)

from SaliencyExplainLib.errors import SceneError
from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.scene import (
    load_mrb,
    new_scene,
    publish_layers,
    release_scene,
    save_mrb,
)
from SaliencyExplainLib.scene.nodes import ijk_to_ras
from SaliencyExplainLib.scene.windows import robust_maximum

NAMES = ("zeta.conv", "alpha.conv", "model.2.submodule.0")


@pytest.fixture
def scene():
    one = new_scene()
    yield one
    release_scene(one)


def some_layers(**facts):
    """Maps of three layers, of very different size."""
    told = {"method": "grad_cam", "title": "Grad-CAM", "signed": False} | facts
    return [
        an_explanation(np.abs(a_map(seed=index)) * 10.0**index, layers=(name,), **told)
        for index, name in enumerate(NAMES)
    ]


def cells(table, column):
    array = table.GetTable().GetColumnByName(column)
    return [array.GetValue(row) for row in range(array.GetNumberOfValues())]


def voxels(node):
    return slicer.util.arrayFromVolume(node).transpose(2, 1, 0)


def scaled(explanation):
    values = explanation.map.numpy()[0]
    return values / np.float32(robust_maximum(values))


def test_browsing_goes_through_the_layers_in_their_order(scene):
    layers = some_layers()
    made = publish_layers(layers, scene, input_volume=an_input(scene, name="Head"))
    assert made.browser.GetNumberOfItems() == 3
    assert [made.sequence.GetNthIndexValue(index) for index in range(3)] == list(NAMES)
    for index in (0, 1, 2, 0):
        made.browser.SetSelectedItemNumber(index)
        np.testing.assert_array_equal(voxels(made.volume), scaled(layers[index]))
        assert made.volume.GetAttribute("SaliencyExplain.layer") == NAMES[index]
        assert made.volume.GetName() == "Head layers: tumor"
    np.testing.assert_allclose(ijk_to_ras(made.volume), an_affine(), atol=1e-12)


def test_the_factor_gives_the_raw_values_back(scene):
    layers = some_layers()
    made = publish_layers(layers, scene)
    factors = cells(made.table, "factor")
    assert cells(made.table, "layer") == list(NAMES)
    for index, one in enumerate(layers):
        made.browser.SetSelectedItemNumber(index)
        own = float(made.volume.GetAttribute("SaliencyExplain.factor"))
        np.testing.assert_allclose(voxels(made.volume) * own, one.map.numpy()[0], rtol=1e-6)
        assert factors[index] == pytest.approx(own, rel=1e-5)
        assert cells(made.table, "largest")[index] == pytest.approx(
            float(one.map.abs().max()), rel=1e-5
        )


@pytest.mark.parametrize("signed", [True, False])
def test_all_layers_share_one_display_range(scene, signed):
    made = publish_layers(some_layers(signed=signed), scene)
    display = made.volume.GetDisplayNode()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == (-1 if signed else 0, 1)
    assert display.GetColorNode().GetAttribute("SaliencyExplain.signed") == str(signed).lower()
    made.browser.SetSelectedItemNumber(2)
    assert made.volume.GetDisplayNode() is display


def test_several_methods_are_told_apart(scene):
    other = [replace(one, method="hires_cam", title="HiResCAM") for one in some_layers()]
    made = publish_layers([*some_layers(), *other, other[0]], scene)
    listed = cells(made.table, "layer")
    assert listed[0] == "Grad-CAM: zeta.conv"
    assert listed[3] == "HiResCAM: zeta.conv"
    assert listed[6] == "HiResCAM: zeta.conv (2)"
    assert made.browser.GetNumberOfItems() == 7


def test_they_lie_in_one_folder_and_move_with_their_input(scene):
    volume = an_input(scene, name="Head")
    transform = a_transform(scene, np.diag([1.0, -1, 2, 1]))
    volume.SetAndObserveTransformNodeID(transform.GetID())
    made = publish_layers(some_layers(), scene, input_volume=volume)
    assert hierarchy(scene)["Layers: tumor"] == [
        "Head layers: tumor (layers)",
        "Head layers: tumor",
        "Head layers: tumor (sequence)",
        "Head layers: tumor (browser)",
    ]
    assert made.volume.GetParentTransformNode() is transform
    assert made.volume.GetNodeReference("SaliencyExplain.inputVolume") is volume
    made.browser.SetSelectedItemNumber(1)
    assert made.volume.GetParentTransformNode() is transform


def test_a_map_of_zeros_stays_one(scene):
    layers = [some_layers()[0], an_explanation(0 * a_map(), signed=False, layers=("dead",))]
    made = publish_layers(layers, scene)
    made.browser.SetSelectedItemNumber(1)
    assert not voxels(made.volume).any()
    assert cells(made.table, "factor")[1] == 0


def test_what_does_not_belong_together_is_refused(scene):
    nodes = node_ids(scene)
    with pytest.raises(SceneError, match="There is no map of a layer"):
        publish_layers([], scene)
    smaller = make_image(np.ones((1, 2, 2, 2), np.float32), an_affine())
    with pytest.raises(SceneError, match=r"The map of 'a' lies on another grid"):
        publish_layers([*some_layers(), replace(some_layers()[0], maps=smaller, layers=("a",))])
    with pytest.raises(SceneError, match=r"has other signs, than the first"):
        publish_layers([*some_layers(), *some_layers(signed=True)], scene)
    other = new_scene()
    with pytest.raises(SceneError, match=r"'Head' is not in the scene \(any more\)"):
        publish_layers(some_layers(), scene, input_volume=an_input(other, name="Head"))
    release_scene(other)
    assert node_ids(scene) == nodes


@pytest.mark.parametrize("which", range(6))
def test_what_fails_half_way_leaves_the_scene_as_it_was(scene, monkeypatch, which):
    from SaliencyExplainLib.scene.additions import Additions

    volume = an_input(scene)
    publish_layers(some_layers(), scene, input_volume=volume)
    before = (node_ids(scene), hierarchy(scene))
    original, count = Additions.node, iter(range(1000))

    def node(self, *arguments, **options):
        added = original(self, *arguments, **options)
        if next(count) == which:
            raise RuntimeError("injected")
        return added

    monkeypatch.setattr(Additions, "node", node)
    with pytest.raises(RuntimeError, match="injected"):
        publish_layers(some_layers(), scene, input_volume=volume)
    assert (node_ids(scene), hierarchy(scene)) == before


def test_the_sequence_comes_back_with_a_scene_file(scene, tmp_path):
    layers = some_layers()
    affine = an_affine(left_handed=False)
    layers = [replace(one, maps=make_image(one.maps.numpy(), affine)) for one in layers]
    made = publish_layers(layers, scene, name="Run")
    other = load_mrb(save_mrb(scene, tmp_path / "layers.mrb"))
    try:
        browser = other.GetFirstNodeByName("Run (browser)")
        volume = other.GetFirstNodeByName("Run")
        assert browser.GetNumberOfItems() == 3
        for index in (1, 2, 0):
            browser.SetSelectedItemNumber(index)
            np.testing.assert_allclose(voxels(volume), scaled(layers[index]), rtol=1e-6)
        table = other.GetFirstNodeByName("Run (layers)")
        assert cells(table, "factor") == cells(made.table, "factor")
        assert volume.GetDisplayNode().GetWindowLevelMax() == 1
    finally:
        release_scene(other)
