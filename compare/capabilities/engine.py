"""What people do with a graph: backward again, hooks, accumulation into ``.grad``, copies of a module."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compare.capabilities.agreement import Fails, NotApplicable, must_agree, must_be_the_same
from compare.capabilities.trial import Trial, asking, pull, there_and_back, upstream


def backward_again(trial: Trial, native: None) -> None:
    """Backward twice through one graph with ``retain_graph=True``: the same gradients both times, and the first
    ones are not written over by the second."""
    leaves = trial.leaves()
    outputs = trial(*leaves)
    incoming = upstream(outputs)
    first = pull(outputs, leaves, incoming, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    doubled = pull(outputs, leaves, [2 * g for g in incoming])
    must_be_the_same(first, kept, trial.gradient_names(), "was written over by the next backward")
    must_agree(first, trial.plain[1], trial.gradient_names())
    must_agree([gradient / 2 for gradient in doubled], trial.plain[1], trial.gradient_names(), "the second time")


def hooks(trial: Trial, native: list[int] | None) -> list[int]:
    """A hook on every input is called, once where native's is, with the gradient; one on every output that doubles
    what comes in doubles all gradients."""
    leaves = [leaf for leaf in trial.leaves() if leaf.requires_grad]
    function, _ = trial.of_floating(trial)
    called: list[list[Tensor]] = [[] for _ in leaves]
    for leaf, calls in zip(leaves, called, strict=True):
        leaf.register_hook(lambda g, calls=calls: calls.append(g.clone()) if g is not None else None)
    # What hands an input on is given a view, so that its hooks are not those of the input.
    outputs = [output.view_as(output) if output.is_leaf else output for output in function(*leaves)]
    for output in outputs:
        if output.requires_grad:
            output.register_hook(lambda g: 2 * g)
    _backward(outputs)
    counts = [len(calls) for calls in called]
    for name, calls, plain, expected in zip(trial.floating, called, trial.plain[1], native or counts, strict=True):
        if len(calls) != expected or len(calls) > 1:
            raise Fails(f"the hook of {name} was called {len(calls)} times in one backward, natively {expected}")
        if calls:
            must_agree([calls[0] / 2], [plain], [f"what the hook of {name} was given"])
    return counts


def accumulation(trial: Trial, native: None) -> None:
    """``backward()`` adds to ``.grad``: after two runs on the same leaves it is twice the gradient."""
    leaves = trial.leaves()
    for _ in range(2):
        _backward(trial(*leaves))
    sums = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves if leaf.requires_grad]
    must_agree([total / 2 for total in sums], trial.plain[1], trial.gradient_names(), "half of .grad after two runs")


def copies(trial: Trial, native: None) -> None:
    """``copy.deepcopy`` and ``pickle`` of a module: the copy gives what the module gives."""
    if not isinstance(trial.function, nn.Module):
        raise NotApplicable("a function and not a module")
    for name, twin in (
        ("deepcopy", copy.deepcopy(trial.function)),
        ("pickle", pickle.loads(pickle.dumps(trial.function))),
    ):
        trial.must_equal_plain(*there_and_back(Trial(trial.case, twin, trial.device), trial.leaves()), f"its {name}")


def _backward(outputs: Sequence[Tensor]) -> None:
    torch.autograd.backward(*asking(outputs, upstream(outputs)))
