"""Scores and exact gradients of one network on one image, in one window's memory.

Through sliding windows the fused output is Y = sum_w b_w Y_w, where b_w(v) is window w's part in
the fusion at voxel v. By the chain rule::

    dS/dx = sum_w (dY_w/dx)^T [ b_w * dS/dY ]

So dS/dY is found first, and then each window is run and pulled back alone. For a score that is
linear in Y (logits over a frozen region) dS/dY is known beforehand; otherwise one forward sweep
without gradient gives Y. Windows in which b_w * dS/dY is zero everywhere are skipped. A network
that takes the whole volume is the case of a single window.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from monai.data import MetaTensor

from ..errors import ModelError, SaliencyExplainError
from ..model import Model, WindowPlan, plan_windows
from ..model.layers import evaluating
from ..target import FrozenTarget, Target
from .progress import Progress
from .record import recorded

__all__ = ["Engine", "LayerPass"]


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

    window: tuple[slice, ...]
    features: torch.Tensor
    gradient: torch.Tensor


class Engine:
    """One network, one image on the network's grid, one target.

    Use it in a ``with`` block: inside, the network is in eval mode with frozen weights; afterwards
    it is as it was.

    Parameters
    ----------
    model : Model
    image : MetaTensor, shape (C, I, J, K)
        On the network's grid.
    target : Target
        Frozen on the first forward pass of the unperturbed image.
    progress : Progress

    Attributes
    ----------
    x : Tensor, shape (1, C, I, J, K)
        The image, on the model's device.
    """

    def __init__(
        self, model: Model, image: MetaTensor, target: Target, progress: Progress | None = None
    ) -> None:
        self.model = model
        self.image = image
        self.target = target
        self.progress = progress or Progress()
        self.x: torch.Tensor = image.as_tensor()[None].to(model.device)
        self.plan: WindowPlan = plan_windows(model.inferer, tuple(image.shape[1:]), model.device)
        self._frozen: FrozenTarget | None = None
        self._value: float | None = None
        self._weights: torch.Tensor | None = None

    @contextmanager
    def running(self) -> Iterator[Engine]:
        """Eval mode and frozen weights, put back as they were at the end."""
        network = self.model.network
        trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
        with evaluating(network), ExitStack() as stack:
            for parameter in trainable:
                stack.callback(parameter.requires_grad_)
                parameter.requires_grad_(False)
            yield self

    @property
    def frozen(self) -> FrozenTarget:
        """The target with its region fixed; costs one forward sweep if nothing has been run yet."""
        if self._frozen is None:
            self._freeze(self.output(self.x))
        assert self._frozen is not None  # noqa: S101 - _freeze has just set it
        return self._frozen

    @property
    def start_value(self) -> float:
        """S of the unperturbed image."""
        frozen = self.frozen
        if self._value is None:
            self._value = float(frozen.value(self.output(self.x)))
        return self._value

    def output(self, x: torch.Tensor) -> torch.Tensor:
        """Fused output of an image, without gradient.

        Parameters
        ----------
        x : Tensor, shape (1, C, I, J, K)

        Returns
        -------
        Tensor, shape (1, O, I, J, K) or (1, O)
        """
        padded = self.plan.pad(x)
        fused: torch.Tensor | None = None
        with torch.no_grad():
            for window in self.plan.windows:
                part = self.run_window(padded, window)
                if part.ndim == 2 or (
                    len(self.plan.windows) == 1 and not any(map(any, self.plan.padding))
                ):
                    return part
                if fused is None:
                    fused = part.new_zeros((1, part.shape[1], *self.plan.weight_sum.shape))
                fused[(slice(None), slice(None), *window)] += part * self.plan.importance
            assert fused is not None  # noqa: S101 - a plan has at least one window
            fused /= self.plan.weight_sum
        return fused[(slice(None), slice(None), *self.plan.inside)]

    def value(self, x: torch.Tensor) -> float:
        """S of an image, shape (1, C, I, J, K)."""
        frozen = self.frozen
        return float(frozen.value(self.output(x)))

    def gradient(self, x: torch.Tensor | None = None) -> torch.Tensor:
        """dS/dx.

        Parameters
        ----------
        x : Tensor, shape (1, C, I, J, K), optional
            Where; the unperturbed image when left out.

        Returns
        -------
        Tensor, shape (C, I, J, K)
        """
        at_start = x is None
        x = self.x if x is None else x
        if len(self.plan.windows) == 1:
            return self._gradient_in_one(x, at_start)
        dense = self._dense_cotangent(x, at_start)
        padded = self.plan.pad(x)
        total = torch.zeros_like(padded)
        for window in self.plan.windows:
            cotangent = self._window_cotangent(window, dense)
            if cotangent is None:
                self.progress.step("window outside the region skipped")
                continue
            total[(slice(None), slice(None), *window)] += self._gradient_in_window(
                padded[(slice(None), slice(None), *window)], cotangent
            )
        return self._unpadded(total)

    def layer_passes(self, names: tuple[str, ...]) -> Iterator[dict[str, LayerPass]]:
        """Features and gradients at layers, window by window; a pass back ends at the first layer.

        Yields
        ------
        dict of str to LayerPass
            One a window that reaches the region.
        """
        single = len(self.plan.windows) == 1
        dense = None if single else self._dense_cotangent(self.x, at_start=True)
        padded = self.plan.pad(self.x)
        for window in self.plan.windows:
            cotangent = None if single else self._window_cotangent(window, dense)
            if cotangent is None and not single:
                self.progress.step("window outside the region skipped")
                continue
            yield self._layer_pass(names, padded, window, cotangent)

    def layer_features(
        self, name: str, *, stop: bool
    ) -> Iterator[tuple[tuple[slice, ...], torch.Tensor]]:
        """Features (C, i, j, k) of a layer in every window, without gradient.

        Parameters
        ----------
        name : str
            Qualified module name.
        stop : bool
            Do not compute what comes behind the layer (right for a layer that runs once a pass).
        """
        padded = self.plan.pad(self.x)
        for window in self.plan.windows:
            with (
                recorded(self.model.network, (name,), differentiable=False, stop=stop) as record,
                torch.no_grad(),
            ):
                self.run_window(padded, window)
            self.progress.step("features recorded", passes=1 if stop else 0)
            yield window, record.last(name)[0]

    def _layer_pass(
        self,
        names: tuple[str, ...],
        padded: torch.Tensor,
        window: tuple[slice, ...],
        cotangent: torch.Tensor | None,
    ) -> dict[str, LayerPass]:
        """One window, or the only one where there is no cotangent yet; its graph ends here."""
        with (
            recorded(self.model.network, names, differentiable=True) as record,
            torch.enable_grad(),
        ):
            part = self.run_window(padded, window)
        if cotangent is None:
            cotangent = self._single_cotangent(part, at_start=True)
        features = [record.last(name) for name in names]
        gradients = self._pull(part, features, cotangent)
        return {
            name: LayerPass(window, feature.detach()[0], gradient[0])
            for name, feature, gradient in zip(names, features, gradients, strict=True)
        }

    def _gradient_in_window(self, part: torch.Tensor, cotangent: torch.Tensor) -> torch.Tensor:
        """Pull a cotangent back through one window; its graph ends here, before the next window."""
        leaf = part.detach().clone().requires_grad_()
        with torch.enable_grad():
            return self._pull(self.run_window(leaf, None), [leaf], cotangent)[0]

    def _gradient_in_one(self, x: torch.Tensor, at_start: bool) -> torch.Tensor:
        """One forward and one backward pass; at the start the region is frozen on the way."""
        leaf = self.plan.pad(x).detach().clone().requires_grad_()
        with torch.enable_grad():
            part = self.run_window(leaf, None)
            cotangent = self._single_cotangent(part, at_start)
            (gradient,) = self._pull(part, [leaf], cotangent)
        return self._unpadded(gradient)

    def _single_cotangent(self, part: torch.Tensor, at_start: bool) -> torch.Tensor:
        """dS/d(output of the only window), padding included; at the start it freezes the target."""
        inside = (slice(None), slice(None), *self.plan.inside) if part.ndim == 5 else (slice(None),)
        cropped = part.detach()[inside]
        if at_start and self._frozen is None:
            self._freeze(cropped)
        if self.frozen.linear:
            weight = torch.ones((), device=part.device) if self._weights is None else self._weights
            return self.frozen.linear_cotangent(part.shape, weight)
        cotangent = torch.zeros_like(part)
        cotangent[inside] = self.frozen.cotangent(cropped)
        return cotangent

    def _freeze(self, output: torch.Tensor) -> None:
        self._frozen = self.target.freeze(output, self.model, self.image)
        self._value = float(self._frozen.value(output))
        weights = self._frozen.weights()
        if weights is not None:
            padded = torch.zeros(self.plan.weight_sum.shape, device=weights.device)
            padded[self.plan.inside] = weights
            self._weights = padded

    def _dense_cotangent(self, x: torch.Tensor, at_start: bool) -> torch.Tensor | None:
        """dS/dY on the padded volume, shape (1, O, I, J, K); None where S is linear.

        The sweep that freezes the target at the start is used for both.
        """
        output = None
        if at_start and self._frozen is None:
            output = self.output(x)
            self._freeze(output)
        if self.frozen.linear:
            return None
        cotangent = self.frozen.cotangent(self.output(x) if output is None else output)
        padded = cotangent.new_zeros((1, cotangent.shape[1], *self.plan.weight_sum.shape))
        padded[(slice(None), slice(None), *self.plan.inside)] = cotangent
        return padded

    def _window_cotangent(
        self, window: tuple[slice, ...], dense: torch.Tensor | None
    ) -> torch.Tensor | None:
        """b_w * dS/dY in a window, or None where it is zero everywhere."""
        if dense is not None:
            part = dense[(slice(None), slice(None), *window)] * self.plan.fraction(window)
            return part if part.any() else None
        assert self._weights is not None  # noqa: S101 - outputs without voxels have a single window
        weights = self._weights[window]
        if not weights.any():
            return None
        shape = (1, len(self.frozen.names), *weights.shape)
        return self.frozen.linear_cotangent(shape, weights * self.plan.fraction(window))

    def _pull(
        self, part: torch.Tensor, leaves: list[torch.Tensor], cotangent: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        if not part.requires_grad:
            raise ModelError(
                "The network's output does not depend on its input in a way that can be "
                "differentiated "
                "(does it run under no_grad, or round its output?). Use a perturbation method."
            )
        found = torch.autograd.grad(part, leaves, grad_outputs=cotangent, allow_unused=True)
        self.progress.step("backward pass")
        return tuple(
            torch.zeros_like(leaf) if gradient is None else gradient
            for leaf, gradient in zip(leaves, found, strict=True)
        )

    def run_window(self, volume: torch.Tensor, window: tuple[slice, ...] | None) -> torch.Tensor:
        """The network on one window (or on `volume` as it is), its answer checked."""
        self.progress.check()
        part = volume if window is None else volume[(slice(None), slice(None), *window)]
        with network_errors(part):
            # A copy: a network that normalises in place must not change the scan.
            result = self.model.network(part.clone())
        result = main_output(result)
        self._check_output(result, part)
        if not torch.is_grad_enabled():
            self.progress.step("forward pass")
        return result

    def _check_output(self, result: torch.Tensor, part: torch.Tensor) -> None:
        if result.ndim == 5 and result.shape[2:] != part.shape[2:]:
            raise ModelError(
                f"The network gives {_size(result)} voxels for an input of {_size(part)}. "
                "Only outputs on the input's grid can be explained: wrap the network so that it "
                "resizes its output."
            )
        if result.ndim == 2 and len(self.plan.windows) > 1:
            raise ModelError(
                "The network gives one answer a volume, which sliding windows cannot fuse. Load it "
                "with inferer=None."
            )

    def _unpadded(self, gradient: torch.Tensor) -> torch.Tensor:
        """Pull a gradient back through the padding, whose voxels may be copies of the volume's."""
        if not any(map(any, self.plan.padding)):
            return gradient[0]
        with torch.enable_grad():
            leaf = torch.zeros_like(self.x, requires_grad=True)
            padded = self.plan.pad(leaf)
        return torch.autograd.grad(padded, leaf, gradient)[0][0]


