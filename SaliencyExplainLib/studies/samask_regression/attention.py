"""Attention per region: where a network that measures structures looks for each of them.

With M a smooth attention mask (SAMASK) of one output, upsampled to the image, r a region of a label
map, t the structure that the output measures, and t+ the structure with all that lies within some
mm of it::

    share_r = sum_{v in r} M(v) / sum_v M(v)          density_r = share_r / (|r| / N)
    leakage = 1 - share_{t+}

Konate et al. 2021 intersect the mask with all regions of the brain; that a mask covers the region
of interest and its neighbours is their finding. The leakage is a number of our own for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import RegionError, TargetError
from ...image import as_image, make_image, resample_labels, spacing_mm
from ...regions import region_table
from ...run import explain
from ...target import Target
from ..results import StudyTable

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from numpy.typing import NDArray

    from ...explanation import Explanation
    from ...model import Model
    from ...region_rows import RegionTable

__all__ = ["Attention", "AttentionRow", "attention_by_region", "surroundings"]

_UNITS = {"ml": "ml", "seconds": "s"}


@dataclass(frozen=True)
class AttentionRow:
    """Where the mask of one output lies; NaN where the label map does not have its structure.

    Attributes
    ----------
    output : str
        Name of the output.
    value : float
        What the network says, in the output's unit.
    structure : str
        Name of the structure that the output measures; empty where none is known.
    share, density_ratio : float
        Of the mask in the structure.
    near_share, near_density_ratio : float
        In its neighbourhood, without the structure.
    leakage : float
        Part of the mask that lies neither in the structure nor near it.
    prediction_change : float
        Change of the output with the mask, as a part of it (a keeping mask: how badly it explains).
    effect_part : float
        Change of the output with the mask, as a part of what hiding the whole layer does.
    mask_mean : float
        Mean of the mask, 0 to 1.
    seconds : float
        Time that the mask took.
    """

    output: str
    value: float
    structure: str
    share: float
    density_ratio: float
    near_share: float
    near_density_ratio: float
    leakage: float
    prediction_change: float
    effect_part: float
    mask_mean: float
    seconds: float


@dataclass(frozen=True)
class Attention:
    """Masks of several outputs, and where they lie.

    Attributes
    ----------
    masks : mapping of str to Explanation
        By the name of the output.
    regions : mapping of str to RegionTable
        One row a region of the label map, for each output.
    neighbours : mapping of str to RegionTable
        Rows of the structure (label 1), its neighbourhood (2) and the rest (0), for each output
        whose structure the label map has.
    rows : tuple of AttentionRow
        One an output.
    """

    masks: Mapping[str, Explanation]
    regions: Mapping[str, RegionTable]
    neighbours: Mapping[str, RegionTable]
    rows: tuple[AttentionRow, ...]

    def __getitem__(self, output: str) -> AttentionRow:
        """Row of an output.

        Raises
        ------
        RegionError
            If there is none of that name.
        """
        for row in self.rows:
            if row.output == output:
                return row
        known = ", ".join(row.output for row in self.rows)
        raise RegionError(f"The output {output!r} was not explained; there are {known}.")

    def table(self) -> StudyTable:
        """One row an output, for a page, a file (``.to_csv()``) or a scene."""
        names = [field.name for field in fields(AttentionRow)]
        rows = tuple(tuple(getattr(row, name) for name in names) for row in self.rows)
        columns = tuple(name.replace("_", " ") for name in names[:-1])
        return StudyTable("attention", "Attention by output", (*columns, "seconds (s)"), rows)


def attention_by_region(
    model: Model,
    image: MetaTensor,
    labelmap: MetaTensor,
    names: Mapping[int, str],
    outputs: Sequence[str | int] | None = None,
    layer: str = "",
    *,
    structures: Mapping[str, int | str] | None = None,
    deviations: Mapping[str, float] | None = None,
    near_mm: float = 10.0,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    **parameters: Any,
) -> Attention:
    """Learn a smooth attention mask for each output, and say in which regions it lies.

    Parameters
    ----------
    model : Model
        Regression: each output is explained as it is. Segmentation: the soft volume of each class,
        in ml. Classification: each class's logit.
    image : MetaTensor, shape (C, I, J, K)
        The scan.
    labelmap : MetaTensor, shape (1, X, Y, Z)
        Its regions; 0 is outside. Resampled onto the image by world position.
    names : mapping of int to str
        Names of the labels.
    outputs : sequence of str or int, optional
        Outputs to explain; all whose names are known when left out.
    layer : str
        Layer whose features are masked; empty: what the method chooses.
    structures : mapping of str to int or str, optional
        Label, or its name, of what an output measures. Left out: the region of the same name.
    deviations : mapping of str to float, optional
        Standard deviation over people of each output, in its unit: what counts as a change of 1
        (the sigma of the paper). An output without one gets what the method finds.
    near_mm : float
        How far from the structure its neighbourhood reaches, in mm.
    progress : callable, optional
        Called with a fraction (0 to 1) and a message after each pass.
    cancelled : callable, optional
        Asked before each pass; True stops it.
    **parameters
        Of the method ``smooth_attention_mask``: mode="delete", area=, starts=...

    Returns
    -------
    Attention

    Raises
    ------
    RegionError
        If a label or region is unknown, the label map does not overlap the image, or `near_mm` is
        negative.
    TargetError
        If an output is unknown, or none is named and the model does not name its own.
    SaliencyExplainError
        As :func:`explain`; Cancelled where it was stopped.
    """
    image = as_image(image)
    wanted = _wanted(model, outputs)
    if not (near_mm >= 0 and np.isfinite(near_mm)):
        raise RegionError(f"near_mm is 0 or more (mm); {near_mm} was given.")
    labels = _labels(labelmap, image)
    measured = {output: _structure(output, names, structures or {}) for output in wanted}
    masks, regions, neighbours, rows = {}, {}, {}, []
    for number, output in enumerate(wanted):
        part = _Part(progress, number, len(wanted), output)
        sigma = {"sigma": deviations[output]} if deviations and output in deviations else {}
        settings = {"layer": layer, **sigma, **parameters}
        target = _target(model, output)
        made = explain(model, image, target, "smooth_attention_mask", part, cancelled, **settings)
        masks[output] = made
        regions[output] = region_table(made, labels, names)
        label = measured[output]
        if label is not None and (labels.as_tensor() == label).any():
            around = surroundings(labels, label, near_mm)
            text = {0: "elsewhere", 1: names[label], 2: f"within {near_mm:g} mm of it"}
            neighbours[output] = region_table(made, around, text)
        rows.append(
            _row(output, made, "" if label is None else names[label], neighbours.get(output))
        )
    return Attention(masks, regions, neighbours, tuple(rows))


def surroundings(labels: MetaTensor, label: int, near_mm: float) -> MetaTensor:
    """Label map of a structure (1) and of all voxels within some mm of it (2).

    Parameters
    ----------
    labels : MetaTensor, shape (1, I, J, K)
    label : int
        The structure's.
    near_mm : float
        From voxel centre to voxel centre.

    Returns
    -------
    MetaTensor, shape (1, I, J, K)
    """
    from scipy.ndimage import distance_transform_edt

    inside: NDArray[np.bool_] = labels.as_tensor()[0].numpy() == label
    away = distance_transform_edt(~inside, sampling=spacing_mm(labels.affine))
    return make_image(np.where(inside, 1, 2 * (away <= near_mm))[None], labels.affine)


def _wanted(model: Model, outputs: Sequence[str | int] | None) -> tuple[str, ...]:
    if isinstance(outputs, str):
        outputs = [outputs]
    named = model.labels
    if outputs is None:
        if not named:
            raise TargetError(
                "The model does not name its outputs. Say which ones to explain: outputs=[0, 1]."
            )
        background = model.task == "segmentation" and model.activation == "softmax"
        return tuple(named[1:] if background else named)
    if not outputs:
        raise TargetError("No output was named. Leave outputs out for all of them.")
    return tuple(dict.fromkeys(_name(model, one) for one in outputs))


def _name(model: Model, output: str | int) -> str:
    """Name of an output, refused before the first mask is learned if the model has none such."""
    known = model.labels
    if isinstance(output, str):
        for one in known:
            if one.casefold() == output.casefold():
                return one
        if not known:
            return output
    elif not known:
        return f"output {output}"
    elif 0 <= output < len(known):
        return known[output]
    raise TargetError(f"The model has no output {output!r}. It has: {', '.join(known)}.")


def _labels(labelmap: MetaTensor, image: MetaTensor) -> MetaTensor:
    """Labels on the image's grid, refused before hours of work if they do not fit."""
    if labelmap.ndim != 4 or labelmap.shape[0] != 1:
        raise RegionError(
            f"A label map of shape (1, I, J, K) is needed; {tuple(labelmap.shape)} was given."
        )
    labels = resample_labels(labelmap, image)
    if not (labels.as_tensor() > 0).any():
        raise RegionError(
            "No region of the label map lies inside the image. Check that both belong to the same "
            "scan and that no transform is missing."
        )
    return labels


