"""``methods`` and ``model``: what can be done, and with what."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..methods.layer import default_layers
from .output import print_json, say

if TYPE_CHECKING:
    from ..methods import Method
    from ..model import Model

__all__ = ["run_methods", "run_model"]


def run_methods(options: Any) -> None:
    """List the methods by family, or describe one."""
    from .. import describe_method, make_method, methods

    if options.name is not None:
        chosen = type(make_method(options.name))
        if options.json:
            print_json(_card(options.name, chosen))
        else:
            say(describe_method(options.name))
        return
    known = methods()
    if options.json:
        print_json({"methods": [_card(name, one) for name, one in known.items()]})
        return
    width = max(len(name) for name in known)
    for family in dict.fromkeys(one.family for one in known.values()):
        say(f"{family}:")
        for name, one in known.items():
            if one.family == family:
                say(f"  {name:<{width}}  {one.summary}")
    say("More about one: methods NAME")


def run_model(options: Any) -> None:
    """Describe a model file, and its layers when asked."""
    from .. import load_model
    from ..model import model_facts
    from .question import load_options

    model = load_model(options.model, trusted=options.trust, **load_options(options))
    layers = _layers(model, options.shape) if options.layers else None
    if options.json:
        print_json(model_facts(model) | ({} if layers is None else {"layers": layers}))
        return
    say(model.describe())
    if layers is None:
        return
    width = max((len(one["name"]) for one in layers), default=0)
    say(f"layers ({len(layers)}):")
    for one in layers:
        shape = " x ".join(str(size) for size in one["shape"])
        step = " x ".join(f"{size:g}" for size in one["spacing_voxels"])
        notes = ["feeds an instance norm"] * one["feeds_instance_norm"]
        if one["default_of"]:
            notes.append(f"default of {', '.join(one['default_of'])}")
        notes += ["place not followed"] * (not one["place_followed"])
        line = f"  {one['name']:<{width}}  {one['kind']:<18} {shape:<22} every {step} voxels"
        say(line + (f"  ({', '.join(notes)})" if notes else ""))


def _card(name: str, method: type[Method]) -> dict[str, Any]:
    """Declaration of a method as JSON values."""
    parameters = [
        {"name": one.name, "default": one.default, **one.metadata} for one in fields(method)
    ]
    facts = ("title", "family", "summary", "paper", "signed", "needs_layer", "weaknesses")
    card: dict[str, Any] = {"name": name}
    card |= {fact: getattr(method, fact) for fact in facts}
    return card | {"passes": method().passes(), "parameters": parameters}


def _layers(model: Model, shape: list[int] | None) -> list[dict[str, Any]]:
    if shape is not None and min(shape) < 1:
        raise ModelError(f"--shape needs four sizes of 1 or more (C I J K); {shape} was given.")
    from ..model import layer_facts

    found = model.layers(shape=None if shape is None else tuple(shape))
    chosen = default_layers(found, model.task)
    return [
        {**facts, "default_of": [name for name, layer in chosen.items() if layer == facts["name"]]}
        for facts in layer_facts(found)
    ]
