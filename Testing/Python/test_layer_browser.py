"""Maps of many layers and kinds from the same passes; what speaks against a layer."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import UNet
from references import as_model, counted_runs
from torch import nn

import SaliencyExplainLib as sx
from SaliencyExplainLib.errors import LayerNotFoundError, MethodError
from SaliencyExplainLib.methods import make_method
from SaliencyExplainLib.methods.layer import LayerMethod, default_layers
from SaliencyExplainLib.model import Windows
from SaliencyExplainLib.model import model as model_module
from SaliencyExplainLib.run import explain, explain_layers
from SaliencyExplainLib.target import Target

KINDS = [
    "grad_cam",
    "grad_cam_plus_plus",
    "xgrad_cam",
    "hires_cam",
    "layer_cam",
    "seg_xres_cam",
]
INFERERS = {"whole": None, "windows": Windows((8, 8, 8), (0.5,) * 3)}


class Branches(nn.Module):
    """Two branches that do not see each other, a layer used twice, one dead and one constant."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.left = nn.Conv3d(1, 3, 3, padding=1)
        self.right = nn.Conv3d(1, 3, 3, padding=1)
        self.act = nn.ReLU()
        self.drop = nn.Dropout(0.5)
        self.dead = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.spread = nn.Upsample(scale_factor=8)
        self.join = nn.Conv3d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = self.drop(self.act(self.left(x)))
        right = self.act(self.right(x))
        nothing = self.dead(-right.abs())
        constant = self.spread(self.pool(right))
        return self.join(left + nothing + constant[..., : x.shape[4]])


def plain_unet() -> UNet:
    torch.manual_seed(0)
    return UNet(3, 1, 2, (4, 8), (2,), num_res_units=1, norm="batch").eval()


@pytest.mark.parametrize("kind", ["logit", "probability"])
@pytest.mark.parametrize("inferer", INFERERS)
@pytest.mark.parametrize("make", [plain_unet, Branches])
def test_all_layers_together_give_the_maps_of_one_by_one(a_volume, make, inferer, kind):
    network = make()
    keywords = {} if INFERERS[inferer] is None else {"inferer": INFERERS[inferer]}
    model = as_model(network, **keywords)
    image, target = a_volume(1, 12, 8, 8), Target(output=1, region="everywhere", score=kind)
    if make is Branches and inferer == "whole":
        image = a_volume(1, 8, 8, 8)
    together = explain_layers(model, image, target, KINDS)
    names = list(dict.fromkeys(one.layers[0] for one in together))
    assert [(one.method, one.layers[0]) for one in together] == [
        (name, layer) for name in KINDS for layer in names
    ]
    for one in together:
        alone = explain(model, image, target, one.method, layer=one.layers[0])
        torch.testing.assert_close(
            one.maps.as_tensor(), alone.maps.as_tensor(), rtol=1e-5, atol=1e-7
        )
        assert (one.layer_map is None) == (alone.layer_map is None)
        assert one.warnings == alone.warnings
        assert one.value == pytest.approx(alone.value)


@pytest.mark.parametrize(("inferer", "runs"), [("whole", 1), ("windows", 2 * 4)])
def test_any_number_of_layers_costs_the_same_passes(a_volume, inferer, runs):
    network = plain_unet()
    keywords = {} if INFERERS[inferer] is None else {"inferer": INFERERS[inferer]}
    model = as_model(network, **keywords)
    with counted_runs(network) as counted:
        explain_layers(model, a_volume(1, 12, 8, 8), Target(output=1, region="everywhere"), KINDS)
    # Windows: one sweep that fixes the region, one for the sums, one back, one for the features.
    assert len(counted) == runs


def test_layers_may_be_chosen_and_keep_their_own_grid(a_volume):
    model = as_model(plain_unet())
    image = a_volume(1, 8, 8, 8)
    known = [one.name for one in model.layers(shape=(1, 8, 8, 8)) if one.grid.spacing[0] == 2]
    made = explain_layers(model, image, Target(output=1), layers=known)
    for one in made:
        assert one.layer_map.shape == (1, 4, 4, 4)
        assert torch.allclose(one.layer_map.affine.diagonal()[:3], torch.full((3,), 2.0).double())


def test_a_layer_that_passes_on_what_it_got_is_not_shown_twice(a_volume):
    made = explain_layers(as_model(Branches()), a_volume(1, 8, 8, 8), Target(output=1))
    names = [one.layers[0] for one in made]
    assert "act" in names
    assert "drop" not in names
    assert "pool" not in names


def test_a_method_with_passes_of_its_own_is_refused(a_volume):
    with pytest.raises(MethodError, match=r"Occlusion needs passes of its own .* Grad-CAM, Grad"):
        explain_layers(
            as_model(plain_unet()), a_volume(1, 8, 8, 8), Target(output=1), ["occlusion"]
        )


