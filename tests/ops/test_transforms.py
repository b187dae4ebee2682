"""Promise: the layers work wherever PyTorch's do: transforms, compile, autocast, checkpoints, threads, hooks."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import func

import manualgrad as mg
from compare.native_network import native_twin
from tests.operations import SMALL_OPERATIONS, SmallOperation, operation_id
from tests.ops.small_network import CLOSE, every_operation, small_network


def scalar(operation: SmallOperation):
    """The operation followed by a sum of squares, so that second derivatives are not all 0."""
    return lambda *inputs: operation.function(*inputs).square().sum()


def detached(operation: SmallOperation, device="cpu"):
    return tuple(tensor.detach() for tensor in operation.inputs(device=device))


@every_operation
def test_func_grad_equals_backward(operation, device):
    inputs = detached(operation, device)
    everything = tuple(range(len(inputs)))
    leaves = tuple(tensor.clone().requires_grad_() for tensor in inputs)
    expected = torch.autograd.grad(scalar(operation)(*leaves), leaves)
    torch.testing.assert_close(func.grad(scalar(operation), everything)(*inputs), expected, **CLOSE)


@every_operation
def test_jvp_is_the_transpose_of_vjp(operation, device):
    inputs = detached(operation, device)
    tangents = tuple(torch.randn_like(tensor) for tensor in inputs)
    output, tangent = func.jvp(operation.function, inputs, tangents)
    vjp_output, vjp = func.vjp(operation.function, *inputs)
    assert torch.equal(output, vjp_output)
    cotangent = torch.randn_like(output)
    forward = (tangent * cotangent).sum()
    backward = sum((a * b).sum() for a, b in zip(tangents, vjp(cotangent), strict=True))
    torch.testing.assert_close(forward, backward, **CLOSE)


@every_operation
def test_hessian_by_every_pair_of_modes(operation, device):
    inputs = detached(operation, device)
    sizes = [tensor.numel() for tensor in inputs]

    def function(flat):  # of all inputs in one vector, so that mixed derivatives are included
        parts = flat.split(sizes)
        return scalar(operation)(*(part.view(tensor.shape) for part, tensor in zip(parts, inputs, strict=True)))

    flat = torch.cat([tensor.flatten() for tensor in inputs])
    expected = func.jacrev(func.jacrev(function))(flat)
    for outer, inner in ((func.jacfwd, func.jacrev), (func.jacrev, func.jacfwd), (func.jacfwd, func.jacfwd)):
        torch.testing.assert_close(outer(inner(function))(flat), expected, **CLOSE)


THIRD = [o for o in SMALL_OPERATIONS if o.name.startswith(("softmax", "dense", "conv2d, unbatched"))]


@pytest.mark.parametrize("operation", THIRD, ids=operation_id)
def test_third_derivatives_by_every_triple_of_modes(operation):
    """Third derivatives along one line through all inputs, each of which is one number."""
    inputs = detached(operation)
    directions = [torch.randn_like(tensor) for tensor in inputs]

    def along(t):
        line = (tensor + t * direction for tensor, direction in zip(inputs, directions, strict=True))
        return scalar(operation)(*line)

    def forward(function):
        return lambda t: func.jvp(function, (t,), (torch.ones_like(t),))[1]

    zero = torch.zeros((), dtype=torch.float64)
    expected = func.grad(func.grad(func.grad(along)))(zero)
    assert expected.abs() > 1e-6
    for outer, middle, inner in itertools.product((forward, func.grad), repeat=3):
        torch.testing.assert_close(outer(middle(inner(along)))(zero), expected, **CLOSE)


def test_three_jacfwd():
    z = torch.randn(3, dtype=torch.float64)
    for ours, native in (
        (mg.softmax, lambda z: torch.softmax(z, -1)),
        (
            lambda z: mg.softmax_cross_entropy(z, torch.tensor(1)),
            lambda z: torch.nn.functional.cross_entropy(z, torch.tensor(1)),
        ),
    ):
        expected = func.jacrev(func.jacrev(func.jacrev(native)))(z)
        torch.testing.assert_close(func.jacfwd(func.jacfwd(func.jacfwd(ours)))(z), expected, **CLOSE)


BATCHED = [(o, b) for o in SMALL_OPERATIONS for b in ("all", "first", "not first") if len(o.shapes) > 1 or b == "all"]


@pytest.mark.parametrize(("operation", "batched"), BATCHED, ids=[f"{operation_id(o)}-{b}" for o, b in BATCHED])
def test_vmap_equals_a_loop(operation, batched, device):
    inputs = detached(operation, device)
    dims = tuple(0 if batched == "all" or (n == 0) == (batched == "first") else None for n in range(len(inputs)))
    stacks = tuple(
        torch.stack([tensor, tensor * 2, tensor - 1]) if dim == 0 else tensor
        for tensor, dim in zip(inputs, dims, strict=True)
    )

    def example(n):
        return tuple(stack[n] if dim == 0 else stack for stack, dim in zip(stacks, dims, strict=True))

    everything = tuple(range(len(inputs)))
    for function in (
        operation.function,
        func.grad(scalar(operation), everything),
        lambda *xs: func.jvp(operation.function, xs, xs)[1],
        func.grad(lambda *xs: func.grad(scalar(operation))(*xs).square().sum()),
    ):
        batched_result = func.vmap(function, in_dims=dims)(*stacks)
        results = [function(*example(n)) for n in range(3)]
        if isinstance(batched_result, torch.Tensor):
            torch.testing.assert_close(batched_result, torch.stack(results), **CLOSE)
        else:
            torch.testing.assert_close(batched_result, tuple(map(torch.stack, zip(*results, strict=True))), **CLOSE)


def test_vmap_over_labels_and_invalid_labels_under_vmap():
    z, labels = torch.randn(3, 5), torch.tensor([4, 0, 9])
    losses = func.vmap(mg.softmax_cross_entropy)(z, labels)
    assert torch.equal(losses[:2], mg.softmax_cross_entropy(z[:2], labels[:2], reduction="none"))
    assert losses[2].isnan(), "the loss of an invalid label must be NaN under vmap, where labels cannot be checked"


def test_per_example_gradients_equal_native(device):
    model = small_network(device)
    twin = native_twin(model)
    x = torch.randn(4, 1, 16, 16, dtype=torch.float64, device=device)
    labels = torch.arange(4, device=device)

    def per_example_gradients(network, cross_entropy):
        def loss(parameters, image, label):
            logits = func.functional_call(network, parameters, (image.unsqueeze(0),))
            return cross_entropy(logits, label.unsqueeze(0))

        return func.vmap(func.grad(loss), in_dims=(None, 0, 0))

    ours = per_example_gradients(model, mg.softmax_cross_entropy)(dict(model.named_parameters()), x, labels)
    native = per_example_gradients(twin, torch.nn.functional.cross_entropy)(dict(twin.named_parameters()), x, labels)
    assert ours["conv0.weight"].shape == (4, 2, 1, 5, 5)
    torch.testing.assert_close(ours["conv0.weight"].flip(3, 4), native["conv0.weight"], **CLOSE)
    torch.testing.assert_close(ours["conv1.bias"], native["conv1.bias"], **CLOSE)
    torch.testing.assert_close(ours["dense3.weight"], native["dense3.weight"], **CLOSE)
