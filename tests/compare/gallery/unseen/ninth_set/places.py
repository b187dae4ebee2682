"""Places: bilinear sampling, embeddings of tokens and positions, moves along the edges of a graph."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

HEIGHT, WIDTH = 4, 6
SOURCE, TARGET = torch.tensor([0, 1, 1, 2, 3, 4, 0]), torch.tensor([1, 0, 2, 4, 1, 3, 3])


def corners(points):
    """Row and column above and left of each point, and the fractions; a point in -1 ... 1 covers the image."""
    row, column = (points[:, 0] + 1) / 2 * (HEIGHT - 1), (points[:, 1] + 1) / 2 * (WIDTH - 1)
    i, j = row.detach().floor().long().clamp(0, HEIGHT - 2), column.detach().floor().long().clamp(0, WIDTH - 2)
    return i, j, row - i, column - j


def sampled(image, points):
    i, j, a, b = corners(points)
    top = (1 - b) * image[:, i, j] + b * image[:, i, j + 1]
    bottom = (1 - b) * image[:, i + 1, j] + b * image[:, i + 1, j + 1]
    return (1 - a) * top + a * bottom


def sampled_backward(g, image, points, *, rows=(HEIGHT - 1) / 2, columns=(WIDTH - 1) / 2, right=1):
    i, j, a, b = corners(points)
    grad = torch.zeros_like(image)
    for di, wa in ((0, 1 - a), (1, a)):
        for dj, wb in ((0, 1 - b), (1, b)):
            at = (torch.arange(len(image))[:, None], (i + di)[None], (j + dj * right)[None])
            grad = grad.index_put(at, g * wa * wb, accumulate=True)
    across = (1 - a) * (image[:, i, j + 1] - image[:, i, j]) + a * (image[:, i + 1, j + 1] - image[:, i + 1, j])
    down = (1 - b) * (image[:, i + 1, j] - image[:, i, j]) + b * (image[:, i + 1, j + 1] - image[:, i, j + 1])
    return grad, torch.stack([rows * (g * down).sum(0), columns * (g * across).sum(0)], 1)


def embedded(tokens, table, positions):
    return table[tokens] + positions


def embedded_backward(g, tokens, table, positions, *, over=torch.sum):
    return None, torch.zeros_like(table).index_put((tokens,), g, accumulate=True), over(g, 0)


def moved(x, weight, source, target):
    """Move the target of each edge towards its source."""
    return x.index_add(0, target, weight[:, None] * (x[source] - x[target]))


def moved_backward(g, x, weight, source, target, *, from_target=True):
    step = weight[:, None] * g[target]
    grad_x = g.index_add(0, source, step)
    grad_x = grad_x.index_add(0, target, -step) if from_target else grad_x
    return grad_x, (g[target] * (x[source] - x[target])).sum(1), None, None


OPERATIONS = [
    Formulas(
        "bilinear sampling",
        sampled,
        lambda: {"image": torch.randn(2, HEIGHT, WIDTH), "points": 1.9 * torch.rand(7, 2) - 0.95},
        sampled_backward,
        (
            Mistake(
                "bilinear sampling, size of the image",
                lambda g, *inputs: sampled_backward(g, *inputs, rows=1, columns=1),
                named="the gradient of points lacks the factors (4 - 1) / 2 and (6 - 1) / 2 of rows and columns",
                kinds=("only at some indices", "factor by element", "step left out", "constant factor"),
                named_words=(r"0\.66", r"2/3", r"\b0\.4\b", r"2/5", r"\bmul\b|\bdiv\b", r"factor of its own"),
                located=(r"gradient of points",),
            ),
            Mistake(
                "bilinear sampling, right column",
                lambda g, *inputs: sampled_backward(g, *inputs, right=0),
                named="the parts of the right corners are added to the left column: the index lacks + 1",
                kinds=("shifted", "permuted", "missing term", "another operand"),
                named_words=(r"shift", r"off by one", r"other (places|positions|ind|columns)", r"missing", r"index"),
                located=(r"gradient of image",),
            ),
        ),
        options={"whole_numbers": False, "kinks": True},
    ),
    Formulas(
        "tokens and positions",
        embedded,
        lambda: {
            "tokens": torch.tensor([[1, 0, 4, 1], [3, 1, 2, 2], [5, 0, 0, 3]]),
            "table": torch.randn(6, 2),
            "positions": torch.randn(4, 2),
        },
        embedded_backward,
        (
            Mistake(
                "tokens and positions, first sequence",
                lambda g, *inputs: embedded_backward(g, *inputs, over=lambda g, _: g[0]),
                named="the gradient of positions is that of the first sequence instead of the sum over all",
                kinds=("not summed over the batch", "missing term", "wrong sum"),
                named_words=(r"\bfirst\b", r"not summed|sum", r"missing", r"example"),
                located=(r"gradient of positions",),
            ),
        ),
    ),
    Formulas(
        "moves along edges",
        moved,
        lambda: {"x": torch.randn(5, 3), "weight": torch.randn(7), "source": SOURCE, "target": TARGET},
        moved_backward,
        (
            Mistake(
                "moves along edges, own place",
                lambda g, *inputs: moved_backward(g, *inputs, from_target=False),
                named="the difference uses x at the target too, and backward lacks that part",
                kinds=("missing term",),
                named_words=(r"missing", r"one use|second use|used twice", r"constant", r"\bsub\b", r"no effect"),
                located=(r"gradient of x",),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
