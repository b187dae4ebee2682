r"""The network of section 4.2 as two programs: z^{L−1} from x^0, and the Δw^l and Δb^l of (20) and (21) from δ^{L−1}.

Each slot takes some images through all layers, so that what one layer leaves for the next is still near:

    z^l = C(x^l, w^l) + b^l, x^{l+1} = P(R(z^l))          ``forward`` for l < stages, with its codes
    z^l = D(x^l, w^l) + b^l, x^{l+1} = R(z^l)             ``row_products``, ``relu_forward``

and back, from the last layer to the first, where g^l is δ^l but for P⁻¹ and R' of a convolution, which its kernel
applies:

    g^{l−1} = (w^l δ^l) R'(z^{l−1})                       ``column_products``, ``relu_backward``
    g^{l−1}, Δw^l, Δb^l from g^l and the codes            ``backward``

Then Δw^l and Δb^l of the dense layers, and the sums of what all slots found for the convolutions. F is nothing here:
channels last, an image lies in memory as its row of numbers does.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from manualgrad.kernels import conv_pool_sizes as sizes
from manualgrad.kernels import machine, memory
from manualgrad.kernels.compiled import Code
from manualgrad.kernels.conv_pool import checked, dense, for_derivatives
from manualgrad.kernels.conv_pool_sizes import sizes_of, split
from manualgrad.kernels.parallel import Stage, as_float
from manualgrad.kernels.plain import is_all_there, is_served, lies_dense
from manualgrad.kernels.program import At, Layout, Program

_ONE = ctypes.c_float(1)  # s of ``column_products`` where it has to add up


@dataclass(frozen=True)
class Network:
    """R, H, W of an image; K, P+1, Q+1 of each convolution; the outputs of each dense layer; ``flip`` where a
    convolution is that of (1), and R'(0)."""

    image: tuple[int, int, int]
    convolutions: tuple[tuple[int, int, int], ...]
    dense: tuple[int, ...]
    flip: bool
    subgradient: float


