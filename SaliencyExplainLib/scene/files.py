"""Scene files (.mrb): written whole or not at all, read back in and out of the application."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import SceneError
from .host import enable_reading, in_app, new_scene, scene_or_default, slicer

__all__ = ["load_mrb", "save_mrb"]


def save_mrb(scene: slicer.vtkMRMLScene | None, path: str | Path) -> Path:
    """Write a scene with all its data into one file, whole or not at all.

    Slicer makes left-handed volumes right-handed when it reads a file: the last axis is reversed,
    voxels and IJKToRAS alike, for maps and inputs in the same way. Every voxel stays where it is in
    the patient.

    Parameters
    ----------
    scene : vtkMRMLScene or None
        None for the current scene.
    path : path
        Ends in ``.mrb``. Its folder is made if it is missing.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    SceneError
        If the name has another ending or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".mrb":
        raise SceneError(
            f"A scene file ends in .mrb; {path.name!r} was given. Choose a name such as "
            "'result.mrb'."
        )
    current = scene_or_default(scene)
    path = path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In a folder of its own rather than under another name: the bundle's inner folder is named
        # after the file.
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=path.parent) as folder:
            part = Path(folder) / path.name
            with _working_folder_kept():
                done = current.WriteToMRB(str(part))
            if not done or not part.is_file():
                raise SceneError(
                    f"The scene could not be written to {str(path)!r}. Check free space and the "
                    "folder's rights."
                )
            part.replace(path)
    except OSError as error:
        raise SceneError(
            f"The scene could not be written to {str(path)!r} ({error.strerror or error})."
        ) from error
    return path


def load_mrb(path: str | Path) -> slicer.vtkMRMLScene:
    """Read a scene file: into the application's scene when there is one, else into a new scene.

    Returns
    -------
    vtkMRMLScene

    Raises
    ------
    SceneError
        If the file is missing or no scene file.
    """
    path = Path(path)
    if not path.is_file():
        raise SceneError(f"There is no file {str(path)!r}. Give the path of a scene file (.mrb).")
    path = path.resolve()
    if in_app():
        slicer.util.loadScene(str(path))
        return slicer.mrmlScene
    scene = new_scene()
    enable_reading(scene)
    with _working_folder_kept():
        done = scene.ReadFromMRB(str(path), True)
    if not done:
        raise SceneError(
            f"{path.name!r} could not be read as a scene. Give a file written by 3D Slicer or "
            "save_mrb()."
        )
    return scene


@contextmanager
def _working_folder_kept() -> Iterator[None]:
    """Undo that the scene's archiver changes the working folder, to one that it then removes."""
    try:
        before = Path.cwd()
    except FileNotFoundError:
        yield
        return
    try:
        yield
    finally:
        os.chdir(before)
