"""Promise: the planner walks a list of blocks of any device, and a layer that gets a kernel needs no change there."""

from __future__ import annotations

import pytest

from manualgrad.network.cpu_blocks import CPUDevice
from manualgrad.network.device import Activation, Split, Unsupported
from manualgrad.network.layers import Conv, Dense, Flatten, MaxPool, NetworkSpec
from manualgrad.network.plan_builder import PlanBuilder

POOL = MaxPool((2, 2), (2, 2), (0, 0), (1, 1), False, False)


def conv(
    out_channels: int, in_channels: int, padding: tuple[int, int] = (0, 0), subgradient=0.5, pool=POOL, mode="reflect"
) -> Conv:
    return Conv(out_channels, in_channels, (3, 3), (1, 1), padding, (1, 1), 1, mode, True, subgradient, pool)


def network(*convs: Conv, features: int) -> NetworkSpec:
    return NetworkSpec((1, 12, 12), (*convs, Flatten(False), Dense(6, features, 0.5), Dense(4, 6)))


class RecordingDevice(CPUDevice):
    """A device without memory or threads, which records the kernel calls of its programs."""

    lanes = 4

    def __init__(self) -> None:
        pass

    def call(self, kernel: str, /, **arguments):
        return kernel, arguments

    def split(self, batch_size, threads, multiplications, partial_sums) -> Split:
        return Split(threads, batch_size, 1)


class PaddedConvBlock:
    """A kernel of the future: a convolution with reflected padding, without ReLU and pooling."""

    is_view, multiplications, partial_sums = False, 1, 0
    forward_flags = pack_flags = unpack_flags = 0

    def __init__(self, device: RecordingDevice, layer: Conv, x: Activation) -> None:
        self.call, self.out = device.call, Activation((*x.shape[:2], layer.out_channels))
        self.parameter_shapes = [(layer.out_channels, layer.in_channels, 3, 3), (layer.out_channels,)]

    def saved_buffers(self):
        return {"columns": 64}

    def packed_buffers(self, split):
        return {}

    def scratch_buffers(self, split, needs_grad_x):
        return {"sums": 32 if needs_grad_x else 16}

    def pack_for_forward(self, at):
        return []

    pack_for_backward = unpack_grads = pack_for_forward

    def forward(self, at):
        return [self.call("padded_conv", x=at.x, weight=at.own("w"), out=at.out, columns=at.own("columns"))]

    def backward(self, at):
        return [self.call("padded_conv_backward", grad_out=at.grad_out, grad_x=at.grad_x)]

    def parameter_grads(self, at):
        return [self.call("padded_conv_grads", grad_weight=at.own("dw"), sums=at.own("sums"))]


class PaddingDevice(RecordingDevice):
    """A device that has a kernel for padding."""

    def block(self, layer, x, batch_size):
        if isinstance(layer, Conv) and layer.padding != (0, 0):
            return PaddedConvBlock(self, layer, x)
        return super().block(layer, x, batch_size)


def kernel_names(regions) -> list[list[str]]:
    return [[name for name, _ in calls] for _, calls in regions]


def test_the_planner_lists_the_calls_of_a_network_on_a_device_that_it_does_not_know():
    builder = PlanBuilder(RecordingDevice(), network(conv(4, 1), conv(8, 4), features=8), 3, 2)
    pack, gemm, sums = "pack_weight", "gemm_strided", "unpack_reduce_grads"
    assert kernel_names(builder.forward_regions()) == [
        [pack, pack],
        ["conv_pool_forward", "conv_pool_forward", "gemm_nt", "relu_forward", "gemm_nt"],
    ]
    assert kernel_names(builder.backward_regions()) == [
        [pack],
        [gemm, "relu_backward", gemm, "conv_pool_backward", "conv_pool_backward"],
        [sums, sums, gemm, gemm, gemm, gemm],
        [],
    ]
    assert [tasks for tasks, _ in builder.loss_and_grads_regions()] == [2, 3, 2, 2]
    assert kernel_names([builder.update_region()]) == [["sgd_update"] * 8]
    assert builder.parameter_names == ["w0", "b0", "w1", "b1", "w3", "b3", "w4", "b4"]


def test_each_call_reads_what_the_one_before_it_wrote():
    builder = PlanBuilder(RecordingDevice(), network(conv(4, 1), conv(8, 4), features=8), 3, 2)
    (_, forward), (_, backward) = builder.forward_regions()[1], builder.backward_regions()[1]
    outs = [arguments["out"].name for _, arguments in forward]
    assert outs == ["out0", "out1", "z3", "out3", "z"]
    assert [arguments["x"].name for _, arguments in forward if "x" in arguments] == ["x", "out0", "out1", "out3"]
    chain = [(a["grad_out"].name, a["grad_input"]) for name, a in backward if name == "conv_pool_backward"]
    assert [g for g, _ in chain] == ["g1", "g0"] and chain[0][1].name == "g0" and chain[1][1] == 0
    declared = {**builder.saved_buffers(), **builder.packed_buffers(), **builder.scratch_buffers()}
    declared |= builder.loss_buffers()
    given = {"x", "x_backward", "labels", "counts", "factor", "probabilities", "loss", "learning_rate"}
    given |= set(builder.parameter_names) | {f"d{name}" for name in builder.parameter_names}
    regions = [*builder.loss_and_grads_regions(), builder.update_region()]
    used = {v.name for _, calls in regions for _, a in calls for v in a.values() if hasattr(v, "name")}
    assert used == set(declared) | given, "a buffer is not declared, or not used"


def test_a_block_with_a_new_kernel_is_planned_without_a_change_in_the_planner():
    layers = network(conv(4, 1), conv(8, 4, (1, 1), None, None), features=25 * 8)
    with pytest.raises(Unsupported, match="padding_mode='reflect'"):
        PlanBuilder(RecordingDevice(), layers, 3, 2)
    builder = PlanBuilder(PaddingDevice(), layers, 3, 2)
    assert kernel_names(builder.forward_regions())[1][:2] == ["conv_pool_forward", "padded_conv"]
    (_, backward), (_, grads), _ = builder.backward_regions()[1:]
    name, arguments = backward[3]
    assert name == "padded_conv_backward"
    assert (arguments["grad_out"].name, arguments["grad_x"].name) == ("g1", "g0")
    assert "padded_conv_grads" in [name for name, _ in grads]
    assert builder.saved_buffers()["columns1"] == 64 and builder.scratch_buffers()["sums1"] == 32
