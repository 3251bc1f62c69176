"""The main verb: a model, an image, a target and a method become an :class:`Explanation`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from monai.data import MetaTensor

from .engine import Engine, MemoryMeter, Progress, go_fast
from .errors import (
    Cancelled,
    MethodError,
    OutOfMemoryError,
    SaliencyExplainError,
    TargetError,
    is_out_of_memory,
)
from .explanation import Explanation, versions
from .image import as_image, make_image
from .methods import Attribution, Method, make_method
from .methods import methods as all_methods
from .methods.cam_pass import OnePassCam, attribute_together
from .model import Model
from .target import Target

__all__ = ["explain", "explain_layers", "predict"]

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


def _tells_full_memory(function: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """Say in a sentence that the memory was not enough, wherever it was: no call is too small."""

    @wraps(function)
    def run(*given: _Given.args, **named: _Given.kwargs) -> _Made:
        try:
            return function(*given, **named)
        except SaliencyExplainError:
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                "The memory was not enough for this run. Choose a smaller window, a method with "
                "fewer passes, another device, or a machine with more memory."
            ) from error

    return run


@_tells_full_memory
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
    run = _Run(model, image, target, Progress(progress, cancelled), batch_size)
    with run.of(chosen.title):
        sweeps = _sweeps(chosen, run.engine)
        if sweeps is not None:
            run.engine.progress.expect(len(run.engine.plan.windows) * sweeps)
        with run.engine.running():
            if fast:
                run.go_fast(sweeps, chosen.single_precision)
            made = chosen.attribute(run.engine)
            run.score()
    return run.explanation(chosen, made)


@_tells_full_memory
def explain_layers(
    model: Model,
    image: MetaTensor,
    target: Target | None = None,
    methods: Sequence[str | Method] = ("grad_cam",),
    layers: Sequence[str] | None = None,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Explanation]:
    """Make class activation maps at several layers, of several kinds, from the same passes.

    One forward and one backward pass serve all of them where the network takes the whole volume;
    sliding windows need up to three sweeps more, whatever the number of maps.

    Parameters
    ----------
    model : Model
    image : MetaTensor, shape (C, I, J, K)
        As for :func:`explain`.
    target : Target, optional
        As for :func:`explain`.
    methods : sequence of str or Method
        Among those that need a layer's features and gradients only: Grad-CAM, Grad-CAM++,
        XGrad-CAM, HiResCAM, LayerCAM, Seg-XRes-CAM.
    layers : sequence of str, optional
        Names; None: every layer without sub-modules whose features have voxels.
    progress, cancelled : callable, optional
        As for :func:`explain`.

    Returns
    -------
    list of Explanation
        One a method and layer: all layers of the first method in the order in which they run, then
        those of the next. ``seconds`` and ``peak_memory_mb`` are those of all together.

    Raises
    ------
    SaliencyExplainError
        As :func:`explain`; :class:`MethodError` for a method that needs passes of its own.
    """
    target = target or Target()
    kinds = [_one_pass(_made(method, {})) for method in methods]
    image = as_image(image)
    for kind in kinds:
        kind.check(model)
    run = _Run(model, image, target, Progress(progress, cancelled), None)
    with run.of(", ".join(dict.fromkeys(kind.title for kind in kinds))):
        names = _layers_with_maps(run.engine) if layers is None else list(layers)
        kinds = [replace(kind, layer=name) for kind in kinds for name in names]
        found = [(kind, *kind.find(run.engine)) for kind in kinds]
        with run.engine.running():
            made = attribute_together(run.engine, [(kind, info) for kind, info, _ in found])
            run.score()
    return [
        run.explanation(kind, replace(one, warnings=(*notes, *one.warnings)))
        for (kind, _, notes), one in zip(found, made, strict=True)
    ]


class _Run:
    """One engine from the image to its explanations."""

    def __init__(
        self,
        model: Model,
        image: MetaTensor,
        target: Target,
        progress: Progress,
        batch_size: int | None,
    ) -> None:
        self.model = model
        self.image = image
        self.target = target
        self.progress = progress
        self.batch_size = batch_size
        self.memory = MemoryMeter(model.device)
        self.seconds = 0.0
        self.notes: tuple[str, ...] = ()
        self.details: dict[str, Any] = {}

    @contextmanager
    def of(self, title: str) -> Iterator[None]:
        """Prepare the image and measure what runs inside; errors say what ran on which image."""
        started = time.perf_counter()
        with self.memory:
            try:
                self.network_image = self.model.prepare(self.image)
                self.engine = Engine(
                    self.model, self.network_image, self.target, self.progress, self.batch_size
                )
                yield
            except Cancelled:
                raise
            except SaliencyExplainError as error:
                raise type(error)(
                    f"{error} (While running {title} on {_called(self.image)}.)"
                ) from error
        self.seconds = time.perf_counter() - started

    def go_fast(self, sweeps: int | None, single_precision: str) -> None:
        """Compute in bfloat16 where that is worth it and alike, and note what was found."""
        checked, note = go_fast(self.engine, sweeps, single_precision)
        self.notes = (note,)
        if checked is not None:
            self.details = {"fast": checked.to_dict()}

    def score(self) -> None:
        """Keep the score and its target, and end the progress."""
        self.value = self.engine.start_value
        self.frozen = self.engine.frozen
        self.progress.finish()

    def explanation(self, method: Method, made: Attribution) -> Explanation:
        """What a method made, on the image's grid."""
        maps = made.maps.detach().float().cpu()
        _refuse_nan(maps, method)
        return Explanation(
            maps=self.model.preprocess.invert(maps, self.network_image, self.image),
            network_maps=make_image(maps, self.network_image.affine),
            layer_map=_layer_map(made, self.network_image),
            value=self.value,
            target=self.frozen.to_dict(),
            method=method.name,
            title=method.title,
            parameters={**method.parameters(), **made.used},
            signed=method.is_signed(),
            unit=method.unit,
            combine=method.combine,
            layers=made.layers,
            details={**made.details, **self.details},
            completeness_error=made.completeness_error,
            warnings=(
                *made.warnings,
                *self.image.meta.get("notes", ()),
                *self.notes,
                *self.engine.batch.notes,
                *_map_warnings(maps),
            ),
            seconds=self.seconds,
            peak_memory_mb=self.memory.peak_mb,
            model=dict(self.model.provenance),
            image=_provenance(self.image),
            versions=dict(versions()),
        )


