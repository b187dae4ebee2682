"""What two trainings may differ by: the rules that tell rounding from a fault, and a count of exact zeros.

After some hundred steps two right trainings differ as much as two wrong ones, since every step carries on what
rounding left of the one before, and a value that rounding takes across a kink of ReLU or of a maximum changes a
gradient by a jump. So a fault is looked for where rounding is still small or has no time to grow:

- :class:`FirstSteps`: some tens of steps in float64, each cost of ours beside native's;
- :class:`SameWeights`: in the dtype of the training, both gradients at the same weights, in the course of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compare.native import from_native, native_twin
from manualgrad.functional import softmax_cross_entropy
from manualgrad.models import DocumentCNN
from manualgrad.nn import ReLU

STEPS = 40  # of the float64 runs
# How many times what native does to itself. Right networks reached 6 times, in 30 seeds of each of six settings; one
# weight's or bias's gradient wrong by 0.1 % is beyond 60,000 times after one step, a million times after five.
STEPS_ALLOWANCE = 100
# How many times native's error. Right networks reached 1.2 times, in four dtypes; 0.1 % in float32 is over 100 times.
GRADIENT_ALLOWANCE = 10
GROWN = 1e-9  # where native parts this far from itself in float64, the kinks begin to decide: no longer judged


def rounding_of(model: DocumentCNN, dtype: torch.dtype) -> float:
    """The relative error expected of the network's longest sum: √n ε for n products, as signs of errors are mixed."""
    longest = max(parameter[0].numel() for parameter in model.parameters() if parameter.dim() > 1)
    return math.sqrt(longest) * torch.finfo(dtype).eps


@dataclass(frozen=True)
class FirstSteps:
    """The costs of the first steps in float64, ``nudged`` those of native from weights changed by one unit in the
    last place, and ``rounding`` by :func:`rounding_of`."""

    seed: int
    ours: tuple[float, ...]
    native: tuple[float, ...]
    nudged: tuple[float, ...]
    rounding: float

    @property
    def differences(self) -> list[float]:
        return [abs(a - b) for a, b in zip(self.ours, self.native, strict=True)]

    @property
    def allowed(self) -> list[float]:
        """For each judged step: so many times the farthest that native has come from itself, or one cost's rounding.

        Judged are the first, and all until native has come farther than GROWN from itself, or is not finite.
        """
        limits, farthest = [], 0.0
        for a, b in zip(self.native, self.nudged, strict=True):
            scale = max(1.0, abs(a))
            farthest = max(farthest, abs(a - b), self.rounding * scale)
            if limits and not (math.isfinite(a - b) and farthest <= GROWN * scale):
                break
            limits.append(STEPS_ALLOWANCE * farthest)
        return limits

    @property
    def broken(self) -> int | None:
        """The first judged step, from 1, whose difference is more than allowed."""
        pairs = zip(self.differences, self.allowed, strict=False)
        return next((n for n, (apart, limit) in enumerate(pairs, 1) if not apart <= limit), None)

    @property
    def failure(self) -> str | None:
        if self.broken is None:
            return None
        n = self.broken - 1
        return (
            f"Seed {self.seed}, float64: at step {self.broken} from the same weights the cost of ours is "
            f"{self.ours[n]:.10g} and native's {self.native[n]:.10g}; they differ by {self.differences[n]:.2g}, and "
            f"rounding explains {self.allowed[n]:.2g}."
        )


@dataclass(frozen=True)
class SameWeights:
    """Relative errors of one layer's gradient against native's in float64, ‖g − g64‖ / ‖g64‖, at the weights of ours.

    Each is the median of some batches, which a single value on the wrong side of a kink does not move. ``rounding``
    is the least that native may be taken to err by: ε; in float64, where native is its own measure, √n ε.
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
        return GRADIENT_ALLOWANCE * max(self.rounding, self.native)

    @property
    def failure(self) -> str | None:
        if self.ours <= self.allowed:
            return None
        when = "before the first step" if self.epoch == 0 else f"after epoch {self.epoch}"
        return (
            f"Seed {self.seed}, {self.layer}, {when}: at the same weights the gradient of ours is off by "
            f"{self.ours:.2g} relative to native's in float64, native's own by {self.native:.2g}; rounding explains "
            f"{self.allowed:.2g}."
        )


@dataclass(frozen=True)
class Zeros:
    """Numbers that a ReLU was given, how many were exactly 0, and how many of those met a gradient other than 0."""

    seed: int
    epoch: int
    layer: str
    values: int
    zeros: int
    met: int


def gradients_at(
    model: DocumentCNN, batches: Sequence[tuple[Tensor, Tensor]], seed: int, epoch: int
) -> list[SameWeights]:
    """Every layer's gradient on each of ``batches``, (x, labels), of the model, its twin, and the twin in float64."""
    dtype = next(model.parameters()).dtype
    twin, oracle = native_twin(model), native_twin(model).double()
    errors: dict[str, list[tuple[float, float]]] = {}
    for x, labels in batches:
        ours = _gradients(model, softmax_cross_entropy, x, labels)
        native, exact = (
            from_native(_gradients(network, F.cross_entropy, x.to(kind), labels), model)
            for network, kind in ((twin, dtype), (oracle, torch.float64))
        )
        for layer in layers_of(exact):
            true = joined(exact, layer)
            scale = max(true.norm().item(), torch.finfo(torch.float64).tiny)
            pair = tuple((joined(each, layer) - true).norm().item() / scale for each in (ours, native))
            errors.setdefault(layer, []).append(pair)
    rounding = rounding_of(model, dtype) if dtype == torch.float64 else torch.finfo(dtype).eps
    return [
        SameWeights(seed, epoch, layer, len(batches), *(_median(each) for each in zip(*pairs, strict=True)), rounding)
        for layer, pairs in errors.items()
    ]


def zeros_at(unfused: DocumentCNN, batches: Sequence[tuple[Tensor, Tensor]], seed: int, epoch: int) -> list[Zeros]:
    """The zeros that reach each ReLU of ``unfused``, a network whose ReLUs are layers of their own."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    hooks = [
        layer.register_forward_hook(_keep(seen.setdefault(name, [])))
        for name, layer in unfused.named_children()
        if isinstance(layer, ReLU)
    ]
    counts = {name: [0, 0, 0] for name in seen}
    for x, labels in batches:
        unfused.zero_grad()
        softmax_cross_entropy(unfused(x), labels).backward()
        for name, kept in seen.items():
            z, output = kept.pop()
            zero = z == 0
            for n, count in enumerate((z.numel(), zero.sum().item(), (zero & (output.grad != 0)).sum().item())):
                counts[name][n] += count
    for hook in hooks:
        hook.remove()
    return [Zeros(seed, epoch, name, *three) for name, three in counts.items()]


def layers_of(named: dict[str, Tensor]) -> list[str]:
    """The layers that parameters belong to, in order."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in named))


def joined(named: dict[str, Tensor], layer: str) -> Tensor:
    """All numbers of one layer's weight and bias in a row, in float64."""
    return torch.cat([t.detach().double().flatten() for name, t in named.items() if name.rpartition(".")[0] == layer])


def _median(errors: Sequence[float]) -> float:
    """With NaN counted as infinitely wrong, since sorting has no place for it."""
    return median(math.inf if math.isnan(error) else error for error in errors)


def _gradients(network: nn.Module, cost: Callable[..., Tensor], x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    cost(network(x), labels).backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


def _keep(kept: list[tuple[Tensor, Tensor]]) -> Callable[..., None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        kept.append((inputs[0].detach(), output))

    return hook
