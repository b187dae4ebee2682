"""Gradient descent by one program a step: from the bytes of the images that are chosen to the weights after it.

Everything that a step needs lies in one piece of memory, which the next uses again: nothing of it is given away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manualgrad.cpu import instruction_set, workspace
from manualgrad.cpu.program import Program, WorkspaceLayout
from manualgrad.cpu.tensor_checks import is_contiguous_as, storage_covers, supports_tensors
from manualgrad.network.plan import Plan
from manualgrad.network.plan_builder import Pixels


@dataclass(frozen=True)
class StepStats:
    """J before the step, how many images were taken for what they are, and the probability of each label, (B,)."""

    cost: float
    right: int
    known: Tensor


class Descent:
    """Steps on batches of images (N, 1, H, W) uint8 and labels (N,), as many at once as the plan has.

    Raises ValueError for images, labels or parameters that kernels cannot be given as they lie.
    """

    def __init__(
        self, plan: Plan, parameters: Sequence[Tensor], images: Tensor, labels: Tensor, mean: float, std: float
    ) -> None:
        rows = images.dim() == 4 and images.shape[1:] == plan.network.image and images.shape[1] == 1
        bytes_ = supports_tensors(images, dtype=torch.uint8) and storage_covers(images) and images.stride(-1) == 1
        dense = is_contiguous_as(labels, images.shape[:1], torch.int64)
        if not (rows and bytes_ and dense and all(map(is_contiguous_as, parameters, plan.shapes[1:]))):
            raise ValueError(
                "Descent: images must be uint8 (N, 1, H, W) with dense rows, labels int64, all on the CPU"
            )
        self.plan, self.parameters, self.images, self.labels = plan, list(parameters), images, labels
        self._were, self._order, self._labels = self._where(), labels[:0], labels[:0]
        self._layout = WorkspaceLayout(**_parts(plan))
        self._piece = self._layout.new()
        self._known, self._cost, self._rate, factor, odd = map(self._part, ("known", "cost", "rate", "factor", "odd"))
        self._right = self._part("right", torch.int64)
        self._odd = odd[: plan.stages.slots * plan.stages.first_dense]
        factor.fill_(1)
        own = dict(zip(self._layout.sizes, self._layout.addresses(self._piece), strict=True))
        self._fixed = [*[p.data_ptr() for p in self.parameters], *own.values(), own["x"], images.data_ptr()]
        stages = plan.stages.descent(Pixels(images.stride(0), images.stride(2), mean, std))
        names = [*_names(plan), *own, "seen", "images", "labels", "chosen"]
        self._program = Program(plan.code, plan.stages.threads, stages, names)

    def _where(self) -> list[tuple[Any, ...]]:
        """How parameters and images lie in memory."""
        tensors = [*self.parameters, self.images]
        return [(t.data_ptr(), t.shape, t.stride(), t.untyped_storage().nbytes()) for t in tensors]

    def _part(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._layout.part(self._piece, name, (-1,), dtype)

    def begin(self, order: Tensor) -> None:
        """The images' numbers in the order in which they will be taken, (n,) int64; none will be if a label is no
        class. Raises IndexError for numbers of no image."""
        if len(order) and not 0 <= int(order.min()) <= int(order.max()) < len(self.images):
            raise IndexError(f"Descent: the order must be of numbers from 0 to {len(self.images) - 1}")
        order = order.to("cpu", torch.int64)
        labels = self.labels.index_select(0, order)
        if ((labels < 0) | (labels >= self.plan.network.dense[-1])).any():
            order = labels = order[:0]
        self._order, self._labels = (workspace.new(len(order), dtype=torch.int64) for _ in range(2))
        self._order.copy_(order)
        self._labels.copy_(labels)

    def step(self, first: int, rate: float) -> StepStats | None:
        """One step of size ``rate`` on the images from number ``first`` of the order.

        None where the weights are left as they were: fewer images are left, something is not finite, a parameter or
        the images lie elsewhere or otherwise than before, or other kernels were chosen.
        """
        there = 0 <= first <= len(self._order) - self.plan.images
        if not there or self._where() != self._were or instruction_set.in_use() is not self.plan.code:
            return None
        self._rate.fill_(rate)
        offset = 8 * first
        self._program.run([*self._fixed, self._labels.data_ptr() + offset, self._order.data_ptr() + offset])
        cost = self._cost.item()
        if not math.isfinite(cost) or any(map(math.isnan, self._odd.tolist())):
            return None
        torch.autograd.graph.increment_version(self.parameters)
        return StepStats(cost, self._right.item(), self._known)


def _names(plan: Plan) -> list[str]:
    """Of the parameters."""
    return [f"{name}{n}" for n in range(plan.stages.last + 1) for name in ("w", "b")]


def _parts(plan: Plan) -> dict[str, int]:
    """What a step needs, in bytes: all that the plan's programs need, their results, and what goes in and out."""
    stages, images, classes = plan.stages, plan.images, plan.network.dense[-1]
    parts = {**stages.kept(), **stages.arranged(), **stages.scratch(), **stages.loss()}
    parts |= {f"d{name}": 4 * shape.numel() for name, shape in zip(_names(plan), plan.shapes[1:], strict=True)}
    parts |= {"x": 4 * plan.shapes[0].numel(), "s": 4 * images * classes, "known": 4 * images}
    return parts | {"cost": 4, "rate": 4, "factor": 4, "counts": 16, "right": 8}
