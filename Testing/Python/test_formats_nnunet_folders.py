"""Folders of nnU-Net v2: what is read, said and refused, and that nothing hostile runs."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunet_cases import (
    DATASET,
    FOLD,
    SPACINGS,
    TRAINER,
    a_scan,
    built,
    changed,
    phantom,
    scores_of,
)

import SaliencyExplainLib as sx
from SaliencyExplainLib.errors import ModelError, UntrustedModelError
from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.model import model_facts


@pytest.fixture(scope="module")
def nnunet() -> sx.Model:
    pytest.importorskip("dynamic_network_architectures")
    return sx.load_model(DATASET, device="cpu")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the data set's folder that a test may change."""
    return Path(shutil.copytree(DATASET, tmp_path / DATASET.name))


# What it is


@built
def test_a_folder_says_what_was_loaded(nnunet):
    facts = model_facts(nnunet)
    assert facts["format"] == "nnU-Net v2 folder"
    assert (facts["task"], facts["activation"]) == ("segmentation", "softmax")
    assert (facts["labels"], facts["channels"]) == (["background", "ball", "rod"], ["CT", "MRI"])
    assert facts["spacing_mm"] == [2.6, 1.1, 1.2]
    assert (facts["window"], facts["input_channels"]) == ([8, 16, 20], 2)
    assert facts["parameters"] == 4432
    assert len(facts["sha256"]) == 64
    told = nnunet.describe()
    assert "PlainConvUNet, segmentation, 4,432 parameters, softmax" in told
    assert "voxels: 2.6 x 1.1 x 1.2 mm" in told
    assert "trained: 3d_fullres, fold_0; not done: the mean over mirrored images" in told
    assert f"file: {TRAINER} (nnU-Net v2 folder)" in told
    assert f"SHA-256: {facts['sha256']}" in told


@built
@pytest.mark.parametrize("inside", ["", TRAINER, str(FOLD), str(FOLD / "checkpoint_final.pth")])
def test_the_data_sets_folder_the_trainers_a_fold_or_a_checkpoint_may_be_given(inside, nnunet):
    model = sx.load_model(DATASET / inside, device="cpu")
    assert model.provenance == nnunet.provenance
    prepared = model.prepare(a_scan("even"))
    assert torch.equal(scores_of(model, prepared), scores_of(nnunet, prepared))


@built
def test_the_first_of_several_folds_is_taken_unless_one_is_named(folder, nnunet):
    trainer = folder / TRAINER
    shutil.copytree(trainer / "fold_0", trainer / "fold_3")
    content = torch.load(trainer / "fold_3" / "checkpoint_final.pth", weights_only=False)
    for value in content["network_weights"].values():
        value *= 0
    torch.save(content, trainer / "fold_3" / "checkpoint_final.pth")
    (trainer / "fold_1").mkdir()  # one that was not finished
    first, third = sx.load_model(folder), sx.load_model(trainer / "fold_3")
    assert first.provenance["fold"] == "fold_0"
    assert first.provenance["folds"] == ["fold_0", "fold_3"]
    assert "not done: the mean of all 2 folds and the mean over mirrored" in first.describe()
    assert third.provenance["fold"] == "fold_3"
    assert not any(one.any() for one in third.network.parameters())
    assert any(one.any() for one in first.network.parameters())
    with pytest.raises(ModelError, match=r"'fold_1' of the nnU-Net folder has no checkpoint_final"):
        sx.load_model(trainer / "fold_1")


@built
def test_the_best_checkpoint_stands_in_for_the_final_one(folder):
    fold = folder / FOLD
    (fold / "checkpoint_final.pth").rename(fold / "checkpoint_best.pth")
    assert sx.load_model(folder).provenance["checkpoint"] == "checkpoint_best.pth"


