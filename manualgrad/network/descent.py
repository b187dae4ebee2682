"""Gradient descent by one program a step: from the uint8 images of a batch to the updated weights.

All memory of a step is one workspace, which the next step uses again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manualgrad.cpu import instruction_set, memory
from manualgrad.cpu.program import WorkspaceLayout
from manualgrad.cpu.tensor_checks import is_contiguous_as, storage_covers, supports_tensors
from manualgrad.network.plan import Plan
from manualgrad.network.plan_builder import PixelFormat


@dataclass(frozen=True)
class StepStats:
    """Statistics of one step's batch, computed before the update.

    Attributes:
        cost: J.
        num_correct: number of images whose largest logit is that of their label.
        label_probs: probability of each image's label, (N,); the next step overwrites it.
    """

    cost: float
    num_correct: int
    label_probs: Tensor


class Descent:
    """Steps w − η ∂J/∂w on batches of a data set; a batch has as many images as the plan.

    Args:
        parameters: weight and bias of each layer in turn; each step updates them in place.
        images: the whole data set, (N, 1, H, W) uint8.
        labels: its class indices, (N,) int64.
        mean, std: the network's input is (pixel − mean) / std.

    Raises:
        ValueError: images, labels or parameters whose dtype, device or memory layout the kernels do not support.
    """

    def __init__(
        self, plan: Plan, parameters: Sequence[Tensor], images: Tensor, labels: Tensor, mean: float, std: float
    ) -> None:
        fit_network = images.dim() == 4 and images.shape[1:] == plan.network.image_shape and images.shape[1] == 1
        are_bytes = supports_tensors(images, dtype=torch.uint8) and storage_covers(images) and images.stride(-1) == 1
        labels_fit = is_contiguous_as(labels, images.shape[:1], torch.int64)
        parameters_fit = all(map(is_contiguous_as, parameters, plan.parameter_shapes))
        if not (fit_network and are_bytes and labels_fit and parameters_fit):
            raise ValueError(
                f"Descent: images must be uint8 of shape (N, 1, H, W) with contiguous rows and the H and W of the "
                f"network, labels contiguous int64 of shape (N,), parameters contiguous float32, all on the CPU; got "
                f"images of {images.dtype} and shape {tuple(images.shape)}, labels of {labels.dtype} and shape "
                f"{tuple(labels.shape)}"
            )
        self.plan, self.parameters, self.images, self.labels = plan, list(parameters), images, labels
        self._initial_memory = self._memory()
        self._epoch_indices, self._epoch_labels = labels[:0], labels[:0]

        self._layout = WorkspaceLayout(**_buffer_sizes(plan))
        self._workspace = self._layout.allocate()
        self._loss, self._learning_rate = self._buffer("loss"), self._buffer("learning_rate")
        self._label_probs, self._num_correct = self._buffer("label_probs"), self._buffer("num_correct", torch.int64)
        self._nonfinite = self._buffer("nonfinite")[: plan.builder.nonfinite_numel]
        self._buffer("factor").fill_(1)

        buffers = dict(zip(self._layout.sizes, self._layout.addresses(self._workspace), strict=True))
        names = [*plan.parameter_names, *buffers, "x_backward", "images", "labels", "indices"]
        parameter_addresses = [p.data_ptr() for p in self.parameters]
        self._fixed_addresses = [*parameter_addresses, *buffers.values(), buffers["x"], images.data_ptr()]
        pixels = PixelFormat(images.stride(0), images.stride(2), mean, std)
        regions = plan.builder.descent_regions(pixels)
        self._program = plan.device.program(plan.builder.split.num_threads, regions, names)

    def _memory(self) -> list[tuple[object, ...]]:
        """Address, shape, strides and storage size of the parameters and of the images."""
        tensors = [*self.parameters, self.images]
        return [(t.data_ptr(), t.shape, t.stride(), t.untyped_storage().nbytes()) for t in tensors]

    def _buffer(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._layout.buffer(self._workspace, name, (-1,), dtype)

    def begin_epoch(self, indices: Tensor) -> None:
        """Set the order of the images for the next steps.

        Args:
            indices: image indices, (n,) int64. If the label of one of them is no class, every step returns None.

        Raises:
            IndexError: an index of no image.
        """
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self.images):
            raise IndexError(
                f"Descent: indices must be numbers from 0 to {len(self.images) - 1}, got numbers from "
                f"{int(indices.min())} to {int(indices.max())}"
            )
        indices = indices.to("cpu", torch.int64)
        labels = self.labels.index_select(0, indices)
        if ((labels < 0) | (labels >= self.plan.network.classes)).any():
            indices = labels = indices[:0]
        self._epoch_indices, self._epoch_labels = (memory.new(len(indices), dtype=torch.int64) for _ in range(2))
        self._epoch_indices.copy_(indices)
        self._epoch_labels.copy_(labels)

    def step(self, first: int, learning_rate: float) -> StepStats | None:
        """Update the parameters by the gradient of the batch that begins at position ``first`` of the epoch.

        Returns:
            None, with the parameters unchanged, if too few images are left for a batch, if a result is not finite, if
            a parameter or the images have moved in memory, or if other kernels have been chosen.
        """
        has_batch = 0 <= first <= len(self._epoch_indices) - self.plan.batch_size
        if (
            not has_batch
            or self._memory() != self._initial_memory
            or instruction_set.current_module() is not self.plan.module
        ):
            return None
        self._learning_rate.fill_(learning_rate)
        offset = 8 * first  # bytes
        batch_addresses = [self._epoch_labels.data_ptr() + offset, self._epoch_indices.data_ptr() + offset]
        self._program.run([*self._fixed_addresses, *batch_addresses])
        cost = self._loss.item()
        if not math.isfinite(cost) or any(map(math.isnan, self._nonfinite.tolist())):
            return None
        torch.autograd.graph.increment_version(self.parameters)
        return StepStats(cost, int(self._num_correct.item()), self._label_probs)


def _buffer_sizes(plan: Plan) -> dict[str, int]:
    """Bytes of every buffer of a step: those of the plan's programs, their results, inputs and outputs."""
    builder, batch_size, classes = plan.builder, plan.batch_size, plan.network.classes
    buffers = {
        **builder.saved_buffers(), **builder.packed_buffers(), **builder.scratch_buffers(), **builder.loss_buffers()
    }  # fmt: skip
    for name, shape in zip(plan.parameter_names, plan.parameter_shapes, strict=True):
        buffers[f"d{name}"] = 4 * shape.numel()
    buffers |= {
        "x": 4 * plan.input_shape.numel(),
        "probabilities": 4 * batch_size * classes,
        "label_probs": 4 * batch_size,
    }
    return buffers | {"loss": 4, "learning_rate": 4, "factor": 4, "counts": 16, "num_correct": 8}
