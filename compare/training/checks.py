"""Checks that tell rounding from a fault in two trainings, and a count of exact zeros.

After some hundred steps two right trainings differ as much as a right and a wrong one: every step carries on the
rounding errors of the steps before, and where rounding changes the sign at a ReLU or the index of a maximum, a
gradient jumps. So faults are looked for where rounding is still small or has had no time to grow:

- :class:`FirstSteps`: the first steps in float64, the loss of ours against native's;
- :class:`SameWeights`: in the dtype of the training, both gradients at the same weights, in the course of training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compare.native_network import from_native, native_twin
from manualgrad.functional import softmax_cross_entropy
from manualgrad.models import DocumentCNN
from manualgrad.nn import ReLU

FLOAT64_STEPS = 40
# Allowed difference of losses, in multiples of the difference of two native runs. Right networks reached 6 times, in
# 30 seeds of each of six settings. One weight's or bias's gradient wrong by 0.1 % is beyond 60,000 times after one
# step and a million times after five.
LOSS_FACTOR = 100
# Allowed error of a gradient, in multiples of native's error. Right networks reached 1.2 times, in four dtypes; 0.1 %
# in float32 is over 100 times.
GRADIENT_FACTOR = 10
MAX_NATIVE_DIFFERENCE = 1e-9  # of two native runs in float64; beyond it kinks decide, and steps are no longer judged


def expected_rounding(model: DocumentCNN, dtype: torch.dtype) -> float:
    """Expected relative error of the network's longest sum: √n ε for n products, since errors have mixed signs."""
    longest = max(parameter[0].numel() for parameter in model.parameters() if parameter.dim() > 1)
    return math.sqrt(longest) * torch.finfo(dtype).eps


@dataclass(frozen=True)
class FirstSteps:
    """Losses of the first steps in float64.

    Attributes:
        ours: losses of ours.
        native: losses of native.
        nudged: losses of native from weights changed by one unit in the last place.
        rounding: expected relative rounding error, from :func:`expected_rounding`.
    """

    seed: int
    ours: tuple[float, ...]
    native: tuple[float, ...]
    nudged: tuple[float, ...]
    rounding: float

    @property
    def differences(self) -> list[float]:
        """Absolute difference of the losses of ours and native, for each step."""
        return [abs(a - b) for a, b in zip(self.ours, self.native, strict=True)]

    @property
    def allowed(self) -> list[float]:
        """Allowed difference for each judged step: ``LOSS_FACTOR`` times the largest difference of native and nudged
        until then, or times the rounding of one loss.

        Judged are the first step, and all until native and nudged differ by more than ``MAX_NATIVE_DIFFERENCE`` or
        are not finite.
        """
        limits, largest = [], 0.0
        for a, b in zip(self.native, self.nudged, strict=True):
            scale = max(1.0, abs(a))
            largest = max(largest, abs(a - b), self.rounding * scale)
            if limits and not (math.isfinite(a - b) and largest <= MAX_NATIVE_DIFFERENCE * scale):
                break
            limits.append(LOSS_FACTOR * largest)
        return limits

    @property
    def first_failed_step(self) -> int | None:
        """Number, from 1, of the first judged step whose difference is more than allowed."""
        pairs = zip(self.differences, self.allowed, strict=False)
        return next((n for n, (difference, limit) in enumerate(pairs, 1) if not difference <= limit), None)

    @property
    def failure(self) -> str | None:
        """A sentence about the first step that differs by more than rounding, or None."""
        if self.first_failed_step is None:
            return None
        n = self.first_failed_step - 1
        return (
            f"Seed {self.seed}, float64: at step {self.first_failed_step} from the same weights the loss of ours is "
            f"{self.ours[n]:.10g} and native's is {self.native[n]:.10g}; they differ by {self.differences[n]:.2g}, "
            f"and rounding explains {self.allowed[n]:.2g}."
        )


