"""What a run gives back: maps, their place, the number that was explained, how it was made.

A run's maps are images (MetaTensor). Those of an explanation that was read back are Volumes, which
have the same attributes and need no torch; so nothing here imports torch before it must.
"""

from __future__ import annotations

import json
import math
import platform
import tempfile
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .errors import SaliencyExplainError
from .volume import Volume, as_volume, read_volume, voxels_of, write_volume

if TYPE_CHECKING:
    from collections.abc import Mapping

    from monai.data import MetaTensor

__all__ = ["Explanation", "versions", "write_text"]

_FACTS = "explanation.json"
#: A record may be this long (bytes), and a map have this many channels, when read back.
_LONGEST, _MOST_CHANNELS = 64 << 20, 1000


@dataclass(frozen=True)
class Explanation:
    """An attribution map with everything needed to believe, repeat or doubt it.

    Attributes
    ----------
    maps : MetaTensor or Volume, shape (C, I, J, K)
        Attribution on the input's grid, raw units, float32. C is 1, or one map an input channel.
    network_maps : MetaTensor, Volume or None, shape (C, I', J', K')
        The same on the grid that the network saw (its own affine), before any interpolation. None
        only where it was read back and had not been saved.
    layer_map : MetaTensor, Volume or None, shape (1, i, j, k)
        For layer methods without sliding windows: the map on the layer's true grid (its own
        affine).
    value : float
        The explained number S of the unperturbed image, in the unit of the target's score.
    target : dict
        The resolved target: output index and name, region and its size, score, reduction, contrast.
    method : str
        Registered name of the method; ``title`` for people.
    parameters : dict
        All parameters of the method, JSON values. The same parameters give the same map.
    layers : tuple of str
        Layers that were used.
    details : dict
        What the method counted on the way (regions found, windows computed, ...), JSON values.
    signed : bool
        Whether negative values mean evidence against the target.
    unit : str
        Unit of the maps' values, a voxel.
    combine : str
        How several channels become one map: "sum" (additive methods) or "max_abs".
    completeness_error : float or None
        abs(sum of attribution - (S(x) - S(baseline))) / abs(S(x) - S(baseline)), for methods that
        promise completeness.
    warnings : tuple of str
        What a reader of the map must know.
    seconds : float
        Wall time of the run.
    peak_memory_mb : float or None
        Peak memory above the start of the run, in MB (10^6 bytes); None where the system does not
        tell.
    model, image, versions : dict
        Provenance of the model file, of the input volume and of the software.
    saved : dict
        What the record said of the maps, for an explanation that was read back.
    """

    maps: MetaTensor
    network_maps: MetaTensor | None
    value: float
    target: dict[str, Any]
    method: str
    title: str
    parameters: dict[str, Any]
    signed: bool
    unit: str = ""
    combine: str = "sum"
    layers: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    layer_map: MetaTensor | None = None
    completeness_error: float | None = None
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    peak_memory_mb: float | None = None
    model: dict[str, Any] = field(default_factory=dict)
    image: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    saved: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def map(self) -> MetaTensor:
        """One map for the image, shape (1, I, J, K): channels joined as `combine` says."""
        return _joined(self.maps, self.combine)

    @property
    def network_map(self) -> MetaTensor:
        """One map on the network's grid, shape (1, I', J', K').

        Raises
        ------
        SaliencyExplainError
            If it was read back and had not been saved.
        """
        if self.network_maps is None:
            raise SaliencyExplainError(
                "The map on the network's grid was not saved. Save it with network_grid=True."
            )
        return _joined(self.network_maps, self.combine)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the voxels, as JSON values."""
        return {
            "method": self.method,
            "title": self.title,
            "parameters": self.parameters,
            "layers": list(self.layers),
            "details": self.details,
            "signed": self.signed,
            "unit": self.unit,
            "combine": self.combine,
            "target": self.target,
            "value": self.value,
            "completeness_error": _finite(self.completeness_error),
            "warnings": list(self.warnings),
            "seconds": round(self.seconds, 3),
            "peak_memory_mb": None
            if self.peak_memory_mb is None
            else round(self.peak_memory_mb, 1),
            "map": self._map_facts(),
            "model": self.model,
            "image": self.image,
            "versions": self.versions,
        }

    @classmethod
    def from_dict(
        cls,
        facts: Mapping[str, Any],
        maps: MetaTensor | Volume,
        network_maps: MetaTensor | Volume | None = None,
        layer_map: MetaTensor | Volume | None = None,
    ) -> Explanation:
        """Join what :meth:`to_dict` gave with its voxels again.

        Raises
        ------
        SaliencyExplainError
            If something is missing or unknown in `facts`.
        """
        wanted = set(cls.__dataclass_fields__) - {"maps", "network_maps", "layer_map"} - {"saved"}
        try:
            values = {name: _checked(name, facts[name]) for name in wanted if name in facts}
            made = cls(
                maps=cast("MetaTensor", maps),
                network_maps=cast("MetaTensor | None", network_maps),
                layer_map=cast("MetaTensor | None", layer_map),
                saved=dict(facts["map"]),
                **values,
            )
        except (KeyError, TypeError) as error:
            raise SaliencyExplainError(
                f"This is no record of an explanation: {error}. Give what to_dict() or save() made."
            ) from error
        return made

    def save(self, folder: str | Path, *, network_grid: bool = False) -> list[Path]:
        """Write ``map.nrrd`` (``map_0.nrrd``, ... for several channels) and ``explanation.json``.

        Parameters
        ----------
        folder : path
            Made if it is missing.
        network_grid : bool
            Write ``map_network_grid.nrrd`` (numbered, too) as well.

        Returns
        -------
        list of Path
            The files written; each appears whole or not at all.

        Raises
        ------
        ImageError
            If the folder cannot be written.
        """
        folder = Path(folder)
        written = _write_channels(self.maps, folder, "map")
        if network_grid and self.network_maps is not None:
            written += _write_channels(self.network_maps, folder, "map_network_grid")
        if self.layer_map is not None:
            written.append(write_volume(self.layer_map, folder / "map_layer_grid.nrrd"))
        written.append(write_text(folder / _FACTS, json.dumps(self.to_dict(), indent=2) + "\n"))
        return written

    @classmethod
    def load(cls, folder: str | Path) -> Explanation:
        """Read what :meth:`save` wrote; torch is not needed, the maps are Volumes.

        Raises
        ------
        SaliencyExplainError
            If there is no ``explanation.json`` of this library, or a map is missing.
        """
        folder = Path(folder)
        try:
            facts = _read_facts(folder / _FACTS)
            channels = int(facts["map"]["channels"])
            told = np.array(facts["map"].get("ijk_to_ras", np.eye(4)), dtype=np.float64)
            if told.shape != (4, 4) or not 1 <= channels <= _MOST_CHANNELS:
                raise ValueError("its map has no proper place or number of channels")
            name = str(facts.get("image", {}).get("name", ""))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SaliencyExplainError(
                f"{str(folder)!r} holds no explanation ({_FACTS}: {error}). Give a folder that "
                "save() or the command explain wrote."
            ) from error
        network = (folder / _channel_files("map_network_grid", channels)[0]).is_file()
        layer = folder / "map_layer_grid.nrrd"
        maps = _read_channels(folder, "map", channels, name)
        if np.allclose(told, maps.affine, atol=1e-6):
            # The file keeps spacing and directions, whose product differs in the last digit.
            maps = Volume(maps.voxels, told, maps.name)
        return cls.from_dict(
            facts,
            maps,
            _read_channels(folder, "map_network_grid", channels) if network else None,
            read_volume(layer) if layer.is_file() else None,
        )

    def _map_facts(self) -> dict[str, Any]:
        joined = voxels_of(self.map)
        told = {
            "channels": int(self.maps.shape[0]),
            "shape_ijk": list(self.maps.shape[1:]),
            "ijk_to_ras": self.maps.affine.tolist(),
            "minimum": float(joined.min()),
            "maximum": float(joined.max()),
        }
        if self.network_maps is None:
            names = ("sum_on_network_grid", "network_shape_ijk")
            return told | {name: self.saved.get(name) for name in names}
        summed = float(voxels_of(self.network_map).sum(dtype=np.float64))
        shape = list(self.network_maps.shape[1:])
        return told | {"sum_on_network_grid": summed, "network_shape_ijk": shape}


def _read_facts(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    with path.open("rb") as file:
        content = file.read(_LONGEST + 1)
    if len(content) > _LONGEST:
        raise ValueError(f"it has more than {_LONGEST >> 20} MB")
    facts = json.loads(content.decode("utf-8"))
    if not isinstance(facts, dict):
        raise ValueError("it is no JSON object")
    return facts


#: Kinds of the values of a record that are not texts, for one that was read.
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("target", "parameters", "details", "model", "image", "versions"), (dict,)),
    **dict.fromkeys(("value", "completeness_error", "peak_memory_mb"), (int, float, type(None))),
    "seconds": (int, float),
    "signed": (bool,),
    "layers": (list, tuple),
    "warnings": (list, tuple),
}


def _checked(name: str, value: Any) -> Any:
    """The value of a record; a list of texts as a tuple.

    Raises
    ------
    TypeError
        If it is of another kind.
    """
    many = name in ("layers", "warnings")
    texts = not many or (isinstance(value, list | tuple) and all(isinstance(o, str) for o in value))
    if not isinstance(value, _KINDS.get(name, (str,))) or not texts:
        raise TypeError(f"{name!r} is of another kind")
    return tuple(cast("list[str]", value)) if many else value


def write_text(path: Path, text: str) -> Path:
    """Write a UTF-8 text file whole or not at all.

    Raises
    ------
    SaliencyExplainError
        If the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder: a file of mkstemp could be read by its owner only, after the move too.
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
    except OSError as error:
        raise SaliencyExplainError(
            f"{str(path)!r} could not be written ({error.strerror}). Choose another folder."
        ) from error
    return path


