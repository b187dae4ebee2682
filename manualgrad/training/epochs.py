"""Sizes of the epochs of a run, and the position of a step in them."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class EpochLayout:
    """Number of images and steps in each epoch of a run.

    Steps are counted over the whole run. An argument ``step`` is the number of steps taken before the step in
    question, so the first step has ``step`` 0. The last batch of an epoch may be smaller than ``batch_size``.

    Attributes:
        num_images: images in the training split.
        batch_size: images in a batch, over all ranks.
        num_epochs: number of epochs.
        fractions: fraction of the images that each epoch uses, in (0, 1]; the last value repeats.
    """

    num_images: int
    batch_size: int
    num_epochs: int
    fractions: tuple[float, ...] = (1.0,)

    def __str__(self) -> str:
        """Text such as "3 epochs of 60,000 images" or "2 epochs of 100 and 50 images"."""
        all_equal = len(set(self.sizes)) == 1
        *first, last = [f"{size:,}" for size in (self.sizes[:1] if all_equal else self.sizes)]
        sizes = f"{', '.join(first)} and {last}" if first else last
        return f"{self.num_epochs} epoch{'s' * (self.num_epochs > 1)} of {sizes} image{'s' * (self.sizes[-1] > 1)}"

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of images in each epoch."""
        fractions = (*self.fractions, *itertools.repeat(self.fractions[-1], self.num_epochs))[: self.num_epochs]
        return tuple(max(1, round(fraction * self.num_images)) for fraction in fractions)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Number of steps of the run up to the end of each epoch."""
        return tuple(itertools.accumulate(-(-size // self.batch_size) for size in self.sizes))

    @property
    def num_steps(self) -> int:
        """Number of steps in all epochs."""
        return self.ends[-1]

    @property
    def has_subsets(self) -> bool:
        """True if an epoch uses only a part of the images."""
        return any(size < self.num_images for size in self.sizes)

    def epoch_of(self, step: int) -> int:
        """Index of the epoch of a step, from 0."""
        return bisect_right(self.ends, step)

    def step_in_epoch(self, step: int) -> int:
        """Number of steps taken in the epoch before this step; 0 at the start of an epoch."""
        epoch = self.epoch_of(step)
        return step - (self.ends[epoch - 1] if epoch else 0)

    def batch_size_of(self, step: int) -> int:
        """Number of images in the batch of a step."""
        return min(self.batch_size, self.sizes[self.epoch_of(step)] - self.step_in_epoch(step) * self.batch_size)
