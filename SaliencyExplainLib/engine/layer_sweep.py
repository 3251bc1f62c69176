"""Features and gradients of layers, window by window.

One forward pass serves all layers; the backward pass ends at the first of them. Each layer's
gradient is handed over while the pass goes on and then dropped, so that all layers of a network
take the memory of one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from .record import Record, recorded

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["LayerPass", "layer_features", "layer_passes", "sweep_features", "sweep_layers"]

Box = tuple[slice, ...]


@dataclass(frozen=True)
class LayerPass:
    """What one window gave at one layer.

    Attributes
    ----------
    window : tuple of slice
        On the padded volume.
    features : Tensor, shape (C, i, j, k)
    gradient : Tensor, shape (C, i, j, k)
        dS/d(features) of the fused score: the window's part in the fusion is in it.
    """

    window: Box
    features: torch.Tensor
    gradient: torch.Tensor

    @cached_property
    def product(self) -> torch.Tensor:
        """Features times gradient, shape (C, i, j, k)."""
        return self.features * self.gradient

    @cached_property
    def largest(self) -> float:
        """Largest magnitude of the gradient."""
        return max(abs(float(one)) for one in torch.aminmax(self.gradient))

    @cached_property
    def sums(self) -> torch.Tensor:
        """Sum of the features over all positions, shape (C,)."""
        return self.features.sum((1, 2, 3))


def sweep_layers(
    engine: Engine, names: Sequence[str], consume: Callable[[str, LayerPass], None]
) -> None:
    """Run all windows that reach the region, handing each layer's features and gradient over.

    Parameters
    ----------
    engine : Engine
        Running.
    names : sequence of str
        Qualified module names.
    consume : callable
        Called once a layer and window, from the last layer to the first.
    """
    for window, part, cotangent in _reaching(engine):
        _sweep_window(engine, names, window, part, cotangent, consume)


def layer_passes(engine: Engine, names: Sequence[str]) -> Iterator[dict[str, LayerPass]]:
    """Features and gradients at layers, window by window.

    Yields
    ------
    dict of str to LayerPass
        One a window that reaches the region.
    """
    for window, part, cotangent in _reaching(engine):
        found: dict[str, LayerPass] = {}
        _sweep_window(engine, names, window, part, cotangent, found.__setitem__)
        yield found


def sweep_features(
    engine: Engine,
    names: Sequence[str],
    consume: Callable[[str, Box, torch.Tensor], None],
    *,
    stop: bool = False,
) -> None:
    """Hand the features (C, i, j, k) of layers over, without gradient, for every window.

    Parameters
    ----------
    engine : Engine
        Running.
    names : sequence of str
        Qualified module names.
    consume : callable
        Called once a layer and window.
    stop : bool
        Do not compute what comes behind the last of the layers (right where each runs once a pass).
    """
    for window, record in _records(engine, names, stop=stop):
        for name in names:
            consume(name, window, record.last(name)[0].float())


def layer_features(engine: Engine, name: str, *, stop: bool) -> Iterator[tuple[Box, torch.Tensor]]:
    """Features (C, i, j, k) of a layer in every window, without gradient.

    Parameters
    ----------
    engine : Engine
        Running.
    name : str
        Qualified module name.
    stop : bool
        Do not compute what comes behind the layer (right for a layer that runs once a pass).
    """
    for window, record in _records(engine, (name,), stop=stop):
        yield window, record.last(name)[0].float()


def _records(engine: Engine, names: Sequence[str], *, stop: bool) -> Iterator[tuple[Box, Record]]:
    """Run every window without gradient."""
    padded = engine.plan.pad(engine.x)
    for window in engine.plan.windows:
        with (
            recorded(engine.model.network, names, differentiable=False, stop=stop) as record,
            torch.no_grad(),
        ):
            engine.run_window(padded, window)
        engine.progress.step("features recorded", passes=1 if stop else 0)
        yield window, record


def _reaching(engine: Engine) -> Iterator[tuple[Box, torch.Tensor, torch.Tensor | None]]:
    """Windows that reach the region: place, content (1, C, i, j, k) and dS/d(output).

    A window that is the whole volume gets its dS/d(output) from the output itself: None.
    """
    padded = engine.plan.pad(engine.x)
    if len(engine.plan.windows) == 1:
        yield engine.plan.windows[0], padded, None
        return
    dense = engine.dense_cotangent(engine.x)
    for window in engine.plan.windows:
        cotangent = engine.scoring.of_window(window, dense)
        if cotangent is None:
            engine.progress.step("window outside the region skipped")
        else:
            yield window, padded[(slice(None), slice(None), *window)], cotangent


def _sweep_window(
    engine: Engine,
    names: Sequence[str],
    window: Box,
    part: torch.Tensor,
    cotangent: torch.Tensor | None,
    consume: Callable[[str, LayerPass], None],
) -> None:
    """One window; its graph ends here."""
    with (
        recorded(engine.model.network, names, differentiable=True) as record,
        torch.enable_grad(),
    ):
        output = engine.run_window(part, None)
    if cotangent is None:
        cotangent = engine.scoring.of_whole(output.detach())
    features = {name: record.last(name) for name in names}
    given: set[str] = set()

    def hand_over(name: str, gradient: torch.Tensor) -> None:
        given.add(name)
        feature = features[name].detach()[0].float()
        consume(name, LayerPass(window, feature, gradient.detach()[0].float()))

    # The graph begins at a leaf: a layer with none before it, or the first call of one that runs
    # again. All others are handed over while the pass goes through them.
    asked = [name for name in names if features[name].is_leaf or len(record.outputs[name]) > 1]
    hooks = [
        features[name].register_hook(lambda gradient, name=name: hand_over(name, gradient))
        for name in names
        if name not in asked
    ]
    try:
        found = engine.pull(output, [features[name] for name in asked], cotangent)
    finally:
        for hook in hooks:
            hook.remove()
    for name, gradient in zip(asked, found, strict=True):
        hand_over(name, gradient)
    for name in names:
        if name not in given:
            hand_over(name, torch.zeros_like(features[name]))
