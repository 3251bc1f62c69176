"""One trained network with everything needed to run it on a scan and to read its answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from monai.data import MetaTensor

from ..errors import ImageError, ModelError
from .inferer import WholeVolume, Windows, plan_windows
from .layers import LayerInfo, trace_layers, with_values
from .preprocess import Preprocess

__all__ = ["ACTIVATIONS", "TASKS", "Model"]

TASKS = ("segmentation", "classification", "regression")
ACTIVATIONS = ("softmax", "sigmoid", "none")


@dataclass(frozen=True)
class Model:
    """A network, what it does, and how a scan gets into it.

    Attributes
    ----------
    network : torch.nn.Module
        Takes (B, C, I, J, K), gives (B, O, I, J, K) or (B, O): scores before softmax or sigmoid.
    task : {"segmentation", "classification", "regression"}
    labels : tuple of str
        Names of the outputs; empty when unknown.
    channels : tuple of str
        Names of the input channels; empty when unknown.
    preprocess : Preprocess
        From the scan's grid to the network's, and back.
    inferer : WholeVolume or Windows
        In one piece, or by sliding windows.
    activation : {"softmax", "sigmoid", "none"}
        What turns scores into probabilities.
    provenance : dict
        Format, file name, SHA-256, parameters, versions.
    """

    network: torch.nn.Module
    task: str
    labels: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    preprocess: Preprocess = field(default_factory=Preprocess)
    inferer: WholeVolume | Windows = field(default_factory=WholeVolume)
    activation: str = "softmax"
    provenance: dict[str, Any] = field(default_factory=dict)
    _traced: dict[Any, list[LayerInfo]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ModelError(
                f"The task must be one of {', '.join(TASKS)}; {self.task!r} was given. Say what "
                "the network does."
            )
        if self.activation not in ACTIVATIONS:
            raise ModelError(
                f"The activation must be one of {', '.join(ACTIVATIONS)}; {self.activation!r} was "
                "given."
            )

    @property
    def device(self) -> torch.device:
        """Where the weights lie; the CPU for a network without any."""
        tensor = next(self.network.parameters(), next(self.network.buffers(), None))
        return torch.device("cpu") if tensor is None else tensor.device

    @property
    def scripted(self) -> bool:
        """Whether the network is TorchScript: gradients work, looking into layers does not."""
        return isinstance(self.network, torch.jit.ScriptModule)

    @property
    def input_channels(self) -> int | None:
        """Number of input channels; None where neither names nor the file tell it."""
        told: int | None = self.provenance.get("input_channels")
        return len(self.channels) or told

    def output_names(self, count: int) -> tuple[str, ...]:
        """Names of `count` outputs.

        Raises
        ------
        ModelError
            If the model's labels are of another number.
        """
        if not self.labels:
            return tuple(f"output {index}" for index in range(count))
        if len(self.labels) != count:
            raise ModelError(
                f"The network gives {count} outputs but {len(self.labels)} labels were declared "
                f"({', '.join(self.labels)}). Correct the labels."
            )
        return self.labels

    def prepare(self, image: MetaTensor) -> MetaTensor:
        """Return the image as the network sees it, shape (C, I', J', K').

        Raises
        ------
        ImageError
            If the number of channels is wrong or the preprocessing fails.
        """
        given, wanted = image.shape[0], len(self.channels)
        if wanted and given != wanted:
            missing = wanted - given
            advice = (
                f"Choose {missing} more volume{'s' if missing > 1 else ''} under Inputs."
                if missing > 0
                else f"Leave out {-missing}."
            )
            raise ImageError(
                f"The model expects {wanted} input channel{'s' if wanted > 1 else ''} "
                f"({', '.join(self.channels)}); "
                f"{given} volume{'s were' if given > 1 else ' was'} given. {advice}"
            )
        return self.preprocess.apply(image)

    def layers(
        self, image: MetaTensor | None = None, *, shape: tuple[int, ...] | None = None
    ) -> list[LayerInfo]:
        """List the layers in the order in which they run.

        Parameters
        ----------
        image : MetaTensor, optional
            A scan. The network is run on its middle window, so that layers that are dead or
            constant on it are known.
        shape : (C, I, J, K), optional
            Shape of the network's input instead.

        Returns
        -------
        list of LayerInfo
            Each with its name, kind, shape, true grid, and what speaks against its maps.

        Raises
        ------
        ModelError
            If neither is given for a network without a window size, or the network fails on that
            shape.
        """
        if self.scripted:
            raise ModelError(
                "This is a TorchScript network: its layers cannot be looked into. "
                "For layer methods load the original network with its state dict, or as "
                "torch.export saves it (.pt2)."
            )
        if shape is None and image is not None:
            volume = self._middle_window(self.prepare(image))
            return with_values(self.network, self._layers(tuple(volume.shape[1:])), volume)
        return list(self._layers(self._input_shape() if shape is None else tuple(shape)))

    def _layers(self, shape: tuple[int, ...]) -> list[LayerInfo]:
        """Trace the network once a shape, as long as its modules stay the same."""
        key = (shape, self.device, tuple(map(id, self.network.modules())))
        if key not in self._traced:
            self._traced[key] = trace_layers(self.network, shape, self.device)
        return self._traced[key]

    def _middle_window(self, prepared: MetaTensor) -> torch.Tensor:
        """The network's input around the middle of a prepared image, (1, C, i, j, k)."""
        plan = plan_windows(self.inferer, tuple(prepared.shape[1:]), self.device)
        padded = plan.pad(prepared.as_tensor()[None].to(self.device))
        window = plan.windows[len(plan.windows) // 2]
        return padded[(slice(None), slice(None), *window)]

    def _input_shape(self) -> tuple[int, ...]:
        if isinstance(self.inferer, Windows) and all(size > 0 for size in self.inferer.roi_size):
            return (self.input_channels or 1, *self.inferer.roi_size)
        raise ModelError(
            "The network's input size is not known. Give an image, or shape=(C, I, J, K)."
        )

    def describe(self) -> str:
        """Say in a few lines what this model is."""
        count = sum(parameter.numel() for parameter in self.network.parameters())
        kind, channels = self.provenance.get("class"), self.input_channels
        unnamed = "not named" if channels is None else f"{channels}, not named"
        spacing = self.preprocess.spacing_mm
        lines = [
            f"{kind or type(self.network).__name__}, {self.task}, {count:,} parameters, "
            f"{self.activation}",
            f"inputs: {', '.join(self.channels) or unnamed}",
            "outputs: "
            f"{', '.join(f'{i} {name}' for i, name in enumerate(self.labels)) or 'not named'}",
            f"preprocessing: {self.preprocess.describe()}",
            f"inference: {self.inferer.describe()}",
        ]
        if spacing is not None:
            lines.append(f"voxels: {' x '.join(f'{size:g}' for size in spacing)} mm")
        told = self.provenance
        if "input" in told:
            lines.append(f"takes: {told['input']} (B, C, I, J, K); layers: {told['layers']}")
        if "fold" in told:
            rest = f"; not done: {told['not_done']}" if told["not_done"] else ""
            lines.append(f"trained: {told['configuration']}, {told['fold']}{rest}")
        if "format" in told:
            lines.append(f"file: {told.get('name', '')} ({told['format']})")
        if told.get("sha256"):
            lines.append(f"SHA-256: {told['sha256']}")
        return "\n".join(lines)
