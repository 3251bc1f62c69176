"""Removing voxels so that the gap is hard to see: noisy linear imputation, in 3D.

Rong et al. 2022, arXiv:2202.00449, section 4: a removed voxel becomes the weighted mean of its
neighbours, which may be removed themselves, plus noise. In 3D the six face neighbours have weight
1/16, the twenty at edges and corners 1/32; neighbours beyond the border drop out and the others
are scaled up. With W the weights, d their sum at a voxel and R the removed voxels::

    d(u) y(u) - sum_{v in R} W(u, v) y(v) = sum_{v not in R} W(u, v) x(v),       u in R

The system is symmetric and positive definite, so conjugate gradients solve it, with W as a
convolution: no matrix of 10^6 unknowns is made. Differs from the paper: the noise is 0.01 standard
deviations of the image, whose scale is not known beforehand.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..errors import MetricError

__all__ = ["NOISE", "impute", "neighbour_weights"]

#: Standard deviation of the noise, as a part of the image's.
NOISE = 0.01
#: Residual at which the system counts as solved, as a part of its right side.
_TOLERANCE = 1e-4
_ITERATIONS = 2000


def neighbour_weights() -> torch.Tensor:
    """Weights of the 26 neighbours, shape (3, 3, 3), with 0 in the middle; they sum to 1."""
    axis = torch.arange(3) - 1
    apart = sum(torch.meshgrid(axis.abs(), axis.abs(), axis.abs(), indexing="ij"))
    weights = torch.where(torch.as_tensor(apart) == 1, 1 / 16, 1 / 32)
    weights[1, 1, 1] = 0
    return weights


def impute(
    x: torch.Tensor,
    removed: torch.Tensor,
    generator: torch.Generator,
    check: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Replace the removed voxels of an image in all channels.

    Parameters
    ----------
    x : Tensor, shape (1, C, I, J, K)
    removed : Tensor of bool, shape (I, J, K)
    generator : torch.Generator
        Of the noise, on the CPU.
    check : callable, optional
        Called now and then; may raise to stop.

    Returns
    -------
    Tensor, shape (1, C, I, J, K)

    Raises
    ------
    MetricError
        If every voxel is removed, or the system is not solved within 2000 iterations.
    """
    if bool(removed.all()):
        raise MetricError("Every voxel would be removed, so there is nothing to impute from.")
    if not bool(removed.any()):
        return x.clone()
    kernel = neighbour_weights()[None, None].to(x)
    gap = removed.to(x)

    def summed(volume: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv3d(volume, kernel, padding=1)

    # Channels share the system: they are the batch.
    channels = x[0][:, None]
    total = summed(torch.ones_like(channels[:1]))
    filled = _conjugate_gradients(
        lambda volume: gap * (total * volume - summed(gap * volume)),
        gap * summed((1 - gap) * channels),
        gap * channels.mean(dim=(2, 3, 4), keepdim=True),
        check,
    )
    scale = NOISE * x.std(dim=(2, 3, 4), keepdim=True)
    noise = torch.randn(x.shape, generator=generator).to(x)
    return torch.where(removed, filled[:, 0][None] + scale * noise, x)


def _conjugate_gradients(
    multiply: Callable[[torch.Tensor], torch.Tensor],
    right: torch.Tensor,
    start: torch.Tensor,
    check: Callable[[], None] | None,
) -> torch.Tensor:
    """Solve for each of the batch, shape (C, 1, I, J, K)."""
    import torch

    # Apple's GPUs have no double precision.
    wide = torch.float32 if right.device.type == "mps" else torch.float64

    def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a.to(wide) * b.to(wide)).sum(dim=(1, 2, 3, 4), keepdim=True)

    found = start
    residual = right - multiply(found)
    direction, size = residual, dot(residual, residual)
    limit = _TOLERANCE**2 * dot(right, right).clamp(min=1e-30)
    for number in range(_ITERATIONS):
        if bool((size <= limit).all()):
            return found
        if check is not None and number % 20 == 0:
            check()
        moved = multiply(direction)
        step = size / dot(direction, moved).clamp(min=1e-30)
        found = found + step.to(found) * direction
        residual = residual - step.to(found) * moved
        before, size = size, dot(residual, residual)
        direction = residual + (size / before.clamp(min=1e-30)).to(found) * direction
    raise MetricError(
        f"The removed voxels could not be imputed within {_ITERATIONS} steps. Remove fewer voxels."
    )
