"""Derivatives beyond the plain gradient: second order, forward mode, forward over reverse, finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, func
from torch.autograd import forward_ad

from compare.capabilities.assertions import CheckFailed, assert_close
from compare.capabilities.function_under_test import (
    FunctionUnderTest,
    input_grads,
    output_names,
    random_grad_outputs,
    random_like,
)

# Central differences in float64 have a relative error of about 1e-10 for a smooth function. With a kink between the
# two points they are far off, so smaller steps are tried as well; one step that agrees is enough.
STEP_SIZES = (1e-5, 1e-6, 1e-7)
CENTRAL_DIFFERENCE_RTOL = 1e-5
SLOW_ELEMENTS = 24  # of each input and output in gradcheck's slow mode, which runs forward twice for each element


def double_backward(tested: FunctionUnderTest, native: list[Tensor] | None) -> list[Tensor]:
    """Second derivatives by backward through backward: gradients of a random sum of all gradients with respect to
    inputs and incoming gradients; ours must equal native's, and native's must equal central differences."""
    second = _second_derivatives(tested)
    if native is not None:
        names = [
            *tested.gradient_names(),
            *(f"gradient of incoming gradient {n}" for n in range(len(tested.baseline[0]))),
        ]
        assert_close(second, native, [f"second derivative, {name}" for name in names])
        return second
    function, floating = tested.of_floating_inputs(tested)
    point = [*floating, *random_grad_outputs(tested.baseline[0])]
    direction = random_like(point, seed=3)

    def sum_of_gradients(*point: Tensor) -> list[Tensor]:
        leaves = [p.detach().requires_grad_() for p in point[: len(floating)]]
        first = input_grads(function(*leaves), leaves, point[len(floating) :])
        return [dot(first, random_like(first, seed=2))]

    assert_equals_central_differences(
        [dot(second, direction)], sum_of_gradients, point, direction, ["second derivative along a line"]
    )
    return second


def _second_derivatives(tested: FunctionUnderTest) -> list[Tensor]:
    leaves = tested.leaves()
    outputs = tested(*leaves)
    incoming = [g.requires_grad_() for g in random_grad_outputs(outputs)]
    first = input_grads(outputs, leaves, incoming, create_graph=True)
    if not any(gradient.requires_grad for gradient in first):
        raise CheckFailed("the gradient is cut off from the graph: it depends on nothing")
    # Not autograd.grad: it skips an error in the graph that belongs to an unused input.
    dot(first, random_like(first, seed=2)).backward()
    variables = [*(leaf for leaf in leaves if leaf.requires_grad), *incoming]
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in variables]


def forward_mode(tested: FunctionUnderTest, native: None) -> None:
    """Jacobian times a random vector in forward mode, for every input alone and for all together; its product with
    the incoming gradient must equal the product of the vector and the plain gradient."""
    outputs, gradients = tested.baseline
    incoming = random_grad_outputs(outputs)
    function, floating = tested.of_floating_inputs(tested)
    tangents = random_like(floating, seed=2)
    all_inputs = list(range(len(floating)))
    for selected in [all_inputs] if len(all_inputs) == 1 else [*([n] for n in all_inputs), all_inputs]:
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(x, t) if n in selected else x
                for n, (x, t) in enumerate(zip(floating, tangents, strict=True))
            ]
            results = [forward_ad.unpack_dual(output) for output in function(*duals)]
        where = f"for {tested.floating_names[selected[0]]} alone: " if len(selected) < len(all_inputs) else ""
        assert_close([r.primal for r in results], outputs, [where + name for name in output_names(outputs)])
        terms = [r.tangent * g for r, g in zip(results, incoming, strict=True) if r.tangent is not None]
        forward = sum((term.sum() for term in terms), torch.zeros_like(incoming[0].sum()))
        backward = dot([gradients[n] for n in selected], [tangents[n] for n in selected])
        scale = float(sum((gradients[n] * tangents[n]).abs().sum() for n in selected))
        if not abs(float(forward - backward)) <= 1e-10 * scale + 1e-13:
            raise CheckFailed(f"{where}forward mode gives {float(forward):.6g}, backward {float(backward):.6g}")


def forward_over_reverse(tested: FunctionUnderTest, native: list[Tensor] | None) -> list[Tensor]:
    """Hessian times a random vector, as torch.func.hessian computes its columns: ``func.jvp`` of ``func.grad`` of
    half the sum of squares; ours must equal native's, and native's must equal central differences."""
    function, floating = tested.of_floating_inputs(
        lambda *tensors: sum(o.square().sum() for o in tested(*tensors)) / 2
    )
    gradient = func.grad(function, tuple(range(len(floating))))
    direction = random_like(floating, seed=2)
    product = list(func.jvp(gradient, tuple(floating), tuple(direction))[1])
    names = [f"Hessian times a vector, {name}" for name in tested.gradient_names()]
    if native is not None:
        assert_close(product, native, names)
    else:
        assert_equals_central_differences(product, lambda *point: list(gradient(*point)), floating, direction, names)
    return product


def gradcheck_fast(tested: FunctionUnderTest, native: None) -> None:
    """``torch.autograd.gradcheck(fast_mode=True)`` on all inputs in float64."""
    function, floating = tested.of_floating_inputs(tested)
    _gradcheck(function, floating, fast=True)


def gradcheck_slow(tested: FunctionUnderTest, native: None) -> None:
    """``torch.autograd.gradcheck`` element by element, on up to 24 random elements of every input and output."""
    function, floating = tested.of_floating_inputs(tested)
    generator = torch.Generator().manual_seed(4)

    def random_indices(tensor: Tensor) -> Tensor:
        return torch.randperm(tensor.numel(), generator=generator)[:SLOW_ELEMENTS].to(tensor.device)

    input_indices = [random_indices(tensor) for tensor in floating]
    output_indices = [random_indices(output) for output in tested.baseline[0]]

    def of_selected_elements(*selected: Tensor) -> tuple[Tensor, ...]:
        inputs = [
            tensor.flatten().index_put((index,), values).view(tensor.shape)
            for tensor, index, values in zip(floating, input_indices, selected, strict=True)
        ]
        return tuple(output.flatten()[index] for output, index in zip(function(*inputs), output_indices, strict=True))

    elements = [tensor.flatten()[index] for tensor, index in zip(floating, input_indices, strict=True)]
    _gradcheck(of_selected_elements, elements, fast=False)


def _gradcheck(function: Callable[..., tuple[Tensor, ...]], floating: Sequence[Tensor], fast: bool) -> None:
    leaves = tuple(tensor.detach().requires_grad_() for tensor in floating)
    # Undefined gradients have a check of their own. On a GPU, sums by atomic additions have no fixed order.
    torch.autograd.gradcheck(function, leaves, fast_mode=fast, check_undefined_grad=False, nondet_tol=1e-10)


def assert_equals_central_differences(
    derivative: Sequence[Tensor],
    function: Callable[..., list[Tensor]],
    point: Sequence[Tensor],
    direction: Sequence[Tensor],
    names: Sequence[str],
) -> None:
    """Assert that ``derivative`` is the directional derivative of ``function`` at ``point``.

    At a kink, no derivative passes.

    Raises:
        CheckFailed: no step size of :data:`STEP_SIZES` agrees; the message is that of the best one.
    """
    best, message = float("inf"), ""
    for step in STEP_SIZES:
        after, before = (
            function(*(p + sign * step * d for p, d in zip(point, direction, strict=True))) for sign in (1, -1)
        )
        errors = []
        for name, exact, a, b in zip(names, derivative, after, before, strict=True):
            difference = (a - b) / (2 * step)
            scale = float(exact.norm()) + 1e-10 * float(a.norm()) / step  # second term: rounding of a alone
            error = float((exact - difference).norm())
            errors.append((error / scale if scale else error, name, float(exact.norm()), float(difference.norm())))
        worst = max(errors)
        if worst[0] < best:
            best, message = worst[0], f"{worst[1]} has the norm {worst[2]:.6g}, by central differences {worst[3]:.6g}"
    if not best <= CENTRAL_DIFFERENCE_RTOL:
        raise CheckFailed(message)


def dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Sum of the products of corresponding elements, over all pairs of tensors."""
    return sum((a * b).sum() for a, b in zip(first, second, strict=True))
