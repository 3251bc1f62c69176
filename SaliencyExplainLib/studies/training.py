"""Train the networks of the studies: seeded, with progress, and from where it was stopped."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from .work import Work

__all__ = ["seeded", "train"]

#: Seconds between two states that a stopped training can go on from.
_KEEP_EVERY_S = 20.0


def seeded(make: Callable[[], torch.nn.Module], seed: int) -> torch.nn.Module:
    """Make a network whose first weights depend on nothing but the seed."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def train(
    work: Work,
    name: str,
    network: torch.nn.Module,
    loss_of: Callable[[torch.nn.Module, np.random.Generator], torch.Tensor],
    *,
    steps: int,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
) -> list[float]:
    """Train a network in place with AdamW under one cosine cycle, or read it if it was trained.

    Step s draws with a generator seeded by (seed of the study, s), and dropout by the same; with
    the optimiser's state kept, a training that was stopped ends like one that was not.

    Parameters
    ----------
    work : Work
        Progress, seed, and where the weights are kept.
    name : str
        Of the files ``<name>.pt`` and, while it runs, ``<name>.part.pt``.
    network : torch.nn.Module
        With its first weights, see :func:`seeded`. Left in evaluation mode.
    loss_of : callable
        Takes the network (in training mode) and a generator; returns the loss of one batch.
    steps : int
        Number of updates.
    learning_rate : float
        The largest, reached after a tenth of the steps.
    weight_decay : float
        Of AdamW.

    Returns
    -------
    list of float
        The loss of each step.
    """
    import torch

    done = work.path(f"{name}.pt")
    if done is not None and done.is_file():
        kept = torch.load(done, weights_only=True)
        network.load_state_dict(kept["network"])
        network.eval()
        return list(kept["losses"])
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    losses: list[float] = []
    part = work.path(f"{name}.part.pt")
    if part is not None and part.is_file():
        kept = torch.load(part, weights_only=True)
        network.load_state_dict(kept["network"])
        optimiser.load_state_dict(kept["optimiser"])
        losses = list(kept["losses"])
    network.train()
    saved = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        for step in range(len(losses), steps):
            recent = f", loss {np.mean(losses[-20:]):.3f}" if losses else ""
            work.tell(step / steps, f"training {name.replace('_', ' ')}{recent}")
            torch.manual_seed(work.seed * 1_000_003 + step)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * _cycle((step + 1) / steps)
            optimiser.zero_grad(set_to_none=True)
            loss = loss_of(network, np.random.default_rng((work.seed, step)))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            losses.append(float(loss.detach()))
            if part is not None and time.monotonic() - saved > _KEEP_EVERY_S:
                state = {"network": network.state_dict(), "optimiser": optimiser.state_dict()}
                _save({**state, "losses": losses}, part)
                saved = time.monotonic()
    network.eval()
    for parameter in network.parameters():
        parameter.grad = None
    if done is not None and part is not None:
        _save({"network": network.state_dict(), "losses": losses}, done)
        part.unlink(missing_ok=True)
    return losses


def _cycle(done: float) -> float:
    """Part of the largest learning rate: up along a line for a tenth, then down a half cosine."""
    if done < 0.1:
        return done / 0.1
    return 0.5 * (1 + math.cos(math.pi * (done - 0.1) / 0.9))


def _save(state: dict[str, Any], path: Path) -> None:
    """Write a state whole or not at all."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        torch.save(state, temporary)
        temporary.replace(path)
