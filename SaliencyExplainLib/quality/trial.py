"""What a metric works on: one explanation and, where needed, its network, image and ground truth.

Everything that several metrics need is made once. Perturbed images are run on the network's grid
with the map of that grid, through the engine's :class:`~SaliencyExplainLib.engine.Perturber`: only
windows that reach the target's region and hold a changed voxel are computed. The region is the one
of the unperturbed image. Torch is imported when the network is first run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MetricError
from ..methods import Method, make_method, methods
from ..methods.baselines import make_baseline, resolve
from ..volume import resample_labels, same_grid, voxels_of
from .maps import is_slope
from .shares import Shares

if TYPE_CHECKING:
    import torch
    from monai.data import MetaTensor
    from numpy.typing import NDArray

    from ..engine import Engine, Perturber, Progress
    from ..explanation import Explanation
    from ..target import FrozenTarget, Target
    from ..volume import Volume

__all__ = ["Trial", "explicit_target", "method_of", "target_of"]

#: How far the score may lie from the explained one: other hardware, or bfloat16.
_SCORE_RTOL, _SCORE_ATOL = 0.05, 1e-2


class Trial:
    """An explanation under test.

    Parameters
    ----------
    explanation : Explanation
    engine : Engine, optional
        Running, with the explained model, image (network's grid) and target.
    truth : MetaTensor or Volume, shape (1, I, J, K), optional
        Mask of the evidence that is known to be right: voxels above 0.
    labelmap : MetaTensor or Volume, shape (1, I, J, K), optional
        Segments, 0 = outside.
    names : mapping of int to str, optional
        Names of the segments.
    method : Method, optional
        Makes the explanation's map; from its record when left out.
    shares : Shares, optional
        Progress and cancelling.

    Attributes
    ----------
    progress : Progress
        Of the metric that is being measured, where there is an engine.
    """

    def __init__(
        self,
        explanation: Explanation,
        engine: Engine | None = None,
        *,
        truth: MetaTensor | Volume | None = None,
        labelmap: MetaTensor | Volume | None = None,
        names: Mapping[int, str] | None = None,
        method: Method | None = None,
        shares: Shares | None = None,
    ) -> None:
        self.explanation = explanation
        self.truth = truth
        self.labelmap = labelmap
        self.names = dict(names or {})
        self.shares = shares or Shares()
        self.progress: Progress
        #: What perturbation metrics ran already, by their parameters.
        self.kept: dict[Any, Any] = {}
        self._engine = engine
        self._method = method
        self._place = (0.0, 1.0, "")
        self._baselines: dict[tuple[str, float], torch.Tensor] = {}

    # -- The map -------------------------------------------------------------------------------

    @cached_property
    def values(self) -> NDArray[np.float64]:
        """The map on the scan's grid, channels joined, shape (I, J, K)."""
        return np.asarray(voxels_of(self.explanation.map)[0], dtype=np.float64)

    @cached_property
    def network_values(self) -> NDArray[np.float64]:
        """The map on the network's grid, channels joined, shape (I', J', K')."""
        return np.asarray(voxels_of(self.explanation.network_map)[0], dtype=np.float64)

    def contributions(self, baseline: torch.Tensor) -> NDArray[np.float64]:
        """What the map says each voxel adds to the score, against a baseline, (I', J', K').

        A map of slopes is multiplied by x - x0 (first order); other maps are taken as they are.
        """
        if not is_slope(self.explanation) or self.explanation.network_maps is None:
            return self.network_values
        slopes = voxels_of(self.explanation.network_maps).astype(np.float64)
        difference = (self.engine.x - baseline)[0].cpu().numpy().astype(np.float64)
        return np.asarray((slopes * difference).sum(0))

    # -- What is known -------------------------------------------------------------------------

    @cached_property
    def truth_mask(self) -> NDArray[np.bool_]:
        """The ground truth on the scan's grid, shape (I, J, K)."""
        if self.truth is None:
            raise MetricError(
                "There is no ground truth. Give truth=<mask of the evidence that is right>."
            )
        mask = voxels_of(resample_labels(self.truth, self.explanation.map))[0] > 0
        if not mask.any():
            raise MetricError(
                "The ground truth has no voxel above 0 inside the map. Check that both belong to "
                "the same scan."
            )
        return np.asarray(mask)

    def labels_on(self, like: Any) -> NDArray[np.int64]:
        """Segments on the grid of a map, shape (I, J, K)."""
        if self.labelmap is None:
            raise MetricError("There are no segments. Give labelmap=<label map>.")
        return np.asarray(voxels_of(resample_labels(self.labelmap, like))[0].round(), dtype=int)

    # -- The network ---------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """The running engine."""
        if self._engine is None:
            raise MetricError("There is no model. Give model= and image=.")
        return self._engine

    @property
    def frozen(self) -> FrozenTarget:
        """The target with its region."""
        return self.engine.frozen

    @property
    def windows(self) -> int:
        """Windows in one sweep over the image; 1 without a network."""
        return 1 if self._engine is None else len(self._engine.plan.windows)

    @cached_property
    def outputs(self) -> Perturber:
        """Scores of perturbed images."""
        from ..engine import Perturber

        return Perturber(self.engine)

    @property
    def passes(self) -> float:
        """Sweeps over the image so far; a window that was computed in part counts by that part."""
        saved = 0.0
        if "outputs" in vars(self):
            saved = self.outputs.computed - self.outputs.passes
        return (self.shares.done - saved) / self.windows

    def check_fit(self) -> None:
        """Refuse a model, image or target that the explanation was not made with.

        Raises
        ------
        MetricError
            If grid or score differ.
        """
        told = self.explanation
        if told.network_maps is None:
            raise MetricError(
                "The map on the network's grid was not saved, so the image cannot be perturbed "
                "with it. Run the explanation again, or save it with network_grid=True."
            )
        if not same_grid(told.network_maps, self.engine.image):
            raise MetricError(
                f"The map has {tuple(told.network_maps.shape[1:])} voxels on the network's grid, "
                f"the prepared image {tuple(self.engine.image.shape[1:])}, or they lie elsewhere. "
                "Give the image and the model that were explained."
            )
        found, expected = self.engine.start_value, told.value
        limit = _SCORE_RTOL * max(abs(found), abs(expected)) + _SCORE_ATOL
        if not abs(found - expected) <= limit:
            raise MetricError(
                f"The score is {found:.4g} here, but {expected:.4g} was explained. Give the model, "
                "image and target of the explanation."
            )

    def baseline(self, choice: str, blur_mm: float) -> tuple[str, torch.Tensor]:
        """Name and image, shape (1, C, I', J', K'), of a baseline; "automatic" is resolved."""
        name = resolve(choice, self.engine)
        key = (name, blur_mm)
        if key not in self._baselines:
            self._baselines[key] = make_baseline(name, self.engine, blur_mm)
        return name, self._baselines[key]

    def value(self, x: torch.Tensor) -> float:
        """S of a perturbed image."""
        return self.outputs.value(x)

    # -- The method ----------------------------------------------------------------------------

    @cached_property
    def method(self) -> Method:
        """The method that made the map."""
        return self._method or method_of(self.explanation)

    def map_of(
        self,
        x: torch.Tensor,
        progress: Progress,
        *,
        mask: torch.Tensor | None = None,
        network: torch.nn.Module | None = None,
    ) -> NDArray[np.float64]:
        """Map of another image or another network for the same region, shape (I', J', K').

        Parameters
        ----------
        x : Tensor, shape (1, C, I', J', K')
        progress : Progress
            Of this run.
        mask : Tensor of bool, shape (I', J', K'), optional
            Another region; the frozen one when left out.
        network : torch.nn.Module, optional
            Runs instead of the model's own.
        """
        return map_of(self.engine, self.method, x, progress, mask=mask, network=network)[0]

    # -- Progress ------------------------------------------------------------------------------

    def begin(self, start: float, length: float, what: str) -> None:
        """Let what follows be told as this part of the whole."""
        self._place = (start, length, what)
        self.shares.teller(start, 0.0, what)(0.0, what)
        if self._engine is not None:
            self.progress = self._engine.progress = self.part(0, 1)

    def part(self, index: int, count: int) -> Progress:
        """Progress of one of `count` equal steps of the current metric."""
        start, length, what = self._place
        return self.shares.part(start + length * index / count, length / count, what)


def map_of(
    engine: Engine,
    method: Method,
    x: torch.Tensor,
    progress: Progress,
    *,
    mask: torch.Tensor | None = None,
    network: torch.nn.Module | None = None,
) -> tuple[NDArray[np.float64], float]:
    """Map of a method on another image or network for the region of `engine`, and the score there.

    The map has the shape (I', J', K'), its channels joined as the method says.
    """
    from ..engine import Engine
    from ..image import make_image

    image = make_image(x[0].cpu(), engine.image.affine)
    model = engine.model if network is None else replace(engine.model, network=network)
    other = Engine(model, image, explicit_target(engine.frozen, image, mask), progress)
    other.fast = engine.fast
    with other.running():
        maps = method.attribute(other).maps.detach().cpu().double()
        score = other.start_value
    progress.finish()
    joined = maps.abs().amax(0) if method.combine == "max_abs" and len(maps) > 1 else maps.sum(0)
    return joined.numpy(), score


def explicit_target(
    frozen: FrozenTarget, image: MetaTensor, mask: torch.Tensor | None = None
) -> Target:
    """The frozen target as one whose region is given, so that no other prediction can move it.

    Parameters
    ----------
    frozen : FrozenTarget
    image : MetaTensor, shape (C, I', J', K')
        On the network's grid.
    mask : Tensor of bool, shape (I', J', K'), optional
        Another region.
    """
    from ..image import make_image
    from ..target import Target

    mask = frozen.mask if mask is None else mask
    segment = None if mask is None else make_image(mask.float().cpu(), image.affine)
    return Target(
        output=frozen.output,
        region=None if segment is None else "segment",
        segment=segment,
        score=frozen.score,
        reduce=frozen.reduce,
        contrast=frozen.contrast,
        contrast_weight=frozen.contrast_weight,
    )


def target_of(explanation: Explanation) -> Target:
    """The target of an explanation from its record.

    Raises
    ------
    MetricError
        If its region was drawn by hand (a segment, ROI or point), which the record does not hold.
    """
    from ..target import Target

    told = explanation.target
    region = told.get("region")
    if region not in (None, "prediction", "instance", "everywhere"):
        raise MetricError(
            f"The explanation's region is a {region}, which its record does not hold. Give the "
            "target as well (target=)."
        )
    return Target(
        output=told["output"],
        region=region,
        instance=told["instance"]["number"] if region == "instance" else None,
        score=told["score"],
        reduce=told.get("reduce") or "mean",
        contrast=told.get("contrast"),
        contrast_weight=1.0 if told.get("contrast") is None else told["contrast_weight"],
    )


def method_of(explanation: Explanation) -> Method:
    """The method of an explanation from its record.

    Raises
    ------
    MetricError
        If the record does not hold all of its parameters (a label map), or the name is unknown.
    """
    known = methods().get(explanation.method)
    if known is None:
        raise MetricError(
            f"There is no method {explanation.method!r} to run again. Give it (method=)."
        )
    names = {one.name for one in fields(known)}
    parameters = {key: one for key, one in explanation.parameters.items() if key in names}
    if any(isinstance(one, Mapping) for one in parameters.values()):
        raise MetricError(
            f"{explanation.title} was made with segments, which its record does not hold. Give the "
            "method as well (method=make_method(...))."
        )
    return make_method(explanation.method, parameters)
