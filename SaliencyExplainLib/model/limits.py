"""How much a model file may take before anybody has vouched for it.

A few bytes can ask for any memory: text whose parts refer to each other ten times over (the
"billion laughs"), an archive that unpacks to a thousand times its size, a network whose layers have
a million channels, a preprocessing that enlarges the scan without end. Each is measured first.
"""

from __future__ import annotations

import json
import math
import mmap
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import ModelError, UntrustedModelError
from ..volume_files import free_memory

__all__ = [
    "AllocationError",
    "bounded_memory",
    "read_json",
    "read_text",
    "refuse_endless",
    "refuse_greedy_pickle",
    "refuse_packed",
    "refuse_windows",
]

#: A configuration may be this long; the largest of MONAI's model zoo has 30 kB.
_LONGEST_TEXT = 4 << 20
#: Values that a configuration may have once all references are written out.
_MOST_VALUES = 200_000
_DEEPEST = 100
#: An archive may unpack to this many times its size. Weights hardly shrink: 1.1 is usual.
_RATIO = 50
#: Below this many bytes the ratio says nothing.
_SMALL = 64 << 20
_MOST_MEMBERS = 20_000
_MOST_WINDOWS = 500_000
#: Tensors that a network may be built of; large ones have two thousand.
_MOST_TENSORS = 5_000
#: Part of the free memory that building or preprocessing may take.
_PART = 0.8


class AllocationError(RuntimeError):
    """More memory, or more tensors, were asked for than may be; the text says how many."""


def read_text(path: Path) -> str:
    """Read a configuration as text.

    Raises
    ------
    ModelError
        If it is longer than any, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST_TEXT + 1)
        if len(content) > _LONGEST_TEXT:
            raise ModelError(
                f"{path.name!r} has more than {_LONGEST_TEXT >> 20} MB, which no configuration "
                "has. It was not opened."
            )
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path.name!r} could not be read: {error}.") from error


def read_json(path: Path, whose: str = "the bundle") -> dict[str, Any]:
    """Read an object from a JSON file of a model.

    Raises
    ------
    ModelError
        If it is too long, nested too deeply, or no JSON object.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise _too_deep(path.name) from error
    except ValueError as error:
        raise ModelError(f"{path.name!r} of {whose} is no valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path.name!r} of {whose} is no JSON object.")
    refuse_endless(content, path.name)
    return content


def refuse_endless(content: Any, name: str) -> None:
    """Refuse a configuration that is short as a text and endless once it is written out.

    Raises
    ------
    ModelError
        If it has too many values, is nested too deeply, or holds itself.
    """
    sizes: dict[int, int] = {}

    def size_of(value: Any, depth: int) -> int:
        if not isinstance(value, dict | list | tuple):
            return 1
        if depth > _DEEPEST:
            raise _too_deep(name)
        known = sizes.get(id(value))
        if known == 0:
            raise ModelError(f"A part of {name!r} holds itself. It was not opened.")
        if known is None:
            sizes[id(value)] = 0  # being counted
            parts = value.values() if isinstance(value, dict) else value
            known = sizes[id(value)] = 1 + sum(size_of(one, depth + 1) for one in parts)
        return known

    if size_of(content, 0) > _MOST_VALUES:
        raise ModelError(
            f"{name!r} would have more than {_MOST_VALUES:,} values with its repetitions written "
            "out, which no configuration has. It was not opened."
        )


def _too_deep(name: str) -> ModelError:
    return ModelError(
        f"{name!r} is nested more than {_DEEPEST} levels deep, which no configuration is. It was "
        "not opened."
    )


def refuse_packed(archive: zipfile.ZipFile, name: str, size: int) -> None:
    """Refuse an archive that unpacks to much more than its size, or to very many files.

    Raises
    ------
    ModelError
        If it does.
    """
    members = archive.infolist()
    if len(members) > _MOST_MEMBERS:
        raise ModelError(
            f"{name!r} holds {len(members):,} files; models have some hundreds. It was not opened."
        )
    unpacked = sum(one.file_size for one in members)
    if unpacked > max(_SMALL, _RATIO * size):
        raise ModelError(
            f"{name!r} would unpack to {unpacked / 1e9:.2g} GB, {unpacked // max(1, size)} times "
            "its size, as no model does. It was not opened."
        )


