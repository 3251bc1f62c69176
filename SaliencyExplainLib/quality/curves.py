"""Deletion and insertion: how the score follows when voxels go or come in the map's order.

Petsiuk et al. 2018, arXiv:1806.07421, section 4. The voxels are ordered by the evidence of the map;
deletion replaces the first q percent of them by the baseline x0, insertion puts the first q percent
of the image into x0. Three ordinates::

    score         (S(x_q) - S(x0)) / (S(x) - S(x0)): 1 for the image, 0 for the baseline
    probability   mean probability of the explained output in its region
    dice          Dice of the predicted mask of x_q with that of x, over the whole volume

and the area under the curve by trapezoids. Differs from the paper: the score is normalised between
both ends, since a logit has no zero, and dividing by S(x) alone turns the curve around where S(x)
is negative. A baseline that raises the score, or hardly lowers it, is refused: there every curve is
turned around or blown up (measured on a brain network: a blurred image lowered a logit of 3.81 to
3.78, and areas became -128 to 7). The control is the same curve for a random map that is as smooth
as this one (:mod:`.maps`): a map that is no better than it says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import MetricError
from ..methods.baselines import BASELINES
from .base import Measured, Metric, metric, param
from .maps import evidence, part_param, ranking, smooth_random, smoothness

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from .trial import Trial

__all__ = ["Deletion", "Insertion", "area_under", "scores_of"]

ORDINATES = ("score", "probability", "dice")


@dataclass(frozen=True)
class _Curve(Metric):
    """A metric of images between the scan and the baseline."""

    inserts: ClassVar[bool]

    ordinate: str = param("score", choices=ORDINATES, help="what is drawn over the percentage")
    steps: int = param(10, low=2, high=1000, help="steps from 0 to 100 percent")
    baseline: str = param("automatic", choices=BASELINES, help="what is put in the voxels' place")
    blur_mm: float = param(
        12.0, low=0.5, high=100.0, unit="mm", help="standard deviation of the blurred baseline"
    )
    part: str = part_param()
    control: bool = param(True, help="draw the curve of a random map as smooth, too")
    seed: int = param(0, low=0, high=2**31 - 1, help="seed of the control and of ties")

    def passes(self) -> int:
        """One a step between the ends, the same for the control, and both ends."""
        return (self.steps - 1) * (2 if self.control else 1) + 2

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return the area under the curve, and that of the control."""
        found = evidence(trial.network_values, trial.explanation, self.part)
        trial.progress.expect(self.passes() * trial.windows)
        area, curve, name = self._run(trial, ranking(found, self.seed), "map")
        details = {"percent": self._percent(), "ordinate": self.ordinate, "curve": curve}
        if not self.control:
            return [Measured(area, self._reading(area, None, name), details=details)]
        random = smooth_random(found.shape, smoothness(found), self.seed)
        other, control, _ = self._run(trial, ranking(random, self.seed), "control")
        return [
            Measured(
                area, self._reading(area, other, name), details=details | {"control": control}
            ),
            Measured(other, f"A random map as smooth as this one has {other:.3f}.", part="control"),
        ]

    def _run(
        self, trial: Trial, order: NDArray[np.int64], whose: str
    ) -> tuple[float, list[float], str]:
        """Area, curve and name of the baseline."""
        import torch

        name, baseline = trial.baseline(self.baseline, self.blur_mm)
        whole = self.ordinate == "dice"
        ends = [
            _once(trial, ("image", whole), trial.engine.x, whole),
            _once(trial, ("baseline", name, self.blur_mm, whole), baseline, whole),
        ]
        between = (self.inserts, whose, self.steps, name, self.blur_mm, self.part, self.seed, whole)
        if between not in trial.kept:
            start, other = (
                (baseline, trial.engine.x) if self.inserts else (trial.engine.x, baseline)
            )
            places, made = torch.from_numpy(order).to(start.device), []
            for step in range(1, self.steps):
                chosen = places[: round(order.size * step / self.steps)]
                made.append(scores_of(trial, _replaced(start, other, chosen), whole))
            trial.kept[between] = made
        run = ends[::-1] if self.inserts else ends
        curve = [one[self.ordinate] for one in (run[0], *trial.kept[between], run[1])]
        if not np.isfinite(curve).all():
            raise MetricError(
                "This network gives a value, not a probability. Draw the curve of the score."
            )
        if self.ordinate == "score":
            curve = _normalised(trial, curve, ends[1]["score"], name)
        return area_under(curve), curve, name

    def _percent(self) -> list[float]:
        return [100.0 * step / self.steps for step in range(self.steps + 1)]

    def _reading(self, area: float, control: float | None, baseline: str) -> str:
        better = control is not None and (area > control if self.inserts else area < control)
        did = "inserted into" if self.inserts else "replaced by"
        told = f"Voxels {did} the {baseline} baseline in the map's order: area {area:.3f}"
        if control is None:
            return told + "."
        verdict = "better than" if better else "no better than"
        return f"{told}, {verdict} a random map as smooth ({control:.3f})."


