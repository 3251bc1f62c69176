"""Explain 3D networks: which voxels and structures made them say what they said.

>>> import SaliencyExplainLib as sx
>>> model = sx.load_model("bundle_folder")                                      # doctest: +SKIP
>>> explanation = sx.explain(model, sx.read_image("scan.nii.gz"),
...                          sx.Target(output="spleen"), "integrated_gradients")  # doctest: +SKIP

Torch, MONAI and slicer are imported when a name that needs them is first used, so that methods can
be listed without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import errors
from .errors import Cancelled, SaliencyExplainError
from .methods import Method, describe_method, make_method, methods

if TYPE_CHECKING:
    from . import quality, report, scene, studies, worker
    from .explanation import Explanation
    from .image import make_image, read_image, read_labelmap, write_image
    from .model import Model, load_model
    from .regions import RegionTable, region_table
    from .report import write_report
    from .run import explain, explain_layers, predict
    from .target import Target
    from .volume import Volume

__version__ = "0.1.0"

__all__ = [
    "Cancelled",
    "Explanation",
    "Method",
    "Model",
    "RegionTable",
    "SaliencyExplainError",
    "Target",
    "Volume",
    "describe_method",
    "errors",
    "explain",
    "explain_layers",
    "load_model",
    "make_image",
    "make_method",
    "methods",
    "predict",
    "quality",
    "read_image",
    "read_labelmap",
    "region_table",
    "report",
    "scene",
    "studies",
    "worker",
    "write_image",
    "write_report",
]

_LATER = {
    "Explanation": ".explanation",
    "Model": ".model",
    "RegionTable": ".regions",
    "Target": ".target",
    "Volume": ".volume",
    "explain": ".run",
    "explain_layers": ".run",
    "load_model": ".model",
    "make_image": ".image",
    "predict": ".run",
    "read_image": ".image",
    "read_labelmap": ".image",
    "region_table": ".regions",
    "write_image": ".image",
    "write_report": ".report",
}


def __getattr__(name: str) -> Any:
    if name in ("quality", "report", "scene", "studies", "worker"):
        return import_module(f".{name}", __name__)
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Kept, so that a second use costs nothing.
    value = getattr(import_module(_LATER[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
