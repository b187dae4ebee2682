"""Selection of the images of an epoch by how poorly the network predicts them."""

from __future__ import annotations

import torch
from torch import Tensor

UNSEEN = -1.0


class HardExampleSampler:
    """Sampler that prefers unseen images, then images with the lowest label probability.

    The label probability of an image is the probability that the network gave its label in the image's most recent
    training step. Ties are broken at random, and the order of the sampled images is random.

    Args:
        num_images: images in the training split.
        device: device of the probabilities and of the sampled indices. Their random order is drawn on the CPU, so
            that it is the same on every device.

    Attributes:
        label_probs: label probability of every image at the start of the epoch, (num_images,); UNSEEN for images
            that no step has used.
    """

    def __init__(self, num_images: int, device: torch.device | str = "cpu") -> None:
        self.label_probs = torch.full((num_images,), UNSEEN, device=device)
        self._recorded: list[Tensor] = []
        self._indices = torch.empty(0, dtype=torch.int64, device=device)

    @property
    def epoch_label_probs(self) -> Tensor:
        """Label probabilities recorded in this epoch, (n,) float32, in the order of its images."""
        return torch.cat([self.label_probs[:0], *(part.float() for part in self._recorded)])

    def record(self, label_probs: Tensor) -> None:
        """Record the label probabilities of the next images of the epoch."""
        self._recorded.append(label_probs)

    def commit(self) -> None:
        """End the epoch: update :attr:`label_probs` with what was recorded."""
        recorded = self.epoch_label_probs
        self.label_probs[self._indices[: len(recorded)]] = recorded
        self._recorded = []

    def restore(self, label_probs: Tensor, epoch_label_probs: Tensor) -> None:
        """Restore the two attributes of the same names. The caller must then sample the epoch's indices again."""
        self.label_probs.copy_(label_probs)
        self._recorded = [epoch_label_probs.to(self.label_probs.device)]

    def sample(self, size: int, generator: torch.Generator) -> Tensor:
        """Sample the indices of the ``size`` images of the next epoch, (size,) int64, in training order."""
        self._indices = torch.randperm(len(self.label_probs), generator=generator).to(self.label_probs.device)
        if size < len(self.label_probs):
            hardest = self.label_probs[self._indices].argsort(stable=True)[:size]
            self._indices = self._indices[hardest.sort().values]  # back to the random order
        return self._indices
