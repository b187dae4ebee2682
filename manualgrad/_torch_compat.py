"""PyTorch's private names that manualgrad needs, all in this file.

A private name begins with an underscore, or PyTorch's documentation leaves it out. A release of PyTorch may rename
it, and then this is the file to change. Each entry says what the name is for and what breaks without it. Functions of
PyTorch are bound directly where possible, since many of them run in every training step and a wrapper costs time.
``tests/test_torch_compat.py`` checks that neither another file of manualgrad nor ``train.py`` touches such a name.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from operator import attrgetter
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import BackwardCFunction
from torch.optim import Optimizer

P = ParamSpec("P")
R = TypeVar("R")

# ------------------------------------------------------------------------------------------- modes of the process

# True inside of torch.func. Without it kernels would read the memory of functorch's wrappers, which have none.
is_functorch_active: Callable[[], bool] = torch._C._are_functorch_transforms_active

# Number of active TorchDispatchModes. Without it a mode that records or fakes operators would miss what kernels do.
dispatch_mode_count: Callable[[], int] = torch._C._len_torch_dispatch_stack

# The state of torch.jit.trace, or None. Without it a traced graph would lack what kernels compute.
jit_tracing_state: Callable[[], Any] = torch._C._get_tracing_state

# Sets that state. Without it every size that a check reads would be a few nodes of the traced graph.
set_jit_tracing_state: Callable[[Any], None] = torch._C._set_tracing_state  # type: ignore[attr-defined]  # not in the stub

# Context manager that switches forward mode on or off. Without it forward mode over forward mode would lose the
# terms that plain operators contribute inside of a jvp, where PyTorch switches forward mode off.
set_forward_mode_enabled: Callable[[bool], AbstractContextManager[Any]] = forward_ad._set_fwd_grad_enabled

# True if a hook is registered for all modules. Without it a fused network would skip that hook.
has_global_hooks: Callable[[], bool] = nn.modules.module._has_any_global_hook


# True inside of any torch.autocast. Without it a call would ask by the name of a device, which takes longer.
is_any_autocast_enabled: Callable[[], bool] = torch._C._is_any_autocast_enabled


def is_forward_mode_active() -> bool:
    """Return True inside of ``forward_ad.dual_level``. Without it shortcuts that have no jvp would drop tangents."""
    return forward_ad._current_level >= 0


# getattr: the name is newer than the others, and the default is the safe answer.
_keep_graph: Callable[[], bool] = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def is_graph_freed() -> bool:
    """Return True inside of a backward that frees the graph afterwards. Without it saved gradients would have to be
    copied before they are returned, since a second backward could read them."""
    return not _keep_graph()


# ------------------------------------------------------------------------------------------------- torch.compile


def assume_constant_result(function: Callable[P, R]) -> Callable[P, R]:
    """Do what ``torch.compiler.assume_constant_result`` does, without its import of ``torch._dynamo``: that takes as
    long as ``import torch`` and sets an environment variable. Without the mark a compiled graph would end there."""
    vars(function)["_dynamo_marked_constant"] = True
    return function


@assume_constant_result
def is_autocast_available(device_type: str) -> bool:
    """Return the result of ``torch.amp.is_autocast_available``. Without the mark a layer could not be compiled with
    torch 2.11, whose compiler does not trace that function."""
    return torch.amp.is_autocast_available(device_type)


# ------------------------------------------------------------------------------------------------------- tensors

# True for a tensor that functorch wraps (vmap, grad, jvp). Without it kernels would be given wrappers without memory.
is_functorch_wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor

# True for a batch of gradients in torch.autograd.grad(is_grads_batched=True). Without it kernels would be given such
# a batch, a wrapper without memory.
is_legacy_batched: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor

# The keys by which PyTorch dispatches a tensor, as a set whose raw_repr() is an integer: device, layout, wrappers of
# all kinds. Without it the check of a tensor would be a call for each of them.
dispatch_keys: Callable[[Tensor], Any] = torch._C._dispatch_keys

# That integer of a plain strided tensor on the CPU, neither negated nor made in inference mode. Without it a kernel's
# check would look at every tensor as closely as at one with other keys.
_KEYS = torch._C.DispatchKey
ORDINARY_CPU_KEYS: int = (
    torch._C.DispatchKeySet(_KEYS.CPU).add(_KEYS.AutogradCPU).add(_KEYS.ADInplaceOrView).add(_KEYS.AutocastCPU)
).raw_repr()

# True for a tensor of zeros that has no memory, as forward mode makes. Without it a kernel would read address 0.
is_zero_tensor: Callable[[Tensor], bool] = Tensor._is_zerotensor

# Number of in-place changes of a tensor. Without it the change of a bias between forward and backward would go
# unnoticed.
version_of: Callable[[Tensor], int] = attrgetter("_version")

# The list operations of torch.optim: one call for all parameters. Without them an update is one call per parameter.
foreach_add_: Callable[..., None] = torch._foreach_add_
foreach_copy_: Callable[..., None] = torch._foreach_copy_
foreach_lerp_: Callable[..., None] = torch._foreach_lerp_
foreach_mul: Callable[..., tuple[Tensor, ...]] = torch._foreach_mul

# ------------------------------------------------------------------------------------------------------ Functions

# The class of ctx in reverse mode outside of functorch. Without it forward would keep tensors that only jvp reads.
BackwardContext: type = BackwardCFunction


def free_saved_tensors(ctx: Any) -> None:
    """Free the tensors that ``ctx`` saved, unless the graph is kept, in reverse mode outside of functorch. Without it
    they would stay in memory until the end of a backward that no longer needs them."""
    if isinstance(ctx, BackwardContext):
        ctx.maybe_clear_saved_tensors()  # type: ignore[attr-defined]  # ctx is narrowed to object


# ---------------------------------------------------------------------------- modules, optimizers and schedules


def child_modules(module: nn.Module) -> dict[str, nn.Module | None]:
    """The dict of a module's children. ``named_children`` leaves out repeated children and is slower."""
    return module._modules


