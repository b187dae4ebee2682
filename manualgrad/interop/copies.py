"""A copy of a module to make changes in, with its parameters copied or shared."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin


def copied(function: str, module: nn.Module, copy_parameters: bool) -> nn.Module:
    """A deep copy: what is shared inside it stays shared; hooks, modes, dtypes, devices and memory formats are kept.

    Buffers are copied in any case, so that running statistics of one do not move with the other's.

    Raises:
        TypeError: what is not a module.
        ValueError: a lazy layer, which has no parameters to copy yet.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"{function}: module must be a torch.nn.Module, got {type(module).__name__}")
    for name, layer in module.named_modules():
        if isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params():
            raise ValueError(
                f"{function}: {name or 'the module'} is a {type(layer).__name__} that has not seen an input; run the "
                "model once, and it knows its sizes"
            )
    known: dict[int, object] = {}
    if not copy_parameters:
        known = {id(parameter): parameter for parameter in module.parameters()}
    for layer in module.modules():  # pruning and the older weight_norm leave one that is the result of a computation
        for value in vars(layer).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                known[id(value)] = value.detach().clone(memory_format=torch.preserve_format)
    return copy.deepcopy(module, known)
