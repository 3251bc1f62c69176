"""Where a network runs: the GPU there is, unless the user says otherwise."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import ModelError

__all__ = ["AUTOMATIC", "choose_device"]

AUTOMATIC = "auto"


def choose_device(wanted: Any = AUTOMATIC) -> torch.device:
    """Return the device that is meant.

    Parameters
    ----------
    wanted : str or torch.device
        "auto" takes a CUDA GPU, else Apple's (MPS), else the CPU.

    Raises
    ------
    ModelError
        If there is no such device here; those that there are are named.
    """
    if wanted == AUTOMATIC:
        return torch.device(_available()[-1])
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError) as error:
        raise ModelError(_unknown(wanted)) from error
    known = _available()
    if device.type not in known:
        raise ModelError(_unknown(wanted))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ModelError(
            f"There is no {device}: this computer has {count} CUDA GPU{'s' if count > 1 else ''}, "
            f"counted from 0. Choose cuda:{count - 1} or below."
        )
    return device


def _available() -> list[str]:
    """Kinds of devices, the preferred one last."""
    found = ["cpu"]
    if torch.backends.mps.is_available():
        found.append("mps")
    if torch.cuda.is_available():
        found.append("cuda")
    return found


def _unknown(wanted: Any) -> str:
    return (
        f"The device {str(wanted)!r} is not there: PyTorch finds {', '.join(_available())} on this "
        "computer. Choose one of them, or auto; for a GPU install the build of PyTorch that fits "
        "its driver."
    )
