"""Models from memory and from files: what loads, what is refused, and that nothing hostile runs."""

from __future__ import annotations

import json
import os
import pickle
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import monai
import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer, SliceInferer, SlidingWindowInferer
from monai.networks.nets import UNet
from monai.transforms import Flip

import SaliencyExplainLib as sx
from SaliencyExplainLib.errors import ImageError, MethodError, ModelError, UntrustedModelError
from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.model import Preprocess, WholeVolume, Windows

pytestmark = [
    # MONAI 1.6 announces a default that images with RAS metadata have already.
    pytest.mark.filterwarnings("ignore:.*Orientation.*labels:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning"),
]

NETWORK = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [2, 4]}
NETWORK |= {"strides": [2]}
METADATA = {
    "name": "Spleen finder",
    "version": "0.3.0",
    "monai_version": "1.6.1",
    "network_data_format": {
        "inputs": {"image": {"channel_def": {"0": "CT"}, "spatial_shape": ["*", "*", "*"]}},
        "outputs": {
            "pred": {"format": "segmentation", "channel_def": {"1": "spleen", "0": "background"}}
        },
    },
}
CONFIG = {
    "image_key": "image",
    "device": "$torch.device('cuda:0')",
    "network_def": {"_target_": "UNet", **NETWORK},
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "@image_key", "reader": "ITKReader"},
            {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
            {"_target_": "Orientationd", "keys": "@image_key", "axcodes": "RAS"},
            {"_target_": "ScaleIntensityd", "keys": "@image_key"},
        ],
    },
    "inferer": {
        "_target_": "SlidingWindowInferer",
        "roi_size": [16, 16, 16],
        "overlap": 0.5,
        "mode": "gaussian",
        "device": "@device",
    },
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [{"_target_": "Activationsd", "keys": "pred", "sigmoid": True}],
    },
}


def a_network(seed: int = 7) -> UNet:
    torch.manual_seed(seed)
    return UNet(**NETWORK)


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return list(states[0]) == list(states[1]) and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


def factory(width: int = 2) -> torch.nn.Module:
    """What --network names in the tests below."""
    return torch.nn.Conv3d(1, width, 1)


def no_network() -> int:
    return 3


@pytest.fixture
def a_bundle(tmp_path):
    """Write a bundle folder; keyword arguments replace sections of its configuration."""

    def write(folder: str = "bundle", weights: bool = True, yaml: bool = False, **changes: Any):
        root = tmp_path / folder
        for part in ("configs", "models"):
            (root / part).mkdir(parents=True)
        config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
        text = json.dumps(config)
        if yaml:
            import yaml as library

            text = library.safe_dump(config)
        (root / "configs" / f"inference.{'yaml' if yaml else 'json'}").write_text(text)
        (root / "configs" / "metadata.json").write_text(json.dumps(METADATA))
        if weights:
            torch.save(a_network().state_dict(), root / "models" / "model.pt")
        return root

    return write


@pytest.fixture
def marker(tmp_path) -> Path:
    """A file that hostile models try to make."""
    return tmp_path / "executed"


