"""Training steps that stay on a CUDA device: some of them by one call, which reads their metrics at its end.

This works if a step is gradient descent, with momentum or without, of every weight of the model. A step whose cost is
not finite is left to the run, which takes it as any other step and raises its error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import is_
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from manualgrad._torch_compat import foreach_copy_
from manualgrad.models import DocumentCNN
from manualgrad.network import guards
from manualgrad.network.plan import Plan
from manualgrad.training.batches import normalize
from manualgrad.training.fused_step import guard_values, updates_every_weight
from manualgrad.training.optimizers import GradientDescent, learning_rates, set_schedule

if TYPE_CHECKING:
    from manualgrad.network.cuda_descent import ChunkStats, CUDADescent
    from manualgrad.training.run import TrainingRun

STEPS_PER_GRAPH = 50
RATES_AHEAD = 16384  # learning rates that are computed at a time

# The options of torch.optim.SGD besides its momentum and learning rate, and the values for which it is plain.
PLAIN_SGD = {"dampening": 0, "weight_decay": 0, "nesterov": False, "maximize": False, "differentiable": False}


def make_device_steps(run: TrainingRun, use_graphs: bool) -> DeviceSteps | str:
    """Return the steps of ``run`` on its CUDA device, or the reason why it takes them one by one; "" on the CPU."""
    images, epochs, distributed = run.dataset.train.images, run.epochs, run.distributed
    batch_size = min(epochs.batch_size, max(epochs.sizes))
    shard_size = -(-batch_size // distributed.world_size)  # of the largest shard
    planned = guards.find_usable_plan(run.model, normalize(images[:1], run.dataset).expand(shard_size, -1, -1, -1))
    if isinstance(planned, str):
        return "" if images.device.type == "cpu" else planned
    if isinstance(planned[0], Plan):
        return ""
    momentum = find_momentum(run.optimizer)
    if momentum is None or not updates_every_weight(run.model, run.optimizer):
        return "the optimizer does not update every weight by gradient descent"
    from manualgrad.network.cuda_descent import CUDADescent  # imports Triton

    descent = CUDADescent(
        planned[0],  # type: ignore[arg-type]  # a plan for CUDA
        images,
        run.dataset.train.labels,
        normalize(torch.arange(256, dtype=torch.uint8), run.dataset),
        momentum=momentum,
        averages=run.average_last > 0,
        max_steps=min(STEPS_PER_GRAPH, -(-max(epochs.sizes) // batch_size)),
        use_graphs=use_graphs,
        all_reduce=distributed.all_reduce_sum if distributed.world_size > 1 else None,
    )
    return DeviceSteps(run, descent)


def find_momentum(optimizer: Optimizer) -> float | None:
    """Return μ if a step is v ← μ v + ∂J/∂w, w ← w − η v for the first group; None for other optimizers."""
    group = optimizer.param_groups[0]
    if type(optimizer) is GradientDescent:
        return 0.0
    is_plain = type(optimizer) is torch.optim.SGD and all(group[name] == value for name, value in PLAIN_SGD.items())
    return float(group["momentum"]) if is_plain else None


class DeviceSteps:
    """The next steps of a run on its device.

    Attributes:
        descent: the steps of gradient descent.
    """

    def __init__(self, run: TrainingRun, descent: CUDADescent) -> None:
        self.descent = descent
        self._guard_values = guard_values(run.model, run.optimizer)
        self._rates: list[float] = []
        self._rates_start = 0  # the number of steps before the first of them

    def __str__(self) -> str:
        """Text such as "50 in a CUDA graph"."""
        count = self.descent.max_steps
        if not self.descent.use_graphs:
            return f"{count} at a time, without CUDA graphs"
        return f"{count} {'at a time, two CUDA graphs each' if self.descent.all_reduce else 'in a CUDA graph'}"

    def prepare(self, run: TrainingRun) -> None:
        """Compile the kernels, capture the graphs, and compute the learning rates, so that no timed step does."""
        self.descent.prepare()
        self._next_rates(run, 1)

    def begin_epoch(self, run: TrainingRun) -> None:
        """Set the images of the epoch's steps, and their places in the epoch, for this rank."""
        batch_size, width = run.epochs.batch_size, self.descent.plan.batch_size
        indices, fractions = shard_batches(run.epoch_indices, batch_size, width, run.distributed.shard)
        self.descent.begin_epoch(indices, fractions)
        self._places, _ = shard_batches(
            torch.arange(len(run.epoch_indices)), batch_size, width, run.distributed.shard
        )

    def take(self, run: TrainingRun, num_steps: int) -> ChunkStats | None:
        """Take up to ``num_steps`` steps of the epoch, and update model, optimizer, scheduler and average.

        Returns:
            Statistics of the steps before the first whose cost is not finite, or None, with everything unchanged, if
            the next step is such a step, or if something that the steps depend on was changed.
        """
        values = guard_values(run.model, run.optimizer)
        is_unchanged = len(values) == len(self._guard_values) and all(map(is_, values, self._guard_values))
        has_momentum = find_momentum(run.optimizer) == self.descent.momentum
        if not (is_unchanged and has_momentum and self.descent.has_kernels) or guards.hooks_reason(run.model):
            return None
        num_steps = min(num_steps, self.descent.max_steps)
        rates = self._next_rates(run, num_steps)
        begin = run.num_steps - run.average_last
        counts = [max(0, run.step + n + 1 - begin) for n in range(num_steps)]  # of averaged weights
        average_rates = [1 / count if count else 0.0 for count in counts]
        pairs = self._state_pairs(run, is_averaging=counts[-1] > 0)
        with torch.no_grad():
            foreach_copy_(*pairs)
            stats = self.descent.run(run.step_in_epoch, rates[:num_steps], average_rates)
            foreach_copy_(*reversed(pairs))
        num_taken = len(stats.costs)
        if not num_taken:
            return None
        if run.averaged_model is not None:
            run.averaged_model.n_averaged.fill_(counts[num_taken - 1])
        set_schedule(run.optimizer, run.scheduler, run.step + num_taken, rates[num_taken])
        if run.epochs.has_subsets:
            stats = replace(stats, label_probs=self._label_probs(run, stats.label_probs))
        return stats

    def _label_probs(self, run: TrainingRun, own: Tensor) -> Tensor:
        """Probabilities of the labels of all ranks' images, (n,), from those of this rank's, a row for each step."""
        first, batch_size = run.step_in_epoch, run.epochs.batch_size
        places = self._places[first : first + len(own)].to(own.device)
        is_image = places >= 0
        num_images = min((first + len(own)) * batch_size, len(run.epoch_indices)) - first * batch_size
        label_probs = own.new_zeros(num_images)
        label_probs[places[is_image] - first * batch_size] = own[is_image]
        return run.distributed.all_reduce_sum(label_probs)

    def _next_rates(self, run: TrainingRun, num_steps: int) -> list[float]:
        """Learning rates of the next ``num_steps`` steps and of the step after them."""
        start = run.step - self._rates_start
        rates = self._rates[max(0, start) : start + num_steps + 1]
        if len(rates) <= num_steps or rates[0] != run.optimizer.param_groups[0]["lr"]:
            count = min(RATES_AHEAD, run.num_steps - run.step)
            self._rates = learning_rates(run.optimizer, run.scheduler, run.step, count)
            self._rates_start, rates = run.step, self._rates[: num_steps + 1]
        return rates

    def _state_pairs(self, run: TrainingRun, is_averaging: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Tensors that a step changes: those of ``descent``, and those of the run."""
        weights = _weights(run.model)
        own, theirs = [*self.descent.weights], [*weights]
        if self.descent.momentum:
            own += self.descent.velocities
            theirs += [_velocity(run.optimizer, w) for w in weights]
        if is_averaging and run.averaged_model is not None:
            own += self.descent.averages
            theirs += _weights(run.averaged_model.module)  # type: ignore[arg-type]  # the model's copy
        return own, theirs


def shard_batches(
    indices: Tensor, batch_size: int, width: int, shard: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Divide an epoch into batches, and these between the ranks.

    Args:
        indices: (n,) int64; the last batch may be smaller than ``batch_size``.
        width: size of the largest shard.
        shard: maps a batch to the part of this rank, along dimension 0.

    Returns:
        This rank's part of each batch, (batches, width), with −1 behind a smaller one; its fraction of the batch.
    """
    count, rest = divmod(len(indices), batch_size)
    num_batches = count + bool(rest)
    rows, fractions = indices.new_full((num_batches, width), -1), torch.zeros(num_batches)
    for begin, end, size in ((0, count, batch_size), (count, num_batches, rest)):
        if begin < end:
            batches = indices[begin * batch_size : begin * batch_size + (end - begin) * size].view(-1, size)
            own = shard(batches.t()).t()
            rows[begin:end, : own.shape[1]] = own
            fractions[begin:end] = own.shape[1] / size
    return rows, fractions


def _weights(model: DocumentCNN) -> list[Tensor]:
    """Weight and bias of each layer in turn, as in a plan."""
    return [w for layer in model.layers_with_weights() for w in (layer.weight, layer.bias) if w is not None]


def _velocity(optimizer: Optimizer, weight: Tensor) -> Tensor:
    """The buffer that ``torch.optim.SGD`` has for v of this weight, which is 0 before the first step."""
    state = optimizer.state[weight]
    if state.get("momentum_buffer") is None:
        state["momentum_buffer"] = torch.zeros_like(weight)
    velocity: Tensor = state["momentum_buffer"]
    return velocity