@built
def test_a_totalsegmentator_task_is_turned_to_ras_before(folder):
    # TotalSegmentator turns a scan's axes itself; nnU-Net takes them as they lie in the file.
    name = "Dataset291_TotalSegmentator_part1_organs_1559subj"
    task = folder.rename(folder.parent / name)
    (task / TRAINER).rename(task / "nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres")
    changed(
        task / "nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres" / "plans.json",
        lambda plans: plans.update(dataset_name=name),
    )
    model = sx.load_model(task)
    assert model.provenance["title"] == name
    scan = make_image(phantom(0, SPACINGS["even"])[0], np.diag([*SPACINGS["even"], 1.0]))
    flipped = make_image(
        scan.as_tensor().flip(1, 3), np.diag([-SPACINGS["even"][0], 1.3, -1.0, 1.0])
    )
    assert torch.equal(model.prepare(flipped).as_tensor(), model.prepare(scan).as_tensor())
    labels, turned = sx.predict(model, scan), sx.predict(model, flipped)
    assert torch.equal(turned.as_tensor().flip(1, 3), labels.as_tensor())


@built
def test_an_nnunet_of_its_own_takes_the_axes_as_they_lie(nnunet):
    scan = make_image(phantom(0, SPACINGS["even"])[0], np.diag([*SPACINGS["even"], 1.0]))
    flipped = make_image(scan.as_tensor().flip(1), np.diag([-2.2, 1.3, 1.0, 1.0]))
    prepared = nnunet.prepare(flipped).as_tensor()
    # The plan puts I first.
    torch.testing.assert_close(prepared.flip(1), nnunet.prepare(scan).as_tensor())
    assert not torch.equal(prepared, nnunet.prepare(scan).as_tensor())


@built
@pytest.mark.parametrize("reader", ["NibabelIOWithReorient", "SimpleITKIOWithReorient"])
def test_a_plan_whose_reader_turns_the_axes_turns_them(reader, folder):
    plans = folder / TRAINER / "plans.json"
    changed(plans, lambda plans: plans.update(image_reader_writer=reader))
    assert sx.load_model(folder).preprocess.describe() == "Orientation, NnunetPreprocessing"


# What is refused


def configuration(plans: dict[str, Any]) -> dict[str, Any]:
    return plans["configurations"]["3d_fullres"]


def architecture(plans: dict[str, Any]) -> dict[str, Any]:
    return configuration(plans)["architecture"]


REFUSED: dict[str, tuple[Any, str]] = {
    "two dimensions": (
        lambda p: configuration(p).update(patch_size=[64, 64]),
        "configuration '3d_fullres' is 2-D",
    ),
    "cascade": (
        lambda p: configuration(p).update(previous_stage="3d_lowres"),
        "second stage of a cascade: it needs the segmentation of '3d_lowres'",
    ),
    "preprocessor": (
        lambda p: configuration(p).update(preprocessor_name="MyPreprocessor"),
        "preprocessor 'MyPreprocessor', which is not known",
    ),
    "normalisation": (
        lambda p: configuration(p).update(normalization_schemes=["CT2", "CT2"]),
        "normalises with 'CT2', which is not known here. Known: CTNormalization",
    ),
    "resampling": (
        lambda p: configuration(p).update(resampling_fn_data="my_resampling"),
        "resamples with 'my_resampling'",
    ),
    "no configuration": (
        lambda p: p.update(configurations={"2d": {}}),
        "could not be understood .*'3d_fullres' is not among 2d",
    ),
    "circle": (
        lambda p: configuration(p).update(inherits_from="3d_fullres"),
        "could not be understood .*'3d_fullres' is not among",
    ),
    "nothing": (lambda p: p.clear(), "could not be understood .KeyError: 'configurations'"),
    "spacing": (
        lambda p: configuration(p).update(spacing=[1, 0, 1]),
        r"could not be understood .*spacing is \[1, 0, 1\]",
    ),
    "axes": (
        lambda p: p.update(transpose_forward=[0, 0, 1]),
        r"could not be understood .*transpose_forward is \[0, 0, 1\]",
    ),
    "patch": (lambda p: configuration(p).update(patch_size=3), "could not be understood"),
    "missing network": (
        lambda p: architecture(p).update(
            network_class_name="dynamic_network_architectures.architectures.unet.NoSuchNet"
        ),
        "has no network 'NoSuchNet'",
    ),
    "network of other features": (
        lambda p: architecture(p)["arch_kwargs"].update(features_per_stage=[4, 6, 8]),
        "do not fit the network PlainConvUNet: .*the trainer 'nnUNetTrainer' may build another",
    ),
    "impossible network": (
        lambda p: architecture(p)["arch_kwargs"].update(n_stages=5),
        "network PlainConvUNet could not be built",
    ),
    "greedy network": (
        lambda p: architecture(p)["arch_kwargs"].update(features_per_stage=[10**7] * 3),
        "network PlainConvUNet could not be built: .*GB of memory",
    ),
}


