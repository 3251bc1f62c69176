"""SAMASK: one smooth mask on a layer's features, learned so that the prediction stays or goes.

Konate et al. 2021, "SAMASK: Explainability of deep CNN brain volumetric measurement using smooth
attention mask". With features F_k, m = sigmoid(theta) on N points, the same for all channels, and
B_k in the place of what it hides::

    F'_k = B_k + m (F_k - B_k)                          "keep":   what suffices
    F'_k = F_k + m (B_k - F_k)                          "delete": what is necessary
    L = r d + s mean(m) + w max(0, |m|_2 / sqrt(N) - sqrt(a))^2 + g mean |grad m|^2
    keep:    d = ((S' - S) / sigma)^2,            w = 0.05
    delete:  d = (max(0, |E| - sign(E) (S - S')) / sigma)^2,      E = S - S(all hidden),  w = 1

The paper has the first, an L2 budget and a smoothness term, with sigma the standard deviation of
the measurement, and zeros for B; weights, optimiser and depth are not given. Own choices:

sigma is |S|, at least |E| / 10 (a logit may be near zero) and at most |E| (what the layer says
beside an output's constant part); for "delete" it is |E|, so that d lies between 0 and 1 and
rewards nothing beyond hiding everything. s mean(m) takes away what does not matter, also within the
budget, which is weak for "keep" (the prediction goes first) and strong for "delete" (a small part
shall change the most). r is 1; for "keep" it grows by half every 5 steps from step 20 on while the
prediction changes by more than 80 % of what is tolerated (measured on evidence that is spread over
the volume: a change of 3 % instead of 10 %). grad m is a difference of neighbouring points, times
the mean spacing over theirs where these differ. B is blurred where the network normalises each
image by itself: a normalisation undoes any uniform scaling, so that a faint mask would hide nothing
(measured on a trained U-Net with instance norm: mean mask on the evidence 0.64 with zeros, 0.95
blurred).

Adam with beta = (0.9, 0.9), its step falling to zero along a cosine, from theta = 2 (with more than
one start: plus noise of deviation 1). It ends early once L has not changed by more than 1 % in 20
steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar

from .base import Attribution, method, param
from .baselines import normalises_instances
from .layer import LayerMethod, attribution, default_layer, replay_notes
from .mask_objective import Objective, loss_and_gradient, shown_by

if TYPE_CHECKING:
    import torch

    from ..engine import Engine, MaskedLayer
    from ..model import LayerInfo

__all__ = ["SmoothAttentionMask", "masked_layer"]

MODES = ("keep", "delete")
#: "automatic": blurred where the network normalises each image by itself, else zero.
FILLS = ("automatic", "zero", "mean", "blurred")

#: From this step on, every so many steps, the prediction gets heavier by this factor while its
#: change is above this part of what is tolerated.
_FIRST, _EVERY, _HEAVIER, _AIM = 20, 5, 1.5, 0.8
#: Correlation of two starts below which parts of the mask are a matter of chance.
_STABLE = 0.9
#: A run ends once the loss has stayed within this part of itself for so many steps.
_FLAT, _FLAT_STEPS = 0.01, 20
#: Coarsest grid, in voxels of the network, on which a mask still shows anatomy.
_COARSEST = 4.0
#: Effect of hiding everything, as a part of the score, that is only rounding.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class _Fit:
    """What one start ended with."""

    mask: torch.Tensor
    value: float
    weight: float
    steps: int


def masked_layer(layers: Sequence[LayerInfo], carriers: frozenset[str], task: str) -> LayerInfo:
    """Choose the layer to mask when none is named.

    A layer through which everything passes, coarser than the image but not above 4 voxels: for
    segmentation the first (behind it there is still network to use the surroundings), otherwise the
    last. Without one: what the other layer methods choose.
    """
    usable = [
        layer
        for layer in layers
        if _maskable(layer, carriers) and 1.5 < max(map(abs, layer.grid.spacing)) <= _COARSEST
    ]
    if not usable:
        return default_layer(layers, task)
    if task == "segmentation":
        return usable[0]
    return ([layer for layer in usable if layer.activation] or usable)[-1]


def _maskable(layer: LayerInfo, carriers: frozenset[str]) -> bool:
    return (
        layer.name in carriers
        and (layer.activation or not layer.leaf)
        and not layer.problem
        and layer.shape[0] > 1
    )


@method(
    "smooth_attention_mask",
    title="Smooth attention mask",
    family="layer",
    summary="Which places alone keep the prediction (or, deleted, change it most)?",
    paper="Konate et al. 2021, SAMASK",
    signed=False,
    unit="mask, 0 to 1",
    needs_layer=True,
    weaknesses="masked features are unlike what the network knows; one of several masks that do as "
    "well; a hundred partial passes",
)
@dataclass(frozen=True)
class SmoothAttentionMask(LayerMethod):
    """The smallest smooth mask on a layer that keeps, or deletes, the prediction."""

    chooses_by_structure: ClassVar[bool] = False

    layer: str = param(
        "",
        help="name of the layer (model.layers()); empty: one that everything passes through, 2 "
        "to 4 voxels coarse",
    )
    mode: str = param(
        "keep", choices=MODES, help="show what suffices (keep), or what is necessary (delete)"
    )
    area: float = param(
        0.1, low=0.001, high=1.0, help="part of the volume beyond which the mask costs more"
    )
    sparsity: float = param(0.03, low=0.0, high=10.0, help="price of the mask's mean")
    smoothness: float = param(
        0.06, low=0.0, high=10.0, help="price of differences between neighbouring points"
    )
    tolerance: float = param(
        0.05, low=0.001, high=1.0, help="change of the prediction that is tolerated (keep)"
    )
    steps: int = param(80, low=1, high=2000, help="steps at most")
    learning_rate: float = param(0.4, low=0.001, high=5.0, help="Adam's first step")
    sigma: float = param(
        0.0,
        low=0.0,
        high=1e12,
        help="change of the score that counts as 1 (its standard deviation over people); 0: from "
        "the score and from what hiding the layer does",
    )
    fill: str = param("automatic", choices=FILLS, help="what stands in for hidden features")
    blur_mm: float = param(
        12.0, low=0.5, high=100.0, unit="mm", help="standard deviation of the blurred features"
    )
    grid_mm: float = param(
        0.0, low=0.0, high=100.0, unit="mm", help="distance of the mask's points; 0: the layer's"
    )
    starts: int = param(
        1, low=1, high=20, help="random starts; more tell how stable the mask is, the best is shown"
    )
    seed: int = param(0, low=0, high=2**31 - 1, help="seed of the starts")

    def passes(self) -> int | None:
        """Forward and backward through the rest of the network, once a step."""
        return None

    def attribute(self, engine: Engine) -> Attribution:
        """Map of shape (1, I, J, K), 0 to 1; with one window also on the layer's grid."""
        from ..engine import MaskedLayer

        info, notes = self._find(engine)
        fill = self._fill_for(engine)
        layer = MaskedLayer(engine, info, fill, self.blur_mm, self.grid_mm)
        engine.progress.expect(self.starts * (self.steps * layer.sweeps + layer.windows) + 1)
        nothing = engine.x.new_zeros((1, *layer.shape))
        effect = engine.start_value - layer.value(nothing)
        details = {"mode": self.mode, "effect": effect, "mask_shape": list(layer.shape)}
        if abs(effect) <= _ROUNDING * abs(engine.start_value):
            note = (
                f"Hiding all features of layer {info.name!r} does not change the score, so no mask "
                "can be learned there: the map is zero. Choose another layer or fill."
            )
            return self._map(layer, nothing, (*notes, note), {"fill": fill}, details)
        objective = self._objective(engine, layer, effect)
        fits = [self._fit(engine, layer, objective, start) for start in range(self.starts)]
        objective = replace(objective, weight=max(fit.weight for fit in fits))
        best = min(fits, key=lambda fit: objective.loss(fit.value, fit.mask))
        details |= _facts(objective, best) | {
            "steps": [fit.steps for fit in fits],
            "stability": _stability([fit.mask for fit in fits]),
        }
        notes = (*notes, *_warnings(self, details), *replay_notes(layer.exact))
        used = {"fill": fill, "sigma": objective.sigma}
        return self._map(layer, best.mask, notes, used, details)

    def _find(self, engine: Engine) -> tuple[LayerInfo, tuple[str, ...]]:
        """Return the layer, and what the reader must know of it."""
        from ..engine import main_output, sole_carriers

        if self.layer:
            self.find(engine)
        window = engine.plan.windows[0]
        part = engine.plan.pad(engine.x)[(slice(None), slice(None), *window)]
        engine.progress.check()
        with engine.calling(part):
            carriers = sole_carriers(engine.model.network, part, main_output)
        layers = engine.model.layers(shape=tuple(part.shape[1:]))
        chosen = self.layer or masked_layer(layers, carriers, engine.model.task).name
        info, notes = self.find(engine, chosen)
        if carriers and info.name not in carriers:
            others = [one.name for one in layers if _maskable(one, carriers)]
            hint = f" Everything passes through: {', '.join(others[:4])}." if others else ""
            notes = (
                *notes,
                f"Part of what the network sees passes by the layer {info.name!r} (skip "
                f"connections): the mask tells only about what goes through it.{hint}",
            )
        if self.fill in ("zero", "mean") and normalises_instances(engine.model.network):
            notes = (
                *notes,
                "This network normalises each image by itself, which undoes a uniform fading: with "
                f"the fill {self.fill!r} a faint mask may hide nothing. 'blurred' is safer.",
            )
        return info, notes

    def _fill_for(self, engine: Engine) -> str:
        if self.fill != "automatic":
            return self.fill
        return "blurred" if normalises_instances(engine.model.network) else "zero"

    def _objective(self, engine: Engine, layer: MaskedLayer, effect: float) -> Objective:
        sigma, size = self.sigma, abs(effect)
        if sigma == 0:
            start = abs(engine.start_value)
            sigma = size if self.mode == "delete" else min(size, max(start, size / 10))
        return Objective(
            mode=self.mode,
            start=engine.start_value,
            effect=effect,
            sigma=sigma,
            area=self.area,
            sparsity=self.sparsity,
            smoothness=self.smoothness,
            spacing=layer.spacing_mm,
        )

    def _fit(self, engine: Engine, layer: MaskedLayer, objective: Objective, start: int) -> _Fit:
        """Learn one mask; the first start is uniform."""
        import torch

        theta = torch.full((1, *layer.shape), 2.0)
        if start:
            generator = torch.Generator().manual_seed(self.seed + start)
            theta += torch.randn(theta.shape, generator=generator)
        theta = theta.to(engine.x.device).requires_grad_()
        adam = torch.optim.Adam([theta], betas=(0.9, 0.9))
        losses: list[float] = []
        for step in range(self.steps):
            loss, value, theta.grad = loss_and_gradient(layer, objective, theta)
            losses.append(loss)
            missed = self.mode == "keep" and objective.change(value) > _AIM * self.tolerance
            if missed and step >= _FIRST and step % _EVERY == 0:
                objective = replace(objective, weight=_HEAVIER * objective.weight)
            if not missed and _flat(losses):
                break
            falling = 0.5 * (1 + math.cos(math.pi * step / self.steps))
            adam.param_groups[0]["lr"] = self.learning_rate * falling
            adam.step()
            engine.progress.step(f"step {step + 1} of {self.steps}, loss {loss:.4g}", passes=0)
        mask = theta.detach().sigmoid()
        return _Fit(mask, layer.value(shown_by(self.mode, mask)), objective.weight, len(losses))

    def _map(
        self,
        layer: MaskedLayer,
        mask: torch.Tensor,
        notes: tuple[str, ...],
        used: dict[str, Any],
        details: dict[str, Any],
    ) -> Attribution:
        windows = layer.engine.plan.windows
        one = layer.at_layer(mask, windows[0]) if len(windows) == 1 else None
        made = attribution(layer.engine, layer.info, layer.at_voxels(mask), one, notes)
        return replace(made, used=used, details=details)


