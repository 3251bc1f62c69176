"""Figures of the study: the accuracies beside the shares, and the signed maps of two persons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...figure import require_matplotlib
from ...image import make_image
from ...panels import coloured, draw_outline, draw_scale_bar, grey_window
from ...planes import cut, pixel_size_mm, through, volume_box
from ..results import StudyFigure
from .scans import CHANNELS
from .tables import TITLES, accuracy, gathered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from monai.data import MetaTensor

    from ...explanation import Explanation

__all__ = ["Shown", "accuracy_figure", "maps_figure"]

_INK, _FAINT = "#1a1a1a", "#5c5c5c"
_COLOURS = {"follows": "#0072b2", "mixed": "#8a8a8a", "swapped": "#d55e00"}
_SHORT = ("image\nscanners mixed", "image\nbiased", "brain only\nbiased", "maps\nbiased")
_WIDTH_IN = 10.0
#: Narrower: pictures of noise make large files.
_MAPS_WIDTH_IN = 8.4


@dataclass(frozen=True)
class Shown:
    """A person of the figure.

    Attributes
    ----------
    name : str
        "patient" or "healthy person".
    images : mapping of str to MetaTensor
        What classifiers get: "image", "brain", "maps".
    regions : MetaTensor, shape (1, I, J, K)
        1 where lesions are.
    maps : mapping of str to Explanation
        By classifier.
    """

    name: str
    images: Mapping[str, MetaTensor]
    regions: MetaTensor
    maps: Mapping[str, Explanation]


def accuracy_figure(
    told: Sequence[Mapping[str, Any]], mapped: Sequence[Mapping[str, Any]]
) -> StudyFigure:
    """Accuracy by test, and the share of the maps in the air and in lesions by person."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN, 3.3), facecolor="white", layout="constrained")
    left, middle, last = figure.subplots(1, 3)
    names = {"follows": "same bias", "mixed": "scanners mixed", "swapped": "the other way round"}
    for shift, (design, name) in enumerate(names.items()):
        scores = [accuracy(told, kind, design) for kind in TITLES]
        middles = np.array([one.value for one in scores])
        errors = [
            middles - [one.low for one in scores],
            np.array([one.high for one in scores]) - middles,
        ]
        where = np.arange(len(TITLES)) + 0.2 * (shift - 1)
        style: dict[str, Any] = {"fmt": "o", "ms": 5, "lw": 1.2, "color": _COLOURS[design]}
        left.errorbar(where, middles, np.abs(errors), label=name, **style)
    left.axhline(0.5, color=_FAINT, lw=0.7, ls=":")
    left.set(ylim=(-0.04, 1.04), ylabel="accuracy (95 % interval)")
    left.set_title("What accuracy says", size=9, weight="bold", loc="left")
    left.legend(title="test persons", fontsize=7, title_fontsize=7, frameon=False, loc="lower left")
    for axes, sign, title, label in (
        (middle, "air", "What the maps say", "share of |attribution| in the air"),
        (last, "density", "Do they find the lesions?", "density ratio of lesions"),
    ):
        _points(axes, [gathered(mapped, kind, sign) for kind in TITLES])
        axes.set_title(title, size=9, weight="bold", loc="left")
        axes.set_ylabel(label)
    middle.set_ylim(bottom=0)
    last.axhline(1, color=_FAINT, lw=0.7, ls=":")
    last.set_ylim(bottom=0)
    for axes in (left, middle, last):
        axes.set_xticks(range(len(TITLES)), _SHORT)
        axes.set_xlim(-0.5, len(TITLES) - 0.5)
        axes.tick_params(labelsize=7)
        axes.yaxis.label.set_size(8)
        axes.spines[["top", "right"]].set_visible(False)
    return StudyFigure(
        "probability_maps-accuracy",
        "Accuracy with the same bias as in the training of the biased classifiers, without, and "
        "the other way round (left); integrated gradients of patients: share in the air, where the "
        "scanner's signature is (middle), and density in lesions, 1 = no preference (right). Bars: "
        "means.",
        figure,
    )


def _points(axes: Axes, groups: Sequence[Sequence[float]]) -> None:
    for place, values in enumerate(groups):
        known = np.array([one for one in values if np.isfinite(one)])
        spread = np.linspace(-0.16, 0.16, len(known)) if len(known) > 1 else np.zeros(len(known))
        axes.plot(place + spread, known, "o", ms=3, color=_COLOURS["follows"], alpha=0.6, mew=0)
        if len(known):
            axes.hlines(known.mean(), place - 0.28, place + 0.28, color=_INK, lw=1.6)


