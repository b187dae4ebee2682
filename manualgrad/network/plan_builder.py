r"""The network of section 4.2 as stages of kernels.

Each slot takes some images through all layers, so that what one layer leaves for the next is still near:

    z^l = C(x^l, w^l) + b^l, x^{l+1} = P(R(z^l))          ``forward``, which leaves codes for P⁻¹ and R'
    z^l = D(x^l, w^l) + b^l, x^{l+1} = R(z^l)             ``gemm_nt``, ``relu_forward``

then, where labels are given, S(z^{L−1}), J and δ^{L−1}   ``class_rows``

and back, from the last layer to the first, where g^l is δ^l but for P⁻¹ and R' of a convolution, which its kernel
applies:

    g^{l−1} = (w^l δ^l) R'(z^{l−1})                       ``gemm_strided``, ``relu_backward``
    g^{l−1}, Δw^l, Δb^l from g^l and the codes            ``backward``

Then Δw^l and Δb^l of the dense layers, and the sums of what all slots found for the convolutions. F is nothing here:
channels last, an image lies in memory as its row of numbers does.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from dataclasses import dataclass
from typing import Any

from manualgrad.cpu import conv_pool_sizes as sizes
from manualgrad.cpu.conv_pool_sizes import sizes_of, split
from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.program import BufferRef
from manualgrad.cpu.team import ParallelRegion, float_bits

_ONE = ctypes.c_float(1)  # s of ``gemm_strided`` where it has to add up

IGNORED = -100  # the label of an image that does not count

Steps = list[tuple[int, list[Any]]]


@dataclass(frozen=True)
class Network:
    """R, H, W of an image; K, P+1, Q+1 of each convolution; the outputs of each dense layer; ``flip`` where a
    convolution is that of (1), and R'(0)."""

    image: tuple[int, int, int]
    convolutions: tuple[tuple[int, int, int], ...]
    dense: tuple[int, ...]
    flip: bool
    subgradient: float


@dataclass(frozen=True)
class Pixels:
    """How images lie that are given as bytes, from one ``image`` and ``row`` to the next; and what their numbers'
    ``mean`` and ``std`` are."""

    image: int
    row: int
    mean: float
    std: float


