"""A training run that can be stopped between two steps and resumed, on one process or on several ranks."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler
from torch.optim.swa_utils import AveragedModel

from manualgrad import kernels
from manualgrad._torch_compat import foreach_lerp_
from manualgrad.data import Dataset
from manualgrad.models import DocumentCNN
from manualgrad.network.descent import StepStats
from manualgrad.training import nonfinite
from manualgrad.training.batches import ShardBatches, minibatches, normalize
from manualgrad.training.cli_exit import EXIT_FAILURE, CliExit
from manualgrad.training.device_steps import DeviceSteps, make_device_steps
from manualgrad.training.distributed import SINGLE_PROCESS, DistributedContext
from manualgrad.training.epochs import EpochLayout
from manualgrad.training.evaluation import EvalResult
from manualgrad.training.fused_step import FusedStep
from manualgrad.training.gradients import gradients_by_autograd, gradients_by_recursion
from manualgrad.training.hard_examples import HardExampleSampler

ENGINES = ("autograd", "document")


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one training step over all ranks.

    Attributes:
        step: number of the step in the run, from 1.
        loss: mean loss of the batch before the update.
        num_images: images in the batch.
        num_correct: images whose predicted class, before the update, is the label.
        learning_rate: learning rate of the update.
    """

    step: int
    loss: float
    num_images: int
    num_correct: int
    learning_rate: float


