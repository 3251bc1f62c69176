"""The question: which output, where, and how it becomes the one number that is explained.

With ``z_c(v)`` the network's fused output of channel c at voxel v, ``p_c`` its softmax or sigmoid,
and ``M`` the region::

    logit, mean        S = 1/|M| sum_{v in M} z_c(v)              (T2 of the field; "sum" gives T1)
    probability        the same with p_c
    soft_volume        S = sum_{v in M} p_c(v) * voxel volume     in ml (T3)
    contrast with d    z_c - contrast_weight * z_d instead of z_c (T6, Finer-CAM)
    classification     S = z_c or p_c;   regression S = the output

``M`` is taken once from the unperturbed image and then frozen: a method that perturbs the input
must not move the region. Sigmoid networks predict a class where p > 0.5, softmax networks where it
is the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor

from .errors import ModelError, TargetError
from .image import voxel_volume_ml
from .masks import activated, region_mask

if TYPE_CHECKING:
    from .model import Model

__all__ = ["REDUCTIONS", "REGIONS", "RUNNER_UP", "SCORES", "FrozenTarget", "Target"]

REGIONS = ("prediction", "instance", "segment", "roi", "point", "everywhere")
SCORES = ("logit", "probability", "soft_volume", "value")
REDUCTIONS = ("mean", "sum")
#: As `contrast`: the class that comes second inside the region.
RUNNER_UP = "runner_up"


#: Field that says which place a region means.
_FIELDS = {
    "segment": "segment",
    "roi": "roi_ras_mm",
    "point": "point_ras_mm",
    "instance": "instance",
}


@dataclass(frozen=True)
class Target:
    """What is explained.

    Parameters
    ----------
    output : int, str or None
        Output channel, by index or by its label. None: the only foreground class of a segmentation,
        the predicted class of a classification, the only output of a regression.
    region : {"prediction", "instance", "segment", "roi", "point", "everywhere"} or None
        Where, for outputs with voxels. "instance": one connected part of the prediction (a lesion).
        None: the segment, ROI, point or instance where one is given, else "prediction" for
        segmentation, "everywhere" for a dense regression.
    score : {"logit", "probability", "soft_volume", "value"} or None
        "value" is a regression output as it is. None: "value" for regression, else "logit".
    reduce : {"mean", "sum"}
        How the voxels of the region become one number ("soft_volume" always sums).
    contrast : int, str or None
        Class d that is subtracted; "runner_up" for the class that comes second inside the region.
    contrast_weight : float
        Weight of the subtracted class, 0 to 10.
    segment : MetaTensor, shape (1, I, J, K), optional
        Mask for region "segment": voxels above 0. Resampled by world position if it lies on another
        grid.
    roi_ras_mm : ((r, a, s), (r, a, s)), optional
        Opposite corners of a box for region "roi", in RAS mm.
    point_ras_mm : (r, a, s), optional
        Position for region "point", in RAS mm; the nearest voxel is taken. For region "instance":
        a point in the part that is meant.
    instance : int, optional
        Number of the part for region "instance", 1 for the largest (26-connected); 1 when left out
        and no point is given.

    Raises
    ------
    TargetError
        If a value is none of those listed, or the region's mask, box or point is missing.
    """

    output: int | str | None = None
    region: str | None = None
    score: str | None = None
    reduce: str = "mean"
    contrast: int | str | None = None
    contrast_weight: float = 1.0
    segment: MetaTensor | None = field(default=None, repr=False, compare=False)
    roi_ras_mm: tuple[Sequence[float], Sequence[float]] | None = None
    point_ras_mm: Sequence[float] | None = None
    instance: int | None = None

    def __post_init__(self) -> None:
        _one_of("region", self.region, (None, *REGIONS))
        _one_of("score", self.score, (None, *SCORES))
        _one_of("reduce", self.reduce, REDUCTIONS)
        needed = {
            "segment": "segment=<mask image>",
            "roi": "roi_ras_mm=(corner, corner)",
            "point": "point_ras_mm=(r, a, s)",
        }
        if self.region in needed and getattr(self, _FIELDS[self.region]) is None:
            raise TargetError(
                f"The region {self.region!r} needs {needed[self.region]}. Give it, or choose "
                "another region."
            )
        weight: Any = self.contrast_weight
        number = isinstance(weight, int | float | np.number) and not isinstance(weight, bool)
        if not number or not 0 <= weight <= 10:
            raise TargetError(
                f"contrast_weight must be a number between 0 and 10; {weight!r} was given."
            )
        if self.segment is not None and not isinstance(self.segment, MetaTensor):
            raise TargetError(
                "The segment is a mask with its affine (read_labelmap, make_image); "
                f"{type(self.segment).__name__} was given."
            )
        if self.roi_ras_mm is not None and _shape(self.roi_ras_mm) != (2, 3):
            raise TargetError(
                f"roi_ras_mm is two corners of three RAS coordinates in mm; {self.roi_ras_mm!r} "
                "was given."
            )
        if self.point_ras_mm is not None and _shape(self.point_ras_mm) != (3,):
            raise TargetError(
                f"point_ras_mm is three RAS coordinates in mm; {self.point_ras_mm!r} was given."
            )
        if self.instance is not None:
            _check_instance(self.instance)
        given = [name for name in (*needed, "instance") if getattr(self, _FIELDS[name]) is not None]
        if self.region is None and given:
            if len(given) > 1:
                raise TargetError(
                    f"A {' and a '.join(given)} were given. Say which one is meant "
                    f"(region={given[0]!r})."
                )
            object.__setattr__(self, "region", given[0])
        # Arrays become plain numbers, so that targets can be compared and shown.
        if self.roi_ras_mm is not None:
            low, high = (tuple(map(float, corner)) for corner in self.roi_ras_mm)
            object.__setattr__(self, "roi_ras_mm", (low, high))
        if self.point_ras_mm is not None:
            object.__setattr__(self, "point_ras_mm", tuple(map(float, self.point_ras_mm)))

    def freeze(self, output: torch.Tensor, model: Model, image: MetaTensor) -> FrozenTarget:
        """Fix the region and the classes on the network's output of the unperturbed image.

        Parameters
        ----------
        output : Tensor, shape (1, O, I, J, K) or (1, O)
            Fused output, without gradient.
        model : Model
            Its task, labels and activation say how to read the output.
        image : MetaTensor, shape (C, I, J, K)
            The image on the network's grid; only its place is used.

        Returns
        -------
        FrozenTarget

        Raises
        ------
        TargetError
            If the output is unknown, the score does not fit the task, or the region is empty.
        ModelError
            If the score is NaN or infinite.
        """
        if output.ndim not in (2, 5):
            raise TargetError(
                f"The network's output has the shape {tuple(output.shape)}; (1, O) or (1, O, I, J, "
                "K) was expected. "
                "Wrap the network so that it returns one tensor of that form."
            )
        spatial = output.ndim == 5
        names = model.output_names(output.shape[1])
        if len(names) == 1 and model.activation == "softmax":
            # Softmax over a single channel is 1 everywhere: such a network means its sigmoid.
            model = replace(model, activation="sigmoid")
        score = self._score(model.task)
        index = self._index(output, model.task, names)
        region = self.region or ("prediction" if model.task == "segmentation" else "everywhere")
        if not spatial and region != "everywhere":
            if self.region is not None:
                raise TargetError(
                    f"This {model.task} network gives one number an output, so it has no region "
                    f"{region!r}. Leave the region out."
                )
            region = "everywhere"
        mask, instance = None, None
        if spatial:
            mask, instance = region_mask(self, region, output, index, model, image)
        other = self._contrast(output, index, names, mask)
        frozen = FrozenTarget(
            output=index,
            names=names,
            region=region if spatial else None,
            mask=mask,
            score=score,
            reduce="sum" if score == "soft_volume" else self.reduce,
            contrast=other,
            contrast_weight=self.contrast_weight,
            activation=model.activation,
            voxel_ml=voxel_volume_ml(image.affine),
            instance=instance,
        )
        value = float(frozen.value(output))
        if not np.isfinite(value):
            raise ModelError(
                f"The network's output {names[index]!r} gives the score {value} on this image, so "
                "there is nothing to explain. Check the intensities and the preprocessing."
            )
        return frozen

    def _score(self, task: str) -> str:
        score = self.score or ("value" if task == "regression" else "logit")
        if (score == "value") != (task == "regression"):
            fitting = "'value'" if task == "regression" else "'logit' or 'probability'"
            raise TargetError(
                f"The score {score!r} does not fit a {task} network. Choose {fitting}."
            )
        if score == "soft_volume" and task != "segmentation":
            raise TargetError(
                f"A soft volume needs a segmentation network; this one does {task}. Choose 'logit'."
            )
        return score

    def _index(self, output: torch.Tensor, task: str, names: tuple[str, ...]) -> int:
        if self.output is not None:
            return _channel(self.output, names, "output")
        if len(names) == 1:
            return 0
        if task == "classification":
            return int(output[0].argmax())
        if task == "segmentation" and len(names) == 2:
            return 1
        raise TargetError(
            f"The model has {len(names)} outputs: {_listed(names)}. Name the one to explain "
            "(output=...)."
        )

    def _contrast(
        self, output: torch.Tensor, index: int, names: tuple[str, ...], mask: torch.Tensor | None
    ) -> int | None:
        if self.contrast is None:
            return None
        if len(names) < 2:
            raise TargetError(
                "A contrast needs a second output; this model has one. Leave the contrast out."
            )
        if self.contrast == RUNNER_UP:
            means = output[0] if mask is None else output[0][:, mask].mean(1)
            means = means.clone()
            means[index] = -torch.inf
            return int(means.argmax())
        other = _channel(self.contrast, names, "contrast")
        if other == index:
            raise TargetError(
                f"The contrast {names[other]!r} is the explained output itself. Choose another one."
            )
        return other


@dataclass(frozen=True)
class FrozenTarget:
    """A :class:`Target` with channel, region and rival fixed: the scalar of every later pass.

    ``mask`` has the shape (I, J, K) of the network's grid, or is None where the output has no
    voxels.
    """

    output: int
    names: tuple[str, ...]
    region: str | None
    mask: torch.Tensor | None
    score: str
    reduce: str
    contrast: int | None
    contrast_weight: float
    activation: str
    voxel_ml: float
    instance: dict[str, Any] | None = None

    @property
    def linear(self) -> bool:
        """Whether S is linear in the output: then dS/d(output) needs no forward pass."""
        return self.score in ("logit", "value")

    def value(self, output: torch.Tensor) -> torch.Tensor:
        """S of a fused output, shape (1, O, I, J, K) or (1, O); differentiable, 0-dimensional."""
        field_ = output if self.linear else activated(output, self.activation)
        chosen = field_[0, self.output]
        if self.contrast is not None:
            chosen = chosen - self.contrast_weight * field_[0, self.contrast]
        if self.mask is None:
            return chosen
        inside = chosen[self.mask]
        if self.score == "soft_volume":
            return inside.sum() * self.voxel_ml
        return inside.sum() if self.reduce == "sum" else inside.mean()

    def cotangent(self, output: torch.Tensor) -> torch.Tensor:
        """dS/d(output), same shape as `output`."""
        leaf = output.detach().clone().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.value(leaf), leaf)
        return gradient

    def probability(self, output: torch.Tensor) -> torch.Tensor:
        """Probability of the explained output in the region, shape (|M|,) or ()."""
        chosen = activated(output, self.activation)[0, self.output]
        return chosen if self.mask is None else chosen[self.mask]

    def weights(self) -> torch.Tensor | None:
        """Weight of each voxel in a linear S, (I, J, K): 1/|M| or 1 in the region, or None."""
        if self.mask is None:
            return None
        return self.mask.float() / (
            float(torch.count_nonzero(self.mask)) if self.reduce == "mean" else 1.0
        )

    def linear_cotangent(self, shape: Sequence[int], weight: torch.Tensor) -> torch.Tensor:
        """dS/d(output) of a linear S on a window.

        Parameters
        ----------
        shape : sequence of int
            Shape of the network's output on the window: (1, O, i, j, k) or (1, O).
        weight : Tensor, shape (i, j, k) or ()
            :meth:`weights` on the window, times the window's part in the fusion.
        """
        gradient = torch.zeros(tuple(shape), device=weight.device)
        gradient[0, self.output] = weight
        if self.contrast is not None:
            gradient[0, self.contrast] = -self.contrast_weight * weight
        return gradient

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values; the region as its name and size."""
        return {
            "output": self.output,
            "output_name": self.names[self.output],
            "region": self.region,
            "region_voxels": None if self.mask is None else int(torch.count_nonzero(self.mask)),
            "region_ml": None
            if self.mask is None
            else round(float(torch.count_nonzero(self.mask)) * self.voxel_ml, 4),
            "score": self.score,
            "unit": {"soft_volume": "ml", "probability": "1"}.get(self.score, "output unit"),
            "reduce": self.reduce if self.mask is not None else None,
            "contrast": self.contrast,
            "contrast_name": None if self.contrast is None else self.names[self.contrast],
            "contrast_weight": self.contrast_weight if self.contrast is not None else None,
            "instance": self.instance,
        }


