"""A copy of a module that can be changed, with its parameters copied or shared."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin


def copy_module(caller: str, module: nn.Module, copy_parameters: bool) -> nn.Module:
    """Copy ``module`` deeply: what is shared inside it stays shared, and everything that its layers hold is kept.

    Buffers are copied in any case, so that the two modules do not update each other's running statistics.

    Args:
        caller: name of the public function, for error messages.
        module: any module.
        copy_parameters: False: the copy has the same parameter objects.

    Raises:
        TypeError: ``module`` is not a module.
        ValueError: a lazy layer has no parameters yet.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"{caller}: module must be a torch.nn.Module, got {type(module).__name__}")
    for name, layer in module.named_modules():
        if isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params():  # type: ignore[misc]  # torch's protocol for self lacks nn.Module
            raise ValueError(
                f"{caller}: {name or 'the module'} is a {type(layer).__name__} without parameters; run the model on "
                "an input first, so that it is initialized"
            )
    memo: dict[int, object] = {}
    if not copy_parameters:
        memo = {id(parameter): parameter for parameter in module.parameters()}
    for layer in module.modules():  # pruning and the older weight_norm leave a tensor that autograd computed
        for value in vars(layer).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone(memory_format=torch.preserve_format)
    return copy.deepcopy(module, memo)
