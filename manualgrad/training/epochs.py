"""Which images each epoch takes, in which order, and where in all of them a step is."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

NEVER_SEEN = -1.0


@dataclass(frozen=True)
class Epochs:
    """``count`` epochs, each of a share of the ``images``, in steps of ``batch_size``; the last may be smaller.

    ``shares`` are those of the first epochs; the last of them is that of all that follow. Steps count from 0 here:
    the first is the step after 0.
    """

    images: int
    batch_size: int
    count: int
    shares: tuple[float, ...] = (1.0,)

    def __str__(self) -> str:
        alike = len(set(self.sizes)) == 1
        *most, last = [f"{size:,}" for size in (self.sizes[:1] if alike else self.sizes)]
        many = f"{self.count} epoch{'s' * (self.count > 1)} of "
        return many + (f"{', '.join(most)} and {last}" if most else last) + f" image{'s' * (self.sizes[-1] > 1)}"

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Images of each epoch."""
        shares = (*self.shares, *itertools.repeat(self.shares[-1], self.count))[: self.count]
        return tuple(max(1, round(share * self.images)) for share in shares)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Steps up to the end of each epoch."""
        return tuple(itertools.accumulate(-(-size // self.batch_size) for size in self.sizes))

    @property
    def steps(self) -> int:
        """Of all epochs together."""
        return self.ends[-1]

    @property
    def choose(self) -> bool:
        """Whether an epoch leaves images out."""
        return any(size < self.images for size in self.sizes)

    def epoch(self, step: int) -> int:
        """The epoch of the step after ``step``, from 0 on."""
        return bisect_right(self.ends, step)

    def place(self, step: int) -> int:
        """How many steps of its epoch were taken after ``step`` of all; 0 between two epochs."""
        epoch = self.epoch(step)
        return step - (self.ends[epoch - 1] if epoch else 0)

    def batch(self, step: int) -> int:
        """How many images the step after ``step`` takes."""
        return min(self.batch_size, self.sizes[self.epoch(step)] - self.place(step) * self.batch_size)


class Choice:
    """The images that an epoch takes: those whose label had the least probability when the network last saw them.

    Images that it has not seen come before all others, and chance decides between equals. The order is random.

    ``before`` (images,) is each label's probability when the epoch began; ``seen`` those of the images since, in the
    epoch's order.
    """

    def __init__(self, images: int) -> None:
        self.before = torch.full((images,), NEVER_SEEN)
        self._seen: list[Tensor] = []
        self._order = torch.empty(0, dtype=torch.int64)

    @property
    def seen(self) -> Tensor:
        """(n,) float32 on the CPU, of the n images that the epoch has shown."""
        return torch.cat([torch.empty(0), *(part.float().cpu() for part in self._seen)])

    def saw(self, probabilities: Tensor) -> None:
        """The next images' labels were given these ``probabilities``."""
        self._seen.append(probabilities)

    def note(self) -> None:
        """The epoch is over: what was seen is known before the next."""
        seen = self.seen
        self.before[self._order[: len(seen)]] = seen
        self._seen = []

    def take_up(self, before: Tensor, seen: Tensor) -> None:
        """As it was when these were its ``before`` and ``seen``; the order has to be drawn again."""
        self.before, self._seen = before.clone(), [seen]

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """The numbers of ``size`` images, in the order in which the epoch takes them."""
        self._order = torch.randperm(len(self.before), generator=generator)
        if size < len(self.before):
            hardest = self.before[self._order].argsort(stable=True)[:size]
            self._order = self._order[hardest.sort().values]  # as chance had it
        return self._order
