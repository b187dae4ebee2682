"""A network as functions of tensors, computed by the kernel calls of ``plan_builder.py``.

A :class:`Plan` holds one program per function, made once for a network, a batch size and a number of threads. The
tensors between the layers are buffers of one workspace, which one allocation per call provides.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from manualgrad._torch_compat import foreach_mul, is_graph_freed
from manualgrad.cpu import instruction_set, jit, memory
from manualgrad.cpu.conv_pool import check_tensor, to_contiguous
from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.program import Program, WorkspaceLayout
from manualgrad.cpu.tensor_checks import is_contiguous_as, storage_covers, supports_tensors
from manualgrad.network.cpu_blocks import CPUDevice
from manualgrad.network.cpu_borders import share_borders
from manualgrad.network.cpu_conv_pool_block import ConvReLUPoolBlock
from manualgrad.network.device import Unsupported
from manualgrad.network.layers import Conv, NetworkSpec
from manualgrad.network.plan_builder import PlanBuilder, Region
from manualgrad.network.plan_interface import Intermediates, LossAndSteps, saved_tensor_error

_MINUS_ONE = ctypes.c_float(-1)  # learning rate with which w − η Δw is w + Δw


class Plan:
    """Programs of kernels for one network, one batch size and one number of threads.

    Tensors are float32 on the CPU. ``parameters`` are the weight and bias of each layer in turn, of
    ``parameter_shapes``; ``weights`` are every second one of them.
    """

    def __init__(self, module: KernelModule, network: NetworkSpec, batch_size: int, threads: int) -> None:
        self.module, self.network, self.batch_size = module, network, batch_size
        self.device = CPUDevice(module)
        builder = self.builder = PlanBuilder(self.device, network, batch_size, threads)
        share_borders(builder.blocks)
        self.input_shape = torch.Size((batch_size, *network.image_shape))
        self.parameter_names = builder.parameter_names
        self.parameter_shapes = list(map(torch.Size, builder.parameter_shapes))
        self.weight_shapes = self.parameter_shapes[::2]

        saved, packed = builder.saved_buffers(), builder.packed_buffers()
        scratch, loss = builder.scratch_buffers(), builder.loss_buffers()
        self._saved_layout, self._packed_layout = WorkspaceLayout(**saved), WorkspaceLayout(**packed)
        self._scratch_layout = WorkspaceLayout(**scratch)
        self._workspace_layout = WorkspaceLayout(**(saved | packed | scratch | loss))
        self._saved_shape = torch.Size((self._saved_layout.nbytes,))
        self._saves_x = not {"x_copy0", "x_padded0"}.isdisjoint(saved)  # backward reads the copy, not x

        parameters = self.parameter_names
        weights, steps = parameters[::2], [f"d{name}" for name in parameters]

        def program(regions: list[Region], names: list[str]) -> Program:
            return self.device.program(builder.split.num_threads, regions, names)

        self._forward_program = program(builder.forward_regions(), [*parameters, *saved, "x", "z", *packed])
        names = [*weights, *saved, "x", "x_backward", "g", *steps, *scratch]
        self._backward_program = program(builder.backward_regions(), names)
        names = [*parameters, "x", "x_backward", "labels", "counts", "factor", "probabilities", "loss", *steps]
        names += self._workspace_layout.sizes
        regions = builder.loss_and_grads_regions()
        self._loss_program = program(regions, names)
        self._update_program = program([*regions, builder.update_region()], [*names, "learning_rate"])

    def supports(self, x: Tensor, parameters: Sequence[Tensor]) -> bool:
        """Return True if the kernels can read ``x``, of any strides, and ``parameters``."""
        return self._supports_input(x) and all(map(is_contiguous_as, parameters, self.parameter_shapes))

    def _supports_input(self, x: Tensor) -> bool:
        return x.shape == self.input_shape and supports_tensors(x) and storage_covers(x)

    def forward(self, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
        """z^{L−1}, (N, classes), and the workspace that :meth:`backward` needs besides x and the weights.

        The plan must support x and the parameters (:meth:`supports`). None if a weight is not finite that kernels do
        not multiply with all zeros outside the image.
        """
        z, saved = memory.new(self.batch_size, self.network.classes), self._saved_layout.allocate()
        packed = self._packed_layout.allocate()
        x = to_contiguous(x, torch.channels_last)
        addresses = [*_addresses(parameters), *self._saved_layout.addresses(saved), x.data_ptr(), z.data_ptr()]
        self._forward_program.run(addresses + self._packed_layout.addresses(packed))
        return (z, saved) if self._is_finite(self._packed_layout, packed, self.builder.forward_flags) else None

    def backward(self, g: Tensor, x: Tensor, saved: Tensor, weights: Sequence[Tensor]) -> list[Tensor] | None:
        """∂J/∂w and ∂J/∂b of each layer from ``g``, ∂J/∂z^{L−1}, (N, classes).

        Returns:
            The gradients in the order of the parameters, or None if g has another dtype, or if a gradient is not
            finite: kernels skip zeros, while the formulas have 0·∞ = NaN, so that the formulas have to compute them.

        Raises:
            ValueError: x, a weight or ``saved`` has another shape, dtype or memory than in forward.
        """
        if not supports_tensors(g):
            return None
        if not (
            self._supports_input(x)
            and is_contiguous_as(saved, self._saved_shape, torch.uint8)
            and all(map(is_contiguous_as, weights, self.weight_shapes))
        ):
            raise ValueError(self._saved_tensor_error(x, saved, weights))
        g = to_contiguous(check_tensor(g, (self.batch_size, self.network.classes)))
        x, x_backward = (x, x) if self._saves_x else self._input_layouts(x)
        scratch, grads = self._scratch_layout.allocate(), self._allocate_grads(weights)
        addresses = [*_addresses(weights), *self._saved_layout.addresses(saved), *_addresses((x, x_backward, g))]
        self._backward_program.run([*addresses, *_addresses(grads), *self._scratch_layout.addresses(scratch)])
        return grads if self._is_finite(self._scratch_layout, scratch, self.builder.backward_flags) else None

    def _saved_tensor_error(self, x: Tensor, saved: Tensor, weights: Sequence[Tensor]) -> str:
        tensors = [
            ("x", x, self.input_shape, torch.float32),
            ("the workspace", saved, self._saved_shape, torch.uint8),
        ]
        for n, (weight, shape) in enumerate(zip(weights, self.weight_shapes, strict=True)):
            tensors.append((f"weight {n}", weight, shape, torch.float32))
        modified = (entry for entry in tensors[1:] if not is_contiguous_as(*entry[1:]))
        name, tensor, shape, dtype = next(modified, tensors[0])
        contiguous = "" if tensor is x else "contiguous "
        return saved_tensor_error(tensor, name, shape, dtype, contiguous)

    def loss_and_grads(
        self, x: Tensor, labels: Tensor, parameters: Sequence[Tensor], factor: float, *, update: bool = False
    ) -> LossAndSteps | None:
        """The mean loss of ``labels``, (N,) int64, and ``factor`` times its gradient, by one program.

        The plan must support x and the parameters (:meth:`supports`).

        Args:
            update: also add ``factor`` times the gradient to the parameters.

        Returns:
            None, with the parameters unchanged, if a label is no class, if every label is to be ignored, or if a
            result is not finite.
        """
        if not self.batch_size or not is_contiguous_as(labels, self.input_shape[:1], torch.int64):
            return None
        counts, c_factor = (
            (ctypes.c_int64 * 2)(),
            ctypes.c_float(factor),
        )  # counts: labels that count, labels of no class
        probabilities, loss = memory.new(self.batch_size, self.network.classes), memory.new()
        workspace, steps = self._workspace_layout.allocate(), self._allocate_grads(parameters[::2])
        x, x_backward = self._input_layouts(x)
        addresses = [*_addresses(parameters), *_addresses((x, x_backward, labels)), ctypes.addressof(counts)]
        addresses += [ctypes.addressof(c_factor), *_addresses((probabilities, loss)), *_addresses(steps)]
        addresses += self._workspace_layout.addresses(workspace)
        if update:
            self._update_program.run([*addresses, ctypes.addressof(_MINUS_ONE)])
        else:
            self._loss_program.run(addresses)
        is_valid = (
            counts[0]
            and not counts[1]
            and self._is_finite(self._workspace_layout, workspace, slice(None))
            and (not update or math.isfinite(loss))
        )
        return LossAndSteps(probabilities, loss, steps, workspace) if is_valid else None

    def scale_grads(self, grads: list[Tensor], g: Tensor) -> list[Tensor] | None:
        """``grads`` times ``g``, (), in an engine's backward; None if g is not finite or another dtype."""
        if not supports_tensors(g) or not math.isfinite(g):
            return None
        # another backward could read the saved gradients
        return grads if g == 1 and is_graph_freed() else list(foreach_mul(grads, g))

    def intermediates(self, result: LossAndSteps) -> Intermediates:
        """Views of the tensors between the layers in the workspace of ``result``."""
        inputs, pool_indices, grad_outputs = list[Tensor](), list[Tensor](), list[Tensor]()

        def buffer(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
            return self._workspace_layout.buffer(result.workspace, name, (self.batch_size, *shape), dtype)

        for layer, block, at in zip(self.network.layers, self.builder.blocks, self.builder.places, strict=True):
            shape, is_conv = block.out.shape, isinstance(layer, Conv)
            if isinstance(block, ConvReLUPoolBlock):
                name = at.own("pool_index").name
                index = self._workspace_layout.buffer(result.workspace, name, (-1,), torch.uint8)
                pool_indices.append(block.pool_index(index).permute(0, 3, 1, 2))
            if block.is_view:
                inputs[-1] = inputs[-1].flatten(1)
            else:
                grad = buffer(at.grad_out.name, shape)
                grad_outputs.append(grad.permute(0, 3, 1, 2) if is_conv else grad)
                inputs.append(buffer(at.out.name, shape))
        inputs.pop()  # z^{L−1}, the input of no layer
        return Intermediates(inputs, pool_indices, grad_outputs)

    def _allocate_grads(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Uninitialized gradients of each weight and its bias."""
        return [grad for w in weights for grad in (memory.new_like(w), memory.new(w.size(0)))]

    def _input_layouts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x in the memory layouts that the kernels of forward and of backward read."""
        return self.builder.blocks[0].input_layouts(x)

    def _is_finite(self, layout: WorkspaceLayout, workspace: Tensor, flags: slice) -> bool:
        """Return True if no task met an infinity or NaN that skipping zeros would hide."""
        return not any(map(math.isnan, layout.read_floats(workspace, "nonfinite")[flags]))


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return [t.data_ptr() for t in tensors]


def get_plan(network: NetworkSpec, batch_size: int) -> Plan | str:
    """The plan for the kernels in use and torch's number of threads, or the reason why there is none."""
    module = instruction_set.current_module()
    if module is None:
        return f"there are {instruction_set.available()}"
    return _cached_plan(module.instructions, network, batch_size, torch.get_num_threads())


@lru_cache(64)
def _cached_plan(instructions: str, network: NetworkSpec, batch_size: int, threads: int) -> Plan | str:
    try:
        return Plan(jit.load_module(instructions), network, batch_size, threads)
    except Unsupported as reason:
        return str(reason)
