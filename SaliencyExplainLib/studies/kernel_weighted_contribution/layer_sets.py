"""The layer sets that are compared: encoder, decoder, both, with transposed convolutions or not.

Mullan and Sonka 2023 (doi:10.1117/1.JMI.10.5.054001) compare five sets of convolutions of nnU-Net;
the abstract names encoder + decoder and the decoder without its transposed convolutions, their
public code has a switch for these and a list of each side. Bottleneck and 1x1x1 heads are left out
there, and here.

The sets are found from what the network does, not from names. Convolutions in the order in which
they run; the bottleneck is those with the coarsest grid; the encoder is before it, the decoder
behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import StudyError

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from ...model import LayerInfo, Model

__all__ = ["READINGS", "LayerSet", "layer_sets"]

#: Where the features of a convolution are read.
READINGS = ("activation", "convolution")


@dataclass(frozen=True)
class LayerSet:
    """Layers whose maps become one.

    Attributes
    ----------
    name : str
        For tables and files.
    title : str
        For people.
    layers : tuple of str
        Qualified module names, in the order in which they run.
    """

    name: str
    title: str
    layers: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.layers:
            raise StudyError(f"The layer set {self.name!r} has no layer. Give it at least one.")


def layer_sets(
    model: Model, image: MetaTensor, *, reading: str = "activation"
) -> tuple[LayerSet, ...]:
    """Sort the convolutions of a segmentation network of encoder-decoder form into layer sets.

    Parameters
    ----------
    model : Model
        Of any make: what strides and comes back up is seen while it runs without data.
    image : MetaTensor, shape (C, I, J, K)
        A scan that it takes; only its shape is used.
    reading : {"activation", "convolution"}
        Features at the end of each convolution's block (what normalises and activates it, where
        these are modules), or of the convolution itself, as the public code of KWC reads them. At a
        convolution that feeds an instance normalisation the weights of Grad-CAM are rounding noise.

    Returns
    -------
    tuple of LayerSet
        "encoder", "decoder", "decoder_without_transposed", "both", "both_without_transposed". A set
        that is empty or has the same layers as one before it is left out: a decoder that is made of
        transposed convolutions alone, or has none.

    Raises
    ------
    StudyError
        If the reading is unknown, or the network has no coarser grid with convolutions before and
        behind it.
    """
    if reading not in READINGS:
        raise StudyError(
            f"Features are read at an {READINGS[0]} or at a {READINGS[1]}; {reading!r} was given."
        )
    window = model.inferer.window_shape(tuple(model.prepare(image).shape[1:]))
    leaves = [one for one in model.layers(shape=(image.shape[0], *window)) if one.leaf]
    found = [one for one in _convolutions(model, leaves) if not one.final]
    sizes = [_coarseness(one) for one in found]
    deepest = [n for n, size in enumerate(sizes) if size == max(sizes)]
    if not found or max(sizes) == min(sizes) or not deepest[0] or deepest[-1] == len(found) - 1:
        raise StudyError(
            "The network has no encoder and decoder: no convolutions run both before and behind "
            "those of the coarsest grid. Name the layers yourself (sets=[LayerSet(...)])."
        )
    encoder, decoder = found[: deepest[0]], found[deepest[-1] + 1 :]
    transposed = {one.name for one in decoder if _is_transposed(model, one)}
    plain = [one for one in decoder if one.name not in transposed]
    own = {one.name: one.name for one in found}
    read_at = own if reading == "convolution" else _ends_of_blocks(leaves, own)
    wanted = (
        ("encoder", "encoder", encoder),
        ("decoder", "decoder", decoder),
        ("decoder_without_transposed", "decoder without transposed", plain),
        ("both", "encoder + decoder", encoder + decoder),
        ("both_without_transposed", "encoder + decoder without transposed", encoder + plain),
    )
    made: list[LayerSet] = []
    for name, title, layers in wanted:
        names = tuple(dict.fromkeys(read_at[one.name] for one in layers))
        if names and names not in [one.layers for one in made]:
            made.append(LayerSet(name, title, names))
    return tuple(made)


def _convolutions(model: Model, leaves: Sequence[LayerInfo]) -> list[LayerInfo]:
    """Convolutions that look around themselves; those of 1x1x1 head, gate or shortcut do not."""
    import torch

    kinds = (torch.nn.Conv3d, torch.nn.ConvTranspose3d)
    modules = dict(model.network.named_modules())
    return [
        one
        for one in leaves
        if isinstance(modules[one.name], kinds) and max(modules[one.name].kernel_size) > 1
    ]


def _is_transposed(model: Model, layer: LayerInfo) -> bool:
    import torch

    return isinstance(model.network.get_submodule(layer.name), torch.nn.ConvTranspose3d)


def _coarseness(layer: LayerInfo) -> float:
    """Voxels of the image in one of the layer."""
    one, two, three = (round(abs(step), 3) for step in layer.grid.spacing)
    return one * two * three


def _ends_of_blocks(leaves: Sequence[LayerInfo], own: Mapping[str, str]) -> dict[str, str]:
    """Name of the last module of each convolution's block: norm, dropout, activation behind it."""
    ends = dict(own)
    mine: LayerInfo | None = None
    for one in leaves:
        if one.name in own:
            mine = one
        elif mine is not None and one.shape == mine.shape and not one.final and _follows(one):
            # A dropout at rest is no new place; an activation in place is.
            if one.activation or not one.passes_on:
                ends[mine.name] = one.name
        else:
            mine = None
    return ends


def _follows(layer: LayerInfo) -> bool:
    """Whether a module belongs to the block of the convolution before it."""
    return layer.activation or layer.passes_on or "Norm" in layer.kind
