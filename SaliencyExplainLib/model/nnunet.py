"""Trained folders of nnU-Net v2, read without nnunetv2.

A trainer's folder holds ``plans.json`` (network, windows, preprocessing), ``dataset.json``
(channels, labels) and ``fold_0/checkpoint_final.pth``; TotalSegmentator's task folders hold such a
folder.

Differs from nnunetv2's own prediction: one fold, not the mean of several; no averaging over
mirrored images (eight times the cost); single precision where nnunetv2 fuses windows in half.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.transforms import Compose, Orientation

from ..errors import ModelError
from .checkpoint import fill, first_line, read_weights, sha256_of_file
from .inferer import NnunetWindows
from .limits import read_json
from .nnunet_network import build_network
from .nnunet_preprocess import NORMALISATIONS, RESAMPLING, Channel, NnunetPreprocessing

__all__ = ["NnunetFolder", "find_nnunet", "read_nnunet"]

_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")
#: Readers of nnunetv2 that turn a file's axes to right, anterior, superior first.
_REORIENTING = ("NibabelIOWithReorient", "SimpleITKIOWithReorient")


@dataclass(frozen=True)
class NnunetFolder:
    """Where the parts of one trained network lie.

    Attributes
    ----------
    root : Path
        Folder with plans.json and dataset.json.
    checkpoint : Path
    folds : tuple of str
        All folds that are there.
    whole : bool
        Whether the whole folder was named, and so is what a person vouched for.
    """

    root: Path
    checkpoint: Path
    folds: tuple[str, ...]
    whole: bool


def find_nnunet(path: Path) -> NnunetFolder | None:
    """Find the trained network at a path: a trainer's or a data set's folder, a fold, a checkpoint.

    Returns
    -------
    NnunetFolder or None
        None when `path` is something else.

    Raises
    ------
    ModelError
        If there are several trainers, no checkpoint, or it is nnU-Net v1.
    """
    if path.is_file():
        if not (path.suffix == ".pth" and _is_trained(path.parent.parent)):
            return None
        return NnunetFolder(path.parent.parent, path, _folds(path.parent.parent), whole=False)
    if (path / "plans.pkl").is_file():
        raise ModelError(
            f"{path.name!r} is a folder of nnU-Net v1, whose plan is a pickle. Folders of nnU-Net "
            "v2 (plans.json) are read; train it again with nnunetv2."
        )
    if path.name.startswith("fold_") and _is_trained(path.parent):
        return NnunetFolder(path.parent, _checkpoint(path), _folds(path.parent), whole=False)
    root = path if _is_trained(path) else _only_trainer(path)
    if root is None:
        return None
    folds = _folds(root)
    if not folds:
        raise ModelError(
            f"The nnU-Net folder {root.name!r} has no trained fold: no fold_0 with a "
            "checkpoint_final.pth was found. Finish the training, or copy the whole folder."
        )
    return NnunetFolder(root, _checkpoint(root / folds[0]), folds, whole=True)


def _is_trained(folder: Path) -> bool:
    return (folder / "plans.json").is_file() and (folder / "dataset.json").is_file()


def _only_trainer(path: Path) -> Path | None:
    trainers = sorted(one for one in path.iterdir() if one.is_dir() and _is_trained(one))
    if len(trainers) > 1:
        raise ModelError(
            f"The folder {path.name!r} holds {len(trainers)} nnU-Net models: "
            f"{', '.join(one.name for one in trainers)}. Give the folder of one of them."
        )
    return trainers[0] if trainers else None


def _folds(root: Path) -> tuple[str, ...]:
    return tuple(
        one.name
        for one in sorted(root.glob("fold_*"))
        if any((one / name).is_file() for name in _CHECKPOINTS)
    )


def _checkpoint(fold: Path) -> Path:
    found = next((fold / name for name in _CHECKPOINTS if (fold / name).is_file()), None)
    if found is None:
        raise ModelError(
            f"{fold.name!r} of the nnU-Net folder has no {_CHECKPOINTS[0]}. Finish the training, "
            "or give another fold."
        )
    return found


def read_nnunet(folder: NnunetFolder, *, trusted: bool) -> dict[str, Any]:
    """Read a trained folder's parts.

    Returns
    -------
    dict
        ``network`` (filled), ``preprocess``, ``inferer``, ``task``, ``labels``, ``channels``,
        ``activation``, ``provenance``.

    Raises
    ------
    ModelError
        If a part is missing, of an unknown kind, or does not fit.
    UntrustedModelError
        If reading would run code and `trusted` is False.
    """
    plans, dataset = (
        read_json(folder.root / name, "the nnU-Net folder")
        for name in ("plans.json", "dataset.json")
    )
    content = read_weights(folder.checkpoint, trusted=trusted)
    if not isinstance(content, Mapping) or "network_weights" not in content:
        raise ModelError(
            f"{folder.checkpoint.name!r} is no checkpoint of nnU-Net v2: it has no network_weights."
        )
    try:
        name = _configuration_name(content, folder.root)
        configuration = _configuration(plans, name)
        _refuse_other_kinds(configuration, name)
        labels, activation = _labels(dataset)
        names = dataset.get("channel_names") or dataset["modality"]
        channels = tuple(str(names[key]) for key in sorted(names, key=int))
        preprocess = _preprocess(plans, configuration, len(channels))
        # A plan beside a checkpoint that was named alone was not seen by whoever trusted that.
        network = build_network(
            configuration, len(channels), len(labels), trusted=trusted and folder.whole
        )
        i, j, k = (int(size) for size in configuration["patch_size"])
        inferer = NnunetWindows((i, j, k))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelError(
            f"The plan of the nnU-Net folder {folder.root.name!r} could not be understood "
            f"({type(error).__name__}: {first_line(error)}). It was expected as nnunetv2 2.x "
            "writes it."
        ) from error
    trainer = str(content.get("trainer_name", "unknown"))
    try:
        fill(network, content, folder.checkpoint.name)
    except ModelError as error:
        raise ModelError(
            f"{error} The network was built from the plan; the trainer {trainer!r} may build "
            "another one."
        ) from error
    return {
        "network": network,
        "preprocess": preprocess,
        "inferer": inferer,
        "task": "segmentation",
        "labels": labels,
        "channels": channels,
        "activation": activation,
        "provenance": {
            "format": "nnU-Net v2 folder",
            "name": folder.root.name,
            "title": str(plans.get("dataset_name", "")),
            "configuration": name,
            "trainer": trainer,
            "fold": folder.checkpoint.parent.name,
            "folds": list(folder.folds),
            "checkpoint": folder.checkpoint.name,
            "not_done": _not_done(content, folder),
            "sha256": sha256_of_file(folder.checkpoint),
        },
    }


def _not_done(content: Mapping[str, Any], folder: NnunetFolder) -> str:
    """What nnunetv2 would do on top."""
    told = []
    if len(folder.folds) > 1:
        told.append(f"the mean of all {len(folder.folds)} folds")
    if content.get("inference_allowed_mirroring_axes"):
        told.append("the mean over mirrored images")
    return " and ".join(told)


def _configuration_name(content: Mapping[str, Any], root: Path) -> str:
    told = content.get("init_args")
    if isinstance(told, Mapping) and "configuration" in told:
        return str(told["configuration"])
    return root.name.rpartition("__")[2]


def _configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One configuration of a plan, with what it inherits."""
    known = plans["configurations"]
    chain: list[str] = []
    following: str | None = name
    while following is not None:
        if following not in known or following in chain:
            raise ValueError(f"the configuration {following!r} is not among {', '.join(known)}")
        chain.append(following)
        following = known[following].get("inherits_from")
    made: dict[str, Any] = {}
    for one in reversed(chain):
        made |= known[one]
    return made


