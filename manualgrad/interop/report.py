"""Report of a conversion: what became of each layer, for people to read."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

ROOT = "(the module itself)"
NO_SUCH_LAYER = "manualgrad has no such layer"
NO_SUCH_FUNCTION = "manualgrad has no such function"
LINE_WIDTH = 118


@dataclass(frozen=True)
class Replaced:
    """A layer or functional call that was replaced.

    Attributes:
        name: name of the layer in the model, or of the module whose forward has the call; empty for the model itself.
        was: name of the native type or function.
        now: name of the type or function in its place.
        note: differences that matter to the user, if there are any.
    """

    name: str
    was: str
    now: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name or ROOT}: {self.change}"

    @property
    def change(self) -> str:
        """The entry without its name."""
        return f"{self.was} -> {self.now}" + (f", {self.note}" if self.note else "")


@dataclass(frozen=True)
class Left:
    """A layer or functional call that was left as it was.

    Attributes:
        name: name of the layer in the model, or of the module whose forward has the call; empty for the model itself.
        kind: name of the type or function.
        why: reason for leaving it.
    """

    name: str
    kind: str
    why: str

    def __str__(self) -> str:
        return f"{self.name or ROOT}: {self.change}"

    @property
    def change(self) -> str:
        """The entry without its name."""
        return f"{self.kind}: {self.why}"


@dataclass(frozen=True)
class Report:
    """The layers and functional calls of a model, replaced or left.

    ``str(report)`` counts them by type and reason, then names those of each count. Layers and functions that
    manualgrad does not have are counted and not named.
    """

    replaced: list[Replaced] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)

    def __str__(self) -> str:
        sections = (("replaced", self.replaced), ("left", self.left))
        lines = [line for title, entries in sections for line in _count_lines(title, entries)]
        return "\n".join(lines + [line for title, entries in sections for line in _name_lines(title, entries)])


def _count_lines(title: str, entries: Sequence[Replaced | Left]) -> list[str]:
    counts = Counter(entry.change for entry in entries)
    return [f"{title}: {len(entries)}", *(f"{count:>6} x {change}" for change, count in counts.most_common())]


def _name_lines(title: str, entries: Sequence[Replaced | Left]) -> list[str]:
    names: dict[str, list[str]] = {}
    for entry in entries:
        if isinstance(entry, Replaced) or entry.why not in (NO_SUCH_LAYER, NO_SUCH_FUNCTION):
            names.setdefault(entry.change, []).append(entry.name or ROOT)
    lines = [f"{title}, by name:"] if names else []
    for change, changed in names.items():
        lines += textwrap.wrap(
            f"{change}: {', '.join(changed)}", LINE_WIDTH, initial_indent="  ", subsequent_indent="    ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    return lines


def type_name(kind: type) -> str:
    """Name of a type as users write it: ``torch.nn.Conv2d``, not ``torch.nn.modules.conv.Conv2d``."""
    package = kind.__module__
    if package.startswith("torch.nn.modules"):
        package = "torch.nn"
    return f"{package}.{kind.__qualname__}"
