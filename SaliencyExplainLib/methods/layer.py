"""What all methods that look at a layer share: finding it, and bringing its map onto the volume.

Through sliding windows a layer has one grid a window. A position that several windows cover counts
with their parts b_w in the fusion, so that all positions of all windows together are one set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..errors import MethodError
from .base import Attribution, Method, methods, param

if TYPE_CHECKING:
    import torch

    from ..engine import Engine
    from ..model import Grid, LayerInfo

__all__ = [
    "LAYER_HELP",
    "LayerMethod",
    "attribution",
    "default_layer",
    "default_layers",
    "layer_notes",
    "replay_notes",
    "weighted",
    "window_start",
]

LAYER_HELP = "name of the layer (model.layers()); empty: chosen by itself"

Box = tuple[slice, ...]


def default_layer(layers: Sequence[LayerInfo], task: str, *, fine: bool = False) -> LayerInfo:
    """Choose the layer to look at when none is named.

    Classification and regression: the last features that still have more than one voxel.
    Segmentation: the last ones that are coarser than the output (meaning over place), or else, and
    for methods that want them fine, the last before the output itself. Layers that feed an instance
    normalisation are left out, activations preferred.

    Parameters
    ----------
    layers : sequence of LayerInfo
    task : str
    fine : bool
        Whether the method is right only where little follows the layer.

    Raises
    ------
    MethodError
        If no layer gives features with voxels.
    """
    usable = [layer for layer in layers if layer.leaf and not layer.problem and layer.shape[0] > 1]
    if task == "segmentation":
        inner = [layer for layer in usable if not layer.final] or usable
        coarse = [layer for layer in inner if max(layer.grid.spacing) > 1.5]
        usable = inner if fine else coarse or inner
    chosen = [layer for layer in usable if layer.activation] or usable
    if not chosen:
        raise MethodError(
            "The network has no layer whose features have voxels. Use a gradient method."
        )
    return chosen[-1]


def default_layers(layers: Sequence[LayerInfo], task: str) -> dict[str, str]:
    """Name of the layer that each method with one chooses by itself, by the method's name.

    A method that has to run the network to choose is not among them.

    Parameters
    ----------
    layers : sequence of LayerInfo
        From ``model.layers(...)``.
    task : str
        Of the model.
    """
    found = {}
    for name, one in methods().items():
        if issubclass(one, LayerMethod) and one.chooses_by_structure:
            with suppress(MethodError):
                found[name] = default_layer(layers, task, fine=one.fine).name
    return found


@dataclass(frozen=True)
class LayerMethod(Method):
    """A method with a layer."""

    #: Whether the method is right only where little follows the layer.
    fine: ClassVar[bool] = False
    #: Whether the list of layers is enough to choose one.
    chooses_by_structure: ClassVar[bool] = True
    #: Whether maps of several layers are weighted by themselves, so that they can be added.
    layers_have_weights: ClassVar[bool] = False

    layer: str = param("", help=LAYER_HELP)

    def find(self, engine: Engine, name: str | None = None) -> tuple[LayerInfo, tuple[str, ...]]:
        """Return the layer, and what the reader of its map must know.

        Raises
        ------
        LayerNotFoundError
            If there is no such layer; the nearest names are given.
        MethodError
            If it gives no features with voxels.
        """
        from ..engine import find_layer

        name = self.layer if name is None else name
        window = engine.model.inferer.window_shape(tuple(engine.image.shape[1:]))
        layers = engine.model.layers(shape=(engine.image.shape[0], *window))
        if not name:
            info = default_layer(layers, engine.model.task, fine=self.fine)
        else:
            find_layer(engine.model.network, name)
            known = {layer.name: layer for layer in layers}
            if name not in known:
                raise MethodError(
                    f"The layer {name!r} does not run on this image, or does not give features "
                    "with voxels (C, i, j, k). Choose a convolution, an activation or a block: "
                    "model.layers()."
                )
            info = known[name]
        return info, layer_notes(info)

    @staticmethod
    def parts(engine: Engine, info: LayerInfo) -> Mapping[tuple[int, ...], torch.Tensor]:
        """Part b_w of each window at the layer's positions, shape (1, i, j, k), by its start."""
        from ..engine import at_layer_voxels

        return {
            window_start(window): at_layer_voxels(
                engine.plan.fraction(window)[None], info.grid, info.shape[1:]
            )
            for window in engine.plan.windows
        }

    @staticmethod
    def on_window(engine: Engine, info: LayerInfo, layer_map: torch.Tensor) -> torch.Tensor:
        """A layer's map (C, i, j, k) at every voxel of a window."""
        from ..engine import on_network_grid

        shape = tuple(side.stop - side.start for side in engine.plan.windows[0])
        return on_network_grid(layer_map, info.grid, shape)

    @classmethod
    def fused(
        cls,
        engine: Engine,
        info: LayerInfo,
        maps: Iterable[tuple[Box, torch.Tensor]],
        *,
        share: bool = True,
    ) -> torch.Tensor:
        """Maps of all windows, each (1, i, j, k), as one of the volume, shape (1, I, J, K).

        Parameters
        ----------
        share : bool
            Average where windows overlap; False adds, for maps that have the windows' parts in
            them.
        """
        total: torch.Tensor | None = None
        for window, one in maps:
            total = cls.added(engine, info, total, window, one, share=share)
        return cls.inside(engine, total)

    @classmethod
    def added(
        cls,
        engine: Engine,
        info: LayerInfo,
        total: torch.Tensor | None,
        window: Box,
        layer_map: torch.Tensor,
        *,
        share: bool,
    ) -> torch.Tensor:
        """Add a window's map (1, i, j, k) to a running sum on the padded volume, None at first."""
        whole = cls.on_window(engine, info, layer_map)
        if len(engine.plan.windows) == 1:
            return whole
        if total is None:
            total = engine.x.new_zeros((1, *engine.plan.weight_sum.shape))
        total[(slice(None), *window)] += whole * engine.plan.fraction(window) if share else whole
        return total

    @staticmethod
    def inside(engine: Engine, total: torch.Tensor | None) -> torch.Tensor:
        """What a running sum has on the volume, (1, I, J, K)."""
        if total is None:
            return engine.x.new_zeros((1, *engine.plan.shape))
        return total[(slice(None), *engine.plan.inside)]

    def finished(
        self,
        engine: Engine,
        info: LayerInfo,
        maps: Sequence[tuple[Box, torch.Tensor]],
        warnings: tuple[str, ...] = (),
        *,
        share: bool = True,
    ) -> Attribution:
        """Maps of all windows as the method's result; one window also gives the layer's own map."""
        single = len(engine.plan.windows) == 1
        return attribution(
            engine,
            info,
            self.fused(engine, info, maps, share=share),
            maps[0][1] if single else None,
            warnings,
        )

    def from_weights(
        self,
        engine: Engine,
        info: LayerInfo,
        weights: torch.Tensor,
        warnings: tuple[str, ...] = (),
        features: Iterable[tuple[Box, torch.Tensor]] | None = None,
    ) -> Attribution:
        """ReLU( sum_k w_k A_k ) for weights of shape (K,); features are recorded if not given."""
        if features is None:
            features = engine.layer_features(info.name, stop=info.calls == 1)
        maps = [(window, weighted(found, weights)) for window, found in features]
        return self.finished(engine, info, maps, warnings)


