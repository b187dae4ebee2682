"""Search for the first tensor of a training step that is infinite or not a number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from manualgrad.models import DocumentCNN


class NonFiniteError(Exception):
    """The loss or a weight is infinite or not a number. The message names the step and the first such tensor."""


def describe_first_nonfinite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Describe the first of the named ``tensors`` that has a non-finite value: name, count, first value and index.

    Return None if all values are finite.
    """
    for name, tensor in tensors:
        is_finite = tensor.isfinite()
        if not is_finite.all():
            index = (~is_finite).nonzero()[0].tolist()
            count = is_finite.numel() - int(is_finite.sum())
            return (
                f"{name}, {count:,} of {is_finite.numel():,} values, "
                f"the first {tensor[tuple(index)].item()} at index {index}"
            )
    return None


def named_parameters(model: DocumentCNN) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the detached value of every weight and bias."""
    for name, parameter in model.named_parameters():
        yield name, parameter.detach()


@torch.no_grad()
def step_tensors(model: DocumentCNN, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a training step with their names, in the order in which a step computes them.

    These are the parameters, the input ``x`` (N, C, H, W), the output of each layer, and the gradients from the last
    layer to the first.
    """
    yield from named_parameters(model)
    yield "the input", x
    for name, layer in model.named_children():
        x = layer(x)
        yield f"the output of {name}", x
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None:
            yield f"the gradient of {name}", parameter.grad