@built
@pytest.mark.parametrize("name", REFUSED)
def test_a_plan_that_cannot_be_followed_says_why(name, folder):
    change, message = REFUSED[name]
    changed(folder / TRAINER / "plans.json", change)
    with pytest.raises(ModelError, match=message) as raised:
        sx.load_model(folder)
    assert not isinstance(raised.value, UntrustedModelError)


def test_a_damaged_plan_is_refused(folder):
    (folder / TRAINER / "plans.json").write_text("{")
    with pytest.raises(ModelError, match=r"'plans\.json' of the nnU-Net folder is no valid JSON"):
        sx.load_model(folder)


def test_a_folder_without_folds_is_refused(folder):
    shutil.rmtree(folder / FOLD)
    with pytest.raises(ModelError, match="has no trained fold: no fold_0 with a checkpoint_final"):
        sx.load_model(folder)


def test_several_models_in_a_folder_are_named(folder):
    other = "nnUNetTrainer__nnUNetPlans__3d_lowres"
    shutil.copytree(folder / TRAINER, folder / other)
    message = f"holds 2 nnU-Net models: {TRAINER}, {other}. Give the folder of one of them"
    with pytest.raises(ModelError, match=message):
        sx.load_model(folder)


def test_a_folder_of_version_one_is_named(tmp_path):
    (tmp_path / "plans.pkl").write_bytes(b"")
    with pytest.raises(ModelError, match=r"nnU-Net v1, whose plan is a pickle.*train it again"):
        sx.load_model(tmp_path)


def test_a_zipped_folder_asks_to_be_unzipped(folder):
    path = shutil.make_archive(str(folder.parent / "exported"), "zip", folder.parent, folder.name)
    with pytest.raises(ModelError, match=r"'exported\.zip' is a zipped nnU-Net model\. Unzip it"):
        sx.load_model(path)


def test_a_checkpoint_of_something_else_is_refused(folder):
    torch.save({"state_dict": {}}, folder / FOLD / "checkpoint_final.pth")
    with pytest.raises(ModelError, match="no checkpoint of nnU-Net v2: it has no network_weights"):
        sx.load_model(folder)


def test_without_the_package_that_builds_networks_it_says_what_to_install(monkeypatch):
    for name in [one for one in sys.modules if one.startswith("dynamic_network_arch")]:
        monkeypatch.delitem(sys.modules, name)

    class Missing:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> None:
            if name == "dynamic_network_architectures":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    message = r"dynamic-network-architectures, which is not installed \(pip install --no-deps"
    with pytest.raises(ModelError, match=message):
        sx.load_model(DATASET)


@built
def test_a_network_whose_package_is_missing_names_it(folder):
    pytest.importorskip("dynamic_network_architectures")
    if importlib.util.find_spec("timm"):
        pytest.skip("timm is installed")
    name = "dynamic_network_architectures.architectures.primus.Primus"
    changed(
        folder / TRAINER / "plans.json", lambda p: architecture(p).update(network_class_name=name)
    )
    with pytest.raises(ModelError, match=r"Primus needs the package 'timm'.*pip install timm"):
        sx.load_model(folder)


# Older plans, regions


