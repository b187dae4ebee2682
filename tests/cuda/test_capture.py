"""Promise: a training step on CUDA reads no value of a tensor, so that a CUDA graph can capture it.

Without a GPU a dispatch mode stands for the capture: it refuses the operators that wait for a GPU or copy numbers to
it, and tensors of the CPU count as a GPU's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import manualgrad as mg
from manualgrad import kernels, tensor_checks

aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select, aten._unique2,
    aten.lift_fresh,  # the numbers of a list, copied to the device
}  # fmt: skip


class RefuseToWait(TorchDispatchMode):
    """Raises an error for each operator that a CUDA graph cannot capture."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.overloadpacket in WAITING:
            raise RuntimeError(f"cannot be captured: {func}")
        return func(*args, **kwargs or {})


def model_and_inputs(device: str) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    model = torch.nn.Sequential(
        mg.nn.ConvReLUMaxPool2d(1, 2, 3), mg.nn.Conv2d(2, 2, 3, padding=1, stride=(1, 2)), mg.nn.ReLU(),
        mg.nn.MaxPool2d(3, 2, 1), mg.nn.ConvReLUMaxPool2d(2, 3, 1), mg.nn.Flatten(), mg.nn.Dense(3, 4),
    ).to(device)  # fmt: skip
    return model, torch.randn(2, 1, 14, 14, device=device), torch.tensor([3, -100], device=device)


def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss with each of its options, of labels and of probabilities."""
    weight, y = torch.ones(4, device=logits.device), torch.softmax(logits.detach(), -1)
    return (
        mg.softmax_cross_entropy(logits, labels)
        + mg.softmax_cross_entropy(logits, labels, weight, label_smoothing=0.1, reduction="sum")
        + mg.softmax_cross_entropy(logits, y, weight)
        + mg.softmax_cross_entropy(logits.detach(), labels.clamp(min=7), reduction="sum").nan_to_num()  # no class
        + mg.softmax(logits).square().sum()
    )


@pytest.mark.parametrize("computed_by", ["kernels", "formulas"])
def test_a_step_can_be_captured(kernel_device, launches, monkeypatch, restore_kernels, computed_by) -> None:
    model, x, labels = model_and_inputs(kernel_device)
    if kernel_device == "cpu":
        monkeypatch.setattr(tensor_checks, "HOST_DEVICES", ())
        monkeypatch.setattr(tensor_checks, "dispatch_mode_count", lambda: 0)  # kernels run under the mode
    if computed_by == "formulas":
        kernels.choose("off")
    with RefuseToWait():
        losses(model(x), labels).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    expected = {"conv_relu_pool_forward", "label_cross_entropy_backward", "softmax_backward"}
    assert expected & set(launches) == (expected if computed_by == "kernels" else set())


def test_the_mode_refuses_what_cannot_be_captured(restore_kernels) -> None:
    """On the CPU labels are checked, so that an invalid one is an error at once: a step there reads values."""
    kernels.choose("off")
    model, x, labels = model_and_inputs("cpu")
    with RefuseToWait(), pytest.raises(RuntimeError, match="cannot be captured"):
        losses(model(x), labels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_step_captured_as_a_cuda_graph_gives_the_same_gradients() -> None:
    model, x, labels = model_and_inputs("cuda")
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            model.zero_grad()
            losses(model(x), labels).backward()
    torch.cuda.current_stream().wait_stream(stream)
    eager = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with torch.cuda.graph(graph):
        losses(model(x), labels).backward()
    graph.replay()
    for parameter, expected in zip(model.parameters(), eager, strict=True):
        assert torch.equal(parameter.grad, expected)