def layer_notes(info: LayerInfo) -> tuple[str, ...]:
    """What the reader of a map of this layer must know."""
    notes = []
    if not info.grid.exact:
        notes.append(
            f"The place of the voxels of layer {info.name!r} could not be followed through the "
            "network; the map was spread evenly over the volume."
        )
    if info.calls > 1:
        notes.append(
            f"The layer {info.name!r} runs {info.calls} times in one pass; its last call was used."
        )
    return tuple(notes)


def attribution(
    engine: Engine,
    info: LayerInfo,
    maps: torch.Tensor,
    layer_map: torch.Tensor | None,
    warnings: tuple[str, ...] = (),
) -> Attribution:
    """What a method gives back for one layer; the layer's own map where there is one window."""
    return Attribution(
        maps,
        layer_map=layer_map,
        layer_grid=None if layer_map is None else _on_volume(info, engine),
        layers=(info.name,),
        warnings=warnings,
    )


def weighted(features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """ReLU( sum_k w_k A_k ), shape (1, i, j, k)."""
    import torch

    found: torch.Tensor = torch.tensordot(weights[None], features, dims=1)
    return found.clamp(min=0)


def window_start(window: Box) -> tuple[int, ...]:
    """First voxel of a window: its name in a dictionary."""
    return tuple(side.start for side in window)


def _on_volume(info: LayerInfo, engine: Engine) -> Grid:
    """The layer's grid in voxels of the volume: the padding in front is taken off."""
    from ..model import Grid

    before = [pair[0] for pair in engine.plan.padding]
    origin = tuple(start - pad for start, pad in zip(info.grid.origin, before, strict=True))
    return Grid(origin, info.grid.spacing, info.grid.exact)  # type: ignore[arg-type]


def replay_notes(exact: bool | None) -> tuple[str, ...]:
    """Say where a network had to be run whole for each change of a layer."""
    if exact is not False:
        return ()
    return (
        "This network could not be replayed from the layer (its code overwrites what it needs "
        "later), "
        "so each change ran all of it: the map is right, it only took longer.",
    )
