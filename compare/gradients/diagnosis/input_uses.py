"""Uses of an input: where native uses it several times, a wrong gradient may leave out one of these uses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import Mismatch

MAX_USES = 8  # all subsets of so many uses are tried


class _SeparateUses(TorchFunctionMode):
    """Replace ``leaf`` by a copy in every operation that receives it, so that each use has its own gradient."""

    def __init__(self, leaf: Tensor) -> None:
        super().__init__()
        self.leaf = leaf
        self.uses: list[tuple[str, Tensor]] = []  # name of the operation, and its copy of the leaf

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", str(function))

        def replace_leaf(value: Any) -> Any:
            if value is not self.leaf:
                return value
            copy = value.detach().clone().requires_grad_()
            self.uses.append((name, copy))
            return copy

        if name == "__get__":  # attributes: shape and dtype are no use of the values, but .T is
            result = function(*args, **(kwargs or {}))
            if not isinstance(result, Tensor):
                return result
            name = f".{function.__self__.__name__}"
        return function(*tree_map(replace_leaf, args), **tree_map(replace_leaf, kwargs or {}))


def find_missing_uses(mismatch: Mismatch, native: Callable[..., Any], seed: int) -> Iterator[Finding]:
    """A gradient that is the sum over some, but not all, of the uses that native makes of the input."""
    name = mismatch.input_name
    if name not in mismatch.inputs:
        return
    leaves = [value.clone().requires_grad_(value.is_floating_point()) for value in mismatch.inputs.values()]
    separate_uses = _SeparateUses(leaves[list(mismatch.inputs).index(name)])
    with separate_uses:
        result = native(*leaves)
    outputs = [o for o in (result if isinstance(result, (tuple, list)) else (result,)) if o.requires_grad]
    if not 2 <= len(separate_uses.uses) <= MAX_USES or any(o.dtype != torch.float64 for o in outputs):
        return
    incoming = [mismatch.incoming(seed)(n, output) for n, output in enumerate(outputs)]
    copies = [copy for _, copy in separate_uses.uses]
    grads = torch.autograd.grad(outputs, copies, incoming, allow_unused=True)
    uses = [(use, grad.cpu()) for (use, _), grad in zip(separate_uses.uses, grads, strict=True) if grad is not None]
    for count in range(1, len(uses)):
        for missing in itertools.combinations(range(len(uses)), count):
            partial_sum = sum(grad for n, (_, grad) in enumerate(uses) if n not in missing)
            if mismatch.equals(partial_sum):
                names = " and ".join(f"{uses[n][0]} (use {n + 1} of {len(uses)})" for n in missing)
                statement = f"the contribution of the input's use in {names} is missing"
                yield Finding("missing term", mismatch.quantity, statement)
                return
