"""Places: depthwise convolution with a stride, weighted sums over the edges of a graph."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

STRIDE, KERNEL, NODES = 2, 3, 5


def depthwise(x, weight):
    return (x.unfold(2, KERNEL, STRIDE) * weight[:, None]).sum(3)


def depthwise_backward(g, x, weight, *, stride=STRIDE, reduce=torch.sum):
    grad = torch.zeros_like(x)
    for t in range(g.shape[2]):
        start = stride * t
        padding = (start, x.shape[2] - start - KERNEL)
        grad = grad + torch.nn.functional.pad(g[:, :, t, None] * weight, padding)
    return grad, reduce((g[..., None] * x.unfold(2, KERNEL, STRIDE)).sum(2), 0)


def over_edges(x, weight, source, target):
    return x.new_zeros(NODES, x.shape[1]).index_add(0, target, weight[:, None] * x[source])


def over_edges_backward(g, x, weight, source, target, *, ends=None, added=True):
    to_sources = weight[:, None] * g[target]
    zero = torch.zeros_like(x)
    grad_x = zero.index_add(0, source, to_sources) if added else zero.index_put((source,), to_sources)
    return grad_x, (g[target] * x[source if ends is None else ends]).sum(1), None, None


OPERATIONS = [
    Formulas(
        "depthwise convolution with a stride",
        depthwise,
        lambda: {"x": torch.randn(3, 4, 9), "weight": torch.randn(4, KERNEL)},
        depthwise_backward,
        (
            Mistake(
                "depthwise convolution with a stride, stride in backward",
                lambda g, x, weight: depthwise_backward(g, x, weight, stride=1),
                named="backward puts the windows at t instead of 2 t: the stride is ignored",
                kinds=("permuted", "shifted", "another operand", "missing term"),
                named_words=(
                    r"stride",
                    r"other (places|positions|ind)",
                    r"shift",
                    r"missing",
                    r"place|position|index",
                ),
                located=(r"gradient of x",),
            ),
            Mistake(
                "depthwise convolution with a stride, mean over the batch",
                lambda g, x, weight: depthwise_backward(g, x, weight, reduce=torch.mean),
                named="the gradient of weight is the mean over the batch instead of the sum",
                kinds=("constant factor",),
                named_words=(r"1/3", r"0\.333", r"\b3\b"),
                located=(r"gradient of weight",),
            ),
        ),
    ),
    Formulas(
        "weighted sums over edges",
        over_edges,
        lambda: {
            "x": torch.randn(NODES, 3),
            "weight": torch.randn(8),
            "source": torch.tensor([0, 1, 1, 2, 3, 4, 4, 0]),
            "target": torch.tensor([1, 0, 2, 4, 1, 3, 0, 3]),
        },
        over_edges_backward,
        (
            Mistake(
                "weighted sums over edges, end for source",
                lambda g, x, weight, source, target: over_edges_backward(g, x, weight, source, target, ends=target),
                named="the gradient of weight takes x at the target of the edge instead of its source",
                kinds=("another operand", "permuted", "swapped", "missing term"),
                named_words=(
                    r"\b(source|target)\b",
                    r"other (places|positions|ind|rows|elements)",
                    r"instead of",
                    r"another derivative",
                ),
                located=(r"gradient of weight",),
            ),
            Mistake(
                "weighted sums over edges, overwritten",
                lambda g, *inputs: over_edges_backward(g, *inputs, added=False),
                named="a node with several edges gets the gradient of one: assigned instead of added",
                kinds=("missing term", "only at some indices"),
                named_words=(r"missing", r"overwr", r"repeat", r"rows?", r"indices"),
                located=(r"gradient of x",),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