def _refuse_other_kinds(configuration: Mapping[str, Any], name: str) -> None:
    if len(configuration["patch_size"]) != 3:
        raise ModelError(
            f"The nnU-Net configuration {name!r} is 2-D. This extension explains networks that "
            "take 3-D volumes; give the folder of a 3d configuration."
        )
    if configuration.get("previous_stage"):
        raise ModelError(
            f"The nnU-Net configuration {name!r} is the second stage of a cascade: it needs the "
            f"segmentation of {configuration['previous_stage']!r} as input. Give the folder of "
            "that stage or of 3d_fullres."
        )
    kind = configuration.get("preprocessor_name", "DefaultPreprocessor")
    if kind != "DefaultPreprocessor":
        raise ModelError(
            f"The nnU-Net plan asks for the preprocessor {kind!r}, which is not known here; "
            "DefaultPreprocessor was expected."
        )


def _labels(dataset: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """Names of the outputs, and what turns scores into probabilities."""
    labels = {name: value for name, value in dataset["labels"].items() if name != "ignore"}
    if any(isinstance(value, list) and len(value) > 1 for value in labels.values()):
        regions = [name for name, value in labels.items() if value not in (0, [0])]
        return tuple(regions), "sigmoid"
    numbers = {
        name: int(value[0] if isinstance(value, list) else value) for name, value in labels.items()
    }
    return tuple(sorted(numbers, key=lambda name: numbers[name])), "softmax"


def _preprocess(plans: Mapping[str, Any], configuration: Mapping[str, Any], count: int) -> Compose:
    schemes = configuration["normalization_schemes"]
    masks = configuration["use_mask_for_norm"]
    known = plans.get("foreground_intensity_properties_per_channel") or plans.get(
        "foreground_intensity_properties_by_modality", {}
    )
    unknown = next((one for one in schemes if one not in NORMALISATIONS), None)
    if unknown is not None:
        raise ModelError(
            f"The nnU-Net plan normalises with {unknown!r}, which is not known here. Known: "
            f"{', '.join(NORMALISATIONS)}."
        )
    resampling = configuration.get("resampling_fn_data", RESAMPLING[0])
    if resampling not in RESAMPLING:
        raise ModelError(
            f"The nnU-Net plan resamples with {resampling!r}, which is not known here. Known: "
            f"{', '.join(RESAMPLING)}."
        )
    options = configuration.get("resampling_fn_data_kwargs", {})
    numbers = ("mean", "std", "percentile_00_5", "percentile_99_5")
    channels = [
        Channel(
            str(schemes[at]),
            bool(masks[at]),
            {key: float(known[str(at)][key]) for key in numbers}
            if schemes[at] == NORMALISATIONS[0]
            else {},
        )
        for at in range(count)
    ]
    if sorted(plans["transpose_forward"]) != [0, 1, 2]:
        raise ValueError(f"transpose_forward is {plans['transpose_forward']}")
    transform = NnunetPreprocessing(
        plans["transpose_forward"],
        configuration["spacing"],
        channels,
        resampling=resampling,
        order=int(options.get("order", 3)),
        order_z=int(options.get("order_z", 0)),
        separate_z=options.get("force_separate_z"),
    )
    if len(transform.pixdim) != 3 or not all(size > 0 for size in transform.pixdim):
        raise ValueError(f"spacing is {configuration['spacing']}")
    # nnU-Net takes a file's axes as they are, but TotalSegmentator turns them before it.
    turned = plans.get("image_reader_writer") in _REORIENTING
    turned = turned or "totalsegmentator" in str(plans.get("dataset_name", "")).lower()
    return Compose([Orientation(axcodes="RAS", labels=None), transform] if turned else [transform])
