"""A plan as models and Functions see it, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from manualgrad.network.layers import NetworkSpec


@dataclass(frozen=True)
class LossAndSteps:
    """Results of :meth:`NetworkPlan.loss_and_grads`.

    Attributes:
        probabilities: S(z^{L−1}), (N, classes).
        loss: J, ().
        steps: the factor times the gradient of each weight and bias, in the order of the parameters.
        workspace: memory of the tensors between the layers.
    """

    probabilities: Tensor
    loss: Tensor
    steps: list[Tensor]
    workspace: Tensor


class Intermediates(NamedTuple):
    """Tensors between the layers.

    Attributes:
        inputs: x^l for l = 1 to L − 1: (N, H, W, C_in) of a convolution, (N, in_features) of a dense layer.
        pool_indices: (N, C_out, H_out, W_out) uint8 of each convolution.
        grad_outputs: for l = 0 to L − 1, δ^l of a dense layer, or the gradient of a convolution's pooled output,
            (N, C_out, H_out, W_out), to which P⁻¹ and R' have not been applied.
    """

    inputs: list[Tensor]
    pool_indices: list[Tensor]
    grad_outputs: list[Tensor]


class NetworkPlan(Protocol):
    """Kernels for one network and one batch size. ``plan.py`` has it for the CPU, ``cuda_plan.py`` for CUDA.

    Tensors are float32 on the device. ``parameters`` are the weight and bias of each layer in turn, ``weights`` every
    second one of them.
    """

    network: NetworkSpec
    batch_size: int

    def supports(self, x: Tensor, parameters: Sequence[Tensor]) -> bool:
        """Return True if the kernels can read ``x``, of any strides, and ``parameters``."""
        ...

    def forward(self, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
        """z^{L−1}, (N, classes), and the workspace that :meth:`backward` needs besides x and the weights.

        None if the formulas have to compute them."""
        ...

    def backward(self, g: Tensor, x: Tensor, saved: Tensor, weights: Sequence[Tensor]) -> list[Tensor] | None:
        """∂J/∂w and ∂J/∂b of each layer from ``g``, ∂J/∂z^{L−1}; None if the formulas have to compute them."""
        ...

    def loss_and_grads(
        self, x: Tensor, labels: Tensor, parameters: Sequence[Tensor], factor: float, *, update: bool = False
    ) -> LossAndSteps | None:
        """The mean loss and ``factor`` times its gradient, which ``update`` also adds to the parameters.

        None if the formulas have to compute them; the parameters are unchanged then."""
        ...

    def scale_grads(self, grads: list[Tensor], g: Tensor) -> list[Tensor] | None:
        """``grads`` times ``g``, the gradient of the loss, in an engine's backward; None if formulas have to."""
        ...

    def intermediates(self, result: LossAndSteps) -> Intermediates:
        """Tensors between the layers in the workspace of ``result``."""
        ...


def saved_tensor_error(actual: Tensor, name: str, shape: torch.Size, dtype: torch.dtype, contiguous: str) -> str:
    """The message for a tensor that is not what it was in forward; ``contiguous`` is "contiguous " or ""."""
    return (
        f"manualgrad: a saved tensor was modified between forward and backward: expected {name} to be "
        f"{contiguous}{_describe(dtype, shape)}, got {_describe(actual.dtype, actual.shape)} with strides "
        f"{tuple(actual.stride())}"
    )


def _describe(dtype: torch.dtype, shape: torch.Size) -> str:
    return f"{str(dtype).removeprefix('torch.')} of shape {tuple(shape)}"
