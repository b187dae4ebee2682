"""Wrong softmaxes and costs: logits z (B, C), labels (B,)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compare.gallery_wrong import Wrong, hand_written, randn, wrong

LABELS = torch.tensor([1, 3, 0, 1, 2])
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 4.0])


def cost(
    name: str,
    kinds: str | set[str],
    gradient: Callable[[Tensor, Tensor, Tensor], Tensor],
    words: str | tuple[str, ...] = (),
    size: float = 1,
    weight: Tensor | None = None,
    **options: Any,
) -> Wrong:
    """``gradient`` is one of (g, p, y): the incoming one, the softmax, and labels as probabilities."""

    def native(z: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(z, labels, None if weight is None else weight.to(z), **options)

    def backward(g: Tensor, z: Tensor, labels: Tensor) -> tuple[Tensor, None]:
        return gradient(g, torch.softmax(z, 1), F.one_hot(labels, z.shape[1]).to(z)), None

    def inputs() -> dict[str, Tensor]:
        return {"z": size * torch.randn(5, 4), "labels": LABELS}

    return wrong(f"cross-entropy: {name}", kinds, "z", hand_written(native, backward), native, inputs, words)


def of_probabilities(g: Tensor, p: Tensor, y: Tensor) -> Tensor:
    """First that of -log p, then that of softmax: right on paper, but 0 times infinity where p is 0."""
    d = -y / p * g / len(p)
    return p * (d - (d * p).sum(1, keepdim=True))


def softmax(
    name: str, kinds: str | set[str], native: Callable[..., Tensor], gradient: Callable[..., Tensor]
) -> Wrong:
    def backward(g: Tensor, x: Tensor) -> Tensor:
        return gradient(g, torch.softmax(x, 1))

    return wrong(name, kinds, "x", hand_written(native, backward), native, randn(x=(5, 4)))


def along_rows(x: Tensor) -> Tensor:
    return torch.softmax(x, 1)


def log_softmax(x: Tensor) -> Tensor:
    return torch.log_softmax(x, 1)


def logsumexp(x: Tensor) -> Tensor:
    return torch.logsumexp(x, 1)


def soft_cost(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y)


CROSS_ENTROPY = [
    cost("mean not divided", "constant factor", lambda g, p, y: g * (p - y), ("B", "5")),
    cost("sum divided", "constant factor", lambda g, p, y: g * (p - y) / 5, ("1/B", "1/5", "0.2"), reduction="sum"),
    cost("sign", "constant factor", lambda g, p, y: g * (y - p) / 5, "-1"),
    cost("incoming gradient taken for 1", "ignores the incoming gradient", lambda g, p, y: (p - y) / 5),
    cost("one each, incoming gradients taken for 1", "ignores the incoming gradient", lambda g, p, y: p - y,
         reduction="none"),
    cost("label not subtracted", {"missing term", "few elements"}, lambda g, p, y: g * p / 5),
    cost("probabilities not there", "missing term", lambda g, p, y: -g * y / 5),
    cost("class weights forgotten: a factor for each example", "constant factor",
         lambda g, p, y: g[:, None] * (p - y), ("1/4", "0.25"), weight=WEIGHT, reduction="none"),
    cost("through the probabilities, some of which are 0", "not finite", of_probabilities, size=1000),
    wrong(
        "cross-entropy: no gradient for the probabilities asked for", "none", "y",
        hand_written(soft_cost, lambda g, z, y: (g * (torch.softmax(z, 1) * y.sum(1, keepdim=True) - y) / 5, None)),
        soft_cost, lambda: {"z": torch.randn(5, 4), "y": torch.randn(5, 4).softmax(1)}, whole_numbers=False,
    ),
    wrong(
        "squared error: 2 forgotten", "constant factor", "z",
        hand_written(F.mse_loss, lambda g, z, y: (g * (z - y) / z.numel(), 2 * g * (y - z) / z.numel())),
        F.mse_loss, randn(z=(5, 3), y=(5, 3)), ("1/2", "0.5"),
    ),
    softmax("softmax: as if it were element-wise", "missing term", along_rows, lambda g, p: g * p * (1 - p)),
    softmax("softmax: p g", "missing term", along_rows, lambda g, p: g * p),
    softmax("softmax: sum along the other dimension", "unknown", along_rows, lambda g, p: p * (g - (p * g).sum(0))),
    softmax("log-softmax: g not summed", "missing term", log_softmax, lambda g, p: g - p * g),
    wrong(
        "softmax: along the other dimension", "wrong output", "output",
        hand_written(
            lambda x: torch.softmax(x, 0), lambda g, x: torch.softmax(x, 0) * (g - (g * torch.softmax(x, 0)).sum(0)),
        ),
        along_rows, randn(x=(5, 4)), also=("x",),
    ),
    wrong(
        "logsumexp: exponentials of large numbers", "not finite", "x",
        hand_written(logsumexp, lambda g, x: g[:, None] * x.exp() / x.exp().sum(1, keepdim=True)),
        logsumexp, lambda: {"x": 1000 * torch.randn(5, 4)},
    ),
]  # fmt: skip
