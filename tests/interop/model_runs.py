"""Runs of a model, and how closely the results of two models must agree."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.conftest import run_forward_backward

CHANNELS_LAST = torch.channels_last

# For float64 values of about 10, whose terms are added in another order.
CLOSE = {"rtol": 0, "atol": 1e-12}


def run(module: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """Output, and gradients of floating inputs and of parameters. Inputs are copied, so layers may change them."""

    def run_on_copies(*leaves: Tensor) -> Tensor | tuple[Tensor, ...]:
        return module(*(x * 1 if x.is_floating_point() else x for x in leaves))

    results = run_forward_backward(run_on_copies, inputs, torch.ones_like)
    results |= {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return results


X = torch.randn(4, 3, 8, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def seeded(module: nn.Module, x: Tensor = X) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return run(module, x)
