"""What is measured of each case: errors, masks and their places, other methods, asymmetry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...quality.localisation import mass_inside, rank_inside
from ...run import explain
from ...target import Target
from ..heads import SyntheticHead, synthetic_head
from .attention import attention_by_region, surroundings
from .network import OUTPUTS, usual_scale

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...explanation import Explanation
    from ...model import Model
    from ..work import Work

__all__ = [
    "METHODS",
    "NEAR_MM",
    "SMOOTHED",
    "SMOOTH_MM",
    "Found",
    "Setting",
    "Subject",
    "label_of",
    "smoothed",
]

#: What SAMASK is compared with, by the names of the methods.
METHODS = ("deconvnet", "gradient", "guided_backprop")
#: How far the neighbourhood of a structure reaches.
NEAR_MM = 10.0
#: A control: what of an advantage comes from smoothness alone; standard deviation in mm.
SMOOTHED, SMOOTH_MM = "gradient, smoothed", 8.0


def label_of(output: str) -> int:
    """Label of the structure that an output measures."""
    return next(label for label, name in SyntheticHead.NAMES.items() if name == output)


@dataclass(frozen=True)
class Setting:
    """The network and how it is explained.

    Attributes
    ----------
    model : Model
    size : int
        Voxels a side.
    deviations : mapping of str to float
        Of each output over the training heads, in ml.
    options : mapping
        Parameters of the mask.
    """

    model: Model
    size: int
    deviations: Mapping[str, float]
    options: Mapping[str, Any]

    def head(self, seed: int, scale: tuple[float, float] | None = None) -> SyntheticHead:
        """Make a head, a usual one where no factors of the hippocampi are given."""
        return synthetic_head(self.size, seed, hippocampus_scale=scale or usual_scale(seed))

    def predict(self, head: SyntheticHead) -> dict[str, float]:
        """What the network says, in ml."""
        with torch.no_grad():
            found = self.model.network(head.image.as_tensor()[None])[0]
        return dict(zip(OUTPUTS, map(float, found), strict=True))

    def subject(self, seed: int, scale: tuple[float, float] | None = None) -> Subject:
        """A head to be explained."""
        return Subject(self, self.head(seed, scale))


@dataclass(frozen=True)
class Subject:
    """A head that is explained."""

    setting: Setting
    head: SyntheticHead

    def error(self) -> dict[str, list[float]]:
        """True and predicted volume of each output, in ml."""
        found = self.setting.predict(self.head)
        return {name: [float(self.head.volumes_ml[name]), found[name]] for name in OUTPUTS}

    def attention(
        self, work: Work, outputs: Sequence[str], layer: str, **more: Any
    ) -> dict[str, dict[str, Any]]:
        """Where the masks of outputs lie."""
        found = attention_by_region(
            self.setting.model,
            self.head.image,
            self.head.labels,
            SyntheticHead.NAMES,
            outputs,
            layer,
            deviations=self.setting.deviations,
            near_mm=NEAR_MM,
            progress=work.tell,  # which stops it too
            **{**self.setting.options, **more},
        )
        return {
            output: {
                **{key: value for key, value in vars(found[output]).items() if key != "output"},
                "stability": found.masks[output].details.get("stability"),
                "effect": found.masks[output].details["effect"],
                "regions": {
                    row.name: [row.share, row.density_ratio] for row in found.regions[output].rows
                },
                "left_half": self.left_half(found.masks[output]),
                **self.located(found.masks[output], output),
            }
            for output in outputs
        }

    def mask(self, output: str, layer: str, **more: Any) -> Explanation:
        """The mask of one output."""
        sigma = self.setting.deviations[output]
        options = {"sigma": sigma, "layer": layer, **self.setting.options, **more}
        target = Target(output=output)
        return explain(
            self.setting.model, self.head.image, target, "smooth_attention_mask", **options
        )

    def map(self, output: str, method: str) -> Explanation:
        """The map of another method."""
        return explain(self.setting.model, self.head.image, Target(output=output), method)

    def compared(self, outputs: Sequence[str], work: Work) -> dict[str, dict[str, Any]]:
        """Where the maps of the other methods lie, and the gradient about as smooth as a mask."""
        found: dict[str, dict[str, Any]] = {}
        for number, output in enumerate(outputs):
            work.tell(number / len(outputs), f"{output}: other methods")
            maps = {method: self.map(output, method) for method in METHODS}
            found[output] = {method: self.located(one, output) for method, one in maps.items()}
            found[output][SMOOTHED] = self._located(smoothed(maps["gradient"]), output)
        return found

    def left_half(self, made: Explanation) -> float:
        """Part of a map that lies in the left half of the head (the first axis goes right)."""
        values = made.map.as_tensor()[0].abs().sum((1, 2))
        return float(values[: len(values) // 2].sum() / values.sum())

    def located(self, made: Explanation, output: str) -> dict[str, float]:
        """How a map lies to the structure that it is of."""
        return self._located(np.abs(made.map.as_tensor()[0].numpy().astype(np.float64)), output)

    def _located(self, values: NDArray[np.float64], output: str) -> dict[str, float]:
        around = surroundings(self.head.labels, label_of(output), NEAR_MM).as_tensor()[0].numpy()
        truth = around == 1
        if values.max() <= 0:
            return dict.fromkeys(("mass", "near", "rank", "chance"), float("nan"))
        return {
            "mass": mass_inside(values, truth),
            "near": mass_inside(values, around > 0),
            "rank": rank_inside(values, truth),
            "chance": float(truth.mean()),
        }


def smoothed(made: Explanation, deviation_mm: float = SMOOTH_MM) -> NDArray[np.float64]:
    """Magnitude of a map through a Gaussian, shape (I, J, K)."""
    from scipy.ndimage import gaussian_filter

    from ...image import spacing_mm

    values = np.abs(made.map.as_tensor()[0].numpy().astype(np.float64))
    return np.asarray(gaussian_filter(values, deviation_mm / spacing_mm(made.map.affine)))


@dataclass(frozen=True)
class Found:
    """Everything that was measured, before it becomes tables and sentences.

    Attributes
    ----------
    tested : list of dict
        True and predicted volume of each output, one dict a head.
    by_layer : mapping of str to list of dict
        Masks at each layer.
    layer : str
        The one that was chosen.
    explained : list of dict
        "keep" and "delete" masks, the "others" and the "error" of each head.
    stable : list of dict
        Masks from three starts, one dict a head.
    degrees, heads : list
        Asymmetry and seed of each case of `varied`.
    varied : list of dict
        True and predicted volumes of both hippocampi.
    sides : list of dict
        Masks of both hippocampi in strongly asymmetric heads.
    deviations : mapping of str to float
        Of each output over the training heads, in ml.
    losses : list of float
        Of the training.
    trained_asymmetry, tolerated, telling : float
        Largest asymmetry of the training; change of the prediction that a mask may cause, and that
        hiding the whole layer must cause.
    seed : int
        Of the study.
    """

    tested: list[dict[str, Any]]
    by_layer: dict[str, list[dict[str, Any]]]
    layer: str
    explained: list[dict[str, Any]]
    stable: list[dict[str, Any]]
    degrees: list[float]
    heads: list[str]
    varied: list[dict[str, Any]]
    sides: list[dict[str, Any]]
    deviations: Mapping[str, float]
    losses: list[float]
    trained_asymmetry: float
    tolerated: float
    telling: float
    seed: int

    def masks(self, mode: str, output: str, key: str) -> list[float]:
        """One figure of the masks of an output, a value a head; NaN where it is not defined."""
        return [_number(case[mode][output][key]) for case in self.explained]

    def method(self, method: str, output: str, key: str) -> list[float]:
        """One figure of the maps of an output; the method "SAMASK" is the keeping mask."""
        if method == "SAMASK":
            return self.masks("keep", output, key)
        return [_number(case["others"][output][method][key]) for case in self.explained]

    def volumes(self, degree: float) -> NDArray[np.float64]:
        """True and predicted volumes at an asymmetry, shape (heads, sides, 2)."""
        chosen = [
            [list(map(float, pair)) for pair in case.values()]
            for case, one in zip(self.varied, self.degrees, strict=True)
            if one == degree
        ]
        return np.array(chosen)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
