"""The network of section 4.2 as functions of tensors: programs of the kernels that ``plan_builder.py`` puts
together, and all that keeps them inside of the tensors."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from manualgrad.cpu import instruction_set, jit, workspace
from manualgrad.cpu.conv_pool import checked, dense, for_derivatives
from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.program import Program, WorkspaceLayout
from manualgrad.cpu.tensor_checks import is_contiguous_as, storage_covers, supports_tensors
from manualgrad.network.plan_builder import Network, PlanBuilder

_ADD = ctypes.c_float(-1)  # η where w − η g has to be w + g


@dataclass(frozen=True)
class LossAndSteps:
    """S(z^{L−1}) (B, classes) and J; what is to be added to each w and b; and the memory between the layers."""

    probabilities: Tensor
    cost: Tensor
    steps: list[Tensor]
    memory: Tensor


class Plan:
    """The programs for one number of images and of threads."""

    def __init__(self, code: KernelModule, network: Network, images: int, threads: int) -> None:
        self.code, self.network, self.images = code, network, images
        stages = self.stages = PlanBuilder(code, network, images, threads)
        self.shapes = [torch.Size((images, *network.image))]  # of x, and of each w and b
        for s in stages.convolutions:
            self.shapes.append(torch.Size((s.outputs, s.channels, s.kernel_rows, s.kernel_columns)))
            self.shapes.append(torch.Size((s.outputs,)))
        for inputs, outputs in stages.products:
            self.shapes += [torch.Size((outputs, inputs)), torch.Size((outputs,))]
        kept, arranged, scratch, loss = stages.kept(), stages.arranged(), stages.scratch(), stages.loss()
        self._kept, self._arranged, self._scratch = (WorkspaceLayout(**parts) for parts in (kept, arranged, scratch))
        self._all = WorkspaceLayout(**kept, **arranged, **scratch, **loss)
        self._kept_shape = torch.Size((self._kept.bytes,))
        parameters = [f"{name}{n}" for n in range(stages.last + 1) for name in ("w", "b")]
        weights, steps = parameters[::2], [f"d{name}" for name in parameters]

        def program(of: list, names: list[str]) -> Program:
            return Program(code, stages.threads, of, names)

        self._forward = program(stages.forward(), [*parameters, *kept, "x", "z", *arranged])
        self._backward = program(stages.backward(), [*weights, *kept, "x", "seen", "g", *steps, *scratch])
        names = [*parameters, "x", "seen", "labels", "counts", "factor", "s", "cost", *steps, *self._all.sizes]
        self._both = program(stages.forward_and_backward(), names)
        self._descent = program([*stages.forward_and_backward(), stages.update()], [*names, "rate"])

    def takes(self, x: Tensor, parameters: Sequence[Tensor]) -> bool:
        """Whether kernels can be given these. x may lie in any order."""
        return self._takes_x(x) and all(map(is_contiguous_as, parameters, self.shapes[1:]))

    def _takes_x(self, x: Tensor) -> bool:
        return x.shape == self.shapes[0] and supports_tensors(x) and storage_covers(x)

    def _gradients(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Room for those of each weight and its bias."""
        return [t for w in weights for t in (workspace.like(w), workspace.new(len(w)))]

    def forward(self, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """z^{L−1}, (B, classes), and what ``backward`` needs besides x and the parameters, which it :meth:`takes`."""
        z, kept, arranged = workspace.new(self.images, self.network.dense[-1]), self._kept.new(), self._arranged.new()
        x = dense(x, torch.channels_last)
        addresses = [*_starts(parameters), *self._kept.addresses(kept), x.data_ptr(), z.data_ptr()]
        self._forward.run(addresses + self._arranged.addresses(arranged))
        return z, kept

    def backward(self, g: Tensor, x: Tensor, kept: Tensor, weights: Sequence[Tensor]) -> list[Tensor] | None:
        """∂J/∂w and ∂J/∂b of each layer from ``g``, ∂J/∂z^{L−1}; None where something is not finite and the formulas,
        which make 0·∞ = NaN of that, have to serve.

        Raises ValueError where x, a weight or the kept memory is no longer what forward was given."""
        fine = self._takes_x(x) and is_contiguous_as(kept, self._kept_shape, torch.uint8)
        if not fine or not all(map(is_contiguous_as, weights, self.shapes[1::2])):
            given = [f"{t.dtype} of {tuple(t.shape)}" for t in (x, *weights, kept)]
            expected = f"torch.float32 of {list(map(tuple, (self.shapes[0], *self.shapes[1::2])))}"
            raise ValueError(
                f"DocumentCNN: x, a weight or what was saved between layers is not what it was in forward: expected "
                f"{expected}, dense, and {self._kept.bytes} bytes; got {given}"
            )
        g = dense(checked(g, (self.images, self.network.dense[-1])))
        x, seen = self._orders(x)
        scratch, found = self._scratch.new(), self._gradients(weights)
        addresses = [*_starts(weights), *self._kept.addresses(kept), *_starts((x, seen, g)), *_starts(found)]
        self._backward.run(addresses + self._scratch.addresses(scratch))
        return found if self._is_finite(self._scratch, scratch) else None

    def steps(
        self, x: Tensor, labels: Tensor, parameters: Sequence[Tensor], factor: float, *, take: bool = False
    ) -> LossAndSteps | None:
        """``factor`` times the gradient of the mean cost of ``labels`` (B,), by one program, of tensors that it
        :meth:`takes`; with ``take`` it is added to them, too. None, and nothing is added, where a label is no class,
        none counts, or something is not finite."""
        if not self.images or not is_contiguous_as(labels, self.shapes[0][:1], torch.int64):
            return None
        counts, number = (ctypes.c_int64 * 2)(), ctypes.c_float(factor)
        s, cost, between = workspace.new(self.images, self.network.dense[-1]), workspace.new(), self._all.new()
        found = self._gradients(parameters[::2])
        x, seen = self._orders(x)
        addresses = [*_starts(parameters), *_starts((x, seen, labels)), ctypes.addressof(counts)]
        addresses += [ctypes.addressof(number), *_starts((s, cost)), *_starts(found), *self._all.addresses(between)]
        if take:
            self._descent.run([*addresses, ctypes.addressof(_ADD)])
        else:
            self._both.run(addresses)
        fine = (
            counts[0] and not counts[1] and self._is_finite(self._all, between) and (not take or math.isfinite(cost))
        )
        return LossAndSteps(s, cost, found, between) if fine else None

    def between(self, found: LossAndSteps) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """x^l for l = 1 to L − 1, in the document's layout; the codes of each convolution; and what each layer heard
        from the one above: (B, K, I, J), or δ^l of a dense layer."""
        xs, codes, gs, last, part = [], [], [], self.stages.first_dense - 1, self._all.part
        for n, s in enumerate(self.stages.convolutions):
            shape = (self.images, s.rows, s.columns, s.outputs)
            pooled = part(found.memory, f"pooled{n}", shape)
            xs.append(pooled.flatten(1) if n == last else pooled)
            codes.append(part(found.memory, f"code{n}", shape, torch.uint8).permute(0, 3, 1, 2))
            gs.append(part(found.memory, f"g{n}", shape).permute(0, 3, 1, 2))
        for n, (_, outputs) in enumerate(self.stages.products[:-1], start=last + 1):
            xs.append(part(found.memory, f"r{n}", (self.images, outputs)))
            gs.append(part(found.memory, f"g{n}", (self.images, outputs)))
        return xs, codes, [*gs, part(found.memory, "g", (self.images, self.network.dense[-1]))]

    def _orders(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x as the kernels forward and back read it."""
        return dense(x, torch.channels_last), for_derivatives(self.stages.convolutions[0], x)

    def _is_finite(self, layout: WorkspaceLayout, piece: Tensor) -> bool:
        count = self.stages.slots * self.stages.first_dense
        return not any(map(math.isnan, layout.part(piece, "odd", (count,)).tolist()))


def _starts(tensors: Sequence[Tensor]) -> list[int]:
    return [t.data_ptr() for t in tensors]


def plan_for(network: Network, images: int) -> Plan | None:
    """The programs for so many images, by the kernels in use; None where there are none, or a convolution's outputs
    do not fill whole vectors."""
    code = instruction_set.in_use()
    if code is None or any(k % code.lanes for k, _, _ in network.convolutions):
        return None
    return _plan(code.instructions, network, images, torch.get_num_threads())


@lru_cache(64)
def _plan(instructions: str, network: Network, images: int, threads: int) -> Plan:
    return Plan(jit.code(instructions), network, images, threads)
