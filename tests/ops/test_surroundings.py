"""Promise: layers work under torch.compile, autocast, checkpointing, hooks and threads, and leak nothing."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import manualgrad as mg
from tests.ops.small_network import CLOSE, every_operation, small_network


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


def test_gradients_through_autocast_are_as_far_from_float32_as_native_ones(device):
    """bfloat16 has 8 bits, and a ReLU or a maximum may choose another input: a tenth of a gradient, natively too."""
    device_type = device.split(":")[0] if isinstance(device, str) else device.type
    model = mg.DocumentCNN(image_size=16, channels=(2, 3), hidden=(5,), device=device)
    x, labels = torch.randn(4, 1, 16, 16, device=device), torch.arange(4, device=device)
    native = mg.to_torch(model)

    def errors(loss: Callable[[], torch.Tensor], parameters: list[torch.Tensor]) -> list[float]:
        exact = torch.autograd.grad(loss(), parameters)
        with torch.autocast(device_type, dtype=torch.bfloat16):
            low = loss()
        assert low.dtype == torch.float32
        grads = torch.autograd.grad(low, parameters)
        assert {g.dtype for g in grads} == {torch.float32}
        return [float((g - e).norm() / e.norm()) for g, e in zip(grads, exact, strict=True)]

    ours = errors(lambda: model.cost(x, labels), list(model.parameters()))
    natively = errors(lambda: torch.nn.functional.cross_entropy(native(x), labels), list(native.parameters()))
    for error, native_error in zip(ours, natively, strict=True):
        assert error <= 2 * native_error


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
