"""What 'no information' looks like: the other end of every comparison.

After z-scoring zero is mean tissue, not absence. Through instance normalisation the straight path
from a constant image is flat except at its start (the norm undoes any scaling), so integrated
gradients lose their completeness there: measured sum of attributions / change of the score between
-0.05 and 0.43 with 20 steps, against 0.98 to 1.00 from a blurred image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ..engine import Engine

__all__ = ["BASELINES", "make_baseline", "normalises_instances"]

#: "automatic": blurred where the network normalises each image by itself, else zero.
BASELINES = ("automatic", "zero", "minimum", "blurred")


def normalises_instances(network: torch.nn.Module) -> bool:
    """Whether the network normalises each image by itself (instance or group norm)."""
    import torch

    kinds = (torch.nn.modules.instancenorm._InstanceNorm, torch.nn.GroupNorm)
    return any(isinstance(module, kinds) for module in network.modules())


def resolve(choice: str, engine: Engine) -> str:
    """Replace "automatic" by the baseline that fits the network."""
    if choice != "automatic":
        return choice
    return "blurred" if normalises_instances(engine.model.network) else "zero"


def make_baseline(choice: str, engine: Engine, blur_mm: float) -> torch.Tensor:
    """Return the baseline image, shape (1, C, I, J, K), on the engine's device.

    Parameters
    ----------
    choice : str
        One of :data:`BASELINES`.
    engine : Engine
    blur_mm : float
        Standard deviation of the Gaussian of "blurred", in mm.
    """
    import torch
    from scipy.ndimage import gaussian_filter

    from ..image import spacing_mm

    choice = resolve(choice, engine)
    x = engine.x
    if choice == "zero":
        return torch.zeros_like(x)
    if choice == "minimum":
        return x.amin(dim=(2, 3, 4), keepdim=True).expand_as(x)
    sigma = (blur_mm / spacing_mm(engine.image.affine)).tolist()
    blurred = gaussian_filter(x[0].cpu().numpy(), sigma=(0, *sigma), mode="nearest")
    return torch.from_numpy(blurred)[None].to(x.device)
