"""The Attribution Quality family: whether what a map keeps is enough for the prediction.

Mullan and Sonka 2023, doi:10.1117/1.JMI.10.5.054001, and their package attribution-quality. With
m in [0, 1] the evidence of the map divided by its maximum, x the network's input, p the probability
of the explained output on x, and p_m the same on x m + (1 - m) fill::

    PP   prediction preserved              sum_v min(p, p_m) / sum_v p
    EP   excess prediction                 sum_v max(p_m - p, 0) / sum_v p
    IP   image preserved                   mean(m)
    RE   relative entropy                  H(x m) / H(x),   H(y) = compressed size / raw size
    RFA  relative foreground attribution   mean(m | target) - mean(m | background)
    EPA  external peak attribution         hits / (hits + misses), 0 without a hit
    AQ = PP / RE + RFA (1 + EPA);          an even map (m = 1 everywhere) has exactly 1

A peak of EPA is a component (faces) of {m > 99th percentile} without the target, large enough. It
hits where its centroid lies near that of the components of evidence that it touches AND (a quarter
of it is evidence, OR the touched components are covered by 3/4 in the median, OR three of them by
9/10). Every other peak is a miss.

Differs from that package: sizes and distances are in mm (a voxel of 1 mm gives the same); a peak
that touches evidence and fails is a miss, not nothing; shares use the peak's own size; m has 256
steps and masked images are compressed as 16-bit integers (of floats the tails are compressed, and
-0.0 is not 0.0: an empty mask then has RE 0.039 instead of 0.001). PP / RE grows without bound for
tiny masks, so the four parts stand beside AQ, always.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MetricError
from ..methods.baselines import BASELINES
from ..volume import spacing_mm
from .base import Measured, Metric, metric, param
from .maps import part_param, relative_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .trial import Trial

__all__ = [
    "AttributionQuality",
    "ExcessPrediction",
    "ImagePreserved",
    "PredictionPreserved",
    "RelativeEntropy",
    "external_peaks",
    "relative_entropy",
]

_PAPER = "Mullan and Sonka 2023, doi:10.1117/1.JMI.10.5.054001"
#: zlib's own default level, which .nii.gz has, too.
_LEVEL = 6
_STEPS_16_BIT = 32767.0


@dataclass(frozen=True)
class _Masked(Metric):
    """A metric of the image that is seen through the map."""

    part: str = part_param()
    fill: str = param("zero", choices=BASELINES[1:], help="what is seen where the map is zero")
    blur_mm: float = param(
        12.0, low=0.5, high=100.0, unit="mm", help="standard deviation of the blurred fill"
    )

    def passes(self) -> int:
        """Probabilities of the image and of the masked image."""
        return 2

    def mask(self, trial: Trial) -> NDArray[np.float64]:
        """The evidence as a mask on the network's grid, in [0, 1]."""
        return relative_mask(trial.network_values, trial.explanation, self.part)

    def images(self, trial: Trial) -> tuple[Any, Any]:
        """The masked image, shape (1, C, I, J, K), and its fill."""
        import torch

        x = trial.engine.x
        _, fill = trial.baseline(self.fill, self.blur_mm)
        mask = torch.from_numpy(self.mask(trial)).to(x)
        return x * mask + fill * (1 - mask), fill

    def probabilities(self, trial: Trial) -> tuple[Any, Any]:
        """Return p and p_m; run once for all metrics of the family."""
        from .outputs import probability_map

        key = ("masked", self.part, self.fill, self.blur_mm)
        if key not in trial.kept:
            engine = trial.engine
            trial.progress.expect(2 * trial.windows)
            if "p" not in trial.kept:
                trial.kept["p"] = (
                    probability_map(engine.output(engine.x), trial.frozen, self.title)
                    .cpu()
                    .double()
                )
            masked, _ = self.images(trial)
            trial.kept[key] = (
                probability_map(engine.output(masked), trial.frozen, self.title).cpu().double()
            )
        return trial.kept["p"], trial.kept[key]

    def preserved(self, trial: Trial) -> float:
        """Prediction preserved."""
        p, masked = self.probabilities(trial)
        return float(p.minimum(masked).sum() / p.sum())

    def entropy(self, trial: Trial) -> float:
        """Relative entropy."""
        masked, fill = self.images(trial)
        x = trial.engine.x
        top = float(max(x.abs().max(), fill.abs().max()))
        return relative_entropy(x.cpu().numpy(), masked.cpu().numpy(), top)


