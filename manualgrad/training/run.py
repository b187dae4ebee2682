"""A training run that can be put down between two steps and taken up again, by one process or several."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler
from torch.optim.swa_utils import AveragedModel

from manualgrad import backprop, kernels
from manualgrad.data import Dataset
from manualgrad.functional import softmax, softmax_cross_entropy
from manualgrad.models import DocumentCNN
from manualgrad.network.descent import StepStats
from manualgrad.training import nonfinite
from manualgrad.training.by_program import ByProgram
from manualgrad.training.distributed import ALONE, Processes
from manualgrad.training.endings import FAILED, Ended
from manualgrad.training.epochs import Choice, Epochs
from manualgrad.training.steps import Verdict, minibatches

ENGINES = ("autograd", "document")


@dataclass(frozen=True)
class Step:
    """One step: its number from 1 on, J before it, how many ``images`` it saw, how many of them ``right``, and η."""

    number: int
    cost: float
    images: int
    right: int
    learning_rate: float


class Run:
    """The network, the optimiser, the schedule of η and the order of the images: all that the next step depends on.

    Args:
        model, optimizer, schedule: the schedule is of this optimiser, and the optimiser of this model's parameters.
        dataset: on the model's device.
        epochs: of the dataset's training images, after which the run ``is_over``; the batches are of all processes
            together.
        averaged: of so many steps, the last ones, the weights are averaged, and the mean is what the run ends with.
        seed: of the order; together with the model's initial weights it decides all that follows.
        engine: "autograd" chains our Functions; "document" runs the recursion of δ. The numbers are the same.
        processes: who shares the work. Every process has a Run, and their weights have to be the same at the start.
    """

    def __init__(
        self,
        model: DocumentCNN,
        optimizer: Optimizer,
        schedule: lr_scheduler.LRScheduler,
        dataset: Dataset,
        *,
        epochs: Epochs,
        seed: int,
        averaged: int = 0,
        engine: str = "autograd",
        processes: Processes = ALONE,
    ) -> None:
        if engine not in ENGINES:
            raise ValueError(f"no engine is called {engine!r}; there are {', '.join(ENGINES)}")
        self.model, self.optimizer, self.schedule, self.dataset = model, optimizer, schedule, dataset
        self.epochs, self.seed, self.averaged = epochs, seed, averaged
        self.engine, self.processes = engine, processes
        self.network = processes.connected(model) if engine == "autograd" else model
        self.mean = AveragedModel(model, multi_avg_fn=_average) if averaged else None
        self.step, self.seconds, self.right = 0, 0.0, 0
        self.costs: list[float] = []
        self.history: list[dict[str, Any]] = []
        self.order = torch.Generator().manual_seed(seed)
        self.choice = Choice(epochs.images)
        kernels.available()  # compiles what is not compiled yet, before the clock runs
        self.begin_epoch()

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def steps(self) -> int:
        return self.epochs.steps

    @property
    def is_over(self) -> bool:
        return self.step == self.steps

    @property
    def epoch(self) -> int:
        """The epoch of the next step, from 1 on."""
        return self.epochs.epoch(self.step) + 1

    @property
    def place(self) -> int:
        """How many steps of this epoch have been taken; 0 between two epochs."""
        return self.epochs.place(self.step)

    def begin_epoch(self) -> None:
        """From here on in the order that ``order`` draws next."""
        start = time.perf_counter()
        self.choice.note()
        if not self.is_over:
            self.draw_order()
        self.seconds += time.perf_counter() - start

    def draw_order(self) -> None:
        """Of the images of this epoch; what was seen of it already is left out."""
        self.order_before = self.order.get_state()
        self.chosen = self.choice.draw(self.epochs.sizes[self.epoch - 1], self.order)
        self._gather_from_here()
        self.by_program = None
        if self.engine == "document" and self.processes.count == 1:
            self.by_program = ByProgram(
                self.model, self.optimizer, self.dataset, self.epochs.batch_size, self.chosen
            )  # fmt: skip

    def _gather_from_here(self) -> None:
        self.batches: Iterator[tuple[Tensor, Tensor]] = minibatches(
            self.dataset, self.chosen, self.epochs.batch_size,
            dtype=self.dtype, first=self.place, share=self.processes.share,
        )  # fmt: skip
        self.gathered = self.step  # the step that the next of them is for

    def warm_up(self) -> None:
        """Computes the gradients of the first images and forgets them, so that no step has to wait for a compiler."""
        count = self.epochs.batch(0)
        x, labels = next(minibatches(
            self.dataset, torch.arange(count), count, dtype=self.dtype, share=self.processes.share
        ))  # fmt: skip
        self.find_gradients(x, labels, count)
        self.model.zero_grad()

    def take_step(self) -> Step:
        """One step of gradient descent, on the next batch.

        Raises NonFinite, which names the first tensor that is not finite, and then leaves the weights alone; Ended in
        the processes that are not the first.
        """
        start = time.perf_counter()
        rate, count = self.optimizer.param_groups[0]["lr"], self.epochs.batch(self.step)
        taken = None
        if self.by_program is not None and self.step:  # a schedule asks that the optimiser has stepped before it
            first = self.place * self.epochs.batch_size
            taken = self.by_program.step(self.model, self.optimizer, first, rate)
        if taken is None:
            taken = self._step_by_gradients(count)
        step = Step(self.step + 1, taken.cost, count, taken.right, rate)
        if self.epochs.choose:
            self.choice.saw(taken.known.clone())
        self.schedule.step()
        self.step += 1
        self._average()
        self.right += step.right
        self.costs.append(step.cost)
        self.seconds += time.perf_counter() - start
        return step

    def _step_by_gradients(self, count: int) -> StepStats:
        """A step of ``count`` images, of which this process may have a share, by the optimiser."""
        if self.gathered != self.step:
            self._gather_from_here()
        x, labels = next(self.batches)
        self.gathered += 1
        cost, probabilities = self.find_gradients(x, labels, count)
        right = (probabilities.argmax(1) == labels).sum()
        if self.processes.count > 1:
            cost, right = self.processes.add_up(torch.stack((cost.double(), right.double())))
        known = self._of_labels(probabilities, labels, count) if self.epochs.choose else probabilities[:0, 0]
        taken = StepStats(cost.item(), int(right), known)
        if not math.isfinite(taken.cost):
            raise self._nonfinite(taken.cost, x)
        self.optimizer.step()
        return taken

    def _of_labels(self, probabilities: Tensor, labels: Tensor, count: int) -> Tensor:
        """What the network gives for each label of the whole batch of ``count`` images."""
        found = probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
        if self.processes.count > 1:
            whole = found.new_zeros(count)
            self.processes.share(whole).copy_(found)
            found = self.processes.add_up(whole)
        return found

    def _average(self) -> None:
        """Over the last ``averaged`` steps the mean of the weights, which are that mean after the last."""
        if self.mean is not None and self.step > self.steps - self.averaged:
            self.mean.update_parameters(self.model)
            if self.is_over:
                self.model.load_state_dict(self.mean.module.state_dict())

    def find_gradients(self, x: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Leaves ∂J/∂w in every parameter's ``grad``; returns J, and the network's probabilities (B, classes).

        J is the mean over the ``count`` images of the whole batch. Where ``x`` is a process's share of them, so is
        what this returns; the gradients it leaves are of the whole.
        """
        if self.engine == "document":
            return self._find_gradients_by_recursion(x, labels, count)
        self.model.zero_grad()
        if self.processes.count == 1:
            cost, probabilities = self.model.cost_and_probabilities(x, labels)
            cost.backward()
            return cost.detach(), probabilities
        logits = self.network(x)
        cost = softmax_cross_entropy(logits, labels, reduction="sum") / count
        (cost * self.processes.count).backward()  # DistributedDataParallel divides by as much
        return cost.detach(), softmax(logits.detach())  # eq. (11)

    def _find_gradients_by_recursion(self, x: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Section 4, whose steps for η = −1 are the gradients, and for less this process's share of them."""
        share = len(labels) / count
        self.model.zero_grad()
        if share:
            steps = backprop.backpropagate(self.model, x, labels, eta=-share)
            weights = [w for f in self.model.weighted() for w in (f.weight, f.bias)]
            found = [step for both in zip(steps.weights, steps.biases, strict=True) for step in both]
            for w, gradient in zip(weights, found, strict=True):
                if w.requires_grad:  # one that two layers share has both gradients
                    w.grad = gradient if w.grad is None else w.grad + gradient
            cost, probabilities = steps.cost * share, steps.probabilities
        else:  # fewer images than processes, and there is no mean of none
            for parameter in self.model.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            cost, probabilities = x.new_zeros(()), x.new_zeros((0, self.model.classes))
        self.processes.add_up_gradients(w for w in self.model.parameters() if w.requires_grad)
        return cost, probabilities

    def _nonfinite(self, cost: float, x: Tensor) -> Exception:
        found = self.processes.first_found(nonfinite.first_nonfinite(nonfinite.tensors_of_a_step(self.model, x)))
        if not self.processes.is_first:
            return Ended(FAILED)  # all know it, and the first says it
        return nonfinite.NonFinite(f"the cost is {cost} at step {self.place + 1} of epoch {self.epoch}: "
                                   f"not finite is first {found or 'the cost itself'}")  # fmt: skip

    def close_epoch(self, verdict: Verdict) -> dict[str, Any]:
        """After the last step of an epoch: what it brought, also kept in ``history``."""
        epoch = self.epoch - 2  # from 0 on
        size, costs = self.epochs.sizes[epoch], self.costs[self.epochs.ends[epoch - 1] if epoch else 0 :]
        self.history.append({
            "epoch": epoch + 1,
            "cost": sum(costs) / len(costs),
            "accuracy": 100 * self.right / size,
            "test_cost": verdict.cost,
            "test_accuracy": verdict.accuracy,
            "seconds": self.seconds,
        })  # fmt: skip
        self.right = 0
        self.begin_epoch()
        return self.history[-1]


def _average(means: list[Tensor], weights: list[Tensor], number: Tensor | int) -> None:
    """Takes one more into means of a ``number``; torch's own function has that number's reciprocal in float32."""
    torch._foreach_lerp_(means, weights, 1 / (int(number) + 1))