def zipped(root: Path, path: Path, inside: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in root.rglob("*"):
            archive.write(file, f"{inside}{file.relative_to(root)}")
    return path


# A network in memory


def test_a_network_in_memory_keeps_its_options():
    network = a_network()
    model = sx.load_model(
        network,
        task="segmentation",
        labels=["background", "spleen"],
        channels=["CT"],
        preprocess=Flip(0),
        inferer=SlidingWindowInferer((8, 9, 10), overlap=0.5, mode="gaussian"),
        activation="sigmoid",
    )
    assert model.network is network
    assert not network.training
    assert (model.task, model.activation) == ("segmentation", "sigmoid")
    assert (model.labels, model.channels) == (("background", "spleen"), ("CT",))
    assert isinstance(model.preprocess.transform, Flip)
    assert model.inferer == Windows((8, 9, 10), (0.5,) * 3, "gaussian")


def test_a_network_in_memory_has_plain_defaults():
    model = sx.load_model(a_network(), task="segmentation")
    assert (model.labels, model.channels, model.activation) == ((), (), "softmax")
    assert model.preprocess == Preprocess()
    assert model.inferer == WholeVolume()
    assert sx.load_model(a_network(), task="segmentation", inferer=SimpleInferer()).inferer == (
        WholeVolume()
    )


@pytest.mark.parametrize(
    ("task", "labels", "activation"),
    [
        ("regression", (), "none"),
        ("segmentation", ("lesion",), "sigmoid"),
        ("classification", ("a", "b"), "softmax"),
    ],
)
def test_the_activation_follows_from_task_and_labels(task, labels, activation):
    assert sx.load_model(a_network(), task=task, labels=labels).activation == activation


def test_a_loaded_model_is_given_back_as_it_is():
    model = sx.load_model(a_network(), task="segmentation")
    assert sx.load_model(model) is model
    with pytest.raises(ModelError, match="loaded already; labels cannot change it"):
        sx.load_model(model, labels=["a", "b"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "task of this model is not known"),
        ({"task": "detection"}, "task must be one of .*'detection' was given"),
        ({"task": "segmentation", "activation": "relu"}, "activation must be one of"),
        ({"task": "segmentation", "lables": ["a"]}, "no option 'lables'. Options: task, labels"),
        ({"task": "segmentation", "labels": "spleen"}, "list of names; the text 'spleen'"),
        ({"task": "segmentation", "channels": "CT"}, "list of names; the text 'CT'"),
        ({"task": "segmentation", "preprocess": 3}, "must be a MONAI transform; int was given"),
        ({"task": "segmentation", "inferer": "windows"}, "inferer str is not supported"),
        (
            {"task": "segmentation", "inferer": SlidingWindowInferer((8, 8))},
            "A window has three axes",
        ),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ModelError, match=message):
        sx.load_model(a_network(), **options)


def test_an_inferer_of_unknown_fusion_is_refused():
    inferer = SliceInferer(roi_size=(8, 8))
    with pytest.raises(ModelError, match="inferer SliceInferer is not supported"):
        sx.load_model(a_network(), task="segmentation", inferer=inferer)


@pytest.mark.parametrize("overlap", [1.0, -0.1])
def test_an_overlap_out_of_range_is_refused(overlap):
    with pytest.raises(ModelError, match="overlap of windows must be at least 0 and less than 1"):
        Windows((8, 8, 8), (overlap,) * 3)


def test_what_is_no_model_is_refused():
    with pytest.raises(ModelError, match="network or the path of a file; int was given"):
        sx.load_model(3, task="segmentation")


def test_a_model_describes_itself(a_bundle):
    told = sx.load_model(a_bundle()).describe()
    assert "UNet, segmentation" in told
    assert "outputs: 0 background, 1 spleen" in told
    assert "preprocessing: Orientationd, ScaleIntensityd" in told
    assert "sliding windows of 16 x 16 x 16 voxels, overlap 0.5, gaussian fusion" in told
    assert "file: bundle (MONAI bundle)\nSHA-256: " in told


def test_a_wrong_number_of_channels_is_refused():
    model = sx.load_model(a_network(), task="segmentation", channels=["FLAIR", "T1"])
    message = r"expects 2 input channels \(FLAIR, T1\); 1 volume was given\. Choose 1 more volume "
    with pytest.raises(ImageError, match=message):
        sx.explain(model, make_image(np.zeros((8, 8, 8)), np.eye(4)))


# Bundles


@pytest.mark.parametrize("form", ["JSON", "YAML", "zip", "zip in a folder"])
def test_a_plain_bundle_loads_without_trust(form, a_bundle, tmp_path):
    source = a_bundle(yaml=form == "YAML")
    if form.startswith("zip"):
        inside = "release/spleen/" if "folder" in form else ""
        source = zipped(source, tmp_path / "bundle.zip", inside)
    model = sx.load_model(source)
    assert same_weights(model.network, a_network())
    assert not model.network.training
    assert (model.task, model.activation) == ("segmentation", "sigmoid")
    assert (model.labels, model.channels) == (("background", "spleen"), ("CT",))
    assert model.inferer == Windows((16, 16, 16), (0.5,) * 3, "gaussian")
    assert model.preprocess.describe() == "Orientationd, ScaleIntensityd"
    assert model.provenance["format"] == "MONAI bundle"
    assert model.provenance["title"] == "Spleen finder"
    assert len(model.provenance["sha256"]) == 64


def test_options_go_before_what_a_bundle_says(a_bundle):
    model = sx.load_model(a_bundle(), labels=["x", "y"], inferer=None, activation="softmax")
    assert (model.labels, model.activation, model.inferer) == (
        ("x", "y"),
        "softmax",
        WholeVolume(),
    )


@pytest.mark.parametrize(
    ("step", "activation"),
    [
        ({"_target_": "Activationsd", "keys": "pred", "softmax": True}, "softmax"),
        ({"_target_": "Activations", "sigmoid": True}, "sigmoid"),
        ({"_target_": "monai.transforms.Activationsd", "keys": "pred", "sigmoid": [True]}, None),
        ({"_target_": "AsDiscreted", "keys": "pred", "argmax": True}, "softmax"),
    ],
)
def test_the_activation_is_read_from_the_bundle(step, activation, a_bundle):
    root = a_bundle(postprocessing={"_target_": "Compose", "transforms": [step]})
    assert sx.load_model(root).activation == (activation or "sigmoid")


def test_a_bundle_without_preprocessing_or_inferer_takes_the_scan_as_it_is(a_bundle):
    model = sx.load_model(a_bundle(preprocessing=None, inferer=None, postprocessing=None))
    assert model.preprocess == Preprocess()
    assert model.inferer == WholeVolume()


def test_metadata_that_say_little_ask_for_the_task(a_bundle):
    root = a_bundle()
    (root / "configs" / "metadata.json").write_text('{"network_data_format": {"outputs": []}}')
    with pytest.raises(ModelError, match="task of this model is not known"):
        sx.load_model(root)
    assert sx.load_model(root, task="segmentation").labels == ()


def test_a_bundle_without_weights_is_refused(a_bundle):
    with pytest.raises(ModelError, match=r"no weights \(models/model.pt is missing\)"):
        sx.load_model(a_bundle(weights=False))


def test_a_bundle_without_a_network_is_refused(a_bundle):
    with pytest.raises(ModelError, match=r"names no network\. Expected one of network_def"):
        sx.load_model(a_bundle(network_def=None, network=None))


def test_a_bundle_without_an_inference_configuration_is_refused(a_bundle):
    root = a_bundle()
    (root / "configs" / "inference.json").unlink()
    with pytest.raises(ModelError, match=r"no configs/inference\.json or \.yaml"):
        sx.load_model(root)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("metadata.json", "{", "'metadata.json' of the bundle is no valid JSON"),
        ("metadata.json", "[]", "'metadata.json' of the bundle is no JSON object"),
        ("inference.json", "{,}", "'inference.json' of the bundle is no valid JSON"),
    ],
)
def test_a_damaged_configuration_is_refused(file, text, message, a_bundle):
    root = a_bundle()
    (root / "configs" / file).write_text(text)
    with pytest.raises(ModelError, match=message):
        sx.load_model(root)