@contextmanager
def network_errors(part: torch.Tensor) -> Iterator[None]:
    """Turn what a network raises on an input into one sentence."""
    try:
        yield
    except SaliencyExplainError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"The memory is not enough for a window of {_size(part)} voxels. Use a smaller window, "
            "or the CPU."
        ) from error
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise ModelError(
            f"The network failed on an input of shape {tuple(part.shape)} (B, C, I, J, K): "
            f"{_reason(error)}. Check the number of channels and the window size that it was "
            "trained with."
        ) from error


def _reason(error: Exception) -> str:
    """The line that says what went wrong; TorchScript puts it last, behind its program."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1 if "TorchScript" in lines[0] else 0].rstrip(".")


def main_output(result: Any) -> torch.Tensor:
    """The main output: deep supervision and dictionaries put it first."""
    while not isinstance(result, torch.Tensor):
        if isinstance(result, dict) and result:
            result = next(iter(result.values()))
        elif isinstance(result, list | tuple) and result:
            result = result[0]
        else:
            raise ModelError(
                f"The network returns {type(result).__name__}; a tensor (B, O, ...) was expected."
            )
    return result.as_subclass(torch.Tensor) if type(result) is not torch.Tensor else result


def _size(tensor: torch.Tensor) -> str:
    return " x ".join(str(size) for size in tensor.shape[2:])
