"""Gradients of the mean loss over the batch of all ranks, from this rank's shard of it, by one of two engines.

Arguments of both:
    x: normalized images of the shard, (N, 1, H, W).
    labels: class indices of the shard, (N,).
    batch_size: number of images in all shards.

Both set every parameter's ``grad``, and return the shard's part of the mean loss, and the shard's class
probabilities, (N, classes).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manualgrad import backprop
from manualgrad.functional import softmax, softmax_cross_entropy
from manualgrad.models import DocumentCNN
from manualgrad.training.distributed import DistributedContext


def gradients_by_autograd(
    model: DocumentCNN, ddp_model: nn.Module, x: Tensor, labels: Tensor, batch_size: int,
    distributed: DistributedContext,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Chain the layers' Functions by torch's engine. ``ddp_model`` is the model in DistributedDataParallel."""
    model.zero_grad()
    if distributed.world_size == 1:
        loss, probabilities = model.cost_and_probabilities(x, labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation for it
        return loss.detach(), probabilities
    logits = ddp_model(x)
    loss = softmax_cross_entropy(logits, labels, reduction="sum") / batch_size
    # DistributedDataParallel divides the sum of the gradients by the world size.
    (loss * distributed.world_size).backward()  # type: ignore[no-untyped-call]  # torch has no annotation for it
    return loss.detach(), softmax(logits.detach())  # eq. (11)


def gradients_by_recursion(
    model: DocumentCNN, x: Tensor, labels: Tensor, batch_size: int, distributed: DistributedContext
) -> tuple[Tensor, Tensor]:
    """Run the recursion of section 4 of the formula sheet (docs/equations.md).

    Its steps for η = −1 are the gradients of the mean over the shard. For η = −N/batch_size they are the shard's part
    of the gradients.
    """
    fraction = len(labels) / batch_size
    model.zero_grad()
    if fraction:
        steps = backprop.backpropagate(model, x, labels, eta=-fraction)
        weights = [w for layer in model.layers_with_weights() for w in (layer.weight, layer.bias)]
        gradients = [step for pair in zip(steps.weights, steps.biases, strict=True) for step in pair]
        for w, gradient in zip(weights, gradients, strict=True):
            if w is not None and w.requires_grad:  # a weight that two layers share has the sum of their gradients
                w.grad = gradient if w.grad is None else w.grad + gradient
        loss, probabilities = steps.cost * fraction, steps.probabilities
    else:  # the shard is empty, and has no mean: the batch has fewer images than there are ranks
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        loss, probabilities = x.new_zeros(()), x.new_zeros((0, model.classes))
    distributed.all_reduce_gradients(w for w in model.parameters() if w.requires_grad)
    return loss, probabilities
