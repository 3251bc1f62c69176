"""Class activation maps from a layer's features A_k and gradients g_k = dS/dA_k.

With Z positions u::

    Grad-CAM      ReLU( sum_k w_k A_k ),  w_k = 1/Z sum_u g_k(u)
    Grad-CAM++    the same with w_k = 1/Z sum_u alpha_k(u) ReLU(g_k(u)),
                  alpha = g^2 / (2 g^2 + g^3 sum_u A_k(u))
    XGrad-CAM     the same with w_k = sum_u g_k(u) A_k(u) / sum_u A_k(u)
    HiResCAM      sum_k g_k A_k
    LayerCAM      ReLU( sum_k ReLU(g_k) A_k )
    Seg-XRes-CAM  ReLU( sum_k G_k A_k ),  G_k = g_k pooled over blocks of h^3 positions

Selvaraju 2017, arXiv:1610.02391; Chattopadhay 2018, arXiv:1710.11063; Fu 2020, arXiv:2008.02312;
Draelos and Carin 2020, arXiv:2011.08891; Jiang 2021, doi:10.1109/TIP.2021.3089943; Hasany 2023,
doi:10.1109/CVPRW59228.2023.00395.

Differs from the papers: the scalar is the target's (the region frozen), not a class score; the map
stands on the layer's true grid; Grad-CAM++ has the mean over positions, as Grad-CAM has, and no
factor exp(score), which overflows for summed logits.

Through sliding windows the positions of all windows count as one set with one w_k; a position that
several windows cover counts in each with its part b_w in the fusion (read at the layer's voxels),
so Z = sum_w sum_u b_w(u), and what stands for g in alpha is g / b_w. Each window's map is made and
interpolated by itself. Those of the methods with one w_k a channel are averaged with b_w; the
others are summed, because b_w is in their g.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .base import Attribution, method, param
from .cam_pass import OnePassCam
from .guided import GuidedBackprop
from .layer import LayerMethod

if TYPE_CHECKING:
    import torch

    from ..engine import Engine, LayerPass
    from ..model import LayerInfo

__all__ = [
    "GradCAM",
    "GradCAMPlusPlus",
    "GuidedGradCAM",
    "HiResCAM",
    "LayerCAM",
    "SegXResCAM",
    "XGradCAM",
]

#: Channel means of the gradient below this part of its maximum are rounding (measured 3e-9 against
#: 3e-2).
_ROUNDING = 1e-5


@dataclass(frozen=True)
class _WeightedCam(OnePassCam):
    """One weight a channel: w_k."""

    def window_passes(self, *, linear: bool) -> int:
        """Freeze, gradient, features, and the features' sums where they are needed."""
        return 3 + self.needs_sums


