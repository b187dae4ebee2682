"""Where did it become infinite, or not a number? The first tensor, in the order in which a step computes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from manualgrad.models import DocumentCNN


class NonFinite(Exception):
    """The cost, or a weight, is infinite or not a number. The message names the step and the first such tensor."""


def first_nonfinite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that is not all finite, and where in it; None where all are."""
    for name, tensor in tensors:
        finite = tensor.isfinite()
        if not finite.all():
            place = (~finite).nonzero()[0].tolist()
            count = finite.numel() - int(finite.sum())
            return (
                f"{name}, {count:,} of {finite.numel():,} values, the first {tensor[tuple(place)].item()} at {place}"
            )
    return None


def parameters(model: DocumentCNN) -> Iterator[tuple[str, Tensor]]:
    """Every weight and bias, by its layer's name."""
    for name, parameter in model.named_parameters():
        yield name, parameter.detach()


@torch.no_grad()
def tensors_of_a_step(model: DocumentCNN, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Parameters, the input ``x``, each layer's output, then gradients from the last layer to the first."""
    yield from parameters(model)
    yield "the input", x
    for name, layer in model.named_children():
        x = layer(x)
        yield f"the output of {name}", x
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None:
            yield f"the gradient of {name}", parameter.grad
