"""Native with one change in its derivative, and none in its values: a path scaled, an operand replaced.

A hand-written backward that is wrong in one place gives the gradient of such a changed native. The change is made at
one place of native's code, so in every pass of a loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.native_calls import Call, InterceptCalls, call_native
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.numbers import as_real


@dataclass(frozen=True)
class NativeChange:
    """A change at the calls of one site.

    Attributes:
        site: place of the calls.
        derivative: ``derivative(call, flat, position)`` returns tensors whose derivatives replace that of the call
            by the argument at ``position``; ``flat`` are the call's flattened arguments, of which only that one is
            attached. None: the derivative is 0.
        position: place of the argument among the flattened ones.
        value: replaces the value of the call too, with its derivatives; then there is no ``derivative``.
        alone: the other arguments get no derivative.
        also: further sites that are changed in the same way.
    """

    site: Any
    position: int
    derivative: Callable[[Call, list[Any], int], Tensor | None]
    value: Callable[[Call], Tensor] | None = None
    alone: bool = False
    also: frozenset[Any] = frozenset()


def crop(surrogate: Tensor, result: Tensor) -> Tensor:
    """Without a stride or dilation, a convolution has more elements: the first ones are used."""
    for d in range(surrogate.dim()):
        if surrogate.dim() == result.dim() and surrogate.shape[d] > result.shape[d]:
            surrogate = surrogate.narrow(d, 0, result.shape[d])
    return surrogate


def dense(gradient: Tensor) -> Tensor:
    """The gradient without a graph, complex numbers as pairs of real ones."""
    gradient = gradient.detach()
    return as_real(gradient if gradient.layout is torch.strided else gradient.todense()).cpu()


def gradient_of_changed(
    mismatch: Mismatch, probe: Probe, change: NativeChange | None, records: Any = None
) -> Tensor | None:
    """Gradient of the mismatch's input through changed native; None if that raises."""
    leaves = input_leaves(mismatch)
    own = leaves[mismatch.input_name]
    mode = InterceptCalls(
        None if change is None else lambda call, result: _changed(call, result, change),
        records,
        None if change is None else change.site,
    )
    incoming = mismatch.incoming(probe.seed)
    try:
        with mode:
            result = call_native(probe.case.native, leaves.values())
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        numbered = [(n, o) for n, o in enumerate(outputs) if o.requires_grad]
        if not numbered:
            return dense(torch.zeros_like(own))
        grads = torch.autograd.grad(
            [o for _, o in numbered], own, [incoming(n, o) for n, o in numbered], allow_unused=True
        )
    except Exception:  # the change does not fit this call's arguments: then it is no explanation
        return None
    return dense(torch.zeros_like(own)) if grads[0] is None else dense(grads[0])


def input_leaves(mismatch: Mismatch) -> dict[str, Tensor]:
    return {
        name: value.clone().requires_grad_() if name == mismatch.input_name else value.clone()
        for name, value in mismatch.inputs.items()
    }


def _changed(call: Call, result: Tensor, change: NativeChange) -> Tensor:
    """The result of a call, with the value as it is and another derivative by one argument."""
    if call.site != change.site and call.site not in change.also:
        return result
    if change.value is not None:
        value = change.value(call)
        if value.shape != result.shape or value.dtype != result.dtype:
            raise ValueError("the shapes differ")
        return value
    flat = call.flat
    with torch.no_grad():
        detached = [value.detach() if isinstance(value, Tensor) else value for value in flat]
    attached = list(flat)
    if not isinstance(attached[change.position], Tensor) or not attached[change.position].requires_grad:
        return result
    own = list(detached)
    own[change.position] = attached[change.position]
    attached[change.position] = detached[change.position]
    args, kwargs = call.unflatten(detached if change.alone else attached)
    others = call.function(*args, **kwargs)  # with the derivatives by all other arguments
    surrogate = change.derivative(call, own, change.position)
    if surrogate is None:
        return others
    surrogate = crop(surrogate, others)
    return others + (surrogate - surrogate.detach()).expand_as(others)


def evaluate(call: Call, flat: list[Any]) -> Tensor:
    """Call the function with other flattened arguments."""
    args, kwargs = call.unflatten(flat)
    return call.function(*args, **kwargs)


# --------------------------------------------------------------------------------- the derivatives of a changed call


def omitted(call: Call, flat: list[Any], position: int) -> None:
    """No derivative by this argument."""