@method(
    "grad_cam",
    unit="relative",
    title="Grad-CAM",
    family="layer",
    summary="Where are the features active that, averaged over the volume, raise the score?",
    paper="Selvaraju et al. 2017, arXiv:1610.02391, eq. 1-2",
    signed=False,
    needs_layer=True,
    weaknesses="one weight a channel for the whole volume: two regions of a class look alike; "
    "coarse; meaningless at a convolution that feeds an instance norm",
)
@dataclass(frozen=True)
class GradCAM(_WeightedCam):
    """ReLU of the features weighted by their mean gradient."""

    def weights(self, found: LayerPass, part: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
        """Sum of the gradient."""
        return found.gradient.sum((1, 2, 3))

    def notes(self, weights: torch.Tensor, largest: float, info: LayerInfo) -> tuple[str, ...]:
        """Say when the weights are rounding noise."""
        size = float(weights.abs().max())
        if largest == 0 or size > _ROUNDING * largest:
            return ()
        return (
            f"The mean gradient of every channel at {info.name!r} is zero to rounding "
            f"({size / largest:.0e} of its maximum), as it must be for a layer that feeds an "
            "instance normalisation: this map is rounding noise. Use the activation behind it, "
            "or HiResCAM.",
        )


@method(
    "grad_cam_plus_plus",
    unit="relative",
    title="Grad-CAM++",
    family="layer",
    summary="Where are the features active that raise the score at some places, however small?",
    paper="Chattopadhay et al. 2018, arXiv:1710.11063, eq. 19 without exp(score)",
    signed=False,
    needs_layer=True,
    weaknesses="ignores negative evidence; coarse",
)
@dataclass(frozen=True)
class GradCAMPlusPlus(_WeightedCam):
    """ReLU of the features weighted by their positive gradients, small ones raised."""

    needs_sums: ClassVar[bool] = True

    def weights(self, found: LayerPass, part: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
        """Sum of alpha * ReLU(g)."""
        import torch

        # For g > 0 alpha is 1 / (2 + g sum A); elsewhere ReLU(g) is zero.
        positive = found.gradient.clamp(min=0) / part.clamp(min=1e-12)
        below = torch.addcmul(
            torch.full_like(positive, 2.0), positive, sums[:, None, None, None].expand_as(positive)
        )
        ratio = torch.where(below != 0, positive / below, torch.zeros_like(below))
        return (part * ratio).sum((1, 2, 3))


@method(
    "xgrad_cam",
    unit="relative",
    title="XGrad-CAM",
    family="layer",
    summary="Where are the features active whose gradient, weighted by activity, raises the score?",
    paper="Fu et al. 2020, arXiv:2008.02312, eq. 8",
    signed=False,
    needs_layer=True,
    weaknesses="weights explode where a channel's features sum to nearly zero: use a layer behind "
    "a ReLU; coarse",
)
@dataclass(frozen=True)
class XGradCAM(_WeightedCam):
    """ReLU of the features weighted by their activity-weighted mean gradient."""

    needs_sums: ClassVar[bool] = True

    def weights(self, found: LayerPass, part: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
        """Sum of g * A."""
        return found.product.sum((1, 2, 3))

    def scaled(self, weights: torch.Tensor, sums: torch.Tensor, positions: float) -> torch.Tensor:
        """Divide by the sum of the features; a channel that is zero everywhere gets none."""
        import torch

        return torch.where(sums == 0, torch.zeros_like(weights), weights / sums)


@method(
    "hires_cam",
    title="HiResCAM",
    family="layer",
    summary="How much does each place of the layer add to the score, if what follows were linear?",
    paper="Draelos and Carin 2020, arXiv:2011.08891",
    signed=True,
    needs_layer=True,
    weaknesses="faithful only if a linear head follows the layer; noisier than Grad-CAM elsewhere",
)
@dataclass(frozen=True)
class HiResCAM(OnePassCam):
    """Features times their gradient, summed over channels; signed."""

    fine: ClassVar[bool] = True

    def product(self, found: LayerPass) -> torch.Tensor:
        """Sum over channels of g * A."""
        return found.product.sum(0, keepdim=True)


@method(
    "layer_cam",
    title="LayerCAM",
    family="layer",
    summary="Which places of the layer are active and raise the score there?",
    paper="Jiang et al. 2021, doi:10.1109/TIP.2021.3089943",
    signed=False,
    needs_layer=True,
    weaknesses="ignores negative evidence",
)
@dataclass(frozen=True)
class LayerCAM(OnePassCam):
    """ReLU of the features weighted by their positive gradient at each place."""

    def product(self, found: LayerPass) -> torch.Tensor:
        """ReLU of the sum over channels of ReLU(g) * A."""
        return (found.gradient.clamp(min=0) * found.features).sum(0, keepdim=True).clamp(min=0)


@method(
    "seg_xres_cam",
    title="Seg-XRes-CAM",
    family="layer",
    summary="Where are features active that raise the score in their neighbourhood?",
    paper="Hasany et al. 2023, doi:10.1109/CVPRW59228.2023.00395",
    signed=False,
    needs_layer=True,
    weaknesses="the size of the blocks decides how far evidence is smeared",
)
@dataclass(frozen=True)
class SegXResCAM(OnePassCam):
    """ReLU of the features weighted by their gradient pooled over blocks."""

    block: int = param(2, low=1, high=64, unit="positions", help="edge of the blocks, h")
    pooling: str = param("mean", choices=("mean", "max"), help="how a block's gradients are joined")

    def product(self, found: LayerPass) -> torch.Tensor:
        """ReLU of the sum over channels of the pooled gradient times A."""
        from torch.nn import functional

        shape = found.gradient.shape[1:]
        size = [min(self.block, side) for side in shape]
        whole = found.gradient[None]
        if self.pooling == "mean":
            pooled = functional.avg_pool3d(whole, size, ceil_mode=True, count_include_pad=False)
        else:
            pooled = functional.max_pool3d(whole, size, ceil_mode=True)
        spread = pooled[0]
        for axis, (side, edge) in enumerate(zip(shape, size, strict=True), start=1):
            spread = spread.repeat_interleave(edge, axis).narrow(axis, 0, side)
        return (spread * found.features).sum(0, keepdim=True).clamp(min=0)


@method(
    "guided_grad_cam",
    unit="relative",
    title="Guided Grad-CAM",
    family="layer",
    summary="Which fine structures excite the network where Grad-CAM sees evidence?",
    paper="Selvaraju et al. 2017, arXiv:1610.02391, section 3.2",
    signed=True,
    needs_layer=True,
    weaknesses="inherits guided backpropagation's edges, whatever the network has learned",
    combine="max_abs",
)
@dataclass(frozen=True)
class GuidedGradCAM(LayerMethod):
    """Guided backpropagation times Grad-CAM."""

    def passes(self) -> int:
        """One pass each."""
        return 2

    def window_passes(self, *, linear: bool) -> int:
        """Freeze, two gradients, features; a score that is not linear needs the output again."""
        return 4

    def attribute(self, engine: Engine) -> Attribution:
        """Map of shape (C, I, J, K)."""
        guided = GuidedBackprop().attribute(engine)
        coarse = GradCAM(layer=self.layer).attribute(engine)
        return Attribution(
            guided.maps * coarse.maps,
            layers=coarse.layers,
            warnings=(*guided.warnings, *coarse.warnings),
        )