def maps_figure(shown: Sequence[Shown]) -> StudyFigure:
    """A row a person: image, map of each classifier, and each channel of the tissue maps."""
    require_matplotlib()
    from matplotlib.figure import Figure

    heads = ["image", *("\n".join(one.rsplit("\n", 1)) for one in _SHORT[:2])]
    heads += ["probability maps\nsum", *(f"probability maps\n{one}" for one in CHANNELS)]
    columns, gap, top, foot, side = len(heads), 0.05, 0.46, 0.2, 0.22
    wide = (_MAPS_WIDTH_IN - side - gap * (columns + 1)) / columns
    box = volume_box(shown[0].images["image"])  # the foam lies in the air
    tall = wide * float((box[1] - box[0])[1] / (box[1] - box[0])[0])
    height = top + len(shown) * (tall + foot) + gap
    figure = Figure(figsize=(_MAPS_WIDTH_IN, height), facecolor="white")
    style: dict[str, Any] = {"parse_math": False, "color": _INK}
    for row, one in enumerate(shown):
        plane = through(_level(shown, row), box, pixel_size_mm(box))[0]
        y = top + row * (tall + foot)
        middle = 1 - (y + tall / 2) / height
        figure.text(
            0.6 * side / _MAPS_WIDTH_IN, middle, one.name, size=8, rotation=90,
            ha="center", va="center", **style,
        )  # fmt: skip
        for column, (grey, map_, limit) in enumerate(_panels(one)):
            x = side + gap + column * (wide + gap)
            axes = figure.add_axes(
                (x / _MAPS_WIDTH_IN, 1 - (y + tall) / height, wide / _MAPS_WIDTH_IN, tall / height)
            )
            axes.set_gid(f"{row}-{column}")
            _draw(axes, plane, grey, map_, limit)
            draw_outline(axes, plane, _lesions(one.regions), signed=True)
            if column == 0:
                draw_scale_bar(axes, plane)
            centre = (x + wide / 2) / _MAPS_WIDTH_IN
            if row == 0:
                figure.text(
                    centre, 1 - 0.06 / height, heads[column], size=7.5, ha="center", va="top",
                    **style,
                )  # fmt: skip
            if map_ is not None:
                text = f"\N{PLUS-MINUS SIGN}{limit:.2g}"
                figure.text(
                    centre, 1 - (y + tall + 0.03) / height, text, size=6.5, ha="center", va="top",
                    parse_math=False, color=_FAINT,
                )  # fmt: skip
    return StudyFigure(
        "probability_maps-maps",
        'Integrated gradients (from zero) of the logit of "patient": red speaks for patient, blue '
        "for healthy; yellow outlines: lesions. The number below a map is the attribution of a "
        "voxel at which its colours end, the 99th percentile; the sum and the channels of the "
        "probability maps share one scale. Axial planes, the person's right at the left.",
        figure,
    )


def _level(shown: Sequence[Shown], row: int) -> np.ndarray[Any, Any]:
    """Where the plane cuts: most lesion of the patient; the same height for the healthy."""
    from ...image import to_ras

    for one in (shown[row], *shown):
        lesions = _lesions(one.regions).as_tensor()[0].numpy() > 0
        if lesions.any():
            index = (*(np.array(lesions.shape[:2]) - 1) / 2, int(lesions.sum((0, 1)).argmax()))
            return np.asarray(to_ras(one.regions.affine, np.array(index)))
    return np.asarray(to_ras(one.regions.affine, (np.array(lesions.shape) - 1) / 2))


def _limit(map_: MetaTensor) -> float:
    """Where the colours end: 99 % of all voxels lie below (1 for a map that is zero)."""
    magnitude = map_.as_tensor().abs().numpy()
    return float(np.percentile(magnitude, 99)) or float(magnitude.max()) or 1.0


def _lesions(regions: MetaTensor) -> MetaTensor:
    return make_image(regions.as_tensor() == 1, regions.affine)


def _panels(one: Shown) -> list[tuple[MetaTensor, MetaTensor | None, float]]:
    """Anatomy, map and end of the colours of each column."""
    image = one.images["image"]
    found: list[tuple[MetaTensor, MetaTensor | None, float]] = [(image, None, 0.0)]
    for kind in ("image_mixed", "image_biased"):
        map_ = one.maps[kind].map
        found.append((image, map_, _limit(map_)))
    explanation = one.maps["maps_biased"]
    channels = [make_image(voxels, image.affine) for voxels in explanation.maps.as_tensor()]
    single = [explanation.map, *channels]
    limit = max(_limit(map_) for map_ in single)
    tissues = [make_image(voxels, image.affine) for voxels in one.images["maps"].as_tensor()]
    return [
        *found,
        *((grey, map_, limit) for grey, map_ in zip([image, *tissues], single, strict=True)),
    ]


def _draw(axes: Axes, plane: Any, grey: MetaTensor, map_: MetaTensor | None, limit: float) -> None:
    """Anatomy in grey with the signed map over it."""
    low, high = grey_window(grey)
    # The foam is to be seen, which is as bright as a tenth of the brain; most of the noise is not.
    low = min(low, 0.05 * high)
    shown = ((np.nan_to_num(cut(grey, plane), nan=low) - low) / (high - low)).clip(0, 1)[..., None]
    if map_ is not None:
        colours, opacity = coloured(cut(map_, plane), limit, True)
        shown = shown * (1 - opacity) + colours * opacity
    # 48 steps of each colour: nobody sees them, and the file is a third smaller.
    shown = np.round(48 * np.broadcast_to(shown, (*shown.shape[:2], 3)).clip(0, 1)) / 48
    axes.imshow(shown, extent=plane.extent)
    axes.set_axis_off()
