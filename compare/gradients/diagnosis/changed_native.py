"""Native with one change in its derivative, and none in its values: a path scaled, an operand replaced.

A hand-written backward that is wrong in one place gives the gradient of such a changed native. The change is made at
one place of native's code, so in every pass of a loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.native_calls import Call, InterceptCalls, call_native
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.numbers import as_real

RATIO_ERROR = 1e-9  # of sums of products in double precision, which may cancel


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


@dataclass
class Recording:
    """One run of native with all that is needed to change the derivative of a single call without another run.

    Attributes:
        calls, composites, indices: native's calls; the last have integers as results. Of their arguments those
            require a gradient that depend on the input.
        records: results by site, and inputs by name.
        leaf: the input whose gradient is examined.
        incoming: gradient that each call's result receives, by the call's number.
    """

    calls: list[Call] = field(default_factory=list)
    composites: list[Call] = field(default_factory=list)
    indices: list[Call] = field(default_factory=list)
    records: dict[Any, list[Tensor]] = field(default_factory=dict)
    leaf: Tensor | None = None
    incoming: dict[int, Tensor] = field(default_factory=dict)
    _with_records: dict[int, Call] = field(default_factory=dict)
    _weights: dict[tuple[int, int], tuple[Tensor, Tensor] | None] = field(default_factory=dict)

    def with_records(self, call: Call) -> Call:
        """The call with the results of the run."""
        if call.number not in self._with_records:
            self._with_records[call.number] = replace(call, records=self.records)
        return self._with_records[call.number]

    def derivative(
        self, call: Call, change: NativeChange, needed: Tensor | None = None, error: float = 0.0
    ) -> Tensor | None:
        """The part of the gradient through one argument of ``call``, with its derivative changed.

        Args:
            needed: None is returned for a part that is surely no multiple of this.
            error: of an element, up to which it may be another number.
        """
        flat = call.flat
        argument, gradient = flat[change.position], self.incoming.get(call.number)
        if gradient is None or self.leaf is None:
            return None
        try:
            own = [value.detach() if isinstance(value, Tensor) else value for value in flat]
            own[change.position] = own[change.position].clone().requires_grad_()
            surrogate = change.derivative(self.with_records(call), own, change.position)
            if surrogate is None:
                return _dense(torch.zeros_like(self.leaf))
            surrogate = crop(surrogate, call.result).expand_as(call.result)
            (local,) = torch.autograd.grad(surrogate, own[change.position], gradient)
            if argument is self.leaf:
                return _dense(local)
            if needed is not None and not self._may_give(
                needed, error, local, argument, (call.number, change.position)
            ):
                return None
            (part,) = torch.autograd.grad(argument, self.leaf, local, retain_graph=True, allow_unused=True)
        except Exception:  # the change does not fit this call's arguments: then it is no explanation
            return None
        return _dense(torch.zeros_like(self.leaf)) if part is None else _dense(part)

    def _may_give(
        self, needed: Tensor, error: float, local: Tensor, argument: Tensor, place: tuple[int, int]
    ) -> bool:
        """False if the gradient ``local`` of an argument gives a part that is surely no multiple of the needed one.

        Two weighted sums of the part have to be in the ratio of those of the needed one. Sums of the part are sums of
        the gradient of the argument, too, with other weights, which are computed once.
        """
        if place not in self._weights:
            self._weights[place] = _weights_of_sums(argument, self.leaf)
        weights = self._weights[place]
        if weights is None or needed.is_complex() or local.layout is not torch.strided:
            return True
        of_leaf, of_argument = weights
        part, goal = (of_argument * local).reshape(2, -1), (of_leaf * needed).reshape(2, -1)
        (p, q), (a, b) = part.sum(1), goal.sum(1)
        limit = error * of_leaf[0].sum() + RATIO_ERROR * goal.abs().sum()
        size = part.abs().sum()
        return not bool((a * q - b * p).abs() > 2 * limit * size)  # NaN may be anything


def _weights_of_sums(argument: Tensor, leaf: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Weights of two sums of a gradient of ``leaf``, and those with which one of ``argument`` has the same sums."""
    if leaf is None or leaf.is_complex() or argument.is_complex() or argument.dtype is not torch.float64:
        return None
    generator = torch.Generator().manual_seed(0)
    of_leaf = torch.rand(2, *leaf.shape, generator=generator, dtype=torch.float64).to(leaf.device) + 0.5
    any_gradient = torch.zeros_like(argument).requires_grad_()
    try:
        (part,) = torch.autograd.grad(argument, leaf, any_gradient, create_graph=True, allow_unused=True)
        if part is None or part.layout is not torch.strided:
            return None
        # The part is linear in the gradient of the argument.
        sums = [torch.autograd.grad(part, any_gradient, own, retain_graph=True)[0] for own in of_leaf]
    except RuntimeError:  # an operation whose backward has no derivative
        return None
    return of_leaf, torch.stack(sums)


def record(mismatch: Mismatch, probe: Probe) -> Recording:
    """Run native and record its calls; an empty recording if that raises."""
    leaves = _leaves(mismatch)
    mode = InterceptCalls()
    incoming = mismatch.incoming(probe.seed)
    try:
        with mode:
            result = call_native(probe.case.native, leaves.values())
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        numbered = [(n, o) for n, o in enumerate(outputs) if o.requires_grad]
        calls = [call for call in mode.calls if call.attached is not None and call.attached.requires_grad]
        grads = torch.autograd.grad(
            [o for _, o in numbered], [call.attached for call in calls], [incoming(n, o) for n, o in numbered],
            allow_unused=True, retain_graph=True,
        )  # fmt: skip
    except Exception:  # native raises only when it is watched: then its calls explain nothing
        return Recording()
    records: dict[Any, list[Tensor]] = {("input", name): [value.detach()] for name, value in leaves.items()}
    for call in mode.calls:
        records.setdefault(call.site, []).append(call.result)
    received = {call.number: grad for call, grad in zip(calls, grads, strict=True) if grad is not None}
    return Recording(mode.calls, mode.composites, mode.indices, records, leaves[mismatch.input_name], received)


def crop(surrogate: Tensor, result: Tensor) -> Tensor:
    """Without a stride or dilation, a convolution has more elements: the first ones are used."""
    for d in range(surrogate.dim()):
        if surrogate.dim() == result.dim() and surrogate.shape[d] > result.shape[d]:
            surrogate = surrogate.narrow(d, 0, result.shape[d])
    return surrogate


def _dense(gradient: Tensor) -> Tensor:
    """The gradient without a graph, complex numbers as pairs of real ones."""
    gradient = gradient.detach()
    return as_real(gradient if gradient.layout is torch.strided else gradient.to_dense()).cpu()


def gradient_of_changed(
    mismatch: Mismatch, probe: Probe, change: NativeChange | None, records: Any = None
) -> Tensor | None:
    """Gradient of the mismatch's input through changed native; None if that raises."""
    leaves = _leaves(mismatch)
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
            return _dense(torch.zeros_like(own))
        grads = torch.autograd.grad(
            [o for _, o in numbered], own, [incoming(n, o) for n, o in numbered], allow_unused=True
        )
    except Exception:  # the change does not fit this call's arguments: then it is no explanation
        return None
    return _dense(torch.zeros_like(own)) if grads[0] is None else _dense(grads[0])


def _leaves(mismatch: Mismatch) -> dict[str, Tensor]:
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
