"""What the worker does for each request. Torch is imported by the first job that needs it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ..errors import MissingPackageError
from .appraising import appraise_map, planned, write_page
from .jobs import write_result
from .models import ModelCache, default_layers, described
from .protocol import (
    PROTOCOL,
    Evaluate,
    Explain,
    ExplainLayers,
    Hello,
    Layers,
    Load,
    ModelSource,
    Predict,
    Report,
    Request,
)
from .questions import image_of, method_of, target_of

if TYPE_CHECKING:
    from ..model import Model

__all__ = ["NEEDED", "Tasks", "missing_packages"]

#: Import names and distribution names of what a job needs.
NEEDED = {
    "torch": "torch",
    "monai": "monai",
    "numpy": "numpy",
    "scipy": "scipy",
    "SimpleITK": "SimpleITK",
}
#: Nice to know about.
_OTHERS = {"skimage": "scikit-image", "captum": "captum"}


class Tasks:
    """Runs requests and keeps the last model.

    Parameters
    ----------
    progress : callable
        Called with a fraction (0 to 1) and a message.
    cancelled : callable
        Whether the running job is to stop.
    threads : int
        Threads of torch; 0 leaves it to torch.
    """

    def __init__(
        self,
        progress: Callable[[float, str], None],
        cancelled: Callable[[], bool],
        threads: int = 0,
    ) -> None:
        self._progress, self._cancelled, self._threads = progress, cancelled, threads
        self._ready = False
        self._models = ModelCache()

    def run(self, request: Request) -> dict[str, Any]:
        """Do what is asked and return the answer as JSON values.

        Raises
        ------
        SaliencyExplainError
            With a sentence for people.
        """
        if isinstance(request, Hello):
            return self._hello()
        self.prepare()
        if isinstance(request, Load):
            return self._load(request)
        if isinstance(request, Layers):
            return self._layers(request)
        if isinstance(request, Predict):
            return self._predict(request)
        if isinstance(request, ExplainLayers):
            return self._explain_layers(request)
        if isinstance(request, Evaluate):
            return self._evaluate(request)
        if isinstance(request, Report):
            self._progress(0.0, "drawing")
            return write_page(request)
        return self._explain(request)

    def tidy(self, *, keep_model: bool) -> None:
        """Give memory back after a job; without the model after a cancel or a lack of memory."""
        if not keep_model:
            self._models.drop()
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        if sys.platform == "linux":
            # glibc keeps what was freed; the system gets it back.
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)

    def _hello(self) -> dict[str, Any]:
        from .. import __version__

        missing, problem = missing_packages(), ""
        devices = [{"name": "cpu", "title": f"CPU, {os.cpu_count()} threads", **_memory()}]
        if "torch" not in missing:
            try:
                devices += _accelerators()
            except Exception as error:  # noqa: BLE001 - a half-installed torch raises anything
                problem = f"torch cannot be used: {' '.join(str(error).split())}"
        versions = {}
        for name in (*NEEDED.values(), *_OTHERS.values()):
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions[name] = metadata.version(name)
        return {
            "protocol": PROTOCOL,
            "library": __version__,
            "python": platform.python_version(),
            "executable": sys.executable,
            "platform": platform.platform(),
            "pid": os.getpid(),
            "versions": versions,
            "missing": missing,
            "problem": problem,
            "devices": devices,
        }

    def prepare(self) -> None:
        """Import what jobs need, once.

        Raises
        ------
        MissingPackageError
            If it is not there.
        """
        if self._ready:
            return
        missing = missing_packages()
        if missing:
            raise MissingPackageError(
                f"The worker's Python ({sys.executable}) finds no {', '.join(missing)}. Install "
                "what is missing there, or choose another interpreter."
            )
        import torch

        from .. import model, run  # noqa: F401 - all that a job needs, with MONAI

        if self._threads:
            torch.set_num_threads(self._threads)
        # What the imports made stays for ever; a collection after each job need not look at it
        # (0.1 s).
        gc.collect()
        gc.freeze()
        self._ready = True

    def _model(self, source: ModelSource) -> tuple[Model, bool]:
        self._progress(0.0, "loading the model")
        loaded = self._models.load(source)
        self._progress(0.0, "computing")
        return loaded

    def _load(self, request: Load) -> dict[str, Any]:
        started = time.monotonic()
        model, warm = self._models.load(request.model)
        facts = described(model, self._models.sha256)
        return {**facts, "warm": warm, "seconds": round(time.monotonic() - started, 3)}

    def _layers(self, request: Layers) -> dict[str, Any]:
        from ..model import layer_facts

        model, _ = self._models.load(request.model)
        image = None if request.image is None else image_of(request.image)
        shape = None if request.shape is None else tuple(int(one) for one in request.shape)
        found = model.layers(image, shape=shape)
        return {
            "layers": layer_facts(found),
            "defaults": default_layers(found, model.task, request.methods),
        }

    def _explain(self, request: Explain) -> dict[str, Any]:
        from .. import explain, region_table

        started = time.monotonic()
        method = method_of(request.method, request.parameters)
        model, warm = self._model(request.model)
        found = explain(
            model,
            image_of(request.image),
            target_of(request.question),
            method,
            progress=self._progress,
            cancelled=self._cancelled,
            fast=request.fast,
            batch_size=request.batch_size,
        )
        table = None
        if request.segments is not None:
            table = region_table(found, image_of(request.segments), request.segment_names)
        write_result(request.output, found, table)
        return _written(request.output, started, warm)

    def _explain_layers(self, request: ExplainLayers) -> dict[str, Any]:
        from .. import explain_layers, make_method

        started = time.monotonic()
        methods = [make_method(name) for name in request.methods]
        model, warm = self._model(request.model)
        found = explain_layers(
            model,
            image_of(request.image),
            target_of(request.question),
            methods,
            request.layers,
            self._progress,
            self._cancelled,
        )
        write_result(request.output, layers=found)
        return _written(request.output, started, warm)

    def _predict(self, request: Predict) -> dict[str, Any]:
        from .. import predict

        started = time.monotonic()
        model, warm = self._model(request.model)
        image = image_of(request.image)
        labels = predict(model, image, progress=self._progress, cancelled=self._cancelled)
        names = dict(enumerate(model.labels))
        write_result(request.output, labels=labels, label_names=names)
        return _written(request.output, started, warm)

    def _evaluate(self, request: Evaluate) -> dict[str, Any]:
        started = time.monotonic()
        work = planned(request)
        model, warm = self._model(request.model)
        told = appraise_map(request, work, model, self._progress, self._cancelled)
        return {**_written(request.output, started, warm), **told}


def missing_packages() -> list[str]:
    """Return what a job needs and Python does not find."""
    return [one for one in NEEDED if importlib.util.find_spec(one) is None]


def _written(output: str, started: float, warm: bool) -> dict[str, Any]:
    return {"folder": output, "seconds": round(time.monotonic() - started, 3), "warm": warm}


def _accelerators() -> list[dict[str, Any]]:
    """Where a network can run beside the CPU."""
    import torch

    listed: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        title = torch.cuda.get_device_name(index)
        size = {"memory_mb": total // 10**6, "free_mb": free // 10**6}
        listed.append({"name": f"cuda:{index}", "title": title, **size})
    if torch.backends.mps.is_available():
        listed.append({"name": "mps", "title": "Apple graphics", **_memory()})
    return listed


def _memory() -> dict[str, int | None]:
    """Memory of the machine in MB, None where the system does not tell."""
    sizes: dict[str, int | None] = {"memory_mb": None, "free_mb": None}
    with contextlib.suppress(OSError, ValueError, AttributeError):
        page = os.sysconf("SC_PAGE_SIZE")
        sizes["memory_mb"] = page * os.sysconf("SC_PHYS_PAGES") // 10**6
        sizes["free_mb"] = page * os.sysconf("SC_AVPHYS_PAGES") // 10**6
    return sizes