class TrainingRun:
    """Model, optimizer, schedule and image order: everything that the next step depends on.

    With several ranks each rank has a TrainingRun, and the initial weights must be the same on all.

    Args:
        model, optimizer, scheduler: the optimizer holds the model's parameters, the scheduler this optimizer.
        dataset: dataset on the model's device.
        epochs: sizes of the epochs.
        seed: seed of the image order. With the initial weights it determines the result.
        average_last: number of steps at the end whose weights are averaged. After the last step the model has the
            average; 0 for no averaging.
        engine: "autograd" chains our Functions by torch's engine; "document" runs the formula sheet's recursion of δ
            (:mod:`manualgrad.backprop`). Both compute the same numbers.
        distributed: the ranks that share each batch.
        cuda_graphs: False launches the kernels of steps on a CUDA device one by one, with the same bits.

    Attributes:
        step: number of steps taken.
        losses: mean loss of the batch of each step.
        history: metrics of each finished epoch, as :meth:`end_epoch` returns them.
        num_correct: correctly predicted images in this epoch so far.
        seconds: time spent in training steps and in drawing the image order.
        epoch_indices: indices of the images of this epoch, in training order.
        fused_step: fused steps for this epoch; None with engine "autograd" or several ranks.
        device_steps: steps that stay on a CUDA device, or the reason why there are none; "" on the CPU.
    """

    def __init__(
        self,
        model: DocumentCNN,
        optimizer: Optimizer,
        scheduler: lr_scheduler.LRScheduler,
        dataset: Dataset,
        *,
        epochs: EpochLayout,
        seed: int,
        average_last: int = 0,
        engine: str = "autograd",
        distributed: DistributedContext = SINGLE_PROCESS,
        cuda_graphs: bool = True,
    ) -> None:
        if engine not in ENGINES:
            raise ValueError(f"unknown engine {engine!r}: expected one of {', '.join(ENGINES)}")
        self.model, self.optimizer, self.scheduler, self.dataset = model, optimizer, scheduler, dataset
        self.epochs, self.seed, self.average_last = epochs, seed, average_last
        self.engine, self.distributed = engine, distributed
        self.ddp_model = distributed.wrap_ddp(model) if engine == "autograd" else model
        self.averaged_model = AveragedModel(model, multi_avg_fn=_update_average) if average_last else None
        self.step, self.seconds, self.num_correct = 0, 0.0, 0
        self.losses: list[float] = []
        self.history: list[dict[str, Any]] = []
        self.order_generator = torch.Generator().manual_seed(seed)
        self.sampler = HardExampleSampler(epochs.num_images, dataset.train.labels.device)
        kernels.available()  # compiles the kernels, which the seconds must not include
        self.device_steps = make_device_steps(self, cuda_graphs)
        self.begin_epoch()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def num_steps(self) -> int:
        """Number of steps of the whole run."""
        return self.epochs.num_steps

    @property
    def is_finished(self) -> bool:
        """True after the last step."""
        return self.step == self.num_steps

    @property
    def epoch(self) -> int:
        """Number of the epoch of the next step, from 1."""
        return self.epochs.epoch_of(self.step) + 1

    @property
    def step_in_epoch(self) -> int:
        """Number of steps taken in this epoch; 0 between two epochs."""
        return self.epochs.step_in_epoch(self.step)

    def begin_epoch(self) -> None:
        """Commit the label probabilities of the last epoch and draw the images of the next one."""
        start = time.perf_counter()
        self.sampler.commit()
        if not self.is_finished:
            self.draw_epoch_indices()
        self.seconds += time.perf_counter() - start

    def draw_epoch_indices(self) -> None:
        """Draw the image indices of this epoch, and prepare the batches of its remaining steps."""
        self.order_state = self.order_generator.get_state()  # a resumed run draws the same indices again
        self.epoch_indices = self.sampler.sample(self.epochs.sizes[self.epoch - 1], self.order_generator)
        self.batches = ShardBatches(
            self.dataset, self.epoch_indices, self.epochs.batch_size, self.dtype, self.distributed.shard
        )
        self.fused_step: FusedStep | None = None
        if isinstance(self.device_steps, DeviceSteps):
            self.device_steps.begin_epoch(self)
        elif self.engine == "document" and self.distributed.world_size == 1:
            self.fused_step = FusedStep(
                self.model, self.optimizer, self.dataset, self.epochs.batch_size, self.epoch_indices
            )

    def run_warmup_step(self) -> None:
        """Compute the gradients of the first images and discard them, so that no timed step includes compilation."""
        if isinstance(self.device_steps, DeviceSteps):
            self.device_steps.prepare(self)
            return
        batch_size = self.epochs.batch_size_of(0)
        x, labels = next(minibatches(
            self.dataset, torch.arange(batch_size), batch_size, dtype=self.dtype, shard=self.distributed.shard
        ))  # fmt: skip
        self.compute_gradients(x, labels, batch_size)
        self.model.zero_grad()

    def train_steps(self, at_most: int) -> list[StepMetrics]:
        """Take the next step, or as many as the device takes by one call: up to ``at_most``, all of this epoch.

        Raises:
            NonFiniteError: as :meth:`train_step`; steps before the one of that loss are returned by an earlier call.
        """
        start, first = time.perf_counter(), self.step
        if isinstance(self.device_steps, DeviceSteps):
            stats = self.device_steps.take(self, min(at_most, self.epochs.ends[self.epoch - 1] - first))
            if stats is not None:
                sizes = map(self.epochs.batch_size_of, itertools.count(first))
                columns = stats.costs, sizes, stats.num_correct, stats.learning_rates
                metrics = list(map(StepMetrics, itertools.count(first + 1), *columns))
                self._finish_steps(metrics, stats.label_probs)
                self.seconds += time.perf_counter() - start
                return metrics
        return [self.train_step()]

    def train_step(self) -> StepMetrics:
        """Take one step of gradient descent on the next batch.

        Raises:
            NonFiniteError: the loss is not finite. The message names the first non-finite tensor, and the weights are
                as before the step. Ranks other than 0 raise CliExit instead.
        """
        start = time.perf_counter()
        learning_rate, batch_size = self.optimizer.param_groups[0]["lr"], self.epochs.batch_size_of(self.step)
        stats = None
        if self.fused_step is not None and self.step:  # a scheduler warns unless optimizer.step() ran once before it
            first = self.step_in_epoch * self.epochs.batch_size
            stats = self.fused_step.step(self.model, self.optimizer, first, learning_rate)
        if stats is None:
            stats = self._optimizer_step(batch_size)
        metrics = StepMetrics(self.step + 1, stats.cost, batch_size, stats.num_correct, learning_rate)
        self.scheduler.step()
        if self.averaged_model is not None and self.step >= self.num_steps - self.average_last:
            self.averaged_model.update_parameters(self.model)
        self._finish_steps([metrics], stats.label_probs)
        self.seconds += time.perf_counter() - start
        return metrics

    def _finish_steps(self, metrics: list[StepMetrics], label_probs: Tensor) -> None:
        """Count steps whose update has been made. After the last step the model gets the average of the weights."""
        if self.epochs.has_subsets:
            self.sampler.record(label_probs.clone())
        self.step += len(metrics)
        self.num_correct += sum(step.num_correct for step in metrics)
        self.losses += [step.loss for step in metrics]
        if self.averaged_model is not None and self.is_finished:
            self.model.load_state_dict(self.averaged_model.module.state_dict())

    def _optimizer_step(self, batch_size: int) -> StepStats:
        """Compute the gradients of the next batch and step the optimizer. ``batch_size`` is that of all ranks."""
        x, labels = self.batches.batch(self.step_in_epoch)
        loss, probabilities = self.compute_gradients(x, labels, batch_size)
        num_correct = (probabilities.argmax(1) == labels).sum()
        if self.distributed.world_size > 1:
            loss, num_correct = self.distributed.all_reduce_sum(torch.stack((loss.double(), num_correct.double())))
        label_probs = probabilities[:0, 0]
        if self.epochs.has_subsets:
            own_label_probs = probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
            label_probs = self.distributed.gather_shards(own_label_probs, batch_size)
        stats = StepStats(loss.item(), int(num_correct), label_probs)
        if not math.isfinite(stats.cost):
            place = f"at step {self.step_in_epoch + 1} of epoch {self.epoch}"
            raise self._nonfinite_error(f"the loss is {stats.cost} {place}", x)
        self.optimizer.step()
        return stats

    def compute_gradients(self, x: Tensor, labels: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
        """Set every parameter's ``grad`` to the gradient of the mean loss over the batch of all ranks.

        Args:
            x: normalized images of this rank's shard, (N, 1, H, W).
            labels: class indices of the shard, (N,).
            batch_size: number of images in all shards.

        Returns:
            The shard's part of the mean loss, and the shard's class probabilities (N, classes).
        """
        if self.engine == "document":
            return gradients_by_recursion(self.model, x, labels, batch_size, self.distributed)
        return gradients_by_autograd(self.model, self.ddp_model, x, labels, batch_size, self.distributed)

    def _nonfinite_error(self, description: str, x: Tensor) -> Exception:
        """Find the first non-finite tensor of a step on ``x``, on any rank. Every rank must call this."""
        tensors = nonfinite.step_tensors(self.model, x)
        first = self.distributed.first_not_none(nonfinite.describe_first_nonfinite(tensors))
        if not self.distributed.is_rank0:
            return CliExit(EXIT_FAILURE)
        return nonfinite.NonFiniteError(f"{description}; the first non-finite tensor is {first or 'the loss itself'}")

    def end_epoch(self, result: EvalResult) -> dict[str, Any]:
        """Append the metrics of the epoch that just ended to ``history``, begin the next epoch, and return them.

        Raises:
            NonFiniteError: the test loss is not finite. Ranks other than 0 raise CliExit instead.
        """
        if not math.isfinite(result.loss):
            x = normalize(self.dataset.test.images[:250], self.dataset, self.dtype)
            raise self._nonfinite_error(f"the test loss is {result.loss} after epoch {self.epoch - 1}", x)
        epoch = self.epoch - 2  # index from 0; self.epoch is the number of the next epoch, from 1
        first_step = self.epochs.ends[epoch - 1] if epoch else 0
        losses = self.losses[first_step:]
        self.history.append({
            "epoch": epoch + 1,
            "cost": sum(losses) / len(losses),
            "accuracy": 100 * self.num_correct / self.epochs.sizes[epoch],
            "test_cost": result.loss,
            "test_accuracy": result.accuracy,
            "seconds": self.seconds,
        })  # fmt: skip
        self.num_correct = 0
        self.begin_epoch()
        return self.history[-1]


def _update_average(
    averages: list[Tensor] | tuple[Tensor, ...], weights: list[Tensor] | tuple[Tensor, ...], count: Tensor | int
) -> None:
    """Update averages of ``count`` values with one more value each.

    torch's own function rounds the reciprocal to float32, which float64 weights would show.
    """
    foreach_lerp_(averages, weights, 1 / (int(count) + 1))