@metric(
    "prediction_preserved",
    title="Prediction preserved",
    family="faithfulness",
    summary="Does the network still see its prediction through the map?",
    paper=_PAPER,
    direction="higher",
    scale="1: all of it; read beside image_preserved, for an even map keeps everything",
    needs=("model",),
)
@dataclass(frozen=True)
class PredictionPreserved(_Masked):
    """Part of the prediction that is left when the image is seen through the map."""

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return one value, 0 to 1."""
        found = self.preserved(trial)
        kept = float(self.mask(trial).mean())
        reading = f"{found:.1%} of the prediction is left of {kept:.1%} of the image."
        return [Measured(found, reading, details={"image_preserved": kept})]


@metric(
    "image_preserved",
    title="Image preserved",
    family="faithfulness",
    summary="How much of the image does the map keep?",
    paper=_PAPER,
    direction="lower",
    scale="1: everything; 0: nothing",
)
@dataclass(frozen=True)
class ImagePreserved(Metric):
    """Mean of the map divided by its maximum."""

    part: str = part_param()

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return one value, above 0, at most 1."""
        found = float(relative_mask(trial.network_values, trial.explanation, self.part).mean())
        return [Measured(found, f"The map keeps {found:.1%} of the image.")]


@metric(
    "excess_prediction",
    title="Excess prediction",
    family="faithfulness",
    summary="Does the image seen through the map make the network see more than there was?",
    paper=_PAPER,
    direction="lower",
    scale="0: nothing new; 1: as much again",
    needs=("model",),
)
@dataclass(frozen=True)
class ExcessPrediction(_Masked):
    """New prediction in the masked image, as a part of the old."""

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return one value, 0 or more."""
        p, masked = self.probabilities(trial)
        found = float((masked - p).clamp(min=0).sum() / p.sum())
        reading = f"Through the map the network predicts {found:.1%} that it did not before."
        return [Measured(found, reading)]


@metric(
    "relative_entropy",
    title="Relative entropy",
    family="faithfulness",
    summary="How much information does the map leave in the image?",
    paper=_PAPER,
    direction="lower",
    scale="1: as much as the image; near 0: hardly any",
    needs=("model",),
)
@dataclass(frozen=True)
class RelativeEntropy(_Masked):
    """Compressed size of the masked image over that of the image."""

    def passes(self) -> int:
        """None: only sizes are compared."""
        return 0

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return one value, above 0."""
        found = self.entropy(trial)
        reading = f"Seen through the map, the image compresses to {found:.1%} of its own size."
        return [Measured(found, reading)]


