"""Places: bilinear sampling, the expected place, products of shifted rows, power means, the largest message."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

SHIFTS, NODES = 3, 4
TARGET = torch.tensor([0, 2, 1, 0, 3, 2, 2, 1, 0])


def pixel_scale(image):
    """Pixels for each unit of a place, in x and in y: places are from -1 to 1."""
    return torch.tensor([image.shape[2] - 1, image.shape[1] - 1]) / 2


def neighbours(image, places):
    """Index into the flat image, and weights in x and y, of the four pixels around each place."""
    scale = pixel_scale(image).to(places.dtype)
    position = (places + 1) * scale
    low = torch.minimum(position.floor(), 2 * scale - 1).detach()
    x, y = (position - low).unbind(1)
    column, row = low.long().unbind(1)
    index = row * image.shape[2] + column
    width = image.shape[2]
    return [(index + i * width + j, x if j else 1 - x, y if i else 1 - y) for i in (0, 1) for j in (0, 1)]


def sampled(image, places):
    pixels = image.flatten(1)
    return sum(pixels[:, index] * (x * y) for index, x, y in neighbours(image, places))


def sampled_backward(g, image, places, *, exchanged=False):
    pixels = image.flatten(1)
    grad_pixels = torch.zeros_like(pixels)
    along_x, along_y = torch.zeros_like(places[:, 0]), torch.zeros_like(places[:, 0])
    for k, (index, x, y) in enumerate(neighbours(image, places)):
        grad_pixels = grad_pixels.index_add(1, index, g * (x * y))
        product = (g * pixels[:, index]).sum(0)
        along_x = along_x + (product * y if k % 2 else -product * y)
        along_y = along_y + (product * x if k // 2 else -product * x)
    grad = torch.stack([along_x, along_y], 1) * pixel_scale(image).to(g.dtype)
    return grad_pixels.reshape(image.shape), grad.flip(1) if exchanged else grad


def expected_place(logits):
    return logits.softmax(1) @ torch.arange(logits.shape[1], dtype=logits.dtype)


def expected_place_backward(g, logits, *, centred=True):
    place = torch.arange(logits.shape[1], dtype=logits.dtype)
    if centred:
        place = place - expected_place(logits)[:, None]
    return g[:, None] * logits.softmax(1) * place


def shifted_products(a, b):
    return torch.stack([(a * b[:, :, d : d + a.shape[2]]).sum(1) for d in range(SHIFTS)], 1)


def shifted_products_backward(g, a, b, *, shifted=True):
    grad_a, grad_b = torch.zeros_like(a), torch.zeros_like(b)
    for d in range(SHIFTS):
        along = g[:, d, None]
        place = d if shifted else 0
        grad_a = grad_a + along * b[:, :, d : d + a.shape[2]]
        grad_b[:, :, place : place + a.shape[2]] += along * a
    return grad_a, grad_b


def power_mean(x, p):
    return (x ** p[:, None]).mean(2) ** (1 / p)


def power_mean_backward(g, x, p, *, outer=True, mean=True):
    powers = x ** p[:, None]
    total = powers.mean(2)
    along = g * total ** (1 / p)
    grad_x = (along / total)[..., None] * powers / x / (x.shape[2] if mean else 1)
    grad_p = along * (powers * x.log()).mean(2) / total / p
    grad_p = grad_p - along * total.log() / p**2 if outer else grad_p
    return grad_x, grad_p.sum(0)


def largest(x, target):
    return x.new_full((NODES, x.shape[1]), -torch.inf).scatter_reduce(
        0, target[:, None].expand_as(x), x, "amax", include_self=False
    )


def largest_backward(g, x, target, *, selected=True):
    chosen = (x == largest(x, target)[target]).to(x.dtype)
    count = torch.zeros_like(g).index_add(0, target, chosen)
    return g[target] * (chosen / count[target] if selected else 1), None


OPERATIONS = [
    Formulas(
        "bilinear sampling",
        sampled,
        lambda: {"image": torch.randn(2, 4, 6), "places": 1.8 * torch.rand(7, 2) - 0.9},
        sampled_backward,
        (
            Mistake(
                "bilinear sampling, x and y exchanged",
                lambda g, image, places: sampled_backward(g, image, places, exchanged=True),
                named="the gradient of places has the columns x and y exchanged",
                kinds=("flipped", "permuted", "shifted"),
                named_words=(r"revers|flip", r"exchang|swap|permut", r"other (places|positions|order)|another order"),
                located=(r"gradient of places", r"column|order|revers|flip|dim|index"),
            ),
        ),
        options={"whole_numbers": False, "kinks": True},
    ),
    Formulas(
        "expected place",
        expected_place,
        lambda: {"logits": torch.randn(4, 6)},
        expected_place_backward,
        (
            Mistake(
                "expected place, not centred",
                lambda g, logits: expected_place_backward(g, logits, centred=False),
                named="the derivative of the softmax lacks its second term: the divisor is treated as a constant",
                kinds=("missing term",),
                named_words=(r"missing", r"constant", r"softmax", r"centr|center"),
                located=(r"gradient of logits",),
            ),
        ),
    ),
    Formulas(
        "products of shifted rows",
        shifted_products,
        lambda: {"a": torch.randn(2, 3, 5), "b": torch.randn(2, 3, 7)},
        shifted_products_backward,
        (
            Mistake(
                "products of shifted rows, not shifted in backward",
                lambda g, a, b: shifted_products_backward(g, a, b, shifted=False),
                named="backward adds all products at index i of b instead of index i + d: the shift d is ignored",
                kinds=("shifted", "permuted", "another operand", "missing term", "not transposed"),
                named_words=(r"shift", r"place|position|\bindex|indices", r"\bslice\b|narrow", r"missing"),
                located=(r"gradient of b",),
            ),
        ),
    ),
    Formulas(
        "power mean",
        power_mean,
        lambda: {"x": 0.3 + torch.rand(3, 4, 5), "p": 1.5 + 2 * torch.rand(4)},
        power_mean_backward,
        (
            Mistake(
                "power mean, outer exponent",
                lambda g, x, p: power_mean_backward(g, x, p, outer=False),
                named="the gradient of p lacks the term of the outer exponent 1/p",
                kinds=("missing term",),
                named_words=(
                    r"missing",
                    r"constant",
                    r"reciprocal|1 ?/ ?p|\bdiv\b",
                    r"one use|second use|used twice",
                ),
                located=(r"gradient of p",),
            ),
            Mistake(
                "power mean, number of elements",
                lambda g, x, p: power_mean_backward(g, x, p, mean=False),
                named="the factor 1/5 of the mean is missing in the gradient of x",
                kinds=("constant factor",),
                named_words=(r"\b5(\.0+)?\b", r"1/5|\b0\.2\b"),
                located=(r"gradient of x",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "largest message",
        largest,
        lambda: {"x": torch.randn(9, 3), "target": TARGET},
        largest_backward,
        (
            Mistake(
                "largest message, to every edge",
                lambda g, x, target: largest_backward(g, x, target, selected=False),
                named="every edge of a node gets the node's gradient, not only the edge with the largest message",
                kinds=("missing term", "step left out", "another operand", "only for some values"),
                named_words=(
                    r"too many|surplus|should (not|be 0)",
                    r"largest|\bmax|amax|scatter_reduce",
                    r"\bsum\b",
                    r"(expected|instead of) 0\b",
                ),
                located=(r"gradient of x",),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
