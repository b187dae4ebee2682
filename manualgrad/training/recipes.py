"""Settings that belong together, under a name: what ``train.py --recipe`` chooses, and each option may change."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import Any

STANDARD = "standard"


@dataclass(frozen=True)
class Recipe:
    """Each field is the default of the command line's option of the same name.

    ``learning_rate`` is that of plain gradient descent, and no other optimiser's.
    """

    channels: tuple[int, ...] = (16, 32)
    hidden: tuple[int, ...] = (128,)
    epochs: int = 3
    batch_size: int = 64
    learning_rate: float = 0.25
    schedule: str = "one-cycle"
    shares: tuple[float, ...] = (1.0,)
    average: float = 0.0
    crop: int | None = None
    engine: str = "autograd"

    def options(self) -> dict[str, Any]:
        """What is the default whatever the optimiser."""
        return {name: value for name, value in asdict(self).items() if name != "learning_rate"}


RECIPES = {
    STANDARD: Recipe(),
    # Chosen by the accuracy on the last 10,000 training images, which the trials were not trained on.
    "fast": Recipe(
        hidden=(),
        crop=24,
        epochs=5,
        shares=(0.55, 0.3, 0.2, 0.1, 0.1),
        schedule="linear",
        average=0.15,
        engine="document",
    ),
}


def described(options: argparse.Namespace) -> str:
    """The recipe's name, and what was chosen in place of its settings."""
    recipe = asdict(RECIPES[options.recipe])
    given = {name: getattr(options, name) for name in recipe}
    if given["learning_rate"] is None:
        del given["learning_rate"]
    others = [f"{name.replace('_', ' ')} {value}" for name, value in given.items()
              if (tuple(value) if isinstance(value, list) else value) != recipe[name]]  # fmt: skip
    return options.recipe + (f", but {', '.join(others)}" if others else "")
