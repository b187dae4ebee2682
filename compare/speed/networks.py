"""One step of training of the whole network: forward, backward and w − η ∂J/∂w, by each who can do it.

The update is one call for all parameters, ``torch._foreach_add_``, on every side. η is so small that thousands of
steps on one batch leave the weights where they were, and no number becomes denormal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from compare.native import from_native, native_twin
from compare.speed import check as speed_check
from manualgrad import DocumentCNN, backprop, kernels

ETA = 1e-9

OURS, DOCUMENT = "manualgrad", "manualgrad, document's engine"
FORMULAS, AVX2 = "manualgrad, formulas only", "manualgrad, AVX2 only"
NATIVE = {"contiguous": "PyTorch, contiguous", "channels_last": "PyTorch, channels_last"}
COMPILED = {layout: f"{name}, compiled" for layout, name in NATIVE.items()}


@dataclass(frozen=True)
class Network:
    """``DocumentCNN`` with these ``channels``, on ``batch`` images of 28×28."""

    channels: tuple[int, ...]
    batch: int

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.channels))}), batch {self.batch}"

    def model(self, subgradient: float = 0.5) -> DocumentCNN:
        """With the same weights at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return DocumentCNN(channels=self.channels, subgradient=subgradient)

    def batch_of(self, seed: int, whole_numbers: bool) -> tuple[Tensor, Tensor]:
        """Images (batch, 1, 28, 28) of mean 0 and standard deviation 1, or near it, and labels."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.batch, 1, 28, 28, generator=generator)
        return x.round() if whole_numbers else x, torch.randint(10, (self.batch,), generator=generator)


def switches() -> dict[str, Callable[[], AbstractContextManager]]:
    """Other ways to run our step in the same process: the name of the contender, and what switches it on. Without
    kernels there is none."""
    used = kernels.available().instructions
    if used is None:
        return {}
    return {FORMULAS: partial(choosing, "off", used)} | (
        {AVX2: partial(choosing, "avx2", used)} if used == "avx512" else {}
    )


@contextmanager
def choosing(name: str, afterwards: str) -> Iterator[None]:
    """Other kernels for a while."""
    kernels.choose(name)
    try:
        yield
    finally:
        kernels.choose(afterwards)


def contenders() -> list[str]:
    """Those that run in one process: ours, then native."""
    return [OURS, DOCUMENT, *switches(), *NATIVE.values()]


def contender(name: str, network: Network, device: str) -> Contender:
    """Whoever is called ``name``, ready on ``device``."""
    for layout in NATIVE:
        if name in (NATIVE[layout], COMPILED[layout]):
            return Native(network, device, layout, compiled=name == COMPILED[layout])
    if name == DOCUMENT:
        return Document(network, device)
    return Autograd(network, device, switches().get(name, nullcontext))


class Contender(ABC):
    """``step`` is timed, ``wrong`` is asked before; ``phases`` names what is between the marks of a step."""

    phases: tuple[str, ...]
    subgradient: float

    def __init__(self, network: Network, device: str) -> None:
        self.network, self.device = network, device
        self.model = network.model(self.subgradient).to(device)
        self.x, self.target = self.placed(*network.batch_of(0, whole_numbers=False))

    def placed(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return x.to(self.device), target.to(self.device)

    @abstractmethod
    def step(self, mark: Callable[[], None]) -> None:
        """One step of training."""

    @abstractmethod
    def answers(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The cost, and the gradients under their names, in the document's convention."""

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        self.model.load_state_dict(weights)

    def saved_of(self) -> tuple[Callable[[], Tensor], list[Tensor]] | None:
        """The forward pass, and the tensors that the caller holds anyway; None: autograd saves nothing here."""
        return None

    def wrong(self) -> list[str]:
        """What is wrong with the answers, in sentences. The weights are afterwards as they were."""
        weights = {name: tensor.clone() for name, tensor in self.network.model().state_dict().items()}
        found = []
        for whole_numbers in (True, False):
            self.set_weights(whole_weights(weights) if whole_numbers else weights)
            x, target = self.network.batch_of(int(whole_numbers), whole_numbers)
            got = self.answers(*self.placed(x, target))
            right = self._oracle(x.to(self.device), target.to(self.device))
            limit = speed_check.tolerance(self.network.batch * 24 * 24, self.device)
            allowed = dict.fromkeys(right, limit if whole_numbers else speed_check.NEAR_TIES) | {"cost": limit}
            label = "whole numbers" if whole_numbers else "drawn numbers"
            found += [f"{sentence} ({label})" for sentence in speed_check.mistakes(got, right, allowed)]
        return found

    def _oracle(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        model = self.network.model(self.subgradient).to(self.device)
        model.load_state_dict(self.weights())
        return native_answers(native_twin(model.double()), model, x.double(), target)

    def weights(self) -> dict[str, Tensor]:
        return self.model.state_dict()


class Trained(Contender):
    """Whoever is differentiated by ``torch.autograd``: ``cost`` of images and labels, from ``parameters``."""

    phases = ("forward", "backward", "update")
    parameters: list[nn.Parameter]
    cost: Callable[[Tensor, Tensor], Tensor]

    def step(self, mark: Callable[[], None]) -> None:
        forget(self.parameters)
        mark()
        cost = self.cost(self.x, self.target)
        mark()
        cost.backward()
        mark()
        descend(self.parameters)
        mark()

    def saved_of(self) -> tuple[Callable[[], Tensor], list[Tensor]]:
        return lambda: self.cost(self.x, self.target), [self.x, self.target, *self.parameters]


class Autograd(Trained):
    """``DocumentCNN`` under ``torch.autograd``; ``switch`` is entered around every step."""

    subgradient = 0.5

    def __init__(self, network: Network, device: str, switch: Callable[[], AbstractContextManager]) -> None:
        super().__init__(network, device)
        self.switch, self.parameters = switch, list(self.model.parameters())

    def cost(self, x: Tensor, target: Tensor) -> Tensor:
        return self.model.cost(x, target)

    def step(self, mark: Callable[[], None]) -> None:
        with self.switch():
            super().step(mark)

    def answers(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        with self.switch():
            forget(self.parameters)
            cost = self.cost(x, target)
            cost.backward()
        return {"cost": cost.detach()} | {name: p.grad for name, p in self.model.named_parameters()}

    def saved_of(self) -> tuple[Callable[[], Tensor], list[Tensor]]:
        forward, held = super().saved_of()

        def switched() -> Tensor:
            with self.switch():
                return forward()

        return switched, held


class Document(Contender):
    """``backprop.descend``: all of a step is one call."""

    phases = ("all at once",)
    subgradient = 0.5

    def step(self, mark: Callable[[], None]) -> None:
        mark()
        backprop.descend(self.model, self.x, self.target, eta=ETA)
        mark()

    def answers(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        before = {name: weight.clone() for name, weight in self.weights().items()}
        steps = backprop.descend(self.model, x, target, eta=-1)
        found = {name: weight - before[name] for name, weight in self.weights().items()}
        self.model.load_state_dict(before)
        return {"cost": steps.cost} | found


class Native(Trained):
    """The same network of ``torch.nn``, with ``nn.ReLU``; compiled are the network and the cost as one."""

    subgradient = 0.0  # nn.ReLU, which is faster than the maximum that has the document's 1/2

    def __init__(self, network: Network, device: str, layout: str, compiled: bool) -> None:
        self.format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        super().__init__(network, device)
        self.twin = native_twin(self.model).to(memory_format=self.format)
        self.parameters = list(self.twin.parameters())

        def cost(x: Tensor, target: Tensor) -> Tensor:
            return cross_entropy(self.twin(x), target)

        self.cost = torch.compile(cost, dynamic=False) if compiled else cost

    def placed(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return x.to(self.device).contiguous(memory_format=self.format), target.to(self.device)

    def answers(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        forget(self.parameters)
        cost = self.cost(x, target)
        cost.backward()
        gradients = {name: p.grad for name, p in self.twin.named_parameters()}
        return {"cost": cost.detach()} | from_native(gradients, self.model)

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        self.model.load_state_dict(weights)
        self.twin.load_state_dict(native_twin(self.model).state_dict())


def forget(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


@torch.no_grad()
def descend(parameters: list[nn.Parameter]) -> None:
    torch._foreach_add_(parameters, [parameter.grad for parameter in parameters], alpha=-ETA)


def native_answers(twin: nn.Module, model: DocumentCNN, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The cost and the gradients by ``twin``, under ``model``'s names and in its convention."""
    cost = cross_entropy(twin(x), target)
    gradients = torch.autograd.grad(cost, list(twin.parameters()))
    named = {name: gradient for (name, _), gradient in zip(twin.named_parameters(), gradients, strict=True)}
    return {"cost": cost.detach()} | from_native(named, model)


def whole_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """−1, 0 and 1 times a power of two that keeps the numbers of every layer near 1: products and sums are exact."""
    generator = torch.Generator().manual_seed(2)
    exact = {}
    for name, weight in weights.items():
        values = torch.randint(-1, 2, weight.shape, generator=generator).float()
        if weight.dim() > 1:
            values *= 2.0 ** -round(torch.tensor(weight[0].numel() * 2 / 3).sqrt().log2().item())
        exact[name] = values.to(weight)
    return exact
