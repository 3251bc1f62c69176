"""How many images or windows go through the network together, within the memory there is.

On a CPU two cost 0.86 of one by one, four more than one by one (MONAI UNet, 96^3, one and two
threads), so two are the most there. A GPU takes as many as fit. What does not fit after all is
halved, and said.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..errors import ModelError, is_out_of_memory

__all__ = ["Batch", "graph_bytes"]

_T = TypeVar("_T")

_MOST_CPU, _MOST_GPU = 2, 16
#: Part of the free memory that a batch may take; the rest is for what a graph does not hold.
_PART = 0.4

#: What an allocator says when it has no more.
_FULL = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc")
#: Networks that were seen to answer for each image of a batch as for the image alone.
_separate: weakref.WeakKeyDictionary[torch.nn.Module, bool] = weakref.WeakKeyDictionary()


class Batch:
    """The size of the next batch, and what was learned about it.

    Parameters
    ----------
    device : torch.device
    size : int or None
        A fixed size; None: one at first, then what fits.

    Attributes
    ----------
    size : int
    notes : list of str
        What the reader of the result must know.
    """

    def __init__(self, device: torch.device, size: int | None = None) -> None:
        self.device = device
        self.size = size or 1
        self.notes: list[str] = []
        self._automatic = size is None

    def learn(self, graph_bytes: int) -> None:
        """Choose the size from the memory of the graph of one item."""
        if not self._automatic:
            return
        self._automatic = False
        free = free_bytes(self.device)
        if free is None or graph_bytes == 0:
            return
        most = _MOST_CPU if self.device.type == "cpu" else _MOST_GPU
        self.size = max(1, min(most, int(_PART * free) // graph_bytes))

    def groups(self, items: Iterable[_T]) -> Iterator[list[_T]]:
        """Items in lists of the size that holds when each list is begun."""
        waiting = iter(items)
        while group := list(islice(waiting, self.size)):
            yield group

    def run(self, group: list[_T], work: Callable[[list[_T]], None]) -> None:
        """Do the work on a group; where the memory is not enough, on halves of it.

        Raises
        ------
        Exception
            What `work` raised on a single item.
        """
        try:
            work(group)
            return
        except Exception as error:
            if len(group) == 1:
                raise
            full = is_out_of_memory(error)
            if not full and not isinstance(error, ModelError):
                raise
        # Outside the handler: its traceback would hold the tensors of the failed attempt.
        self.limit((len(group) + 1) // 2 if full else 1, full=full)
        rest = group
        while rest:
            part, rest = rest[: self.size], rest[self.size :]
            self.run(part, work)

    def limit(self, size: int, *, full: bool) -> None:
        """Go on with smaller batches, and note why."""
        if full:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.notes.append(
                f"The memory was not enough for {self.size} at a time; {size} were computed "
                "together instead. The map is the same."
            )
        self._automatic = False
        self.size = min(self.size, size)

    def separate(self, network: torch.nn.Module, check: Callable[[], bool]) -> bool:
        """Whether the network treats the images of a batch apart; `check` finds out once."""
        if network not in _separate:
            _separate[network] = check()
        return _separate[network]


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a device; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    sizes = dict(line.split(":", 1) for line in lines)
    return int(sizes["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in sizes else None


def graph_bytes(output: torch.Tensor) -> int:
    """Bytes that the graph behind a tensor keeps for its backward pass, each storage once."""
    sizes: dict[int, int] = {}
    waiting: list[Any] = [output.grad_fn]
    met = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in met:
            continue
        met.add(node)
        waiting += [following for following, _ in node.next_functions]
        for tensor in _saved(node):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def _saved(node: Any) -> list[torch.Tensor]:
    """Tensors that a node of a graph keeps."""
    found = list(getattr(node, "saved_tensors", ()))
    for name in dir(node):
        if name.startswith("_saved_"):
            # One that was overwritten in place refuses to be read.
            with suppress(RuntimeError):
                value = getattr(node, name)
                found += value if isinstance(value, list | tuple) else [value]
    return [one for one in found if isinstance(one, torch.Tensor)]
