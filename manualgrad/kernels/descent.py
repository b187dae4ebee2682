"""Gradient descent by one program a step: from the bytes of the images that are chosen to the weights after it.

Everything that a step needs lies in one piece of memory, which the next uses again: nothing of it is given away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manualgrad.kernels import machine
from manualgrad.kernels.network import Plan
from manualgrad.kernels.network_stages import Pixels
from manualgrad.kernels.plain import is_all_there, is_served, lies_dense
from manualgrad.kernels.program import Layout, Program


@dataclass(frozen=True)
class Taken:
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
        bytes_ = is_served(images, dtype=torch.uint8) and is_all_there(images) and images.stride(3) == 1
        dense = lies_dense(labels, images.shape[:1], torch.int64)
        if not (rows and bytes_ and dense and all(map(lies_dense, parameters, plan.shapes[1:]))):
            raise ValueError("Descent: images must be uint8 (N, 1, H, W) with dense rows, labels int64, all on the CPU")
        self.plan, self.parameters, self.images, self.labels = plan, list(parameters), images, labels
        self._code, stages = plan.code, plan.stages
        parts = {**stages.kept(), **stages.arranged(), **stages.scratch(), **stages.loss()}
        classes, shapes = plan.network.dense[-1], plan.shapes[1:]
        names = [f"{name}{n}" for n in range(stages.last + 1) for name in ("w", "b")]
        parts |= {f"d{name}": 4 * shape.numel() for name, shape in zip(names, shapes, strict=True)}
        parts |= {
            "x": 4 * plan.shapes[0].numel(), "s": 4 * plan.images * classes, "known": 4 * plan.images,
            "cost": 4, "rate": 4, "factor": 4, "counts": 16, "right": 8,
        }  # fmt: skip
        layout = Layout(**parts)
        self._piece = layout.new()
        self._known, self._cost, self._rate, factor, odd = (
            layout.part(self._piece, name, (-1,)) for name in ("known", "cost", "rate", "factor", "odd")
        )
        factor.fill_(1)
        self._odd = odd[: stages.slots * stages.first_dense]
        self._counts, self._right = (layout.part(self._piece, name, (-1,), torch.int64) for name in ("counts", "right"))
        pixels = Pixels(images.stride(0), images.stride(2), mean, std)
        own = dict(zip(parts, layout.addresses(self._piece), strict=True))
        self._program = Program(
            self._code, stages.threads, stages.descent(pixels), [*names, *own, "seen", "images", "labels", "chosen"]
        )
        self._starts = [p.data_ptr() for p in self.parameters]
        self._fixed = [*self._starts, *own.values(), own["x"], images.data_ptr()]
        self._order, self._labels = labels[:0], labels[:0]

    def begin(self, order: Tensor) -> None:
        """The images' numbers in the order in which they will be taken, (n,) int64. Raises IndexError for others."""
        if len(order) and not 0 <= int(order.min()) <= int(order.max()) < len(self.images):
            raise IndexError(f"Descent: the order must be of numbers from 0 to {len(self.images) - 1}")
        self._order = order.to("cpu", torch.int64).contiguous()
        self._labels = self.labels.index_select(0, self._order)

    def step(self, first: int, rate: float) -> Taken | None:
        """One step of size ``rate`` on the images from number ``first`` of the order.

        None where the weights are left as they were: fewer images are left, a label is no class, something is not
        finite, a parameter is another or lies elsewhere than before, or other kernels were chosen.
        """
        here = [p.data_ptr() for p in self.parameters] == self._starts
        if not (0 <= first <= len(self._order) - self.plan.images) or not here or machine.in_use() is not self._code:
            return None
        self._rate.fill_(rate)
        offset = 8 * first
        self._program.run([*self._fixed, self._labels.data_ptr() + offset, self._order.data_ptr() + offset])
        cost, (_, outside) = self._cost.item(), self._counts.tolist()
        if outside or cost - cost != 0 or any(odd != odd for odd in self._odd.tolist()):
            return None
        torch.autograd.graph.increment_version(self.parameters)
        return Taken(cost, self._right.item(), self._known)