@pytest.mark.parametrize(("text", "message"), [("a: [", "no valid YAML"), ("- a", "is no mapping")])
def test_a_damaged_yaml_configuration_is_refused(text, message, a_bundle):
    root = a_bundle(yaml=True)
    (root / "configs" / "inference.yaml").write_text(text)
    with pytest.raises(ModelError, match=message):
        sx.load_model(root)


def test_a_two_dimensional_network_is_refused(a_bundle):
    with pytest.raises(ModelError, match="network is 2-D"):
        sx.load_model(a_bundle(network_def={"_target_": "UNet", **NETWORK, "spatial_dims": 2}))


def test_arguments_of_another_version_of_monai_are_named(a_bundle):
    root = a_bundle(network_def={"_target_": "UNet", **NETWORK, "img_size": 96})
    with pytest.raises(
        ModelError, match=rf"'img_size'.*another version of MONAI.*this is {monai.__version__}"
    ):
        sx.load_model(root)


def test_a_class_that_monai_no_longer_has_is_named(a_bundle):
    steps = [{"_target_": "AddChanneld", "keys": "image"}]
    root = a_bundle(preprocessing={"_target_": "Compose", "transforms": steps})
    message = rf"'preprocessing' uses 'AddChanneld', which MONAI {monai.__version__} does not have"
    with pytest.raises(ModelError, match=message) as raised:
        sx.load_model(root)
    # Trusting it would not help, so trust is not asked for.
    assert not isinstance(raised.value, UntrustedModelError)


def test_a_missing_package_is_named_with_how_to_install_it(a_bundle, monkeypatch):
    def needy(self, *args, **kwargs):
        import no_such_package  # noqa: F401

    root = a_bundle()
    monkeypatch.setattr(UNet, "__init__", needy)
    message = (
        r"No module named 'no_such_package'\. Install the missing .*pip install no_such_package"
    )
    with pytest.raises(ModelError, match=message):
        sx.load_model(root)


@pytest.mark.parametrize("kind", ["scripts.nets.made", "nets.made"])
def test_a_bundles_own_code_is_named(kind, a_bundle):
    root = a_bundle(network_def={"_target_": kind})
    place = root / "scripts" if kind.startswith("scripts") else root
    place.mkdir(exist_ok=True)
    (place / "nets.py").write_text("raise SystemExit('it ran')\n")
    message = rf"would run code when loaded: network_def is built by its own '{kind}' \(\w+\)"
    with pytest.raises(UntrustedModelError, match=message):
        sx.load_model(root)