def passed_through(call: Call, flat: list[Any], position: int) -> Tensor:
    """The incoming gradient, unchanged."""
    if flat[position].shape != call.result.shape:
        raise ValueError("the shapes differ")
    return flat[position]


def at_operand(other: int, value: Callable[[Call], Tensor]) -> Callable[[Call, list[Any], int], Tensor]:
    """The derivative with the argument ``other`` replaced by a value of the same shape."""

    def derivative(call: Call, flat: list[Any], position: int) -> Tensor:
        changed = list(flat)
        replacement = value(call).detach()
        if replacement.shape != flat[other].shape:
            raise ValueError("the shapes differ")
        own = flat[other]
        changed[other] = replacement + (own - own.detach()) if other == position else replacement
        return evaluate(call, changed)

    return derivative


# Derivatives of functions, by their results: f'(x) = slope(f(x)).
SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": lambda y: 1 - y * y,
    "sigmoid": lambda y: y * (1 - y),
    "exp": lambda y: y,
    "sqrt": lambda y: 0.5 / y,
    "rsqrt": lambda y: -0.5 * y**3,
    "reciprocal": lambda y: -y * y,
}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "exp": torch.exp, "sin": torch.sin, "cos": torch.cos,
    "relu": torch.relu, "softplus": torch.nn.functional.softplus, "erf": torch.erf, "abs": torch.abs,
    "square": lambda t: t * t / 2,
}  # fmt: skip


DERIVATIVES = {
    "tanh": "1 - tanh²", "sigmoid": "sigmoid (1 - sigmoid)", "exp": "exp", "sin": "cos", "cos": "-sin",
    "relu": "1 where its argument is positive", "softplus": "sigmoid", "erf": "that of erf", "abs": "the sign",
    "square": "its argument",
}  # fmt: skip


def slope_from(value: Callable[[Call], Tensor]) -> Callable[[Call, list[Any], int], Tensor]:
    """The derivative by its formula in terms of the result, with another tensor in the place of the result."""

    def derivative(call: Call, flat: list[Any], position: int) -> Tensor:
        slope = SLOPES[call.operation](value(call).detach())
        if slope.shape != call.result.shape:
            raise ValueError("the shapes differ")
        return slope * flat[position]

    return derivative


def of_function(name: str) -> Callable[[Call, list[Any], int], Tensor]:
    """The derivative of another function."""
    return lambda call, flat, position: FUNCTIONS[name](flat[position])


def times(change: NativeChange, factor: float) -> NativeChange:
    """The change with the derivative multiplied by a number."""

    def derivative(call: Call, flat: list[Any], position: int) -> Tensor | None:
        value = change.derivative(call, flat, position)
        return None if value is None else factor * value

    return replace(change, derivative=derivative)


def scaled(weight: float) -> Callable[[Call, list[Any], int], Tensor]:
    """The derivative times a number."""
    return lambda call, flat, position: weight * evaluate(call, flat)


def transposed_map(call: Call, flat: list[Any], position: int) -> Tensor:
    """The call applied to the incoming gradient, in place of its transpose."""
    own = flat[position]
    if own.shape != call.result.shape:
        raise ValueError("the shapes differ")
    dummy = torch.zeros_like(own).requires_grad_()
    changed = list(flat)
    changed[position] = dummy
    with torch.enable_grad():
        value = evaluate(call, changed)
        # The vector-Jacobian product is linear in its vector, and its derivative is the Jacobian itself.
        (product,) = torch.autograd.grad(value, dummy, own, create_graph=True)
    return product


def with_gradient(apply: Callable[[Tensor], Tensor]) -> Callable[[Call, list[Any], int], Tensor]:
    """The derivative with the incoming gradient of the call transformed."""

    def derivative(call: Call, flat: list[Any], position: int) -> Tensor:
        value = evaluate(call, flat)
        value = value.clone()
        value.register_hook(lambda g: apply(g).contiguous())
        return value

    return derivative


def times_argument(call: Call, flat: list[Any], position: int) -> Tensor:
    """The derivative times the argument: that of a power which keeps its exponent."""
    own = flat[position].detach()
    return argument_gradient(lambda g: g * own)(call, flat, position)


def argument_gradient(apply: Callable[[Tensor], Tensor]) -> Callable[[Call, list[Any], int], Tensor]:
    """The derivative by the argument transformed, after the call."""

    def derivative(call: Call, flat: list[Any], position: int) -> Tensor:
        own = flat[position].clone()
        own.register_hook(lambda g: apply(g).contiguous())
        changed = list(flat)
        changed[position] = own
        return evaluate(call, changed)

    return derivative
