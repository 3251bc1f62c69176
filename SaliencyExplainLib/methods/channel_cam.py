"""Maps from what single channels of a layer do to the score, without gradients.

With A_k the channels of a layer, S the score, and the network run again with changed channels::

    Ablation-CAM   ReLU( sum_k w_k A_k ),  w_k = S - S(A_k set to 0)
    Score-CAM      ReLU( sum_k w_k A_k ),  w = softmax_k( S(m_k x + (1 - m_k) x0) ),
                   m_k = A_k on the input's grid, scaled to 0..1
    Eigen-CAM      ReLU( (A - mean A) . v ),  v = first principal axis of the channels
    KWC            sum_k (D_k I_k / P) |A_k| / max |A|,  p = the target's probability,
                   P = sum_v p_v,  D_k = sum_v (p_v - min(p_v without k, p_v)),
                   I_k = sum_v min(p_v with only k, p_v)

Ablation-CAM: Desai and Ramaswamy 2020, doi:10.1109/WACV45572.2020.9093360; the paper divides by S,
which is near zero for balanced logits and only scales the map: left out. Score-CAM: Wang et al.
2020, arXiv:1910.01279; the softmax runs over the channels, the mask fades to the baseline, not to
zero. Eigen-CAM: Muhammad and Yeasin 2020, arXiv:2008.00299; from the K x K covariance, its sign
chosen so that the largest magnitude is positive. Kernel-weighted contribution: Mullan and Sonka
2023, doi:10.1117/1.JMI.10.5.054001; several layers are added, each weighted by itself; features and
their ablation are taken at the same module (the public code reads the convolution and ablates the
block behind it).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from ..errors import MethodError
from .base import Attribution, method, param
from .baselines import BASELINES, make_baseline, resolve
from .layer import LayerMethod, replay_notes, window_start

if TYPE_CHECKING:
    import torch

    from ..engine import Engine
    from ..model import LayerInfo

__all__ = ["AblationCAM", "EigenCAM", "KernelWeightedContribution", "ScoreCAM"]


@method(
    "ablation_cam",
    title="Ablation-CAM",
    family="layer",
    summary="Where are the features active whose loss lowers the score?",
    paper="Desai and Ramaswamy 2020, doi:10.1109/WACV45572.2020.9093360",
    signed=False,
    unit="relative",
    needs_layer=True,
    needs_gradient=False,
    weaknesses="misses features that replace each other; one weight a channel for the whole volume",
)
@dataclass(frozen=True)
class AblationCAM(LayerMethod):
    """Features weighted by the score drop when their channel is set to zero."""

    def passes(self) -> int | None:
        """As many partial forward passes as the layer has channels."""
        return None

    def attribute(self, engine: Engine) -> Attribution:
        """Map of shape (1, I, J, K)."""
        from ..engine import LayerChanges

        info, warnings = self.find(engine)
        changes = LayerChanges(engine, info.name)
        engine.progress.expect((info.shape[0] + 1) * len(engine.plan.windows))
        left = changes.values(_without, info.shape[0])
        weights = engine.x.new_tensor([engine.start_value - value for value in left])
        return self.from_weights(engine, info, weights, (*warnings, *replay_notes(changes.exact)))


@method(
    "score_cam",
    title="Score-CAM",
    family="layer",
    summary="Where are the features active that, used as a mask on the image, keep the score high?",
    paper="Wang et al. 2020, arXiv:1910.01279",
    signed=False,
    unit="relative",
    needs_layer=True,
    needs_gradient=False,
    weaknesses="one forward pass a channel; the softmax often leaves a single channel",
)
@dataclass(frozen=True)
class ScoreCAM(LayerMethod):
    """Features weighted by the score of the image seen through them."""

    baseline: str = param("automatic", choices=BASELINES, help="what is shown where the mask hides")
    blur_mm: float = param(
        12.0, low=0.5, high=100.0, unit="mm", help="standard deviation of the blurred baseline"
    )

    def passes(self) -> int | None:
        """As many forward passes as the layer has channels."""
        return None

    def attribute(self, engine: Engine) -> Attribution:
        """Map of shape (1, I, J, K)."""
        import torch

        from ..engine import Perturber

        info, warnings = self.find(engine)
        choice = resolve(self.baseline, engine)
        baseline = make_baseline(choice, engine, self.blur_mm)
        features = list(engine.layer_features(info.name, stop=info.calls == 1))
        perturber = Perturber(engine)
        engine.progress.expect(info.shape[0] * len(perturber.region.windows))
        everywhere = tuple(slice(0, size) for size in engine.x.shape[2:])
        scores = []
        for channel in range(info.shape[0]):
            parts = [(window, found[channel : channel + 1]) for window, found in features]
            mask = self.fused(engine, info, parts)[0]
            span = float(mask.max() - mask.min())
            mask = (mask - mask.min()) / span if span > 0 else torch.zeros_like(mask)
            scores.append(perturber.value(baseline + mask * (engine.x - baseline), everywhere))
        weights = torch.tensor(scores).softmax(0).to(engine.x.device)
        made = self.from_weights(engine, info, weights, warnings, features)
        return replace(made, used={"baseline": choice})


@method(
    "eigen_cam",
    title="Eigen-CAM",
    family="layer",
    summary="What is the main pattern in the layer's features, whatever the target?",
    paper="Muhammad and Yeasin 2020, arXiv:2008.00299",
    signed=False,
    unit="relative",
    needs_layer=True,
    needs_gradient=False,
    weaknesses="knows nothing of the target: the same map for every class",
)
@dataclass(frozen=True)
class EigenCAM(LayerMethod):
    """Features projected on their first principal axis."""

    def passes(self) -> int:
        """One sweep for the score, and two up to the layer."""
        return 3

    def attribute(self, engine: Engine) -> Attribution:
        """Map of shape (1, I, J, K)."""
        import torch

        info, warnings = self.find(engine)
        parts = self.parts(engine, info)
        count = sum(float(part.sum()) for part in parts.values())
        # In double precision on the CPU: not every GPU has it.
        mean = torch.zeros(info.shape[0], dtype=torch.float64)
        second = mean[:, None] * mean[None]
        stop = info.calls == 1
        for window, features in engine.layer_features(info.name, stop=stop):
            flat = features.flatten(1).cpu().double()
            part = parts[window_start(window)].flatten().cpu().double()
            mean += flat @ part / count
            second += (flat * part) @ flat.T / count
        axis = torch.linalg.eigh(second - mean[:, None] * mean[None])[1][:, -1]
        projected = [
            (
                window,
                torch.tensordot(
                    axis[None], features.cpu().double() - mean[:, None, None, None], dims=1
                ),
            )
            for window, features in engine.layer_features(info.name, stop=stop)
        ]
        lowest = min(float(one.min()) for _, one in projected)
        highest = max(float(one.max()) for _, one in projected)
        sign = -1.0 if -lowest > highest else 1.0
        clipped = [
            (window, (sign * one).clamp(min=0).float().to(engine.x.device))
            for window, one in projected
        ]
        return self.finished(engine, info, clipped, warnings)


@method(
    "kernel_weighted_contribution",
    title="Kernel-weighted contribution",
    family="layer",
    summary="Which features are both needed for the segmentation and able to make it alone?",
    paper="Mullan and Sonka 2023, doi:10.1117/1.JMI.10.5.054001",
    signed=False,
    unit="relative",
    needs_layer=True,
    needs_gradient=False,
    weaknesses="two partial passes a channel; shows where features are active, needed there or not",
)
@dataclass(frozen=True)
class KernelWeightedContribution(LayerMethod):
    """Magnitude of features weighted by what their loss costs times what they preserve alone."""

    layers_have_weights: ClassVar[bool] = True

    layer: str = param("", help="layers, separated by commas; empty: chosen by itself")

    def passes(self) -> int | None:
        """Twice as many partial forward passes as the layers have channels."""
        return None

    def attribute(self, engine: Engine) -> Attribution:
        """Map of shape (1, I, J, K), 0 to the sum of the weights."""
        names = [name.strip() for name in self.layer.split(",") if name.strip()] or [""]
        found = [self.find(engine, name) for name in names]
        channels = sum(info.shape[0] for info, _ in found)
        engine.progress.expect((2 * channels + len(found)) * len(engine.plan.windows))
        total: torch.Tensor | None = None
        warnings: tuple[str, ...] = ()
        made = None
        for info, notes in found:
            weights, exact = self._weights(engine, info)
            made = self._map(engine, info, weights, (*notes, *replay_notes(exact)))
            total = made.maps if total is None else total + made.maps
            warnings = (*warnings, *made.warnings)
        assert made is not None and total is not None  # noqa: S101, PT018 - there is at least one layer
        if len(found) == 1:
            return made
        return Attribution(total, layers=tuple(info.name for info, _ in found), warnings=warnings)

    def _weights(self, engine: Engine, info: LayerInfo) -> tuple[torch.Tensor, bool | None]:
        """w_k = D_k I_k / P of each channel, shape (K,)."""
        import torch

        from ..engine import LayerChanges

        changes = LayerChanges(engine, info.name)
        target = changes.region.target
        start = next(changes.outputs(lambda features, _: features, 1))
        base = target.probability(start)
        mass = float(base.sum())
        if mass == 0:
            raise MethodError(
                "The target's probability is zero everywhere in the region, so no feature can be "
                "weighted. "
                "Choose another output or region."
            )
        weights = []
        without = changes.outputs(_without, info.shape[0])
        only = changes.outputs(_only, info.shape[0])
        for lost, alone in zip(without, only, strict=True):
            dependent = float((base - torch.minimum(target.probability(lost), base)).sum())
            independent = float(torch.minimum(target.probability(alone), base).sum())
            weights.append(dependent * independent / mass)
        return engine.x.new_tensor(weights), changes.exact

    def _map(
        self, engine: Engine, info: LayerInfo, weights: torch.Tensor, warnings: tuple[str, ...]
    ) -> Attribution:
        largest, parts = 0.0, []
        for window, features in engine.layer_features(info.name, stop=info.calls == 1):
            largest = max(largest, float(features.abs().max()))
            parts.append(
                (window, (weights[:, None, None, None] * features.abs()).sum(0, keepdim=True))
            )
        scale = 1 / largest if largest > 0 else 0.0
        return self.finished(
            engine, info, [(window, scale * one) for window, one in parts], warnings
        )


def _without(features: torch.Tensor, channel: int) -> torch.Tensor:
    changed = features.clone()
    changed[:, channel] = 0
    return changed


def _only(features: torch.Tensor, channel: int) -> torch.Tensor:
    import torch

    changed = torch.zeros_like(features)
    changed[:, channel] = features[:, channel]
    return changed
