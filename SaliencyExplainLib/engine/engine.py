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

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from monai.data import MetaTensor

from ..errors import ModelError, is_out_of_memory
from ..model import Model, WindowPlan, plan_windows
from ..model.layers import evaluating
from ..target import FrozenTarget, Target
from .batch import Batch, graph_bytes
from .calls import main_output, network_errors, sizes
from .layer_sweep import LayerPass, layer_features, layer_passes
from .progress import Progress
from .scoring import Scoring

__all__ = ["Engine", "WindowRule", "main_output", "network_errors"]

Box = tuple[slice, ...]
WindowRule = Callable[[Box], AbstractContextManager[Any]]


class Engine:
    """One network, one image on the network's grid, one target.

    Use it in a ``with engine.running()`` block: inside, the network is in eval mode with frozen
    weights; afterwards it is as it was.

    Parameters
    ----------
    model : Model
    image : MetaTensor, shape (C, I, J, K)
        On the network's grid.
    target : Target
        Frozen on the first forward pass of the unperturbed image.
    progress : Progress
    batch_size : int, optional
        Images or windows that go through the network together; None: what the memory allows.

    Attributes
    ----------
    x : Tensor, shape (1, C, I, J, K)
        The image, on the model's device.
    fast : bool
        Whether the network computes in bfloat16; see :mod:`.precision`.
    batch : Batch
    """

    def __init__(
        self,
        model: Model,
        image: MetaTensor,
        target: Target,
        progress: Progress | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.model = model
        self.image = image
        self.target = target
        self.progress = progress or Progress()
        self.x: torch.Tensor = image.as_tensor()[None].to(model.device)
        self.plan: WindowPlan = plan_windows(model.inferer, tuple(image.shape[1:]), model.device)
        self.scoring = Scoring(target, model, image, self.plan)
        self.fast = False
        self.batch = Batch(model.device, batch_size)

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
        return self.scoring.frozen or self.scoring.freeze(self.output(self.x))

    @property
    def start_value(self) -> float:
        """S of the unperturbed image."""
        frozen = self.frozen
        if self.scoring.value is None:
            self.scoring.value = float(frozen.value(self.output(self.x)))
        return self.scoring.value

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

    def gradient(
        self, x: torch.Tensor | None = None, *, rule: WindowRule | None = None
    ) -> torch.Tensor:
        """dS/dx.

        Parameters
        ----------
        x : Tensor, shape (1, C, I, J, K), optional
            Where; the unperturbed image when left out.
        rule : callable, optional
            Takes a window (slices on the padded volume) and gives the context in which it is run
            and pulled back: other backward rules than the derivative.

        Returns
        -------
        Tensor, shape (C, I, J, K)
        """
        if x is None:
            return self._gradients([self.x], rule)[0]
        self.frozen  # noqa: B018 - the region is fixed on the unperturbed image
        return self._gradients([x], rule)[0]

    def gradients(self, images: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """dS/dx at each of several images, computed in batches that fit the memory.

        Parameters
        ----------
        images : iterable of Tensor, each (1, C, I, J, K)
            Taken one batch at a time.

        Yields
        ------
        Tensor, shape (C, I, J, K)
            In the order of the images.
        """
        self.frozen  # noqa: B018 - the region is fixed on the unperturbed image
        for group in self.batch.groups(images):
            yield from self._gradients(group, None)

    def layer_passes(self, names: tuple[str, ...]) -> Iterator[dict[str, LayerPass]]:
        """See :func:`.layer_sweep.layer_passes`."""
        return layer_passes(self, names)

    def layer_features(self, name: str, *, stop: bool) -> Iterator[tuple[Box, torch.Tensor]]:
        """See :func:`.layer_sweep.layer_features`."""
        return layer_features(self, name, stop=stop)

    def run_window(self, volume: torch.Tensor, window: Box | None) -> torch.Tensor:
        """The network on one window (or on `volume` as it is), its answer checked.

        Parameters
        ----------
        volume : Tensor, shape (B, C, I, J, K)

        Returns
        -------
        Tensor, shape (B, O, i, j, k) or (B, O), float32
        """
        self.progress.check()
        part = volume if window is None else volume[(slice(None), slice(None), *window)]
        with self.calling(part):
            # A copy: a network that normalises in place must not change the scan.
            result = self.model.network(part.clone())
        result = main_output(result).float()
        self._check_output(result, part)
        if not torch.is_grad_enabled():
            self.progress.step("forward pass", passes=len(part))
        return result

    @contextmanager
    def calling(self, part: torch.Tensor) -> Iterator[None]:
        """Around each call of the network or of a part of it: its precision and its errors."""
        half = torch.autocast(self.x.device.type, torch.bfloat16) if self.fast else nullcontext()
        with network_errors(part), half:
            yield

    def pull(
        self, part: torch.Tensor, leaves: list[torch.Tensor], cotangent: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """(d part / d leaves)^T cotangent; zeros where a leaf plays no part.

        Raises
        ------
        ModelError
            If the output cannot be differentiated, or the memory is not enough.
        """
        if not part.requires_grad:
            raise ModelError(
                "The network's output does not depend on its input in a way that can be "
                "differentiated "
                "(does it run under no_grad, or round its output?). Use a perturbation method."
            )
        with network_errors(part):
            found = torch.autograd.grad(part, leaves, grad_outputs=cotangent, allow_unused=True)
        self.progress.step("backward pass", passes=len(part))
        return tuple(
            torch.zeros_like(leaf) if gradient is None else gradient
            for leaf, gradient in zip(leaves, found, strict=True)
        )

    def dense_cotangent(self, x: torch.Tensor) -> torch.Tensor | None:
        """dS/dY on the padded volume at an image; None where S is linear in the fused output.

        The sweep that freezes the target serves for both.
        """
        if self.scoring.frozen is None:
            return self.scoring.dense(self.output(self.x))
        return None if self.scoring.frozen.linear else self.scoring.dense(self.output(x))

    def heaviest_window(self) -> tuple[Box, torch.Tensor, torch.Tensor]:
        """The window that weighs most in the score.

        Returns
        -------
        tuple of slice
            On the padded volume.
        Tensor, shape (1, C, i, j, k)
            What it holds.
        Tensor, shape (1, O, i, j, k) or (1, O)
            dS/d(its output).
        """
        padded = self.plan.pad(self.x)
        if len(self.plan.windows) == 1:
            with torch.no_grad():
                output = self.run_window(padded, None)
            return self.plan.windows[0], padded, self.scoring.of_whole(output)
        dense = self.dense_cotangent(self.x)
        found = [(window, self.scoring.of_window(window, dense)) for window in self.plan.windows]
        sizes = [0.0 if one is None else float(one.abs().sum()) for _, one in found]
        window, cotangent = found[max(range(len(sizes)), key=sizes.__getitem__)]
        assert cotangent is not None  # noqa: S101 - a region is reached by at least one window
        return window, padded[(slice(None), slice(None), *window)], cotangent

    def _gradients(self, images: list[torch.Tensor], rule: WindowRule | None) -> list[torch.Tensor]:
        """dS/dx at each image, (C, I, J, K); images and windows are batched together."""
        padded = [self.plan.pad(x) for x in images]
        totals = [torch.zeros_like(one) for one in padded]
        whole = len(self.plan.windows) == 1
        dense = [None if whole else self.dense_cotangent(x) for x in images]

        def work(group: list[tuple[int, Box, torch.Tensor | None]]) -> None:
            parts = [padded[i][(slice(None), slice(None), *window)] for i, window, _ in group]
            given = [cotangent for *_, cotangent in group if cotangent is not None]
            with (rule or _plain)(group[0][1]):
                found = self._pull_windows(parts, given)
            for (index, window, _), gradient in zip(group, found, strict=True):
                totals[index][0][(slice(None), *window)] += gradient

        waiting = self._waiting(dense, whole=whole)
        for group in self.batch.groups(waiting) if rule is None else ([one] for one in waiting):
            self.batch.run(group, work)
        return [self._unpadded(total) for total in totals]

    def _waiting(
        self, dense: list[torch.Tensor | None], *, whole: bool
    ) -> Iterator[tuple[int, Box, torch.Tensor | None]]:
        """Image, window and dS/d(output) of each pass; those of a whole volume come with it."""
        for window in self.plan.windows:
            for index, one in enumerate(dense):
                cotangent = None if whole else self.scoring.of_window(window, one)
                if cotangent is None and not whole:
                    self.progress.step("window outside the region skipped")
                else:
                    yield index, window, cotangent

    def _pull_windows(
        self, parts: list[torch.Tensor], cotangents: list[torch.Tensor]
    ) -> torch.Tensor:
        """Pull cotangents back through windows, (B, C, i, j, k); the graph ends here."""
        leaf = torch.cat(parts).detach().clone().requires_grad_()
        if len(parts) > 1 and not self.separate(leaf.detach()):
            self.batch.limit(1, full=False)
            alone = [
                self._pull_windows([part], cotangents[index : index + 1])
                for index, part in enumerate(parts)
            ]
            return torch.cat(alone)
        with torch.enable_grad():
            output = self.run_window(leaf, None)
            self.batch.learn(graph_bytes(output) // len(parts))
            cotangent = (
                torch.cat(cotangents) if cotangents else self.scoring.of_whole(output.detach())
            )
            return self.pull(output, [leaf], cotangent)[0]

    def separate(self, volume: torch.Tensor) -> bool:
        """Whether the network answers for each image of a batch as for the image alone.

        Found out once a network, on the first window of a volume (B, C, I, J, K) and a changed one.
        """
        return self.batch.separate(self.model.network, lambda: self._answers_separately(volume))

    def _answers_separately(self, volume: torch.Tensor) -> bool:
        shape = tuple(side.stop - side.start for side in self.plan.windows[0])
        part = volume[:1, :, : shape[0], : shape[1], : shape[2]]
        parts = torch.cat([part, 0.5 * part.flip(2) + 1])
        try:
            with torch.no_grad():
                alone = main_output(self.model.network(parts[:1].clone()))
                among = main_output(self.model.network(parts.clone()))[:1]
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            if is_out_of_memory(error):
                raise
            return False
        scale = float(alone.abs().max())
        return among.shape == alone.shape and float((among - alone).abs().max()) <= 1e-4 * scale

    def _check_output(self, result: torch.Tensor, part: torch.Tensor) -> None:
        if result.ndim == 5 and result.shape[2:] != part.shape[2:]:
            raise ModelError(
                f"The network gives {sizes(result)} voxels for an input of {sizes(part)}. "
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


def _plain(_window: tuple[slice, ...]) -> AbstractContextManager[Any]:
    """No other rule than the derivative."""
    return nullcontext()
