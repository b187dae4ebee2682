"""Layers that :func:`manualgrad.from_torch` puts in place of those of ``torch.nn``: subclasses with another forward.

Constructors, attributes, parameters and conventions are PyTorch's. The classes of ``manualgrad.nn`` have the
conventions of the formula sheet (docs/equations.md) instead.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from manualgrad._torch_compat import reversed_padding
from manualgrad.interop import operations
from manualgrad.network import call_chains, kinds
from manualgrad.network.layers import Flatten as FlattenLayer
from manualgrad.network.layers import ReLU as ReLULayer
from manualgrad.ops.targets import Reduction
from manualgrad.ops.tracers import NotScriptable


class Conv2d(NotScriptable, nn.Conv2d):
    """``torch.nn.Conv2d`` computed by :func:`manualgrad.functional.conv2d`: the correlation, any ``padding_mode``."""

    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]

    def forward(self, input: Tensor) -> Tensor:
        return _convolve(operations.conv2d, self, input)


def _convolve(operation: Callable[..., Tensor], layer: Conv2d, input: Tensor) -> Tensor:
    """Pad ``input`` as ``layer`` does, and call ``operation`` with its parameters and options."""
    padding: tuple[int, int] | str | int = layer.padding
    if layer.padding_mode != "zeros":
        input, padding = operations.pad2d(input, reversed_padding(layer), layer.padding_mode), 0
    return operation(input, layer.weight, layer.bias, layer.stride, padding, layer.dilation, layer.groups)


class Linear(NotScriptable, nn.Linear):
    """``torch.nn.Linear`` computed by :func:`manualgrad.functional.dense`."""

    def forward(self, input: Tensor) -> Tensor:
        return operations.linear(input, self.weight, self.bias)


class MaxPool2d(NotScriptable, nn.MaxPool2d):
    """``torch.nn.MaxPool2d`` computed by :func:`manualgrad.functional.max_pool2d`."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return operations.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class ReLU(NotScriptable, nn.ReLU):
    """``torch.nn.ReLU`` computed by :func:`manualgrad.functional.relu`: the derivative at 0 is 0."""

    def forward(self, input: Tensor) -> Tensor:
        return operations.relu(input, self.inplace)


class Softmax(NotScriptable, nn.Softmax):
    """``torch.nn.Softmax`` computed by :func:`manualgrad.functional.softmax`; ``dim`` must not be None."""

    dim: int

    def forward(self, input: Tensor) -> Tensor:
        return operations.softmax(input, self.dim)


class Flatten(NotScriptable, nn.Flatten):
    """``torch.nn.Flatten``: (channel, row, column) order, from ``start_dim`` to ``end_dim``; a view."""

    def forward(self, input: Tensor) -> Tensor:
        return operations.flatten(input, self.start_dim, self.end_dim)


class CrossEntropyLoss(NotScriptable, nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss`` computed by :func:`manualgrad.functional.softmax_cross_entropy`."""

    reduction: Reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return operations.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


# A plan can stand for them (``network/``). Where it does, nobody sees an output that a ReLU would change in place.
kinds.register(Conv2d, kinds.describe_conv, (*kinds.CONV_ATTRIBUTES, "padding_mode"), has_parameters=True)
kinds.register(MaxPool2d, kinds.describe_pool, kinds.POOL_ATTRIBUTES)
kinds.register(ReLU, lambda _: ReLULayer(0.0))
kinds.register(
    Flatten,
    lambda module: FlattenLayer(True) if (module.start_dim, module.end_dim) == (1, -1) else None,
    ("start_dim", "end_dim"),
)
kinds.register(Linear, kinds.describe_dense, has_parameters=True)

# Calls of them, one on the result of the other, may be computed together (``network/call_chains.py``).
call_chains.register_layer(Conv2d, lambda conv, x: _convolve(operations.conv2d_relu, conv, x))
call_chains.register_layer(Linear, lambda linear, x: operations.linear_relu(x, linear.weight, linear.bias))
call_chains.register_layer(nn.BatchNorm2d)
call_chains.register_relu(ReLU, lambda relu: relu.inplace)
call_chains.register_pool(
    MaxPool2d,
    lambda pool: operations.returns_fewer(pool.kernel_size, pool.stride, return_indices=pool.return_indices),
)
call_chains.register_relu(operations.relu, lambda inplace=False, *_, **__: inplace)
call_chains.register_relu(operations.relu_, lambda *_, **__: True)
call_chains.register_pool(operations.max_pool2d, operations.returns_fewer)

# Native layer: our subclass of it.
COUNTERPARTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: Conv2d,
    nn.MaxPool2d: MaxPool2d,
    nn.Flatten: Flatten,
    nn.Linear: Linear,
    nn.ReLU: ReLU,
    nn.Softmax: Softmax,
    nn.CrossEntropyLoss: CrossEntropyLoss,
}
