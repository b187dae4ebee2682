"""A model with chains of layers that are computed together, and the comparison with its layers one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor, nn

import manualgrad as mg
from manualgrad.network import call_chains

X = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(0))


def make_native(inplace: bool = False, padding_mode: str = "zeros") -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, padding_mode=padding_mode), nn.ReLU(inplace), nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 2, groups=6, bias=False), nn.ReLU(inplace), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.ReLU(),
    )  # fmt: skip


def num_fused(model: Callable[[Tensor], object], x: Tensor = X) -> int:
    """Number of chains that are computed together in a call of ``model``."""
    with patch.object(call_chains, "run_chain", wraps=call_chains.run_chain) as run_chain:
        model(x)
    return run_chain.call_count


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Result, and gradients of ``x`` and of all parameters that need one, 0 of those that are not used."""
    x = x.detach().requires_grad_()
    y = model(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=x.dtype).view(y.shape)
    needs_grad = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [x, *needs_grad], materialize_grads=True)]


def one_by_one(model: nn.Module) -> nn.Module:
    """A copy whose layers run one by one."""
    copied = copy.deepcopy(model)
    for module in list(copied.modules()):
        if type(module) is mg.Sequential:
            module.__class__ = nn.Sequential
    return copied


def assert_equal(model: nn.Module, x: Tensor = X, fused: int = 2) -> None:
    """Results, gradients and their strides are those of the layers one by one, bit for bit."""
    assert num_fused(model, x) == fused and num_fused(one_by_one(model), x) == 0
    for actual, expected in zip(run(model, x), run(one_by_one(model), x), strict=True):
        assert actual.stride() == expected.stride()
        assert torch.equal(actual, expected)
    with torch.no_grad():
        assert torch.equal(model(x), one_by_one(model)(x))


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps for backward."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = model(x)
    y.sum().backward()
    return sum(kept.values())
