"""The main verb: a model, an image, a target and a method become an :class:`Explanation`."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from functools import cache
from importlib import metadata
from typing import Any

import torch
from monai.data import MetaTensor

from .engine import Engine, MemoryMeter, Progress, go_fast
from .errors import Cancelled, MethodError, SaliencyExplainError, TargetError
from .explanation import Explanation
from .image import as_image, make_image, resample_labels
from .methods import Attribution, Method, make_method
from .model import Model
from .target import Target

__all__ = ["explain", "predict"]


def explain(
    model: Model,
    image: MetaTensor,
    target: Target | None = None,
    method: str | Method = "gradient",
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    *,
    fast: bool = False,
    batch_size: int | None = None,
    **parameters: Any,
) -> Explanation:
    """Explain one output of a model on one image.

    Pure: no files, no scene, no global state. When it returns, raises or is cancelled, the network
    has no hook, no gradient and no other mode than before.

    Parameters
    ----------
    model : Model
        From :func:`load_model`.
    image : MetaTensor, shape (C, I, J, K)
        The scan with its affine (IJK to RAS, mm), before the model's preprocessing.
    target : Target, optional
        What is explained; ``Target()`` when left out.
    method : str or Method
        A registered name (then `parameters` are its fields), or a method that was made before.
    progress : callable, optional
        Called with a fraction (0 to 1) and a message after each pass.
    cancelled : callable, optional
        Asked before each pass; True stops the run with :class:`Cancelled`.
    fast : bool
        Let the network compute in bfloat16, if a check on one window finds that it is faster here
        and gives nearly the same gradient; what was found is in ``details`` and ``warnings``.
    batch_size : int, optional
        Images or windows that go through the network together; None: what fits into the memory.
    **parameters
        Parameters of the method, when it is named.

    Returns
    -------
    Explanation
        Maps on the image's grid and on the network's.

    Raises
    ------
    SaliencyExplainError
        With what was wrong, what was expected and what to do; :class:`Cancelled` when the caller
        stopped it.
    """
    target = target or Target()
    chosen = _made(method, parameters)
    _refuse_batch(batch_size)
    image = as_image(image)
    chosen.check(model)
    started = time.perf_counter()
    with MemoryMeter(model.device) as memory:
        try:
            network_image = model.prepare(image)
            engine = Engine(model, network_image, target, Progress(progress, cancelled), batch_size)
            sweeps = _sweeps(chosen, engine)
            if sweeps is not None:
                engine.progress.expect(len(engine.plan.windows) * sweeps)
            with engine.running():
                checked, note = None, ""
                if fast:
                    differences = not chosen.needs_gradient
                    checked, note = go_fast(engine, sweeps, differences=differences)
                made = chosen.attribute(engine)
                value, frozen = engine.start_value, engine.frozen
                engine.progress.finish()
        except Cancelled:
            raise
        except SaliencyExplainError as error:
            raise type(error)(
                f"{error} (While running {chosen.title} on {_called(image)}.)"
            ) from error
    maps = made.maps.detach().float().cpu()
    _refuse_nan(maps, chosen)
    return Explanation(
        maps=model.preprocess.invert(maps, network_image, image),
        network_maps=make_image(maps, network_image.affine),
        layer_map=_layer_map(made, network_image),
        value=value,
        target=frozen.to_dict(),
        method=chosen.name,
        title=chosen.title,
        parameters={**chosen.parameters(), **made.used},
        signed=chosen.is_signed(),
        unit=chosen.unit,
        combine=chosen.combine,
        layers=made.layers,
        details={**made.details, **({"fast": checked.to_dict()} if checked else {})},
        completeness_error=made.completeness_error,
        warnings=(
            *made.warnings,
            *([note] if note else []),
            *engine.batch.notes,
            *_map_warnings(maps),
        ),
        seconds=time.perf_counter() - started,
        peak_memory_mb=memory.peak_mb,
        model=dict(model.provenance),
        image=_provenance(image),
        versions=dict(_versions()),
    )


def predict(
    model: Model,
    image: MetaTensor,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> MetaTensor:
    """Segment an image: the label map that goes with an explanation.

    Parameters
    ----------
    model : Model
        A segmentation network.
    image : MetaTensor, shape (C, I, J, K)
        The scan.
    progress, cancelled : callable, optional
        As for :func:`explain`.

    Returns
    -------
    MetaTensor, shape (1, I, J, K) or (O, I, J, K)
        On the image's grid. Softmax: the number of the predicted output. Sigmoid, where outputs may
        overlap: a mask of 0 and 1 for each output.

    Raises
    ------
    TargetError
        If the network is no segmentation network.
    """
    if model.task != "segmentation":
        raise TargetError(
            f"Only a segmentation network predicts a label map; this one does {model.task}. "
            "Its output is the value of an explanation."
        )
    image = as_image(image)
    network_image = model.prepare(image)
    engine = Engine(model, network_image, Target(), Progress(progress, cancelled))
    engine.progress.expect(len(engine.plan.windows))
    with engine.running():
        output = engine.output(engine.x)[0].cpu()
    labels = (
        output.argmax(0, keepdim=True) if model.activation == "softmax" else output.sigmoid() > 0.5
    )
    return resample_labels(make_image(labels, network_image.affine), image)


def _made(method: str | Method, parameters: dict[str, Any]) -> Method:
    if not isinstance(method, Method):
        return make_method(method, parameters)
    if parameters:
        raise MethodError(
            f"{method.title} was made already. Give its parameters there: {', '.join(parameters)}."
        )
    return method


def _refuse_batch(size: int | None) -> None:
    whole = isinstance(size, int) and not isinstance(size, bool)
    if size is not None and not (whole and size >= 1):
        raise MethodError(
            f"batch_size must be a whole number from 1 on, or None for what fits; {size!r} was "
            "given."
        )


def _sweeps(method: Method, engine: Engine) -> int | None:
    """How often the method runs the network over the image, if it knows."""
    if len(engine.plan.windows) == 1:
        return method.passes()
    return method.window_passes(linear=engine.target.score in (None, "logit", "value"))


def _layer_map(made: Attribution, network_image: MetaTensor) -> MetaTensor | None:
    if made.layer_map is None or made.layer_grid is None:
        return None
    return make_image(
        made.layer_map.detach().float().cpu(), made.layer_grid.affine(network_image.affine)
    )


def _refuse_nan(maps: torch.Tensor, method: Method) -> None:
    bad = int((~torch.isfinite(maps)).sum())
    if bad:
        raise MethodError(
            f"{method.title} gave {bad} values that are NaN or infinite, so there is no map to "
            "show. "
            "Check that the network's output is finite on this image, and that it runs in single "
            "precision."
        )


def _map_warnings(maps: torch.Tensor) -> tuple[str, ...]:
    """What a picture of this map would hide."""
    low, high = float(maps.min()), float(maps.max())
    if low == high == 0:
        return (
            "The map is zero everywhere: it shows nothing. Another layer, target or method may.",
        )
    if low == high:
        return (f"The map has the same value ({low:.4g}) everywhere: it shows nothing.",)
    return ()


def _called(image: MetaTensor) -> str:
    name = str(image.meta.get("filename_or_obj", "")) or "the image"
    return f"{name} of shape {tuple(image.shape)} (C, I, J, K)"


def _provenance(image: MetaTensor) -> dict[str, Any]:
    return {
        "name": str(image.meta.get("filename_or_obj", "")),
        "shape_cijk": list(image.shape),
        "ijk_to_ras": image.affine.tolist(),
    }


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("saliency-explain", "torch", "monai", "numpy", "SimpleITK"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
