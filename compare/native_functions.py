"""PyTorch's functions in our conventions, with which tests and reports compare values and gradients of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *, flip_kernel: bool = True, **options: Any
) -> Tensor:
    """A true convolution: PyTorch's correlation with the kernel flipped first."""
    return F.conv2d(input, weight.flip(-2, -1) if flip_kernel else weight, bias, **options)


def relu(input: Tensor, *, subgradient: float = 0.5) -> Tensor:
    """ReLU with a chosen derivative at 0. ``torch.maximum`` halves the gradient of a tie, which is equation (10)."""
    if subgradient == 0.5:
        return torch.maximum(input, input.new_zeros(()))
    return torch.where(input >= 0, input, 0) if subgradient == 1 else torch.relu(input)


def max_pool2d(input: Tensor, kernel_size: int | tuple[int, int] = 2, **options: Any) -> Any:
    """Max pooling with our default window."""
    return F.max_pool2d(input, kernel_size, **options)


def conv2d_relu_max_pool2d(input: Tensor, weight: Tensor, bias: Tensor, *, subgradient: float = 0.5) -> Tensor:
    """The three layers one after the other."""
    return max_pool2d(relu(conv2d(input, weight, bias), subgradient=subgradient))


def flatten(input: Tensor) -> Tensor:
    """Images of shape (N, C, H, W) or (C, H, W) flattened in (row, column, channel) order, as equation (5) has it."""
    return input.movedim(-3, -1).flatten(-3)


def dense(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``, which takes a weight of shape (in,) without a bias only."""
    return F.linear(input, weight, bias) if weight.dim() == 2 or bias is None else F.linear(input, weight) + bias


def with_default_target(cross_entropy: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make ``target`` optional, with class indices as its default, and add the option ``weighted``: class weights."""

    def call(input: Tensor, target: Tensor | None = None, *, weighted: bool = False, **options: Any) -> Tensor:
        classes = input.shape[1 if input.dim() > 1 else 0]
        if target is None:
            shape = (*input.shape[:1], *input.shape[2:]) if input.dim() > 1 else ()
            indices = torch.arange(torch.Size(shape).numel(), device=input.device).reshape(shape)
            target = indices * 7 % classes
        weight = torch.linspace(0.5, 2, classes).to(input) if weighted else None
        return cross_entropy(input, target, weight, **options)

    return call


def tied_windows(input: Tensor, kernel_size: int = 2, stride: int | None = None, padding: int = 0) -> dict[str, int]:
    """Number of pooling windows, and of those in which several values are the maximum."""
    N, C = input.shape[:2]
    padded = F.pad(input, (padding,) * 4, value=-torch.inf)
    windows = F.unfold(padded, kernel_size, stride=stride or kernel_size).reshape(N, C, kernel_size**2, -1)
    num_maxima = (windows == windows.amax(2, keepdim=True)).sum(2)
    return {"windows": num_maxima.numel(), "windows with a tied maximum": int((num_maxima > 1).sum())}


def zeros_and_tied_windows(input: Tensor, weight: Tensor, bias: Tensor) -> dict[str, int]:
    """Number of zeros that the ReLU between convolution and pooling gets, and of tied windows."""
    z = conv2d(input, weight, bias)
    return {"z: exact zeros": int((z == 0).sum()), **tied_windows(z.relu())}