def test_an_unknown_layer_names_the_nearest(a_volume):
    with pytest.raises(LayerNotFoundError, match=r"no layer 'joyn'\. Nearest: join"):
        explain_layers(
            as_model(Branches()), a_volume(1, 8, 8, 8), Target(output=1), layers=["joyn"]
        )


def test_the_run_can_be_cancelled_and_leaves_no_hook(a_volume):
    network = plain_unet()
    with pytest.raises(sx.Cancelled):
        explain_layers(
            as_model(network), a_volume(1, 8, 8, 8), Target(output=1), cancelled=lambda: True
        )
    assert not any(one._forward_hooks for one in network.modules())


# ------------------------------------------------------------------------------------------------
# What the list of layers says


def problems(model, image) -> dict[str, str]:
    return {one.name: one.problem for one in model.layers(image)}


def test_dead_and_constant_layers_are_known_once_an_image_is_given(a_volume):
    model = as_model(Branches())
    found = problems(model, a_volume(1, 8, 8, 8))
    assert found["dead"].startswith("was zero everywhere")
    assert found["spread"].startswith("was the same everywhere")
    assert found["pool"].startswith("has a single voxel")
    assert found["act"] == found["left"] == found["join"] == ""
    without = {one.name: one.problem for one in model.layers(shape=(1, 8, 8, 8))}
    assert without["dead"] == without["spread"] == ""


def test_a_layer_that_feeds_an_instance_norm_is_known_without_an_image(unet):
    layers = as_model(unet).layers(shape=(1, 16, 16, 16))
    feeding = [one for one in layers if one.feeds_instance_norm]
    assert feeding
    assert all("rounding noise" in one.problem for one in feeding)


def test_looking_at_values_uses_one_pass_and_leaves_the_network_as_it_was(a_volume):
    network = plain_unet()
    model = as_model(network, inferer=Windows((8, 8, 8), (0.5,) * 3))
    network.train()
    with counted_runs(network) as runs:
        model.layers(a_volume(1, 20, 20, 20))
    assert runs == [False]
    assert network.training
    assert not any(one._forward_hooks for one in network.modules())


def test_a_network_is_traced_once_a_shape_until_its_modules_change(monkeypatch):
    traced = []
    original = model_module.trace_layers
    monkeypatch.setattr(
        model_module, "trace_layers", lambda *given: traced.append(given[1]) or original(*given)
    )
    network = Branches()
    model = as_model(network)
    for shape in ((1, 8, 8, 8), (1, 8, 8, 8), (1, 8, 8, 6)):
        model.layers(shape=shape)
    assert traced == [(1, 8, 8, 8), (1, 8, 8, 6)]
    network.act = nn.LeakyReLU()
    assert {one.name: one.kind for one in model.layers(shape=(1, 8, 8, 8))}["act"] == "LeakyReLU"


def test_the_list_of_layers_belongs_to_the_caller():
    model = as_model(Branches())
    model.layers(shape=(1, 8, 8, 8)).clear()
    assert model.layers(shape=(1, 8, 8, 8))


def test_every_method_with_a_layer_has_a_default_and_uses_it(a_volume):
    model = as_model(plain_unet())
    image = a_volume(1, 8, 8, 8)
    found = default_layers(model.layers(shape=(1, 8, 8, 8)), model.task)
    wanted = {
        name
        for name, one in sx.methods().items()
        if issubclass(one, LayerMethod) and one.chooses_by_structure
    }
    assert set(found) == wanted >= set(KINDS)
    for name in KINDS:
        made = explain(model, image, Target(output=1, region="everywhere"), make_method(name))
        assert made.layers == (found[name],)


def test_hirescam_looks_at_the_finest_features_and_gradcam_at_coarse_ones():
    model = as_model(plain_unet())
    layers = {one.name: one for one in model.layers(shape=(1, 8, 8, 8))}
    found = default_layers(list(layers.values()), "segmentation")
    assert layers[found["hires_cam"]].grid.spacing == (1, 1, 1)
    assert layers[found["grad_cam"]].grid.spacing == (2, 2, 2)


@pytest.mark.parametrize("inferer", INFERERS)
def test_weights_that_are_rounding_are_told_for_each_layer(unet, a_volume, inferer):
    keywords = {} if INFERERS[inferer] is None else {"inferer": INFERERS[inferer]}
    model = as_model(unet, **keywords)
    target = Target(output=1, region="everywhere")
    layers = [
        one for one in model.layers(shape=(1, 8, 8, 8)) if one.leaf and one.grid.spacing[0] < 4
    ]
    feeding = {one.name for one in layers if one.feeds_instance_norm}
    made = explain_layers(model, a_volume(1, 16, 8, 8), target, layers=[one.name for one in layers])
    told = {one.layers[0] for one in made if any("rounding noise" in note for note in one.warnings)}
    assert feeding
    assert told == feeding