def _one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    if not (value is None or isinstance(value, str)) or value not in allowed:
        listed = ", ".join(repr(one) for one in allowed if one is not None)
        raise TargetError(f"The target's {name} must be one of {listed}; {value!r} was given.")


def _check_instance(number: Any) -> None:
    whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
    if not (whole and number >= 1):
        raise TargetError(
            f"instance is the number of a connected part, 1 for the largest; {number!r} was given."
        )


def _shape(values: Any) -> tuple[int, ...]:
    """Shape of nested numbers; empty where they are ragged, not finite or no numbers."""
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return ()
    return found.shape if np.isfinite(found).all() else ()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"{index} {name}" for index, name in enumerate(names))


def _channel(wanted: Any, names: tuple[str, ...], what: str) -> int:
    """Index of a channel given by number, label or a label in other letter case."""
    if isinstance(wanted, str):
        if wanted in names:
            return names.index(wanted)
        folded = [name.casefold() for name in names]
        if folded.count(wanted.casefold()) == 1:
            return folded.index(wanted.casefold())
        if wanted.isdecimal():
            wanted = int(wanted)
    whole = isinstance(wanted, int | np.integer) and not isinstance(wanted, bool)
    if whole and 0 <= wanted < len(names):
        return int(wanted)
    raise TargetError(f"The model has no {what} {wanted!r}. It has: {_listed(names)}.")
