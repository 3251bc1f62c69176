"""Occlusion and RISE: hide parts of the image and watch the score.

Occlusion: Zeiler and Fergus 2013, arXiv:1311.2901, section 4.2. With boxes W on a regular lattice::

    Out(v) = mean over the boxes W that contain v of ( S(x) - S(x with W replaced by the baseline) )

RISE: Petsiuk et al. 2018, arXiv:1806.07421, eq. 6, with random smooth masks m_i::

    Out(v) = sum_i S(x_i) m_i(v) / sum_i m_i(v)  -  mean_i S(x_i),      x_i = m_i x + (1 - m_i) x0

Differs from the papers: boxes and cells are given in mm; the baseline is chosen, not zero; RISE
divides by the masks' own sum instead of their expectation and subtracts the mean score, so that "no
influence" is zero. Only windows that hold a changed voxel and reach the region are computed, and of
them only what the change reaches and the region needs; boxes that cannot matter cost nothing and
count as zero. ``share_computed`` in the details is the part of the brute-force work that was done.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from .base import Attribution, Method, method, param
from .baselines import BASELINES, make_baseline, resolve

if TYPE_CHECKING:
    import torch

    from ..engine import Engine

__all__ = ["RISE", "Occlusion", "box_starts"]


def box_starts(size: int, box: int, stride: int) -> list[int]:
    """First voxels of boxes along an axis of `size` voxels; the last box ends at the border."""
    last = max(size - box, 0)
    return sorted({*range(0, last, stride), last})


@method(
    "occlusion",
    title="Occlusion",
    family="perturbation",
    summary="How much does the score fall when a box of the image is hidden?",
    paper="Zeiler and Fergus 2013, arXiv:1311.2901",
    signed=True,
    needs_gradient=False,
    weaknesses="a hidden box is unlike what the network knows; misses doubled evidence; slow",
)
@dataclass(frozen=True)
class Occlusion(Method):
    """Score drop for boxes on a lattice, averaged where boxes overlap."""

    box_mm: float = param(24.0, low=1.0, high=500.0, unit="mm", help="edge of the box")
    stride: float = param(0.5, low=0.05, high=1.0, help="step of the lattice as a part of the box")
    baseline: str = param(
        "automatic", choices=BASELINES, help="what is put in the place of the box"
    )
    blur_mm: float = param(
        12.0, low=0.5, high=100.0, unit="mm", help="standard deviation of the blurred baseline"
    )

    def passes(self) -> int | None:
        """As many as there are boxes."""
        return None

    def attribute(self, engine: Engine) -> Attribution:
        """Map of shape (1, I, J, K) in score units."""
        import torch

        from ..engine import Perturber

        choice = resolve(self.baseline, engine)
        baseline = make_baseline(choice, engine, self.blur_mm)
        perturber = Perturber(engine)
        boxes = list(self._boxes(engine))
        engine.progress.expect(sum(perturber.runs_for(box) for box in boxes))
        total = torch.zeros(engine.x.shape[2:], device=engine.x.device)
        count = torch.zeros_like(total)
        for box in boxes:
            count[box] += 1
            hidden = engine.x.clone()
            place = (slice(None), slice(None), *box)
            hidden[place] = baseline[place]
            total[box] += perturber.start_value - perturber.value(hidden, box)
        maps = (total / count.clamp(min=1))[None]
        return Attribution(maps, used={"baseline": choice}, details=perturber.cost())

    def _boxes(self, engine: Engine) -> Iterator[tuple[slice, ...]]:
        from ..image import spacing_mm

        shape = tuple(engine.x.shape[2:])
        edges = [
            min(size, max(1, round(self.box_mm / step)))
            for size, step in zip(shape, spacing_mm(engine.image.affine), strict=True)
        ]
        starts = [
            box_starts(size, edge, max(1, round(edge * self.stride)))
            for size, edge in zip(shape, edges, strict=True)
        ]
        for corner in product(*starts):
            yield tuple(
                slice(start, start + edge) for start, edge in zip(corner, edges, strict=True)
            )


@method(
    "rise",
    title="RISE",
    family="perturbation",
    summary="Is the score higher than usual when this place is seen, others at random?",
    paper="Petsiuk et al. 2018, arXiv:1806.07421, eq. 6",
    signed=True,
    needs_gradient=False,
    weaknesses="grainy with few masks; slow; depends on the size of the cells",
)
@dataclass(frozen=True)
class RISE(Method):
    """Mean score of randomly masked images in which a voxel is visible, less the mean of all."""

    masks: int = param(200, low=2, high=20000, help="random masks")
    cell_mm: float = param(
        24.0, low=1.0, high=500.0, unit="mm", help="edge of the cells that are shown or hidden"
    )
    keep: float = param(0.5, low=0.05, high=0.95, help="probability that a cell is shown")
    baseline: str = param("automatic", choices=BASELINES, help="what is shown where the mask hides")
    blur_mm: float = param(
        12.0, low=0.5, high=100.0, unit="mm", help="standard deviation of the blurred baseline"
    )
    seed: int = param(0, low=0, high=2**31 - 1, help="seed of the masks")

    def passes(self) -> int:
        """Masks, and one sweep for the region."""
        return self.masks + 1

    def attribute(self, engine: Engine) -> Attribution:
        """Map of shape (1, I, J, K) in score units."""
        import torch

        from ..engine import Perturber

        choice = resolve(self.baseline, engine)
        baseline = make_baseline(choice, engine, self.blur_mm)
        perturber = Perturber(engine)
        generator = torch.Generator().manual_seed(self.seed)
        everywhere = tuple(slice(0, size) for size in engine.x.shape[2:])
        weighted = torch.zeros(engine.x.shape[2:], device=engine.x.device)
        shown = torch.zeros_like(weighted)
        scores = 0.0
        for _ in range(self.masks):
            mask = self._mask(engine, generator)
            score = perturber.value(baseline + mask * (engine.x - baseline), everywhere)
            weighted += score * mask
            shown += mask
            scores += score
        maps = weighted / shown.clamp(min=1e-6) - scores / self.masks
        return Attribution(maps[None], used={"baseline": choice}, details=perturber.cost())

    def _mask(self, engine: Engine, generator: torch.Generator) -> torch.Tensor:
        """A smooth random mask in [0, 1], (I, J, K): a coarse lattice, shifted at random."""
        import torch

        from ..engine import axis_weights
        from ..image import spacing_mm

        shape = tuple(engine.x.shape[2:])
        cells = [max(1.0, self.cell_mm / step) for step in spacing_mm(engine.image.affine)]
        counts = [int(size // cell) + 3 for size, cell in zip(shape, cells, strict=True)]
        mask = (torch.rand(counts, generator=generator) < self.keep).float()
        shifts = torch.rand(3, generator=generator)
        for axis in range(3):
            positions = torch.arange(shape[axis]) / cells[axis] + float(shifts[axis])
            weights = axis_weights(positions, counts[axis]).float()
            mask = torch.tensordot(mask, weights, dims=([0], [1]))
        return mask.to(engine.x.device)