def test_weights_of_another_network_are_refused(a_bundle):
    root = a_bundle(network_def={"_target_": "UNet", **NETWORK, "channels": [4, 8]})
    with pytest.raises(ModelError, match=r"weights in 'model.pt' do not fit the network UNet: "):
        sx.load_model(root)


def test_a_part_that_is_no_network_is_refused(a_bundle):
    with pytest.raises(ModelError, match="'network_def' gave Compose; a network was expected"):
        sx.load_model(a_bundle(network_def={"_target_": "Compose"}))


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    message = r"no MONAI bundle \(it has no configs/metadata\.json\) and no trained nnU-Net folder"
    with pytest.raises(ModelError, match=message):
        sx.load_model(tmp_path)


# Bundles that need trust


def test_a_python_expression_needs_trust(a_bundle):
    expression = "$torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1))"
    root = a_bundle(network_def=expression, weights=False)
    torch.save(torch.nn.Sequential(factory()).state_dict(), root / "models" / "model.pt")
    with pytest.raises(UntrustedModelError, match="network_def is the Python expression"):
        sx.load_model(root)
    assert isinstance(sx.load_model(root, trusted=True).network, torch.nn.Sequential)


def test_a_bundle_that_needs_no_trust_loads_with_it_too(a_bundle):
    assert same_weights(sx.load_model(a_bundle(), trusted=True).network, a_network())


def test_trusted_bundles_do_not_get_each_others_scripts(a_bundle):
    for name, width in (("one", 2), ("two", 3)):
        root = a_bundle(name, weights=False, network_def={"_target_": "scripts.nets.made"})
        (root / "scripts").mkdir()
        (root / "scripts" / "__init__.py").write_text("")
        (root / "scripts" / "nets.py").write_text(
            f"import torch\ndef made():\n    return torch.nn.Conv3d(1, {width}, 1)\n"
        )
        torch.save(factory(width).state_dict(), root / "models" / "model.pt")
        path = list(sys.path)
        model = sx.load_model(root, trusted=True, labels=[str(one) for one in range(width)])
        assert model.network.out_channels == width
        assert sys.path == path
        assert "scripts" not in sys.modules


OS_SYSTEM = {"_target_": "os.system", "command": "touch MARKER"}


def loading(**arguments: Any) -> dict:
    """A preprocessing that reads files in a way of its own."""
    step = {"_target_": "LoadImaged", "keys": "image", **arguments}
    return {"_target_": "Compose", "transforms": [step]}


HOSTILE: dict[str, dict[str, Any]] = {
    "target": {"network_def": OS_SYSTEM},
    "target in an argument": {"network_def": {"_target_": "UNet", **NETWORK, "act": OS_SYSTEM}},
    "target in a list": {"preprocessing": {"_target_": "Compose", "transforms": [OS_SYSTEM]}},
    "inferer": {"inferer": OS_SYSTEM},
    "reference": {"network_def": {"_target_": "UNet", **NETWORK, "act": "@evil"}},
    "nested reference": {"network_def": {"_target_": "UNet", **NETWORK, "act": "@deep#evil"}},
    "newer reference": {"network_def": {"_target_": "UNet", **NETWORK, "act": "@deep::evil"}},
    "relative reference": {"network_def": {"_target_": "UNet", **NETWORK, "act": "@##evil"}},
    "requires": {"network_def": {"_target_": "UNet", **NETWORK, "_requires_": ["@evil"]}},
    "expression": {"network_def": "$__import__('os').system('touch MARKER')"},
    "expression in an argument": {
        "network_def": {"_target_": "UNet", **NETWORK, "act": "$open('MARKER', 'w')"}
    },
    "disabled": {
        "network_def": {"_target_": "UNet", **NETWORK, "_disabled_": "$open('MARKER', 'w')"}
    },
    "imports": {"imports": ["$import hostile"]},
    "import elsewhere": {"anything": {"at": ["all", "$from hostile import nothing"]}},
    "part by its path": {"network_def#act": OS_SYSTEM},
    "part by its newer path": {"network_def::act": OS_SYSTEM},
    "macro": {"network_def": "%hostile.json#network_def"},
    "macro in an argument": {"network_def": {"_target_": "UNet", **NETWORK, "act": "%evil"}},
    "lambda": {
        "preprocessing": {
            "_target_": "Lambdad",
            "keys": "image",
            "func": "$lambda x: open('MARKER', 'w')",
        }
    },
    "random lambda": {"preprocessing": {"_target_": "RandLambdad", "keys": "image", "func": None}},
    "lambda by its path": {
        "preprocessing": {"_target_": "monai.transforms.Lambda", "func": {"_target_": "hostile.f"}}
    },
    "saving": {"preprocessing": {"_target_": "SaveImaged", "keys": "image", "writer": "hostile"}},
    "torchvision": {"preprocessing": {"_target_": "TorchVisiond", "keys": "image", "name": "x"}},
    "reader": {"preprocessing": loading(reader="os.system", command="touch MARKER")},
    "reader that opens": {"preprocessing": loading(reader="open", file="MARKER", mode="w")},
    "reader of array style": {
        "preprocessing": {"_target_": "LoadImage", "reader": "os.system", "command": "touch MARKER"}
    },
    "reader by its path": {
        "preprocessing": {
            "_target_": "monai.transforms.LoadImage",
            "reader": "subprocess.getoutput",
            "cmd": "touch MARKER",
        }
    },
    "merger": {"inferer": {"_target_": "PatchInferer", "splitter": 1, "merger_cls": "hostile.f"}},
    "monai module": {"network_def": {"_target_": "monai.bundle.scripts.run", "run_id": "x"}},
    "path through monai": {
        "network_def": {"_target_": "monai.transforms.utils.np.f2py.os.UNet", "x": "MARKER"}
    },
    "debugger": {"network_def": {"_target_": "UNet", **NETWORK, "_mode_": "debug"}},
    "download": {
        "network_def": {"_target_": "HoVerNet", "pretrained_url": "http://hostile.example/x.pt"}
    },
}


