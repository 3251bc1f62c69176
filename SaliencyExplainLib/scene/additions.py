"""Nodes and folders that enter a scene together or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from ..errors import SceneError
from .host import slicer

__all__ = ["Additions", "free_name"]


class Additions:
    """Context that takes out again what was added through it when its block raises.

    Parameters
    ----------
    scene : vtkMRMLScene
        Where nodes are added.
    """

    def __init__(self, scene: slicer.vtkMRMLScene) -> None:
        self._scene = scene
        self._nodes: list[Any] = []
        self._items: list[int] = []
        had_hierarchy = scene.GetNumberOfNodesByClass("vtkMRMLSubjectHierarchyNode") > 0
        self._hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        self._new_hierarchy = None if had_hierarchy else self._hierarchy

    def __enter__(self) -> Additions:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._undo()

    def node(self, node: Any, folder: int | None = None) -> Any:
        """Add a node under a name that is still free, and into a folder of the subject hierarchy.

        Raises
        ------
        SceneError
            If the scene refuses it.
        """
        node.SetName(free_name(self._scene, node.GetName()))
        self._nodes.append(node)
        if self._scene.AddNode(node) is not node:
            raise SceneError(
                f"The scene did not accept {node.GetName()!r} ({type(node).__name__}). Save, "
                "restart, try again."
            )
        if folder is not None:
            # The application makes an item for each node; without its Qt logic GetItemByDataNode
            # gives 0.
            known = self._hierarchy.GetItemByDataNode(node)
            item = known or self._hierarchy.CreateItem(folder, node)
            self._items.append(item)
            self._hierarchy.SetItemParent(item, folder)
        return node

    def folder(self, parent: int, name: str, *, reuse: bool = False) -> int:
        """Make a folder (or take the one of that name) and return its item."""
        known = self._hierarchy.GetItemChildWithName(parent, name)
        if known and reuse and self._hierarchy.GetItemLevel(known) == "Folder":
            return int(known)
        number, free = 1, name
        while self._hierarchy.GetItemChildWithName(parent, free):
            number += 1
            free = f"{name} ({number})"
        item = int(self._hierarchy.CreateFolderItem(parent, free))
        self._items.append(item)
        return item

    def home_of(self, nodes: Sequence[Any]) -> int:
        """Item of the folder, study or patient of the first node; the scene's item if none."""
        item = self._hierarchy.GetItemByDataNode(nodes[0]) if nodes else 0
        parent = self._hierarchy.GetItemParent(item) if item else 0
        return int(parent or self._hierarchy.GetSceneItemID())

    def _undo(self) -> None:
        for item in reversed(self._items):
            self._hierarchy.RemoveItem(item, False, False)
        for node in reversed(self._nodes):
            if self._scene.IsNodePresent(node):
                self._scene.RemoveNode(node)
        if self._new_hierarchy is not None:
            self._scene.RemoveNode(self._new_hierarchy)


def free_name(scene: slicer.vtkMRMLScene, wanted: str) -> str:
    """Return the name, with a number if another node has it."""
    number, free = 1, wanted
    while scene.GetFirstNodeByName(free) is not None:
        number += 1
        free = f"{wanted} ({number})"
    return free
