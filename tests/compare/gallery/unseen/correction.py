"""A reader's judgement that replaces an automatic one."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Correction:
    """A judgement on one statement; another statement about the same Function is judged anew.

    Attributes:
        name: name of the case.
        statement: regular expression for the statement or what stands below it as its correction.
        named: "named", "unknown" or "wrongly named"; None leaves the automatic judgement.
        located: the same for the location.
        reason: why the automatic judgement is unfair.
    """

    name: str
    statement: str
    named: str | None
    located: bool | None
    reason: str

    def applies(self, name: str, statements: list[str]) -> bool:
        """Tell whether this correction is about these statements."""
        return name == self.name and any(re.search(self.statement, text) for text in statements)