@pytest.mark.parametrize("yaml", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_hostile_runs_in_an_untrusted_bundle(name, yaml, a_bundle, marker, monkeypatch):
    parts = json.loads(json.dumps(HOSTILE[name]).replace("MARKER", str(marker)))
    evil = json.loads(json.dumps(OS_SYSTEM).replace("MARKER", str(marker)))
    root = a_bundle(yaml=yaml, evil=evil, deep={"evil": evil}, **parts)
    (root / "hostile.py").write_text(f"open({str(marker)!r}, 'w')\nf = nothing = print\n")
    (root / "hostile.json").write_text(json.dumps({"network_def": evil}))
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(root)
    # Imports and readers are not needed and do no harm unread; all the rest must be refused.
    if "import" in name or name.startswith("reader"):
        assert same_weights(sx.load_model(root).network, a_network())
    else:
        with pytest.raises(UntrustedModelError, match=r"would run code when loaded.*trusted=True"):
            sx.load_model(root)
    assert not marker.exists()
    assert "hostile" not in sys.modules


def test_the_hostile_bundles_would_do_harm_if_trusted(a_bundle, marker):
    # Else the test above could not fail.
    for name in ("target", "imports", "expression in an argument", "relative reference"):
        text = json.dumps({"evil": OS_SYSTEM} | HOSTILE[name])
        root = a_bundle(name, **json.loads(text.replace("MARKER", str(marker))))
        (root / "hostile.py").write_text(f"open({str(marker)!r}, 'w')\n")
        with suppress(ModelError):  # os.system gives a number, no network
            sx.load_model(root, trusted=True)
        assert marker.exists(), name
        marker.unlink()


def test_an_untrusted_bundle_cannot_stand_in_for_a_package(a_bundle, monkeypatch):
    root = a_bundle()
    paths: list[list[str]] = []
    made = UNet.__init__

    def watched(self, *args, **kwargs):
        paths.append(list(sys.path))
        made(self, *args, **kwargs)

    monkeypatch.setattr(UNet, "__init__", watched)
    sx.load_model(root)
    sx.load_model(root, trusted=True)
    assert [str(root.resolve()) in one for one in paths] == [False, True]


def test_a_reference_out_of_the_configuration_is_refused(a_bundle):
    root = a_bundle(network_def={"_target_": "UNet", **NETWORK, "act": "@#####evil"})
    with pytest.raises(ModelError, match="configuration is wrong at network_def::act"):
        sx.load_model(root)


def test_torchscript_weights_of_a_bundle_need_trust(a_bundle):
    root = a_bundle(weights=False)
    torch.jit.script(factory()).save(str(root / "models" / "model.ts"))
    with pytest.raises(UntrustedModelError, match="weights are TorchScript, a program"):
        sx.load_model(root)
    assert sx.load_model(root, trusted=True).scripted


# Zip files


@pytest.mark.parametrize("outside", ["../evil.txt", "/tmp/evil.txt", "a/../../evil", "C:\\evil"])
def test_a_zip_that_writes_outside_its_folder_is_refused(outside, a_bundle, tmp_path):
    path = zipped(a_bundle(), tmp_path / "bundle.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(outside, "evil")
    with pytest.raises(ModelError, match="wants to write outside its folder"):
        sx.load_model(path)


def test_a_zip_bomb_is_not_unpacked(a_bundle, tmp_path, monkeypatch):
    path = zipped(a_bundle(), tmp_path / "bundle.zip")
    monkeypatch.setattr("SaliencyExplainLib.model.bundle._MAX_UNPACKED", 1000)
    with pytest.raises(ModelError, match="would unpack to"):
        sx.load_model(path)


def test_an_unpacked_zip_leaves_nothing_behind(a_bundle, tmp_path, monkeypatch):
    path = zipped(a_bundle(), tmp_path / "bundle.zip")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    sx.load_model(path)
    assert list(temporary.iterdir()) == []


def test_a_damaged_zip_is_refused(a_bundle, tmp_path):
    path = zipped(a_bundle(), tmp_path / "bundle.zip")
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[directory : directory + 4] = b"XXXX"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"'bundle\.zip' is a damaged zip file"):
        sx.load_model(path)


# Files of weights


def checkpoint(form: str, network: torch.nn.Module) -> Any:
    state = network.state_dict()
    forms = {
        "plain": state,
        "state_dict": {"epoch": 3, "state_dict": state},
        "model_state_dict": {"model_state_dict": state, "optimizer": {}},
        "network_weights": {"network_weights": state},
        "twice": {"model": {"state_dict": state}},
        "module.": {f"module.{name}": value for name, value in state.items()},
        "_orig_mod.": {f"_orig_mod.{name}": value for name, value in state.items()},
        "both": {f"module._orig_mod.{name}": value for name, value in state.items()},
    }
    return forms[form]


@pytest.mark.parametrize(
    "form",
    [
        "plain",
        "state_dict",
        "model_state_dict",
        "network_weights",
        "twice",
        "module.",
        "_orig_mod.",
        "both",
    ],
)
def test_weights_are_found_wherever_training_code_puts_them(form, tmp_path):
    torch.save(checkpoint(form, a_network()), tmp_path / "weights.pth")
    model = sx.load_model(
        tmp_path / "weights.pth",
        task="segmentation",
        network="monai.networks.nets:UNet",
        network_arguments=NETWORK,
    )
    assert same_weights(model.network, a_network())
    assert model.provenance["format"] == "state dict"


def test_a_given_network_is_filled(tmp_path):
    torch.save(a_network().state_dict(), tmp_path / "weights.pt")
    empty = a_network(seed=8)
    model = sx.load_model(str(tmp_path / "weights.pt"), task="segmentation", network=empty)
    assert model.network is empty
    assert same_weights(empty, a_network())


def test_an_old_file_of_weights_is_read(tmp_path):
    state = factory().state_dict()
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    model = sx.load_model(tmp_path / "old.pth", task="segmentation", network=factory())
    assert torch.equal(model.network.weight, state["weight"])


def test_weights_alone_ask_for_their_network(tmp_path):
    torch.save(factory().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=r"'weights\.pt' holds weights without a network"):
        sx.load_model(tmp_path / "weights.pt", task="segmentation")


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        ("factory", {}, r'given as "package\.module:factory"; \'factory\''),
        ("a:b:c", {}, r'given as "package\.module:factory"'),
        (3, {}, r'given as "package\.module:factory"; 3'),
        ("no_such_package:factory", {}, "could not be made: No module named"),
        ("test_load_model:no_such", {}, "could not be made: .*no_such"),
        ("test_load_model:factory", {"depth": 3}, "could not be made: .*unexpected keyword"),
        ("test_load_model:no_network", {}, r"gave int; a torch\.nn\.Module was expected"),
    ],
)
def test_a_network_that_cannot_be_made_is_refused(network, arguments, message, tmp_path):
    torch.save(factory().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=message):
        sx.load_model(
            tmp_path / "weights.pt",
            task="segmentation",
            network=network,
            network_arguments=arguments,
        )