@metric(
    "attribution_quality",
    title="Attribution Quality",
    family="faithfulness",
    summary="Does the map keep the prediction, drop the rest, and find the outside evidence?",
    paper=_PAPER,
    direction="higher",
    scale="1: an even map; above 1: better; read its four parts, tiny masks inflate it",
    needs=("model", "labelmap"),
)
@dataclass(frozen=True)
class AttributionQuality(_Masked):
    """PP / RE + RFA (1 + EPA), with its parts."""

    target_label: int = param(3, low=1, high=65535, help="label of the explained structure")
    evidence_label: int = param(2, low=1, high=65535, help="label of the evidence outside of it")
    peak_mm3: float = param(
        100.0, low=0.0, high=1e6, unit="mm3", help="smaller peaks are not counted"
    )
    near_mm: float = param(
        10.0, low=0.0, high=500.0, unit="mm", help="how near a peak must be to evidence"
    )

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return AQ, then its parts PP, RE, RFA and EPA."""
        labels = trial.labels_on(trial.explanation.network_map)
        for label in (self.target_label, 0):
            if not (labels == label).any():
                raise MetricError(
                    f"The label map has no voxel {label} on the map's grid. Say which label is the "
                    "explained structure (target_label) and leave background 0."
                )
        mask = self.mask(trial)
        rfa = float(mask[labels == self.target_label].mean() - mask[labels == 0].mean())
        epa, hits, misses = external_peaks(
            mask,
            labels == self.target_label,
            labels == self.evidence_label,
            spacing_mm(trial.explanation.network_map.affine),
            self.peak_mm3,
            self.near_mm,
        )
        preserved, entropy = self.preserved(trial), self.entropy(trial)
        quality = preserved / entropy + rfa * (1 + epa)
        verdict = "better than" if quality > 1 else "no better than"
        reading = (
            f"{quality:.3f}, {verdict} an even map (1): prediction preserved {preserved:.3f}, "
            f"relative entropy {entropy:.3f}, foreground {rfa:+.3f}, external peaks {epa:.2f}."
        )
        parts = (
            ("prediction_preserved", preserved, "higher", f"{preserved:.1%} of the prediction."),
            ("relative_entropy", entropy, "lower", f"{entropy:.1%} of the image's information."),
            (
                "relative_foreground",
                rfa,
                "higher",
                f"The map is {rfa:+.3f} higher in the target than in the background.",
            ),
            (
                "external_peaks",
                epa,
                "higher",
                f"{hits} peaks outside the target hit evidence, {misses} do not.",
            ),
        )
        return [
            Measured(quality, reading, details={"hits": hits, "misses": misses}),
            *(Measured(one, told, part=name, direction=way) for name, one, way, told in parts),
        ]


def relative_entropy(image: NDArray[Any], masked: NDArray[Any], top: float) -> float:
    """Compressed size of a masked image over that of the image, both as 16-bit integers.

    Parameters
    ----------
    image, masked : array, same shape
    top : float
        Magnitude that becomes the largest integer.
    """
    scale = _STEPS_16_BIT / top if top > 0 else 0.0
    # Integers have no negative zero.
    sizes = [
        len(zlib.compress(np.round(values * scale).astype(np.int16).tobytes(), _LEVEL))
        for values in (masked.astype(np.float64), image.astype(np.float64))
    ]
    return sizes[0] / sizes[1]


def external_peaks(
    mask: NDArray[np.float64],
    target: NDArray[np.bool_],
    outside: NDArray[np.bool_],
    spacing: NDArray[Any],
    peak_mm3: float,
    near_mm: float,
) -> tuple[float, int, int]:
    """External peak attribution with its hits and misses.

    Parameters
    ----------
    mask : array, shape (I, J, K)
        Evidence in [0, 1].
    target, outside : array of bool, shape (I, J, K)
        The explained structure, and the evidence outside of it.
    spacing : array, shape (3,)
        In mm.
    peak_mm3, near_mm : float
        Smallest peak, and how near its centroid must be.
    """
    from scipy.ndimage import label

    peaks, count = label((mask > np.percentile(mask, 99)) & ~target)
    pieces, _ = label(outside)
    sizes = np.bincount(pieces.ravel())
    hits = misses = 0
    for number in range(1, count + 1):
        peak = peaks == number
        if peak.sum() * float(np.prod(spacing)) < peak_mm3:
            continue
        touched, common = np.unique(pieces[peak], return_counts=True)
        common, touched = common[touched > 0], touched[touched > 0]
        if not touched.size:
            misses += 1
            continue
        centres = [
            np.argwhere(region).mean(0) * spacing for region in (peak, np.isin(pieces, touched))
        ]
        covered = common / sizes[touched]
        near = float(np.linalg.norm(centres[0] - centres[1])) < near_mm
        shared = common.sum() / peak.sum() > 0.25
        hit = near and bool(shared or np.median(covered) > 0.75 or (covered > 0.9).sum() >= 3)
        hits, misses = hits + hit, misses + (not hit)
    return (hits / (hits + misses) if hits else 0.0), hits, misses