def _finite(value: float | None) -> float | None:
    """JSON has no infinity and no NaN."""
    return value if value is not None and math.isfinite(value) else None


def _joined(maps: Any, combine: str) -> MetaTensor:
    if maps.shape[0] == 1:
        return cast("MetaTensor", maps)
    if isinstance(maps, Volume):
        voxels = maps.voxels
        one = np.abs(voxels).max(0) if combine == "max_abs" else voxels.sum(0)
        return cast("MetaTensor", Volume(one, maps.affine, maps.name))
    from .image import make_image

    values = maps.as_tensor()
    return make_image(
        values.abs().amax(0, keepdim=True) if combine == "max_abs" else values.sum(0, keepdim=True),
        maps.affine,
    )


def _channel_files(stem: str, channels: int) -> list[str]:
    if channels == 1:
        return [f"{stem}.nrrd"]
    return [f"{stem}_{channel}.nrrd" for channel in range(channels)]


def _write_channels(maps: Any, folder: Path, stem: str) -> list[Path]:
    whole = as_volume(maps)
    return [
        write_volume(Volume(voxels, whole.affine), folder / file)
        for voxels, file in zip(whole.voxels, _channel_files(stem, len(whole.voxels)), strict=True)
    ]


def _read_channels(folder: Path, stem: str, channels: int, name: str = "") -> Volume:
    read = [read_volume(folder / file) for file in _channel_files(stem, channels)]
    return Volume(np.concatenate([one.voxels for one in read]), read[0].affine, name)


@cache
def versions() -> dict[str, str]:
    """Versions of what computes an explanation: Python, this library and those below it."""
    found = {"python": platform.python_version()}
    for name in ("saliency-explain", "torch", "monai", "numpy", "SimpleITK"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
