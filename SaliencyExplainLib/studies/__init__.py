"""Studies: volumes and pipelines of published systems, built from the parts of this library.

>>> from SaliencyExplainLib.studies import spiculated_nodules
>>> scene = spiculated_nodules(size=16, seed=1)
>>> scene.names[scene.TARGET]
'spiculated nodule'

:mod:`.nodules` makes volumes whose evidence is known and lies outside of the label.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .nodules import SpiculatedNodules, spiculated_nodules

__all__ = ["SpiculatedNodules", "spiculated_nodules"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import nodules

    value = getattr(nodules, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
