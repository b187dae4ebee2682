"""Promise: the layers work wherever PyTorch's do: transforms, compile, autocast, checkpoints, threads, hooks."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import func
from torch.utils.checkpoint import checkpoint

import manualgrad as mg
from compare.native_network import native_twin
from tests.operations import SMALL_OPERATIONS, SmallOperation, operation_id

every_operation = pytest.mark.parametrize("operation", SMALL_OPERATIONS, ids=operation_id)
# The same sums in another order: results differ by a few roundings of float64.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


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


def small_network(device="cpu", **options):
    return mg.DocumentCNN(image_size=16, channels=(2, 3), hidden=(5,), device=device, dtype=torch.float64, **options)


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


@every_operation
def test_compile_without_a_graph_break(operation):
    inputs = operation.inputs(torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(operation.function, fullgraph=True, backend="aot_eager")
    ours, expected = compiled(*inputs), operation.function(*inputs)
    torch.testing.assert_close(ours, expected, **CLOSE)
    upstream = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), **CLOSE
    )


def test_the_compiled_network_has_the_gradients_of_the_eager_one():
    eager = small_network()
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True)
    x, labels = torch.randn(4, 1, 16, 16, dtype=torch.float64), torch.arange(4)
    for model in (eager, compiled):
        mg.softmax_cross_entropy(model(x), labels).backward()
    for ours, expected in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_gives_the_dtypes_that_native_layers_give(dtype, device):
    F = torch.nn.functional
    image, kernel = torch.randn(2, 3, 6, 6, device=device), torch.randn(4, 3, 3, 3, device=device)
    rows, weight = torch.randn(2, 3, device=device), torch.randn(4, 3, device=device)
    rows_16_bit = rows.to(dtype)
    labels = torch.tensor([0, 2], device=device)
    pairs = [
        (lambda: mg.conv2d(image, kernel, flip_kernel=False), lambda: F.conv2d(image, kernel)),
        (lambda: mg.dense(rows, weight), lambda: F.linear(rows, weight)),
        (lambda: mg.dense(rows.double(), weight.double()), lambda: F.linear(rows.double(), weight.double())),
        (lambda: mg.relu(rows_16_bit), lambda: F.relu(rows_16_bit)),
        (lambda: mg.max_pool2d(image.to(dtype)), lambda: F.max_pool2d(image.to(dtype), 2)),
        (lambda: mg.softmax(rows_16_bit), lambda: F.softmax(rows_16_bit, -1)),
        (lambda: mg.softmax_cross_entropy(rows_16_bit, labels), lambda: F.cross_entropy(rows_16_bit, labels)),
    ]
    with torch.autocast(device.split(":")[0] if isinstance(device, str) else device.type, dtype=dtype):
        for ours, native in pairs:
            assert ours().dtype == native().dtype
            # The same sums in 16 bits: results differ by at most two roundings.
            torch.testing.assert_close(ours().float(), native().float(), rtol=0.02, atol=0.02)


def test_gradients_through_autocast_have_the_dtype_of_the_parameters(device):
    model = mg.DocumentCNN(image_size=16, channels=(2, 3), hidden=(5,), device=device)
    device_type = device.split(":")[0] if isinstance(device, str) else device.type
    x, labels = torch.randn(4, 1, 16, 16, device=device), torch.arange(4, device=device)
    exact = torch.autograd.grad(model.cost(x, labels), list(model.parameters()))
    with torch.autocast(device_type, dtype=torch.bfloat16):
        cost = model.cost(x, labels)
    assert cost.dtype == torch.float32
    cost.backward()
    for parameter, gradient in zip(model.parameters(), exact, strict=True):
        assert parameter.grad.dtype == torch.float32
        # bfloat16 has 8 bits. A ReLU or a maximum may choose another input, so norms are compared.
        assert (parameter.grad - gradient).norm() <= 0.1 * gradient.norm()


def test_checkpointing_changes_nothing(device):
    model = small_network(device)
    x, labels = torch.randn(4, 1, 16, 16, dtype=torch.float64, device=device), torch.arange(4, device=device)
    plain = torch.autograd.grad(model.cost(x, labels), list(model.parameters()))
    recomputed = torch.autograd.grad(checkpoint(model.cost, x, labels, use_reentrant=False), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


def test_copies_and_pickles_equal_the_network():
    model = small_network()
    x = torch.randn(2, 1, 16, 16, dtype=torch.float64)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        assert twin.conv0.weight.data_ptr() != model.conv0.weight.data_ptr()


def test_hooks_are_called():
    model, calls = small_network(), []
    model.conv1.register_forward_hook(lambda *_: calls.append("forward"))
    model.conv1.register_full_backward_hook(lambda *_: calls.append("backward"))
    model.conv1.weight.register_hook(lambda g: calls.append(tuple(g.shape)))
    model.cost(torch.randn(2, 1, 16, 16, dtype=torch.float64), torch.arange(2)).backward()
    assert set(calls) == {"forward", "backward", (3, 2, 5, 5)}


def test_threads_do_not_interfere():
    model = small_network()
    batches = [torch.randn(4, 1, 16, 16, dtype=torch.float64) for _ in range(8)]

    def gradients(x):
        return torch.autograd.grad(model.cost(x, torch.arange(4)), list(model.parameters()))

    sequential = [gradients(x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        concurrent = list(pool.map(gradients, batches))
    for a, b in zip(sequential, concurrent, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@every_operation
def test_nothing_leaks(operation):
    inputs = tuple(tensor * 1 for tensor in operation.inputs())
    references = [weakref.ref(tensor) for tensor in inputs]
    gc.collect()
    gc.disable()  # reference counting must free all; a cycle would keep activations alive until the collector runs
    try:
        output = operation.function(*inputs)
        torch.autograd.grad(output.sum(), inputs, create_graph=True)
        del output, inputs
        assert [reference() for reference in references] == [None] * len(references)
    finally:
        gc.enable()


def test_tensors_that_backward_does_not_need_are_not_saved():
    x = torch.randn(2, 3, 6, 6)
    w = torch.randn(4, 3, 3, 3)
    reference = weakref.ref(x)
    output = mg.conv2d(x, w.requires_grad_())
    del x
    assert reference() is not None, "the gradient of w needs x"
    del output
    frozen = torch.randn(4, 3, 3, 3)
    source = torch.randn(2, 3, 6, 6, requires_grad=True)
    activation = source * 2
    reference = weakref.ref(activation)
    output = mg.conv2d(activation, frozen)
    del activation
    assert output.requires_grad
    assert reference() is None, "with a frozen w, no gradient needs x"
