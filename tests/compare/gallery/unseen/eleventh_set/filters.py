"""Filters: a recursive one, a wavelet by lifting."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def delayed(x, k):
    return torch.cat([torch.zeros_like(x[:, :k]), x[:, : x.shape[1] - k]], 1)


def recursive_filter(x, b, a):
    b, a = b / a[0], a / a[0]
    driven = b[0] * x + b[1] * delayed(x, 1) + b[2] * delayed(x, 2)
    y = [torch.zeros_like(x[:, 0])] * 2
    for t in range(x.shape[1]):
        y.append(driven[:, t] - a[1] * y[-1] - a[2] * y[-2])
    return torch.stack(y[2:], 1)


def recursive_filter_backward(g, x, b, a, *, b_divided=True, fed_back=True):
    y = recursive_filter(x, b, a)
    grads = [torch.zeros_like(x[:, 0])] * 2
    for t in reversed(range(x.shape[1])):
        grads.append((g[:, t] - a[1] * grads[-1] - a[2] * grads[-2]) / a[0])
    grad = torch.stack(grads[:1:-1], 1)  # of a_0 y_t + a_1 y_(t-1) + a_2 y_(t-2)
    grad_x = sum(b[k] * delayed(grad.flip(1), k).flip(1) for k in range(3))
    grad_b = torch.stack([(grad * delayed(x, k)).sum() for k in range(3)])
    grad_a = torch.stack([-(grad * delayed(y if fed_back or k == 0 else x, k)).sum() for k in range(3)])
    if not b_divided:
        through_b = -(grad_b * b).sum() / a[0]
        grad_a[0] = grad_a[0] - through_b
    return grad_x, grad_b, grad_a


def lifted(x):
    first, second = x[:, 0::2], x[:, 1::2]
    detail = second - (first + first.roll(-1, 1)) / 2
    return torch.cat([first + (detail.roll(1, 1) + detail) / 4, detail], 1)


def lifted_transposed(g, x):
    grad_first, grad_detail = g.chunk(2, 1)
    grad_second = grad_detail + (grad_first + grad_first.roll(-1, 1)) / 4
    grad_first = grad_first - (grad_second + grad_second.roll(1, 1)) / 2
    return torch.stack([grad_first, grad_second], 2).flatten(1)


def lifted_inverse(g, x):
    smooth, detail = g.chunk(2, 1)
    first = smooth - (detail.roll(1, 1) + detail) / 4
    second = detail + (first + first.roll(-1, 1)) / 2
    return torch.stack([first, second], 2).flatten(1)


OPERATIONS = [
    Formulas(
        "recursive filter",
        recursive_filter,
        lambda: {
            "x": torch.randn(2, 6),
            "b": torch.randn(3),
            "a": torch.cat([1.5 + 0.5 * torch.rand(1), 0.6 * torch.randn(2)]),
        },
        recursive_filter_backward,
        (
            Mistake(
                "recursive filter, b not divided",
                lambda g, *inputs: recursive_filter_backward(g, *inputs, b_divided=False),
                named="forward divides b by a[0], and the gradient of a[0] lacks that part",
                kinds=("missing term", "only at some indices", "few elements"),
                named_words=(r"missing", r"constant", r"\bdiv\b"),
                located=(r"gradient of a", r"\bb\b|\bdiv\b|\[0\]|index 0"),
            ),
            Mistake(
                "recursive filter, inputs for outputs",
                lambda g, *inputs: recursive_filter_backward(g, *inputs, fed_back=False),
                named="the gradients of a[1] and a[2] use the earlier inputs x instead of the earlier outputs",
                kinds=("another operand", "only at some indices", "missing term"),
                named_words=(r"\bx\b.*(instead|in (the )?place)", r"\binputs?\b", r"\boutputs?\b"),
                located=(r"gradient of a", r"\b1\b|\b2\b"),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "wavelet by lifting",
        lifted,
        lambda: {"x": torch.randn(3, 8)},
        lifted_transposed,
        (
            Mistake(
                "wavelet by lifting, inverse",
                lifted_inverse,
                named="backward applies the inverse of forward instead of its transpose",
                kinds=("not transposed", "another operand", "factor of one term", "missing term", "step left out"),
                named_words=(r"inverse", r"transpos"),
                located=(r"gradient of x",),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