def _structure(
    output: str, names: Mapping[int, str], structures: Mapping[str, int | str]
) -> int | None:
    """Label of what an output measures, or None."""
    asked = structures.get(output, output)
    for label, name in names.items():
        if asked == label or str(asked).casefold() == name.casefold():
            return label
    if output in structures:
        known = ", ".join(f"{label} {name}" for label, name in names.items())
        raise RegionError(
            f"The label map has no region {asked!r} for the output {output!r}. It has: {known}."
        )
    return None


def _target(model: Model, output: str) -> Target:
    if model.task == "segmentation":
        return Target(output=output, region="everywhere", score="soft_volume")
    return Target(output=output)


class _Part:
    """Progress of one output, as a part of all."""

    def __init__(
        self,
        progress: Callable[[float, str], None] | None,
        number: int,
        count: int,
        output: str,
    ) -> None:
        self._progress, self._number, self._count, self._output = progress, number, count, output

    def __call__(self, fraction: float, message: str) -> None:
        if self._progress is not None:
            self._progress((self._number + fraction) / self._count, f"{self._output}: {message}")


def _row(
    output: str, made: Explanation, structure: str, around: RegionTable | None
) -> AttentionRow:
    nothing = float("nan")
    inside = None if around is None else around[1]
    near = None if around is None else around[2]
    change, part = (made.details.get(key) for key in ("prediction_change", "effect_part"))
    return AttentionRow(
        output=output,
        value=made.value,
        structure=structure,
        share=nothing if inside is None else inside.share,
        density_ratio=nothing if inside is None else inside.density_ratio,
        near_share=nothing if near is None else near.share,
        near_density_ratio=nothing if near is None else near.density_ratio,
        leakage=nothing if inside is None or near is None else 1 - inside.share - near.share,
        prediction_change=nothing if change is None else change,
        effect_part=nothing if part is None else part,
        mask_mean=float(made.map.as_tensor().mean()),
        seconds=made.seconds,
    )
