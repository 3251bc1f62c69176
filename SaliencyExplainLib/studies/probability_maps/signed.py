"""Signed maps of one image by several methods, and what each region and channel adds to the score.

For a network s of several input channels P_c (for example tissue probabilities) and a reference B,
integrated gradients share out what the image changes::

    A_c(v) = (P_c - B_c)(v) * integral over a in [0, 1] of ds/dP_c(B + a (P - B))(v)
    sum over c and v of A_c(v) = s(P) - s(B)                              (completeness)

so the sum over a region and channel is what it adds to the score (red) or takes from it (blue).
The reference is part of the question: zero means "nothing there", the mean of a healthy group means
"as in them". Where disease makes an image darker, a zero reference turns signs around, since what
is dark is nearer to zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from monai.data import MetaTensor

from ...errors import StudyError
from ...image import as_image, make_image, same_grid
from ...methods import Method, make_method
from ...methods import methods as all_methods
from ...model import Model
from ...model.inferer import WholeVolume
from ...model.preprocess import Preprocess
from ...regions import region_table
from ...run import explain
from ..results import StudyTable

if TYPE_CHECKING:
    from ...explanation import Explanation
    from ...target import Target
    from ...volume import Volume

__all__ = ["METHODS", "SignedMaps", "SignedShare", "signed_maps"]

METHODS = ("integrated_gradients", "input_x_gradient", "deep_lift", "gradient_shap")
#: Name of the rows of all channels together.
ALL = "all channels"
#: Points of the path to begin with, and to end with where the map still does not add up.
_STEPS, _MOST_STEPS = 32, 256


@dataclass(frozen=True)
class SignedShare:
    """One region in one channel of one map.

    Attributes
    ----------
    method, channel, region : str
        The channel is "all channels" for the map of their sum.
    voxels : int
        Of the map's grid.
    share, positive, negative : float
        Part of the |attribution| of all regions (and of all channels, for a single one) that lies
        here, and its two signs: share = positive + negative. NaN for a map that is zero.
    net : float
        Sum of the map here, in the map's unit: for a complete method what this region and channel
        add to the score.
    """

    method: str
    channel: str
    region: str
    voxels: int
    share: float
    positive: float
    negative: float
    net: float


@dataclass(frozen=True)
class SignedMaps:
    """Maps of several methods, and their shares by region and channel.

    Attributes
    ----------
    explanations : mapping of str to Explanation
        By method; ``completeness_error`` is None for methods that promise none.
    shares : tuple of SignedShare
        Method by method, channel by channel, region by region. Within a method, the shares of the
        single channels sum to 1, and those of "all channels" do.
    """

    explanations: Mapping[str, Explanation]
    shares: tuple[SignedShare, ...]

    def row(self, method: str, region: str, channel: str = ALL) -> SignedShare:
        """Return one row.

        Raises
        ------
        StudyError
            If there is none.
        """
        for one in self.shares:
            if (one.method, one.region, one.channel) == (method, region, channel):
                return one
        raise StudyError(
            f"There is no row of {method!r}, {region!r}, {channel!r}. Regions: "
            f"{_listed(one.region for one in self.shares)}; channels: "
            f"{_listed(one.channel for one in self.shares)}; methods: {_listed(self.explanations)}."
        )

    def table(self) -> StudyTable:
        """All rows, with the completeness error of each method."""
        return StudyTable(
            "signed_shares",
            "Attribution by region and channel",
            ("method", "channel", "region", "voxels", "share", "positive", "negative", "net"),
            tuple(tuple(getattr(one, key.name) for key in fields(one)) for one in self.shares),
            "Completeness error: "
            + ", ".join(
                f"{name} {_percent(one.completeness_error)}"
                for name, one in self.explanations.items()
            )
            + ".",
        )


def signed_maps(
    model: Model,
    image: MetaTensor,
    target: Target | None = None,
    *,
    methods: Sequence[str | Method] = METHODS,
    labelmap: Volume | MetaTensor | None = None,
    names: Mapping[int, str] | None = None,
    reference: MetaTensor | None = None,
    tolerated: float = 0.01,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> SignedMaps:
    """Explain an image by several signed methods, one map a channel, and check that they add up.

    Parameters
    ----------
    model : Model
        Of any number of input channels.
    image : MetaTensor, shape (C, I, J, K)
    target : Target, optional
        As for :func:`SaliencyExplainLib.explain`.
    methods : sequence of str or Method
        Methods whose maps have a sign. A name starts from the zero image (or the reference), and
        takes as many steps as it needs to add up.
    labelmap : Volume or MetaTensor, shape (1, X, Y, Z), optional
        Regions, by world position; all of the image is one region when left out.
    names : mapping of int to str, optional
        Of the label map; 0 is "outside" unless it is named.
    reference : MetaTensor, shape (C, I, J, K), optional
        What the image is compared with, on its grid, for example the mean of a healthy group or
        the probabilities that hold before a scan is seen. Zero (after the model's preprocessing)
        when left out. Needs a network that takes the whole volume.
    tolerated : float
        Largest completeness error, as a part of the change of the score; above it, the number of
        steps is doubled up to 256, and a warning stays where that is not enough.
    progress, cancelled : callable, optional
        As for :func:`SaliencyExplainLib.explain`.

    Returns
    -------
    SignedMaps

    Raises
    ------
    StudyError
        If there is no method, one is named twice or has no sign, or the reference does not fit.
    SaliencyExplainError
        As :func:`SaliencyExplainLib.explain`.
    """
    image = as_image(image)
    chosen = _signed(methods, compared=reference is not None)
    against = model if reference is None else _compared(model, image, as_image(reference))
    explanations: dict[str, Explanation] = {}
    for number, one in enumerate(chosen):

        def told(fraction: float, message: str, number: int = number) -> None:
            if progress is not None:
                progress((number + fraction) / len(chosen), message)

        name = one.name
        fixed = not isinstance(methods[number], str)
        while True:
            found = explain(against, image, target, one, told, cancelled)
            error = found.completeness_error
            finer = None if fixed or error is None or error <= tolerated else _finer(one)
            if finer is None:
                break
            one = finer
        explanations[name] = _noted(found, tolerated, compared=reference is not None)
    rows = [
        row
        for name, one in explanations.items()
        for row in _shares(name, one, model.channels, labelmap, names)
    ]
    return SignedMaps(explanations, tuple(rows))


def _signed(methods: Sequence[str | Method], *, compared: bool) -> list[Method]:
    """Make the methods, starting from zero where only a name was given."""
    if not methods or isinstance(methods, str):
        raise StudyError(
            f"Give a list of methods, for example {list(METHODS)}; {methods!r} was given."
        )
    made = []
    for one in methods:
        if isinstance(one, str):
            known = {key.name for key in fields(all_methods()[one])} if one in all_methods() else ()
            options: dict[str, Any] = {"baseline": "zero"} if "baseline" in known else {}
            options |= {key: _STEPS for key in ("steps", "samples") if key in known}
            one = make_method(one, options)
        if not one.is_signed():
            raise StudyError(
                f"{one.title} gives maps without a sign. Choose among {', '.join(METHODS)}."
            )
        if compared and getattr(one, "baseline", "zero") != "zero":
            raise StudyError(
                f"{one.title} starts from the {one.parameters()['baseline']} image, and a "
                "reference was given as well. Leave out one of them."
            )
        made.append(one)
    names = [one.name for one in made]
    if len(set(names)) < len(names):
        raise StudyError(f"Each method can be named once; given were {', '.join(names)}.")
    return made


def _finer(method: Method) -> Method | None:
    """The same method with twice the steps; None where it has none, or enough."""
    for key in ("steps", "samples"):
        steps = getattr(method, key, None)
        if isinstance(steps, int) and 2 * steps <= _MOST_STEPS:
            return replace(method, **{key: 2 * steps})
    return None


class _Against(torch.nn.Module):
    """A network that takes the difference from a reference: zero is the reference."""

    reference: torch.Tensor

    def __init__(self, network: torch.nn.Module, reference: torch.Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("reference", reference)
        self.training = network.training

    def forward(self, difference: torch.Tensor) -> Any:
        return self.network(difference + self.reference)


@dataclass(frozen=True)
class _Difference(Preprocess):
    """A model's preprocessing, and then the difference from a reference on the network's grid."""

    before: Preprocess | None = None
    reference: torch.Tensor | None = None

    def apply(self, image: MetaTensor) -> MetaTensor:
        assert self.before is not None  # noqa: S101 - always given
        assert self.reference is not None  # noqa: S101 - always given
        made = self.before.apply(image)
        if made.shape[1:] != self.reference.shape[1:]:
            raise StudyError(
                f"After the model's preprocessing the image has {tuple(made.shape[1:])} voxels and "
                f"the reference {tuple(self.reference.shape[1:])}. Give a model that does not crop "
                "by content, or leave the reference out."
            )
        return MetaTensor(
            made.as_tensor() - self.reference,
            meta=dict(made.meta),
            applied_operations=made.applied_operations,
        )

    def invert(
        self, map_: torch.Tensor, network_image: MetaTensor, image: MetaTensor
    ) -> MetaTensor:
        assert self.before is not None  # noqa: S101 - always given
        return self.before.invert(map_, network_image, image)


def _compared(model: Model, image: MetaTensor, reference: MetaTensor) -> Model:
    """The model as a function of the difference from a reference."""
    if not isinstance(model.inferer, WholeVolume):
        raise StudyError(
            "A reference needs a network that takes the whole volume; this model runs in windows. "
            "Leave the reference out, or choose another baseline of the method."
        )
    if reference.shape != image.shape or not same_grid(reference, image):
        raise StudyError(
            f"The reference has the shape {tuple(reference.shape)} and the image "
            f"{tuple(image.shape)}, or they lie on other grids. Resample the reference onto the "
            "image first."
        )
    prepared = model.prepare(reference).as_tensor().detach()
    return replace(
        model,
        network=_Against(model.network, prepared[None].to(model.device)),
        preprocess=_Difference(before=model.preprocess, reference=prepared),
    )


def _noted(found: Explanation, tolerated: float, *, compared: bool) -> Explanation:
    """Say what the map was compared with, and where it does not add up."""
    warnings = found.warnings
    error = found.completeness_error
    if error is not None and error > tolerated:
        warnings = (
            *warnings,
            f"The map misses the change of the score by {error:.1%}; {tolerated:.1%} is tolerated.",
        )
    parameters = dict(found.parameters)
    if compared and "baseline" in parameters:
        parameters["baseline"] = "reference image"
    return replace(found, warnings=warnings, parameters=parameters)


def _shares(
    method: str,
    found: Explanation,
    channels: Sequence[str],
    labelmap: Volume | MetaTensor | None,
    names: Mapping[int, str] | None,
) -> list[SignedShare]:
    """Rows of one method: of its joined map, then of each channel where there are several."""
    maps = found.maps.as_tensor()
    affine = found.maps.affine
    if labelmap is None:
        labelmap, names = make_image(torch.ones(tuple(maps.shape[1:])), affine), {1: "image"}
    single = [make_image(one, affine) for one in maps]
    rows = _rows(method, [ALL], [found.map], labelmap, names)
    if len(single) > 1:
        called = channels if len(channels) == len(single) else range(len(single))
        known = [one if isinstance(one, str) else f"channel {one}" for one in called]
        rows += _rows(method, known, single, labelmap, names)
    return rows


def _rows(
    method: str,
    channels: Sequence[str],
    maps: Sequence[MetaTensor],
    labelmap: Volume | MetaTensor,
    names: Mapping[int, str] | None,
) -> list[SignedShare]:
    tables = [region_table(one, labelmap, names).rows for one in maps]
    whole = sum(row.mean_absolute * row.voxels for rows in tables for row in rows if row.voxels)
    found = []
    for channel, rows in zip(channels, tables, strict=True):
        for row in rows:
            if row.voxels == 0 and row.label == 0:
                continue
            absolute, net = (
                (row.mean_absolute * row.voxels, row.mean * row.voxels)
                if row.voxels
                else (0.0, 0.0)
            )
            parts = [one / whole if whole else float("nan") for one in (absolute, net)]
            found.append(
                SignedShare(
                    method=method,
                    channel=channel,
                    region=row.name,
                    voxels=row.voxels,
                    share=parts[0],
                    positive=(parts[0] + parts[1]) / 2,
                    negative=(parts[0] - parts[1]) / 2,
                    net=net,
                )
            )
    return found


def _listed(names: Any) -> str:
    return ", ".join(dict.fromkeys(names))


def _percent(error: float | None) -> str:
    return "not promised" if error is None else f"{100 * error:.2g} %"
