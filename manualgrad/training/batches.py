"""Minibatches of normalized training images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from manualgrad.data import Dataset

# Images that are gathered by one call: few enough to stay in the cache, and enough to make the calls few.
GATHER_SIZE = 1024


def normalize(images: Tensor, dataset: Dataset, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert uint8 images to ``dtype`` with mean 0 and standard deviation 1 over the dataset's training images."""
    return images.to(dtype).sub_(255 * dataset.mean).div_(255 * dataset.std)


def minibatches(
    dataset: Dataset,
    indices: Tensor,
    batch_size: int,
    *,
    dtype: torch.dtype = torch.float32,
    first: int = 0,
    shard: Callable[[Tensor], Tensor] = lambda batch_indices: batch_indices,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield minibatches of training images: normalized images (N, 1, H, W) and labels (N,).

    The images are gathered and normalized on the device of the dataset, several batches at once.

    Args:
        indices: indices of the training images, (n,) int64, in the order in which to yield them.
        batch_size: images in a batch; the last batch may be smaller.
        dtype: dtype of the normalized images.
        first: index of the first batch to yield.
        shard: maps the indices of a batch to those that this rank gathers.
    """
    batches = [shard(batch_indices) for batch_indices in torch.split(indices, batch_size)[first:]]
    group_size = max(1, GATHER_SIZE // batch_size)
    for group in (batches[n : n + group_size] for n in range(0, len(batches), group_size)):
        group_indices, sizes = torch.cat(group).to(dataset.train.labels.device), [len(batch) for batch in group]
        images, labels = (
            tensor.index_select(0, group_indices) for tensor in (dataset.train.images, dataset.train.labels)
        )
        yield from zip(torch.split(normalize(images, dataset, dtype), sizes), torch.split(labels, sizes), strict=True)


class ShardBatches:
    """This rank's shards of the batches of an epoch. Successive batches are gathered together.

    Args:
        indices, batch_size, dtype, shard: as for :func:`minibatches`.
    """

    def __init__(
        self,
        dataset: Dataset,
        indices: Tensor,
        batch_size: int,
        dtype: torch.dtype,
        shard: Callable[[Tensor], Tensor],
    ) -> None:
        self._from = partial(minibatches, dataset, indices, batch_size, dtype=dtype, shard=shard)
        self._iterator, self._next = self._from(), 0

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Return images and labels of the batch ``index``, from 0."""
        if index != self._next:
            self._iterator = self._from(first=index)
        self._next = index + 1
        return next(self._iterator)
