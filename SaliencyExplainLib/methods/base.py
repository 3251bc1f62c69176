"""What an attribution method is, and how one is declared in a single place.

A method is a frozen dataclass: its fields are its parameters, each with default, range, unit and
help. The decorator adds the facts that panel, shell, documentation and tests read. Nothing here
imports torch, so that methods can be listed before torch is installed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ..errors import MethodError
from .parameters import as_json, check_value, made_from, param, parameter_lines

if TYPE_CHECKING:
    import torch

    from ..engine import Engine
    from ..model import Grid, Model

__all__ = ["Attribution", "Method", "describe_method", "make_method", "method", "methods", "param"]

#: Scores of hardly changed images differ by less than bfloat16 can tell (an Ablation-CAM of a U-Net
#: had a cosine of 0.81 to the one in single precision where the gradient had 0.99).
_DIFFERENCES = "this method subtracts scores that are nearly the same"

_REGISTRY: dict[str, type[Method]] = {}
_M = TypeVar("_M", bound="type[Method]")


@dataclass(frozen=True)
class Attribution:
    """What a method gives back, on the network's grid.

    Attributes
    ----------
    maps : Tensor, shape (C, I, J, K)
        C is the number of input channels, or 1.
    layer_map : Tensor or None, shape (1, i, j, k)
        The map on the layer's own grid, where there is a single one.
    layer_grid : Grid or None
        Where the voxels of `layer_map` lie.
    layers : tuple of str
        Layers that were used.
    completeness_error : float or None
        See :class:`SaliencyExplainLib.Explanation`.
    warnings : tuple of str
        What the reader of the map must know.
    used : dict
        Parameters as they were used, where they differ from those given ("automatic" choices).
    details : dict
        What the method counted on the way, JSON values.
    """

    maps: torch.Tensor
    layer_map: torch.Tensor | None = None
    layer_grid: Grid | None = None
    layers: tuple[str, ...] = ()
    completeness_error: float | None = None
    warnings: tuple[str, ...] = ()
    used: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """Base of all attribution methods.

    Class attributes, set by :func:`method`
        ``name``, ``title``, ``family``, ``summary`` (what it answers), ``paper``, ``signed``,
        ``needs_layer``, ``needs_gradient``, ``unit`` (of the map's values), ``combine`` (how input
        channels join: "sum" or "max_abs"), ``weaknesses``.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    family: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    signed: ClassVar[bool]
    needs_layer: ClassVar[bool]
    needs_gradient: ClassVar[bool]
    unit: ClassVar[str]
    combine: ClassVar[str]
    weaknesses: ClassVar[str]
    #: Why the network keeps single precision in fast mode; empty where bfloat16 will do.
    single_precision: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for one in fields(self):
            check_value(self.title, one, getattr(self, one.name))

    def passes(self) -> int | None:
        """Sweeps over the image (forward, or forward and backward), the first one included.

        None where that is known only on the image.
        """
        return 1

    def window_passes(self, *, linear: bool) -> int | None:
        """Return the same through sliding windows, whose first sweep only fixes the region.

        Parameters
        ----------
        linear : bool
            Whether the score is linear in the output; one that is not needs the output at each
            image before its gradient.
        """
        passes = self.passes()
        return None if passes is None else passes + 1

    def is_signed(self) -> bool:
        """Whether the map has a sign with these parameters."""
        return self.signed

    def check(self, model: Model) -> None:
        """Refuse a model that the method cannot explain, before anything is computed."""
        if self.needs_layer and model.scripted:
            raise MethodError(
                f"{self.title} looks into a layer, which a TorchScript network does not allow. "
                "Load the original network with its state dict or as torch.export saves it (.pt2), "
                "or choose a gradient or perturbation method."
            )

    def attribute(self, engine: Engine) -> Attribution:
        """Make the map. The engine is running: eval mode, frozen weights."""
        raise MethodError(
            f"{type(self).__name__} does not say how it makes a map. Define attribute(engine)."
        )

    def parameters(self) -> dict[str, Any]:
        """Parameters as JSON values."""
        return {one.name: as_json(getattr(self, one.name)) for one in fields(self)}


def method(
    name: str,
    *,
    title: str,
    family: str,
    summary: str,
    paper: str,
    signed: bool,
    weaknesses: str,
    needs_layer: bool = False,
    needs_gradient: bool = True,
    unit: str = "score",
    combine: str = "sum",
) -> Callable[[_M], _M]:
    """Declare a method under its name.

    Raises
    ------
    MethodError
        If the name is taken; both files are named.
    """

    def register(cls: _M) -> _M:
        if name in _REGISTRY:
            files = [inspect.getsourcefile(one) for one in (_REGISTRY[name], cls)]
            raise MethodError(
                f"Two methods are called {name!r}: in {files[0]} and {files[1]}. Rename one."
            )
        facts = {
            "name": name,
            "title": title,
            "family": family,
            "summary": summary,
            "paper": paper,
            "signed": signed,
            "weaknesses": weaknesses,
            "needs_layer": needs_layer,
            "needs_gradient": needs_gradient,
            "unit": unit,
            "combine": combine,
        }
        for key, value in facts.items():
            setattr(cls, key, value)
        if not needs_gradient and not cls.single_precision:
            cls.single_precision = _DIFFERENCES
        _REGISTRY[name] = cls
        return cls

    return register


def methods() -> dict[str, type[Method]]:
    """All methods by name, in the order of their declaration."""
    return dict(_REGISTRY)


def make_method(name: str, parameters: Mapping[str, Any] | None = None) -> Method:
    """Make a method from its name and parameters; texts are converted to the parameter's type.

    Parameters
    ----------
    name : str
        Registered name.
    parameters : mapping
        Values, or texts as they come from a shell.

    Raises
    ------
    MethodError
        If the name or a parameter is unknown (the nearest is named), or a value does not fit.
    """
    return made_from(_REGISTRY, name, parameters, kind="method", error=MethodError)


def describe_method(name: str) -> str:
    """The method's card for people: what it answers, cost, parameters, paper, weaknesses.

    Raises
    ------
    MethodError
        If there is no such method.
    """
    chosen = make_method(name)
    passes = chosen.passes()
    lines = [
        f"{chosen.title} ({name})",
        f"  {chosen.summary}",
        f"  {'signed' if chosen.signed else 'unsigned'}; "
        f"{'needs a layer' if chosen.needs_layer else 'on the input'}; "
        + (
            "the number of passes depends on the image"
            if passes is None
            else f"{passes} pass{'es' if passes != 1 else ''} with the default parameters"
        ),
        f"  Weaknesses: {chosen.weaknesses}",
        f"  Source: {chosen.paper}",
    ]
    return "\n".join(lines + parameter_lines(chosen))
