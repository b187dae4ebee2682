"""Functions under the names and with the arguments of ``torch.nn.functional``, computed by ours.

What PyTorch's own do besides the mathematics is done here: an output lies in memory as theirs does, so that a
``view`` after it works and dropout draws the same mask; a change in place is seen by everybody who holds the tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from manualgrad import functional
from manualgrad.ops.relu_in_place import relu_in_place


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """``F.relu``: 0 is the derivative at 0; with ``inplace`` the result is written over ``input``."""
    return relu_in_place(input) if inplace else functional.relu(input, subgradient=0)


def relu_(input: Tensor) -> Tensor:
    """``F.relu_``: :func:`relu` in place."""
    return relu_in_place(input)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """``F.conv2d``: the correlation, which does not flip the kernel."""
    output = functional.conv2d(input, weight, bias, stride, padding, dilation, groups, flip_kernel=False)
    return output if lies_channels_last(input) or lies_channels_last(weight) else contiguous(output)


def max_pool2d(
    input: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``F.max_pool2d``."""
    results = functional.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    if lies_channels_last(input):
        return results
    return tuple(contiguous(each) for each in results) if return_indices else contiguous(results)


def max_pool2d_with_indices(input: Tensor, kernel_size: int | tuple[int, int], *args: Any, **options: Any) -> Any:
    """``F.max_pool2d_with_indices``, which is what ``F.max_pool2d`` calls where the indices are asked for."""
    return max_pool2d(input, kernel_size, *args, **options | {"return_indices": True})


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``."""
    return functional.dense(input, weight, bias)


def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """``torch.flatten``: in the order of the dimensions, a view where memory allows it. Nothing is computed."""
    return input.flatten(start_dim, end_dim)


def softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """``torch.softmax``."""
    return functional.softmax(input if dtype is None else input.to(dtype), dim).contiguous()


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """``F.cross_entropy`` without its two deprecated arguments."""
    return functional.softmax_cross_entropy(
        input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


def pad_by_repeating(input: Tensor, amounts: tuple[int, int, int, int], mode: str) -> Tensor:
    """``F.pad`` with ``mode`` "reflect", "replicate" or "circular": places outside read the image at an index inside.

    Args:
        input: (..., H, W).
        amounts: places before and after each row, then before and after each column, as ``F.pad`` has them.

    Raises:
        ValueError: more places than the image can give.
    """
    left, right, top, bottom = amounts
    channels_last = mode != "circular" and lies_channels_last(input)  # natively, the other one forgets it
    for dim, before, after in ((-2, top, bottom), (-1, left, right)):
        size = input.shape[dim]
        most = {"reflect": size - 1, "circular": size}.get(mode, max(before, after))
        if max(before, after) > most:
            raise ValueError(
                f"conv2d: padding_mode={mode!r} of {size} places gives at most {most}, got {before, after}"
            )
        place = torch.arange(-before, size + after, device=input.device)
        if mode == "reflect":
            place = (size - 1) - ((size - 1) - place.abs()).abs()
        elif mode == "circular":
            place = place % size
        else:
            place = place.clamp(0, size - 1)
        input = input.index_select(dim, place)
    return input.contiguous(memory_format=torch.channels_last) if channels_last else input


def contiguous(x: Tensor) -> Tensor:
    """``x.contiguous()``, and by its strides too: of one channel, or one place, both formats are the same memory."""
    x = x.contiguous()
    return x.flatten().view(x.shape) if 1 in x.shape else x


def lies_channels_last(x: Tensor) -> bool:
    """Whether PyTorch's layers take ``x`` (B, C, H, W) for channels_last: its strides grow from C over W and H to B.

    Where sizes of 1 leave it open, PyTorch decides so, and its next layer's output lies accordingly.
    """
    if x.dim() != 4 or x.stride(1) == 0 or 0 in x.shape:
        return False
    least = 0
    for dim in (1, 3, 2, 0):
        if x.stride(dim) < least or (dim == 0 and least == x.stride(1)):
            return False
        least = x.stride(dim) * max(1, x.shape[dim])
    return True
