"""Our layers with all of PyTorch's conventions, which :func:`manualgrad.from_torch` puts in place of ``torch.nn``'s.

``from_torch`` makes them by changing the class of a native layer, so they have its attributes and no constructor of
their own.
"""

from __future__ import annotations

from torch import Tensor, nn

from manualgrad import nn as ours
from manualgrad._torch_compat import reversed_padding
from manualgrad.interop import operations


class Conv2d(ours.Conv2d):
    """``torch.nn.Conv2d``: the correlation, with every ``padding_mode``, and outputs in PyTorch's memory format."""

    padding_mode: str

    def forward(self, input: Tensor) -> Tensor:
        if self.padding_mode == "zeros":
            return operations.conv2d(
                input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
            )
        padded = operations.pad2d(input, reversed_padding(self), self.padding_mode)
        return operations.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def extra_repr(self) -> str:
        mode = "" if self.padding_mode == "zeros" else f", padding_mode={self.padding_mode!r}"
        return super().extra_repr() + mode


class MaxPool2d(ours.MaxPool2d):
    """``torch.nn.MaxPool2d``: outputs in PyTorch's memory format."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return operations.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class ReLU(ours.ReLU):
    """``torch.nn.ReLU``: the derivative at 0 is 0; ``inplace`` writes the result over the input."""

    inplace: bool

    def forward(self, input: Tensor) -> Tensor:
        return operations.relu(input, self.inplace)

    def extra_repr(self) -> str:
        return super().extra_repr() + ", inplace=True" * self.inplace


class Softmax(ours.Softmax):
    """``torch.nn.Softmax``: outputs in PyTorch's memory format."""

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
