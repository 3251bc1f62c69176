"""How alike several maps are: of methods, layers, models, or subjects. Torch-free.

Maps of one scan are compared voxel by voxel. Maps of different scans have no common voxels: those
are compared by their segments, as the rank correlation of the density ratios of the labels that
both have (:mod:`.segments`), or, where the scans are registered, voxel by voxel after resampling.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MetricError
from ..explanation import Explanation, write_text
from ..volume import as_volume, resample_labels, same_grid, voxels_of
from .base import finite
from .evaluation import as_file
from .segments import density_ratios
from .similarity import MEASURES, check_measures, spearman

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from numpy.typing import NDArray

    from ..volume import Volume

__all__ = ["SEGMENT_PROFILE", "Comparison", "compare"]

#: Measure of maps that share no voxels.
SEGMENT_PROFILE = "segment_profile"
_FEWEST_SEGMENTS = 3


@dataclass(frozen=True)
class Comparison:
    """Similarity of each pair of maps.

    Attributes
    ----------
    names : tuple of str
        Of the maps, in order.
    matrices : mapping of str to array, shape (n, n)
        By measure; 1 on the diagonal, NaN where a pair cannot be compared.
    notes : tuple of str
        What a reader must know.
    """

    names: tuple[str, ...]
    matrices: Mapping[str, NDArray[np.float64]]
    notes: tuple[str, ...] = ()

    def __getitem__(self, measure: str) -> NDArray[np.float64]:
        """Matrix of a measure.

        Raises
        ------
        MetricError
            If it was not computed.
        """
        if measure not in self.matrices:
            raise MetricError(
                f"{measure!r} was not compared. Compared: {', '.join(self.matrices)}."
            )
        return self.matrices[measure]

    def pairs(self, measure: str) -> list[tuple[str, str, float]]:
        """Pairs of different maps, the most alike first."""
        matrix = self[measure]
        rows = [
            (self.names[i], self.names[j], float(matrix[i, j]))
            for i in range(len(self.names))
            for j in range(i + 1, len(self.names))
        ]
        return sorted(rows, key=lambda row: -np.nan_to_num(row[2], nan=-2.0))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "names": list(self.names),
            "matrices": {
                name: [[finite(value) for value in row] for row in matrix.tolist()]
                for name, matrix in self.matrices.items()
            },
            "notes": list(self.notes),
        }

    def to_csv(self) -> str:
        """Return a row a measure and pair as CSV text."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["measure", "one", "other", "similarity"])
        for measure in self.matrices:
            for one, other, value in self.pairs(measure):
                writer.writerow([measure, one, other, "" if np.isnan(value) else f"{value:.6g}"])
        return buffer.getvalue()

    def to_text(self) -> str:
        """Return the matrices for a terminal."""
        width = max(8, *(len(name) + 2 for name in self.names))
        lines = []
        for measure, matrix in self.matrices.items():
            title = MEASURES[measure][1] if measure in MEASURES else "profile over segments"
            lines.append(f"{title}:")
            lines.append(" " * width + "".join(f"{name:>{width}}" for name in self.names))
            lines += [
                f"{name:<{width}}" + "".join(f"{value:>{width}.2f}" for value in row)
                for name, row in zip(self.names, matrix, strict=True)
            ]
        return "\n".join([*lines, *self.notes])

    def save(self, path: str | Path) -> Path:
        """Write ``.json`` (matrices) or ``.csv`` (a row a pair).

        Raises
        ------
        SaliencyExplainError
            If the name ends otherwise, or the folder cannot be written.
        """
        path = Path(path)
        return write_text(path, as_file(path, self.to_dict(), self.to_csv))