class Plan:
    """Both programs for one number of images and of threads."""

    def __init__(self, code: Code, network: Network, images: int, threads: int) -> None:
        self.network, self.images = network, images
        shape, self.stages = (images, *network.image), []
        for k, p, q in network.convolutions:
            self.stages.append(sizes_of(shape, (k, shape[1], p, q), code.lanes))
            shape = (images, k, self.stages[-1].rows, self.stages[-1].columns)
        self.shapes = [torch.Size((images, *network.image))]
        for s in self.stages:
            self.shapes += [
                torch.Size((s.outputs, s.channels, s.kernel_rows, s.kernel_columns)),
                torch.Size((s.outputs,)),
            ]
        features = (math.prod(shape[1:]), *network.dense)
        self.products = list(itertools.pairwise(features))  # inputs and outputs of each dense layer
        for i, j in self.products:
            self.shapes += [torch.Size((j, i)), torch.Size((j,))]
        of_weights = sum(i * j for i, j in self.products)
        work = sum(s.multiplications for s in self.stages) + images * of_weights
        self.threads = min(threads, 1 + work // sizes.WORTH_A_THREAD)
        sums = sum(s.sums_order.floats for s in self.stages)
        self.slots, self.share = split(images, sizes.slots_for(images, self.threads, sums))
        self.kept = Layout(**self._kept())
        self._kept_shape = torch.Size((self.kept.bytes,))
        self._kernels = Layout(**{f"kernel{n}": 4 * s.forward_order.floats for n, s in enumerate(self.stages)})
        self.scratch = Layout(**self._scratch())
        weights = [f"{name}{n}" for n in range(len(self.stages) + len(self.products)) for name in ("w", "b")]
        steps = [f"d{name}" for name in weights]
        names = ["x", *weights, *self.kept.sizes]
        self._forward = Program(code, self.threads, self._stages_forward(code), [*names, "z", *self._kernels.sizes])
        self._backward = Program(
            code, self.threads, self._stages_backward(code), [*names, "g", *steps, *self.scratch.sizes]
        )

    def takes(self, x: Tensor, parameters: Sequence[Tensor]) -> bool:
        """Whether kernels can be given these. x may lie in any order."""
        return (
            x.shape == self.shapes[0]
            and is_served(x)
            and is_all_there(x)
            and all(map(lies_dense, parameters, self.shapes[1:]))
        )

    def forward(self, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """z^{L−1}, (B, classes), and what ``backward`` needs besides x and the parameters, which it :meth:`takes`."""
        z, kept, kernels = memory.new(self.images, self.network.dense[-1]), self.kept.new(), self._kernels.new()
        x = dense(x, torch.channels_last)
        addresses = [t.data_ptr() for t in (x, *parameters)]
        addresses += [*self.kept.addresses(kept), z.data_ptr(), *self._kernels.addresses(kernels)]
        self._forward.run(addresses)
        return z, kept

    def backward(
        self, g: Tensor, x: Tensor, kept: Tensor, parameters: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor] | None:
        """∂J/∂w and ∂J/∂b of each layer from ``g``, ∂J/∂z^{L−1}, and the memory in which the g^l lie; None where
        something is not finite and the formulas, which make 0·∞ = NaN of that, have to serve.

        Raises ValueError for other tensors than it takes."""
        if not self.takes(x, parameters) or not lies_dense(kept, self._kept_shape, torch.uint8):
            given = [f"{t.dtype} of {tuple(t.shape)}" for t in (x, *parameters, kept)]
            expected = f"torch.float32 of {list(map(tuple, self.shapes))}, dense, and {self.kept.bytes} bytes"
            raise ValueError(f"network: expected {expected}; got {given}")
        g = dense(checked(g, (self.images, self.network.dense[-1])))
        x, scratch, found = for_derivatives(self.stages[0], x), self.scratch.new(), list(map(memory.like, parameters))
        addresses = [t.data_ptr() for t in (x, *parameters)]
        addresses += [*self.kept.addresses(kept), g.data_ptr(), *(t.data_ptr() for t in found)]
        self._backward.run(addresses + self.scratch.addresses(scratch))
        odd = self.part(self.scratch, scratch, "odd", (self.slots * len(self.stages),))
        return None if any(map(math.isnan, odd.tolist())) else (found, scratch)

    def between(self, kept: Tensor, scratch: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """x^l for l = 1 to L − 1, in the document's layout; the codes of each convolution; and what each layer but
        the last heard from the one above: (B, K, I, J), or δ^l of a dense layer."""
        xs, codes, gs, last = [], [], [], len(self.stages) - 1
        for n, s in enumerate(self.stages):
            shape = (self.images, s.rows, s.columns, s.outputs)
            pooled = self.part(self.kept, kept, f"pooled{n}", shape)
            xs.append(pooled.flatten(1) if n == last else pooled)
            codes.append(self.part(self.kept, kept, f"code{n}", shape, torch.uint8).permute(0, 3, 1, 2))
            gs.append(self.part(self.scratch, scratch, f"g{n}", shape).permute(0, 3, 1, 2))
        for n, (_, outputs) in enumerate(self.products[:-1], start=last + 1):
            xs.append(self.part(self.kept, kept, f"r{n}", (self.images, outputs)))
            gs.append(self.part(self.scratch, scratch, f"g{n}", (self.images, outputs)))
        return xs, codes, gs

    @staticmethod
    def part(layout: Layout, piece: Tensor, name: str, shape: Sequence[int], dtype=torch.float32) -> Tensor:
        """One part of a piece of memory, as what it holds."""
        start = layout.offsets[name]
        return piece[start : start + layout.sizes[name]].view(dtype).view(shape)

    # ------------------------------------------------------------------------------------------- memory

    def _kept(self) -> dict[str, int]:
        found = {}
        for n, s in enumerate(self.stages):
            numbers = self.images * s.rows * s.columns * s.outputs
            found |= {f"pooled{n}": 4 * numbers, f"code{n}": numbers}
        for n, (_, outputs) in enumerate(self.products[:-1], start=len(self.stages)):
            found |= {f"z{n}": 4 * self.images * outputs, f"r{n}": 4 * self.images * outputs}
        return found

    def _scratch(self) -> dict[str, int]:
        found = {"odd": 4 * self.slots * len(self.stages)}
        for n, s in enumerate(self.stages):
            found |= {
                f"sums{n}": 4 * self.slots * s.sums_order.floats,
                f"bias_sums{n}": 4 * self.slots * s.outputs,
                f"slots{n}": self.slots * s.bytes_of_slot,
            }
            if n:
                found |= {f"kernel{n}": 4 * s.input_order.floats}
        inputs = [s.rows * s.columns * s.outputs for s in self.stages] + [
            outputs for _, outputs in self.products[:-1]
        ]
        return found | {f"g{n}": 4 * self.images * size for n, size in enumerate(inputs)}

    # ----------------------------------------------------------------------------------------- programs

    def _input(self, n: int) -> At:
        """x^l."""
        if n == 0:
            return At("x")
        return At(f"pooled{n - 1}" if n <= len(self.stages) else f"r{n - 1}")

    def _arrange(self, code: Code, orders: dict[int, sizes.Order]) -> Stage:
        """The convolutions' kernels in such orders."""
        steps = []
        for n, order in orders.items():
            s = self.stages[n]
            share = split(s.outputs, self.threads)[1]
            arguments = sizes.arrange_arguments(s, order, self.network.flip, share, At(f"w{n}"), At(f"kernel{n}"))
            steps.append((code.addresses["arrange"], arguments))
        return Stage(self.threads, steps)

    def _stages_forward(self, code: Code) -> list[Stage]:
        steps = []
        for n, s in enumerate(self.stages):
            where = self._input(n), At(f"kernel{n}"), At(f"b{n}"), At(f"pooled{n}"), At(f"code{n}")
            arguments = sizes.forward_arguments(s, self.share * s.rows, *where)  # eq. (16), (17)
            steps.append((code.addresses["forward"], arguments))
        for n, (inputs, outputs) in enumerate(self.products, start=len(self.stages)):
            last = n == len(self.stages) + len(self.products) - 1
            z = At("z" if last else f"z{n}")
            where = self._input(n), At(f"w{n}"), At(f"b{n}"), z
            steps.append((code.addresses["row_products"], [*where, self.images, self.share, inputs, outputs]))
            if not last:
                floats = self.images * outputs, self.share * outputs
                steps.append((code.addresses["relu_forward"], [z, At(f"r{n}"), *floats]))
        orders = {n: s.forward_order for n, s in enumerate(self.stages)}
        return [self._arrange(code, orders), Stage(self.slots, steps)]

    def _stages_backward(self, code: Code) -> list[Stage]:
        steps, last = [], len(self.stages) + len(self.products) - 1
        for n in range(last, len(self.stages) - 1, -1):
            inputs, outputs = self.products[n - len(self.stages)]
            g, to = self._gradient(n, last), At(f"g{n - 1}")
            arguments = [g, outputs, 1, At(f"w{n}"), to, self.images, self.share, outputs, inputs]
            steps.append((code.addresses["column_products"], arguments))  # eq. (20)
            if n > len(self.stages):
                half = self.network.subgradient
                floats = self.images * inputs, self.share * inputs
                arguments = [to, At(f"z{n - 1}"), to, *floats, half != 0, as_float(half)]
                steps.append((code.addresses["relu_backward"], arguments))
        for n in range(len(self.stages) - 1, -1, -1):
            s = self.stages[n]
            kernel, dx = (At(f"kernel{n}"), At(f"g{n - 1}")) if n else (0, 0)
            where = self._input(n), kernel, At(f"g{n}"), At(f"code{n}"), dx
            found = At(f"sums{n}"), At(f"bias_sums{n}"), At("odd") + 4 * self.slots * n, At(f"slots{n}")
            half = self.network.subgradient
            arguments = sizes.backward_arguments(s, self.share, *where, *found, n > 0, True, half)
            steps.append((code.addresses["backward"], arguments))
        orders = {n: s.input_order for n, s in enumerate(self.stages) if n}
        return [self._arrange(code, orders), Stage(self.slots, steps), self._stage_of_weights(code, last)]

    def _gradient(self, n: int, last: int) -> At:
        """δ^l of a dense layer."""
        return At("g" if n == last else f"g{n}")

    def _stage_of_weights(self, code: Code, last: int) -> Stage:
        steps: list[tuple[int, list[Any]]] = []
        for n, (inputs, outputs) in enumerate(self.products, start=len(self.stages)):
            g, share = self._gradient(n, last), split(outputs, self.threads)[1]
            arguments = [g, 1, outputs, self._input(n), At(f"dw{n}"), outputs, share, self.images, inputs]
            steps.append((code.addresses["column_products"], arguments))  # eq. (21)
            one = ctypes.addressof(_ONE)
            arguments = [one, 0, 0, g, At(f"db{n}"), 1, 1, self.images, outputs]
            steps.append((code.addresses["column_products"], arguments))  # eq. (18)
        for n, s in enumerate(self.stages):
            share = split(s.outputs, self.threads)[1]
            where = At(f"dw{n}"), At(f"sums{n}"), At(f"db{n}"), At(f"bias_sums{n}")
            arguments = sizes.collect_arguments(s, self.network.flip, share, self.slots, *where)
            steps.append((code.addresses["collect"], arguments))  # eq. (18), (21)
        return Stage(self.threads, steps)


def plan_for(network: Network, images: int) -> Plan | None:
    """The programs for so many images, by the kernels in use; None where there are none, or a convolution's outputs
    do not fill whole vectors."""
    code = machine.in_use()
    if code is None or any(k % code.lanes for k, _, _ in network.convolutions):
        return None
    return _plan(code.instructions, network, images, torch.get_num_threads())


@lru_cache(64)
def _plan(instructions: str, network: Network, images: int, threads: int) -> Plan:
    from manualgrad.kernels.compiled import code

    return Plan(code(instructions), network, images, threads)
