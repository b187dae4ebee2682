"""Checks of the modes that PyTorch runs in, and of tensors that have no values to read."""

from __future__ import annotations

import torch
from torch import Tensor

from manualgrad._torch_compat import (
    dispatch_mode_count,
    is_functorch_active,
    is_functorch_wrapped,
    is_legacy_batched,
    jit_tracing_state,
)

HOST_DEVICES = ("cpu",)  # tests take the CPU for a GPU
PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def is_plain_tensor(x: Tensor) -> bool:
    """Return True if ``x`` has memory and values of its own.

    Not plain: what torch.compile or torch.jit.trace traces, fake and meta tensors, tensors wrapped by a transform of
    ``torch.func``, and the batched gradients of ``is_grads_batched``."""
    return not torch.compiler.is_compiling() and not jit_tracing_state() and has_values(x)


def has_values(x: Tensor) -> bool:
    """Return True if ``x`` is of PyTorch's own type, and no wrapper or meta tensor, outside of tracers."""
    return type(x) in PLAIN_TYPES and not x.is_meta and not is_functorch_wrapped(x) and not is_legacy_batched(x)


def can_read_values(x: Tensor) -> bool:
    """Return True if Python can read the values of ``x`` at once: ``x`` is plain, and on the CPU.

    To read a value of a GPU's, Python would wait for it, and a CUDA graph could not capture the call."""
    return x.device.type in HOST_DEVICES and is_plain_tensor(x)


def active_mode() -> str:
    """Return the dispatch mode, tracer, compiler or transform of ``torch.func`` that is active, "" if there is none.

    These work on operators and would miss a kernel, which is none; and ``torch.func`` wraps every new tensor."""
    if torch.compiler.is_compiling():
        return "torch.compile or torch.export traces the call"
    return active_eager_mode()


def active_eager_mode() -> str:
    """Do the same as :func:`active_mode` where the call is not compiled."""
    if dispatch_mode_count():
        return "a TorchDispatchMode is active"
    if jit_tracing_state():
        return "torch.jit.trace traces the call"
    return "a transform of torch.func is active" if is_functorch_active() else ""


def in_plain_eager_mode() -> bool:
    """Return True if :func:`active_mode` names none."""
    return not active_mode()
