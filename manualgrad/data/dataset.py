"""The dataset that `load` returns, and the error that it raises."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


class DataError(Exception):
    """The data cannot be used. The message is one or two lines for a person; no traceback is needed."""


# eq=False: the generated `==` would compare tensors, which gives a tensor, and raise.
@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels, in the order of the files.

    Attributes:
        images: uint8, (N, 1, H, W), from 0 for paper to 255 for ink.
        labels: class indices, int64, (N,).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Split:
        """Return the split on `device`. Tensors that are on it already are shared, not copied."""
        return Split(self.images.to(device), self.labels.to(device))

    def first(self, n: int) -> Split:
        """Return the first `n` images, or all if there are fewer, without a copy. Raises ValueError if n < 1."""
        if n < 1:
            raise ValueError(f"expected at least 1 image, got {n}")
        return Split(self.images[:n], self.labels[:n])

    def center_crop(self, side: int) -> Split:
        """Return the `side` x `side` pixels in the middle of each image, without a copy.

        Raises ValueError if the images are smaller.
        """
        height, width = self.images.shape[-2:]
        if not 1 <= side <= min(height, width):
            raise ValueError(
                f"expected a side from 1 to {min(height, width)} for images of {height}x{width}, got {side}"
            )
        top, left = (height - side) // 2, (width - side) // 2
        return Split(self.images[..., top : top + side, left : left + side], self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training split and a test split with their description.

    Attributes:
        name: one of NAMES, or "mnist-sample" for the bundled sample, so that results name what they were made with.
        source: origin of the images, as one phrase for a person.
        is_sample: True for the bundled sample.
        train: training split.
        test: test split.
        classes: name of each class.
        mean: mean of all training pixels, scaled to 0..1.
        std: population standard deviation of all training pixels, scaled to 0..1.
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
        """Return the dataset with both splits on `device`."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def limited(self, n: int) -> Dataset:
        """Return the dataset with the first `n` training images and all test images. The name states the limit."""
        if n >= len(self.train):
            return self
        return replace(self, train=self.train.first(n), name=f"{self.name}, first {n:,} training images")

    def center_crop(self, side: int) -> Dataset:
        """Return the dataset with the `side` x `side` pixels in the middle of each image. The name states the crop.

        `mean` and `std` stay those of the whole images. Raises ValueError if the images are smaller.
        """
        train, test = self.train.center_crop(side), self.test.center_crop(side)
        return replace(self, train=train, test=test, name=f"{self.name}, the middle {side}x{side} pixels")


def mean_and_std(images: Tensor) -> tuple[float, float]:
    """Mean and population standard deviation of uint8 `images` scaled to 0..1; (0.1307, 0.3081) for MNIST.

    They are computed in float64 from a histogram of the 256 values, without a scaled copy of the images.
    """
    frequency = torch.bincount(images.flatten(), minlength=256).cpu().double() / images.numel()
    value = torch.arange(256, dtype=torch.float64) / 255
    mean = (frequency * value).sum()
    std = (frequency * (value - mean) ** 2).sum().sqrt()
    return mean.item(), std.item()
