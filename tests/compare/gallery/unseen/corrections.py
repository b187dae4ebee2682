"""Judgements of a reader that replace the automatic ones where these are unfair."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Correction:
    """A judgement on one statement; another statement about the same Function is judged anew.

    Attributes:
        name: name of the case.
        statement: regular expression that the statement matches.
        named: "named", "unknown" or "wrongly named"; None leaves the automatic judgement.
        located: the same for the location.
        reason: why the automatic judgement is unfair.
    """

    name: str
    statement: str
    named: str | None
    located: bool | None
    reason: str

    def applies(self, name: str, statements: list[str]) -> bool:
        """Tell whether this correction is about these statements."""
        return name == self.name and any(re.search(self.statement, text) for text in statements)


CORRECTIONS = (
    Correction(
        "inverse real Fourier transform, not doubled",
        r"in the derivative of fft_irfft .* the multiplication by 2 is left out",
        "named",
        True,
        "the frequencies that stand for two each are those that are multiplied by 2",
    ),
    Correction(
        "shift of frequencies",
        r"columns in the order 1, 2, 3, 4, 0",
        "named",
        True,
        "an order of the columns is a shift by one",
    ),
    Correction(
        "rotated columns",
        r"columns in the order 3, 4, 5, 6, 0, 1, 2",
        "named",
        True,
        "an order of the columns is a shift by four",
    ),
    Correction(
        "unit rows, with epsilon",
        r"examples have different factors",
        "named",
        True,
        "an example of a matrix is a row",
    ),
    Correction(
        "softmax with temperatures",
        r"examples have different factors",
        "named",
        True,
        "an example of a matrix is a row",
    ),
    Correction(
        "rounding with bounds",
        r"equals the incoming gradient, unchanged",
        "named",
        True,
        "says that backward has no mask; all elements are concerned",
    ),
    Correction(
        "mean over dimension 1",
        r"the missing term is one number",
        "wrongly named",
        None,
        "'one number' matched by chance: nothing is missing, a wrong element of g is used",
    ),
    Correction(
        "batch norm",
        r"the missing term is a \+ b · output",
        "unknown",
        None,
        "'dimension 0' matched by chance: that the means are over another dimension is not said",
    ),
    Correction(
        "rows of a matrix",
        r"^3 of 12 elements are wrong$",
        None,
        False,
        "one of the three elements is told, not the row that they share",
    ),
    Correction(
        "reflected borders",
        r"contributions of some output elements are missing",
        None,
        False,
        "which columns or which outputs is not said",
    ),
    Correction(
        "cumulative logsumexp",
        r"contributions of some output elements are missing",
        None,
        False,
        "that they are the later ones is not said",
    ),
    Correction(
        "group norm",
        r"is used instead of the result of reshape",
        "named",
        None,
        "the result of reshape is the normalized tensor, in whose place the input was used",
    ),
    Correction(
        "mean of embeddings", r"derivative of div .* is left out", "named", None, "div is by the bag's length"
    ),
    Correction(
        "triangular system",
        r"only where the row < the column; it is not 0 as it should be there",
        "named",
        True,
        "these are the elements above the diagonal",
    ),
    Correction(
        "quadratic form",
        r"is missing, and the one through the first argument .* counts twice",
        "named",
        None,
        "one of the two parts a x and a^T x is missing, the other doubled",
    ),
    Correction(
        "cumulative logsumexp",
        r"is missing \(0\) where the output's column is not the input's column",
        "named",
        True,
        "only the output at the same index counts",
    ),
    Correction(
        "tanh",
        r"another factor for each element",
        "unknown",
        None,
        "that the argument stands for the result is not said",
    ),
    Correction(
        "running mean",
        r"factor that belongs to the output's column is taken at the input's column",
        "named",
        True,
        "the factor is 1 over the count: that of the input's index is used",
    ),
    Correction(
        "logsumexp of rows",
        r"the softmax is over dimension 0 \(rows\) instead of dimension 1",
        "named",
        True,
        "says what the mistake is",
    ),
    Correction(
        "forget gate, this step's state",
        r"times the result of sigmoid.*this factor is one too many",
        "named",
        True,
        "h[t] - c is f (h[t-1] - c): the wrong state is a factor f too many, and without it the gradient is right",
    ),
    Correction(
        "reflected borders",
        r"with (mode = )?'constant' instead of 'reflect' in pad",
        "named",
        True,
        "the elements in question are those that pad adds",
    ),
    Correction(
        "repeated borders, cropped",
        r"with (mode = )?'constant' instead of 'replicate' in pad",
        "named",
        True,
        "the gradient of padding with constants is the cropped incoming gradient",
    ),
    Correction(
        "softsign",
        r"times 1/\(1 \+ x²\); that is not the derivative, which is 1/\(1 \+ \|x\|\)²",
        "named",
        True,
        "both derivatives are told by their formulas",
    ),
    Correction(
        "instance norm, input of the weight",
        r"factor the result of mul in instance_norm.* is missing \(1 is used",
        "named",
        True,
        "the result of that mul is the normalized input",
    ),
    Correction(
        "quantization with a zero point, mask without it",
        r"without add in line",
        "named",
        True,
        "add adds the zero point: without it the mask is the wrong one",
    ),
    Correction(
        "attention with a table of offsets, one too low",
        r"an index one too small is used",
        "named",
        True,
        "says what the mistake is",
    ),
    Correction(
        "RMS of rows, kept on the class",
        r"wrong if another forward comes before backward",
        "named",
        True,
        "what is kept of the first forward is replaced by the second",
    ),
    Correction(
        "cell with coupled gates, gradient of the state",
        r"counts twice, and the one through",
        "wrongly named",
        False,
        "'missing' matched by chance: that the second output is ignored is not said",
    ),
    Correction(
        "means of neighbours, degree of the source",
        r"a factor that belongs to the output's row is taken at the input's row",
        "named",
        True,
        "the factor is 1 over the degree, the output's row the target, the input's the source",
    ),
    Correction(
        "selective scan, step left out of the rate's gradient",
        r"second argument \(rate\) of mul in line \d+, the factor the result of indexing .* is missing",
        "named",
        True,
        "the line indexes step: that is the factor",
    ),
    Correction(
        "depthwise convolution with a stride, stride in backward",
        r"through unfold in line \d+, 1 is used instead of 2",
        "named",
        True,
        "2 is the stride",
    ),
    Correction(
        "log-softmax, formula of softmax",
        r"is taken to be that of a softmax",
        "named",
        True,
        "says what the mistake is",
    ),
    Correction(
        "angle of a vector, gradients exchanged",
        r"equals the gradient of x",
        "named",
        True,
        "each gradient is said to be the other one",
    ),
    Correction(
        "layer with a bias, wrong index of needs_input_grad",
        r"None where only x and bias want one",
        "named",
        True,
        "says when the gradient is None: where weight wants none",
    ),
    Correction(
        "sums that start anew, one step too early",
        r"the indices in start are rotated by \+1",
        "named",
        True,
        "start rotated by one step stops the carry one step too early",
    ),
    Correction(
        "rectifier, guided",
        r"is wrong only where the incoming gradient < 0; it is 0 there",
        "named",
        True,
        "the words 'negative incoming gradients' were expected: 'the incoming gradient < 0' says the same",
    ),
    Correction(
        "logarithm of a sum of two, equal values",
        r"times 0 where (a equals b|b equals a), and is right elsewhere",
        "named",
        True,
        "'a equals b' are the words for equal values",
    ),
    Correction(
        "censored values, other tail",
        r"if in div in line \d+, -1\.41421\d* is used instead of 1\.41421",
        "named",
        True,
        "that quotient is the argument of erfc: its sign chooses the tail",
    ),
    Correction(
        "recursive filter, inputs for outputs",
        r"is wrong where the input's index of dimension 0 is not 0",
        "unknown",
        None,
        "'input' matched by chance: that x is used instead of the outputs is not said",
    ),
)