@_tells_full_memory
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
    # The scores come back, then they are compared: as nnU-Net and the zoo's bundles do. One output
    # at a time, since a hundred of them on a whole scan would not fit.
    back = (model.preprocess.invert(one[None], network_image, image).as_tensor() for one in output)
    if model.activation != "softmax":
        return make_image(torch.cat([one.sigmoid() > 0.5 for one in back]), image.affine)
    best = next(back)
    labels = torch.zeros_like(best)
    for number, score in enumerate(back, 1):
        larger = score > best
        best = torch.where(larger, score, best)
        labels[larger] = number
    return make_image(labels, image.affine)


def _made(method: str | Method, parameters: dict[str, Any]) -> Method:
    if not isinstance(method, Method):
        return make_method(method, parameters)
    if parameters:
        raise MethodError(
            f"{method.title} was made already. Give its parameters there: {', '.join(parameters)}."
        )
    return method


def _one_pass(method: Method) -> OnePassCam:
    if not isinstance(method, OnePassCam):
        able = [one.title for one in all_methods().values() if issubclass(one, OnePassCam)]
        raise MethodError(
            f"{method.title} needs passes of its own at each layer. Choose among "
            f"{', '.join(able)}, or explain layer by layer."
        )
    return method


def _layers_with_maps(engine: Engine) -> list[str]:
    """Names of the layers whose maps show places."""
    window = engine.model.inferer.window_shape(tuple(engine.image.shape[1:]))
    layers = engine.model.layers(shape=(engine.image.shape[0], *window))
    names = [
        one.name for one in layers if one.leaf and not one.passes_on and max(one.shape[1:]) > 1
    ]
    if not names:
        raise MethodError(
            "The network has no layer whose features have voxels. Use a gradient method."
        )
    return names


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
    if torch.isfinite(maps.sum()):  # one fast look; a sum may also overflow
        return
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
    low, high = (float(one) for one in torch.aminmax(maps))
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
