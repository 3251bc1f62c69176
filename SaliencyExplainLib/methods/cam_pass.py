"""Class activation maps of several kinds at several layers, from the same passes.

With features A_k and gradients g_k = dS/dA_k at hand, each map costs next to nothing; so all maps
that are asked for are made while one backward pass goes through the layers. Through sliding windows
those with one weight a channel need the weights of all windows before the first map: one more sweep
without gradient for all of them together, and another if any needs the sums of the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from ..errors import MethodError
from .base import Attribution
from .layer import LayerMethod, attribution, weighted, window_start

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from ..engine import Engine, LayerPass
    from ..model import LayerInfo

__all__ = ["OnePassCam", "attribute_together"]

Box = tuple[slice, ...]


@dataclass(frozen=True)
class OnePassCam(LayerMethod):
    """A map from a layer's features and gradients: one weight a channel, or one a position.

    A kind defines :meth:`weights` or :meth:`product`.
    """

    #: Whether the weights need the sum of each channel's features over all windows.
    needs_sums: ClassVar[bool] = False

    def attribute(self, engine: Engine) -> Attribution:
        """Map of shape (1, I, J, K); with one window also (1, i, j, k) on the layer's grid."""
        info, warnings = self.find(engine)
        made = attribute_together(engine, [(self, info)])[0]
        return replace(made, warnings=(*warnings, *made.warnings))

    @classmethod
    def by_channel(cls) -> bool:
        """Whether there is one weight a channel."""
        return cls.weights is not OnePassCam.weights

    def product(self, found: LayerPass) -> torch.Tensor:
        """Map of a window, shape (1, i, j, k); the gradient has the window's part in it."""
        raise MethodError("A CAM says how features and gradients become a map, or weights.")

    def weights(self, found: LayerPass, part: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
        """Sum over a window's positions of each channel's weight, shape (K,).

        ``part`` (1, i, j, k) is what these positions count, the gradient includes it, ``sums`` (K,)
        is the sum of the features over all positions.
        """
        raise MethodError("A weighted CAM says how gradients become weights.")

    def scaled(self, weights: torch.Tensor, sums: torch.Tensor, positions: float) -> torch.Tensor:
        """Sums over all windows as weights."""
        return weights / positions

    def notes(self, weights: torch.Tensor, largest: float, info: LayerInfo) -> tuple[str, ...]:
        """What the reader must know of these weights."""
        return ()


@dataclass
class _Wanted:
    """One map on the way: a kind at a layer."""

    cam: OnePassCam
    info: LayerInfo
    sums: torch.Tensor
    weights: torch.Tensor
    parts: Mapping[tuple[int, ...], torch.Tensor] = field(default_factory=dict)
    largest: float = 0.0
    total: torch.Tensor | None = None
    layer_map: torch.Tensor | None = None
    notes: tuple[str, ...] = ()

    def add(self, engine: Engine, window: Box, layer_map: torch.Tensor) -> None:
        """Put a window's map into the volume's."""
        share = self.cam.by_channel()
        self.total = self.cam.added(engine, self.info, self.total, window, layer_map, share=share)
        if len(engine.plan.windows) == 1:
            self.layer_map = layer_map

    def finished(self, engine: Engine) -> Attribution:
        """The map on the volume."""
        inside = self.cam.inside(engine, self.total)
        return attribution(engine, self.info, inside, self.layer_map, self.notes)


def attribute_together(
    engine: Engine, cams: Sequence[tuple[OnePassCam, LayerInfo]]
) -> list[Attribution]:
    """Make the maps of several kinds at several layers.

    Parameters
    ----------
    engine : Engine
        Running.
    cams : sequence of (OnePassCam, LayerInfo)
        Kind and layer of each map.

    Returns
    -------
    list of Attribution
        In the order of `cams`.
    """
    wanted = []
    for cam, info in cams:
        zeros = engine.x.new_zeros(info.shape[0])
        wanted.append(_Wanted(cam, info, sums=zeros, weights=zeros))
    by_layer: dict[str, list[_Wanted]] = {}
    for one in wanted:
        by_layer.setdefault(one.info.name, []).append(one)
    if len(engine.plan.windows) == 1:
        _in_one_window(engine, by_layer)
    else:
        _over_windows(engine, by_layer)
    return [one.finished(engine) for one in wanted]


def _in_one_window(engine: Engine, by_layer: Mapping[str, list[_Wanted]]) -> None:
    from ..engine import sweep_layers

    def consume(name: str, found: LayerPass) -> None:
        for one in by_layer[name]:
            if one.cam.by_channel():
                ones = found.features.new_ones((1, *found.features.shape[1:]))
                sums = found.sums if one.cam.needs_sums else one.sums
                raw = one.cam.weights(found, ones, sums)
                weights = one.cam.scaled(raw, sums, float(ones.sum()))
                one.notes = one.cam.notes(weights, found.largest, one.info)
                one.add(engine, found.window, weighted(found.features, weights))
            else:
                one.add(engine, found.window, one.cam.product(found))

    sweep_layers(engine, list(by_layer), consume)


def _over_windows(engine: Engine, by_layer: Mapping[str, list[_Wanted]]) -> None:
    from ..engine import sweep_features, sweep_layers

    for several in by_layer.values():
        parts = LayerMethod.parts(engine, several[0].info)
        for one in several:
            one.parts = parts

    def add_sums(name: str, window: Box, features: torch.Tensor) -> None:
        several = by_layer[name]
        found = (features * several[0].parts[window_start(window)]).sum((1, 2, 3))
        for one in several:
            one.sums = one.sums + found

    def consume(name: str, found: LayerPass) -> None:
        for one in by_layer[name]:
            if one.cam.by_channel():
                part = one.parts[window_start(found.window)]
                one.weights = one.weights + one.cam.weights(found, part, one.sums)
                one.largest = max(one.largest, found.largest)
            else:
                one.add(engine, found.window, one.cam.product(found))

    def add_map(name: str, window: Box, features: torch.Tensor) -> None:
        for one in by_layer[name]:
            if one.cam.by_channel():
                one.add(engine, window, weighted(features, one.weights))

    def layers_of(chosen: list[_Wanted]) -> tuple[list[str], bool]:
        names = list(dict.fromkeys(one.info.name for one in chosen))
        return names, all(one.info.calls == 1 for one in chosen)

    everything = [one for several in by_layer.values() for one in several]
    summed = [one for one in everything if one.cam.needs_sums]
    if summed:
        names, stop = layers_of(summed)
        sweep_features(engine, names, add_sums, stop=stop)
    sweep_layers(engine, list(by_layer), consume)
    weighted_ones = [one for one in everything if one.cam.by_channel()]
    if not weighted_ones:
        return
    for one in weighted_ones:
        positions = sum(float(part.sum()) for part in one.parts.values())
        one.weights = one.cam.scaled(one.weights, one.sums, positions)
        one.notes = one.cam.notes(one.weights, one.largest, one.info)
    names, stop = layers_of(weighted_ones)
    sweep_features(engine, names, add_map, stop=stop)
