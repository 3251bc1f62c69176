"""Class activation maps from a layer's features A_k and gradients g_k = dS/dA_k.

With Z positions u::

    Grad-CAM    ReLU( sum_k w_k A_k ),  w_k = 1/Z sum_u g_k(u)
    Grad-CAM++  the same with w_k = sum_u alpha_k(u) ReLU(g_k(u)),
                alpha = g^2 / (2 g^2 + g^3 sum_u A_k(u))
    HiResCAM    sum_k g_k A_k
    LayerCAM    ReLU( sum_k ReLU(g_k) A_k )

Selvaraju 2017, arXiv:1610.02391; Chattopadhay 2018, arXiv:1710.11063; Draelos and Carin 2020,
arXiv:2011.08891; Jiang 2021, doi:10.1109/TIP.2021.3089943.

Differs from the papers: the scalar is the target's (the region frozen), not a class score; the map
stands on the layer's true grid; Grad-CAM++ has the mean over positions, as Grad-CAM has, and no
factor exp(score), which overflows for summed logits.

Through sliding windows the positions of all windows count as one set with one w_k; a position that
several windows cover counts in each with its part b_w in the fusion (read at the layer's voxels),
so Z = sum_w sum_u b_w(u), and what stands for g in alpha is g / b_w. Each window's map is made and
interpolated by itself. Those of Grad-CAM and Grad-CAM++ are averaged with b_w; those of HiResCAM
and LayerCAM are summed, because b_w is in their g.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import MethodError
from .base import Attribution, Method, method, param

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from ..engine import Engine, LayerPass
    from ..model import Grid, LayerInfo, Model

__all__ = ["GradCAM", "GradCAMPlusPlus", "HiResCAM", "LayerCAM", "default_layer"]

#: Channel means of the gradient below this part of its maximum are rounding (measured 3e-9 against
#: 3e-2).
_ROUNDING = 1e-5
_LAYER_HELP = "name of the layer (model.layers()); empty: chosen by itself"


def default_layer(layers: Sequence[LayerInfo], task: str) -> LayerInfo:
    """Choose the layer that a CAM looks at when none is named.

    Classification and regression: the last features that still have more than one voxel.
    Segmentation: the last ones that are coarser than the output (meaning over place), or else the
    last before the output itself. Layers that feed an instance normalisation are left out,
    activations preferred.

    Raises
    ------
    MethodError
        If no layer gives features with voxels.
    """
    usable = [
        layer
        for layer in layers
        if layer.leaf
        and not layer.feeds_instance_norm
        and layer.shape[0] > 1
        and max(layer.shape[1:]) > 1
    ]
    if task == "segmentation":
        inner = [layer for layer in usable if not layer.final] or usable
        usable = [layer for layer in inner if max(layer.grid.spacing) > 1.5] or inner
    chosen = [layer for layer in usable if layer.activation] or usable
    if not chosen:
        raise MethodError(
            "The network has no layer whose features have voxels. Use a gradient method."
        )
    return chosen[-1]


@dataclass(frozen=True)
class _Cam(Method):
    layer: str = param("", help=_LAYER_HELP)

    def attribute(self, engine: Engine) -> Attribution:
        """Map of shape (1, I, J, K); with one window also (1, i, j, k) on the layer's grid."""
        info, warnings = self._layer(engine)
        if len(engine.plan.windows) == 1:
            found = next(iter(engine.layer_passes((info.name,))))[info.name]
            layer_map, notes = self._single(found, info, engine)
            padded = self._upsampled(layer_map, info, engine)
            maps = padded[(slice(None), *engine.plan.inside)]
            grid = _moved(info, engine)
            return Attribution(maps, layer_map, grid, (info.name,), warnings=(*warnings, *notes))
        maps, notes = self._windowed(engine, info)
        inside = maps[(slice(None), *engine.plan.inside)]
        return Attribution(inside, layers=(info.name,), warnings=(*warnings, *notes))

    def _single(
        self, found: LayerPass, info: LayerInfo, engine: Engine
    ) -> tuple[torch.Tensor, tuple[str, ...]]:
        raise MethodError("A CAM says how one window becomes a map.")

    def _windowed(self, engine: Engine, info: LayerInfo) -> tuple[torch.Tensor, tuple[str, ...]]:
        raise MethodError("A CAM says how windows become a map.")

    def _layer(self, engine: Engine) -> tuple[LayerInfo, tuple[str, ...]]:
        from ..engine import find_layer

        window = engine.model.inferer.window_shape(tuple(engine.image.shape[1:]))
        layers = engine.model.layers(shape=(engine.image.shape[0], *window))
        if not self.layer:
            info = default_layer(layers, engine.model.task)
        else:
            find_layer(engine.model.network, self.layer)
            known = {layer.name: layer for layer in layers}
            if self.layer not in known:
                raise MethodError(
                    f"The layer {self.layer!r} does not give features with voxels (C, i, j, k). "
                    "Choose a convolution, an activation or a block: model.layers()."
                )
            info = known[self.layer]
        warnings = []
        if not info.grid.exact:
            warnings.append(
                f"The place of the voxels of layer {info.name!r} could not be followed through the "
                "network; "
                "the map was spread evenly over the volume."
            )
        if info.calls > 1:
            warnings.append(
                f"The layer {info.name!r} runs {info.calls} times in one pass; its last call was "
                "used."
            )
        return info, tuple(warnings)

    @staticmethod
    def _upsampled(layer_map: torch.Tensor, info: LayerInfo, engine: Engine) -> torch.Tensor:
        from ..engine import on_network_grid

        shape = tuple(size.stop - size.start for size in engine.plan.windows[0])
        return on_network_grid(layer_map, info.grid, shape)


