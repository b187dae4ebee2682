"""The words of a diagnosis: what kind of wrong, where it was seen, and on what evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compare.running import Run
from compare.variants import Variant

# Every kind of wrong that a finding can name, and what it means.
KINDS = {
    "constant factor": "the right gradient times a number",
    "transposed": "two dimensions have changed places, in it or in what it was computed from",
    "flipped": "rows, columns or both run backwards, in it or in what it was computed from",
    "shifted": "the right numbers, some places along",
    "permuted": "the right slices in another order",
    "summed over the batch": "every example has the sum, or one example's gradient, where each has its own",
    "not summed over the batch": "one example's gradient, or all of them unsummed, where the sum belongs",
    "missing term": "a part of the sum is not there, or one too many is",
    "ignores the incoming gradient": "right only if what comes from above were ones",
    "passes the incoming gradient through": "what comes from above is handed on as it is",
    "swapped": "the gradient of another input",
    "zero": "zero where it should not be",
    "none": "no gradient at all",
    "not finite": "NaN or infinite where it should not be",
    "only at zeros": "wrong only where a value is exactly 0, where a convention decides",
    "only at ties": "wrong only where values are equal, where a convention decides",
    "only at borders": "wrong only in the first or last rows or columns",
    "only in one dtype": "right in float64, wrong in a narrower dtype",
    "only in one layout": "right in contiguous memory, wrong in another layout",
    "wrong output": "forward itself is wrong",
    "changes its input": "an argument is written into",
    "changes the incoming gradient": "the gradient from above is written into; others may still need it",
    "not repeatable": "the same call gives another answer",
    "raises": "an exception",
    "wrong shape": "an output or a gradient of another shape than native's",
    "few elements": "wrong in a few elements, without a pattern",
    "unknown": "none of the patterns that are looked for",
}


@dataclass(frozen=True)
class Finding:
    """``kind`` is one of :data:`KINDS`; ``statement`` says it of this quantity, ``evidence`` what was measured."""

    kind: str
    quantity: str
    statement: str
    evidence: str = ""

    def __str__(self) -> str:
        text = f"{self.quantity}: {self.statement} [{self.kind}]"
        return f"{text}\n  {self.evidence}" if self.evidence else text


@dataclass(frozen=True)
class Subject:
    """A quantity that is wrong in one variant: ours and the oracle in float64, and where they differ unexplained."""

    quantity: str
    variant: Variant
    ours: Tensor | None
    oracle: Tensor | None
    wrong: Tensor | None
    tolerance: float
    values: dict[str, Tensor]
    run: Run
    message: str = ""

    @property
    def input(self) -> Tensor | None:
        """The values of the input whose gradient this is."""
        return self.values.get(self.quantity.removeprefix("gradient of "))

    def equals(self, other: Tensor | None) -> bool:
        """Whether ours is ``other``, up to rounding."""
        return other is not None and same(self.ours, other.to(self.ours), 4 * self.tolerance)


# asked(gradients, inputs=None): native's float64 values for other incoming gradients, or other inputs.
Asked = Callable[..., dict[str, Tensor | None]]


def same(a: Tensor, b: Tensor, tolerance: float = 0.0) -> bool:
    """Equal up to rounding: no element differs by more than a billionth of the largest, or by ``tolerance``."""
    if a.shape != b.shape or not a.numel():
        return False
    largest = float(b.abs().max())
    return bool(torch.all((a - b).abs() <= max(tolerance, 1e-9 * largest))) and largest > 0


def dimension(tensor: Tensor, dim: int) -> str:
    """What the reader calls a dimension: rows and columns are the last two."""
    if tensor.dim() > 1 and dim == tensor.dim() - 1:
        return "columns"
    if tensor.dim() > 1 and dim == tensor.dim() - 2:
        return "rows"
    if tensor.dim() == 4 and dim == 1:
        return "channels"
    return f"dimension {dim}"


def two(ours: float, right: float) -> str:
    """Both numbers, with as many digits as it takes to tell them apart."""
    for digits in range(6, 18):
        if f"{ours:.{digits}g}" != f"{right:.{digits}g}":
            break
    return f"it is {ours:.{digits}g}, right is {right:.{digits}g}"


def number(value: float) -> str:
    """A number as a person would write it: -1, 2, 0.3333."""
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e6 else f"{value:.6g}"
