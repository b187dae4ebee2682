"""What an entry of the gallery is, and how its Function is made from a forward and a backward."""

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


@dataclass(frozen=True)
class Wrong:
    """A Function with one mistake, and what a diagnosis has to say about it.

    Args:
        name: the mistake, in words.
        case: the Function beside a native one.
        kinds: the acceptable kinds of the first finding about ``quantity``; two where both descriptions are true.
        quantity: the name of the input whose gradient is wrong, or "output"; "" where the mistake belongs to none.
        words: one of these must stand in the statement or the evidence; none asked for where the kind says all.
        absent: none of these may: what would name another mistake.
        also: other quantities that the mistake really makes wrong; nothing else may be accused.
    """

    name: str
    case: Case
    kinds: frozenset[str]
    quantity: str
    words: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    def told(self, findings: Iterable[Any]) -> Any | None:
        """The first finding about ``quantity``."""
        return next((f for f in findings if not self.quantity or _says(f.quantity, self.quantity)), None)

    def named_by(self, findings: Iterable[Any]) -> bool:
        """Whether the first finding about ``quantity`` is of a right kind and has one of the words."""
        first = self.told(findings)
        if first is None or first.kind not in self.kinds:
            return False
        text = f"{first.statement} {first.evidence}".replace("−", "-")
        if any(_says(text, word) for word in self.absent):
            return False
        return not self.words or any(_says(text, word) for word in self.words)

    def falsely_accused(self, findings: Iterable[Any]) -> list[Any]:
        """Findings about quantities that are right."""
        if not self.quantity:
            return []
        guilty = (self.quantity, *self.also)
        return [f for f in findings if not any(_says(f.quantity, quantity) for quantity in guilty)]


def _says(text: str, word: str) -> bool:
    """Whether ``word`` stands in ``text`` and is no piece of a longer one; a number may have more digits.

    Indices, in brackets, do not count.
    """
    text = re.sub(r"\[[^]]*\]", "", text)
    try:
        number = float(word)
    except ValueError:
        return re.search(rf"(?<![\w./]){re.escape(word)}(?![\w/]|\.\d)", text) is not None
    numbers = re.findall(r"(?<![\w./])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w/])", text)
    return any(math.isclose(float(n), number, rel_tol=1e-3) for n in numbers)


def wrong(
    name: str,
    kinds: str | set[str],
    quantity: str,
    ours: Callable[..., Any],
    native: Callable[..., Any],
    make_inputs: Callable[[], dict[str, Tensor]],
    words: str | tuple[str, ...] = (),
    also: tuple[str, ...] = (),
    absent: tuple[str, ...] = (),
    **options: Any,
) -> Wrong:
    """An entry, and the case in it."""
    kinds = frozenset({kinds} if isinstance(kinds, str) else kinds)
    words = (words,) if isinstance(words, str) else words
    return Wrong(name, Case(name, ours, native, make_inputs, **options), kinds, quantity, words, also, absent)


def hand_written(
    forward: Callable[..., Any], backward: Callable[..., Any], *, exact: bool = True
) -> Callable[..., Any]:
    """The ``apply`` of a Function: ``backward(*gradients of the outputs, *inputs)`` gives the inputs' gradients.

    ``exact``: backward computes in float64, and autograd's engine rounds once, to the input's dtype. So rounding adds
    no second fault to the one that an entry is about.
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
    """``make_inputs`` for named normal numbers of these shapes."""
    return lambda: {name: torch.randn(shape) for name, shape in shapes.items()}
