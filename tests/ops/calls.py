"""Calls of operations as data, run by ours and by native PyTorch under the same name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, ones

import manualgrad

META = torch.device("meta")
LABELS, NO_LABELS = torch.tensor([0, 2]), torch.empty(0, dtype=torch.long)
X, W, B = ones(2, 4, 5, 6), ones(6, 4, 3, 3), ones(6)
LOGITS = torch.arange(6.0).view(2, 3)

NATIVE = {
    "conv2d": F.conv2d,
    "max_pool2d": F.max_pool2d,
    "flatten": lambda x: torch.flatten(x.permute(0, 2, 3, 1), 1) if x.dim() == 4 else torch.flatten(x),
    "dense": F.linear,
    "relu": F.relu,
    "softmax": torch.softmax,
    "softmax_cross_entropy": F.cross_entropy,
}
OURS = {name: getattr(manualgrad, name) for name in NATIVE} | {
    "conv2d": lambda *args, **options: manualgrad.conv2d(*args, **options, flip_kernel=False),
    "relu": lambda x: manualgrad.relu(x, subgradient=0),
}


@dataclass(frozen=True)
class Call:
    """The name of an operation and its arguments."""

    function: str
    args: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def results(self, functions: Mapping[str, Callable[..., Any]]) -> dict[str, Tensor] | None:
        """Outputs and gradients, or None if the function of ``functions`` refuses the call."""
        with_gradient = 2 if self.function == "softmax_cross_entropy" else 3  # class weights have no gradient
        args = [
            x.detach().requires_grad_(x.is_floating_point() and n < with_gradient) if isinstance(x, Tensor) else x
            for n, x in enumerate(self.args)
        ]
        try:
            result = functions[self.function](*args, **self.options)
        except (ValueError, TypeError, IndexError, RuntimeError):
            return None
        outputs = result if isinstance(result, tuple) else (result,)
        if outputs[0].requires_grad:
            outputs[0].sum().backward()
        results = {f"output {n}": x.detach() for n, x in enumerate(outputs)}
        return results | {
            f"gradient {n}": x.grad for n, x in enumerate(args) if isinstance(x, Tensor) and x.grad is not None
        }


def call(function: str, *args: Any, **options: Any) -> Call:
    """A :class:`Call`, written as the call itself."""
    return Call(function, args, options)