def test_a_factory_gets_its_arguments(tmp_path):
    torch.save(factory(5).state_dict(), tmp_path / "weights.pt")
    model = sx.load_model(
        tmp_path / "weights.pt",
        task="segmentation",
        network="test_load_model:factory",
        network_arguments={"width": 5},
    )
    assert model.network.out_channels == 5


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            torch.nn.Conv3d(1, 3, 1).state_dict(),
            r"do not fit the network Conv3d: 2 have another shape \(weight is 3 x 1 x 1 x 1 x 1 in "
            r"the file and 2 x 1 x 1 x 1 x 1 in the network\)\. Check the network's arguments",
        ),
        (
            torch.nn.Conv3d(1, 2, 1, bias=False).state_dict(),
            r"1 of its 2 tensors are missing \(bias\)\. Check",
        ),
        (
            factory().state_dict() | {"x": torch.zeros(1)},
            r"Conv3d: 1 in the file are not its own \(x\)\. Check",
        ),
        ({"epoch": 3, "loss": 0.1}, r"holds no state dict \(found: epoch, loss\)"),
        ({}, "holds no state dict"),
        ({0: torch.zeros(1)}, r"holds no state dict \(found: 0\)"),
        (torch.zeros(3), "holds Tensor; a state dict"),
        ([torch.zeros(3)], "holds list; a state dict"),
    ],
)
def test_wrong_weights_are_refused(state, message, tmp_path):
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=message):
        sx.load_model(tmp_path / "weights.pt", task="segmentation", network=factory())


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"There is no model at '.*nowhere\.pt'"):
        sx.load_model(tmp_path / "nowhere.pt", task="segmentation")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80", b"PK\x03\x04 and no more"])
