"""What `load` returns, and the one error that it raises."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


class DataError(Exception):
    """The data cannot be used. The message is for people: a line or two, no traceback needed."""


# eq=False: comparing tensors gives a tensor, so the generated `==` would raise instead of answering.
@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels, in the order of the files.

    images: uint8, (N, 1, H, W), 0 for paper and 255 for ink. labels: int64, (N,), each a class index.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Split:
        """The same split on `device`; tensors that are there already are shared, not copied."""
        return Split(self.images.to(device), self.labels.to(device))

    def first(self, n: int) -> Split:
        """The first `n` images (all, if there are fewer), sharing memory. ValueError where n < 1."""
        if n < 1:
            raise ValueError(f"a split needs at least 1 image, got {n}")
        return Split(self.images[:n], self.labels[:n])

    def middle(self, side: int) -> Split:
        """``side`` rows and columns in the middle of each image, sharing memory. ValueError where it has fewer."""
        rows, columns = self.images.shape[-2:]
        if not 1 <= side <= min(rows, columns):
            raise ValueError(f"an image has {rows}x{columns} pixels, of which the middle {side}x{side} are no part")
        top, left = (rows - side) // 2, (columns - side) // 2
        return Split(self.images[..., top : top + side, left : left + side], self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split, and what is known about them.

    name: one of NAMES, or "mnist-sample" for the bundled sample, so that it never passes for the whole set.
    source: one sentence for people, where the images came from.
    classes: a name for each label. mean, std: of all training pixels, scaled to 0..1.
    """

    name: str
    source: str
    is_sample: bool
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: float
    std: float

    def to(self, device: torch.device | str) -> Dataset:
        """The same dataset with both splits on `device`."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def limited(self, n: int) -> Dataset:
        """The same dataset with the first `n` training images only, named so; all test images stay."""
        if n >= len(self.train):
            return self
        return replace(self, train=self.train.first(n), name=f"{self.name}, first {n:,} training images")

    def middle(self, side: int) -> Dataset:
        """The same dataset with ``side`` rows and columns in the middle of each image, named so; ``mean`` and ``std``
        stay. ValueError where the images are smaller."""
        train, test = self.train.middle(side), self.test.middle(side)
        return replace(self, train=train, test=test, name=f"{self.name}, the middle {side}x{side} pixels")


def mean_and_std(images: Tensor) -> tuple[float, float]:
    """Mean and population standard deviation of uint8 `images` scaled to 0..1; (0.1307, 0.3081) for MNIST.

    Exact in float64, from how often each of the 256 values occurs: no scaled copy of the images is made.
    """
    share = torch.bincount(images.flatten(), minlength=256).double() / images.numel()
    value = torch.arange(256, dtype=torch.float64) / 255
    mean = (share * value).sum()
    std = (share * (value - mean) ** 2).sum().sqrt()
    return mean.item(), std.item()