class PlanBuilder:
    """What the kernels are told, for one number of images and of threads.

    x^0 is called "x", and "seen" in the order in which its derivatives are taken; w^l, b^l, Δw^l and Δb^l are "w0",
    "b0", "dw0", "db0" and so on; "z" and "g" are z^{L−1} and δ^{L−1}. The bytes of all that lies between are ``kept``
    from forward for backward, ``arranged`` for forward, ``scratch`` for backward, and ``loss`` for a cost.
    """

    def __init__(self, code: KernelModule, network: Network, images: int, threads: int) -> None:
        self.network, self.images, self.addresses = network, images, code.addresses
        shape, self.convolutions = (images, *network.image), []
        for k, p, q in network.convolutions:
            s = sizes_of(shape, (k, shape[1], p, q), code.lanes)
            self.convolutions.append(s)
            shape = (images, k, s.rows, s.columns)
        self.first_dense = len(self.convolutions)
        self.products = list(itertools.pairwise((math.prod(shape[1:]), *network.dense)))  # inputs, outputs
        self.last = self.first_dense + len(self.products) - 1
        work = sum(s.multiplications for s in self.convolutions) + images * sum(i * j for i, j in self.products)
        self.threads = min(threads, 1 + work // sizes.WORTH_A_THREAD)
        sums = sum(s.sums_order.floats for s in self.convolutions)
        self.slots, self.share = split(images, sizes.slots_for(images, self.threads, sums))

    # ------------------------------------------------------------------------------------------- memory

    def kept(self) -> dict[str, int]:
        found = {}
        for n, s in enumerate(self.convolutions):
            numbers = self.images * s.rows * s.columns * s.outputs
            found |= {f"pooled{n}": 4 * numbers, f"code{n}": numbers}
        for n, (_, outputs) in enumerate(self.products[:-1], start=self.first_dense):
            found |= {f"z{n}": 4 * self.images * outputs, f"r{n}": 4 * self.images * outputs}
        return found

    def arranged(self) -> dict[str, int]:
        return {f"arranged{n}": 4 * s.forward_order.floats for n, s in enumerate(self.convolutions)}

    def scratch(self) -> dict[str, int]:
        found = {"odd": 4 * self.slots * len(self.convolutions)}
        for n, s in enumerate(self.convolutions):
            found |= {
                f"sums{n}": 4 * self.slots * s.sums_order.floats,
                f"bias_sums{n}": 4 * self.slots * s.outputs,
                f"slots{n}": self.slots * s.bytes_of_slot,
                f"kernel{n}": 4 * s.input_order.floats if n else 0,
            }
        inputs = [s.rows * s.columns * s.outputs for s in self.convolutions]
        inputs += [outputs for _, outputs in self.products[:-1]]
        return found | {f"g{n}": 4 * self.images * size for n, size in enumerate(inputs)}

    def loss(self) -> dict[str, int]:
        table = 4 * self.images * self.network.dense[-1]
        return {"z": table, "y": table, "g": table, "costs": 4 * self.images}

    # ------------------------------------------------------------------------------------------- stages

    def forward(self) -> list[ParallelRegion]:
        return [ParallelRegion(self.threads, self._arrange_forward()), ParallelRegion(self.slots, self._forward())]

    def backward(self) -> list[ParallelRegion]:
        return [
            ParallelRegion(self.threads, self._arrange_backward()),
            ParallelRegion(self.slots, self._backward()),
            ParallelRegion(self.threads, self._weights()),
        ]

    def forward_and_backward(self) -> list[ParallelRegion]:
        """From images and labels to the cost and all Δw and Δb."""
        classes, share = self.network.dense[-1], split(self.images, self.threads)[1]
        y = [BufferRef("labels"), BufferRef("y"), BufferRef("counts"), self.images, share, classes, IGNORED, 1]
        loss = [
            *map(BufferRef, ("z", "y", "factor")), 0, *map(BufferRef, ("s", "costs", "g")),
            self.images, self.share, classes, 1, 1,
        ]  # fmt: skip
        before = [*self._arrange_forward(), *self._arrange_backward(), self._step("targets", y)]
        on_the_way = self._step("class_rows", loss)  # eq. (11), (14), (15), (19)
        return [
            ParallelRegion(self.threads, before),
            ParallelRegion(self.slots, [*self._forward(), on_the_way, *self._backward()]),
            ParallelRegion(
                self.threads,
                [*self._weights(), self._step("cost_sum", [BufferRef("costs"), BufferRef("cost"), self.images])],
            ),
        ]

    def descent(self, pixels: Pixels) -> list[ParallelRegion]:
        """The same from bytes and labels, and w − η ∂J/∂w."""
        before, on_the_way, after = self.forward_and_backward()
        classes, (_, height, width) = self.network.dense[-1], self.network.image
        images = [
            *map(BufferRef, ("images", "chosen", "x")), self.images, self.share, height, width, pixels.image, pixels.row,
            float_bits(pixels.mean), float_bits(pixels.std),
        ]  # fmt: skip
        found = [*map(BufferRef, ("s", "labels", "known", "right")), self.images, classes]
        return [
            before,
            ParallelRegion(self.slots, [self._step("gather", images), *on_the_way.steps]),
            ParallelRegion(self.threads, [*after.steps, self._step("answers", found)]),
            self.update(),
        ]

    def update(self) -> ParallelRegion:
        """w − η ∂J/∂w of all parameters, unless something is not finite."""
        sizes_of_w = [(s.outputs * s.weights_of_one, s.outputs) for s in self.convolutions]
        sizes_of_w += [(inputs * outputs, outputs) for inputs, outputs in self.products]
        steps: Steps = []
        for n, (w, b) in enumerate(sizes_of_w):
            for name, floats in ((f"w{n}", w), (f"b{n}", b)):
                where = (
                    BufferRef(name),
                    BufferRef(f"d{name}"),
                    floats,
                    split(floats, self.threads)[1],
                    BufferRef("rate"),
                )
                odds = BufferRef("counts"), BufferRef("odd"), self.slots * self.first_dense, BufferRef("cost")
                steps.append(self._step("descend", [*where, *odds]))
        return ParallelRegion(self.threads, steps)

    def _step(self, kernel: str, arguments: list[Any]) -> tuple[int, list[Any]]:
        return self.addresses[kernel], arguments

    def _x(self, n: int, first: str = "x") -> BufferRef:
        """x^n."""
        return BufferRef(first if n == 0 else f"pooled{n - 1}" if n <= self.first_dense else f"r{n - 1}")

    def _g(self, n: int) -> BufferRef:
        """g^n."""
        return BufferRef("g" if n == self.last else f"g{n}")

    def _arrange_forward(self) -> Steps:
        return [self._arrange(n, s.forward_order, f"arranged{n}") for n, s in enumerate(self.convolutions)]

    def _arrange_backward(self) -> Steps:
        return [self._arrange(n, s.input_order, f"kernel{n}") for n, s in enumerate(self.convolutions) if n]

    def _arrange(self, n: int, order: sizes.Order, to: str) -> tuple[int, list[Any]]:
        s = self.convolutions[n]
        share = split(s.outputs, self.threads)[1]
        arguments = sizes.arrange_arguments(s, order, self.network.flip, share, BufferRef(f"w{n}"), BufferRef(to))
        return self._step("arrange", arguments)

    def _forward(self) -> Steps:
        steps: Steps = []
        for n, s in enumerate(self.convolutions):
            where = (
                self._x(n),
                BufferRef(f"arranged{n}"),
                BufferRef(f"b{n}"),
                BufferRef(f"pooled{n}"),
                BufferRef(f"code{n}"),
            )
            steps.append(self._step("forward", sizes.forward_arguments(s, self.share * s.rows, *where)))
        for n, (inputs, outputs) in enumerate(self.products, start=self.first_dense):
            z = BufferRef("z" if n == self.last else f"z{n}")
            where = self._x(n), BufferRef(f"w{n}"), BufferRef(f"b{n}"), z
            steps.append(self._step("row_products", [*where, self.images, self.share, inputs, outputs]))
            if n < self.last:
                floats = self.images * outputs, self.share * outputs
                steps.append(self._step("relu_forward", [z, BufferRef(f"r{n}"), *floats]))
        return steps  # eq. (16), (17)

    def _backward(self) -> Steps:
        steps, half = [], self.network.subgradient
        for n in range(self.last, self.first_dense - 1, -1):
            inputs, outputs = self.products[n - self.first_dense]
            g, to = self._g(n), BufferRef(f"g{n - 1}")
            arguments = [g, outputs, 1, BufferRef(f"w{n}"), to, self.images, self.share, outputs, inputs]
            steps.append(self._step("column_products", arguments))
            if n > self.first_dense:
                floats = self.images * inputs, self.share * inputs
                arguments = [to, BufferRef(f"z{n - 1}"), to, *floats, half != 0, float_bits(half)]
                steps.append(self._step("relu_backward", arguments))
        for n in range(self.first_dense - 1, -1, -1):
            s = self.convolutions[n]
            kernel, dx = (BufferRef(f"kernel{n}"), BufferRef(f"g{n - 1}")) if n else (0, 0)
            where = self._x(n, "seen"), kernel, BufferRef(f"g{n}"), BufferRef(f"code{n}"), dx
            found = (
                BufferRef(f"sums{n}"),
                BufferRef(f"bias_sums{n}"),
                BufferRef("odd", 4 * self.slots * n),
                BufferRef(f"slots{n}"),
            )
            arguments = sizes.backward_arguments(s, self.share, *where, *found, n > 0, True, half)
            steps.append(self._step("backward", arguments))
        return steps  # eq. (20), and (18), (21) of each slot's convolutions

    def _weights(self) -> Steps:
        steps: Steps = []
        for n, (inputs, outputs) in enumerate(self.products, start=self.first_dense):
            g, share = self._g(n), split(outputs, self.threads)[1]
            arguments = [g, 1, outputs, self._x(n), BufferRef(f"dw{n}"), outputs, share, self.images, inputs]
            steps.append(self._step("column_products", arguments))
            arguments = [ctypes.addressof(_ONE), 0, 0, g, BufferRef(f"db{n}"), 1, 1, self.images, outputs]
            steps.append(self._step("column_products", arguments))
        for n, s in enumerate(self.convolutions):
            share = split(s.outputs, self.threads)[1]
            where = BufferRef(f"dw{n}"), BufferRef(f"sums{n}"), BufferRef(f"db{n}"), BufferRef(f"bias_sums{n}")
            arguments = sizes.collect_arguments(s, self.network.flip, share, self.slots, *where)
            steps.append(self._step("collect", arguments))
        return steps  # eq. (18), (21)
