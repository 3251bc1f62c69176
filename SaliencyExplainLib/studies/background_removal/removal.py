"""Background removal by an explanation: what a network did not learn to see is taken away.

Matos et al. 2019, doi:10.1007/978-3-030-19823-7_25, on any segmentation network and any volume. A
network that was trained on masked brains is confused by skull and scalp. Its own guided gradients
tell where the brain is: they are enhanced (:mod:`.enhance`), a template is aligned with them
(:mod:`.align`, or :mod:`.register` beyond the paper), everything outside of the template is
cleared, and the network runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import ImageError, MethodError
from .align import Placement, align_template
from .enhance import LogNormalFit, enhance_log_normal
from .magnitude import magnitude_of_outputs, outputs_of
from .register import TRANSFORMS, register_template

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from ...explanation import Explanation
    from ...model import Model

__all__ = ["BackgroundRemoval", "Template", "make_template", "remove_background"]

Tell = Callable[[float, str], None]
Asked = Callable[[], bool]


@dataclass(frozen=True)
class Template:
    """A brain that is laid over others.

    Attributes
    ----------
    mask : MetaTensor, shape (1, I, J, K)
        Voxels above 0 are brain.
    gradient : MetaTensor, shape (1, I, J, K), optional
        The network's mean map, on the mask's grid; it makes the template sparse, like the maps that
        it is compared with. See :func:`make_template`.
    image : MetaTensor, shape (1, I', J', K'), optional
        Scan of the brain; needed for registration only.

    Raises
    ------
    ImageError
        If mask and gradient lie on different grids.
    """

    mask: MetaTensor
    gradient: MetaTensor | None = None
    image: MetaTensor | None = None

    def __post_init__(self) -> None:
        from ...volume import same_grid

        if self.gradient is not None and not same_grid(self.mask, self.gradient):
            raise ImageError(
                f"The template's mask has the shape {tuple(self.mask.shape[1:])} and its gradient "
                f"{tuple(self.gradient.shape[1:])}, or they lie elsewhere. Resample the gradient "
                "onto the mask's grid."
            )

    @property
    def weights(self) -> MetaTensor:
        """What is correlated: mask times gradient, or the mask alone; shape (1, I, J, K)."""
        from ...image import make_image

        inside = (self.mask.as_tensor()[:1] > 0).float()
        if self.gradient is not None:
            inside = inside * self.gradient.as_tensor()[:1].abs()
        return make_image(inside, self.mask.affine)


@dataclass(frozen=True)
class BackgroundRemoval:
    """What :func:`remove_background` made.

    Attributes
    ----------
    image : MetaTensor, shape (C, I, J, K)
        The scan without what lies outside of the mask.
    mask : MetaTensor, shape (1, I, J, K)
        The placed template, 0 or 1.
    explanation : Explanation
        The magnitude that the template was aligned with.
    enhanced : MetaTensor, shape (1, I, J, K)
    fit : LogNormalFit
        Whether the enhancement's hypothesis holds.
    placement : Placement
    before, after : MetaTensor
        What the network predicts on the scan, and on the scan without background; as
        :func:`~SaliencyExplainLib.run.predict` gives it.
    """

    image: MetaTensor
    mask: MetaTensor
    explanation: Explanation
    enhanced: MetaTensor
    fit: LogNormalFit
    placement: Placement
    before: MetaTensor
    after: MetaTensor


def make_template(
    model: Model,
    mask: MetaTensor,
    images: Sequence[MetaTensor],
    *,
    image: MetaTensor | None = None,
    outputs: Sequence[int | str] | None = None,
    method: str = "guided_backprop",
    progress: Tell | None = None,
    cancelled: Asked | None = None,
) -> Template:
    """Make a template of a mask and the network's mean map over images like its training's.

    Parameters
    ----------
    model : Model
        A segmentation network.
    mask : MetaTensor, shape (1, I, J, K)
        One brain's mask.
    images : sequence of MetaTensor, shape (C, I', J', K')
        Masked brains; they are brought onto the mask's grid by their place in the world.
    image : MetaTensor, optional
        Scan of the mask's brain, for registration.
    outputs, method : optional
        As for :func:`remove_background`.
    progress, cancelled : callable, optional
        As for :func:`~SaliencyExplainLib.run.explain`.

    Returns
    -------
    Template

    Raises
    ------
    ImageError
        If no image is given.
    """
    from ...image import make_image, resample_image
    from ...run import predict
    from ...volume import same_grid

    if not images:
        raise ImageError("A template needs at least one image for its mean map; none was given.")
    maps = []
    for number, one in enumerate(images):
        tell = _within(progress, number / len(images), (number + 1) / len(images))
        seen = predict(model, one, cancelled=cancelled)
        chosen = outputs_of(model, seen, outputs)
        found = magnitude_of_outputs(
            model, one, chosen, method, progress=tell, cancelled=cancelled
        ).map
        if not same_grid(found, mask):
            found = resample_image(found, mask, outside=0.0)
        maps.append(found.as_tensor())
    mean = sum(maps[1:], start=maps[0]) / len(maps)
    return Template(mask, make_image(mean, mask.affine), image)


def remove_background(
    model: Model,
    image: MetaTensor,
    template: Template | MetaTensor,
    *,
    outputs: Sequence[int | str] | None = None,
    method: str = "guided_backprop",
    alignment: str = "translation",
    offset: float = 1e-3,
    peak: float = 2.0,
    width: float = 0.5,
    channels: str = "max",
    max_shift_mm: float | None = None,
    fill: float = 0.0,
    progress: Tell | None = None,
    cancelled: Asked | None = None,
) -> BackgroundRemoval:
    """Take away what lies outside of a template that is placed by the network's own explanation.

    Parameters
    ----------
    model : Model
        A segmentation network, best one that was trained on masked images.
    image : MetaTensor, shape (C, I, J, K)
        The scan, with background.
    template : Template or MetaTensor, shape (1, I', J', K')
        From :func:`make_template`, or a brain mask alone; on any grid.
    outputs : sequence of int or str, optional
        Outputs that are explained, by index or label; None: all but the first of a softmax network,
        all of another.
    method : {"guided_backprop", "deconvnet", "gradient"}
        Of the explanation.
    alignment : {"translation", "rigid", "affine"}
        As published, or refined by registration with the template's image.
    offset, peak, width, channels
        Of :func:`~.enhance.enhance_log_normal`.
    max_shift_mm : float, optional
        The longest shift of the template.
    fill : float
        Intensity that the background gets; what it had around the brains of the training.
    progress : callable, optional
        Called with a fraction (0 to 1) and a message.
    cancelled : callable, optional
        Asked before each pass.

    Returns
    -------
    BackgroundRemoval

    Raises
    ------
    SaliencyExplainError
        If a parameter does not fit, the network predicts nothing, or the run was cancelled.
    """
    from ...image import as_image, make_image
    from ...run import predict

    if not isinstance(template, Template):
        template = Template(as_image(template))
    if alignment not in ("translation", *TRANSFORMS):
        raise MethodError(
            f"alignment is one of translation, {', '.join(TRANSFORMS)}; {alignment!r} was given."
        )
    if alignment != "translation" and template.image is None:
        raise MethodError(
            f"A template without its image cannot be registered ({alignment}). Give the template "
            "an image, or choose alignment='translation'."
        )
    image = as_image(image)
    before = predict(model, image, _within(progress, 0.0, 0.1), cancelled)
    explanation = magnitude_of_outputs(
        model,
        image,
        outputs_of(model, before, outputs),
        method,
        progress=_within(progress, 0.1, 0.7),
        cancelled=cancelled,
    )
    enhanced, fit = enhance_log_normal(
        explanation, offset=offset, peak=peak, width=width, channels=channels
    )
    placement = align_template(template.weights, enhanced, max_shift_mm=max_shift_mm)
    if alignment != "translation" and template.image is not None:
        _within(progress, 0.75, 0.9)(0.0, "registering the template")
        placement = register_template(
            template.mask,
            template.image,
            image,
            placement,
            transform=alignment,
            cancelled=cancelled,
        )
    mask = placement.place(template.mask, image)
    inside = mask.as_tensor() > 0
    cleaned = image.as_tensor().where(inside, image.as_tensor().new_tensor(fill))
    name = str(image.meta.get("filename_or_obj", ""))
    cleared = make_image(cleaned, image.affine, name)
    after = predict(model, cleared, _within(progress, 0.9, 1.0), cancelled)
    _within(progress, 0.0, 1.0)(1.0, "done")
    return BackgroundRemoval(cleared, mask, explanation, enhanced, fit, placement, before, after)


def _within(progress: Tell | None, start: float, end: float) -> Tell:
    """Progress of a part, as one of the whole."""

    def tell(fraction: float, message: str) -> None:
        if progress is not None:
            progress(start + (end - start) * fraction, message)

    return tell
