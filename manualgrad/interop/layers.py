"""Our layers with every convention of PyTorch's: what :func:`manualgrad.from_torch` puts in place of ``torch.nn``'s.

They are made out of a native layer, by its attributes, which they keep: ``from_torch`` is their constructor.
"""

from __future__ import annotations

from torch import Tensor, nn

from manualgrad import nn as ours
from manualgrad.interop import operations


class Conv2d(ours.Conv2d):
    """``torch.nn.Conv2d``: the kernel is not flipped, ``padding_mode`` is honoured, memory lies as PyTorch's does."""

    def forward(self, input: Tensor) -> Tensor:
        if self.padding_mode == "zeros":
            return operations.conv2d(
                input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
            )
        padded = operations.pad_by_repeating(input, self._reversed_padding_repeated_twice, self.padding_mode)
        return operations.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def extra_repr(self) -> str:
        mode = "" if self.padding_mode == "zeros" else f", padding_mode={self.padding_mode!r}"
        return super().extra_repr() + mode


class MaxPool2d(ours.MaxPool2d):
    """``torch.nn.MaxPool2d``: memory lies as PyTorch's does."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return operations.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class ReLU(ours.ReLU):
    """``torch.nn.ReLU``: 0 is the derivative at 0; with ``inplace`` the result is written over the input."""

    def forward(self, input: Tensor) -> Tensor:
        return operations.relu(input, self.inplace)

    def extra_repr(self) -> str:
        return super().extra_repr() + ", inplace=True" * self.inplace


class Softmax(ours.Softmax):
    """``torch.nn.Softmax``: memory lies as PyTorch's does."""

    def forward(self, input: Tensor) -> Tensor:
        return operations.softmax(input, self.dim)


class Flatten(nn.Module):
    """``torch.nn.Flatten``: (channel, row, column) order, from ``start_dim`` to ``end_dim``; a view."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, input: Tensor) -> Tensor:
        return operations.flatten(input, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"
