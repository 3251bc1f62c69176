"""A template aligned by registration: turned, scaled and sheared too, not only moved.

Beyond Matos et al. 2019, whose template is only moved. SimpleITK (Mattes mutual information, doi:
10.1109/TMI.2003.809072; gradient descent of regular steps, two resolutions) starts from the shift
that the explanation gave. Only the template's brain and a rim around it are compared, so that what
lies outside of the scan's brain does not pull.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import Cancelled, ImageError, MethodError
from .align import Placement, as_rows, matrix_of, transform_of

if TYPE_CHECKING:
    import SimpleITK as sitk
    from monai.data import MetaTensor

__all__ = ["TRANSFORMS", "register_template"]

TRANSFORMS = ("rigid", "affine")
_BINS = 32
_FIRST_STEP_MM, _LAST_STEP_MM = 2.0, 0.02


def register_template(
    mask: MetaTensor,
    template_image: MetaTensor,
    image: MetaTensor,
    start: Placement,
    *,
    transform: str = "affine",
    rim_mm: float = 6.0,
    iterations: int = 60,
    cancelled: Callable[[], bool] | None = None,
) -> Placement:
    """Refine a placement by registration.

    Parameters
    ----------
    mask : MetaTensor, shape (1, I, J, K)
        The template's brain mask.
    template_image : MetaTensor, shape (1, I, J, K)
        What is registered, on any grid: the template's scan, masked or not, or its enhanced map.
    image : MetaTensor, shape (C, I', J', K')
        The scan (its first channel), or its enhanced map.
    start : Placement
        Where to begin, from :func:`.align.align_template`; "rigid" takes its shift only.
    transform : {"rigid", "affine"}
        Six degrees of freedom, or twelve.
    rim_mm : float
        How far around the mask images are compared, in mm.
    iterations : int
        At most, at each of two resolutions.
    cancelled : callable, optional
        Asked at each iteration.

    Returns
    -------
    Placement

    Raises
    ------
    MethodError
        If a parameter is out of range, or the registration fails.
    ImageError
        If the mask is empty.
    Cancelled
        If the caller stopped it.
    """
    import SimpleITK as sitk

    from ...image import as_image, make_image, resample_labels, sitk_from_image, to_ras

    if transform not in TRANSFORMS:
        raise MethodError(f"transform is one of {', '.join(TRANSFORMS)}; {transform!r} was given.")
    if rim_mm < 0 or iterations < 1:
        raise MethodError(
            f"rim_mm is 0 or more and iterations 1 or more; {rim_mm} and {iterations} were given."
        )
    inside = np.argwhere(mask.as_tensor()[0].numpy() > 0)
    if len(inside) == 0:
        raise ImageError("The template's mask is empty, so there is nothing to register.")
    centre = to_ras(mask.affine, inside.mean(0))
    first = np.asarray(start.matrix)
    fixed, moving = (
        make_image(one.as_tensor()[:1], one.affine)
        for one in (as_image(template_image), as_image(image))
    )
    where = sitk_from_image(resample_labels(_binary(mask), fixed))
    near = (
        sitk.SignedMaurerDistanceMap(
            sitk.Cast(where, sitk.sitkUInt8), squaredDistance=False, useImageSpacing=True
        )
        <= rim_mm
    )
    method = _method(iterations)
    method.SetMetricFixedMask(near)
    method.SetInitialTransform(_initial(transform, first, centre), inPlace=True)
    stopped = []

    def ask() -> None:
        if cancelled is not None and cancelled():
            stopped.append(True)
            method.StopRegistration()

    method.AddCommand(sitk.sitkIterationEvent, ask)
    try:
        found = method.Execute(sitk_from_image(fixed), sitk_from_image(moving))
    except RuntimeError as error:
        if not stopped:
            reason = str(error).strip().splitlines()[-1].removeprefix("sitk::ERROR: ")
            raise MethodError(
                f"The registration from a shift of {_mm(start.shift_mm)} failed ({reason}). Use "
                "the translation, or a template whose image looks like the scan."
            ) from error
    if stopped:
        raise Cancelled("The registration was cancelled.")
    # ITK's last digits hang on where its memory lies.
    matrix = matrix_of(found).round(8)
    moved = to_ras(matrix, centre) - centre
    right, front, up = (float(one) for one in moved)
    return Placement(
        (right, front, up), as_rows(matrix), transform, -float(method.GetMetricValue())
    )


def _method(iterations: int) -> sitk.ImageRegistrationMethod:
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=_BINS)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=_FIRST_STEP_MM,
        minStep=_LAST_STEP_MM,
        numberOfIterations=iterations,
        relaxationFactor=0.6,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([1.0, 0.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    # One thread adds in one order, so the same images give the same placement.
    method.SetNumberOfThreads(1)
    return method


def _initial(kind: str, matrix: np.ndarray, centre_ras_mm: np.ndarray) -> Any:
    """Where the registration begins; turning and scaling are about the template's middle."""
    import SimpleITK as sitk

    centre = (np.array([-1.0, -1.0, 1.0]) * centre_ras_mm).tolist()
    start = transform_of(matrix)
    moved = np.array(start.TransformPoint(centre)) - centre
    made: Any
    if kind == "rigid":
        made = sitk.Euler3DTransform()
    else:
        made = sitk.AffineTransform(3)
        made.SetMatrix(start.GetMatrix())
    made.SetCenter(centre)
    made.SetTranslation(moved.tolist())
    return made


def _binary(mask: MetaTensor) -> MetaTensor:
    from ...image import make_image

    return make_image(mask.as_tensor()[:1] > 0, mask.affine)


def _mm(shift: tuple[float, float, float]) -> str:
    return "(" + ", ".join(f"{one:.1f}" for one in shift) + ") mm"
