"""Corrections: edits of the user's source that make quantities right, and how they are told."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare.gradients.diagnosis.wording import join_words
from compare.gradients.source_changes.candidate import Candidate
from compare.gradients.source_changes.edits import Edit, Site

MIN_TEXT, MAX_TEXT = 20, 70  # characters of an expression in a report
MAX_CHANGES = 3  # that are told
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
SIMPLE = (ast.Return, ast.Assign, ast.AugAssign, ast.Expr)  # statements in one line


@dataclass(frozen=True)
class Change:
    """One place of the source: the text of an expression or statement before and after an edit.

    Attributes:
        is_code: False if ``new`` tells in words which value the expression should have.
        which: "the second ", say, where the line has the same text several times.
    """

    file: str
    line: int
    old: str
    new: str
    is_code: bool = True
    which: str = ""

    @property
    def quoted(self) -> str:
        """The text before the change: "`old`", or "the second `old`"."""
        return f"{self.which}`{self.old}`"

    @property
    def words(self) -> str:
        """Text after the place: "should be ..."."""
        if not self.new:
            return "should be left out"
        return f"should be `{self.new}`" if self.is_code else f"should be {self.new}"


@dataclass(frozen=True)
class Correction:
    """Changes of the source that make quantities right, and no other wrong.

    Attributes:
        changes: one, or several that have to be made together.
        quantities: those that were wrong and are right with the changes.
        makes_all_right: True if nothing is wrong with them.
        is_further: True if another correction is needed, too, so that all is right.
        elements: if each change makes only a part of the wrong elements right, and together all: the parts in words.
    """

    changes: tuple[Change, ...]
    quantities: frozenset[str]
    makes_all_right: bool
    elements: tuple[str, ...] = ()
    is_further: bool = False

    @property
    def size(self) -> int:
        """Length of the new texts: the shorter, the plainer."""
        return sum(len(change.new) for change in self.changes)

    @property
    def names(self) -> str:
        """The quantities in words."""
        return join_words(sorted(self.quantities))

    @property
    def _verb(self) -> str:
        return "is" if len(self.quantities) == 1 else "are"

    @property
    def proof(self) -> str:
        """Result of a comparison with the changes."""
        if self.elements:
            return f"with each change its elements of the {self.names} are right"
        if not all(change.is_code for change in self.changes):
            value = "that value" if len(self.changes) == 1 else "these values"
            return f"with {value} the {self.names} {self._verb} right"
        made = "this change" if len(self.changes) == 1 else "these changes"
        made += ", too," if self.is_further else ""
        what = "all comparisons are" if self.makes_all_right else f"the {self.names} {self._verb}"
        return f"with {made} {what} right"


def correction(candidate: Candidate, quantities: frozenset[str], makes_all_right: bool) -> Correction:
    """A correction by the edits of a candidate."""
    changes: dict[Any, Change] = {}
    for function, edit in candidate.parts:
        shown = _shown(edit)
        if sum(_statement_of(other) is _statement_of(edit) for _, other in candidate.parts) > 1:
            shown = _statement_of(edit)  # in which there are several edits
        before, which = _text(shown), _which(shown, function.node)
        with candidate.made():
            _, old, new = edit.changes[0]
            after = "" if new is None else _text(new if shown is old else shown)
        line = old.lineno
        reads_earlier = (
            len(edit.changes) > 1 and isinstance(old, ast.stmt) and isinstance(edit.changes[1][1], ast.expr)
        )
        if reads_earlier:  # a value that is kept before a statement
            after = "; ".join(map(_text, new.body))
        elif len(edit.changes) > 1 and isinstance(old, ast.stmt):  # two statements in the other order, or at once
            _, second, removed = edit.changes[1]
            before, which = f"{_text(old)}; {_text(second)}", ""
            after = _text(new) if removed is None else f"{_text(second)}; {_text(old)}"
        if isinstance(old, ast.If) and isinstance(new, ast.If) and len(new.body) == 2 and old.orelse == new.body[1:]:
            line, test = old.orelse[0].lineno, _text(old.orelse[0].test)
            before, after, which = f"elif {test}:", f"if {test}:", ""
        changes[id(shown)] = Change(function.code.co_filename, line, before, after, which=which)
        if reads_earlier:
            _, read, kept = edit.changes[1]
            changes[id(read)] = Change(function.code.co_filename, read.lineno, _text(read), _text(kept))
    return Correction(tuple(changes.values()), quantities, makes_all_right)


def of_parts(first: Correction, second: Correction, elements: Sequence[str]) -> Correction:
    """Two changes that are not made together: each makes a part of the wrong elements right."""
    return Correction((*first.changes, *second.changes), first.quantities, False, tuple(elements))


def separated(complete: Sequence[Correction], all_corrections: Sequence[Correction]) -> list[Correction]:
    """The corrections that make all right; of two changes, each by itself if one alone makes some quantities right.

    Args:
        complete: the nearest one first.
        all_corrections: these, and those for some of the quantities.
    """
    first = complete[0]
    for part in all_corrections:
        others = tuple(change for change in first.changes if change not in part.changes)
        if len(part.changes) == len(others) == 1 and len(first.changes) == 2 and part.quantities < first.quantities:
            rest = Correction(others, first.quantities - part.quantities, True, is_further=True)
            return [part, rest]
    return list(complete)


def describe(correction: Correction, others: Sequence[Correction] = ()) -> str:
    """The changes in words: "in line 3 of functions.py, `g * y` should be `g * (1 - y)`".

    Args:
        others: further corrections of the same. Where the number 2 does, and a size that is 2, both are told, the
            size first: the number may be right for the case alone.
    """
    first, *more = correction.changes
    where = f"in line {first.line} of {Path(first.file).name}, {first.quoted}"
    alike = [c.changes[0] for c in others if len(c.changes) == 1 and not more]
    at_place = [change.new for change in alike if (change.line, change.quoted) == (first.line, first.quoted)]
    sizes = [new for new in at_place if new.count(".shape") != first.new.count(".shape")]
    told = [f"{where} {first.words}"]
    if sizes:
        either = sorted([first.new, sizes[0]], key=lambda new: -new.count(".shape"))
        told = [f"{where} should be `{either[0]}` or `{either[1]}`"]
    for change in more[: MAX_CHANGES - 1]:
        file = "" if change.file == first.file else f" of {Path(change.file).name}"
        told.append(f"in line {change.line}{file}, {change.quoted} {change.words}")
    if correction.elements:
        told = [f"{change} for {elements}" for change, elements in zip(told, correction.elements, strict=True)]
        if (more[0].line, more[0].quoted) == (first.line, first.quoted):
            told[1] = f"`{more[0].new}` for {correction.elements[1]}"
    if len(correction.changes) > MAX_CHANGES:
        lines = sorted({change.line for change in correction.changes[MAX_CHANGES:]})
        told.append(f"the same in line {', '.join(map(str, lines))}")
    return join_words(told)


def shown_text(site: Site) -> tuple[str, int]:
    """Text of an expression, and its line."""
    return _text(site.node), site.node.lineno


def _which(shown: ast.AST, function: ast.AST) -> str:
    """ "the second ", say, if a line of the function has the same text in several places; "" otherwise."""
    if not isinstance(shown, ast.expr):
        return ""
    alike = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.expr) and node.lineno == shown.lineno and _text(node) == _text(shown)
    ]
    places = sorted({(node.col_offset, node.end_col_offset) for node in alike if hasattr(node, "col_offset")})
    if len(places) < 2 or len(places) > len(ORDINALS) or (shown.col_offset, shown.end_col_offset) not in places:
        return ""
    return f"the {ORDINALS[places.index((shown.col_offset, shown.end_col_offset))]} "


def _shown(edit: Edit) -> ast.AST:
    """As much of the source as it takes to recognize the place."""
    shown = edit.changes[0][1]
    for ancestor in reversed(edit.ancestors[1:]):
        if isinstance(ancestor, (ast.keyword, ast.comprehension)):
            continue
        if len(ast.unparse(shown)) >= MIN_TEXT:
            break
        if not isinstance(ancestor, (ast.expr, *SIMPLE)) or len(ast.unparse(ancestor)) > MAX_TEXT:
            break
        shown = ancestor
    return shown


def _statement_of(edit: Edit) -> ast.AST:
    nodes = (edit.changes[0][1], *reversed(edit.ancestors))
    return next(node for node in nodes if isinstance(node, (ast.stmt, ast.Lambda)))


def _text(node: Any) -> str:
    """The text of a node in one line."""
    return "; ".join(line.strip() for line in ast.unparse(ast.fix_missing_locations(node)).splitlines())
