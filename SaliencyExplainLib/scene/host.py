"""Which scene, and which host: the application, ``slicer-core``, or a given scene."""

from __future__ import annotations

import functools
import tempfile
from typing import Any

from ..errors import MissingPackageError, SceneError

try:
    import slicer
except ModuleNotFoundError as error:
    if error.name != "slicer":
        raise
    raise MissingPackageError(
        "The scene of 3D Slicer is needed here and Python finds no package 'slicer'. "
        "Run this inside 3D Slicer, or install it with: pip install slicer-core"
    ) from error

__all__ = ["in_app", "new_scene", "release_scene", "scene_or_default", "slicer"]

# An application logic keeps only weak pointers to the module logics, and a colour logic that dies
# takes its colour nodes with it. So the logics of a scene made here stay in this table until
# release_scene().
_LOGICS: dict[Any, list[Any]] = {}
# Data: removes display and storage nodes that lost their owner, as the application does. The others
# register node classes, which a scene file may hold.
_MODULE_LOGICS = (
    "vtkSlicerDataModuleLogic",
    "vtkSlicerSequencesLogic",
    "vtkSlicerVolumeRenderingLogic",
)


def in_app() -> bool:
    """Whether this runs inside the application (``slicer-core`` has no ``slicer.app``)."""
    return hasattr(slicer, "app")


def scene_or_default(scene: slicer.vtkMRMLScene | None = None) -> slicer.vtkMRMLScene:
    """Return the given scene, else the application's, else a new one.

    A new one is also remembered as ``slicer.mrmlScene`` when there is none, so that ``slicer.util``
    works on it.

    Raises
    ------
    SceneError
        If what was given is no scene.
    """
    if scene is None:
        scene = getattr(slicer, "mrmlScene", None)
    if scene is None:
        scene = slicer.mrmlScene = new_scene()
    if not isinstance(scene, slicer.vtkMRMLScene):
        raise SceneError(
            f"A vtkMRMLScene is needed; {type(scene).__name__} was given. Leave it out for the "
            "current one."
        )
    return scene


def new_scene() -> slicer.vtkMRMLScene:
    """Make a scene that knows Slicer's usual node classes and can be written and read.

    Its logics (colours, display nodes, volume rendering, sequences, reading of files) live until
    :func:`release_scene`.
    """
    enable_conversions()
    scene = slicer.vtkMRMLScene()
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    logics = [application]
    # Data: removes display and storage nodes that lost their owner, as the application does. The
    # others register classes.
    for name in (
        "vtkSlicerDataModuleLogic",
        "vtkSlicerVolumeRenderingLogic",
        "vtkSlicerSequencesLogic",
    ):
        logic = getattr(slicer, name)()
        logic.SetMRMLApplicationLogic(application)
        logic.SetMRMLScene(scene)
        logics.append(logic)
    scene.RegisterNodeClass(slicer.vtkMRMLColorLegendDisplayNode())
    slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    _LOGICS[scene] = logics
    return scene


@functools.cache
def enable_conversions() -> None:
    """Let segments be converted between surfaces and label maps.

    In the application the Segmentations module has seen to it.
    """
    if in_app():
        return
    factory = slicer.vtkSegmentationConverterFactory.GetInstance()
    factory.RegisterConverterRule(slicer.vtkBinaryLabelmapToClosedSurfaceConversionRule())
    factory.RegisterConverterRule(slicer.vtkClosedSurfaceToBinaryLabelmapConversionRule())


def enable_reading(scene: slicer.vtkMRMLScene) -> None:
    """Give a scene what ``ReadFromMRB`` asks for: a data manager with a folder to unpack into."""
    logics = _LOGICS.setdefault(scene, [])
    if any(isinstance(logic, slicer.vtkMRMLRemoteIOLogic) for logic in logics):
        return
    remote = slicer.vtkMRMLRemoteIOLogic()
    manager = slicer.vtkDataIOManagerLogic()
    folder = tempfile.TemporaryDirectory(prefix="SaliencyExplain-")
    remote.GetCacheManager().SetRemoteCacheDirectory(folder.name)
    for logic in (remote, manager):
        logic.SetMRMLApplicationLogic(logics[0] if logics else None)
        logic.SetMRMLScene(scene)
    remote.AddDataIOToScene()
    manager.SetAndObserveDataIOManager(remote.GetDataIOManager())
    logics += [remote, manager, folder]


def release_scene(scene: slicer.vtkMRMLScene) -> None:
    """Let go of a scene made by :func:`new_scene`: its nodes and logics end."""
    scene.Clear(True)
    for logic in reversed(_LOGICS.pop(scene, [])):
        if isinstance(logic, tempfile.TemporaryDirectory):
            logic.cleanup()
        else:
            logic.SetMRMLScene(None)
    if getattr(slicer, "mrmlScene", None) is scene:
        del slicer.mrmlScene
