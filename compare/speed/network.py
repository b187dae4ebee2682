"""The network whose training steps are timed: its weights, batches, updates, and native's loss and gradients.

Every contender updates all parameters by one call of ``torch._foreach_add_``. The learning rate is so small that
thousands of steps on one batch do not move the weights, and no number becomes denormal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from compare.native_network import from_native
from compare.random_state import seeded
from manualgrad import DocumentCNN

LEARNING_RATE = 1e-9


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
