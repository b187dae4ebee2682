"""Named sets of defaults for the options of ``train.py``."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import Any

import torch

STANDARD = "standard"


@dataclass(frozen=True)
class Recipe:
    """Defaults of the options with the same names as the fields.

    ``learning_rate`` applies to the recipe's optimizer only. Other optimizers keep torch's default.
    """

    optimizer: str = "sgd"

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

    def option_defaults(self) -> dict[str, Any]:
        """Defaults of all options but ``learning_rate``, whose default depends on the optimizer."""
        return {name: value for name, value in asdict(self).items() if name != "learning_rate"}


RECIPES = {
    STANDARD: Recipe(),
    # Selected by the accuracy on the last 10,000 training images, which were held out of the training of the trials.
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

# The same names on CUDA, where they differ. Batch, epochs, rate and momentum were chosen before any measurement,
# schedule and average by the accuracy on the last 10,000 training images (docs/training.md).
CUDA_RECIPES = {
    "fast": Recipe(optimizer="momentum", batch_size=256, learning_rate=0.1, schedule="linear", average=0.15),
}


def find_recipe(name: str, device: str) -> Recipe:
    """Return the recipe for ``--recipe`` and ``--device``."""
    on_cuda = device != "cpu" and torch.cuda.is_available()
    return CUDA_RECIPES.get(name, RECIPES[name]) if on_cuda else RECIPES[name]


def describe(options: argparse.Namespace) -> str:
    """Return the recipe's name, followed by the options whose values differ from the recipe's."""
    recipe = find_recipe(options.recipe, options.device)
    name: str = options.recipe if recipe is RECIPES[options.recipe] else f"{options.recipe} on CUDA"
    defaults = asdict(recipe)
    values = {option: getattr(options, option) for option in defaults}
    if values["learning_rate"] is None:
        del values["learning_rate"]
    changed = [f"{option.replace('_', ' ')} {value}" for option, value in values.items()
               if (tuple(value) if isinstance(value, list) else value) != defaults[option]]  # fmt: skip
    return name + (f", but with {', '.join(changed)}" if changed else "")