class _WeightedCam(_Cam):
    """One weight a channel: w_k."""

    def window_passes(self, *, linear: bool) -> int:
        """One sweep more for the features, and one for their sums where they are needed."""
        return super().window_passes(linear=linear) + 1 + self._needs_sums

    def _single(
        self, found: LayerPass, info: LayerInfo, engine: Engine
    ) -> tuple[torch.Tensor, tuple[str, ...]]:
        ones = found.features.new_ones((1, *found.features.shape[1:]))
        sums = found.features.sum((1, 2, 3))
        weights = self._weights(found.gradient, ones, sums) / ones.sum()
        return _weighted(found.features, weights), self._notes(
            weights, found.gradient, info, engine.model
        )

    def _windowed(self, engine: Engine, info: LayerInfo) -> tuple[torch.Tensor, tuple[str, ...]]:
        import torch

        from ..engine import at_layer_voxels

        shape = info.shape[1:]
        parts = {
            _key(window): at_layer_voxels(engine.plan.fraction(window)[None], info.grid, shape)
            for window in engine.plan.windows
        }
        stop = info.calls == 1
        channels = engine.x.new_zeros(info.shape[0])
        sums = channels.clone()
        if self._needs_sums:
            for window, features in engine.layer_features(info.name, stop=stop):
                sums += (features * parts[_key(window)]).sum((1, 2, 3))
        largest = channels.clone()
        for passes in engine.layer_passes((info.name,)):
            found = passes[info.name]
            channels += self._weights(found.gradient, parts[_key(found.window)], sums)
            largest = torch.maximum(largest, found.gradient.abs().amax((1, 2, 3)))
        weights = channels / sum(part.sum() for part in parts.values())
        total = engine.x.new_zeros((1, *engine.plan.weight_sum.shape))
        for window, features in engine.layer_features(info.name, stop=stop):
            upsampled = self._upsampled(_weighted(features, weights), info, engine)
            total[(slice(None), *window)] += upsampled * engine.plan.fraction(window)
        return total, self._notes(weights, largest[:, None, None, None], info, engine.model)

    _needs_sums = False

    def _weights(
        self, gradient: torch.Tensor, part: torch.Tensor, sums: torch.Tensor
    ) -> torch.Tensor:
        """Sum over a window's positions of each channel's weight, shape (C,).

        ``part`` (1, i, j, k) is what these positions count, ``gradient`` (C, i, j, k) includes it,
        ``sums`` (C,) is the sum of the features over all positions.
        """
        raise MethodError("A weighted CAM says how gradients become weights.")

    def _notes(
        self, weights: torch.Tensor, gradient: torch.Tensor, info: LayerInfo, model: Model
    ) -> tuple[str, ...]:
        return ()


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

    def _weights(
        self, gradient: torch.Tensor, part: torch.Tensor, sums: torch.Tensor
    ) -> torch.Tensor:
        return gradient.sum((1, 2, 3))

    def _notes(
        self, weights: torch.Tensor, gradient: torch.Tensor, info: LayerInfo, model: Model
    ) -> tuple[str, ...]:
        largest = float(gradient.abs().max())
        if largest == 0 or float(weights.abs().max()) > _ROUNDING * largest:
            return ()
        return (
            f"The mean gradient of every channel at {info.name!r} is zero to rounding "
            f"({float(weights.abs().max()) / largest:.0e} of its maximum), as it must be for a "
            "layer that feeds an instance "
            "normalisation: this map is rounding noise. Use the activation behind it, or HiResCAM.",
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

    _needs_sums = True

    def _weights(
        self, gradient: torch.Tensor, part: torch.Tensor, sums: torch.Tensor
    ) -> torch.Tensor:
        import torch

        whole = gradient / part.clamp(min=1e-12)
        square = whole**2
        below = 2 * square + square * whole * sums[:, None, None, None]
        alpha = torch.where(below != 0, square / below, torch.zeros_like(below))
        return (part * alpha * whole.clamp(min=0)).sum((1, 2, 3))


class _ElementwiseCam(_Cam):
    """One weight a channel and position: the gradient itself."""

    def _single(
        self, found: LayerPass, info: LayerInfo, engine: Engine
    ) -> tuple[torch.Tensor, tuple[str, ...]]:
        return self._product(found), ()

    def _windowed(self, engine: Engine, info: LayerInfo) -> tuple[torch.Tensor, tuple[str, ...]]:
        total = engine.x.new_zeros((1, *engine.plan.weight_sum.shape))
        for passes in engine.layer_passes((info.name,)):
            found = passes[info.name]
            total[(slice(None), *found.window)] += self._upsampled(
                self._product(found), info, engine
            )
        return total, ()

    def _product(self, found: LayerPass) -> torch.Tensor:
        raise MethodError("An element-wise CAM says how features and gradients are multiplied.")


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
class HiResCAM(_ElementwiseCam):
    """Features times their gradient, summed over channels; signed."""

    def _product(self, found: LayerPass) -> torch.Tensor:
        return (found.gradient * found.features).sum(0, keepdim=True)


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
class LayerCAM(_ElementwiseCam):
    """ReLU of the features weighted by their positive gradient at each place."""

    def _product(self, found: LayerPass) -> torch.Tensor:
        return (found.gradient.clamp(min=0) * found.features).sum(0, keepdim=True).clamp(min=0)


def _weighted(features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (weights[:, None, None, None] * features).sum(0, keepdim=True).clamp(min=0)


def _moved(info: LayerInfo, engine: Engine) -> Grid:
    """The layer's grid in voxels of the volume: the padding in front is taken off."""
    from ..model import Grid

    before = [pair[0] for pair in engine.plan.padding]
    origin = tuple(start - pad for start, pad in zip(info.grid.origin, before, strict=True))
    return Grid(origin, info.grid.spacing, info.grid.exact)  # type: ignore[arg-type]


def _key(window: tuple[slice, ...]) -> tuple[int, ...]:
    return tuple(part.start for part in window)