@dataclass(frozen=True)
class SameWeights:
    """Relative errors of one layer's gradient, ‖g − g64‖ / ‖g64‖, at the weights of ours; g64 is native's in float64.

    Attributes:
        epoch: number of finished epochs.
        batches: number of batches. Errors are medians over them, which one flip at a kink does not move.
        ours: error of ours.
        native: error of native.
        rounding: smallest error that native is taken to have: ε, or √n ε in float64, where native is its own oracle.
    """

    seed: int
    epoch: int
    layer: str
    batches: int
    ours: float
    native: float
    rounding: float

    @property
    def allowed(self) -> float:
        """Largest accepted error of ours."""
        return GRADIENT_FACTOR * max(self.rounding, self.native)

    @property
    def failure(self) -> str | None:
        """A sentence if the error of ours is more than allowed, or None."""
        if self.ours <= self.allowed:
            return None
        when = "before the first step" if self.epoch == 0 else f"after epoch {self.epoch}"
        return (
            f"Seed {self.seed}, {self.layer}, {when}: at the same weights the relative error of our gradient against "
            f"native's in float64 is {self.ours:.2g}, that of native's own gradient {self.native:.2g}; rounding "
            f"explains {self.allowed:.2g}."
        )


@dataclass(frozen=True)
class ZeroCounts:
    """Counts of the inputs of one ReLU: all values, exact zeros, and exact zeros with a gradient other than 0."""

    seed: int
    epoch: int
    layer: str
    values: int
    zeros: int
    zeros_with_gradient: int


def check_gradients(
    model: DocumentCNN, batches: Sequence[tuple[Tensor, Tensor]], seed: int, epoch: int
) -> list[SameWeights]:
    """Compare every layer's gradient on ``batches``, pairs of images and labels, with native in the same dtype and in
    float64."""
    dtype = next(model.parameters()).dtype
    twin, oracle = native_twin(model), native_twin(model).double()
    errors: dict[str, list[tuple[float, float]]] = {}
    for x, labels in batches:
        ours = _gradients(model, softmax_cross_entropy, x, labels)
        native, exact = (
            from_native(_gradients(network, F.cross_entropy, x.to(kind), labels), model)
            for network, kind in ((twin, dtype), (oracle, torch.float64))
        )
        for layer in layer_names(exact):
            exact_vector = layer_vector(exact, layer)
            scale = max(exact_vector.norm().item(), torch.finfo(torch.float64).tiny)
            pair = tuple(
                (layer_vector(gradients, layer) - exact_vector).norm().item() / scale for gradients in (ours, native)
            )
            errors.setdefault(layer, []).append(pair)
    rounding = expected_rounding(model, dtype) if dtype == torch.float64 else torch.finfo(dtype).eps
    return [
        SameWeights(seed, epoch, layer, len(batches), *(_median(side) for side in zip(*pairs, strict=True)), rounding)
        for layer, pairs in errors.items()
    ]


def count_zeros(
    unfused: DocumentCNN, batches: Sequence[tuple[Tensor, Tensor]], seed: int, epoch: int
) -> list[ZeroCounts]:
    """Count the zeros among the inputs of each ReLU of ``unfused``, a network whose ReLUs are separate layers."""
    recorded: dict[str, list[tuple[Tensor, Tensor]]] = {}
    hooks = [
        layer.register_forward_hook(_recorder(recorded.setdefault(name, [])))
        for name, layer in unfused.named_children()
        if isinstance(layer, ReLU)
    ]
    counts = {name: [0, 0, 0] for name in recorded}
    for x, labels in batches:
        unfused.zero_grad()
        softmax_cross_entropy(unfused(x), labels).backward()
        for name, calls in recorded.items():
            z, output = calls.pop()
            is_zero = z == 0
            batch_counts = z.numel(), is_zero.sum().item(), (is_zero & (output.grad != 0)).sum().item()
            counts[name] = [total + count for total, count in zip(counts[name], batch_counts, strict=True)]
    for hook in hooks:
        hook.remove()
    return [ZeroCounts(seed, epoch, name, *totals) for name, totals in counts.items()]


def layer_names(named: dict[str, Tensor]) -> list[str]:
    """Names of the layers that the parameters in ``named`` belong to, in order."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in named))


def layer_vector(named: dict[str, Tensor], layer: str) -> Tensor:
    """Weight and bias of one layer as one float64 vector."""
    return torch.cat([t.detach().double().flatten() for name, t in named.items() if name.rpartition(".")[0] == layer])


def _median(errors: Sequence[float]) -> float:
    """Median with NaN counted as infinity, since NaN cannot be sorted."""
    return median(math.inf if math.isnan(error) else error for error in errors)


def _gradients(network: nn.Module, loss: Callable[..., Tensor], x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    loss(network(x), labels).backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


def _recorder(calls: list[tuple[Tensor, Tensor]]) -> Callable[..., None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        calls.append((inputs[0].detach(), output))

    return hook
