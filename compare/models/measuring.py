"""Both models' gradients on one batch: errors in float32 and float64, with what flips and without.

A float64 run of the native model is the oracle. In float32 a value near 0 may fall on the other side of a ReLU, or
another place may win a pooling window, for native as for ours: a flip. One flip moves a gradient more than all
roundings do, so each error is measured twice: against the oracle, and against an oracle made to decide as the very
run did, which leaves rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import manualgrad as mg
from compare.models.decisions import Decisions, flips, made_to_decide, recorded
from compare.models.networks import Batch, Shape, cost, native_model, our_model, random_batch

Gradients = Mapping[str, Tensor]


@dataclass(frozen=True)
class Run:
    """One float32 run against the oracle. Errors by parameter are relative to the parameter's own gradient."""

    whole: float  # |g - oracle| / |oracle|
    rounding: float  # the same against the oracle that decides as the run did
    errors: dict[str, float]
    roundings: dict[str, float]
    flips: dict[str, int]


@dataclass(frozen=True)
class Measured:
    """One seed: ours and native in float32, ours from native in float64, and how much each layer had to decide."""

    seed: int
    ours: Run
    native: Run
    float64: float
    share: dict[str, float]  # of each parameter in the norm of the whole gradient
    decisions: dict[str, int]


def measure(name: str, seed: int, shape: Shape) -> Measured:
    """Both models on one random batch, in float32 and float64."""
    native = native_model(name, seed)
    batch = random_batch(shape, seed)
    ours, _ = our_model(native, shape)
    our_loss, native_loss = mg.nn.SoftmaxCrossEntropyLoss(), nn.CrossEntropyLoss()
    with recorded(ours) as our_decisions:
        our_gradients = gradients(ours, our_loss, batch)
    with recorded(native) as native_decisions:
        native_gradients = gradients(native, native_loss, batch)

    native, batch = native.double(), batch.to(torch.float64)  # from here on, exactly the same weights and images
    ours, _ = our_model(native, shape)
    with recorded(native) as decisions:
        oracle = gradients(native, native_loss, batch)
    length = norm(oracle)
    float64 = distance(gradients(ours, our_loss, batch), oracle) / length

    def run(found: Gradients, decided: Decisions) -> Run:
        flipped, same_way = flips(decided, decisions), oracle
        if any(flipped.values()):
            with made_to_decide(native, decided):
                same_way = gradients(native, native_loss, batch)
        return Run(
            distance(found, oracle) / length,
            distance(found, same_way) / norm(same_way),
            each_distance(found, oracle, oracle),
            each_distance(found, same_way, oracle),
            flipped,
        )

    return Measured(
        seed,
        run(our_gradients, our_decisions),
        run(native_gradients, native_decisions),
        float64,
        {name: norm({name: g}) / length for name, g in oracle.items()},
        {name: sum(each.numel() for each in made) for name, made in decisions.items()},
    )


def gradients(model: nn.Module, loss: nn.Module, batch: Batch) -> Gradients:
    """The gradient of every parameter by name; zeros for one that has none."""
    model.zero_grad()
    cost(model, loss, batch).backward()
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def norm(tensors: Gradients) -> float:
    """Of all numbers together, in float64."""
    return sum(tensor.double().square().sum().item() for tensor in tensors.values()) ** 0.5


def distance(one: Gradients, other: Gradients) -> float:
    """The norm of the difference of two whole gradients."""
    return sum((one[name].double() - other[name].double()).square().sum().item() for name in other) ** 0.5


def each_distance(one: Gradients, other: Gradients, of: Gradients) -> dict[str, float]:
    """For each parameter the norm of the difference, over the norm of ``of``, or over 1 where that is 0."""
    return {n: distance({n: one[n]}, {n: g}) / (norm({n: of[n]}) or 1.0) for n, g in other.items()}