@built
def test_a_plan_from_before_the_architecture_section_is_read(folder, nnunet):
    def age(plans: dict[str, Any]) -> None:
        arguments = configuration(plans).pop("architecture")["arch_kwargs"]
        configuration(plans).update(
            UNet_class_name="PlainConvUNet",
            UNet_base_num_features=4,
            unet_max_num_features=6,
            conv_kernel_sizes=arguments["kernel_sizes"],
            pool_op_kernel_sizes=arguments["strides"],
            n_conv_per_stage_encoder=arguments["n_conv_per_stage"],
            n_conv_per_stage_decoder=arguments["n_conv_per_stage_decoder"],
            num_pool_per_axis=[1, 2, 2],
        )
        for name in ("resampling_fn_data", "resampling_fn_data_kwargs"):
            configuration(plans).pop(name)
        old = plans.pop("foreground_intensity_properties_per_channel")
        plans["foreground_intensity_properties_by_modality"] = old

    changed(folder / TRAINER / "plans.json", age)
    model = sx.load_model(folder, device="cpu")
    scan = a_scan("thick")
    assert torch.equal(model.prepare(scan).as_tensor(), nnunet.prepare(scan).as_tensor())
    prepared = model.prepare(scan)
    assert torch.equal(scores_of(model, prepared), scores_of(nnunet, prepared))


@built
def test_regions_are_overlapping_outputs(folder):
    def regions(dataset: dict[str, Any]) -> None:
        dataset["labels"] = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "rim": 3}
        dataset["labels"]["ignore"] = 4
        dataset["regions_class_order"] = [1, 2, 3]

    changed(folder / TRAINER / "dataset.json", regions)
    model = sx.load_model(folder)
    assert (model.labels, model.activation) == (("whole", "core", "rim"), "sigmoid")


@built
def test_a_configuration_inherits(folder, nnunet):
    def split(plans: dict[str, Any]) -> None:
        whole = plans["configurations"].pop("3d_fullres")
        small = {"patch_size": whole.pop("patch_size"), "inherits_from": "base"}
        plans["configurations"] = {"base": whole | {"patch_size": [1]}, "3d_fullres": small}

    changed(folder / TRAINER / "plans.json", split)
    assert sx.load_model(folder).inferer == nnunet.inferer


# Nothing hostile runs


HOSTILE = {
    "network": lambda p: architecture(p).update(network_class_name="hostile.Network"),
    "network by a path through the package": lambda p: architecture(p).update(
        network_class_name="dynamic_network_architectures.architectures.unet.np.f2py.os.system"
    ),
    "layer": lambda p: architecture(p)["arch_kwargs"].update(conv_op="hostile.Conv3d"),
    "layer of os": lambda p: architecture(p)["arch_kwargs"].update(nonlin="os.system"),
    "any argument": lambda p: (
        architecture(p)["_kw_requires_import"].append("n_stages"),
        architecture(p)["arch_kwargs"].update(n_stages="hostile.f"),
    ),
}


@built
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_that_a_plan_names_is_imported_without_trust(name, folder, monkeypatch):
    marker = folder / "executed"
    (folder / "hostile.py").write_text(f"open({str(marker)!r}, 'w')\n")
    monkeypatch.syspath_prepend(folder)
    changed(folder / TRAINER / "plans.json", HOSTILE[name])
    with pytest.raises(ModelError):
        sx.load_model(folder)
    # A checkpoint that was trusted does not vouch for the plan beside it.
    with pytest.raises(ModelError):
        sx.load_model(folder / FOLD / "checkpoint_final.pth", trusted=True)
    assert not marker.exists()
    if "hostile" in json.dumps((folder / TRAINER / "plans.json").read_text(encoding="utf-8")):
        with pytest.raises(UntrustedModelError, match=r"import.*trusted=True"):
            sx.load_model(folder)
        with pytest.raises(ModelError):  # or the test could not fail: with trust it is imported
            sx.load_model(folder, trusted=True)
        assert marker.exists()
        sys.modules.pop("hostile")


@built
def test_a_hostile_checkpoint_is_refused(folder):
    class Hostile:
        def __reduce__(self):
            return exec, (f"open({str(folder / 'executed')!r}, 'w')",)

    path = folder / FOLD / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    torch.save(content | {"x": Hostile()}, path)
    with pytest.raises(UntrustedModelError, match="holds pickled Python objects"):
        sx.load_model(folder)
    assert not (folder / "executed").exists()
