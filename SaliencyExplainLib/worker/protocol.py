"""What panel and worker say to each other: requests, and messages as lines of JSON.

One message is one line of UTF-8. Arrays do not go through the pipe; they lie in files that both
sides see (:mod:`.jobs`). A change that the other side would not understand raises PROTOCOL.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePath
from typing import Any, ClassVar

from ..errors import WorkerError
from .checking import check_fields

__all__ = [
    "PROTOCOL",
    "Evaluate",
    "Explain",
    "ExplainLayers",
    "Hello",
    "Layers",
    "Load",
    "ModelSource",
    "Predict",
    "Question",
    "Report",
    "Request",
    "Trust",
    "decode",
    "encode",
    "json_values",
    "request_from",
    "request_message",
]

#: Version of the messages; both sides must have the same.
PROTOCOL = 2

#: A volume in a file, as :func:`SaliencyExplainLib.worker.jobs.write_array` describes it.
Reference = Mapping[str, Any]


@dataclass(frozen=True)
class ModelSource:
    """Which model, and what it may do.

    Parameters
    ----------
    path : str
        As the worker sees it.
    trusted : bool
        Whether code in the file may run.
    trusted_sha256 : str
        The same, but only if the file (or all files of the folder) still has this hash: what the
        person agreed to.
    options : mapping
        Arguments of ``load_model`` as JSON values: task, labels, channels, activation, network,
        network_arguments, device.
    """

    path: str
    trusted: bool = False
    trusted_sha256: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """What is explained; the fields of ``Target``, with the segment as a reference."""

    output: int | str | None = None
    region: str | None = None
    score: str | None = None
    reduce: str = "mean"
    contrast: int | str | None = None
    contrast_weight: float = 1.0
    segment: Reference | None = None
    roi_ras_mm: Sequence[Sequence[float]] | None = None
    point_ras_mm: Sequence[float] | None = None
    instance: int | None = None


@dataclass(frozen=True)
class Hello:
    """Ask for versions, devices and missing packages."""

    name: ClassVar[str] = "hello"


@dataclass(frozen=True)
class Load:
    """Load a model and describe it; it stays warm."""

    name: ClassVar[str] = "load"
    model: ModelSource


@dataclass(frozen=True)
class Layers:
    """List the layers of a model, and the layer that each of some methods would take.

    Parameters
    ----------
    model : ModelSource
    image : reference, optional
        A scan, whose size decides the shapes.
    shape : (C, I, J, K), optional
        Size of the network's input instead. Neither is needed for a network with windows.
    methods : sequence of str
        Names of methods.
    """

    name: ClassVar[str] = "layers"
    model: ModelSource
    image: Reference | None = None
    shape: Sequence[int] | None = None
    methods: Sequence[str] = ()


@dataclass(frozen=True)
class Explain:
    """Explain one output.

    Parameters
    ----------
    model : ModelSource
    image : reference
        All channels.
    question : Question
    method : str
        Registered name.
    parameters : mapping
        JSON values; a label map is a reference.
    output : str
        Folder that will hold the result; it must not exist yet.
    segments : reference, optional
        Label map for the region table.
    segment_names : mapping of int to str
        Names of its labels.
    fast : bool
    batch_size : int, optional
        As for :func:`SaliencyExplainLib.explain`.
    """

    name: ClassVar[str] = "explain"
    model: ModelSource
    image: Reference
    question: Question
    method: str
    parameters: Mapping[str, Any]
    output: str
    segments: Reference | None = None
    segment_names: Mapping[int, str] = field(default_factory=dict)
    fast: bool = False
    batch_size: int | None = None


@dataclass(frozen=True)
class Predict:
    """Segment an image; `output` as in :class:`Explain`."""

    name: ClassVar[str] = "predict"
    model: ModelSource
    image: Reference
    output: str


@dataclass(frozen=True)
class ExplainLayers:
    """Make class activation maps at several layers from the same passes.

    Parameters
    ----------
    model, image, question, output
        As in :class:`Explain`.
    methods : sequence of str
        Names of methods that need a layer's features and gradients only.
    layers : sequence of str, optional
        Names; every layer whose maps show places when left out.
    """

    name: ClassVar[str] = "explain_layers"
    model: ModelSource
    image: Reference
    question: Question
    output: str
    methods: Sequence[str] = ("grad_cam",)
    layers: Sequence[str] | None = None


@dataclass(frozen=True)
class Evaluate:
    """Find out how far a map can be trusted.

    Parameters
    ----------
    model, image, question, output, segments, segment_names, fast
        As in :class:`Explain`.
    method, parameters
        What made the map: it is made again where `explanation` is empty, and run again where
        metrics and the sanity check ask for it. Without a name that of the explanation's record, or
        the best of `methods`.
    explanation : str
        Folder of a result of :class:`Explain`, or one that ``Explanation.save`` wrote with
        ``network_grid=True``.
    metrics : str or sequence of str
        "quick", "usual", "all", or names.
    metric_parameters : mapping of metric to mapping
        JSON values.
    truth : reference, optional
        Mask of the evidence that is known to be right.
    sanity : str
        Mode of the sanity check, "cascading" or "independent"; empty for none.
    draws : int
        Random networks a stage of it.
    methods : sequence of str
        Methods to be ranked.
    report : str
        Folder for the report; empty for none.
    """

    name: ClassVar[str] = "evaluate"
    model: ModelSource
    image: Reference
    question: Question
    output: str
    method: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    explanation: str = ""
    metrics: str | Sequence[str] = "quick"
    metric_parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    truth: Reference | None = None
    segments: Reference | None = None
    segment_names: Mapping[int, str] = field(default_factory=dict)
    sanity: str = ""
    draws: int = 3
    methods: Sequence[str] = ()
    report: str = ""
    fast: bool = False


@dataclass(frozen=True)
class Report:
    """Write what was found as a page.

    Parameters
    ----------
    image : reference
        The anatomy.
    result : str
        Folder of a result that holds an explanation.
    folder : str
        Where the page and its figures go.
    contour : reference, optional
        Mask whose outline is drawn over the maps; `contour_name` says what it is.
    """

    name: ClassVar[str] = "report"
    image: Reference
    result: str
    folder: str
    contour: Reference | None = None
    contour_name: str = "mask"


Request = Hello | Load | Layers | Explain | ExplainLayers | Predict | Evaluate | Report
_REQUESTS: dict[str, type[Request]] = {
    one.name: one
    for one in (Hello, Load, Layers, Explain, ExplainLayers, Predict, Evaluate, Report)
}


@dataclass(frozen=True)
class Trust:
    """A model that would run code, and the hash of what would be trusted."""

    path: str
    sha256: str
    reason: str


def request_message(request: Request, job: str) -> dict[str, Any]:
    """Return the message that asks for a job."""
    return {"type": request.name, "job": job, "protocol": PROTOCOL, **asdict(request)}


def request_from(message: Mapping[str, Any]) -> Request:
    """Return the request in a message.

    Raises
    ------
    WorkerError
        If it is of another protocol, unknown, or lacks something.
    """
    if message.get("protocol") != PROTOCOL:
        raise WorkerError(
            f"The request is in version {message.get('protocol')} of the messages and this worker "
            f"speaks version {PROTOCOL}. Use the same release of SaliencyExplain on both sides."
        )
    kind = str(message.get("type"))
    if kind not in _REQUESTS:
        raise WorkerError(f"The worker has no job {kind!r}. It has: {', '.join(_REQUESTS)}.")
    given = {key: value for key, value in message.items() if key not in _ENVELOPE}
    made: Request = _made(_REQUESTS[kind], given)
    return made


_ENVELOPE = ("type", "job", "protocol")
_PARTS: dict[str, type[Any]] = {"model": ModelSource, "question": Question}


def _made(cls: type[Any], given: Mapping[str, Any]) -> Any:
    unknown = set(given) - {one.name for one in fields(cls)}
    values = {
        key: _made(_PARTS[key], value) if key in _PARTS and isinstance(value, Mapping) else value
        for key, value in given.items()
        if key not in unknown
    }
    if "segment_names" in values:
        values["segment_names"] = _names(values["segment_names"])
    check_fields(cls, values)
    try:
        made = cls(**values)
    except TypeError as error:
        raise WorkerError(f"The request {cls.__name__} is incomplete: {error}.") from error
    if unknown:
        raise WorkerError(f"The request {cls.__name__} has no field {min(unknown)!r}.")
    return made


def _names(given: Any) -> dict[int, str]:
    """Names of labels, whose numbers are texts in JSON."""
    try:
        return {int(key): str(one) for key, one in given.items()}
    except (AttributeError, ValueError) as error:
        raise WorkerError(
            f"segment_names maps the numbers of labels to names; {given!r} was given."
        ) from error


def encode(message: Mapping[str, Any]) -> bytes:
    """Return a message as one line."""
    return json.dumps(json_values(message), allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any] | None:
    """Return the message in a line; None where there is none (a line that somebody printed)."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_message = isinstance(message, dict) and isinstance(message.get("type"), str)
    return message if is_message else None


def json_values(value: Any) -> Any:
    """JSON values only: what is no finite number becomes null, paths and the rest become text."""
    if isinstance(value, Mapping):
        return {str(key): json_values(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [json_values(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if hasattr(value, "tolist"):
        return json_values(value.tolist())
    return str(value) if isinstance(value, PurePath) else repr(value)
