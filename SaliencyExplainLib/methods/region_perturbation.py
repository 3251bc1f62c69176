"""Region ablation and KernelSHAP: what whole structures contribute.

The regions are segments of a label map (what lies outside all of them is one region more), or
supervoxels. With a set s of shown regions, the others replaced by the baseline, v(s) = S::

    ablation     phi_r = v(all) - v(all but r)
    KernelSHAP   phi = argmin sum_s pi(s) ( v(s) - v(none) - sum_{r in s} phi_r )^2
                 with sum_r phi_r = v(all) - v(none)
                 and pi(s) = (M - 1) / ( C(M, |s|) |s| (M - |s|) )

Lundberg and Lee 2017, arXiv:1705.07874, theorem 2. Differs from the paper: sizes |s| are drawn with
their total weight, each set together with its complement (less variance); one phi is eliminated so
that the sum holds exactly; with few regions all 2^M - 2 sets are used, and phi is the exact Shapley
value. The map paints phi_r / |r| over region r, so that it sums to the region's contribution.
A window is computed once for each set of shown regions inside it, and of it only what the hidden
regions reach and the score's region needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MethodError
from .base import Attribution, Method, method, param
from .baselines import BASELINES, make_baseline, resolve

if TYPE_CHECKING:
    import torch
    from monai.data import MetaTensor
    from numpy.typing import NDArray

    from ..engine import Engine, Perturber

    Box = tuple[slice, ...]

__all__ = ["KernelSHAP", "RegionAblation", "shapley_coalitions", "solve_shapley"]

_KINDS = ("supervoxels", "segments")
_SEGMENTS_HELP = "label map whose segments are the regions (for regions = segments)"


@dataclass(frozen=True)
class _Regional(Method):
    regions: str = param("supervoxels", choices=_KINDS, help="what is shown or hidden together")
    segments: MetaTensor | None = param(  # noqa: RUF009 - a field, as all of them
        None, kind="labelmap", help=_SEGMENTS_HELP
    )
    supervoxels: int = param(48, low=2, high=2000, help="number of supervoxels, about")
    baseline: str = param(
        "automatic", choices=BASELINES, help="what is shown in the place of a hidden region"
    )
    blur_mm: float = param(
        12.0, low=0.5, high=100.0, unit="mm", help="standard deviation of the blurred baseline"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.regions == "segments" and self.segments is None:
            raise MethodError(
                f"{self.title}: regions = segments needs segments=<label map>. "
                "Give it, or use supervoxels."
            )

    def passes(self) -> int | None:
        """Depends on the regions that are found."""
        return None

    def _labels(self, engine: Engine) -> torch.Tensor:
        """Region of each voxel, shape (I, J, K), numbered 0 to M - 1 without gaps."""
        import torch

        from ..image import resample_labels

        if self.regions == "segments":
            assert self.segments is not None  # noqa: S101 - checked in __post_init__
            found = resample_labels(self.segments, engine.image).as_tensor()[0].round().long()
        else:
            found = _supervoxels(engine, self.supervoxels)
        numbered: torch.Tensor = torch.unique(found, return_inverse=True)[1]
        if int(numbered.max()) == 0:
            raise MethodError(
                f"{self.title} needs at least two regions; the image has one. Check that the "
                "segments lie inside it."
            )
        return numbered.to(engine.x.device)


def _supervoxels(engine: Engine, count: int) -> torch.Tensor:
    """SLIC supervoxels (Achanta et al. 2012) of the image, from scikit-image, (I, J, K)."""
    import torch

    from ..image import spacing_mm

    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise MethodError(
            "Supervoxels need the package scikit-image (pip install scikit-image). Install it, or "
            "give segments."
        ) from error
    voxels = engine.x[0].cpu().numpy()
    low, high = voxels.min(), voxels.max()
    scaled = (voxels - low) / max(float(high - low), 1e-12)
    labels = slic(
        scaled,
        n_segments=count,
        compactness=1.0,
        spacing=spacing_mm(engine.image.affine).tolist(),
        channel_axis=0,
        start_label=0,
    )
    return torch.from_numpy(np.asarray(labels)).long()


class _Game:
    """The value v(s) of a set of shown regions."""

    def __init__(self, engine: Engine, labels: torch.Tensor, baseline: torch.Tensor) -> None:
        from ..engine import Perturber

        self.engine = engine
        self.labels = labels
        self.count = int(labels.max()) + 1
        self.baseline = baseline
        self.perturber: Perturber = Perturber(engine)
        self._inside: dict[tuple[int, ...], NDArray[np.int64]] = {}

    def __call__(self, shown: NDArray[np.bool_]) -> float:
        import torch

        visible = torch.from_numpy(shown).to(self.labels.device)[self.labels]
        return self.perturber.value(
            torch.where(visible, self.engine.x, self.baseline),
            alike=lambda window: shown[self._regions_in(window)].tobytes(),
        )

    def _regions_in(self, window: Box) -> NDArray[np.int64]:
        """Regions that a window (on the padded volume) holds voxels of."""
        corner = tuple(side.start for side in window)
        found = self._inside.get(corner)
        if found is None:
            starts = [before for before, _ in self.engine.plan.padding]
            inside = tuple(
                slice(max(side.start - start, 0), max(side.stop - start, 0))
                for side, start in zip(window, starts, strict=True)
            )
            found = self.labels[inside].unique().cpu().numpy()
            self._inside[corner] = found
        return found

    def painted(self, contributions: NDArray[np.float64]) -> torch.Tensor:
        """Map of shape (1, I, J, K): each region's contribution spread over its voxels."""
        import torch

        sizes = torch.bincount(self.labels.ravel(), minlength=self.count).cpu().double().numpy()
        densities = torch.from_numpy(contributions / sizes).float().to(self.labels.device)
        return densities[self.labels][None]


