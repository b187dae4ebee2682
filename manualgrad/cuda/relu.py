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
    return unsupported_tensors(g, z)


def relu_backward(launch: Launcher, g: Tensor, z: Tensor, subgradient: float) -> Tensor:
    """g ∂R/∂z of equation (10), in the memory order of z. Two copies more if g and z have no common, gapless one."""
    grad_z = torch.empty_like(z)
    if z.stride() != grad_z.stride():
        z = torch.empty_like(z).copy_(z)
    if g.stride() != grad_z.stride():
        g = torch.empty_like(z).copy_(g)
    numel = z.numel()
    launch(kernels.relu_backward, (-(-numel // BLOCK),), grad_z, g, z, subgradient, numel, BLOCK=BLOCK)
    return grad_z
