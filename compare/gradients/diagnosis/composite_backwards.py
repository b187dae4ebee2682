"""Derivatives of softmax and of norms by their formulas, with a sum over another dimension or a part left out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from compare.gradients.diagnosis.changed_native import NativeChange, passed_through
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.native_calls import OPERATORS, Call
from compare.gradients.diagnosis.native_paths import Hypothesis, NativePaths
from compare.gradients.diagnosis.wording import dimension_name, join_words

Formula = Callable[[Tensor, Tensor, Tensor], Tensor]  # of the gradient, the argument and the result
Dims = tuple[int, ...]
ANOTHER = ", which is that of another function"


class WithBackward(Function):
    """A value whose backward is a formula of the incoming gradient."""

    @staticmethod
    def forward(ctx, x, value, formula):
        ctx.formula = formula
        return value.clone()

    @staticmethod
    def backward(ctx, g):
        return ctx.formula(g), None, None


def find_changed_composites(search: NativePaths) -> Iterator[Finding]:
    """The derivative of softmax, say, with a sum over another dimension."""
    for call in search.composites:
        flat = call.flat
        for number, tensor in call.tensors:
            is_passed = tensor.requires_grad and tensor.shape == call.result.shape
            if is_passed and search.explains(NativeChange(call.site, number, passed_through)):
                operation = call.name.removeprefix("the result of ")
                statement = f"the derivative of {operation} is left out: the gradient passes through it unchanged"
                yield Finding("missing term", search.mismatch.quantity, statement)
        dims = _dims(call)
        if call.operation not in FORMULAS or dims is None or not call.args[0].requires_grad:
            continue
        position = next(n for n, value in enumerate(flat) if value is call.args[0])
        operation = call.name.removeprefix("the result of ")
        for kind, words, formula in FORMULAS[call.operation](call.args[0], dims):
            if search.explains(NativeChange(call.site, position, _derivative(formula))):
                statement = f"in the derivative of {operation}, {words}"
                yield Finding(kind, search.mismatch.quantity, statement)


def find_foreign_derivatives(search: NativePaths) -> Iterator[Finding]:
    """The derivative of another function of the same shape, by its formula."""
    hypotheses = []
    for path in search.paths:
        x, operation = path.call.flat[path.position], path.call.operation
        if len(path.call.tensors) == 1 and x.shape == path.call.result.shape and x.dim():
            for name, formula in _foreign(x, operation):
                statement = f"the derivative of {path.words} is taken to be {name}"
                change = NativeChange(path.call.site, path.position, _derivative(formula))
                hypotheses.append(Hypothesis("another operand", statement, change, path))
    yield from search.findings(hypotheses)
    for call in search.composites:
        x = call.args[0] if call.args else None
        if not isinstance(x, Tensor) or not x.requires_grad or x.shape != call.result.shape or not x.dim():
            continue
        position = next(n for n, value in enumerate(call.flat) if value is x)
        operation = call.name.removeprefix("the result of ")
        for name, formula in _foreign(x, call.operation):
            if search.explains(NativeChange(call.site, position, _derivative(formula))):
                statement = f"the derivative of {operation} is taken to be {name}"
                yield Finding("another operand", search.mismatch.quantity, statement)


def _foreign(x: Tensor, operation: str) -> Iterator[tuple[str, Formula]]:
    """Derivatives of functions other than ``operation``, in terms of the gradient, the argument and the result."""
    if operation in OPERATORS:  # the derivative of a sum or a product is that of no other function
        return
    yield "g times the value of the function itself, instead of its derivative", lambda g, x, y: g * y
    for d in range(x.dim()):
        over = dimension_name(x, d)
        if operation != "softmax":
            words = f"that of a softmax over {over}, y (g - sum of g y)"
            yield f"{words}{ANOTHER}", lambda g, x, y, d=d: y * (g - (g * y).sum(d, keepdim=True))
            words = f"that of a softmax over {over}, with exp of the result for y, y (g - sum of g y)"
            yield f"{words}{ANOTHER}", lambda g, x, y, d=d: y.exp() * (g - (g * y.exp()).sum(d, keepdim=True))
        if operation != "log_softmax":
            words = f"that of a log-softmax over {over}, g - y times the sum of g"
            yield f"{words}{ANOTHER}", lambda g, x, y, d=d: g - y * g.sum(d, keepdim=True)
    if operation in ("softmax", "log_softmax", "logsumexp"):
        yield f"g y (1 - y){ANOTHER}", lambda g, x, y: g * y * (1 - y)
        yield f"g (1 - y²){ANOTHER}", lambda g, x, y: g * (1 - y * y)
        yield f"g - y{ANOTHER}", lambda g, x, y: g - y


def _derivative(formula: Formula) -> Callable[[Call, list[Any], int], Tensor]:
    def derivative(call: Call, flat: list[Any], position: int) -> Tensor:
        x = flat[position]
        with torch.no_grad():
            value = call.function(*call.args, **call.kwargs).detach()
        return WithBackward.apply(x, value, lambda g: formula(g, x.detach(), value))

    return derivative


def _dims(call: Call) -> Dims | None:
    """The dimensions that a composite function sums over; None if they are not given."""
    x, operation = call.args[0], call.operation
    if operation == "layer_norm":
        return tuple(range(x.dim() - len(call.args[1]), x.dim()))
    if operation == "batch_norm":
        return tuple(d for d in range(x.dim()) if d != 1)
    dim = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else None)
    return (dim % x.dim(),) if isinstance(dim, int) and x.dim() else None


def _others(x: Tensor, dims: Dims) -> Iterator[tuple[Dims, str]]:
    """Other dimensions than ``dims`` that a sum may be over, and words for them."""
    every = range(x.dim())
    several = [tuple(d for d in every if d not in dims), tuple(every), *itertools.combinations(every, 2)]
    for other in dict.fromkeys([*((d,) for d in every), *several]):
        if other and other != dims:
            yield other, f"{_words(x, other)} instead of {_words(x, dims)}"


def _words(x: Tensor, dims: Dims) -> str:
    """ "dimension 0 (rows)"."""
    numbers, names = " and ".join(map(str, dims)), [dimension_name(x, d) for d in dims]
    named = "" if any(name.startswith("dimension") for name in names) else f" ({join_words(names)})"
    return f"dimension{'s' if len(dims) > 1 else ''} {numbers}{named}"


def _softmax(x: Tensor, dims: Dims) -> Iterator[tuple[str, str, Formula]]:
    (dim,) = dims
    yield "missing term", "the sum is missing", lambda g, x, y: y * g
    yield "missing term", "only the diagonal, p (1 - p), is used", lambda g, x, y: y * (1 - y) * g
    yield "missing term", "the factor p is missing in the sum", lambda g, x, y: y * (g - g.sum(dim, keepdim=True))
    yield "missing term", "the factor p before the sum is missing", lambda g, x, y: y * g - (y * g).sum(dim, True)
    for other, words in _others(x, dims):
        yield "wrong sum", f"the sum is over {words}", lambda g, x, y, d=other: y * (g - (y * g).sum(d, keepdim=True))
        if len(other) == 1:
            both = lambda g, x, y, d=other[0]: x.softmax(d) * (g - (x.softmax(d) * g).sum(d, True))  # noqa: E731
            yield "wrong sum", f"the softmax and the sum are over {words}", both
    yield (
        "wrong sum", "a mean is taken instead of the sum", lambda g, x, y: y * (g - (y * g).mean(dim, keepdim=True))
    )  # fmt: skip


def _log_softmax(x: Tensor, dims: Dims) -> Iterator[tuple[str, str, Formula]]:
    (dim,) = dims
    yield "missing term", "the sum is missing", lambda g, x, y: g - y.exp() * g
    for other, words in _others(x, dims):
        yield "wrong sum", f"the sum is over {words}", lambda g, x, y, d=other: g - y.exp() * g.sum(d, keepdim=True)
        if len(other) == 1:
            softmax = lambda g, x, y, d=other[0]: g - x.softmax(d) * g.sum(dim, keepdim=True)  # noqa: E731
            yield "wrong sum", f"the softmax is over {words}", softmax
            both = lambda g, x, y, d=other[0]: g - x.softmax(d) * g.sum(d, keepdim=True)  # noqa: E731
            yield "wrong sum", f"the softmax and the sum are over {words}", both


def _logsumexp(x: Tensor, dims: Dims) -> Iterator[tuple[str, str, Formula]]:
    (dim,) = dims
    expand = lambda g, x: g if g.dim() == x.dim() else g.unsqueeze(dim)  # noqa: E731
    for other, words in _others(x, dims):
        softmax = lambda g, x, y, d=other: expand(g, x) * (x - x.logsumexp(d, keepdim=True)).exp()  # noqa: E731
        yield "wrong sum", f"the softmax is over {words}", softmax
    yield "another operand", "a sigmoid stands in place of the softmax", lambda g, x, y: expand(g, x) * x.sigmoid()


def _normalised(x: Tensor, dims: Dims) -> Iterator[tuple[str, str, Formula]]:
    """Derivative of y = (x - mean) / std, without weight and bias."""
    for other, words in _others(x, dims):

        def formula(g: Tensor, x: Tensor, y: Tensor, d: Dims = other) -> Tensor:
            scale = (x.var(dims, correction=0, keepdim=True) / y.var(dims, correction=0, keepdim=True)).rsqrt()
            return scale * (g - g.mean(d, keepdim=True) - y * (g * y).mean(d, keepdim=True))

        yield "wrong sum", f"the means are over {words}", formula


def _unit(x: Tensor, dims: Dims) -> Iterator[tuple[str, str, Formula]]:
    """Derivative of x / |x|."""
    norm = lambda x: x.norm(dim=dims, keepdim=True)  # noqa: E731
    for other, words in _others(x, dims):
        yield (
            "wrong sum", f"the sum is over {words}", lambda g, x, y, d=other: (g - y * (y * g).sum(d, True)) / norm(x)
        )  # fmt: skip


FORMULAS: dict[str, Callable[[Tensor, Dims], Iterator[tuple[str, str, Formula]]]] = {
    "softmax": _softmax, "log_softmax": _log_softmax, "logsumexp": _logsumexp, "layer_norm": _normalised,
    "batch_norm": _normalised, "normalize": _unit,
}  # fmt: skip
