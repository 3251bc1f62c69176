"""Programs of torch.export and TorchScript: what they can be asked, and what they cannot."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import SegResNet, UNet
from torch.export import Dim

import SaliencyExplainLib as sx
from SaliencyExplainLib.errors import MethodError, ModelError, UntrustedModelError
from SaliencyExplainLib.model import WholeVolume, Windows, model_facts

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:copyreg"),
]


class Classifier(torch.nn.Module):
    """With a functional activation, dropout and a batch norm that has seen data."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv3d(1, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm3d(4)
        self.drop = torch.nn.Dropout(0.5)
        self.act = torch.nn.LeakyReLU(0.1, inplace=True)
        self.pool = torch.nn.MaxPool3d(2)
        self.last = torch.nn.Linear(4, 2)
        self.norm.running_mean.normal_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.act(self.norm(self.first(x))))
        return self.last(torch.relu(self.pool(x)).mean((2, 3, 4)))


class TwoInputs(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


class TwoOutputs(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1, x * 2


class ManyLayers(torch.nn.Module):
    """One of each kind of layer that is given back as a layer of torch.nn."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv3d(1, 4, 3, padding="same", bias=False),
            torch.nn.InstanceNorm3d(4),
            torch.nn.PReLU(4),
            torch.nn.Conv3d(4, 4, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), groups=2),
            torch.nn.InstanceNorm3d(4, affine=True),
            torch.nn.ELU(0.5),
            torch.nn.GroupNorm(2, 4),
            torch.nn.SiLU(),
            torch.nn.AvgPool3d((2, 2, 2), (2, 2, 2), (0, 0, 0)),
            torch.nn.GELU("tanh"),
            torch.nn.ConvTranspose3d(
                4, 6, (1, 3, 3), (1, 2, 2), (0, 1, 1), (0, 1, 1), groups=2, bias=False
            ),
            torch.nn.BatchNorm3d(6, affine=False),
            torch.nn.Tanh(),
            torch.nn.AdaptiveAvgPool3d((2, 2, 2)),
            torch.nn.Sigmoid(),
        )
        self.norm = torch.nn.LayerNorm(2)
        self.line = torch.nn.Linear(2, 3, bias=False)
        self.soft = torch.nn.Softmax(dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.soft(self.line(self.norm(self.layers(x))).flatten(1))


@pytest.fixture
def exported(tmp_path) -> Callable[..., Path]:
    """Write a network as torch.export does, traced with a volume of a size."""

    def write(network: torch.nn.Module, *sizes: int, name: str = "net.pt2", **options: Any) -> Path:
        path = tmp_path / name
        program = torch.export.export(network, (torch.zeros(1, 1, *sizes),), **options)
        torch.export.save(program, path)
        return path

    return write


@pytest.fixture(scope="module")
def a_unet() -> UNet:
    torch.manual_seed(0)
    return UNet(3, 1, 3, (4, 8, 16), (2, 2), num_res_units=1).eval()


@pytest.fixture(scope="module")
def exported_unet(a_unet, tmp_path_factory) -> sx.Model:
    path = tmp_path_factory.mktemp("unet") / "net.pt2"
    saved(a_unet, (torch.zeros(1, 1, 16, 16, 16),), path)
    return sx.load_model(
        path, trusted=True, task="segmentation", labels=["a", "b", "c"], device="cpu"
    )


def assert_same(found: sx.Explanation, wanted: sx.Explanation) -> None:
    """Maps that differ by less than a millionth of the largest value."""
    largest = float(wanted.maps.abs().max())
    assert largest > 0
    torch.testing.assert_close(
        found.maps.as_tensor(), wanted.maps.as_tensor(), rtol=0, atol=1e-6 * largest
    )


def of_kinds(network: torch.nn.Module) -> dict[str, str]:
    return {name: type(one).__name__ for name, one in network.named_modules() if name}


# The same as the network that was exported


def test_an_exported_unet_has_its_layers_again(exported_unet, a_unet):
    original = sx.load_model(a_unet, task="segmentation")
    before = {one.name: one for one in original.layers(shape=(1, 16, 16, 16))}
    leaves = [one for one in exported_unet.layers() if one.leaf]
    # Two modules of the U-Net only pass on (an identity): a graph has no trace of them.
    assert len(leaves) == sum(one.leaf for one in before.values()) - 2
    assert all(before[one.name] == one for one in leaves)
    assert {one.kind for one in leaves} >= {"PReLU", "InstanceNorm3d", "Conv3d", "ConvTranspose3d"}


EVERY = [
    "gradient",
    "guided_backprop",
    "deconvnet",
    "grad_cam",
    "hires_cam",
    "ablation_cam",
    "deep_lift",
    "lrp",
    "integrated_gradients",
    "occlusion",
]


@pytest.mark.parametrize("method", EVERY)
def test_an_exported_network_is_explained_like_the_network(method, exported_unet, a_unet, a_volume):
    image, target = a_volume(1, 16, 16, 16), sx.Target(1, "everywhere")
    found = sx.explain(exported_unet, image, target, method)
    wanted = sx.explain(sx.load_model(a_unet, task="segmentation"), image, target, method)
    assert found.layers == wanted.layers
    # Measured on all methods: no difference, but for the order of sums in the averaging ones.
    assert_same(found, wanted)


def test_residuals_and_group_norms_come_through_too(exported, a_volume):
    torch.manual_seed(0)
    network = SegResNet(
        spatial_dims=3, in_channels=1, out_channels=2, init_filters=8, blocks_down=(1, 1),
        blocks_up=(1,),
    ).eval()  # fmt: skip
    image, target = a_volume(1, 8, 8, 8), sx.Target(1, "everywhere")
    model = sx.load_model(exported(network, 8, 8, 8), trusted=True, task="segmentation")
    original = sx.load_model(network, task="segmentation")
    for method in ("grad_cam", "lrp", "deep_lift", "guided_backprop"):
        found = sx.explain(model, image, target, method)
        assert_same(found, sx.explain(original, image, target, method))


def test_each_known_layer_is_itself_again(exported, a_volume):
    network = ManyLayers().eval()
    model = sx.load_model(exported(network, 4, 8, 8), trusted=True, task="classification")
    wanted = of_kinds(network)
    wanted.pop("layers")
    found = of_kinds(model.network)
    found.pop("layers")
    assert found == wanted
    assert model.provenance["layers"] == "18 of 18 as torch.nn modules"
    # Options too: what they print is how they were made.
    for name in wanted:
        assert repr(model.network.get_submodule(name)) == repr(network.get_submodule(name)), name
    x = a_volume(1, 4, 8, 8).as_tensor()[None]
    assert torch.equal(model.network(x), network(x))
    assert sum(one.numel() for one in model.network.parameters()) == sum(
        one.numel() for one in network.parameters()
    )


def test_a_layer_that_would_answer_otherwise_stays_an_interpreter(exported, a_volume, monkeypatch):
    from SaliencyExplainLib.model import exported_layers

    network = Classifier().eval()
    path = exported(network, 8, 8, 8)
    monkeypatch.setitem(
        exported_layers._KNOWN, "leaky_relu", lambda tensors, options: torch.nn.LeakyReLU(0.2)
    )
    model = sx.load_model(path, trusted=True, task="classification")
    assert model.provenance["layers"] == "5 of 6 as torch.nn modules"
    assert of_kinds(model.network)["act"] == "InterpreterModule"
    x = a_volume(1, 8, 8, 8).as_tensor()[None]
    assert torch.equal(model.network(x), network(x))


def test_a_program_that_was_taken_apart_still_gives_gradients_and_layers(tmp_path, a_volume):
    network = Classifier().eval()
    program = torch.export.export(network, (torch.zeros(1, 1, 8, 8, 8),)).run_decompositions()
    torch.export.save(program, tmp_path / "apart.pt2")
    model = sx.load_model(tmp_path / "apart.pt2", trusted=True, task="classification")
    original, image = sx.load_model(network, task="classification"), a_volume(1, 8, 8, 8)
    for method, parameters in (("gradient", {}), ("grad_cam", {"layer": "norm"})):
        found = sx.explain(model, image, sx.Target(1), method, **parameters)
        wanted = sx.explain(original, image, sx.Target(1), method, **parameters)
        torch.testing.assert_close(
            found.maps.as_tensor(), wanted.maps.as_tensor(), rtol=1e-4, atol=1e-8
        )


# The size that it was exported for


def test_an_exported_size_becomes_the_window(exported, a_unet, a_volume):
    model = sx.load_model(exported(a_unet, 16, 8, 24), trusted=True, task="segmentation")
    assert model.inferer == Windows((16, 8, 24))
    image = a_volume(1, 20, 12, 30)
    made = sx.explain(model, image, sx.Target(1, "everywhere"), "gradient")
    original = sx.load_model(
        a_unet, task="segmentation", inferer=SlidingWindowInferer((16, 8, 24), overlap=0.25)
    )
    wanted = sx.explain(original, image, sx.Target(1, "everywhere"), "gradient")
    assert_same(made, wanted)


def test_sizes_that_may_vary_stay_free(exported, a_unet, a_volume):
    free = {"x": {2: Dim("i", min=2, max=16) * 4, 3: Dim("j", min=2) * 4}}
    path = exported(a_unet, 16, 16, 16, dynamic_shapes=free)
    model = sx.load_model(path, trusted=True, task="segmentation")
    assert model.inferer == Windows((-1, -1, 16))
    assert "sliding windows of all x all x 16 voxels" in model.describe()
    assert "takes: 1 x 1 x 8 to 64 x from 8 on x 16 (B, C, I, J, K)" in model.describe()
    image = a_volume(1, 20, 24, 18)
    assert sx.explain(model, image, sx.Target(1, "everywhere"), "gradient").maps.shape == (
        1, 20, 24, 18,
    )  # fmt: skip


def test_a_window_of_another_size_is_refused(exported, a_unet):
    path = exported(a_unet, 16, 16, 16)
    message = r"exported for an input of 1 x 1 x 16 x 16 x 16 .* windows of 8 x 8 x 8 were asked"
    with pytest.raises(ModelError, match=message):
        sx.load_model(
            path, trusted=True, task="segmentation", inferer=SlidingWindowInferer((8, 8, 8))
        )
    same = SlidingWindowInferer((16, 16, 16), overlap=0.5, mode="gaussian")
    model = sx.load_model(path, trusted=True, task="segmentation", inferer=same)
    assert model.inferer == Windows((16, 16, 16), (0.5,) * 3, "gaussian")


def test_a_scan_that_an_exported_classifier_does_not_take_is_refused(exported, a_volume):
    model = sx.load_model(
        exported(Classifier().eval(), 8, 8, 8), trusted=True, task="classification"
    )
    assert model.inferer == WholeVolume()
    assert sx.explain(model, a_volume(1, 8, 8, 8), sx.Target(1), "gradient").maps.abs().max() > 0
    with pytest.raises(ModelError, match=r"\(1, 1, 10, 8, 8\).*to be equal to 8, but got 10"):
        sx.explain(model, a_volume(1, 10, 8, 8), sx.Target(1), "gradient")


def test_an_exported_program_says_what_was_loaded(exported_unet, a_unet):
    facts = model_facts(exported_unet)
    assert (facts["format"], facts["name"]) == ("torch.export", "net.pt2")
    assert (facts["input_channels"], facts["window"]) == (1, [16, 16, 16])
    assert facts["parameters"] == sum(one.numel() for one in a_unet.parameters())
    assert facts["scripted"] is False
    told = exported_unet.describe()
    head = f"UNet, segmentation, {facts['parameters']:,} parameters, softmax\ninputs: 1, not named"
    assert told.startswith(head)
    assert "takes: 1 x 1 x 16 x 16 x 16 (B, C, I, J, K); layers: 28 of 28 as torch.nn" in told
    assert f"file: net.pt2 (torch.export)\nSHA-256: {facts['sha256']}" in told


# What is refused


@pytest.mark.parametrize("layer", ["norm", "drop"])
def test_a_network_that_was_exported_while_training_is_refused(layer, exported):
    network = Classifier().eval()
    getattr(network, layer).train()
    message = r"'net\.pt2' was exported in training mode: its .* Call network\.eval\(\) before"
    with pytest.raises(ModelError, match=message):
        sx.load_model(exported(network, 8, 8, 8), trusted=True, task="classification")


def saved(network: torch.nn.Module, inputs: tuple[torch.Tensor, ...], path: Path) -> Path:
    torch.export.save(torch.export.export(network, inputs), path)
    return path


@pytest.mark.parametrize(
    ("network", "shapes", "message"),
    [
        (TwoInputs(), [(1, 1, 4, 4, 4)] * 2, "takes 2 inputs; one volume"),
        (TwoOutputs(), [(1, 1, 4, 4, 4)], "gives 2 outputs of which one tensor"),
        (torch.nn.Conv2d(1, 2, 1), [(1, 1, 4, 4)], "takes an input with 4 axes"),
        (torch.nn.Flatten(2), [(1, 1, 4, 4, 4)], "gives 1 outputs of which one tensor"),
        (torch.nn.Conv3d(1, 2, 1), [(2, 1, 4, 4, 4)], "exported for batches of 2 images"),
    ],
)
def test_a_program_of_another_form_is_refused(network, shapes, message, tmp_path):
    inputs = tuple(torch.zeros(shape) for shape in shapes)
    path = saved(network.eval(), inputs, tmp_path / "net.pt2")
    with pytest.raises(ModelError, match=message):
        sx.load_model(path, trusted=True, task="segmentation")


def test_a_compiled_program_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "net.pt2", "w") as archive:
        archive.writestr("net/archive_format", "pt2")
        archive.writestr("net/data/aotinductor/model/model.so", b"")
    with pytest.raises(ModelError, match=r"compiled program \(AOTInductor\), which gives no grad"):
        sx.load_model(tmp_path / "net.pt2", trusted=True, task="segmentation")


def test_a_damaged_program_is_refused(exported, tmp_path):
    path = exported(torch.nn.Conv3d(1, 2, 1), 4, 4, 4)
    rewritten(
        path, tmp_path / "bad.pt2", lambda name, part: b"{}" if "model.json" in name else part
    )
    with pytest.raises(
        ModelError, match=r"'bad\.pt2' could not be opened as a program of torch\.e"
    ):
        sx.load_model(tmp_path / "bad.pt2", trusted=True, task="segmentation")


def rewritten(path: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    with zipfile.ZipFile(path) as given, zipfile.ZipFile(target, "w") as archive:
        for name in given.namelist():
            archive.writestr(name, change(name, given.read(name)))
    return target


def test_a_program_of_a_graphics_card_is_read_without_one(exported, a_unet, tmp_path, monkeypatch):
    # As it is written there: every device is the first graphics card, the example's storage too.
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    path = exported(a_unet, 16, 16, 16)
    monkeypatch.undo()

    def move(name: str, part: bytes) -> bytes:
        if not name.endswith(".json"):
            return part
        text = json.dumps(json.loads(part))
        return text.replace('"type": "cpu", "index": null', '"type": "cuda", "index": 0').encode()

    rewritten(path, tmp_path / "cuda.pt2", move)
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError), match="CUDA"):
            torch.export.load(tmp_path / "cuda.pt2")
    model = sx.load_model(tmp_path / "cuda.pt2", trusted=True, task="segmentation", device="cpu")
    x = torch.randn(1, 1, 16, 16, 16)
    assert torch.equal(model.network(x), a_unet(x))


# Trust


def test_an_exported_program_needs_trust(exported):
    path = exported(torch.nn.Conv3d(1, 2, 1), 4, 4, 4)
    with pytest.raises(UntrustedModelError, match=r"'net\.pt2' is a torch\.export file.*trusted="):
        sx.load_model(path, task="segmentation")


def test_a_hostile_program_does_not_run_before_it_is_trusted(exported, tmp_path):
    marker = tmp_path / "executed"

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    def poison(name: str, part: bytes) -> bytes:
        if name.endswith("model_weights_config.json"):
            content = json.loads(part)
            content["config"]["weight"]["use_pickle"] = True
            return json.dumps(content).encode()
        return pickle.dumps(Hostile()) if name.endswith("weights/weight_0") else part

    path = rewritten(exported(torch.nn.Conv3d(1, 2, 1), 4, 4, 4), tmp_path / "evil.pt2", poison)
    for name in ("evil.pt2", "evil.pt", "evil.pth"):
        path = path.rename(tmp_path / name)
        with pytest.raises(UntrustedModelError, match="which loading and running it would execute"):
            sx.load_model(path, task="segmentation")
    assert not marker.exists()
    # Else the test could not fail: torch.export.load unpickles.
    with pytest.raises(ModelError):
        sx.load_model(path, trusted=True, task="segmentation")
    assert marker.exists()


# TorchScript


@pytest.fixture
def scripted(tmp_path) -> sx.Model:
    torch.jit.freeze(torch.jit.script(Classifier().eval())).save(str(tmp_path / "net.ts"))
    return sx.load_model(tmp_path / "net.ts", trusted=True, task="classification", device="cpu")


@pytest.mark.parametrize("method", ["gradient", "integrated_gradients", "occlusion", "rise"])
def test_a_frozen_torchscript_network_is_explained_by_gradients_and_perturbations(
    method, scripted, a_volume
):
    image: MetaTensor = a_volume(1, 8, 8, 8)
    found = sx.explain(scripted, image, sx.Target(1), method)
    original = sx.load_model(Classifier().eval(), task="classification", device="cpu")
    wanted = sx.explain(original, image, sx.Target(1), method)
    assert float(wanted.maps.abs().max()) > 0
    torch.testing.assert_close(
        found.maps.as_tensor(), wanted.maps.as_tensor(), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("method", ["grad_cam", "deep_lift", "lrp"])
def test_torchscript_says_why_not_and_what_to_export_instead(method, scripted, a_volume):
    with pytest.raises(MethodError, match=r"TorchScript.*does not allow.*torch\.export.*\.pt2"):
        sx.explain(scripted, a_volume(1, 8, 8, 8), sx.Target(1), method)


def test_the_layers_of_torchscript_say_what_to_export_instead(scripted):
    with pytest.raises(ModelError, match=r"cannot be looked into.*torch\.export saves it \(\.pt2"):
        scripted.layers(shape=(1, 8, 8, 8))


def test_a_unet_of_torchscript_gives_its_channels_when_they_are_named(tmp_path):
    torch.jit.script(UNet(3, 2, 2, (2, 4), (2,)).eval()).save(str(tmp_path / "net.pt"))
    model = sx.load_model(
        tmp_path / "net.pt", trusted=True, task="segmentation", channels=["T1", "T2"]
    )
    assert model_facts(model)["input_channels"] == 2
    assert "(TorchScript)\nSHA-256: " in model.describe()