def test_a_file_that_is_no_model_is_refused(content, tmp_path):
    (tmp_path / "notes.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"'notes\.pt' (is no model file|could not be read)"):
        sx.load_model(tmp_path / "notes.pt", task="segmentation", network=factory())


@pytest.mark.parametrize("old", [False, True])
def test_damaged_weights_are_an_error_for_people(old, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(factory().state_dict(), path, _use_new_zipfile_serialization=not old)
    content = path.read_bytes()
    random = np.random.default_rng(0)
    for length in np.linspace(1, len(content), 120, dtype=int):
        damaged = bytearray(content[:length])
        for place in random.integers(0, min(length, 900), length % 6):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            sx.load_model(path, task="segmentation", network=factory())
        except ModelError:
            continue


@pytest.mark.skipif("safetensors" in sys.modules, reason="safetensors is installed")
def test_safetensors_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"needs the package safetensors \(pip install"):
        sx.load_model(tmp_path / "weights.safetensors", task="segmentation", network=factory())


# Files that carry code


class Hostile:
    """Unpickling it runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
@pytest.mark.parametrize("place", ["file", "bundle"])
def test_a_hostile_pickle_is_refused_and_does_not_run(form, place, a_bundle, tmp_path, marker):
    path = a_bundle() / "models" / "model.pt" if place == "bundle" else tmp_path / "evil.pt"
    content = {"state_dict": factory().state_dict(), "x": Hostile(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    source = path.parents[1] if place == "bundle" else path
    with pytest.raises(UntrustedModelError, match=r"holds pickled Python objects.*trusted=True"):
        sx.load_model(source, task="segmentation", network=factory())
    assert not marker.exists()


def test_a_pickled_network_needs_trust(tmp_path):
    torch.save(factory(), tmp_path / "network.pt")
    with pytest.raises(UntrustedModelError, match="holds pickled Python objects"):
        sx.load_model(tmp_path / "network.pt", task="segmentation")
    model = sx.load_model(tmp_path / "network.pt", trusted=True, task="segmentation")
    assert isinstance(model.network, torch.nn.Conv3d)
    assert model.provenance["format"] == "pickled network"


def test_what_cannot_be_unpickled_is_an_error_for_people(tmp_path, monkeypatch):
    torch.save({"x": factory}, tmp_path / "gone.pt")
    monkeypatch.delattr("test_load_model.factory")
    with pytest.raises(ModelError, match=r"'gone\.pt' could not be unpickled"):
        sx.load_model(tmp_path / "gone.pt", trusted=True, task="segmentation", network="a:b")


def test_torchscript_needs_trust(tmp_path):
    torch.jit.script(factory()).save(str(tmp_path / "network.pt"))
    with pytest.raises(UntrustedModelError, match="is a TorchScript file: it holds a program"):
        sx.load_model(tmp_path / "network.pt", task="segmentation")
    model = sx.load_model(tmp_path / "network.pt", trusted=True, task="segmentation")
    assert model.scripted
    assert model.provenance["format"] == "TorchScript"


def test_damaged_torchscript_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "network.ts", "w") as archive:
        archive.writestr("network/constants.pkl", "nothing")
    with pytest.raises(ModelError, match="could not be opened as TorchScript"):
        sx.load_model(tmp_path / "network.ts", trusted=True, task="segmentation")


# Real models


def test_the_real_meshnet_needs_trust(real_data):
    with pytest.raises(UntrustedModelError, match="network_def is the Python expression"):
        sx.load_model(real_data / "bundles" / "meshnet_tissue_small")


def test_the_real_meshnet_finds_the_tissues(real_data):
    model = sx.load_model(real_data / "bundles" / "meshnet_tissue_small", trusted=True)
    assert model.labels == ("background", "white matter", "grey matter")
    assert (model.task, model.activation, model.channels) == ("segmentation", "softmax", ("T1",))
    assert model.inferer == Windows((128, 128, 128), (0.25,) * 3, "gaussian")
    assert model.provenance["parameters"] == 5598
    scan = sx.read_image(real_data / "volumes" / "t1_head.nii.gz")
    middle = model.prepare(scan).as_tensor()[None, :, 60:180, 20:100, 60:180]
    with torch.no_grad():
        tissue = model.network(middle)[0].argmax(0)
    shares = torch.bincount(tissue.flatten(), minlength=3) / tissue.numel()
    # Measured a third each; with the axes mixed up or the weights missing it is next to none.
    assert float(shares.min()) > 0.25


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("spleen_ct_segmentation", r"no weights \(models/model\.pt is missing\)"),
        ("brats_mri_segmentation", r"no weights \(models/model\.pt is missing\)"),
        ("classification_template", "network is 2-D"),
        (
            "swin_unetr_btcv_segmentation",
            "unexpected keyword argument 'img_size'.*made for another version of MONAI",
        ),
    ],
)
def test_a_bundle_of_the_model_zoo_says_exactly_what_is_missing(name, message, real_data):
    with pytest.raises(ModelError, match=message) as raised:
        sx.load_model(real_data / "bundles" / "zoo" / name)
    assert not isinstance(raised.value, UntrustedModelError)


def test_a_bundle_of_the_model_zoo_loads_once_it_has_weights(real_data, tmp_path):
    zoo = real_data / "bundles" / "zoo" / "spleen_ct_segmentation" / "configs"
    (tmp_path / "configs").mkdir()
    (tmp_path / "models").mkdir()
    for name in ("inference.json", "metadata.json"):
        (tmp_path / "configs" / name).write_bytes((zoo / name).read_bytes())
    arguments = json.loads((zoo / "inference.json").read_text(encoding="utf-8"))["network_def"]
    arguments.pop("_target_")
    torch.save({"model": UNet(**arguments).state_dict()}, tmp_path / "models" / "model.pt")
    model = sx.load_model(tmp_path)
    assert (model.labels, model.activation) == (("background", "spleen"), "softmax")
    assert model.inferer == Windows((96, 96, 96), (0.5,) * 3, "constant")


def test_every_real_bundle_and_checkpoint_is_tested(real_data):
    bundles = {path.parents[1].name for path in real_data.glob("bundles/**/metadata.json")}
    assert bundles == {
        "meshnet_tissue_small",
        "spleen_ct_segmentation",
        "brats_mri_segmentation",
        "classification_template",
        "swin_unetr_btcv_segmentation",
    }
    checkpoints = {path.name for path in (real_data / "checkpoints").iterdir()}
    assert checkpoints == {"unet_brain.ts", "unet_brain_pickled.pth"}


@pytest.fixture
def brain_unet(real_data) -> sx.Model:
    return sx.load_model(
        real_data / "checkpoints" / "unet_brain.ts",
        trusted=True,
        task="segmentation",
        labels=["background", "brain"],
    )


@pytest.fixture
def small_volume():
    values = np.random.default_rng(0).normal(size=(16, 16, 16))
    return make_image(values, np.diag([4.0, 4, 4, 1]))


def test_the_real_torchscript_network_needs_trust(real_data):
    with pytest.raises(UntrustedModelError, match=r"'unet_brain\.ts' is a TorchScript file"):
        sx.load_model(real_data / "checkpoints" / "unet_brain.ts", task="segmentation")


def test_the_real_torchscript_network_gives_gradients(brain_unet, small_volume):
    made = sx.explain(brain_unet, small_volume, sx.Target(1, "everywhere"), "gradient")
    x = small_volume.as_tensor()[None].clone().requires_grad_()
    brain_unet.network(x)[0, 1].mean().backward()
    assert float(made.maps.abs().max()) > 0
    torch.testing.assert_close(made.maps.as_tensor(), x.grad[0], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("method", ["grad_cam", "hires_cam"])
def test_a_torchscript_network_says_why_it_has_no_layers(method, brain_unet, small_volume):
    with pytest.raises(MethodError, match="looks into a layer, which a TorchScript network"):
        sx.explain(brain_unet, small_volume, sx.Target(1, "everywhere"), method)
    with pytest.raises(ModelError, match="layers cannot be looked into"):
        brain_unet.layers(small_volume)


def test_the_real_pickled_checkpoint_needs_trust(real_data):
    path = real_data / "checkpoints" / "unet_brain_pickled.pth"
    with pytest.raises(
        UntrustedModelError, match=r"'unet_brain_pickled\.pth' holds pickled Python"
    ):
        sx.load_model(path, task="segmentation", network=factory())
