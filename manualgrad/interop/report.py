"""What a conversion did to each layer, for people to read."""

from __future__ import annotations

from dataclasses import dataclass, field

ROOT = "(the module itself)"


@dataclass(frozen=True)
class Replaced:
    """The layer under ``name`` was ``was`` and is now ``now``; ``note`` says what is different about it."""

    name: str
    was: str
    now: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name or ROOT}: {self.was} -> {self.now}" + (f", {self.note}" if self.note else "")


@dataclass(frozen=True)
class Left:
    """The layer under ``name``, of type ``kind``, stays as it was, because of ``why``."""

    name: str
    kind: str
    why: str

    def __str__(self) -> str:
        return f"{self.name or ROOT}: {self.kind}: {self.why}"


@dataclass(frozen=True)
class Report:
    """Every layer and functional call that was looked at. ``str(report)`` is a list of them, a line each."""

    replaced: list[Replaced] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"replaced: {len(self.replaced)}", *(f"  {entry}" for entry in self.replaced)]
        return "\n".join([*lines, f"left: {len(self.left)}", *(f"  {entry}" for entry in self.left)])


def name_of(kind: type) -> str:
    """``torch.nn.Conv2d`` as people write it, not as PyTorch's folders have it."""
    package = kind.__module__
    if package.startswith("torch.nn.modules"):
        package = "torch.nn"
    return f"{package}.{kind.__qualname__}"
