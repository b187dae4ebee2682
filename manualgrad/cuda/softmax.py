"""Softmax and its backward on CUDA: takes and returns tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from manualgrad.cuda.kernels import softmax as kernels
from manualgrad.cuda.launch import Launcher
from manualgrad.cuda.rows import as_rows, tiles
from manualgrad.cuda.tensor_checks import unsupported_tensors


def unsupported_softmax_forward(z: Tensor, dim: int) -> str:
    """Return the reason why :func:`softmax_forward` does not support the arguments, "" if it does."""
    return unsupported_tensors(z) if z.dim() and z.numel() else "there are no rows"


def softmax_forward(launch: Launcher, z: Tensor, dim: int) -> Tensor:
    """S(z) along ``dim``, contiguous."""
    out = torch.empty_like(z, memory_format=torch.contiguous_format)
    z_rows, out_rows = as_rows(z, dim), as_rows(out, dim)
    programs, constants = tiles(z_rows, out_rows)
    a, b, classes = z_rows.shape
    launch(
        kernels.softmax_forward, (programs,), out_rows, z_rows, a * b, b, classes,
        *out_rows.stride(), *z_rows.stride(), ONE_TILE=classes <= constants["BLOCK"], **constants,
    )  # fmt: skip
    return out


def unsupported_softmax_backward(g: Tensor, s: Tensor, dim: int) -> str:
    """Return the reason why :func:`softmax_backward` does not support the arguments, "" if it does."""
    if g.shape != s.shape:
        return "g and s differ in shape"
    return unsupported_tensors(g, s) if s.dim() and s.numel() else "there are no rows"


def softmax_backward(launch: Launcher, g: Tensor, s: Tensor, dim: int) -> Tensor:
    """B(g, S) of equation (12), contiguous."""
    grad_z = torch.empty_like(s, memory_format=torch.contiguous_format)
    g_rows, s_rows, grad_rows = as_rows(g, dim), as_rows(s, dim), as_rows(grad_z, dim)
    programs, constants = tiles(s_rows, g_rows, grad_rows)
    a, b, classes = s_rows.shape
    launch(
        kernels.softmax_backward, (programs,), grad_rows, g_rows, s_rows, a * b, b, classes,
        *grad_rows.stride(), *g_rows.stride(), *s_rows.stride(), ONE_TILE=classes <= constants["BLOCK"], **constants,
    )  # fmt: skip
    return grad_z
