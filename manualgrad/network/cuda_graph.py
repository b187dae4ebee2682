"""A step on batches of one shape, captured once as a CUDA graph and replayed.

    step = capture_step(model, x, labels)
    result = step(x, labels, learning_rate=0.1)  # w ← w − η ∂J/∂w, and J

A replay starts all kernels by one call. Where Triton interprets its kernels on the CPU, a :class:`RecordedGraph`
takes the place of the CUDA graph: it runs the recorded launches in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from manualgrad.cuda import launch
from manualgrad.cuda.launch import Launcher
from manualgrad.network.cuda_plan import CUDAPlan
from manualgrad.network.guards import PlannedModel
from manualgrad.network.plan_interface import LossAndSteps


class Graph(Protocol):
    """Captured launches."""

    def replay(self) -> None:
        """Run them, on the tensors that they were captured with."""
        ...


class RecordedGraph(Launcher):
    """A graph for Triton's interpreter: as a launcher it records launches and runs nothing."""

    def __init__(self) -> None:
        self._launches: list[tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, kernel: Any, grid: tuple[int, ...], x: Tensor, *args: Any, **constants: Any) -> None:
        self._launches.append((kernel, grid, (x, *args), constants))

    def replay(self) -> None:
        """Launch again what was recorded, on the same tensors."""
        launcher = _launcher()
        for kernel, grid, args, constants in self._launches:
            launcher(kernel, grid, *args, **constants)


def capture(run: Callable[[Launcher], None], device: torch.device) -> Graph:
    """The launches of ``run`` as a graph. Their kernels must have run before: capture compiles and loads nothing.

    The graph does not keep the tensors of its launches alive; the caller must."""
    if device.type == "cpu":
        recorded = RecordedGraph()
        run(recorded)
        return recorded
    with torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        # By default all captures have a stream of the first one's device. "thread_local" lets other threads, such as
        # NCCL's watchdog, use the device meanwhile.
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # torch.cuda.graph leaves its stream the current one where a capture fails.
        with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            run(_launcher())
    return graph


def warm_up(run: Callable[[Launcher], None], device: torch.device) -> None:
    """Run once on a side stream, as a capture needs: it compiles and loads the kernels."""
    if device.type == "cpu":
        return
    with torch.cuda.device(device):
        side_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            run(_launcher())
        torch.cuda.current_stream().wait_stream(side_stream)


def aligned_copy(x: Tensor) -> Tensor:
    """A copy of ``x``, contiguous, at an address that is as far from a multiple of 16 bytes as that of ``x``.

    Triton compiles a kernel once more for addresses that are no multiple: it must not do that in a capture."""
    offset = x.data_ptr() % 16 // x.element_size()
    return x.new_empty(x.numel() + offset)[offset:].view(x.shape).copy_(x)


class CapturedStep:
    """A captured step. It owns the tensors that its graph reads and writes, but for the parameters.

    Args:
        parameters: weight and bias of each layer in turn; with ``update`` each call updates them in place.
        x, labels: a batch, of the shapes of all later ones.
    """

    def __init__(
        self, plan: CUDAPlan, parameters: Sequence[Tensor], x: Tensor, labels: Tensor, *, update: bool
    ) -> None:
        self.parameters, self.updates = list(parameters), update
        self._addresses = [p.data_ptr() for p in self.parameters]
        self._x = torch.empty_like(x, memory_format=torch.contiguous_format).copy_(x)
        self._labels = torch.empty_like(labels, memory_format=torch.contiguous_format).copy_(labels)
        self._factor = x.new_zeros(())
        with torch.no_grad():
            self._step = plan.new_step(self._x, self._labels, self.parameters, self._factor, update=update)
            copies = dict(zip(plan.parameter_names, map(aligned_copy, self.parameters), strict=True))
        warm_up(replace(self._step, values={**self._step.values, **copies}).run, x.device)  # updates the copies
        self._graph = capture(self._step.run, x.device)

    @torch.no_grad()
    def __call__(self, x: Tensor, labels: Tensor, learning_rate: float) -> LossAndSteps:
        """Take a step on a batch.

        Returns:
            J before the update, the probabilities, and −``learning_rate`` times each gradient. The next call
            overwrites them.

        Raises:
            ValueError: x or labels have another shape or dtype than those of the capture.
            RuntimeError: a parameter has moved in memory since.
        """
        for name, new, captured in (("x", x, self._x), ("labels", labels, self._labels)):
            if new.shape != captured.shape or new.dtype != captured.dtype:
                raise ValueError(
                    f"CapturedStep: {name} must be {captured.dtype} of shape {tuple(captured.shape)}, as in the "
                    f"capture, got {new.dtype} of shape {tuple(new.shape)}"
                )
        if [p.data_ptr() for p in self.parameters] != self._addresses:
            raise RuntimeError(
                "CapturedStep: a parameter has moved in memory since the capture; capture the step again"
            )
        self._x.copy_(x)
        self._labels.copy_(labels)
        self._factor.fill_(-learning_rate)
        self._graph.replay()
        if self.updates:
            torch.autograd.graph.increment_version(self.parameters)
        return self._step.result


def capture_step(model: PlannedModel, x: Tensor, labels: Tensor, *, update: bool = True) -> CapturedStep:
    """Capture a step of ``model`` on batches like x, (N, C_in, H, W), and labels, (N,) int64.

    Args:
        update: False computes the gradients only.

    Raises:
        ValueError: no plan for CUDA computes the model on x; the message says why.
    """
    planned = model.find_plan(x)
    if isinstance(planned, str):
        raise ValueError(f"capture_step: no plan computes the model: {planned}")
    plan, parameters = planned
    if not isinstance(plan, CUDAPlan) or not len(x):
        raise ValueError(f"capture_step: x must be images on a GPU, got shape {tuple(x.shape)} on {x.device}")
    if labels.shape != x.shape[:1] or labels.dtype != torch.int64 or labels.device != x.device:
        raise ValueError(
            f"capture_step: labels must be int64 of shape ({len(x)},) on {x.device}, got {labels.dtype} of shape "
            f"{tuple(labels.shape)} on {labels.device}"
        )
    return CapturedStep(plan, parameters, x, labels, update=update)


def _launcher() -> Launcher:
    launcher = launch.current_launcher()
    if launcher is None:
        raise RuntimeError(f"CapturedStep: {launch.why_none()}")
    return launcher
