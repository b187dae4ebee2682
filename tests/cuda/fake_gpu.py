"""A GPU that is not there: PyTorch's fake tensors on the device "cuda", which have shapes, dtypes and no values.

An operator that gets tensors of two devices raises an error, and so does Python where it reads a value. Kernels are
not run. PyTorch's engine needs a real GPU for a backward, so :func:`backward` is a small one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.function import BackwardCFunction

from manualgrad import tensor_checks
from manualgrad.cuda import launch
from manualgrad.cuda import tensor_checks as cuda_tensor_checks


class RecordingLauncher(launch.Launcher):
    """Notes the names of the kernels and runs none; their tensors must be on the GPU."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        if 0 not in grid:
            devices = {x.device.type for x in args if isinstance(x, Tensor)}
            assert devices == {"cuda"}, f"{kernel.fn.__name__} gets tensors on {devices}"
            self.names.append(kernel.fn.__name__)


class FakeGPU(FakeTensorMode):
    """The mode in which tensors are fake. A copy of a model has the same mode."""

    def __init__(self, launcher: RecordingLauncher) -> None:
        super().__init__(allow_non_fake_inputs=False)
        self.launches = launcher.names

    def __deepcopy__(self, memo: Any) -> FakeGPU:
        return self

    def move(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
        """``model``, made outside of the mode, with fake parameters and buffers on the GPU."""
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(torch.empty(parameter.shape, device="cuda", dtype=dtype))
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(
                        buffer.shape, device="cuda", dtype=dtype if buffer.is_floating_point() else buffer.dtype
                    )
        return model


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGPU]:
    """A mode that is not entered yet. What asks PyTorch or Triton for a GPU gets an answer."""
    plain_types = (*tensor_checks.PLAIN_TYPES, FakeTensor)
    for name, module in list(sys.modules.items()):
        if name.startswith("manualgrad") and hasattr(module, "PLAIN_TYPES"):
            monkeypatch.setattr(module, "PLAIN_TYPES", plain_types)
    monkeypatch.setattr(tensor_checks, "dispatch_mode_count", lambda: 0)
    monkeypatch.setattr(cuda_tensor_checks, "interprets", lambda: False)
    monkeypatch.setattr(cuda_tensor_checks, "unsupported_device", lambda index: "")
    monkeypatch.setattr(cuda_tensor_checks, "is_zero_tensor", lambda x: False)  # it asks for the address
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=132)
    )
    launcher = RecordingLauncher()
    monkeypatch.setattr(launch, "_launcher", launcher)
    yield FakeGPU(launcher)


@torch.no_grad()
def backward(loss: Tensor) -> None:
    """Set ``grad`` of each leaf as ``loss.backward()`` would."""
    order = _in_topological_order(loss.grad_fn)
    gradients: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    for node in order:
        own = gradients.get(node)
        if own is None:
            continue
        if hasattr(node, "variable"):
            leaf = node.variable
            leaf.grad = own[0].sum_to_size(leaf.shape)
            assert (leaf.grad.device, leaf.grad.dtype) == (leaf.device, leaf.dtype)
            continue
        outputs = [own[n] if n in own else torch.zeros(m.shape, device="cuda", dtype=m.dtype)
                   for n, m in enumerate(node._input_metadata)]  # fmt: skip
        results = node.apply(*outputs) if isinstance(node, BackwardCFunction) else node(*outputs)
        results = _of_tensors(results if isinstance(results, tuple) else (results,), len(node.next_functions))
        for (following, number), gradient in zip(node.next_functions, results, strict=True):
            if following is not None and gradient is not None:
                others = gradients.setdefault(following, {})
                others[number] = others[number] + gradient if number in others else gradient


def _in_topological_order(root: Any) -> list[Any]:
    order, visited, stack = list[Any](), set[Any](), [(root, False)]
    while stack:
        node, is_left = stack.pop()
        if is_left:
            order.append(node)
        elif node is not None and node not in visited:
            visited.add(node)
            stack += [(node, True), *((following, False) for following, _ in node.next_functions)]
    return order[::-1]


def _of_tensors(results: Sequence[Tensor | None], count: int) -> list[Tensor | None]:
    """``results`` without those of arguments that are no tensors: they are last in a layer, first in a plan."""
    rest = list(results)
    while len(rest) > count:
        rest.pop(-1 if rest[-1] is None else rest.index(None))
    return rest
