"""Decisions of a network: the sign at each ReLU, and the index of the maximum in each pooling window.

In float32 a value near 0 may get the other sign at a ReLU, or another element may win a window: a flip. A network
that is forced to repeat the decisions of another run differs from that run by rounding only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

import manualgrad as mg

RELUS = (nn.ReLU, mg.nn.ReLU)
POOLINGS = (nn.MaxPool2d, mg.nn.MaxPool2d)

Decisions = dict[str, list[Tensor]]
"""Decisions by layer name: one tensor for each call of the layer."""


@contextmanager
def record_decisions(model: nn.Module) -> Iterator[Decisions]:
    """Record, for each call of a ReLU, where its output is positive, and for each pooling, the selected indices."""
    decisions: Decisions = {}

    def recorder(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            decision = output > 0 if isinstance(layer, RELUS) else max_pool_indices(layer, inputs[0])
            decisions.setdefault(name, []).append(decision.detach())

        return hook

    kinds = (*RELUS, *POOLINGS)
    hooks = [m.register_forward_hook(recorder(name)) for name, m in model.named_modules() if isinstance(m, kinds)]
    try:
        yield decisions
    finally:
        for hook in hooks:
            hook.remove()


def max_pool_indices(pooling: nn.Module, input: Tensor) -> Tensor:
    """Indices that ``pooling`` selects, as ``F.max_pool2d(return_indices=True)`` numbers them."""
    geometry = (pooling.kernel_size, pooling.stride, pooling.padding, pooling.dilation, pooling.ceil_mode)
    return F.max_pool2d(input.detach(), *geometry, return_indices=True)[1]


@contextmanager
def force_decisions(model: nn.Module, decisions: Decisions) -> Iterator[None]:
    """Make each ReLU and each pooling of ``model`` repeat the recorded decisions inside the context."""
    layers = {name: layer for name, layer in model.named_modules() if name in decisions}

    def forced_forward(layer: nn.Module, remaining: Iterator[Tensor]) -> Callable[[Tensor], Tensor]:
        def forward(input: Tensor) -> Tensor:
            decision = next(remaining)
            if isinstance(layer, RELUS):
                return input.mul_(decision) if getattr(layer, "inplace", False) else input * decision
            return input.flatten(-2).gather(-1, decision.flatten(-2)).view(decision.shape)

        return forward

    for name, layer in layers.items():
        layer.forward = forced_forward(layer, iter(decisions[name]))
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.forward


def count_flips(run: Decisions, other: Decisions) -> dict[str, int]:
    """Number of decisions that differ between two runs, by layer."""
    return {name: sum((a != b).sum().item() for a, b in zip(run[name], other[name], strict=True)) for name in run}
