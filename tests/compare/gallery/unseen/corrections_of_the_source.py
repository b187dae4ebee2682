"""Judgements of a reader on changes of the source, and others on the twelfth set and on reported mistakes."""

from __future__ import annotations

from tests.compare.gallery.unseen.correction import Correction

CHANGE = "the change of the source is the mistake's correction"

CORRECTIONS_OF_THE_SOURCE = (
    Correction("matrix of a quaternion, one sign", r"should be .* - w \* \(v\[6\] - v\[2\]\)", "named", True, CHANGE),
    Correction("camera, square of the depth in one term", r"should be .*/ \(z \* z\)", "named", True, CHANGE),
    Correction(
        "products of exponentials, divisor of a's gradient",
        r"should be `pa \* \(grad_out / total @ pb",
        "named",
        True,
        CHANGE,
    ),
    Correction("best path, pointers of the step before", r"should be `psi\[b, t \+ 1", "named", True, CHANGE),
    Correction(
        "normals of faces, common corner",
        r"should be `e1, e2 = \(v1 - v0, v2 - v1\)",
        "named",
        True,
        "with edges that meet at v1, what is subtracted there is right: another correction",
    ),
    Correction(
        "divergence from the mean of two, constant",
        r"through the first argument \(the result of log[^)]*\) .* is 2 times as large",
        "named",
        True,
        "the 1 that the two corrected lines leave out is what the finding says in other words",
    ),
    Correction(
        "dense gate, gradient of x inside of the weight's",
        r"is wrong where only x requires a gradient",
        "named",
        True,
        "which inputs want a gradient decides, as expected",
    ),
    Correction(
        "leapfrog, order of the sums",
        r"the incoming gradient is used instead of the result of the addition",
        "named",
        True,
        "that addition adds the second kick to the position's gradient",
    ),
    Correction(
        "logistic bins, half of the bin in the scale's gradient",
        r"the derivative is another function",
        "unknown",
        None,
        "this says that every element is wrong, and does not say why",
    ),
    Correction(
        "rotation of neighbouring columns, halves in backward",
        r"`halves` should be `not halves`",
        "unknown",
        None,
        "that is the argument with which the tests switch the mistake on",
    ),
    Correction(
        "RMSNorm, weight twice",
        r"the missing term is a · output",
        "named",
        True,
        "the change of the source, `rstd.pow(3)` for `weight * rstd.pow(3)`, is the mistake's correction",
    ),
    Correction("distances of a power, as Euclidean ones", r"\* \(diff\.abs\(\) \* \(1 / dist", "named", True, CHANGE),
    Correction(
        "elements by indices, repeated ones",
        r"the contribution of example 0 .* is missing",
        "named",
        True,
        "the change of the source, `index_put_(..., accumulate=True)`, is the mistake's correction",
    ),
    Correction(
        "difference of two attentions, common mean",
        r"should be `\(grad_attn \* a1\)\.sum` for 27 .* and `\(grad_attn \* a2\)",
        "named",
        True,
        "the mean is to be taken of one softmax for one half of the elements, and of the other for the other",
    ),
    Correction(
        "update of a stack, rolled",
        r"is not 0 .* where the output's row and the input's row differ by more than 1",
        "named",
        True,
        "the change of the source fills with 0 what both rolls move around",
    ),
    Correction(
        "numbers of modulus 1, projection",
        r"z is used instead of the result of abs",
        "named",
        True,
        "the change of the source divides by the number, which is the product with its conjugate at modulus 1",
    ),
    Correction(
        "features scaled and shifted, one of two",
        r"no gradient is returned",
        "named",
        True,
        "the change of the source, `if` for `elif`, is the mistake's correction",
    ),
    Correction("two species, order of two updates", r"should be `gx, gy = \(gx", "named", True, CHANGE),
    Correction(
        "gates of the two largest, weights without the others",
        r"the missing term is a · output",
        "named",
        True,
        "the change of the source saves the weights over their sum, as it should",
    ),
    Correction(
        "controller, last step",
        r"is not 0 .* where the output's row is before the input's row",
        "named",
        True,
        "the change of the source fills with 0 what the roll moves around",
    ),
)