@method(
    "region_ablation",
    title="Region ablation",
    family="perturbation",
    summary="How much does the score fall when one structure is hidden?",
    paper="leave-one-region-out; Zeiler and Fergus 2013, arXiv:1311.2901, for boxes",
    signed=True,
    needs_gradient=False,
    weaknesses="misses evidence that two regions carry alike; a hidden region may look unnatural",
)
@dataclass(frozen=True)
class RegionAblation(_Regional):
    """Score drop when each region is replaced by the baseline, one at a time."""

    def attribute(self, engine: Engine) -> Attribution:
        """Map of shape (1, I, J, K); over a region it sums to the score drop."""
        choice = resolve(self.baseline, engine)
        game = _Game(engine, self._labels(engine), make_baseline(choice, engine, self.blur_mm))
        engine.progress.expect(game.count * len(engine.plan.windows))
        drops = np.zeros(game.count)
        for region in range(game.count):
            shown = np.ones(game.count, dtype=bool)
            shown[region] = False
            drops[region] = game.perturber.start_value - game(shown)
        details = {"regions_found": game.count, **game.perturber.cost()}
        return Attribution(game.painted(drops), used={"baseline": choice}, details=details)


@method(
    "kernel_shap",
    title="KernelSHAP",
    family="perturbation",
    summary="How is the score shared out fairly over the structures, whatever the others show?",
    paper="Lundberg and Lee 2017, arXiv:1705.07874, theorem 2",
    signed=True,
    needs_gradient=False,
    weaknesses="needs several samples a region; hidden regions may look unnatural to the network",
)
@dataclass(frozen=True)
class KernelSHAP(_Regional):
    """Shapley values of regions by weighted least squares over sampled sets."""

    samples: int = param(256, low=4, high=100000, help="sets of regions that are tried")
    seed: int = param(0, low=0, high=2**31 - 1, help="seed of the sets")

    def attribute(self, engine: Engine) -> Attribution:
        """Map of shape (1, I, J, K); over a region it sums to the region's Shapley value."""
        choice = resolve(self.baseline, engine)
        game = _Game(engine, self._labels(engine), make_baseline(choice, engine, self.blur_mm))
        sets, weights = shapley_coalitions(game.count, self.samples, self.seed)
        engine.progress.expect((len(sets) + 1) * len(engine.plan.windows))
        nothing = game(np.zeros(game.count, dtype=bool))
        values = np.array([game(shown) for shown in sets])
        phi = solve_shapley(sets, weights, values - nothing, game.perturber.start_value - nothing)
        details = {"sets": len(sets), "regions_found": game.count, **game.perturber.cost()}
        warnings: tuple[str, ...] = ()
        if len(sets) < 2 * game.count and len(sets) < 2**game.count - 2:
            warnings = (
                f"{len(sets)} sets for {game.count} regions are too few for stable values. Use at "
                f"least {4 * game.count}.",
            )
        return Attribution(
            game.painted(phi), warnings=warnings, used={"baseline": choice}, details=details
        )


def shapley_coalitions(
    count: int, samples: int, seed: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Sets of regions to try, shape (n, M), and their weights, shape (n,).

    All 2^M - 2 sets with the kernel's weights where they are not more than `samples`; else random
    sets and their complements, drawn as the kernel weighs them, with equal weights.
    """
    if 2**count - 2 <= samples:
        sets = [
            list(chosen) for size in range(1, count) for chosen in combinations(range(count), size)
        ]
        masks = np.zeros((len(sets), count), dtype=bool)
        for row, chosen in enumerate(sets):
            masks[row, chosen] = True
        sizes = masks.sum(1)
        return masks, np.array(
            [(count - 1) / (comb(count, int(s)) * s * (count - s)) for s in sizes]
        )
    generator = np.random.default_rng(seed)
    sizes = np.arange(1, count)
    chances = 1.0 / (sizes * (count - sizes))
    rows = []
    for size in generator.choice(sizes, size=max(1, samples // 2), p=chances / chances.sum()):
        shown = np.zeros(count, dtype=bool)
        shown[generator.choice(count, size=size, replace=False)] = True
        rows += [shown, ~shown]
    return np.array(rows), np.ones(len(rows))


def solve_shapley(
    sets: NDArray[np.bool_], weights: NDArray[np.float64], gains: NDArray[np.float64], total: float
) -> NDArray[np.float64]:
    """Weighted least squares with the sum of phi fixed to `total`; the last phi is eliminated.

    Parameters
    ----------
    sets : array of bool, shape (n, M)
    weights : array, shape (n,)
    gains : array, shape (n,)
        v(s) - v(none).
    total : float
        v(all) - v(none).

    Returns
    -------
    array, shape (M,)
    """
    design = sets.astype(float)
    last = design[:, -1:]
    reduced = design[:, :-1] - last
    aim = gains - last[:, 0] * total
    root = np.sqrt(weights)
    first, *_ = np.linalg.lstsq(reduced * root[:, None], aim * root, rcond=None)
    return np.append(first, total - first.sum())