def compare(
    explanations: Mapping[str, Explanation] | Sequence[Explanation],
    measures: Sequence[str] | None = None,
    *,
    mask: MetaTensor | Volume | None = None,
    labelmaps: Sequence[MetaTensor | Volume] | None = None,
    resample: bool = False,
) -> Comparison:
    """Compare the maps of several explanations, each with each.

    Parameters
    ----------
    explanations : mapping of name to Explanation, or sequence of Explanation
        At least two. A sequence gets names from method, layers and target.
    measures : sequence of str, optional
        Of :data:`SaliencyExplainLib.quality.MEASURES`; those that can be computed when left out.
    mask : MetaTensor or Volume, shape (1, I, J, K), optional
        Voxels above 0 are compared; all when left out.
    labelmaps : sequence of MetaTensor or Volume, optional
        One for each explanation, with the same meaning of labels: adds the comparison by segments,
        which needs no common grid.
    resample : bool
        Maps on other grids are brought onto the first one's by world position (trilinear). Right
        only for scans that are registered.

    Returns
    -------
    Comparison

    Raises
    ------
    MetricError
        If there are fewer than two maps, a measure is unknown, or the grids differ and neither
        label maps were given nor resampling was allowed.
    MissingPackageError
        If "ssim" was named and scikit-image is missing.
    """
    named = _named(explanations)
    if len(named) < 2:
        raise MetricError(f"A comparison needs at least two maps; {len(named)} was given.")
    chosen, notes = check_measures(measures), []
    if measures is None and len(chosen) < len(MEASURES):
        notes.append("Without scikit-image SSIM was left out.")
    told = list(named.values())
    first = told[0].map
    apart = [name for name, one in named.items() if not same_grid(one.map, first)]
    matrices: dict[str, NDArray[np.float64]] = {}
    if apart and not resample:
        if labelmaps is None:
            raise MetricError(
                f"{apart[0]!r} lies on another grid than {next(iter(named))!r}. Give labelmaps= to "
                "compare by segments, or allow interpolation of registered scans (resample=True)."
            )
        notes.append("The maps share no grid, so they were compared by segments only.")
    else:
        if apart:
            notes.append(f"Resampled onto the grid of {next(iter(named))!r}: {', '.join(apart)}.")
        values = [_on_grid(one, first) for one in told]
        inside = None if mask is None else voxels_of(resample_labels(mask, first))[0] > 0
        if inside is not None and not inside.any():
            raise MetricError("The mask has no voxel above 0 inside the maps.")
        for name in chosen:
            measure = MEASURES[name][0]
            matrices[name] = _matrix(values, lambda a, b, run=measure: run(a, b, inside))
    if labelmaps is not None:
        profiles = _profiles(told, labelmaps)
        matrices[SEGMENT_PROFILE] = _matrix(profiles, _profile_similarity)
    return Comparison(tuple(named), matrices, tuple(notes))


def _named(
    explanations: Mapping[str, Explanation] | Sequence[Explanation],
) -> dict[str, Explanation]:
    """Explanations by names that differ."""
    if isinstance(explanations, Mapping):
        return dict(explanations)
    made: dict[str, Explanation] = {}
    for one in explanations:
        facts = [one.method, *one.layers]
        if len({other.target.get("output_name") for other in explanations}) > 1:
            facts.append(str(one.target.get("output_name")))
        name = " ".join(facts)
        if name in made:
            count = sum(key == name or key.startswith(f"{name} (") for key in made)
            name = f"{name} ({count + 1})"
        made[name] = one
    return made


def _on_grid(explanation: Explanation, like: Any) -> NDArray[np.float64]:
    map_ = explanation.map
    if not same_grid(map_, like):
        from ..image import make_image, resample_image

        volume = as_volume(map_)
        target = as_volume(like)
        map_ = resample_image(
            make_image(volume.voxels, volume.affine),
            make_image(target.voxels, target.affine),
            outside=0.0,
        )
    return np.asarray(voxels_of(map_)[0], dtype=np.float64)


def _matrix(values: Sequence[Any], similarity: Any) -> NDArray[np.float64]:
    count = len(values)
    matrix = np.eye(count)
    for i in range(count):
        for j in range(i + 1, count):
            matrix[i, j] = matrix[j, i] = similarity(values[i], values[j])
    return matrix


def _profiles(
    explanations: Sequence[Explanation], labelmaps: Sequence[Any]
) -> list[dict[int, float]]:
    """Density ratio of each label, for each explanation."""
    if len(labelmaps) != len(explanations):
        raise MetricError(
            f"{len(explanations)} explanations need as many label maps; {len(labelmaps)} were "
            "given."
        )
    profiles = []
    for one, labelmap in zip(explanations, labelmaps, strict=True):
        labels = voxels_of(resample_labels(labelmap, one.map))[0].round().astype(int)
        found = [label for label in np.unique(labels).tolist() if label > 0]
        sizes = np.abs(voxels_of(one.map)[0].astype(np.float64))
        known = found if sizes.any() else []
        profiles.append(dict(zip(known, density_ratios(sizes, labels, known), strict=True)))
    return profiles


def _profile_similarity(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    common = sorted(set(one) & set(other))
    if len(common) < _FEWEST_SEGMENTS:
        return float("nan")
    return spearman(
        np.array([one[label] for label in common]), np.array([other[label] for label in common])
    )
