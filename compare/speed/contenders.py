"""Contenders: implementations of one training step of the whole network, forward, backward and w − η ∂J/∂w.

Every contender updates all parameters by one call of ``torch._foreach_add_``. The learning rate is so small that
thousands of steps on one batch do not move the weights, and no number becomes denormal.
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

from compare.native_network import from_native, native_twin
from compare.random_state import seeded
from compare.speed import correctness
from manualgrad import DocumentCNN, backprop, kernels

LEARNING_RATE = 1e-9

OURS, RECURSION = "manualgrad", "manualgrad, delta recursion"
FORMULAS, AVX2 = "manualgrad, formulas only", "manualgrad, AVX2 only"
NATIVE = {"contiguous": "PyTorch, contiguous", "channels_last": "PyTorch, channels_last"}
COMPILED = {layout: f"{name}, compiled" for layout, name in NATIVE.items()}


@dataclass(frozen=True)
class Network:
    """``DocumentCNN`` with these ``channels``, and a batch of ``batch`` images of 28×28."""

    channels: tuple[int, ...]
    batch: int

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.channels))}), batch {self.batch}"

    def make_model(self, subgradient: float = 0.5) -> DocumentCNN:
        """Build the model, with the same weights at every call."""
        with seeded(0):
            return DocumentCNN(channels=self.channels, subgradient=subgradient)

    def random_batch(self, seed: int, whole_numbers: bool) -> tuple[Tensor, Tensor]:
        """Draw images (batch, 1, 28, 28) with mean 0 and standard deviation 1, rounded if asked, and labels."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.batch, 1, 28, 28, generator=generator)
        return x.round() if whole_numbers else x, torch.randint(10, (self.batch,), generator=generator)


def kernel_choices() -> dict[str, Callable[[], AbstractContextManager[None]]]:
    """Contenders that are our step with other kernels: by name, a context in which these kernels are chosen.

    Empty where our kernels are not available.
    """
    used = kernels.available().instructions
    if used is None:
        return {}
    return {FORMULAS: partial(kernels_chosen, "off", used)} | (
        {AVX2: partial(kernels_chosen, "avx2", used)} if used == "avx512" else {}
    )


@contextmanager
def kernels_chosen(name: str, afterwards: str) -> Iterator[None]:
    """Choose the kernels ``name`` inside the context, ``afterwards`` when it ends."""
    kernels.choose(name)
    try:
        yield
    finally:
        kernels.choose(afterwards)


def contender_names() -> list[str]:
    """Names of the contenders that run together in one process: ours first, then native."""
    return [OURS, RECURSION, *kernel_choices(), *NATIVE.values()]


def make_contender(name: str, network: Network, device: str) -> Contender:
    """Build the contender called ``name`` on ``device``."""
    for layout in NATIVE:
        if name in (NATIVE[layout], COMPILED[layout]):
            return NativeContender(network, device, layout, compiled=name == COMPILED[layout])
    if name == RECURSION:
        return RecursionContender(network, device)
    return OurContender(network, device, kernel_choices().get(name, nullcontext))


