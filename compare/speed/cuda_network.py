"""The network for the comparison of speed on CUDA: one training step of ``DocumentCNN``, with its update.

Contenders are those of the comparison on the CPU: ours through autograd, the formula sheet's recursion
(``backprop.descend``), formulas without kernels; native in both memory formats, and compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from compare.native_network import native_twin
from compare.speed.contenders import AutogradContender, NativeContender, OurContender, kernels_chosen
from compare.speed.cuda_subjects import DEEP_TOLERANCE, Step, Subject
from compare.speed.network import LEARNING_RATE, Network, native_loss_and_grads
from manualgrad import backprop, kernels
from manualgrad.cpu import instruction_set

AUTOGRAD, ENGINE, FORMULAS = "autograd", "document's engine", "formulas"
BATCHES = (1, 64, 512, 4096)


def network_subject(batch: int, device: str) -> Subject:
    """A step of ``DocumentCNN`` on ``batch`` images. Its results are the gradients, checked against float64."""
    network = Network((16, 32), batch)

    def make(side: str, variant: str, compiled: bool) -> Step | None:
        if side == "native":
            return _autograd_step(NativeContender(network, device, variant, compiled))
        if compiled:
            return None  # the plan is compiled already
        if variant == ENGINE:
            return _engine_step(network, device)
        if variant == AUTOGRAD:
            return _autograd_step(OurContender(network, device, nullcontext))
        chosen = kernels.available().instructions or ("off" if instruction_set.switched_off() else "auto")
        return _autograd_step(OurContender(network, device, partial(kernels_chosen, "off", chosen)))

    def expected(side: str, variant: str) -> Sequence[Tensor]:
        """Gradients in float64, in the order and convention of the contender."""
        model = network.make_model().to(device)
        x, labels = (tensor.to(device) for tensor in network.random_batch(0, whole_numbers=False))
        twin = native_twin(model.double())
        if side == "native":
            loss = cross_entropy(twin(x.double()), labels)
            return torch.autograd.grad(loss, list(twin.parameters()))
        named = native_loss_and_grads(twin, model, x.double(), labels)
        factor = -LEARNING_RATE if variant == ENGINE else 1.0
        return [factor * named[name] for name, _ in model.named_parameters()]

    return Subject(
        f"DocumentCNN, batch {batch}", make, None, tolerance=DEEP_TOLERANCE, expected=expected, batch=batch,
        our_layouts=(AUTOGRAD, ENGINE, FORMULAS),
    )  # fmt: skip


def _autograd_step(contender: AutogradContender) -> Step:
    def step() -> list[Tensor]:
        contender.step(lambda: None)
        return [parameter.grad for parameter in contender.parameters if parameter.grad is not None]

    return step


def _engine_step(network: Network, device: str) -> Step:
    model = network.make_model().to(device)
    x, labels = (tensor.to(device) for tensor in network.random_batch(0, whole_numbers=False))

    def step() -> list[Tensor]:
        updates = backprop.descend(model, x, labels, eta=LEARNING_RATE)
        return [tensor for layer in zip(updates.weights, updates.biases, strict=True) for tensor in layer]

    return step
