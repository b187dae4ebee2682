"""Edits of the equation of an einsum."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import combinations

from compare.gradients.source_changes.edits import Edit, Site


def einsum_edits(site: Site) -> Iterator[Edit]:
    """Two letters exchanged, or one replaced, in one operand or in the result; two operands exchanged."""
    node, parent = site.node, site.ancestors[-1]
    if not (isinstance(node, ast.Constant) and isinstance(node.value, str) and isinstance(parent, ast.Call)):
        return
    called = parent.func.attr if isinstance(parent.func, ast.Attribute) else getattr(parent.func, "id", "")
    if called != "einsum" or parent.args[:1] != [node]:
        return
    operands, arrow, result = node.value.replace(" ", "").partition("->")
    terms = [*operands.split(","), *([result] if arrow else [])]
    letters = sorted({letter for term in terms for letter in term if letter.isalpha()})
    for n, term in enumerate(terms):
        for other in dict.fromkeys(_other_terms(term, letters)):
            changed = [*terms[:n], other, *terms[n + 1 :]]
            joined = ",".join(changed[:-1]) + arrow + changed[-1] if arrow else ",".join(changed)
            if set(changed[-1] if arrow else "") <= set("".join(changed[:-1])):
                yield site.edit(ast.Constant(joined), 1)


def _other_terms(term: str, letters: list[str]) -> Iterator[str]:
    for a, b in combinations(term, 2):
        yield term.translate(str.maketrans(a + b, b + a))
    for n, letter in enumerate(term):
        for other in letters:
            if other not in term and letter.isalpha():
                yield term[:n] + other + term[n + 1 :]
