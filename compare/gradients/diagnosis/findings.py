"""Findings: the kind of a mistake, the quantity that it affects, and the evidence."""

from __future__ import annotations

from dataclasses import dataclass

# Every kind of mistake that a finding can name, and its meaning.
KINDS = {
    "constant factor": "the expected gradient times a number",
    "transposed": "two dimensions of the gradient, or of a tensor it was computed from, are exchanged",
    "conjugated": "computed with the complex conjugate of an input, or with an input that should be conjugated",
    "flipped": "rows, columns or both of the gradient, or of a tensor it was computed from, are in reverse order",
    "shifted": "the expected elements at shifted indices",
    "permuted": "the expected slices in another order",
    "summed over the batch": "every example has the same gradient, such as the sum, instead of its own",
    "not summed over the batch": "the gradient of one example, or the unsummed gradients, instead of the sum",
    "missing term": "one or more terms of the sum are missing, or there is one too many",
    "ignores the incoming gradient": "correct only if the incoming gradient is all ones",
    "passes the incoming gradient through": "the incoming gradient is returned unchanged",
    "not linear in the incoming gradient": "wrong for other incoming gradients: 0, a multiple, a sum of two",
    "swapped": "the gradient of another input",
    "zero": "zero where a nonzero value is expected",
    "none": "no gradient is returned",
    "not finite": "NaN or infinite where a finite value is expected",
    "only at zeros": "wrong only where a value is exactly 0; the derivative there is a convention",
    "only at ties": "wrong only where values are equal; the derivative there is a convention",
    "only at bounds": "wrong only where an input or the output has one of a few values, such as those of a clamp",
    "only at borders": "wrong only in the first or last rows or columns",
    "only in one dtype": "wrong in one or two dtypes, correct in another",
    "only in one layout": "correct for contiguous tensors, wrong in another memory layout",
    "wrong output": "the output of forward is wrong",
    "changes its input": "an argument is modified in place",
    "changes the incoming gradient": "backward modifies the incoming gradient, which other nodes may still need",
    "depends on which inputs require a gradient": "wrong or None if only some inputs require a gradient",
    "depends on earlier calls": "right in a call by itself, wrong after or between other calls",
    "not repeatable": "a second call with the same arguments returns different values",
    "raises": "an exception is raised",
    "wrong shape": "an output or a gradient has another shape than native's",
    "factor of one term": "one term of the sum is multiplied by a number, such as a wrong sign",
    "factor by element": "each element is the expected one times a factor of its own, whatever the incoming gradient",
    "step left out": "the expected gradient of the function without one of its operations, such as a mask",
    "another operand": "the expected gradient with another tensor or number in the place of one of its operands",
    "not transposed": "the derivative of forward is applied to the incoming gradient, instead of its transpose",
    "wrong sum": "a sum or mean over another dimension, over too many elements or too few",
    "wrong half": "one triangle, the diagonal or the symmetric part of the expected matrix",
    "only for some values": "wrong exactly where a condition on values holds",
    "only at some indices": "wrong exactly where a condition on indices holds",
    "change of the source": "right in every comparison if one place in the source is changed",
    "wrong intermediate value": "right if one expression of backward has the value that it should have",
    "few elements": "wrong in a few elements, without a pattern",
    "unknown": "no pattern fits",
}


@dataclass(frozen=True)
class Finding:
    """One mistake.

    Attributes:
        kind: one of :data:`KINDS`.
        quantity: the affected output or gradient, or the modified argument.
        statement: the mistake in words.
        evidence: what was measured.
        correction: the change of the source that makes it right, if one is known.
    """

    kind: str
    quantity: str
    statement: str
    evidence: str = ""
    correction: str = ""

    @property
    def kind_in_words(self) -> str:
        """The kind as reports show it: "none" alone would read as "no mistake"."""
        return "no gradient" if self.kind == "none" else self.kind

    def __str__(self) -> str:
        lines = (f"{self.quantity}: {self.statement} [{self.kind_in_words}]", self.evidence, self.correction)
        return "\n  ".join(line for line in lines if line)
