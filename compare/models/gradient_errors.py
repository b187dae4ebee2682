"""Gradients of both models on one batch: errors in float32 and float64, with flips and without.

The oracle is a float64 run of the native model. In float32 a value near 0 may get the other sign at a ReLU, or
another element may win a pooling window, in native as in ours: a flip. One flip moves a gradient more than all
rounding errors do. So each error is measured twice: against the oracle, and against an oracle forced to repeat the
decisions of the run, which leaves only rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import manualgrad as mg
from compare.models.decisions import Decisions, count_flips, force_decisions, record_decisions
from compare.models.torchvision_models import (
    Batch,
    ModelOptions,
    compute_loss,
    convert_model,
    make_native_model,
    random_batch,
)

Gradients = Mapping[str, Tensor]
"""Gradients by parameter name."""


@dataclass(frozen=True)
class Float32Errors:
    """Errors of one float32 run against the oracle. Errors by parameter are relative to the parameter's own gradient.

    Attributes:
        total: |g - oracle| / |oracle| of the whole gradient.
        total_rounding: the same against the oracle that repeats the decisions of the run.
        by_parameter: as ``total``, for each parameter.
        rounding_by_parameter: as ``total_rounding``, for each parameter.
        flips: number of flips in each layer.
    """

    total: float
    total_rounding: float
    by_parameter: dict[str, float]
    rounding_by_parameter: dict[str, float]
    flips: dict[str, int]


@dataclass(frozen=True)
class SeedErrors:
    """Errors of one seed.

    Attributes:
        ours: float32 errors of ours.
        native: float32 errors of native.
        float64_error: distance of ours from native in float64, over the norm of native.
        norm_fractions: norm of each parameter's gradient over the norm of the whole gradient.
        num_decisions: number of ReLU signs and pooling indices in each layer.
    """

    seed: int
    ours: Float32Errors
    native: Float32Errors
    float64_error: float
    norm_fractions: dict[str, float]
    num_decisions: dict[str, int]


def measure_errors(name: str, seed: int, options: ModelOptions) -> SeedErrors:
    """Run both models on one random batch, in float32 and float64."""
    native = make_native_model(name, seed, options)
    batch = random_batch(options, seed)
    ours, _ = convert_model(native, options)
    our_loss, native_loss = mg.nn.SoftmaxCrossEntropyLoss(), nn.CrossEntropyLoss()
    with record_decisions(ours) as our_decisions:
        our_gradients = parameter_gradients(ours, our_loss, batch)
    with record_decisions(native) as native_decisions:
        native_gradients = parameter_gradients(native, native_loss, batch)

    native, batch = native.double(), batch.to(torch.float64)  # exactly the same weights and images in float64
    ours, _ = convert_model(native, options)
    with record_decisions(native) as oracle_decisions:
        oracle = parameter_gradients(native, native_loss, batch)
    oracle_norm = norm(oracle)
    float64_error = distance(parameter_gradients(ours, our_loss, batch), oracle) / oracle_norm

    def float32_errors(gradients: Gradients, decisions: Decisions) -> Float32Errors:
        flips, same_decisions = count_flips(decisions, oracle_decisions), oracle
        if any(flips.values()):
            with force_decisions(native, decisions):
                same_decisions = parameter_gradients(native, native_loss, batch)
        return Float32Errors(
            distance(gradients, oracle) / oracle_norm,
            distance(gradients, same_decisions) / norm(same_decisions),
            relative_distances(gradients, oracle, oracle),
            relative_distances(gradients, same_decisions, oracle),
            flips,
        )

    return SeedErrors(
        seed,
        float32_errors(our_gradients, our_decisions),
        float32_errors(native_gradients, native_decisions),
        float64_error,
        {name: norm({name: g}) / oracle_norm for name, g in oracle.items()},
        {name: sum(call.numel() for call in calls) for name, calls in oracle_decisions.items()},
    )


def parameter_gradients(model: nn.Module, loss: nn.Module, batch: Batch) -> Gradients:
    """Gradient of every parameter by name; zeros for a parameter that has none."""
    model.zero_grad()
    compute_loss(model, loss, batch).backward()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    return gradients


def norm(tensors: Gradients) -> float:
    """Euclidean norm of all elements together, in float64."""
    return sum(tensor.double().square().sum().item() for tensor in tensors.values()) ** 0.5


def distance(first: Gradients, second: Gradients) -> float:
    """Norm of the difference of two whole gradients."""
    return sum((first[name].double() - second[name].double()).square().sum().item() for name in second) ** 0.5


def relative_distances(first: Gradients, second: Gradients, reference: Gradients) -> dict[str, float]:
    """Norm of the difference over the norm of ``reference``, or over 1 where that is 0, for each parameter."""
    return {n: distance({n: first[n]}, {n: g}) / (norm({n: reference[n]}) or 1.0) for n, g in second.items()}
