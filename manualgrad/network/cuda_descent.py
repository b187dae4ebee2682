"""Gradient descent on a data set that lies on the device: from bytes to the updated weights without the host.

A step is the plan's launches between two of ``cuda/kernels/network_descent.py``. The host starts some steps by one
call, as CUDA graphs or launch by launch, with the same bits, and reads their metrics once at the end. If several
ranks share each batch, a step is two graphs, with the sum over all ranks between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from manualgrad.cuda import launch
from manualgrad.cuda.kernels.network_descent import descend, gather_batch, weigh_shard
from manualgrad.cuda.launch import Launcher
from manualgrad.network.cuda_graph import Graph, capture, warm_up
from manualgrad.network.cuda_head import IGNORE_INDEX
from manualgrad.network.cuda_launches import Workspace
from manualgrad.network.cuda_plan import CUDAPlan
from manualgrad.network.cuda_tiles import padded

PIXELS_BLOCK, UPDATE_BLOCK = 1024, 1024


@dataclass(frozen=True)
class ChunkStats:
    """Statistics of consecutive steps, each before its update, up to the first cost that is not finite.

    Attributes:
        costs: J of each step, as far as they are finite.
        num_correct: images of each of these steps whose most probable class is their label.
        learning_rates: η of each of them.
        label_probs: probability of the label of each image of these steps on this rank, (steps, plan's batch size);
            a later call overwrites it.
    """

    costs: list[float]
    num_correct: list[int]
    learning_rates: list[float]
    label_probs: Tensor


class CUDADescent:
    """Steps of gradient descent on batches of a data set, each of as many images as the plan has, or fewer.

    Everything that a step reads and writes belongs to this object. The caller copies parameters to ``weights``
    before :meth:`run`, and back after it; the same holds for ``velocities`` and ``averages``.

    Args:
        images: the whole data set, (N, C, H, W) uint8, of the network's image shape.
        labels: its class indices, (N,) int64, on the same device.
        normalized: the number that the network gets for each of the 256 bytes, (256,) float32.
        momentum: μ in v ← μ v + ∂J/∂w; 0 for plain descent.
        averages: whether :meth:`run` averages the weights.
        max_steps: largest number of steps of one call of :meth:`run`, which one graph has.
        use_graphs: False launches kernels one by one.
        all_reduce: sums a contiguous tensor over the ranks that share each batch, in place; None for one process.

    Attributes:
        weights, velocities, averages: tensors in the plan's order of parameters.

    Raises:
        ValueError: images or labels of another dtype, shape or device.
    """

    def __init__(
        self, plan: CUDAPlan, images: Tensor, labels: Tensor, normalized: Tensor, *, momentum: float = 0.0,
        averages: bool = False, max_steps: int = 50, use_graphs: bool = True,
        all_reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:  # fmt: skip
        shape = plan.network.image_shape
        are_bytes = images.dtype == torch.uint8 and images.shape[1:] == shape
        if not are_bytes or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            channels, height, width = shape
            raise ValueError(
                f"CUDADescent: images must be uint8 of shape (N, {channels}, {height}, {width}), labels int64 of "
                f"shape (N,), got {images.dtype} of shape {tuple(images.shape)} and {labels.dtype} of shape "
                f"{tuple(labels.shape)}"
            )
        self.plan, self.momentum, self.max_steps, self.use_graphs = plan, momentum, max_steps, use_graphs
        self.all_reduce = all_reduce
        self._images, self._labels = images.contiguous(), labels.contiguous()
        device = self.device = images.device
        self._normalized = normalized.to(device)
        self._layout = Workspace({
            name: 4 * shape.numel() for name, shape in zip(plan.parameter_names, plan.parameter_shapes, strict=True)
        })  # fmt: skip
        self._weights, self._grads = self._new_buffer(), self._new_buffer()
        self._velocities = self._new_buffer() if momentum else self._weights
        self._averages = self._new_buffer() if averages else self._weights
        self.weights, grads = self._views(self._weights), self._views(self._grads)
        self.velocities = self._views(self._velocities) if momentum else []
        self.averages = self._views(self._averages) if averages else []

        self._state = torch.zeros(4, dtype=torch.int64, device=device)
        max_rows = -(-len(labels) // plan.batch_size)
        self._indices = labels.new_full((max_rows, plan.batch_size), -1)
        self._label_probs = torch.zeros(max_rows, plan.batch_size, device=device)
        self._fractions = torch.zeros(max_rows, device=device)
        self._rates = torch.zeros(2, max_steps, device=device)  # η, and α of the averages
        self._costs = torch.zeros(max_steps, device=device)
        self._num_correct = torch.zeros(max_steps, dtype=torch.int32, device=device)
        x = torch.zeros(plan.input_shape, device=device)
        batch_labels = torch.full((plan.batch_size,), IGNORE_INDEX, device=device)
        step = plan.new_step(x, batch_labels, self.weights, 1.0, update=False)
        grads_by_name = {f"d{name}": grad for name, grad in zip(plan.parameter_names, grads, strict=True)}
        self._step = replace(step, values={**step.values, **grads_by_name})
        self._x, self._batch_labels = x, batch_labels
        self._sums = torch.zeros(self._grads.numel() + 1, device=device) if all_reduce else self._grads
        self._loss = self._sums[-1] if all_reduce else step.result.loss  # J over all ranks
        self._graphs: dict[int, Graph] = {}
        self._shard_graphs: tuple[Graph, Graph] | None = None
        self._is_prepared = False

    def _new_buffer(self) -> Tensor:
        return torch.zeros(self._layout.shape, device=self.device)

    def _views(self, memory: Tensor) -> list[Tensor]:
        pairs = zip(self.plan.parameter_names, self.plan.parameter_shapes, strict=True)
        return [self._layout.buffer(memory, name, shape) for name, shape in pairs]

    @property
    def has_kernels(self) -> bool:
        """False if kernels have been switched off."""
        return launch.current_launcher() is not None

    def prepare(self) -> None:
        """Compile the kernels and capture the graphs. Otherwise the first steps do it."""
        if self._is_prepared:
            return
        self._is_prepared = True
        self._state.copy_(torch.tensor([0, 0, 1, 0]))  # FAILED: nothing is updated
        warm_up(self.launch_step, self.device)
        if self.use_graphs and self.all_reduce:
            self._shard_graphs = capture(self.launch_grads, self.device), capture(self.launch_update, self.device)
        elif self.use_graphs:
            self._graphs = {n: capture(self._repeat_step(n), self.device) for n in {1, self.max_steps}}

    def begin_epoch(self, indices: Tensor, fractions: Tensor) -> None:
        """Set the images of the next steps.

        Args:
            indices: a row for each step, (steps, plan's batch size) int64, with −1 behind the images of a smaller
                batch.
            fractions: fraction of each batch that these images are, (steps,); 1 without other ranks.
        """
        self._indices[: len(indices)].copy_(indices)
        self._fractions[: len(fractions)].copy_(fractions)

    def run(self, first: int, rates: Sequence[float], average_rates: Sequence[float]) -> ChunkStats:
        """Take as many steps as there are ``rates``, from step ``first`` of the epoch, counted from 0.

        Args:
            rates: learning rate of each step, at most ``max_steps``.
            average_rates: fraction of the way from the average to the weights that each step moves the average; 0
                leaves it.

        Returns:
            Statistics of the steps before the first whose cost is not finite: the weights are as before that step.
        """
        self.prepare()
        num_steps = len(rates)
        self._state.copy_(torch.tensor([0, 0, 0, first]))
        self._rates[:, :num_steps].copy_(torch.tensor([rates, average_rates]))
        self._num_correct.zero_()
        self._take_steps(num_steps)
        num_correct = self._num_correct[:num_steps]
        if self.all_reduce:
            self.all_reduce(num_correct)
        costs = self._costs[:num_steps].tolist()
        num_finite = next((n for n, cost in enumerate(costs) if not math.isfinite(cost)), num_steps)
        return ChunkStats(
            costs[:num_finite], num_correct[:num_finite].tolist(), list(rates[:num_finite]),
            self._label_probs[first : first + num_finite],
        )  # fmt: skip

    def _take_steps(self, num_steps: int) -> None:
        launcher = launch.current_launcher()
        if launcher is None:
            raise RuntimeError(f"CUDADescent: {launch.why_none()}")
        if self.all_reduce:
            for _ in range(num_steps):
                self._take_step_with_others(self.all_reduce, launcher)
        elif self._graphs:
            size = self.max_steps if num_steps == self.max_steps else 1
            for _ in range(num_steps // size):
                self._graphs[size].replay()  # the steps are counted on the device
        else:
            self._repeat_step(num_steps)(launcher)

    def _take_step_with_others(self, all_reduce: Callable[[Tensor], Tensor], launcher: Launcher) -> None:
        """Take one step, with the sum over all ranks of the gradients and J before the update."""
        if self._shard_graphs:
            grads, update = self._shard_graphs
            grads.replay()
            all_reduce(self._sums)
            update.replay()
        else:
            self.launch_grads(launcher)
            all_reduce(self._sums)
            self.launch_update(launcher)

    def _repeat_step(self, num_steps: int) -> Callable[[Launcher], None]:
        def run(launcher: Launcher) -> None:
            for _ in range(num_steps):
                self.launch_step(launcher)

        return run

    def launch_step(self, launcher: Launcher) -> None:
        """Launch the kernels of one step, without other ranks' part."""
        self.launch_grads(launcher)
        self.launch_update(launcher)

    def launch_grads(self, launcher: Launcher) -> None:
        """Launch the kernels from the batch to its gradients."""
        plan = self.plan
        batch_size, pixels = plan.batch_size, math.prod(plan.network.image_shape)
        launcher(
            gather_batch, (batch_size, -(-pixels // PIXELS_BLOCK)), self._x, self._batch_labels, self._images,
            self._labels, self._normalized, self._indices, self._state, BATCH=batch_size, PIXELS=pixels,
            IGNORE_INDEX=IGNORE_INDEX, BLOCK=PIXELS_BLOCK,
        )  # fmt: skip
        self._step.run(launcher)
        if self.all_reduce:
            numel = self._grads.numel()
            launcher(
                weigh_shard, (-(-numel // UPDATE_BLOCK),), self._grads, self._step.result.loss, self._sums,
                self._fractions, self._state, NUMEL=numel, BLOCK=UPDATE_BLOCK,
            )  # fmt: skip

    def launch_update(self, launcher: Launcher) -> None:
        """Launch the kernel of the update and the metrics."""
        plan, result = self.plan, self._step.result
        numel, classes, batch_size = self._weights.numel(), padded(plan.network.classes), plan.batch_size
        programs, rows = -(-numel // UPDATE_BLOCK), max(1, 1024 // classes)
        launcher(
            descend, (programs + -(-batch_size // rows),), self._weights, self._sums, self._velocities,
            self._averages, self._rates[0], self._rates[1], self._loss, result.probabilities, self._batch_labels,
            self._costs, self._num_correct, self._label_probs, self._state, NUMEL=numel, MOMENTUM=self.momentum,
            AVERAGES=bool(self.averages), BATCH=batch_size, CLASSES=plan.network.classes, PROGRAMS=programs,
            BLOCK=UPDATE_BLOCK, BN=rows, BC=classes,
        )  # fmt: skip