def refuse_greedy_pickle(path: Path) -> None:
    """Refuse weights that make byte arrays: torch lets any size of them through, filled.

    Raises
    ------
    UntrustedModelError
        If the file names them. Tensors by name never need one.
    """
    if path.stat().st_size == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = content.find(b"bytearray") >= 0
    if found:
        raise UntrustedModelError(
            f"{path.name!r} holds byte arrays beside its tensors; they can take any memory. "
            "If you know where it comes from, allow it with trusted=True (--trust)."
        )


def refuse_windows(padded: tuple[int, ...], roi: tuple[int, ...], overlap: Sequence[float]) -> None:
    """Refuse windows that fill the memory by their size, or by their number.

    Parameters
    ----------
    padded : (I, J, K)
        The volume's shape, filled up to a window.
    roi : (I, J, K)
    overlap : sequence of float
        Part of a window that the next one covers again, 0 to 1.

    Raises
    ------
    ModelError
        If they do.
    """
    # The volume, the sum of the weights, an output and its gradient, single precision.
    needed, free = 16 * math.prod(padded), free_memory()
    if free is not None and needed > _PART * free:
        raise ModelError(
            f"The model's windows of {' x '.join(map(str, roi))} voxels need at least "
            f"{needed / 1e9:.3g} GB of memory for this volume, and {free / 1e9:.3g} GB are free. "
            "Crop the volume, or use a computer with more memory."
        )
    steps = [max(1, int(size * (1 - part))) for size, part in zip(roi, overlap, strict=True)]
    count = math.prod(
        1 + -(-(whole - size) // step) for whole, size, step in zip(padded, roi, steps, strict=True)
    )
    if count > _MOST_WINDOWS:
        raise ModelError(
            f"The model's windows of {' x '.join(map(str, roi))} voxels would be {count:,} for "
            "this volume. Make them larger, or their overlap smaller."
        )


@contextmanager
def bounded_memory(most: int | None = None) -> Iterator[None]:
    """Stop before torch takes more memory for new tensors than this, or than there is.

    Raises
    ------
    AllocationError
        Instead of the allocation.
    """
    free = free_memory()
    limits = [one for one in (most, None if free is None else int(_PART * free)) if one is not None]
    if not limits:
        yield
        return
    with _Bounded(min(limits)):
        yield


class _Bounded(TorchDispatchMode):
    """Asks of each operation, before it runs, how large its result would be.

    A single result, and all that was made from nothing (the weights of a network), may take so
    many bytes.
    """

    def __init__(self, most: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives no types
        self._most = most
        self._made = self._count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # the signature is torch's
        given = kwargs or {}
        if not (func.is_view or func._schema.name.endswith("_")):
            asked = _bytes_asked(func, args, given)
            if not any(isinstance(one, torch.Tensor) for one in args):
                self._made += asked
                self._count += 1
            if self._count > _MOST_TENSORS:
                raise AllocationError(f"it makes more than {_MOST_TENSORS:,} tensors")
            if max(asked, self._made) > self._most:
                raise AllocationError(
                    f"it needs {max(asked, self._made) / 1e9:.3g} GB of memory, and "
                    f"{self._most / 1e9:.3g} GB may be taken"
                )
        return func(*args, **given)


def _bytes_asked(func: Any, args: Any, given: Any) -> int:
    """Bytes of an operation's results, found on tensors without memory; 0 where it cannot be."""
    alone = not any(isinstance(one, torch.Tensor) for one in tree_leaves((args, given)))
    device = {"device": "meta"} if alone or "device" in given else {}
    try:
        bare_args, bare = tree_map(_bare, (args, given))
        made = func(*bare_args, **{**bare, **device})
    except Exception:  # noqa: BLE001 - no rule for its size: what fails will fail again
        return 0
    tensors = [one for one in tree_leaves(made) if isinstance(one, torch.Tensor)]
    return sum(one.numel() * one.element_size() for one in tensors)


def _bare(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty(value.shape, dtype=value.dtype, device="meta")
