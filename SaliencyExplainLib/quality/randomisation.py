"""Sanity check: whether a map depends on what the network has learned.

Adebayo et al. 2018, arXiv:1810.03292: the layers are given new random weights, from the output to
the input (cascading: all so far; independent: one group at a time), and each map is compared with
that of the trained network. A map that hardly changes shows the image, not the network. What is
randomised is a COPY of the network (memory: its weights once more); the user's network is not
touched.

Four traps, measured on trained segmentation networks:

- Randomised weights predict another region, so the region of the trained network is frozen.
- Any map of a region falls with the distance from it, whatever the weights: over the whole volume
  the gradients of a trained and of a random network correlate with 0.99 (5 convolutions, 24^3
  voxels). So maps are compared inside the region, if it has 100 voxels.
- How much is left by place and image alone differs from image to image. So the plain gradient,
  which is the random network's own derivative, is measured beside the method, as a yardstick.
- Maps that are multiplied by the image keep its magnitudes under any weights: integrated gradients
  0.6 on the same network, where the signed values have -0.7. So slopes are compared by magnitude,
  other maps as they are: what is compared is what the map claims.

The verdict is in :mod:`.sanity_verdict`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MetricError
from ..methods import Method, make_method
from .maps import SLOPE
from .sanity_verdict import SanityCheck, Stage, mean_of, verdict_of, words_of
from .shares import Shares
from .similarity import MEASURES, available_measures, spearman

if TYPE_CHECKING:
    import torch
    from monai.data import MetaTensor
    from numpy.typing import NDArray

    from ..engine import Engine
    from ..model import Model
    from ..target import Target

__all__ = ["MODES", "sanity_check"]

MODES = ("cascading", "independent")
#: A smaller region has no order of voxels worth comparing.
_REGION_VOXELS = 100


def sanity_check(
    model: Model,
    image: MetaTensor,
    target: Target | None = None,
    method: str | Method = "gradient",
    mode: str = "cascading",
    *,
    groups: int = 6,
    draws: int = 3,
    seed: int = 0,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    **parameters: Any,
) -> SanityCheck:
    """Randomise a copy of the network and see whether the map notices.

    Costs (groups x draws + 1) runs of the method and as many gradients.

    Parameters
    ----------
    model, image, target, method, progress, cancelled, **parameters
        As for :func:`SaliencyExplainLib.explain`. The region is frozen on the trained network.
    mode : {"cascading", "independent"}
        All layers from the output up to here, or one group of layers at a time.
    groups : int
        Groups of neighbouring layers, 1 or more; a stage each.
    draws : int
        Random networks a stage; similarities are averaged.
    seed : int
        Of the weights.

    Returns
    -------
    SanityCheck

    Raises
    ------
    MetricError
        If the mode is unknown, the network has no weights or cannot be copied, or the trained
        network's own map is constant.
    """
    from ..engine import Engine
    from ..image import as_image
    from ..target import Target

    _check_arguments(mode, groups, draws)
    chosen = method if isinstance(method, Method) else make_method(method, parameters)
    chosen.check(model)
    started = time.perf_counter()
    shares = Shares(progress, cancelled)
    prepared = model.prepare(as_image(image))
    engine = Engine(model, prepared, target or Target(), shares.part(0, 0.01, "the region"))
    with engine.running():
        run = _Run(engine, chosen, shares, groups, draws, seed, mode)
        stages = run.stages()
        facts = engine.frozen.to_dict()
    measure = "spearman_absolute" if chosen.unit == SLOPE else "spearman"
    verdict, alike, gradient = verdict_of(stages, mode, measure)
    if progress is not None:
        progress(1.0, "done")
    return SanityCheck(
        method=chosen.name,
        title=chosen.title,
        mode=mode,
        verdict=verdict,
        sentence=words_of(chosen.title, verdict, alike, gradient, run.compared),
        alike=alike,
        gradient=gradient,
        stages=tuple(stages),
        compared=run.compared,
        target=facts,
        seconds=time.perf_counter() - started,
        details={
            "measure": measure,
            "seed": seed,
            "draws": draws,
            "groups": len(stages),
            "copy_mb": run.copy_mb,
        },
    )


class _Run:
    """Maps of the trained network and of its randomised copy."""

    def __init__(
        self,
        engine: Engine,
        method: Method,
        shares: Shares,
        groups: int,
        draws: int,
        seed: int,
        mode: str,
    ) -> None:
        self.engine, self.method, self.shares = engine, method, shares
        self.draws, self.seed, self.mode = draws, seed, mode
        from .random_weights import copied, layers_from_output, megabytes, randomise

        self.randomise = randomise
        self.network = copied(engine.model.network)
        self.copy_mb = megabytes(self.network)
        names = layers_from_output(engine, self.network)
        if not names:
            raise MetricError("The network has no weights, so there is nothing to randomise.")
        self.groups = [
            tuple(part.tolist())
            for part in np.array_split(np.array(names), min(groups, len(names)))
        ]
        self.count = len(names)
        self._step = 0
        self._steps = 1 + draws * len(self.groups)
        self.first, _ = self._map(method, None)
        self.first_gradient = self._gradient(None, self.first)
        self.mask, self.compared = self._compared()
        if np.ptp(self.first[self.mask]) == 0:
            raise MetricError(
                f"The map of {method.title} is constant there, so it cannot change. Choose another "
                "layer or target."
            )

    def stages(self) -> list[Stage]:
        """All stages, averaged over the draws."""
        runs = [list(self._draw(number)) for number in range(self.draws)]
        return [
            Stage(
                layers=same[0].layers,
                randomised=same[0].randomised,
                similarity={
                    name: mean_of([one.similarity[name] for one in same])
                    for name in same[0].similarity
                },
                gradient=mean_of([one.gradient for one in same]),
                score=float(np.mean([one.score for one in same])),
            )
            for same in zip(*runs, strict=True)
        ]

    def _draw(self, number: int) -> Iterator[Stage]:
        trained = self.engine.model.network.state_dict()
        self.network.load_state_dict(trained)
        done = 0
        for group in self.groups:
            if self.mode == "independent":
                self.network.load_state_dict(trained)
                done = 0
            self.randomise(
                self.network, group, self.seed + 1000 * number + self.groups.index(group)
            )
            done += len(group)
            self._step += 1
            found, score = self._map(self.method, self.network)
            gradient = self._gradient(self.network, found)
            yield Stage(
                layers=group,
                randomised=done / self.count,
                similarity=self._similarity(found),
                gradient=spearman(self.first_gradient, gradient, self.mask, absolute=True),
                score=score,
            )

    def _map(
        self, method: Method, network: torch.nn.Module | None
    ) -> tuple[NDArray[np.float64], float]:
        from .trial import map_of

        what = "trained network" if network is None else f"random network {self._step}"
        progress = self.shares.part(self._step / self._steps, 1 / self._steps, what)
        windows = len(self.engine.plan.windows)
        passes = method.window_passes(linear=self.engine.frozen.linear)
        if passes is not None:
            progress.expect(passes * windows)
        return map_of(self.engine, method, self.engine.x, progress, network=network)

    def _gradient(
        self, network: torch.nn.Module | None, same: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The yardstick: the map itself where the method is the gradient."""
        if self.method.name == "gradient":
            return same
        return self._map(make_method("gradient"), network)[0]

    def _similarity(self, found: NDArray[np.float64]) -> dict[str, float]:
        if not np.isfinite(found).all():
            found = np.zeros_like(found)
        told = {
            "spearman_absolute": spearman(self.first, found, self.mask, absolute=True),
            "spearman": spearman(self.first, found, self.mask),
            "everywhere": spearman(self.first, found, absolute=True),
        }
        if "ssim" in available_measures() and min(found.shape) >= 3:
            told["ssim"] = MEASURES["ssim"][0](self.first, found, self.mask)
        return told

    def _compared(self) -> tuple[NDArray[np.bool_], str]:
        mask = self.engine.frozen.mask
        if mask is not None:
            inside = mask.cpu().numpy()
            count = int(inside.sum())
            if _REGION_VOXELS <= count < inside.size:
                return inside, f"inside the region ({count} voxels)"
        return np.ones(self.first.shape, dtype=bool), "in the whole volume"


def _check_arguments(mode: str, groups: int, draws: int) -> None:
    if mode not in MODES:
        raise MetricError(f"The mode must be one of {', '.join(MODES)}; {mode!r} was given.")
    for name, value in (("groups", groups), ("draws", draws)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise MetricError(f"{name} must be a whole number of at least 1; {value!r} was given.")
