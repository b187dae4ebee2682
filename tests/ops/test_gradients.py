"""Promise: first and second derivatives, backward and forward, equal finite differences, for every option.

gradcheck lets an error of 1e-4 pass; ``test_equations.py`` and ``test_native.py`` hold the same derivatives against
exact oracles. What is shown here is that every mode of differentiation leads to the same formulas.
"""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import manualgrad as mg
from tests.operations import OPERATIONS, Operation, names

every_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=names)


@every_operation
def test_first_derivatives_in_every_mode(operation: Operation, device):
    assert gradcheck(
        operation.function,
        operation.inputs(device=device),
        check_undefined_grad=True,
        check_batched_grad=True,
        check_forward_ad=True,
        check_batched_forward_grad=True,
    )


@every_operation
def test_second_derivatives_in_every_mode(operation: Operation, device):
    assert gradgradcheck(
        operation.function,
        operation.inputs(device=device),
        check_undefined_grad=True,
        check_batched_grad=True,
        check_fwd_over_rev=True,
    )


@every_operation
def test_only_the_gradients_asked_for_are_computed(operation: Operation, device):
    inputs = operation.inputs(device=device)
    for asked in range(len(inputs)):
        given = [tensor.detach().requires_grad_(n == asked) for n, tensor in enumerate(inputs)]
        output = operation.function(*given)
        upstream = torch.randn_like(output)
        output.backward(upstream)
        wanted = torch.autograd.grad(operation.function(*inputs), inputs[asked], upstream)[0]
        assert torch.equal(given[asked].grad, wanted)
        assert all(tensor.grad is None for n, tensor in enumerate(given) if n != asked)


def test_a_wrong_gradient_is_noticed():
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
    """Every node of the graph behind ``output``."""
    seen, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return seen


# What torch's own engine may differentiate: views, copies, casts, and the sums and products that join our Functions.
JOINTS = {
    "torch::autograd::AccumulateGrad",
    "CloneBackward0", "ToCopyBackward0", "TBackward0", "TransposeBackward0", "PermuteBackward0",
    "ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "ExpandBackward0", "SqueezeBackward0",
    "SqueezeBackward1", "UnsqueezeBackward0", "AddBackward0", "MaskedFillBackward0", "DivBackward0", "MulBackward0",
}  # fmt: skip


@every_operation
def test_the_graph_of_a_first_derivative_is_ours(operation: Operation, device):
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
        names = {node.name() for node in graph_nodes(result)} if result.grad_fn else set()
        strangers = {name for name in names if name not in JOINTS and name.removesuffix("Backward") not in ours}
        assert not strangers


def test_a_third_derivative():
    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def gradient(z):
        return torch.autograd.grad(mg.softmax_cross_entropy(z, torch.tensor([1, 3, 0])), z, create_graph=True)[0]

    assert gradgradcheck(gradient, (z,))
