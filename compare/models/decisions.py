"""What a network decides: which sign at each ReLU, which place in each pooling window; and how to make it decide so.

In float32 a value near 0 may fall on the other side of a ReLU, or another place may win a window: a flip. A network
that is made to decide as another run did differs from it by rounding alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

import manualgrad as mg

RELUS = (nn.ReLU, mg.nn.ReLU)
POOLINGS = (nn.MaxPool2d, mg.nn.MaxPool2d)

Decisions = dict[str, list[Tensor]]  # of each layer by name, a tensor for each time that it ran


@contextmanager
def recorded(model: nn.Module) -> Iterator[Decisions]:
    """Notes, for each call of a ReLU, where its result is above 0, and of a pooling, which places were chosen."""
    decisions: Decisions = {}

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            decision = output > 0 if isinstance(layer, RELUS) else places(layer, inputs[0])
            decisions.setdefault(name, []).append(decision.detach())

        return hook

    kinds = (*RELUS, *POOLINGS)
    hooks = [m.register_forward_hook(note(name)) for name, m in model.named_modules() if isinstance(m, kinds)]
    try:
        yield decisions
    finally:
        for hook in hooks:
            hook.remove()


def places(pooling: nn.Module, input: Tensor) -> Tensor:
    geometry = (pooling.kernel_size, pooling.stride, pooling.padding, pooling.dilation, pooling.ceil_mode)
    return F.max_pool2d(input.detach(), *geometry, return_indices=True)[1]


@contextmanager
def made_to_decide(model: nn.Module, decisions: Decisions) -> Iterator[None]:
    """Inside, each ReLU and each pooling of ``model`` decides as recorded, whatever its input says."""
    layers = {name: layer for name, layer in model.named_modules() if name in decisions}

    def decided(layer: nn.Module, left: Iterator[Tensor]) -> Callable[[Tensor], Tensor]:
        def forward(input: Tensor) -> Tensor:
            decision = next(left)
            if isinstance(layer, RELUS):
                return input.mul_(decision) if getattr(layer, "inplace", False) else input * decision
            return input.flatten(-2).gather(-1, decision.flatten(-2)).view(decision.shape)

        return forward

    for name, layer in layers.items():
        layer.forward = decided(layer, iter(decisions[name]))
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.forward


def flips(one: Decisions, other: Decisions) -> dict[str, int]:
    """In how many places two runs decided differently, by layer."""
    return {name: sum((a != b).sum().item() for a, b in zip(one[name], other[name], strict=True)) for name in one}
