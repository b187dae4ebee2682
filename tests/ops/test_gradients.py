"""Promise: first and second derivatives, backward and forward, equal finite differences, for every option.

gradcheck accepts an error of 1e-4; ``test_equations.py`` and ``test_native.py`` compare the same derivatives with
exact ones. The tests here show that every mode of differentiation uses the same formulas.
"""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import manualgrad as mg
from tests.operations import SMALL_OPERATIONS, SmallOperation, operation_id

every_operation = pytest.mark.parametrize("operation", SMALL_OPERATIONS, ids=operation_id)


@every_operation
def test_first_derivatives_in_every_mode(operation: SmallOperation, device):
    assert gradcheck(
        operation.function,
        operation.inputs(device=device),
        check_undefined_grad=True,
        check_batched_grad=True,
        check_forward_ad=True,
        check_batched_forward_grad=True,
    )


@every_operation
def test_second_derivatives_in_every_mode(operation: SmallOperation, device):
    assert gradgradcheck(
        operation.function,
        operation.inputs(device=device),
        check_undefined_grad=True,
        check_batched_grad=True,
        check_fwd_over_rev=True,
    )


@every_operation
def test_only_required_gradients_are_computed(operation: SmallOperation, device):
    inputs = operation.inputs(device=device)
    for index in range(len(inputs)):
        leaves = [tensor.detach().requires_grad_(n == index) for n, tensor in enumerate(inputs)]
        output = operation.function(*leaves)
        grad_output = torch.randn_like(output)
        output.backward(grad_output)
        (expected,) = torch.autograd.grad(operation.function(*inputs), inputs[index], grad_output)
        assert torch.equal(leaves[index].grad, expected)
        assert all(tensor.grad is None for n, tensor in enumerate(leaves) if n != index)


def test_gradcheck_rejects_a_wrong_gradient():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return mg.relu(x)

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, g):
            return g * 1.01

    x = (torch.rand(3, dtype=torch.float64) + 1).requires_grad_()
    assert not gradcheck(Wrong.apply, (x,), raise_exception=False)


def graph_nodes(output):
    """Set of the nodes of the autograd graph of ``output``."""
    visited, stack = set(), [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in visited:
            visited.add(node)
            stack += [parent for parent, _ in node.next_functions]
    return visited


# Nodes that PyTorch may differentiate: views, copies, casts, and the sums and products that join our Functions.
NATIVE_NODES = {
    "torch::autograd::AccumulateGrad",
    "CloneBackward0", "ToCopyBackward0", "TBackward0", "TransposeBackward0", "PermuteBackward0",
    "ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "ExpandBackward0", "SqueezeBackward0",
    "SqueezeBackward1", "UnsqueezeBackward0", "AddBackward0", "MaskedFillBackward0", "DivBackward0", "MulBackward0",
}  # fmt: skip


@every_operation
def test_the_graph_of_a_first_derivative_has_our_functions_only(operation: SmallOperation, device):
    inputs = operation.inputs(device=device)
    output = operation.function(*inputs)
    gradients = torch.autograd.grad(output, inputs, torch.ones_like(output), create_graph=True)
    ours = {"Conv2dFunction", "Conv2dGradInputFunction", "Conv2dGradWeightFunction", "GradBiasFunction",
            "MaxPool2dFunction", "MaxPool2dBackwardFunction", "MaxPool2dJvpFunction", "FlattenFunction",
            "UnflattenFunction", "DenseFunction", "ReLUFunction", "ReLUBackwardFunction", "ReLUInPlaceFunction",
            "SoftmaxFunction", "SoftmaxBackwardFunction", "CrossEntropyFunction", "CrossEntropyBackwardFunction",
            "CrossEntropyJvpFunction", "CrossEntropyGradTargetFunction", "ProductFunction", "ScaleRowsFunction",
            "SumLastFunction", "RepeatLastFunction"}  # fmt: skip
    for result in (output, *gradients):
        if result.grad_fn:
            assert {node.name().removesuffix("Backward") for node in graph_nodes(result)} <= NATIVE_NODES | ours


def test_a_third_derivative():
    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def gradient(z):
        return torch.autograd.grad(mg.softmax_cross_entropy(z, torch.tensor([1, 3, 0])), z, create_graph=True)[0]

    assert gradgradcheck(gradient, (z,))
