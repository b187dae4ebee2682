"""Evaluation of a model on all images of a split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from manualgrad.data import Dataset, Split
from manualgrad.functional import softmax_cross_entropy
from manualgrad.models import DocumentCNN
from manualgrad.training.batches import normalize
from manualgrad.training.distributed import SINGLE_PROCESS, DistributedContext


@dataclass(frozen=True)
class EvalResult:
    """Predictions of a model for a split.

    Attributes:
        predicted: predicted class indices, (N,) int64 on the CPU.
        labels: true class indices, (N,) int64 on the CPU.
        loss: mean cross-entropy loss.
    """

    predicted: Tensor
    labels: Tensor
    loss: float

    @property
    def accuracy(self) -> float:
        """Percentage of images whose predicted class is the label."""
        return 100 * (self.predicted == self.labels).double().mean().item()

    def confusion_matrix(self, num_classes: int) -> Tensor:
        """Number of images by true class (row) and predicted class (column), (num_classes, num_classes) int64."""
        flat = torch.bincount(self.labels * num_classes + self.predicted, minlength=num_classes**2)
        return flat.view(num_classes, num_classes)


@torch.no_grad()
def evaluate(
    model: DocumentCNN,
    split: Split,
    dataset: Dataset,
    distributed: DistributedContext = SINGLE_PROCESS,
    batch_size: int = 250,
) -> EvalResult:
    """Evaluate the model on ``split``, whose images are normalized as those of ``dataset``.

    Each rank evaluates a shard of the images, and every rank returns the result for all of them, in order. The losses
    of the batches are added as Python's numbers, since not every device has float64 (MPS).
    """
    dtype, device = next(model.parameters()).dtype, split.labels.device
    predicted, losses = torch.zeros_like(split.labels), []
    for indices in torch.split(distributed.shard(torch.arange(len(split), device=device)), batch_size):
        logits = model(normalize(split.images[indices], dataset, dtype))
        predicted[indices] = logits.argmax(1)
        losses.append(softmax_cross_entropy(logits, split.labels[indices], reduction="sum"))
    distributed.all_reduce_sum(predicted)
    loss = distributed.all_reduce_sum_number(sum(torch.stack(losses).tolist()), device)
    return EvalResult(predicted.cpu(), split.labels.cpu(), loss / len(split))
