"""Promise: launches and captures are made on the device of their tensors, whatever the current one is.

Without GPUs, objects with the attributes that are looked at stand for devices and tensors."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from manualgrad.cuda import launch
from manualgrad.network import cuda_graph
from manualgrad.network.cuda_graph import aligned_copy


class FakeCuda:
    """Stands for ``torch.cuda`` with two devices."""

    def __init__(self) -> None:
        self.current, self.current_stream, self.log = 0, "the default stream", list[Any]()

    def current_device(self) -> int:
        return self.current

    @contextmanager
    def device(self, device: torch.device):
        before, self.current = self.current, device.index
        yield
        self.current = before

    def Stream(self, device: torch.device) -> str:
        return f"a stream of {device}"

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(device=self.current)

    @contextmanager
    def stream(self, stream: str):
        before, self.current_stream = self.current_stream, stream
        try:
            yield
        finally:
            self.current_stream = before

    @contextmanager
    def graph(self, graph: Any, *, stream: str, capture_error_mode: str):
        self.log.append((graph.device, stream, capture_error_mode))
        before, self.current_stream = self.current_stream, stream
        yield
        self.current_stream = before  # PyTorch leaves it as it is where the capture fails


@pytest.fixture
def cuda(monkeypatch) -> FakeCuda:
    fake = FakeCuda()
    for module in (launch, cuda_graph):
        monkeypatch.setattr(module, "torch", SimpleNamespace(cuda=fake, device=torch.device))
    return fake


@pytest.mark.parametrize("index", [0, 1])
def test_a_kernel_is_launched_on_the_device_of_its_tensors(cuda, index) -> None:
    kernel = {(2,): lambda *args, **constants: cuda.log.append((cuda.current, args[1:], constants))}
    x = SimpleNamespace(is_cuda=True, device=SimpleNamespace(index=index))
    launch.Launcher()(kernel, (2,), x, 3, BLOCK=4)
    assert cuda.log == [(index, (3,), {"BLOCK": 4})] and cuda.current == 0


def test_without_a_c_compiler_formulas_compute_everything_and_the_reason_is_told(monkeypatch) -> None:
    """Triton builds the module that launches kernels on the machine that it runs on."""
    triton = pytest.importorskip("triton")

    def build(config: Any) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")

    monkeypatch.setattr(type(triton.runtime.driver), "active", property(build))
    monkeypatch.setattr(launch, "_capability", lambda index: (9, 0))
    monkeypatch.setattr(launch, "_why_no_driver", launch._why_no_driver.__wrapped__)
    assert "Failed to find C compiler" in launch.unsupported_device(0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert launch.describe().startswith("no kernels, formulas compute everything: Triton cannot build")


def test_a_graph_is_captured_on_a_stream_of_the_device(cuda, monkeypatch) -> None:
    """``torch.cuda.graph`` has one stream for all captures otherwise: of the device that the first one was for."""
    monkeypatch.setattr(cuda_graph, "_launcher", lambda: "launcher")
    for index in (0, 1):
        ran: list[Any] = []
        cuda_graph.capture(ran.append, torch.device("cuda", index))
        assert ran == ["launcher"] and cuda.log[-1] == (index, f"a stream of cuda:{index}", "thread_local")


def test_a_failed_capture_leaves_the_current_stream_as_it_was(cuda, monkeypatch) -> None:
    def fail(launcher: Any) -> None:
        assert cuda.current_stream == "a stream of cuda:0"
        raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(cuda_graph, "_launcher", lambda: "launcher")
    with pytest.raises(RuntimeError, match="previous error"):
        cuda_graph.capture(fail, torch.device("cuda", 0))
    assert cuda.current_stream == "the default stream"


@pytest.mark.parametrize("offset", range(5))
def test_copies_for_the_warm_up_are_aligned_as_the_parameters(offset) -> None:
    parameter = torch.arange(11.0)[offset : offset + 6].view(2, 3)
    copy = aligned_copy(parameter)
    assert torch.equal(copy, parameter) and copy.is_contiguous()
    assert copy.data_ptr() % 16 == parameter.data_ptr() % 16 and copy.data_ptr() != parameter.data_ptr()
