"""One edit of the source that is tried, or several together."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import CodeType

from compare.gradients.source_changes.editable_function import EditableFunction
from compare.gradients.source_changes.edits import Edit


@dataclass(frozen=True)
class Candidate:
    """One edit, or several that are made together.

    Attributes:
        parts: each edit with the function that it is in.
    """

    parts: tuple[tuple[EditableFunction, Edit], ...]

    @property
    def cost(self) -> int:
        """Cost of the edits; backward and what it gets, where most mistakes are, come before forward."""
        in_forward = any(not function.called.in_backward and not _is_kept(edit) for function, edit in self.parts)
        return sum(edit.cost for _, edit in self.parts) + in_forward

    @contextmanager
    def made(self) -> Iterator[None]:
        """Make the edits in the trees, and take them back."""
        with ExitStack() as stack:
            for _, edit in self.parts:
                stack.enter_context(edit.made())
            yield

    def compiled(self) -> dict[EditableFunction, CodeType] | None:
        """Code of each edited function while the edits are made; None if one is no Python."""
        codes = {function: function.compiled() for function in dict.fromkeys(f for f, _ in self.parts)}
        compiled = {function: code for function, code in codes.items() if code is not None}
        return compiled if len(compiled) == len(codes) else None


def _is_kept(edit: Edit) -> bool:
    """True for an edit of what forward keeps for backward."""
    nodes = (edit.changes[0][1], *edit.ancestors)
    return any(isinstance(n, ast.Call) and getattr(n.func, "attr", "") == "save_for_backward" for n in nodes)
