"""What a run gives back: maps, their place, the number that was explained, how it was made."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor

from .errors import SaliencyExplainError
from .image import make_image, write_image

__all__ = ["Explanation"]


@dataclass(frozen=True)
class Explanation:
    """An attribution map with everything needed to believe, repeat or doubt it.

    Attributes
    ----------
    maps : MetaTensor, shape (C, I, J, K)
        Attribution on the input's grid, raw units, float32. C is 1, or one map an input channel.
    network_maps : MetaTensor, shape (C, I', J', K')
        The same on the grid that the network saw (its own affine), before any interpolation.
    layer_map : MetaTensor or None, shape (1, i, j, k)
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
    """

    maps: MetaTensor
    network_maps: MetaTensor
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

    @property
    def map(self) -> MetaTensor:
        """One map for the image, shape (1, I, J, K): channels joined as `combine` says."""
        return _joined(self.maps, self.combine)

    @property
    def network_map(self) -> MetaTensor:
        """One map on the network's grid, shape (1, I', J', K')."""
        return _joined(self.network_maps, self.combine)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the voxels, as JSON values."""
        joined = self.map.as_tensor()
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
            "map": {
                "channels": int(self.maps.shape[0]),
                "shape_ijk": list(self.maps.shape[1:]),
                "ijk_to_ras": self.maps.affine.tolist(),
                "minimum": float(joined.min()),
                "maximum": float(joined.max()),
                "sum_on_network_grid": float(self.network_map.as_tensor().double().sum()),
                "network_shape_ijk": list(self.network_maps.shape[1:]),
            },
            "model": self.model,
            "image": self.image,
            "versions": self.versions,
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``map.nrrd`` (``map_0.nrrd``, ... for several channels) and ``explanation.json``.

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
        written = []
        for channel in range(self.maps.shape[0]):
            name = "map.nrrd" if self.maps.shape[0] == 1 else f"map_{channel}.nrrd"
            one = make_image(self.maps[channel : channel + 1], self.maps.affine)
            written.append(write_image(one, folder / name))
        if self.layer_map is not None:
            written.append(write_image(self.layer_map, folder / "map_layer_grid.nrrd"))
        written.append(
            write_text(folder / "explanation.json", json.dumps(self.to_dict(), indent=2) + "\n")
        )
        return written


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


def _joined(maps: MetaTensor, combine: str) -> MetaTensor:
    if maps.shape[0] == 1:
        return maps
    voxels = maps.as_tensor()
    one = (
        voxels.abs().amax(0, keepdim=True) if combine == "max_abs" else voxels.sum(0, keepdim=True)
    )
    return make_image(torch.as_tensor(one), maps.affine)
