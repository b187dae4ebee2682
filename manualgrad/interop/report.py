"""Report of a conversion: what became of each layer, for people to read."""

from __future__ import annotations

from dataclasses import dataclass, field

ROOT = "(the module itself)"


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
        return f"{self.name or ROOT}: {self.was} -> {self.now}" + (f", {self.note}" if self.note else "")


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
        return f"{self.name or ROOT}: {self.kind}: {self.why}"


@dataclass(frozen=True)
class Report:
    """The layers and functional calls of a model, replaced or left. ``str(report)`` lists them, one in a line."""

    replaced: list[Replaced] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"replaced: {len(self.replaced)}", *(f"  {entry}" for entry in self.replaced)]
        return "\n".join([*lines, f"left: {len(self.left)}", *(f"  {entry}" for entry in self.left)])


def type_name(kind: type) -> str:
    """Name of a type as users write it: ``torch.nn.Conv2d``, not ``torch.nn.modules.conv.Conv2d``."""
    package = kind.__module__
    if package.startswith("torch.nn.modules"):
        package = "torch.nn"
    return f"{package}.{kind.__qualname__}"