class Contender(ABC):
    """Implementation of a training step. ``phases`` names the phases between the marks of :meth:`step`."""

    phases: tuple[str, ...]
    subgradient: float

    def __init__(self, network: Network, device: str) -> None:
        self.network, self.device = network, device
        self.model = network.make_model(self.subgradient).to(device)
        self.x, self.target = self.to_device(*network.random_batch(0, whole_numbers=False))

    def to_device(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Move images and labels to the device, in the contender's memory layout."""
        return x.to(self.device), target.to(self.device)

    @abstractmethod
    def step(self, mark: Callable[[], None]) -> None:
        """Do one training step; this is what is timed."""

    @abstractmethod
    def loss_and_grads(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Loss under "loss", and gradients under the names and in the convention of ``DocumentCNN``."""

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Copy ``weights``, in the convention of ``DocumentCNN``, to the network."""
        self.model.load_state_dict(weights)

    def forward_and_held_tensors(self) -> tuple[Callable[[], Tensor], list[Tensor]] | None:
        """The forward pass, and the tensors that the caller holds anyway; None if autograd saves nothing."""
        return None

    def find_mismatches(self) -> list[str]:
        """Compare loss and gradients with native's in float64; return a sentence for each that is wrong.

        The weights are restored afterwards.
        """
        weights = {name: tensor.clone() for name, tensor in self.network.make_model().state_dict().items()}
        mismatches = []
        for whole_numbers in (True, False):
            self.set_weights(exact_weights(weights) if whole_numbers else weights)
            x, target = self.network.random_batch(int(whole_numbers), whole_numbers)
            actual = self.loss_and_grads(*self.to_device(x, target))
            expected = self._oracle(x.to(self.device), target.to(self.device))
            limit = correctness.rounding_tolerance(self.network.batch * 24 * 24, self.device)
            grad_limit = limit if whole_numbers else correctness.NEAR_TIE_TOLERANCE
            tolerance = dict.fromkeys(expected, grad_limit) | {"loss": limit}
            data = "whole numbers" if whole_numbers else "random numbers"
            sentences = correctness.describe_mismatches(actual, expected, tolerance)
            mismatches += [f"{sentence} ({data})" for sentence in sentences]
        return mismatches

    def _oracle(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        model = self.network.make_model(self.subgradient).to(self.device)
        model.load_state_dict(self.weights())
        return native_loss_and_grads(native_twin(model.double()), model, x.double(), target)

    def weights(self) -> dict[str, Tensor]:
        """The weights in the convention of ``DocumentCNN``."""
        return self.model.state_dict()


class AutogradContender(Contender):
    """Contender whose ``loss`` of images and labels ``torch.autograd`` differentiates by ``parameters``."""

    phases = ("forward", "backward", "update")
    parameters: list[nn.Parameter]
    loss: Callable[[Tensor, Tensor], Tensor]

    def step(self, mark: Callable[[], None]) -> None:
        clear_grads(self.parameters)
        mark()
        loss = self.loss(self.x, self.target)
        mark()
        loss.backward()
        mark()
        sgd_update(self.parameters)
        mark()

    def forward_and_held_tensors(self) -> tuple[Callable[[], Tensor], list[Tensor]]:
        return lambda: self.loss(self.x, self.target), [self.x, self.target, *self.parameters]


class OurContender(AutogradContender):
    """``DocumentCNN`` under ``torch.autograd``; the context ``choose_kernels`` is entered around every step."""

    subgradient = 0.5

    def __init__(
        self, network: Network, device: str, choose_kernels: Callable[[], AbstractContextManager[None]]
    ) -> None:
        super().__init__(network, device)
        self.choose_kernels, self.parameters = choose_kernels, list(self.model.parameters())

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """J of images (N, 1, H, W) and labels (N,)."""
        return self.model.cost(x, target)

    def step(self, mark: Callable[[], None]) -> None:
        with self.choose_kernels():
            super().step(mark)

    def loss_and_grads(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        with self.choose_kernels():
            clear_grads(self.parameters)
            loss = self.loss(x, target)
            loss.backward()
        return {"loss": loss.detach()} | {name: p.grad for name, p in self.model.named_parameters()}

    def forward_and_held_tensors(self) -> tuple[Callable[[], Tensor], list[Tensor]]:
        forward, held = super().forward_and_held_tensors()

        def forward_with_kernels() -> Tensor:
            with self.choose_kernels():
                return forward()

        return forward_with_kernels, held


class RecursionContender(Contender):
    """``backprop.descend``, the recursion of δ: the whole step is one call."""

    phases = ("all at once",)
    subgradient = 0.5

    def step(self, mark: Callable[[], None]) -> None:
        mark()
        backprop.descend(self.model, self.x, self.target, eta=LEARNING_RATE)
        mark()

    def loss_and_grads(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        before = {name: weight.clone() for name, weight in self.weights().items()}
        steps = backprop.descend(self.model, x, target, eta=-1)
        grads = {name: weight - before[name] for name, weight in self.weights().items()}
        self.model.load_state_dict(before)
        return {"loss": steps.cost} | grads


class NativeContender(AutogradContender):
    """The same network of ``torch.nn`` layers, with ``nn.ReLU``. If compiled, network and loss are one function."""

    subgradient = 0.0  # nn.ReLU, which is faster than the maximum whose derivative at 0 is 1/2

    def __init__(self, network: Network, device: str, layout: str, compiled: bool) -> None:
        self.format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        super().__init__(network, device)
        self.twin = native_twin(self.model).to(memory_format=self.format)
        self.parameters = list(self.twin.parameters())

        def loss(x: Tensor, target: Tensor) -> Tensor:
            return cross_entropy(self.twin(x), target)

        self.loss = torch.compile(loss, dynamic=False) if compiled else loss

    def to_device(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return x.to(self.device).contiguous(memory_format=self.format), target.to(self.device)

    def loss_and_grads(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        clear_grads(self.parameters)
        loss = self.loss(x, target)
        loss.backward()
        gradients = {name: p.grad for name, p in self.twin.named_parameters()}
        return {"loss": loss.detach()} | from_native(gradients, self.model)

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        self.model.load_state_dict(weights)
        self.twin.load_state_dict(native_twin(self.model).state_dict())


def clear_grads(parameters: list[nn.Parameter]) -> None:
    """Set every ``grad`` to None."""
    for parameter in parameters:
        parameter.grad = None


@torch.no_grad()
def sgd_update(parameters: list[nn.Parameter]) -> None:
    """Take one step of plain gradient descent."""
    torch._foreach_add_(parameters, [parameter.grad for parameter in parameters], alpha=-LEARNING_RATE)


def native_loss_and_grads(twin: nn.Module, model: DocumentCNN, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Loss and gradients of ``twin``, under the names and in the convention of ``model``."""
    loss = cross_entropy(twin(x), target)
    gradients = torch.autograd.grad(loss, list(twin.parameters()))
    named = {name: gradient for (name, _), gradient in zip(twin.named_parameters(), gradients, strict=True)}
    return {"loss": loss.detach()} | from_native(named, model)


def exact_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Draw weights −1, 0 and 1 times a power of two: products and sums are exact, and outputs stay near 1."""
    generator = torch.Generator().manual_seed(2)
    exact = {}
    for name, weight in weights.items():
        values = torch.randint(-1, 2, weight.shape, generator=generator).float()
        if weight.dim() > 1:
            values *= 2.0 ** -round(torch.tensor(weight[0].numel() * 2 / 3).sqrt().log2().item())
        exact[name] = values.to(weight)
    return exact
