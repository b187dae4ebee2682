"""An entry of the gallery of wrong Functions, and a Function made of a forward and a backward."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from compare.case import Case
from compare.gradients.diagnosis.findings import Finding


@dataclass(frozen=True)
class WrongFunction:
    """A Function with one mistake, and the diagnosis that is expected for it.

    Args:
        name: the mistake, in words.
        case: the Function and its native counterpart.
        kinds: acceptable kinds of the first finding about ``quantity``; two if both descriptions are correct.
        quantity: name of the input whose gradient is wrong, or "output"; "" if the mistake belongs to no quantity.
        expected_words: the statement or the evidence must contain one of them; empty if the kind is enough.
        excluded_words: the statement and the evidence must contain none of them: they describe another mistake.
        also_wrong: other quantities that the mistake makes wrong; findings about any others are false.
    """

    name: str
    case: Case
    kinds: frozenset[str]
    quantity: str
    expected_words: tuple[str, ...] = ()
    also_wrong: tuple[str, ...] = ()
    excluded_words: tuple[str, ...] = ()

    def first_finding(self, findings: Iterable[Finding]) -> Finding | None:
        """Return the first finding about ``quantity``."""
        return next((f for f in findings if not self.quantity or _contains(f.quantity, self.quantity)), None)

    def is_named_by(self, findings: Iterable[Finding]) -> bool:
        """Return True if the first finding about ``quantity`` has an acceptable kind and acceptable words."""
        first = self.first_finding(findings)
        if first is None or first.kind not in self.kinds:
            return False
        text = f"{first.statement} {first.evidence}".replace("−", "-")
        if any(_contains(text, word) for word in self.excluded_words):
            return False
        return not self.expected_words or any(_contains(text, word) for word in self.expected_words)

    def false_findings(self, findings: Iterable[Finding]) -> list[Finding]:
        """Return the findings about correct quantities."""
        if not self.quantity:
            return []
        wrong_quantities = (self.quantity, *self.also_wrong)
        return [f for f in findings if not any(_contains(f.quantity, quantity) for quantity in wrong_quantities)]


def _contains(text: str, word: str) -> bool:
    """Return True if ``text`` contains ``word`` as a whole word; for a number, to three significant digits.

    Indices, which stand in brackets, do not count.
    """
    text = re.sub(r"\[[^]]*\]", "", text)
    try:
        number = float(word)
    except ValueError:
        return re.search(rf"(?<![\w./]){re.escape(word)}(?![\w/]|\.\d)", text) is not None
    numbers = re.findall(r"(?<![\w./])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w/])", text)
    return any(math.isclose(float(n), number, rel_tol=1e-3) for n in numbers)


def wrong_function(
    name: str,
    kinds: str | set[str],
    quantity: str,
    ours: Callable[..., Any],
    native: Callable[..., Any],
    make_inputs: Callable[[], dict[str, Tensor]],
    expected_words: str | tuple[str, ...] = (),
    also_wrong: tuple[str, ...] = (),
    excluded_words: tuple[str, ...] = (),
    **options: Any,
) -> WrongFunction:
    """Make an entry and its case; ``options`` are those of the case."""
    kinds = frozenset({kinds} if isinstance(kinds, str) else kinds)
    expected_words = (expected_words,) if isinstance(expected_words, str) else expected_words
    case = Case(name, ours, native, make_inputs, **options)
    return WrongFunction(name, case, kinds, quantity, expected_words, also_wrong, excluded_words)


def hand_written(
    forward: Callable[..., Any], backward: Callable[..., Any], *, exact: bool = True
) -> Callable[..., Any]:
    """Make a Function and return its ``apply``.

    Args:
        backward: takes the gradients of the outputs, then the inputs, and returns the gradients of the inputs.
        exact: backward computes in float64, and autograd rounds once, to the input's dtype. Rounding errors then add
            no second fault to the one of the entry.
    """

    class HandWritten(Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Any:
            ctx.save_for_backward(*inputs)
            return forward(*inputs)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            tensors = (*gradients, *ctx.saved_tensors)
            if exact:
                tensors = tuple(t.double() if t.is_floating_point() else t for t in tensors)
            return backward(*tensors)

    return HandWritten.apply


def randn(**shapes: tuple[int, ...]) -> Callable[[], dict[str, Tensor]]:
    """Return a ``make_inputs`` that draws normal numbers of the given shapes, by name."""
    return lambda: {name: torch.randn(shape) for name, shape in shapes.items()}
