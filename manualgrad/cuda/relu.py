"""ReLU's backward on CUDA: takes and returns tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from manualgrad.cuda.kernels import relu as kernels
from manualgrad.cuda.launch import Launcher
from manualgrad.cuda.tensor_checks import unsupported_tensors

BLOCK = 1024


def unsupported_relu_backward(g: Tensor, z: Tensor, subgradient: float) -> str:
    """Return the reason why :func:`relu_backward` does not support the arguments, "" if it does."""
    if g.shape != z.shape:
        return "g and z differ in shape"
    return unsupported_with_derivative(z, g)


def unsupported_with_derivative(z: Tensor, *tensors: Tensor | None) -> str:
    """Return the reason why kernels do not support the tensors with ``z``, of their dtype or int8, "" if they do.

    The int8 numbers are signs of a z."""
    if z.dtype is not torch.int8:
        return unsupported_tensors(*tensors, z)
    if any(x is not None and x.device != z.device for x in tensors):
        return "the tensors differ in dtype or device"
    return unsupported_tensors(*tensors) or unsupported_tensors(z, dtypes=(torch.int8,))


def relu_backward(launch: Launcher, g: Tensor, z: Tensor, subgradient: float) -> Tensor:
    """g ∂R/∂z of equation (10), in the memory order of z. Two copies more if g and z have no common, gapless one."""
    grad_z = torch.empty_like(z, dtype=g.dtype)
    if z.stride() != grad_z.stride():
        z = torch.empty_like(z).copy_(z)
    if g.stride() != grad_z.stride():
        g = torch.empty_like(grad_z).copy_(g)
    numel = z.numel()
    launch(kernels.relu_backward, (-(-numel // BLOCK),), grad_z, g, z, subgradient, numel, BLOCK=BLOCK)
    return grad_z
