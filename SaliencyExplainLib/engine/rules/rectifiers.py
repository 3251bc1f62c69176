"""Other backward rules at rectifiers: DeconvNet and guided backpropagation.

With f the input of the nonlinearity and b the gradient that arrives from above (Springenberg et al.
2015, figure 1)::

    gradient   b * (f > 0)      DeconvNet   b * (b > 0)      guided   b * (f > 0) * (b > 0)

The rule is applied where autograd calls the nonlinearity's own backward kernel. So it does not
matter whether the network wrote ``nn.ReLU``, ``F.relu``, ``torch.relu_``, one module used five
times, or a TorchScript program: what ran is what is changed, and nothing in the network is touched.
LeakyReLU and PReLU follow the rule of their positive branch. Smooth rectifiers (ELU, GELU, SiLU,
...) keep their own slope there: b+ * f' * (f > 0), for DeconvNet b+.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from torch.jit import optimized_execution  # type: ignore[attr-defined]  # not in its __all__
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["RectifierRule", "run_as_written"]

_aten = torch.ops.aten


class RectifierRule(TorchDispatchMode):
    """While active, backward passes follow the rule.

    Parameters
    ----------
    guided : bool
        True for guided backpropagation, False for DeconvNet.

    Attributes
    ----------
    seen : Counter
        How often each kind of nonlinearity was met, by name.
    """

    #: backward kernel -> (name, position of the arriving gradient, position of the forward value,
    #: smooth?)
    KERNELS: ClassVar[dict[Any, tuple[str, int, int, bool]]] = {
        _aten.threshold_backward: ("ReLU", 0, 1, False),
        _aten.leaky_relu_backward: ("LeakyReLU", 0, 1, False),
        _aten._prelu_kernel_backward: ("PReLU", 0, 1, False),
        _aten.rrelu_with_noise_backward: ("RReLU", 0, 1, False),
        _aten.hardtanh_backward: ("ReLU6", 0, 1, True),
        _aten.elu_backward: ("ELU", 0, 5, True),
        _aten.gelu_backward: ("GELU", 0, 1, True),
        _aten.silu_backward: ("SiLU", 0, 1, True),
        _aten.mish_backward: ("Mish", 0, 1, True),
        _aten.hardswish_backward: ("Hardswish", 0, 1, True),
        _aten.softplus_backward: ("Softplus", 0, 1, True),
    }

    def __init__(self, *, guided: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.guided = guided
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        known = self.KERNELS.get(getattr(func, "overloadpacket", None))
        if known is None:
            return func(*args, **(kwargs or {}))
        name, arriving, forward, smooth = known
        self.seen[name] += 1
        upstream = args[arriving].clamp(min=0)
        value = args[forward]
        if not self.guided:
            rule = upstream
        elif smooth:
            changed = list(args)
            changed[arriving] = upstream
            rule = func(*changed, **(kwargs or {})) * (value > 0)
        else:
            rule = upstream * (value > 0)
        # The slope of a PReLU is frozen; its gradient is asked for by the kernel's signature and
        # thrown away.
        return (rule, rule.new_zeros(()).expand_as(rule)) if name == "PReLU" else rule

    @property
    def smooth(self) -> tuple[str, ...]:
        """Names of the smooth nonlinearities that were met."""
        names = {name for name, *_, smooth in self.KERNELS.values() if smooth}
        return tuple(sorted(names & set(self.seen)))


@contextmanager
def run_as_written(network: torch.nn.Module) -> Iterator[None]:
    """Keep TorchScript from differentiating a network by itself, where no rule can reach.

    From its second run on, TorchScript replaces blocks of operations by derivatives of its own: a
    LeakyReLU behind an addition is then never seen (torch 2.13). Inside, it runs operation by
    operation; what it had compiled is thrown away before and after, and made anew when needed.
    """
    methods = [getattr(module, "forward", None) for module in network.modules()]
    compiled: list[Any] = [one for one in methods if isinstance(one, torch.ScriptMethod)]
    with ExitStack() as stack:
        for one in compiled:
            one._debug_flush_compilation_cache()
            stack.callback(one._debug_flush_compilation_cache)
        if compiled:
            stack.enter_context(optimized_execution(False))
        yield
