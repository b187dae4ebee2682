"""Expressions of the source that terms are made of, with their values."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from compare.gradients.source_changes.edits import Site, assigned_name
from compare.gradients.source_changes.ending_loops import names_in

MAX_NAMES, MAX_EXPRESSIONS, MAX_NUMBERS = 8, 22, 2000


class Ingredient(NamedTuple):
    """An expression of the source, and its value.

    Attributes:
        text: the expression; a tree is made only of the few that fit.
        divisor: what 1 is divided by, if the expression is such a quotient.
    """

    text: str
    value: Tensor
    divisor: str = ""

    @property
    def node(self) -> ast.expr:
        """The expression as a tree, of no place in a file."""
        tree = ast.parse(self.text, mode="eval").body
        for node in ast.walk(tree):
            for attribute in node._attributes:
                vars(node).pop(attribute, None)
        return tree

    @property
    def is_name(self) -> bool:
        """True for a name alone."""
        return self.text.isidentifier()

    @property
    def as_factor(self) -> str:
        """The operator and the operand with which another expression is multiplied by this one."""
        return f"/ ({self.divisor})" if self.divisor else f"* ({self.text})"

    def times(self, other: Ingredient) -> Ingredient:
        """The product of each two elements."""
        return Ingredient(f"({self.text}) {other.as_factor}", self.value * other.value)


def find_ingredients(
    place: Site, sites: Sequence[Site], recorded: dict[int, list[Tensor]], steps: int = 1, step: int = 0
) -> list[Ingredient]:
    """Expressions with one value, of real numbers, that a place can read: names first, short ones before long ones.

    Args:
        place: where they are to be used; what is computed after it, or from it, is left out.
        steps: for expressions of a loop with so many steps, too, with their values in one of them.
        step: the number of that one.
    """
    stored = [n for n in ast.walk(place.ancestors[0]) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    set_later = {n.id for n in stored if n.lineno >= place.node.lineno}
    known: dict[str, Ingredient] = {}
    for n, values in recorded.items():
        node, text = sites[n].node, ast.unparse(sites[n].node)
        is_later = node.lineno > place.node.end_lineno
        if (
            names_in(node) & (set_later if is_later else {assigned_name(place)})
            or text in known
            or len(values) not in (1, steps)
        ):
            continue
        value = values[step if len(values) == steps else 0]
        if value.is_floating_point() and 0 < value.numel() <= MAX_NUMBERS:
            known[text] = Ingredient(text, value.double())
    ordered = sorted(known.values(), key=lambda each: (not each.is_name, len(each.text)))
    names = [each for each in ordered if each.is_name][:MAX_NAMES]
    return names + [each for each in ordered if not each.is_name][: MAX_EXPRESSIONS - len(names)]
