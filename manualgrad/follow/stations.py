"""The page's stations, from x⁰ to J and back to Δw⁰: the text, equations, lines of code and pictures of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from manualgrad import backprop
from manualgrad.backprop import ConvLayer, DenseLayer
from manualgrad.models import DocumentCNN
from manualgrad.ops import conv2d, dense, flatten, max_pool2d, relu, relu_pool, softmax, softmax_cross_entropy

Line = tuple[Callable[..., Any], str]  # a function, and a citation in it, for source_lines.cited_line


@dataclass(frozen=True)
class Station:
    """One stop of the page.

    Attributes:
        name: the station's anchor, and its place in the progress line.
        symbol: the quantity that is reached here.
        kind: "x", "z", "delta", "w" or "cost": the colour.
        title: the heading.
        text: paragraphs, with an empty line between two.
        equations: numbers of the equations that are used.
        lines: lines of code that ran.
        pictures: names of quantities, see ``quantities.py``; "maxima{l}" is R(z^l) at the places of the maxima.
        shown: the quantity one number of which is worked out.
        recursion: l, if δ^l of section 4.2 is reached here.
    """

    name: str
    symbol: str
    kind: str
    title: str
    text: str
    equations: tuple[int, ...]
    lines: tuple[Line, ...]
    pictures: tuple[str, ...]
    shown: str
    recursion: int | None = None


def _z_line(layer: type) -> Callable[..., Any]:
    getter: Callable[..., Any] = vars(layer)["z"].func
    return getter


CONVOLVE: Line = (conv2d.conv2d_forward, "eq. (1), (17)")
GREATEST: Line = (max_pool2d.max_pool2d_forward, "eq. (4)")
RELU_OF_MAXIMUM: Line = (relu_pool.relu_pool_forward, "eq. (9)")
POOLED_BACK: tuple[Line, ...] = (
    (backprop._delta, "eq. (20), P⁻¹ and ∂R/∂z"),
    (relu_pool.relu_pool_backward, "eq. (4), (10) with z > 0"),
    (relu_pool.relu_pool_backward, "eq. (10) with z = 0"),
)
DENSE: Line = (dense.dense_forward, "eq. (6), (17)")
STEP_D: Line = (backprop._updates_of_each, "eq. (21), ∂D/∂w")
BACK_D: Line = (backprop._updates_of_each, "eq. (18), (20), ∂D/∂x")
POSITIVE: Line = (relu.relu_backward, "eq. (10), z > 0")
ZERO: Line = (relu.relu_backward, "eq. (10), z = 0")
CONV_STEP: Line = (backprop._updates_of_each, "eq. (21), ∂C/∂w")
CONV_BIAS_STEP: Line = (backprop._updates_of_each, "return delta_w, delta.sum((1, 2)), delta_x  # eq. (18)")
WINDOWS_TIMES_DELTA: Line = (conv2d.conv2d_grad_weight_per_example, "eq. (3)")

FORWARD = (
    Station(
        "z0", "z⁰", "z", "Convolution: x⁰ becomes z⁰",
        """
        x⁰ is the digit. A kernel of weights slides over it. At each position it multiplies the pixels below
        it by its weights and adds up the products; then it adds a bias. Each kernel makes one picture of z⁰.

        The kernel lies on the image rotated by 180°: the image's index counts up (i + p), the kernel's counts
        down (P − p). That is what makes it a convolution.
        """,
        (17, 1), ((_z_line(ConvLayer), "eq. (17), f = C"), CONVOLVE), ("x0", "w0", "b0", "z0"), "z0",
    ),
    Station(
        "x1", "x¹", "x", "ReLU and max-pooling: z⁰ becomes x¹",
        """
        R keeps what is positive and makes the rest 0. P keeps the largest number of each 2×2 window, so x¹
        has a quarter of the numbers.

        Remember the places where the maxima came from. They are all that the way back needs to know of this
        step.
        """,
        (16, 9, 4), ((backprop.forward, "eq. (16), σ = P∘R"), GREATEST, RELU_OF_MAXIMUM),
        ("z0", "maxima0", "x1"), "x1",
    ),
    Station(
        "z1", "z¹", "z", "The second convolution: x¹ becomes z¹",
        """
        The same equation with l = 1. Now the input has several channels, so each kernel has a slice for each
        of them, and the sum runs over channels too.
        """,
        (17, 1), (CONVOLVE,), ("x1", "w1", "b1", "z1"), "z1",
    ),
    Station(
        "x2", "x²", "x", "ReLU, pooling, flatten: z¹ becomes x²",
        """
        Again P(R(z)). Then F writes all numbers into one row: row by row of the picture, and at each place
        one channel after the other.
        """,
        (16, 9, 4, 5),
        ((backprop.forward, "eq. (16), σ = F∘P∘R"), GREATEST, RELU_OF_MAXIMUM,
         (flatten.flatten_forward, "eq. (5)")),
        ("z1", "maxima1", "x2"), "x2",
    ),
    Station(
        "z2", "z²", "z", "Dense layer: x² becomes z²",
        """
        Each number of z² is a weighted sum of all numbers of x², plus a bias. A row of the picture of w²
        belongs to one number of z².
        """,
        (17, 6), ((_z_line(DenseLayer), "eq. (17), f = D"), DENSE), ("x2", "w2", "b2", "z2"), "z2",
    ),
    Station(
        "x3", "x³", "x", "ReLU: z² becomes x³", """
        What is negative becomes 0.
        """, (16, 9),
        ((backprop.forward, "eq. (16), σ = R;"), (relu.relu_forward, "eq. (9)")), ("z2", "x3"), "x3",
    ),
    Station(
        "z3", "z³", "z", "The last dense layer: x³ becomes z³",
        """
        Ten weighted sums, one for each digit from 0 to 9. The largest is the network's guess.
        """,
        (17, 6), (DENSE,), ("x3", "w3", "b3", "z3"), "z3",
    ),
    Station(
        "x4", "x⁴", "x", "Softmax: z³ becomes x⁴",
        """
        S makes positive numbers that add up to 1: a probability for each digit.
        """,
        (16, 11), ((backprop.forward, "eq. (16), σ = S"), (softmax.softmax_forward, "eq. (11)")), ("z3", "x4"), "x4",
    ),
    Station(
        "J", "J", "cost", "The cost",
        """
        y is 1 at the right digit and 0 elsewhere. So of the sum in (14) one term is left: minus the logarithm
        of the probability of the right digit. It is 0 if the network is certain and right.

        (13) is the mean over the B digits of a batch. Here B = 1; in a step of training it is 64.
        """,
        (14, 13), ((softmax_cross_entropy.cross_entropy_forward, "eq. (14)"),
                   (softmax_cross_entropy.cross_entropy_forward, "eq. (13)")),
        ("x4", "y"), "x4",
    ),
)  # fmt: skip

BACKWARD = (
    Station(
        "delta3", "δ³", "delta", "Where the way back begins: δ³",
        """
        Turn round. The question is now: how should each number of z³ change so that J falls? The answer is δ³
        = −η ∂J/∂z³. The gradient ∂J/∂z points uphill, the minus turns it downhill, and the learning rate η is
        the length of the step.

        By the chain rule, (19) multiplies the derivative of J by that of S, (12). Nearly everything cancels,
        and (15) is left: probability less target. The right digit gets a positive δ, the others a negative
        one.

        In (12), and below in (3), (8) and (10), a δ with two indices is Kronecker's: 1 where they are equal,
        else 0.
        """,
        (19, 12, 15), ((backprop._recursion, "eq. (15), (19)"),
                       (softmax_cross_entropy.cross_entropy_backward, "eq. (15)")),
        ("x4", "y", "delta3"), "delta3", 3,
    ),
    Station(
        "dw3", "Δw³", "w", "The step of the last weights: Δw³ and Δb³",
        """
        z³ depends on w³ through one product each: x³ times w³. So the derivative by a weight is the x³ that
        it multiplies, and its step is that x³ times the δ³ that it leads to. −η is inside δ: the step is
        added to w.

        z³ = ... + b³, so the derivative by b³ is 1 and Δb³ = δ³.
        """,
        (21, 8, 18), (STEP_D, BACK_D),
        ("x3", "delta3", "w3", "dw3", "db3"), "dw3",
    ),
    Station(
        "delta2", "δ²", "delta", "One layer back: δ²",
        """
        (20) is the heart of backpropagation. δ³ goes back through the same weights that brought x³ forward:
        each x³ led to all ten z³, so it collects δ³ times its weight from all ten.

        Then back through R. Where z² was positive, R passes δ on. Where it was negative, x³ was 0 whatever z²
        was, and nothing passes. At exactly 0 the formula sheet takes ½.
        """,
        (20, 7, 10), (BACK_D, (backprop._delta_out, "eq. (20), ∂R/∂z"), POSITIVE, ZERO),
        ("delta3", "w3", "dx3", "z2", "delta2"), "dx3", 2,
    ),
    Station(
        "dw2", "Δw²", "w", "Δw² and Δb²",
        """
        As for w³: the number that went in, times the δ of the number that came out. A whole row is 0 where δ²
        is 0: a unit that was off learns nothing from this digit.
        """,
        (21, 8, 18), (STEP_D, BACK_D), ("x2", "delta2", "w2", "dw2", "db2"), "dw2",
    ),
    Station(
        "delta1", "δ¹", "delta", "Back through flatten, pooling and ReLU: δ¹",
        """
        First back through the dense layer, as before. F⁻¹ puts each number back to its row, column and
        channel.

        Then P⁻¹. A maximum has no inverse; P⁻¹ means: send the number to the place where the maximum came
        from. The other three places get 0, because x² would not have changed if they had changed a little.

        Last, ∂R/∂z stops what arrives where z¹ was not positive.
        """,
        (20, 7, 5, 4, 10),
        (BACK_D, (flatten.unflatten_forward, "eq. (5)"), *POOLED_BACK),
        ("delta2", "w2", "dx2", "maxima1", "spread1", "delta1"), "spread1", 1,
    ),
    Station(
        "dw1", "Δw¹", "w", "Δw¹ and Δb¹",
        """
        A weight of a convolution is used at every position. So its step is a sum: at each position, the pixel
        that it was multiplied by, times the δ¹ of that position. The kernel was rotated on the way forward,
        hence P − c.

        The bias is added at every position too. Its step is the sum of δ¹ over the picture.
        """,
        (21, 3, 18), (CONV_STEP, WINDOWS_TIMES_DELTA, CONV_BIAS_STEP),
        ("x1", "delta1", "w1", "dw1", "db1"), "dw1",
    ),
    Station(
        "delta0", "δ⁰", "delta", "Back through the second convolution: δ⁰",
        """
        Which outputs did a pixel of x¹ touch? Those whose window contained it: up to 5×5 positions of every
        channel. At each of them it met one weight. So δ¹ of these positions, times these weights, comes back
        to the pixel.

        Forward, the window reads the kernel rotated. Backward, the pixel sees it the right way round: in (2)
        the kernel's index counts up with i. If the rotation is forgotten on one of the two
        ways, the picture is wrong.

        Then P⁻¹ and ∂R/∂z again, and δ has come back to the first layer.
        """,
        (20, 2, 4, 10),
        ((backprop._updates_of_each, "eq. (20), ∂C/∂x"), (conv2d.conv2d_grad_input, "columns = torch.bmm"),
         *POOLED_BACK),
        ("delta1", "w1", "dx1", "maxima0", "spread0", "delta0"), "dx1", 0,
    ),
    Station(
        "dw0", "Δw⁰", "w", "The end of the way: Δw⁰ and Δb⁰",
        """
        As for w¹, with the digit itself as x⁰: the step of a weight is the sum, over all positions, of δ⁰
        times the pixel that the weight met there. This is the last product. Every weight of the network has
        its step.
        """,
        (21, 3, 18), (CONV_STEP, WINDOWS_TIMES_DELTA, CONV_BIAS_STEP), ("x0", "delta0", "w0", "dw0", "db0"), "dw0",
    ),
)  # fmt: skip

NETWORK_LINES: tuple[Line, ...] = (
    (DocumentCNN.forward, "eq. (16), (17), (22), (23)"),
    (DocumentCNN.__init__, "# P∘R∘C as one Function, eq. (23)"),
    (DocumentCNN.__init__, "# f^n = D, eq. (23)"),
    (DocumentCNN.__init__, "# f^{L−1} = D, eq. (23)"),
)
