"""Functional calls that were found in the source of a function."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import FunctionType


@dataclass
class Calls:
    """Calls in a function and in the functions that it calls.

    Attributes:
        replaced: (name of the native function, name of ours); the values are not used.
        left: name of a function that stays native, and why.
        unreadable: name of a function that cannot be rewritten although its names include those of native functions
            that manualgrad has, and why.
        super_methods: name of an attribute of the subclass with rewritten methods, and the rewritten method of a
            base class that it holds, which ``super()`` would not find.
    """

    replaced: dict[tuple[str, str], None] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    super_methods: dict[str, FunctionType] = field(default_factory=dict)

    def update(self, other: Calls) -> None:
        """Add what ``other`` has found."""
        for name in vars(self):
            getattr(self, name).update(getattr(other, name))
