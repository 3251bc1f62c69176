"""Calling a network: what it raises as one sentence, what it returns as one tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import ModelError, OutOfMemoryError, SaliencyExplainError, is_out_of_memory

__all__ = ["main_output", "network_errors", "sizes"]

_TOO_BIG = "The memory is not enough for a window of {} voxels. Use a smaller window, or the CPU."


@contextmanager
def network_errors(part: torch.Tensor) -> Iterator[None]:
    """Turn what a network raises on an input into one sentence."""
    try:
        yield
    except SaliencyExplainError:
        raise
    except MemoryError as error:
        raise OutOfMemoryError(_TOO_BIG.format(sizes(part))) from error
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(_TOO_BIG.format(sizes(part))) from error
        raise ModelError(
            f"The network failed on an input of shape {tuple(part.shape)} (B, C, I, J, K): "
            f"{_reason(error)}. Check the number of channels and the window size that it was "
            "trained with."
        ) from error


def _reason(error: Exception) -> str:
    """The line that says what went wrong; TorchScript puts it last, behind its program."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1 if "TorchScript" in lines[0] else 0].rstrip(".")


def main_output(result: Any) -> torch.Tensor:
    """The main output: deep supervision and dictionaries put it first."""
    while not isinstance(result, torch.Tensor):
        if isinstance(result, dict) and result:
            result = next(iter(result.values()))
        elif isinstance(result, list | tuple) and result:
            result = result[0]
        else:
            raise ModelError(
                f"The network returns {type(result).__name__}; a tensor (B, O, ...) was expected."
            )
    return result.as_subclass(torch.Tensor) if type(result) is not torch.Tensor else result


def sizes(tensor: torch.Tensor) -> str:
    """Spatial size of a (B, C, I, J, K) tensor in words."""
    return " x ".join(str(size) for size in tensor.shape[2:])