@metric(
    "deletion",
    title="Deletion curve",
    family="faithfulness",
    summary="Does the score fall quickly when the highest voxels are removed?",
    paper="Petsiuk et al. 2018, arXiv:1806.07421",
    direction="lower",
    scale="area under the curve, 1 at the image, 0 at the baseline; compare with the control",
    needs=("model",),
)
@dataclass(frozen=True)
class Deletion(_Curve):
    """Area under the score while the highest voxels become baseline."""

    inserts: ClassVar[bool] = False


@metric(
    "insertion",
    title="Insertion curve",
    family="faithfulness",
    summary="Does the score rise quickly when the highest voxels are put in?",
    paper="Petsiuk et al. 2018, arXiv:1806.07421",
    direction="higher",
    scale="area under the curve, 0 at the baseline, 1 at the image; compare with the control",
    needs=("model",),
)
@dataclass(frozen=True)
class Insertion(_Curve):
    """Area under the score while the highest voxels come into the baseline."""

    inserts: ClassVar[bool] = True


def area_under(curve: Sequence[float]) -> float:
    """Area under equally spaced points on [0, 1], by trapezoids."""
    values = np.asarray(curve, dtype=np.float64)
    return float((values[1:] + values[:-1]).sum() / 2 / (len(values) - 1))


def scores_of(trial: Trial, x: torch.Tensor, whole: bool) -> dict[str, float]:
    """Score and mean probability of an image; with `whole` also the Dice with the first one's mask.

    Only `whole` computes windows that do not reach the region.
    """
    from .outputs import predicted_mask

    frozen, engine = trial.frozen, trial.engine
    if not whole:
        output = trial.outputs.output(x)
        return _numbers(trial.outputs.region.target, output)
    output = engine.output(x)
    mask = predicted_mask(output, frozen, "The Dice curve")
    if "predicted" not in trial.kept:
        first = mask if x is engine.x else predicted_mask(engine.output(engine.x), frozen, "")
        if not first.any():
            raise MetricError(
                "The network predicts no voxel of the explained output, so there is no mask to "
                "compare with. Use the score or the probability."
            )
        trial.kept["predicted"] = first
    first = trial.kept["predicted"]
    dice = 2.0 * float((mask & first).sum()) / float(mask.sum() + first.sum())
    return {**_numbers(frozen, output), "dice": dice}


def _once(trial: Trial, key: Any, x: torch.Tensor, whole: bool) -> dict[str, float]:
    if key not in trial.kept:
        trial.kept[key] = scores_of(trial, x, whole)
    found: dict[str, float] = trial.kept[key]
    return found


def _numbers(frozen: Any, output: torch.Tensor) -> dict[str, float]:
    probability = float("nan")
    if frozen.activation != "none" and frozen.score != "value":
        probability = float(frozen.probability(output).cpu().double().mean())
    return {"score": float(frozen.value(output)), "probability": probability}


def _replaced(start: torch.Tensor, other: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """`start` with the voxels at flat `places` taken from `other`, all channels."""
    changed = start.clone()
    flat = changed.view(*changed.shape[:2], -1)
    flat[:, :, places] = other.reshape(*other.shape[:2], -1)[:, :, places]
    return changed


def _normalised(trial: Trial, curve: list[float], bottom: float, baseline: str) -> list[float]:
    """A curve of scores with 1 at the image and 0 at the baseline, whose score is `bottom`.

    Where the baseline leaves the score as it is, every curve would be blown up without bound.
    """
    top, least = trial.engine.start_value, _least_change(trial)
    if top - bottom < least:
        did = "changes the score too little" if abs(top - bottom) < least else "raises the score"
        raise MetricError(
            f"The {baseline} baseline {did} (from {top:.4g} to {bottom:.4g}), so no curve leads "
            "from the one down to the other. Choose another baseline, or draw the probability."
        )
    return [(value - bottom) / (top - bottom) for value in curve]


def _least_change(trial: Trial) -> float:
    """A change of the score that can be told from none.

    A tenth of the spread of the explained output over the region; a hundredth of the score where
    there is no spread.
    """
    frozen, target = trial.frozen, trial.outputs.region.target
    floor = 0.01 * abs(trial.engine.start_value) + 1e-12
    if target.mask is None or not frozen.linear:
        return floor
    inside = trial.outputs.output(trial.engine.x)[0, frozen.output][target.mask]
    if inside.numel() < 2:
        return floor
    voxels = inside.numel() if frozen.reduce == "sum" else 1
    return 0.1 * float(inside.cpu().double().std()) * voxels + 1e-12
