"""Wrong softmaxes and losses: logits z (N, C), labels (N,)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compare.gallery.wrong_function import WrongFunction, hand_written, randn, wrong_function

LABELS = torch.tensor([1, 3, 0, 1, 2])
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 4.0])


def cross_entropy(
    name: str,
    kinds: str | set[str],
    gradient: Callable[[Tensor, Tensor, Tensor], Tensor],
    expected_words: str | tuple[str, ...] = (),
    scale: float = 1,
    weight: Tensor | None = None,
    **options: Any,
) -> WrongFunction:
    """Make an entry; ``gradient`` takes g, p, y: the incoming gradient, the softmax, and the one-hot labels."""

    def native(z: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(z, labels, None if weight is None else weight.to(z), **options)

    def backward(g: Tensor, z: Tensor, labels: Tensor) -> tuple[Tensor, None]:
        return gradient(g, torch.softmax(z, 1), F.one_hot(labels, z.shape[1]).to(z)), None

    def inputs() -> dict[str, Tensor]:
        return {"z": scale * torch.randn(5, 4), "labels": LABELS}

    return wrong_function(
        f"cross-entropy: {name}", kinds, "z", hand_written(native, backward), native, inputs, expected_words
    )


def gradient_through_probabilities(g: Tensor, p: Tensor, y: Tensor) -> Tensor:
    """Multiply the gradients of -log p and of softmax: correct on paper, but 0 times infinity where p is 0."""
    d = -y / p * g / len(p)
    return p * (d - (d * p).sum(1, keepdim=True))


def softmax(
    name: str, kinds: str | set[str], native: Callable[..., Tensor], gradient: Callable[..., Tensor]
) -> WrongFunction:
    def backward(g: Tensor, x: Tensor) -> Tensor:
        return gradient(g, torch.softmax(x, 1))

    return wrong_function(name, kinds, "x", hand_written(native, backward), native, randn(x=(5, 4)))


def softmax_of_rows(x: Tensor) -> Tensor:
    return torch.softmax(x, 1)


def log_softmax(x: Tensor) -> Tensor:
    return torch.log_softmax(x, 1)


def logsumexp(x: Tensor) -> Tensor:
    return torch.logsumexp(x, 1)


def cross_entropy_of_probabilities(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y)


CROSS_ENTROPY = [
    cross_entropy("mean not divided by the batch size", "constant factor", lambda g, p, y: g * (p - y), ("B", "5")),
    cross_entropy("sum divided by the batch size", "constant factor", lambda g, p, y: g * (p - y) / 5,
            ("1/B", "1/5", "0.2"), reduction="sum"),
    cross_entropy("wrong sign", "constant factor", lambda g, p, y: g * (y - p) / 5, "-1"),
    cross_entropy("incoming gradient taken for 1", "ignores the incoming gradient", lambda g, p, y: (p - y) / 5),
    cross_entropy("no reduction, incoming gradients taken for 1", "ignores the incoming gradient",
            lambda g, p, y: p - y,
         reduction="none"),
    cross_entropy("label not subtracted", {"missing term", "few elements"}, lambda g, p, y: g * p / 5),
    cross_entropy("probabilities left out", "missing term", lambda g, p, y: -g * y / 5),
    cross_entropy("class weights forgotten, a factor for each example", {"constant factor", "missing term"},
         lambda g, p, y: g[:, None] * (p - y), ("1/4", "0.25", "factor"), weight=WEIGHT, reduction="none"),
    cross_entropy("chained through probabilities, some of which are 0", "not finite", gradient_through_probabilities,
            scale=1000),
    wrong_function(
        "cross-entropy: no gradient for the target probabilities", "none", "y",
        hand_written(cross_entropy_of_probabilities,
                lambda g, z, y: (g * (torch.softmax(z, 1) * y.sum(1, keepdim=True) - y) / 5, None)),
        cross_entropy_of_probabilities, lambda: {"z": torch.randn(5, 4), "y": torch.randn(5, 4).softmax(1)},
        whole_numbers=False,
    ),
    wrong_function(
        "squared error: 2 forgotten", "constant factor", "z",
        hand_written(F.mse_loss, lambda g, z, y: (g * (z - y) / z.numel(), 2 * g * (y - z) / z.numel())),
        F.mse_loss, randn(z=(5, 3), y=(5, 3)), ("1/2", "0.5"),
    ),
    softmax("softmax: backward of an element-wise function", "missing term", softmax_of_rows,
            lambda g, p: g * p * (1 - p)),
    softmax("softmax: p g", "missing term", softmax_of_rows, lambda g, p: g * p),
    softmax("softmax: sum along the other dimension", "wrong sum", softmax_of_rows,
            lambda g, p: p * (g - (p * g).sum(0))),
    softmax("log-softmax: incoming gradient not summed", "missing term", log_softmax, lambda g, p: g - p * g),
    wrong_function(
        "softmax: along the other dimension", "wrong output", "output",
        hand_written(
            lambda x: torch.softmax(x, 0), lambda g, x: torch.softmax(x, 0) * (g - (g * torch.softmax(x, 0)).sum(0)),
        ),
        softmax_of_rows, randn(x=(5, 4)), also_wrong=("x",),
    ),
    wrong_function(
        "logsumexp: exponentials of large numbers", "not finite", "x",
        hand_written(logsumexp, lambda g, x: g[:, None] * x.exp() / x.exp().sum(1, keepdim=True)),
        logsumexp, lambda: {"x": 1000 * torch.randn(5, 4)},
    ),
]  # fmt: skip
