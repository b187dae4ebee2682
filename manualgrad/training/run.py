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

from manualgrad import backprop
from manualgrad.data import Dataset
from manualgrad.functional import softmax_cross_entropy
from manualgrad.models import DocumentCNN
from manualgrad.training import nonfinite
from manualgrad.training.distributed import ALONE, Processes
from manualgrad.training.endings import FAILED, Ended
from manualgrad.training.steps import Verdict, minibatches, normalised

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
        batch_size: of all processes together.
        epochs: after which the run ``is_over``.
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
        batch_size: int,
        epochs: int,
        seed: int,
        engine: str = "autograd",
        processes: Processes = ALONE,
    ) -> None:
        if engine not in ENGINES:
            raise ValueError(f"no engine is called {engine!r}; there are {', '.join(ENGINES)}")
        self.model, self.optimizer, self.schedule, self.dataset = model, optimizer, schedule, dataset
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed
        self.engine, self.processes = engine, processes
        self.network = processes.connected(model) if engine == "autograd" else model
        self.steps_per_epoch = -(-len(dataset.train) // batch_size)
        self.step, self.seconds, self.right = 0, 0.0, 0
        self.costs: list[float] = []
        self.history: list[dict[str, Any]] = []
        self.order = torch.Generator().manual_seed(seed)
        self.begin_epoch()

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def is_over(self) -> bool:
        return self.step == self.steps

    @property
    def epoch(self) -> int:
        """The epoch of the next step, from 1 on."""
        return self.step // self.steps_per_epoch + 1

    @property
    def place(self) -> int:
        """How many steps of this epoch have been taken; 0 between two epochs."""
        return self.step % self.steps_per_epoch

    def begin_epoch(self) -> None:
        """From here on in the order that ``order`` draws next. What was seen of this epoch already is left out."""
        self.order_before = self.order.get_state()
        self.batches: Iterator[tuple[Tensor, Tensor]] = minibatches(
            self.dataset.train, self.batch_size, self.order, first=self.place, share=self.processes.share
        )

    def warm_up(self) -> None:
        """Computes the gradients of the first images and forgets them, so that no step has to wait for a compiler."""
        count = min(self.batch_size, len(self.dataset.train))
        chosen = self.processes.share(torch.arange(count, device=self.dataset.train.labels.device))
        images, labels = self.dataset.train.images[chosen], self.dataset.train.labels[chosen]
        self.find_gradients(normalised(images, self.dataset, next(self.model.parameters()).dtype), labels, count)
        self.model.zero_grad()

    def take_step(self) -> Step:
        """One step of gradient descent, on the next batch.

        Raises NonFinite, which names the first tensor that is not finite, and then leaves the weights alone; Ended in
        the processes that are not the first.
        """
        start = time.perf_counter()
        rate = self.optimizer.param_groups[0]["lr"]
        count = min(self.batch_size, len(self.dataset.train) - self.place * self.batch_size)
        images, labels = next(self.batches)
        x = normalised(images, self.dataset, next(self.model.parameters()).dtype)
        cost, answers = self.find_gradients(x, labels, count)
        right = (answers.argmax(1) == labels).sum()
        if self.processes.count > 1:
            cost, right = self.processes.add_up(torch.stack((cost.double(), right.double())))
        step = Step(self.step + 1, cost.item(), count, int(right), rate)
        if not math.isfinite(step.cost):
            raise self._nonfinite(step.cost, x)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        self.right += step.right
        self.costs.append(step.cost)
        self.seconds += time.perf_counter() - start
        return step

    def find_gradients(self, x: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Leaves ∂J/∂w in every parameter's ``grad``; returns J, and the network's answers (B, classes).

        J is the mean over the ``count`` images of the whole batch. Where ``x`` is a process's share of them, so is
        what this returns; the gradients it leaves are of the whole.
        """
        if self.engine == "document":
            return self._find_gradients_by_recursion(x, labels, count)
        self.model.zero_grad()
        logits = self.network(x)
        if self.processes.count == 1:
            cost = softmax_cross_entropy(logits, labels)
            cost.backward()
        else:
            cost = softmax_cross_entropy(logits, labels, reduction="sum") / count
            (cost * self.processes.count).backward()  # DistributedDataParallel divides by as much
        return cost.detach(), logits.detach()

    def _find_gradients_by_recursion(self, x: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Section 4, whose steps for η = −1 are the gradients, and for less this process's share of them."""
        share = len(labels) / count
        if share:
            steps = backprop.backpropagate(self.model, x, labels, eta=-share)
            for layer, weight, bias in zip(self.model.weighted(), steps.weights, steps.biases, strict=True):
                layer.weight.grad, layer.bias.grad = weight, bias
            cost, answers = steps.cost * share, steps.probabilities
        else:  # fewer images than processes, and there is no mean of none
            for parameter in self.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            cost, answers = x.new_zeros(()), x.new_zeros((0, self.model.classes))
        self.processes.add_up_gradients(self.model.parameters())
        return cost, answers

    def _nonfinite(self, cost: float, x: Tensor) -> Exception:
        found = self.processes.first_found(nonfinite.first_nonfinite(nonfinite.tensors_of_a_step(self.model, x)))
        if not self.processes.is_first:
            return Ended(FAILED)  # all know it, and the first says it
        return nonfinite.NonFinite(f"the cost is {cost} at step {self.place + 1} of epoch {self.epoch}: "
                                   f"not finite is first {found or 'the cost itself'}")  # fmt: skip

    def close_epoch(self, verdict: Verdict) -> dict[str, Any]:
        """After the last step of an epoch: what it brought, also kept in ``history``."""
        costs = self.costs[-self.steps_per_epoch :]
        self.history.append({
            "epoch": self.epoch - 1,
            "cost": sum(costs) / len(costs),
            "accuracy": 100 * self.right / len(self.dataset.train),
            "test_cost": verdict.cost,
            "test_accuracy": verdict.accuracy,
            "seconds": self.seconds,
        })  # fmt: skip
        self.right = 0
        self.begin_epoch()
        return self.history[-1]
