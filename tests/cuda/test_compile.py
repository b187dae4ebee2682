"""torch.compile reaches the kernels for CUDA: its graphs have operators, which dispatch when the graph runs."""

from __future__ import annotations

import pytest
import torch

import manualgrad as mg
from manualgrad.ops.conv2d_geometry import make_conv2d_geometry
from manualgrad.ops.conv2d_operators import conv2d_geometry, conv2d_numbers
from manualgrad.ops.conv_relu_pool_geometry import make_conv_relu_pool_geometry
from manualgrad.ops.max_pool2d_geometry import make_max_pool2d_geometry
from manualgrad.ops.pool_operators import pool_geometry, pool_numbers


def test_a_compiled_step_runs_the_kernels(kernel_device, launches) -> None:
    model = torch.nn.Sequential(mg.nn.MaxPool2d(3, 2, 1), mg.nn.ConvReLUMaxPool2d(2, 3, 2)).to(kernel_device)
    x = torch.randn(2, 2, 9, 9, device=kernel_device)

    def step(x: torch.Tensor) -> list[torch.Tensor]:
        leaf = x.detach().requires_grad_()
        return list(torch.autograd.grad(model(leaf).square().sum(), [leaf, *model.parameters()]))

    expected = step(x)
    eager = launches.copy()
    launches.clear()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    leaf = x.detach().requires_grad_()
    actual = torch.autograd.grad(compiled(leaf).square().sum(), [leaf, *model.parameters()])
    torch.testing.assert_close(list(actual), expected)
    assert sorted(launches) == sorted(eager) and eager.count("max_pool2d_backward") == 2


@pytest.mark.parametrize("channels_last", [True, False])
def test_operators_have_the_shapes_and_strides_that_they_announce(channels_last) -> None:
    x, w = torch.randn(2, 4, 7, 6), torch.randn(6, 2, 3, 2)
    ops = torch.ops.manualgrad
    geometry = make_conv2d_geometry(x, w, None, (1, 2), "valid", (2, 1), 2, True, channels_last)
    arguments = conv2d_numbers(geometry)
    assert conv2d_geometry(*arguments) == geometry
    g = torch.randn(2, 6, *geometry.windows.output_size(7, 6))
    pooling = make_max_pool2d_geometry(x.shape, 3, 2, 1, 1, True, channels_last)
    numbers = pool_numbers(pooling)
    assert pool_geometry(*numbers, channels_last) == pooling
    maximum, index = ops.max_pool2d(x.permute(0, 2, 3, 1), *numbers, channels_last)
    relu = pool_numbers(make_conv_relu_pool_geometry(x, w[:, :1].repeat(1, 4, 1, 1), None, 1, 0, True, 0.5).pooling)
    z = torch.randn(2, 5, 5, 6)
    pooled, relu_index = ops.relu_pool(z, *relu, 0.5)
    calls = [
        (ops.conv2d, (x, w, torch.randn(6), *arguments)),
        (ops.conv2d_grad_input, (g, w, *arguments)),
        (ops.conv2d_grad_weight, (g, x, *arguments)),
        (ops.max_pool2d, (x.permute(0, 2, 3, 1), *numbers, channels_last)),
        (ops.max_pool2d_backward, (*(t.permute(0, 3, 1, 2) for t in (maximum, index)), *numbers, channels_last)),
        (ops.relu_pool, (z, *relu, 0.5)),
        (ops.relu_pool_backward, (*(t.permute(0, 3, 1, 2) for t in (pooled, relu_index)), *relu, 0.5)),
    ]
    for operator, arguments in calls:
        torch.library.opcheck(operator.default, arguments, test_utils=("test_schema", "test_faketensor"))
