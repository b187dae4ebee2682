"""Derivatives of quotients whose divisor is a sum or norm of the dividends, with a sum over other elements.

A softmax that is written as exponentials over their sum, over groups say, is no single function of PyTorch. Backward
computes the derivatives by dividend and divisor at once: y = x / sum(x) gives (g - sum of g y) / divisor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from compare.gradients.diagnosis.changed_native import NativeChange
from compare.gradients.diagnosis.composite_backwards import WithBackward
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.native_calls import Call
from compare.gradients.diagnosis.native_paths import NativePaths
from compare.gradients.diagnosis.wording import dimension_name

Term = Callable[[Tensor, Tensor], Tensor]  # of the gradient and the result


def find_changed_quotients(search: NativePaths) -> Iterator[Finding]:
    """The derivative by dividend and divisor with a sum over other elements than those that share a divisor."""
    tried: set[Any] = set()
    for path in search.paths:
        call = path.call
        if call.operation != "div" or call.site in tried or len(call.tensors) < 2:
            continue
        (first, dividend), (_, divisor) = call.tensors[:2]
        if dividend.shape != call.result.shape or not (dividend.requires_grad and divisor.requires_grad):
            continue
        tried.add(call.site)
        operation = call.name.removeprefix("the result of ")
        for kind, words, term in _terms(call.result):
            change = NativeChange(call.site, first, _derivative(term), alone=True)
            if search.explains(change):
                statement = f"in the derivative of {operation}, whose divisor depends on its dividend, {words}"
                yield Finding(kind, search.mismatch.quantity, statement)


def _terms(result: Tensor) -> Iterator[tuple[str, str, Term]]:
    """Kind and words of a wrong second term, and the term, which is subtracted from the gradient."""
    sums = [(dimension_name(result, d), (d,)) for d in range(result.dim()) if result.shape[d] > 1]
    if len(sums) > 1:
        sums.append(("all elements", tuple(range(result.dim()))))
    for over, dims in sums:
        words = f"the sum of g y is over {'all elements' if result.dim() == 1 else over}"
        yield "wrong sum", words, lambda g, y, d=dims: (g * y).sum(d, keepdim=True)
        yield "wrong sum", words, lambda g, y, d=dims: y * (g * y).sum(d, keepdim=True)
        words = f"the mean of g y over {over} is taken instead of a sum"
        yield "wrong sum", words, lambda g, y, d=dims: (g * y).mean(d, keepdim=True)
        yield "missing term", "the factor y is missing in the sum of g y", lambda g, y, d=dims: g.sum(d, keepdim=True)


def _derivative(term: Term) -> Callable[[Call, list[Any], int], Tensor]:
    def derivative(call: Call, flat: list[Any], position: int) -> Tensor:
        value = call.result
        divisor = call.tensors[1][1].detach()
        return WithBackward.apply(flat[position], value, lambda g: ((g - term(g, value)) / divisor).expand_as(value))

    return derivative
