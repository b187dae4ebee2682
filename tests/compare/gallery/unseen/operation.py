"""One operation as two Functions: a right one, and one with a mistake in backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.autograd import Function

from compare import Case


@dataclass(frozen=True)
class WrongFunction:
    """A case whose backward has one mistake, and a report of it that a reviewer would accept.

    Attributes:
        named: the mistake in words.
        kinds: acceptable kinds of the finding; empty if the list of kinds has no name for the mistake.
        named_words: regular expressions. The mistake counts as named if the statement of a finding matches one.
        located: regular expressions. The mistake counts as located if the report matches every one.
    """

    case: Case
    named: str
    kinds: tuple[str, ...]
    named_words: tuple[str, ...]
    located: tuple[str, ...]


@dataclass(frozen=True)
class Operation:
    """An operation with a right and a wrong Function; both have the same forward.

    Attributes:
        call: calls ``apply`` on the case's inputs; None if ``apply`` itself takes them.
        options: further arguments of :class:`compare.Case`.
    """

    name: str
    right: type[Function]
    wrong: type[Function]
    native: Callable[..., Any]
    make_inputs: Callable[[], Any]
    named: str
    kinds: tuple[str, ...]
    named_words: tuple[str, ...]
    located: tuple[str, ...]
    call: Callable[..., Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def case(self, function: type[Function]) -> Case:
        """Case of one of the two Functions."""
        call, apply = self.call, function.apply
        ours = apply if call is None else lambda *inputs: call(apply, *inputs)
        return Case(self.name, ours, self.native, self.make_inputs, **self.options)


@dataclass(frozen=True)
class Mistake:
    """A wrong backward of an operation, and a report of it that a reviewer would accept: see WrongFunction."""

    name: str
    backward: Callable[..., Any]
    named: str
    kinds: tuple[str, ...]
    named_words: tuple[str, ...]
    located: tuple[str, ...]


@dataclass(frozen=True)
class Formulas:
    """An operation whose backward is a formula of the incoming gradient and the inputs, and mistakes in it.

    Attributes:
        backward: ``backward(g, *inputs)`` returns the gradients of the inputs, None for integers.
        options: further arguments of :class:`compare.Case`.
    """

    name: str
    native: Callable[..., Any]
    make_inputs: Callable[[], Any]
    backward: Callable[..., Any]
    mistakes: tuple[Mistake, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def case(self, name: str, backward: Callable[..., Any]) -> Case:
        """Case of a Function with this backward; its forward is native's."""
        native = self.native

        class FormulaFunction(Function):
            @staticmethod
            def forward(ctx, *inputs):
                ctx.save_for_backward(*inputs)
                return native(*inputs)

            @staticmethod
            def backward(ctx, g):
                return backward(g, *ctx.saved_tensors)

        return Case(name, FormulaFunction.apply, native, self.make_inputs, **self.options)


def wrong_and_right_formulas(operations: Iterable[Formulas]) -> tuple[list[WrongFunction], list[Case]]:
    """Make the wrong cases, several for each operation, and the right one of each."""
    operations = list(operations)
    wrong = [
        WrongFunction(each.case(m.name, m.backward), m.named, m.kinds, m.named_words, m.located)
        for each in operations
        for m in each.mistakes
    ]
    return wrong, [each.case(each.name, each.backward) for each in operations]


def wrong_and_right(operations: Iterable[Operation]) -> tuple[list[WrongFunction], list[Case]]:
    """Make the wrong and the right case of each operation."""
    operations = list(operations)
    wrong = [
        WrongFunction(each.case(each.wrong), each.named, each.kinds, each.named_words, each.located)
        for each in operations
    ]
    return wrong, [each.case(each.right) for each in operations]
