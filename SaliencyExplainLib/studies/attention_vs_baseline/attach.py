"""Give a MONAI network the attention block between its last features and its head."""

from __future__ import annotations

import copy
from typing import Any

import torch

from ...errors import ModelError
from .block import MultiLevelDualAttention

__all__ = ["DualAttentionNetwork", "with_attention"]


class DualAttentionNetwork(torch.nn.Module):
    """A DenseNet or ResNet of MONAI whose last features pass the block before they are pooled.

    Made by :func:`with_attention`. The block lies in ``attention``, the network's own layers in
    ``stages`` (those that are run one after the other) and ``head``.

    Attributes
    ----------
    stages : torch.nn.ModuleDict
    head : torch.nn.Module
    attention : MultiLevelDualAttention
    taps : (str, str, str)
        Stages that query, key and value come from; the deepest features are the last stage's.
    """

    def __init__(
        self,
        stages: dict[str, torch.nn.Module],
        head: torch.nn.Module,
        attention: MultiLevelDualAttention,
        taps: tuple[str, str, str],
    ) -> None:
        super().__init__()
        self.stages = torch.nn.ModuleDict(stages)
        self.head = head
        self.attention = attention
        self.taps = taps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores (B, O) of volumes (B, C, I, J, K)."""
        kept = {}
        for name, stage in self.stages.items():
            x = stage(x)
            if name in self.taps:
                kept[name] = x
        query, key, value = (kept[name] for name in self.taps)
        scores: torch.Tensor = self.head(self.attention(query, key, value, x))
        return scores


def with_attention(
    network: torch.nn.Module,
    *,
    variant: str = "scaled",
    taps: tuple[str, str, str] | None = None,
) -> DualAttentionNetwork:
    """Put a multi-level dual attention block before the head of a DenseNet or ResNet of MONAI.

    The head (pooling and the linear layer) stays the network's own, so that both differ by the
    block alone; published heads are larger (flattened features, two hidden layers, dropout).

    Parameters
    ----------
    network : monai.networks.nets.DenseNet or ResNet
        3D, with its head; copied, so that the given one is left as it is. Its weights are kept.
    variant : {"scaled", "original", "torch_port"}
        Of :class:`MultiLevelDualAttention`.
    taps : (str, str, str), optional
        Stages whose output becomes query, key and value; the third-last, second-last and last of
        the dense blocks (``"denseblock2"``, ``"denseblock3"``, then what follows the last one) or
        layers (``"layer2"``, ``"layer3"``, ``"layer4"``) when left out, as in the torch code.

    Returns
    -------
    DualAttentionNetwork

    Raises
    ------
    ModelError
        If the network is no 3D DenseNet or ResNet of MONAI with a head, or a stage is unknown.

    Examples
    --------
    >>> from monai.networks.nets import DenseNet
    >>> network = with_attention(DenseNet(3, 1, 1, init_features=8, growth_rate=4,
    ...                                   block_config=(2, 2, 2)))
    >>> network(torch.rand(2, 1, 32, 32, 32)).shape
    torch.Size([2, 1])
    """
    stages, head, usual, channels = _parts(copy.deepcopy(network))
    chosen = taps or usual
    unknown = [name for name in chosen if name not in stages]
    if unknown:
        raise ModelError(
            f"The network has no stage {unknown[0]!r} to take features from. Its stages are "
            f"{', '.join(stages)}."
        )
    block = MultiLevelDualAttention(channels, variant)
    made = DualAttentionNetwork(stages, head, block, chosen)
    return made.train(network.training)


def _parts(
    network: Any,
) -> tuple[dict[str, torch.nn.Module], torch.nn.Module, tuple[str, str, str], int]:
    """Stages, head, usual taps and channels of the last features."""
    from monai.networks.nets import DenseNet, ResNet

    sequential = torch.nn.Sequential
    if isinstance(network, DenseNet) and isinstance(network.class_layers.out, torch.nn.Linear):
        stages = dict(network.features.named_children())
        blocks = [name for name in stages if name.startswith("denseblock")]
        if len(blocks) >= 3 and _is_3d(network):
            last = list(stages)[-1]
            channels = network.class_layers.out.in_features
            return stages, network.class_layers, (blocks[-3], blocks[-2], last), channels
    if isinstance(network, ResNet) and network.fc is not None and _is_3d(network):
        pool = {} if network.no_max_pool else {"maxpool": network.maxpool}
        names = ("layer1", "layer2", "layer3", "layer4")
        stages = {"conv1": network.conv1, "bn1": network.bn1, "act": network.act, **pool}
        stages |= {name: getattr(network, name) for name in names}
        head = sequential(network.avgpool, torch.nn.Flatten(1), network.fc)
        return stages, head, names[1:], network.fc.in_features
    raise ModelError(
        f"The block can be put into a 3D DenseNet of MONAI with at least 3 dense blocks, or a 3D "
        f"ResNet with its head; {type(network).__name__} was given. For another network call "
        "MultiLevelDualAttention on four of its features."
    )


def _is_3d(network: torch.nn.Module) -> bool:
    kinds = (torch.nn.Conv1d, torch.nn.Conv2d)
    return not any(isinstance(one, kinds) for one in network.modules())