def set_child_modules(module: nn.Module, children: dict[str, nn.Module | None]) -> None:
    """Replace all children at once. Without it ``to_torch`` could not insert layers and keep the order."""
    vars(module)["_modules"] = children


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The dict of a module's own parameters. Without it a weight that a hook computes, as pruning does, would pass
    for a parameter."""
    return module._parameters


def move_parameters(source: nn.Module, target: nn.Module) -> None:
    """Move the dict of parameters from ``source`` to ``target``. Without it ``to_torch`` would have to copy them."""
    vars(target)["_parameters"] = source._parameters
    vars(source)["_parameters"] = {}


def has_hooks(module: nn.Module) -> bool:
    """Return True if a forward or backward hook is registered on ``module`` itself. Without it a fused network would
    skip the hooks of its layers."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def is_compiled_in_place(module: nn.Module) -> bool:
    """Return True after ``module.compile()``. Without it ``DocumentCNN.cost`` would bypass the compiled forward."""
    return module._compiled_call_impl is not None


# The method in which nn.Conv2d computes. Without it from_torch would replace a subclass that overrides this method.
CONV_FORWARD = "_conv_forward"


# The attribute by which torch.fx decides whether a layer is a leaf, whose call is one node: a name in torch.nn.
FX_LEAF = "__module__"


def set_fx_leaf(layer: nn.Module, native: type[nn.Module]) -> None:
    """Make ``layer`` a leaf for ``torch.fx``, as a layer of the type ``native`` is. Without it a graph would have
    other names, and hooks would run while the model is traced."""
    vars(layer)[FX_LEAF] = native.__module__


def reversed_padding(conv: Any) -> list[int]:
    """Padding of a ``nn.Conv2d`` in the order that ``F.pad`` takes. Without it "same" and circular padding would have
    to be computed again."""
    padding: list[int] = conv._reversed_padding_repeated_twice
    return padding


def uncompiled(method: Callable[P, R]) -> Callable[P, R]:
    """Return a method of ``Optimizer`` without PyTorch's decorator that keeps it out of compiled graphs. Without it
    each training run would import ``torch._dynamo``, which takes as long as ``import torch``."""
    return getattr(method, "__wrapped__", method)


def optimizer_has_hooks(optimizer: Optimizer) -> bool:
    """Return True if a step hook is registered on ``optimizer``. Without it a planned step would skip that hook."""
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def schedule_state(step: int, learning_rates: list[float]) -> dict[str, Any]:
    """The entries of an ``LRScheduler``'s state dict that change, after ``step`` steps. Without it the schedule of a
    checkpoint could not be checked."""
    return {"last_epoch": step, "_step_count": step + 1, "_last_lr": learning_rates}
