r"""The kernel calls of a network as in section 4.2: forward, loss, backward and update.

The calls stand in parallel regions. A region is split into tasks, which threads share. A task of the main region
takes some images through all layers, so that a layer's output is still in the cache when the next layer reads it:

    z^l = C(x^l, w^l) + b^l, x^{l+1} = P(R(z^l))           ``conv_pool_forward``, which also writes the pool index
    z^l = D(x^l, w^l) + b^l, x^{l+1} = R(z^l)              ``gemm_nt``, ``relu_forward``

then, if there are labels, S(z^{L−1}), J and δ^{L−1}       ``softmax_cross_entropy``

and back, from the last layer to the first. g^l is δ^l of a dense layer. Of a convolution it is the gradient before
P⁻¹ and R', which the kernel applies from the pool index:

    g^{l−1} = (w^l δ^l) R'(z^{l−1})                        ``gemm_strided``, ``relu_backward``
    g^{l−1}, Δw^l, Δb^l from g^l and the pool index        ``conv_pool_backward``

The last region computes Δw^l and Δb^l of the dense layers, and adds up what the tasks have of the convolutions' Δw^l
and Δb^l. F needs no kernel: in channels_last memory format an image is the row of numbers that F makes of it.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from dataclasses import dataclass

from manualgrad.cpu import conv_pool_sizes as sizes
from manualgrad.cpu.conv_pool_sizes import Sizes, sizes_of, split_work
from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.signature import BufferRef, KernelCall
from manualgrad.cpu.team import ParallelRegion

IGNORE_INDEX = -100  # the label of an image that does not count

_ONE = ctypes.c_float(1)  # gemm_strided repeats it as a row of ones, and so adds up the rows of the other matrix

KernelCalls = list[KernelCall]


@dataclass(frozen=True)
class NetworkSpec:
    """Shapes and options of a network.

    Attributes:
        image_shape: (C_in, H, W).
        conv_shapes: (C_out, kH, kW) of each convolution.
        dense_features: out_features of each dense layer.
        flip_kernel: True for the convolution of equation (1), False for PyTorch's correlation.
        subgradient: R'(0).
    """

    image_shape: tuple[int, int, int]
    conv_shapes: tuple[tuple[int, int, int], ...]
    dense_features: tuple[int, ...]
    flip_kernel: bool
    subgradient: float


@dataclass(frozen=True)
class PixelFormat:
    """Layout and normalisation of a data set's uint8 images.

    Attributes:
        image_stride, row_stride: bytes from one image and from one row to the next.
        mean, std: the network's input is (pixel − mean) / std.
    """

    image_stride: int
    row_stride: int
    mean: float
    std: float


class PlanBuilder:
    """Buffers and kernel calls of one network, for one batch size and one number of threads.

    Kernels refer to memory by name. For layer l, "w{l}", "b{l}", "dw{l}" and "db{l}" are w^l, b^l, Δw^l and Δb^l;
    "x" is x^0, and "x_backward" is x^0 in the layout that its convolution's weight gradient reads. The other names
    are those of the buffers, whose sizes in bytes ``*_buffers`` return: ``saved`` from forward to backward,
    ``packed`` weights for forward, ``scratch`` of backward, and ``loss``, where "z" and "g" are z^{L−1} and δ^{L−1}.
    """

    def __init__(self, module: KernelModule, network: NetworkSpec, batch_size: int, threads: int) -> None:
        self.network, self.batch_size, self._call = network, batch_size, module.call
        channels, height, width = network.image_shape
        self.convs: list[Sizes] = []
        for out_channels, kernel_height, kernel_width in network.conv_shapes:
            weight_shape = (out_channels, channels, kernel_height, kernel_width)
            conv = sizes_of((batch_size, channels, height, width), weight_shape, module.lanes)
            self.convs.append(conv)
            channels, height, width = out_channels, conv.out_height, conv.out_width
        self.num_convs = len(self.convs)
        self.dense_shapes = list(itertools.pairwise((channels * height * width, *network.dense_features)))  # in, out
        self.last_layer = self.num_convs + len(self.dense_shapes) - 1
        multiplications = sum(conv.multiplications for conv in self.convs)
        multiplications += batch_size * sum(math.prod(shape) for shape in self.dense_shapes)
        self.num_threads = min(threads, 1 + multiplications // sizes.MULTIPLICATIONS_PER_THREAD)
        partial_sums = sum(conv.grad_weight_layout.numel for conv in self.convs)
        most_tasks = sizes.num_tasks_for(batch_size, self.num_threads, partial_sums)
        self.num_tasks, self.images_per_task = split_work(batch_size, most_tasks)

    # ------------------------------------------------------------------------------------------- memory

    def saved_buffers(self) -> dict[str, int]:
        buffers: dict[str, int] = {}
        for n, conv in enumerate(self.convs):
            numel = self.batch_size * conv.out_height * conv.out_width * conv.out_channels
            buffers |= {f"pooled{n}": 4 * numel, f"pool_index{n}": numel}
        for n, (_, out_features) in enumerate(self.dense_shapes[:-1], start=self.num_convs):
            numel = self.batch_size * out_features
            buffers |= {f"z{n}": 4 * numel, f"relu{n}": 4 * numel}
        return buffers

    def packed_buffers(self) -> dict[str, int]:
        return {f"packed_forward{n}": 4 * conv.forward_layout.numel for n, conv in enumerate(self.convs)}

    def scratch_buffers(self) -> dict[str, int]:
        buffers = {"nonfinite": 4 * self.num_tasks * self.num_convs}
        for n, conv in enumerate(self.convs):
            buffers |= {
                f"grad_weight_parts{n}": 4 * self.num_tasks * conv.grad_weight_layout.numel,
                f"grad_bias_parts{n}": 4 * self.num_tasks * conv.out_channels,
                f"conv_scratch{n}": self.num_tasks * conv.scratch_bytes,
                f"packed_backward{n}": 4 * conv.grad_input_layout.numel if n else 0,
            }
        features = [conv.out_height * conv.out_width * conv.out_channels for conv in self.convs]
        features += [out_features for _, out_features in self.dense_shapes[:-1]]
        return buffers | {f"g{n}": 4 * self.batch_size * count for n, count in enumerate(features)}

    def loss_buffers(self) -> dict[str, int]:
        numel = self.batch_size * self.network.dense_features[-1]
        return {"z": 4 * numel, "targets": 4 * numel, "g": 4 * numel, "losses": 4 * self.batch_size}

    # ------------------------------------------------------------------------------------------ regions

    def forward_regions(self) -> list[ParallelRegion]:
        """From x^0 to z^{L−1}."""
        return [
            ParallelRegion(self.num_threads, self._pack_for_forward()),
            ParallelRegion(self.num_tasks, self._forward_calls()),
        ]

    def backward_regions(self) -> list[ParallelRegion]:
        """From δ^{L−1} to all Δw and Δb."""
        return [
            ParallelRegion(self.num_threads, self._pack_for_backward()),
            ParallelRegion(self.num_tasks, self._backward_calls()),
            ParallelRegion(self.num_threads, self._parameter_grad_calls()),
        ]

    def loss_and_grads_regions(self) -> list[ParallelRegion]:
        """From x^0 and labels to the loss and all Δw and Δb."""
        classes, rows_per_task = self.network.dense_features[-1], split_work(self.batch_size, self.num_threads)[1]
        targets = self._call(
            "one_hot_targets", labels=BufferRef("labels"), targets=BufferRef("targets"), counts=BufferRef("counts"),
            rows=self.batch_size, share=rows_per_task, classes=classes, ignore_index=IGNORE_INDEX,
            divides_by_count=True,
        )  # fmt: skip
        losses = self._call(
            "softmax_cross_entropy", logits=BufferRef("z"), targets=BufferRef("targets"),
            grad_out=BufferRef("factor"), grad_out_stride=0, probs=BufferRef("probabilities"),
            losses=BufferRef("losses"), grad_logits=BufferRef("g"), rows=self.batch_size, share=self.images_per_task, classes=classes,
            needs_loss=True, needs_grad=True,
        )  # fmt: skip  # eq. (11), (14), (15), (19)
        loss = self._call("sum_losses", losses=BufferRef("losses"), loss=BufferRef("loss"), rows=self.batch_size)
        return [
            ParallelRegion(self.num_threads, [*self._pack_for_forward(), *self._pack_for_backward(), targets]),
            ParallelRegion(self.num_tasks, [*self._forward_calls(), losses, *self._backward_calls()]),
            ParallelRegion(self.num_threads, [*self._parameter_grad_calls(), loss]),
        ]

    def descent_regions(self, pixels: PixelFormat) -> list[ParallelRegion]:
        """From uint8 images, the indices of a batch and its labels to w − η ∂J/∂w of all parameters."""
        before, all_layers, after = self.loss_and_grads_regions()
        classes, (_, height, width) = self.network.dense_features[-1], self.network.image_shape
        gather = self._call(
            "gather_images", images=BufferRef("images"), indices=BufferRef("indices"), x=BufferRef("x"),
            batch_size=self.batch_size, share=self.images_per_task, height=height, width=width,
            image_stride=pixels.image_stride, row_stride=pixels.row_stride, mean=pixels.mean, std=pixels.std,
        )  # fmt: skip
        top1 = self._call(
            "top1_stats", probs=BufferRef("probabilities"), labels=BufferRef("labels"),
            label_probs=BufferRef("label_probs"), num_correct=BufferRef("num_correct"), rows=self.batch_size,
            classes=classes,
        )  # fmt: skip
        return [
            before,
            ParallelRegion(self.num_tasks, [gather, *all_layers.calls]),
            ParallelRegion(self.num_threads, [*after.calls, top1]),
            self.update_region(),
        ]

    def update_region(self) -> ParallelRegion:
        """w − η ∂J/∂w of all parameters, unless a label is no class or a gradient or the loss is not finite."""
        numels = [(conv.out_channels * conv.weights_per_output, conv.out_channels) for conv in self.convs]
        numels += [(in_features * out_features, out_features) for in_features, out_features in self.dense_shapes]
        calls: KernelCalls = []
        for n, (weight_numel, bias_numel) in enumerate(numels):
            for name, numel in ((f"w{n}", weight_numel), (f"b{n}", bias_numel)):
                share = split_work(numel, self.num_threads)[1]
                update = self._call(
                    "sgd_update", param=BufferRef(name), grad=BufferRef(f"d{name}"), numel=numel, share=share,
                    learning_rate=BufferRef("learning_rate"), counts=BufferRef("counts"),
                    nonfinite=BufferRef("nonfinite"), nonfinite_numel=self.num_tasks * self.num_convs,
                    loss=BufferRef("loss"),
                )  # fmt: skip
                calls.append(update)
        return ParallelRegion(self.num_threads, calls)

    # -------------------------------------------------------------------------------------------- calls

    def _x(self, n: int, input_name: str = "x") -> BufferRef:
        """x^n."""
        return BufferRef(input_name if n == 0 else f"pooled{n - 1}" if n <= self.num_convs else f"relu{n - 1}")

    def _g(self, n: int) -> BufferRef:
        """g^n."""
        return BufferRef("g" if n == self.last_layer else f"g{n}")

    def _pack_for_forward(self) -> KernelCalls:
        return [self._pack_weight(n, conv.forward_layout, f"packed_forward{n}") for n, conv in enumerate(self.convs)]

    def _pack_for_backward(self) -> KernelCalls:
        layouts = [conv.grad_input_layout for conv in self.convs]
        return [self._pack_weight(n, layout, f"packed_backward{n}") for n, layout in enumerate(layouts) if n]

    def _pack_weight(self, n: int, layout: sizes.WeightLayout, target: str) -> KernelCall:
        conv = self.convs[n]
        share = split_work(conv.out_channels, self.num_threads)[1]
        arguments = sizes.pack_arguments(conv, layout, self.network.flip_kernel, BufferRef(target))
        return self._call("pack_weight", weight=BufferRef(f"w{n}"), share=share, **arguments)

    def _forward_calls(self) -> KernelCalls:
        calls: KernelCalls = []
        for n, conv in enumerate(self.convs):
            call = self._call(
                "conv_pool_forward", x=self._x(n), packed_weight=BufferRef(f"packed_forward{n}"),
                bias=BufferRef(f"b{n}"), out=BufferRef(f"pooled{n}"), pool_index=BufferRef(f"pool_index{n}"),
                share=self.images_per_task * conv.out_height, **sizes.forward_sizes(conv),
            )  # fmt: skip
            calls.append(call)
        for n, (in_features, out_features) in enumerate(self.dense_shapes, start=self.num_convs):
            z = BufferRef("z" if n == self.last_layer else f"z{n}")
            gemm = self._call(
                "gemm_nt", x=self._x(n), weight=BufferRef(f"w{n}"), bias=BufferRef(f"b{n}"), out=z,
                rows=self.batch_size, share=self.images_per_task, in_features=in_features, out_features=out_features,
            )  # fmt: skip
            calls.append(gemm)
            if n < self.last_layer:
                numel, share = self.batch_size * out_features, self.images_per_task * out_features
                relu = self._call("relu_forward", z=z, out=BufferRef(f"relu{n}"), numel=numel, share=share)
                calls.append(relu)
        return calls  # eq. (16), (17)

    def _backward_calls(self) -> KernelCalls:
        calls: KernelCalls = []
        subgradient = self.network.subgradient
        for n in range(self.last_layer, self.num_convs - 1, -1):
            in_features, out_features = self.dense_shapes[n - self.num_convs]
            grad_input = BufferRef(f"g{n - 1}")
            gemm = self._call(
                "gemm_strided", lhs=self._g(n), row_stride=out_features, inner_stride=1, rhs=BufferRef(f"w{n}"),
                out=grad_input, rows=self.batch_size, share=self.images_per_task, inner_size=out_features,
                columns=in_features,
            )  # fmt: skip
            calls.append(gemm)
            if n > self.num_convs:
                relu = self._call(
                    "relu_backward", grad_out=grad_input, z=BufferRef(f"z{n - 1}"), grad_z=grad_input,
                    numel=self.batch_size * in_features, share=self.images_per_task * in_features,
                    has_subgradient=subgradient != 0, subgradient=subgradient,
                )  # fmt: skip
                calls.append(relu)
        for n in range(self.num_convs - 1, -1, -1):
            conv = self.convs[n]
            call = self._call(
                "conv_pool_backward", x=self._x(n, "x_backward"),
                packed_weight=BufferRef(f"packed_backward{n}") if n else 0, grad_out=BufferRef(f"g{n}"),
                pool_index=BufferRef(f"pool_index{n}"), grad_input=BufferRef(f"g{n - 1}") if n else 0,
                grad_weight_parts=BufferRef(f"grad_weight_parts{n}"),
                grad_bias_parts=BufferRef(f"grad_bias_parts{n}"),
                nonfinite=BufferRef("nonfinite", 4 * self.num_tasks * n), scratch=BufferRef(f"conv_scratch{n}"),
                share=self.images_per_task, needs_grad_input=n > 0, needs_grad_weight=True, **sizes.backward_sizes(conv, subgradient),
            )  # fmt: skip
            calls.append(call)
        return calls  # eq. (20), and each task's part of (18), (21) for the convolutions

    def _parameter_grad_calls(self) -> KernelCalls:
        calls: KernelCalls = []
        for n, (in_features, out_features) in enumerate(self.dense_shapes, start=self.num_convs):
            g, share = self._g(n), split_work(out_features, self.num_threads)[1]
            weight_grad = self._call(
                "gemm_strided", lhs=g, row_stride=1, inner_stride=out_features, rhs=self._x(n),
                out=BufferRef(f"dw{n}"), rows=out_features, share=share, inner_size=self.batch_size,
                columns=in_features,
            )  # fmt: skip
            bias_grad = self._call(
                "gemm_strided", lhs=ctypes.addressof(_ONE), row_stride=0, inner_stride=0, rhs=g,
                out=BufferRef(f"db{n}"), rows=1, share=1, inner_size=self.batch_size, columns=out_features,
            )  # fmt: skip
            calls += [weight_grad, bias_grad]
        for n, conv in enumerate(self.convs):
            share = split_work(conv.out_channels, self.num_threads)[1]
            parts = BufferRef(f"grad_weight_parts{n}"), BufferRef(f"grad_bias_parts{n}")
            call = self._call(
                "unpack_reduce_grads", grad_weight=BufferRef(f"dw{n}"), grad_bias=BufferRef(f"db{n}"),
                num_parts=self.num_tasks, share=share,
                **sizes.unpack_reduce_arguments(conv, self.network.flip_kernel, *parts),
            )  # fmt: skip
            calls.append(call)
        return calls  # eq. (18), (21)