def _flat(losses: list[float]) -> bool:
    last = losses[-_FLAT_STEPS:]
    return len(losses) > _FLAT_STEPS and max(last) - min(last) <= _FLAT * max(last)


def _facts(objective: Objective, fit: _Fit) -> dict[str, Any]:
    """What the mask does, as JSON values."""
    change, start = abs(fit.value - objective.start), abs(objective.start)
    return {
        "value_with_mask": fit.value,
        "prediction_change": change / start if start > 0 else None,
        "change_in_sigma": objective.change(fit.value),
        "effect_part": (objective.start - fit.value) / objective.effect,
        "mask_mean": float(fit.mask.mean()),
        "area": float(fit.mask.square().mean()),
        "weight": objective.weight,
        "loss": objective.loss(fit.value, fit.mask),
    }


def _stability(masks: list[torch.Tensor]) -> float | None:
    """Smallest correlation of two masks; None for a single one, or where one is constant."""
    import torch

    if len(masks) == 1:
        return None
    pairs = [
        float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])
        for one, other in combinations(masks, 2)
    ]
    return None if any(map(math.isnan, pairs)) else min(pairs)


def _warnings(method: SmoothAttentionMask, details: dict[str, Any]) -> tuple[str, ...]:
    mode, area, notes = method.mode, method.area, []
    if mode == "keep" and details["change_in_sigma"] > method.tolerance:
        notes.append(
            f"With the mask the score changes by {100 * details['change_in_sigma']:.0f} % "
            f"({100 * method.tolerance:.0f} % is tolerated), so the mask does not explain the "
            "prediction. Raise the area or the steps, or lower sparsity and smoothness."
        )
    if mode == "delete" and details["effect_part"] < 0.5:
        notes.append(
            f"Deleting the mask takes away only {100 * details['effect_part']:.0f} % of what the "
            "whole layer does to the score: the evidence is spread further. Raise the area."
        )
    if details["area"] > 1.5 * area:
        notes.append(
            f"The mask takes {100 * details['area']:.0f} % of the layer, more than the "
            f"{100 * area:.0f} % asked for: the evidence is spread that far."
        )
    stability = details["stability"]
    if stability is not None and stability < _STABLE:
        notes.append(
            f"Masks from different starts correlate by {stability:.2f} only: parts of the mask are "
            "a matter of chance. Raise smoothness or the steps."
        )
    return tuple(notes)
