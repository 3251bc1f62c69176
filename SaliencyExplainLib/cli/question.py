"""The question as the shell asks it: model options, target, segments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ImageError, TargetError
from .regions import names_of

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from ..model import Model
    from ..target import Target

__all__ = ["load_options", "read_images", "read_region", "read_segments", "read_target"]

#: As --segments: the regions that the model predicts.
PREDICTION = "prediction"
#: Options that say where.
_PLACES = ("segment", "point", "roi", "instance")


def load_options(options: Any) -> dict[str, Any]:
    """Options of ``load_model`` that were given."""
    names = ("task", "labels", "channels", "network", "network_arguments", "device")
    given = {name: getattr(options, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def read_images(options: Any, model: Model) -> MetaTensor:
    """The image of ``--image``: volumes in their order, or named as the model's channels."""
    from .. import read_image

    named = {}
    for text in options.image:
        name, equals, file = text.partition("=")
        if equals and not Path(text).exists():
            if name in named:
                raise ImageError(f"The channel {name!r} was given twice in --image. Leave one out.")
            named[name] = file
    if named and len(named) < len(options.image):
        raise ImageError(
            "Some volumes of --image have a CHANNEL= in front. Give it to all, or none."
        )
    given = named or [Path(text) for text in options.image]
    return read_image(
        given,
        resample=options.resample,
        channels=model.channels,
        series=options.series,
        frame=options.frame,
        fill=options.fill,
    )


def read_region(options: Any) -> str | None:
    """Region that was named, or that follows from --segment, --point, --roi or --instance."""
    given = [name for name in _PLACES if getattr(options, name) is not None]
    if options.region == "instance" and given == ["point"]:
        return "instance"
    if len(given) > 1:
        raise TargetError(f"--{given[0]} and --{given[1]} name two regions. Leave one out.")
    if given and options.region not in (None, given[0]):
        raise TargetError(
            f"--{given[0]} does not go with --region {options.region}. Leave one out."
        )
    if not given and options.region in ("segment", "point", "roi"):
        raise TargetError(f"--region {options.region} needs --{options.region}. Say which one.")
    if options.segment is not None and options.segments is None:
        raise TargetError("--segment needs the label map that it is in. Give it with --segments.")
    return given[0] if given else options.region


def read_target(
    options: Any, labelmap: MetaTensor | None, names: dict[int, str]
) -> tuple[Target, MetaTensor | None]:
    """The target, and the mask of the segment that is its region."""
    from .. import Target

    corners = options.roi
    mask = _mask(options.segment, labelmap, names)
    target = Target(
        output=options.target,
        region=read_region(options),
        score=options.score,
        reduce=options.reduce,
        contrast=options.contrast,
        segment=mask,
        roi_ras_mm=None if corners is None else (tuple(corners[:3]), tuple(corners[3:])),
        point_ras_mm=None if options.point is None else tuple(options.point),
        instance=options.instance,
    )
    return target, mask


def read_segments(
    options: Any, model: Model, image: MetaTensor
) -> tuple[MetaTensor | None, dict[int, str]]:
    """Label map and names of its labels: from files, or what the model itself predicts."""
    from .. import predict, read_labelmap

    if str(options.segments) == PREDICTION:
        if model.activation != "softmax":
            raise TargetError(
                "The outputs of this model may overlap, so its prediction is no label map. "
                "Give one with --segments FILE."
            )
        return predict(model, image), dict(enumerate(model.labels))
    labelmap = None if options.segments is None else read_labelmap(options.segments)
    return labelmap, names_of(options)


def _mask(wanted: str | None, labelmap: MetaTensor | None, names: dict[int, str]) -> Any:
    """Mask of the segment that is the region, or None."""
    if wanted is None or labelmap is None:
        return None
    from .. import make_image

    by_name = {name.casefold(): label for label, name in names.items()}
    label = int(wanted) if wanted.isdigit() else by_name.get(wanted.casefold())
    voxels = labelmap.as_tensor()
    if label is None or label == 0 or not bool((voxels == label).any()):
        present = [int(one) for one in voxels.unique().tolist() if one > 0]
        listed = ", ".join(f"{one} {names.get(one, '')}".strip() for one in present)
        raise TargetError(f"The label map has no segment {wanted!r}. It has: {listed or 'none'}.")
    return make_image(voxels == label, labelmap.affine)
