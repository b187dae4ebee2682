"""Uses of a graph beside one backward pass: a second backward, hooks, gradient accumulation, copies of a module."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compare.capabilities.assertions import CheckFailed, NotApplicable, assert_bitwise_equal, assert_close
from compare.capabilities.function_under_test import (
    FunctionUnderTest,
    input_grads,
    random_grad_outputs,
    requiring_grad,
    run_forward_backward,
)


def backward_twice(tested: FunctionUnderTest, native: None) -> None:
    """Backward twice through one graph with ``retain_graph=True``: both give the same gradients, and the second does
    not overwrite the gradients of the first."""
    leaves = tested.leaves()
    outputs = tested(*leaves)
    incoming = random_grad_outputs(outputs)
    first = input_grads(outputs, leaves, incoming, retain_graph=True)
    copies = [gradient.clone() for gradient in first]
    doubled = input_grads(outputs, leaves, [2 * g for g in incoming])
    assert_bitwise_equal(first, copies, tested.gradient_names(), "was overwritten by the next backward")
    assert_close(first, tested.baseline[1], tested.gradient_names())
    second = [gradient / 2 for gradient in doubled]
    assert_close(second, tested.baseline[1], tested.gradient_names(), "the second time")


def hooks(tested: FunctionUnderTest, native: list[int] | None) -> list[int]:
    """A hook on every input is called as often as natively, at most once, and receives the gradient; a hook on every
    output that doubles the incoming gradient doubles all gradients."""
    leaves = [leaf for leaf in tested.leaves() if leaf.requires_grad]
    function, _ = tested.of_floating_inputs(tested)
    received: list[list[Tensor]] = [[] for _ in leaves]
    for leaf, grads in zip(leaves, received, strict=True):
        leaf.register_hook(lambda g, grads=grads: grads.append(g.clone()) if g is not None else None)
    # A function that returns an input unchanged gets a view of it, so that the input's hooks are not the output's.
    outputs = [output.view_as(output) if output.is_leaf else output for output in function(*leaves)]
    for output in outputs:
        if output.requires_grad:
            output.register_hook(lambda g: 2 * g)
    _backward(outputs)
    counts = [len(grads) for grads in received]
    rows = zip(tested.floating_names, received, tested.baseline[1], native or counts, strict=True)
    for name, grads, baseline, expected in rows:
        if len(grads) != expected or len(grads) > 1:
            raise CheckFailed(
                f"the hook of {name} was called {len(grads)} times in one backward, natively {expected}"
            )
        if grads:
            assert_close([grads[0] / 2], [baseline], [f"the gradient that the hook of {name} received"])
    return counts


def gradient_accumulation(tested: FunctionUnderTest, native: None) -> None:
    """``backward()`` adds to ``.grad``: after two runs on the same leaves it is twice the gradient."""
    leaves = tested.leaves()
    for _ in range(2):
        _backward(tested(*leaves))
    sums = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves if leaf.requires_grad]
    halves = [total / 2 for total in sums]
    assert_close(halves, tested.baseline[1], tested.gradient_names(), "half of .grad after two runs")


def deepcopy_and_pickle(tested: FunctionUnderTest, native: None) -> None:
    """``copy.deepcopy`` and ``pickle`` of a module: the copy computes what the module computes."""
    if not isinstance(tested.function, nn.Module):
        raise NotApplicable("a function and not a module")
    for name, duplicate in (
        ("deepcopy", copy.deepcopy(tested.function)),
        ("pickle", pickle.loads(pickle.dumps(tested.function))),
    ):
        outputs, grads = run_forward_backward(tested.with_function(duplicate), tested.leaves())
        tested.assert_equals_baseline(outputs, grads, f"its {name}")


def _backward(outputs: Sequence[Tensor]) -> None:
    torch.autograd.backward(*requiring_grad(outputs, random_grad_outputs(outputs)))
