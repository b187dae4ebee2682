"""An input that native uses several times: which of its uses a wrong gradient leaves out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from compare.diagnosis.findings import Finding, Subject
from compare.diagnosis.hypotheses import as_it_was

MOST = 8  # uses, all of whose subsets are tried


class _Uses(TorchFunctionMode):
    """Gives every operation that is handed ``leaf`` a copy of its own, which then has a gradient of its own."""

    def __init__(self, leaf: Tensor) -> None:
        super().__init__()
        self.leaf = leaf
        self.copies: list[tuple[str, Tensor]] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", str(function))

        def own(value: Any) -> Any:
            if value is not self.leaf:
                return value
            copy = value.detach().clone().requires_grad_()
            self.copies.append((name, copy))
            return copy

        if name == "__get__":  # shape, dtype and the like are no use of the values; .T is
            result = function(*args, **(kwargs or {}))
            if not isinstance(result, Tensor):
                return result
            name = f".{function.__self__.__name__}"
        return function(*tree_map(own, args), **tree_map(own, kwargs or {}))


def uses(subject: Subject, native: Callable[..., Any], seed: int) -> Iterator[Finding]:
    """Ours as the sum over some, and not all, of the uses that native makes of the input."""
    name = subject.quantity.removeprefix("gradient of ")
    if name not in subject.values:
        return
    leaves = [v.clone().requires_grad_(v.is_floating_point()) for v in subject.values.values()]
    mode = _Uses(leaves[list(subject.values).index(name)])
    with mode:
        result = native(*leaves)
    outputs = [o for o in (result if isinstance(result, (tuple, list)) else (result,)) if o.requires_grad]
    if not 2 <= len(mode.copies) <= MOST or any(o.dtype != torch.float64 for o in outputs):
        return
    incoming = [as_it_was(subject, seed)(n, output) for n, output in enumerate(outputs)]
    copies = [copy for _, copy in mode.copies]
    found = torch.autograd.grad(outputs, copies, incoming, allow_unused=True)
    shares = [(use, share.cpu()) for (use, _), share in zip(mode.copies, found, strict=True) if share is not None]
    for count in range(1, len(shares)):
        for left in itertools.combinations(range(len(shares)), count):
            rest = sum(share for n, (_, share) in enumerate(shares) if n not in left)
            if subject.equals(rest):
                names = " and ".join(f"{shares[n][0]} (use {n + 1} of {len(shares)})" for n in left)
                statement = f"what its use in {names} contributes is missing"
                yield Finding("missing term", subject.quantity, statement)
                return
