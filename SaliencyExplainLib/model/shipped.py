"""The models that come with the project: found in the source tree, and where 3D Slicer has them."""

from __future__ import annotations

from pathlib import Path

from ..errors import ModelError

__all__ = ["shipped_bundle"]


def shipped_bundle(name: str) -> Path:
    """Folder of a MONAI bundle that comes with the project.

    Parameters
    ----------
    name : str
        "BrainTissue" or "SpiculatedNodules".

    Raises
    ------
    ModelError
        If it is not there.
    """
    root = Path(__file__).resolve().parents[2]
    # In the source tree the module has its own folder; installed, the library lies in that folder.
    homes = [root / "SaliencyExplain" / "Resources", root / "Resources"]
    places = [home / "Models" / name for home in homes]
    found = next((place for place in places if (place / "models").is_dir()), None)
    if found is None:
        listed = " or ".join(str(place) for place in places)
        raise ModelError(
            f"The model {name} is not there (looked for {listed}). "
            "Run this from a complete copy of the project, or from 3D Slicer."
        )
    return found
