"""Models whose forward decides anew in every call which functions it calls."""

from __future__ import annotations

import functools
import os
import random
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import relu as activate
from torch.utils.checkpoint import checkpoint

FLAGS = {"double": False}


ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu}


class Base(nn.Module):
    """A layer, attributes that may change after the conversion, and a method with a call."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.dropout, self.scale, self.calls = nn.Linear(3, 3), nn.Dropout(0.5), 1, 0
        self.activation, self.activations = F.relu, [F.relu, torch.tanh]

    def part(self, x: Tensor) -> Tensor:
        return F.relu(self.f(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


def decides_by(decide: Callable[[Base, Tensor], object]) -> type[Base]:
    """A module whose forward doubles its result if ``decide(module, x)`` is true."""

    class Decides(Base):
        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.f(x))
            return h * 2 if decide(self, x) else h

    return Decides


DECISIONS = {
    "NumPy's random numbers": lambda m, x: np.random.rand() < 0.5,
    "Python's random numbers": lambda m, x: random.random() < 0.5,
    "torch's random numbers": lambda m, x: torch.rand(()).item() < 0.5,
    "a tensor of random numbers": lambda m, x: torch.rand(2)[0] < 0.5,
    "gradient mode": lambda m, x: torch.is_grad_enabled(),
    "inference mode": lambda m, x: torch.is_inference_mode_enabled(),
    "autocast": lambda m, x: torch.is_autocast_enabled("cpu"),
    "type": lambda m, x: type(x) is torch.Tensor,
    "isinstance": lambda m, x: isinstance(x, Tensor),
    "hasattr": lambda m, x: hasattr(x, "parts"),
    "callable": lambda m, x: callable(x),
    "len": lambda m, x: len(x) > 2,
    "shape": lambda m, x: x.shape[0] > 2,
    "a value": lambda m, x: x.sum() > 0,
    "NaN": lambda m, x: torch.isnan(x).any().item(),
    "requires_grad": lambda m, x: x.requires_grad,
    "dtype": lambda m, x: x.dtype == torch.float64,
    "tracing": lambda m, x: torch.jit.is_tracing(),
    "compiling": lambda m, x: torch.compiler.is_compiling(),
    "training mode": lambda m, x: m.training,
    "another module's training mode": lambda m, x: m.dropout.training,
    "an attribute": lambda m, x: m.scale > 1,
    "a global": lambda m, x: FLAGS["double"],
    "an environment variable": lambda m, x: "MANUALGRAD_TEST_DOUBLE" in os.environ,
    "the time": lambda m, x: time.time() > 1,
}


class Counts(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        FLAGS["calls"] = self.calls
        return F.relu(self.f(x)) * self.calls


class WithoutGradient(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = F.relu(x)
        return y + F.relu(self.f(x))


class WithAutocast(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=x.dtype == torch.float32):
            return F.relu(self.f(x))


class Noise(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.f(x) + torch.randn(1, dtype=x.dtype)) * random.random()


class Checkpointed(Base):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.part, x, use_reentrant=False)


class CheckpointedClosure(Base):
    def forward(self, x: Tensor) -> Tensor:
        def part(x: Tensor) -> Tensor:
            return F.relu(self.f(x)) + super(CheckpointedClosure, self).forward(x)

        return checkpoint(part, x, use_reentrant=True) + checkpoint(lambda x: F.relu(x), x, use_reentrant=False)


class Super(Base):
    def part(self, x: Tensor) -> Tensor:
        return super().part(x) * 2

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Decorated(Base):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.f(x))


def twice(function: Callable) -> Callable:
    @functools.wraps(function)
    def call(*args: object) -> object:
        return function(*args) * 2

    return call


class DecoratedTwice(Base):
    @twice
    @twice
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.f(x))


@torch.fx.wrap
def helper(x: Tensor, depth: int = 2) -> Tensor:
    return helper(x - 0.1, depth - 1) if depth else F.relu(x)


class CallsHelper(Base):
    def forward(self, x: Tensor) -> Tensor:
        return helper(self.f(x))


class Methods(Base):
    @property
    def relu_of_weight(self) -> Tensor:
        return F.relu(self.f.weight)

    @staticmethod
    def static(x: Tensor) -> Tensor:
        return F.relu(x)

    @classmethod
    def of_class(cls, x: Tensor) -> Tensor:
        return cls.static(x) + activate(x)

    def __private(self, x: Tensor) -> Iterator[Tensor]:
        yield from (F.relu(x + i) for i in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.of_class(x) + Methods.static(x) + self.relu_of_weight.sum() + sum(self.__private(x))


class Held(Base):
    def forward(self, x: Tensor) -> Tensor:
        for function in self.activations:
            x = function(self.activation(x))
        return ACTIVATIONS["relu"](x) + ACTIVATIONS["gelu"](x)


class Default(Base):
    def forward(self, x: Tensor, activation: Callable = F.relu) -> Tensor:
        return activation(self.f(x))


class HoldsChild(Base):
    """Layers under the names of methods of tensors, and a child whose other method is called."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.flatten, self.child = nn.ReLU(), nn.Flatten(), Base()

    def forward(self, x: Tensor) -> Tensor:
        return self.flatten(self.relu(x)) + self.child.part(x)


KINDS = {name: decides_by(decide) for name, decide in DECISIONS.items()} | {
    kind.__name__: kind
    for kind in (Counts, WithoutGradient, WithAutocast, Noise, Checkpointed, CheckpointedClosure, Super, Decorated,
                 DecoratedTwice, CallsHelper, Methods, Held, Default, HoldsChild)
}  # fmt: skip
