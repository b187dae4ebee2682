"""Judgements of a reader on the fourteenth to the twenty-third set, and on reports that have changed since."""

from __future__ import annotations

from tests.compare.gallery.unseen.correction import Correction

CHANGE = "the change of the source is the mistake's correction"
VALUE = "the value that is told is what the expression should be"

CORRECTIONS_OF_LATER_SETS = tuple(
    Correction(name, told, "named", True, reason)
    for name, told, reason in (
        (
            "delay by part of a sample, phase of the forward",
            r"should be `grad_spectrum / phase`",
            "a number of modulus 1 divides as its conjugate multiplies",
        ),
        ("payment for a loan, product above the line", r"should be `YEARS / \(1 \+ rate\)`", CHANGE),
        (
            "running sums of a picture, rows from the top",
            r"`torch\.cumsum\(grad, dim=-2\)` should be",
            "the sum along the rows is told, applied again in place of its transpose, which is reversed",
        ),
        (
            "phase of a spectrum, radial part not conjugated",
            r"should be `radial = \(grad / unit\)\.real`",
            "a number of modulus 1 divides as its conjugate multiplies",
        ),
        (
            "moved pixels, places outside of the image",
            r"multiplied by the derivative of `.*clamp\(0, h - 1\)`",
            "the two masks of the clamps that are left out are told with their lines",
        ),
        (
            "strength of edges, kernels exchanged",
            r"should be `dy, dx, magnitude = ctx",
            "two slopes exchanged are the two kernels exchanged",
        ),
        ("order of events, censored ones in the sum", r"should be `\(inverse \* event\)\.flip", CHANGE),
        ("chain of labels, counted transitions", r"should be `\(LABELS\[:, :-1\], LABELS\[:, 1:\]\)`", CHANGE),
        ("alignment of representations, power of the divisor", r"should be `hsic / \(norm_x \* norm_x\)", CHANGE),
        ("likelihood of a process, trace", r"should be `grad_K\.trace\(\)", CHANGE),
        ("merged patches, order of the four parts", r"should be `grad_merged\.permute\(0, 1, 4, 2, 3, 5\)`", CHANGE),
        ("step of Runge and Kutta, last point", r"should be `grad \* h / 3 \+ gx4 \* h`", CHANGE),
        (
            "broken stick, sum of the later parts",
            r"should be `gw\[:, :-1\]`",
            "with the part itself in the sum, its own factor is 1: another correction",
        ),
        (
            "density between two bounds, bounds as factors",
            r"beta \* normal_pdf\(beta\) / Z - alpha \* normal_pdf\(alpha\) / Z",
            CHANGE,
        ),
        ("distance on a hyperboloid, times exchanged", r"should be `u, v, v0, u0, z = ctx", CHANGE),
        ("cost of a controlled system, effort through the state", r"2 \* EFFORT \* \(K\.mT @ u\)", CHANGE),
        (
            "pairs with weights of their own, weights differentiated",
            r"should be `(ap|an)`",
            CHANGE,
        ),
        ("norm of valid rows, number of all rows", r"should be `dxhat\.sum\(dim=\(0, 1\)\) / m\.sum\(\)`", CHANGE),
        ("similarity of two signals, square of the divisor", r"should be `2 \* my / B1 - lum", CHANGE),
        ("brightness as encoded, threshold of the decoder", r"should be `torch\.where\(v > 0\.0031308", CHANGE),
        ("image over another, back only without the front", r"should be `if ctx\.needs_input_grad", CHANGE),
        ("rows of bounded length, rows saved too late", r"`rows` should be the result of indexing in line 22", VALUE),
        (
            "sums of words, padding into row 0",
            r"the derivative of mul in line 71 is left out",
            "that product is the mask of the padding, and it is told that only row 0 is wrong",
        ),
        ("flow that steepens, order of product and slope", r"ddx\(u1 \* grad_r\)", CHANGE),
        ("scale of maps, dimensions that were 1", r"should be `grad = grad\.sum\(dim, keepdim=True\)`", CHANGE),
        ("turned channels, partners", r"grad_output\[:, :2\], grad_output\[:, 2:4\]", CHANGE),
        ("chain of reflections, first rows for all", r"`x` should be `y` as line 81 reads it", VALUE),
        (
            "rows over their recent size, root of the mean square",
            r"should be the gradient of `v` in line 175",
            "before, the same gradient was told with native's line",
        ),
        (
            "normals of faces, common corner",
            r"should be `\(\(1, grad_e1 \+ grad_e2\)",
            "with edges that meet at v0, corner 1 gets both: another correction",
        ),
        (
            "distances of a power, as Euclidean ones",
            r"\* \(diff\.abs\(\) / dist\.unsqueeze\(-1\)\)",
            "the factor for the power 3 is what is missing",
        ),
        (
            "products of blocks, order of the indices",
            r"row has that of another row \(0: 0, 1: 3, 2: 1, 3: 4, 4: 2, 5: 5\)",
            "that relation is (a, b) read as (b, a), for the rows and for the columns",
        ),
        (
            "several rows for a word, places of the gradients",
            r"an exception is raised where only importance and projection require a gradient",
            "the inputs, the place of the gradient and what backward has to return are told",
        ),
        (
            "smooth ranks, others' ranks",
            r"the derivative of the second argument .* of sub in line 54, .* is zero but for its diagonal",
            "the second argument is the others' scores: they get nothing, but for the score itself",
        ),
        (
            "colours by direction, length of the direction",
            r"with direction in the place of the result of div in line 14",
            "the division by the length is what backward leaves out",
        ),
        (
            "corrected returns, carried error in the weight's gradient",
            r"is computed without the addition of the result of mul in line 123",
            "that product is the carried error",
        ),
        (
            "kernel for each place, workspace of all calls",
            r"is wrong if another forward comes before backward",
            "what the next call does is what is told",
        ),
        (
            "energy of a stretched solid, cofactors not transposed",
            r"in line 53 of materials\.py, `-2` should be `2`",
            "stacked along the other dimension the cofactors are transposed",
        ),
        (
            "rows side by side, offsets of the cut rows",
            r"`values\[start:start \+ n\]` should be `values\[start:start \+ n\]` in line 106",
            "the offsets of backward are not those with which forward reads the same slice",
        ),
        (
            "values in the place of missing ones, order of the filler",
            r"has the right numbers at other places: .*\(1: 0, 2: 1, 5: 2, 6: 3\)",
            "the k-th element of the filler has the place of the k-th missing one",
        ),
        (
            "sums over products of k elements, tables without copies",
            r"should be `tables\.append\(e\.clone\(\)\)`",
            CHANGE,
        ),
        ("labels without times, blanks counted once", r"index_add_\(2, EXTENDED, -posterior\)", CHANGE),
        (
            "weights of three values, number of all",
            r"the derivative of div in line 115 is left out: .*multiplied by 0\.166667 = 1/6",
            "the number of the kept ones is left out, and the number of all stands in its place",
        ),
        (
            "states with a gate for each feature, gate of the step before",
            r"\(of the previous step\) is used instead of `a\[:, t, :, None\]` \(of this step\)",
            "beside the gate of the step after, that of its own step is the one before",
        ),
        ("steady spread, both halves as equal", r"S @ A @ X\.mT \+ S\.mT @ A @ X", CHANGE),
        (
            "gravity by latitude, derivative of the root",
            r"through the second argument \(the result of sqrt.*is 2 times as large as it should be",
            "the derivative of the root twice as large is that without its factor 1/2",
        ),
        (
            "logarithm of a covariance, diagonal of the quotients",
            r"the derivative of log in line 16.*is left out",
            "1 in the place of 1 / s on the diagonal is the derivative of the logarithm left out",
        ),
        (
            "light that passes two mirrors, derivative of a power",
            r"through the second argument \(the result of square\).*is 0\.5 times as large",
            "the derivative of the power half as large is that without its factor 2",
        ),
        (
            "products by segment, quotient at a zero",
            r"is wrong only where x is 0 .*it is 0 there",
            "where a factor is 0 the gradient is 0, and should not be",
        ),
        (
            "logish, sigmoid of a sigmoid",
            r"the result of sigmoid in line 14.*is used instead of x",
            "that is the mistake in other words",
        ),
        (
            "tanh of an exponential, output saved as input",
            r"should be `ctx\.save_for_backward\(x\)`",
            "what is saved is not the input",
        ),
        (
            "smooth ReLU of a learned width, quotient's second term",
            r"second argument \(the result of mul\) of div in line 133.*is missing",
            "the second argument is the divisor, 4 width",
        ),
        ("middle of each row, one place further", r"half = \(order\.size\(1\) - 1\) // 2", CHANGE),
        (
            "mixed examples, partners of partners",
            r"indexing in line 61.*applied again, instead of its transpose",
            "the transpose of a permutation is its inverse",
        ),
        ("log-sum-exp in one pass, last block's maximum", r"save_for_backward\(x, run_max, denom\)", CHANGE),
        (
            "modulation, real part for imaginary",
            r"the multiplication by 1j is left out",
            "the real part of -i z is its imaginary part",
        ),
        (
            "weighted log-cosh, sum of the weights",
            r"second argument \(the result of sum\) of div in line 55.*is missing",
            "the second argument is the sum of the weights",
        ),
        (
            "attention with a sink, share of the sink",
            r"1 - the result of _softmax in line 97 is used instead of the result of _softmax",
            "that is the mistake in other words",
        ),
        (
            "posterior mean of a clipped estimate, sample masked too",
            r"is wrong only where \|the result of div in line 78.*\| > 1; it is 0 there",
            "where the estimate is clipped the gradient is 0, and should not be",
        ),
        (
            "pooled gates of a recurrence, state after the step",
            r"should be `df = df \* \(1 - f\)`",
            "with the state after the step the factor f is there already: another correction",
        ),
        (
            "smooth way, coefficients of the speed",
            r"second argument \(the result of mul in line 14, `15 \* part\*\*4`\).*is 0\.75 times as large",
            "45 for 60 is 0.75 times that term",
        ),
    )
)
