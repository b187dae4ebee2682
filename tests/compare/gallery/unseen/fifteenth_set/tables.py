"""Tables: rows of bounded length, rows with padding, blocks read along their diagonals, sketches of products."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

LONGEST = 1.5
EPS = 1e-3
WORDS = torch.tensor([[2, 0, 5], [5, 3, 2]])
PADDED_WORDS = torch.tensor([[2, 0, 4, 2], [1, 3, -1, -1], [0, 1, 1, -1]])
DIAGONALS = torch.tensor([0, 1, 3, 6, 4, 2, 5, 7, 8])
BINS_X, BINS_Y = torch.tensor([0, 3, 1, 3, 2]), torch.tensor([2, 1, 1, 0, 3])
SIGNS_X, SIGNS_Y = torch.tensor([1, -1, -1, 1, 1]), torch.tensor([-1, -1, 1, 1, -1])
TURNS = (torch.arange(4)[:, None] - torch.arange(4)) % 4


def bounded_rows(table):
    rows = table[WORDS]
    length = rows.norm(dim=2, keepdim=True)
    return torch.where(length > LONGEST, rows * (LONGEST / (length + EPS)), rows)


class BoundedRowsFunction(Function):
    @staticmethod
    def forward(ctx, table):
        ctx.save_for_backward(table)
        return bounded_rows(table)

    @staticmethod
    def backward(ctx, g):
        (table,) = ctx.saved_tensors
        rows = table[WORDS]
        length = rows.norm(dim=2, keepdim=True).clamp(min=LONGEST)
        along = (g * rows).sum(2, keepdim=True) / (length * (length + EPS))
        of_long = LONGEST / (length + EPS) * (g - along * rows)
        to_rows = torch.where(rows.norm(dim=2, keepdim=True) > LONGEST, of_long, g)
        return torch.zeros_like(table).index_add(0, WORDS.flatten(), to_rows.flatten(0, 1))


def renorm_(rows):
    norm = rows.norm(dim=-1, keepdim=True)
    rows *= torch.where(norm > LONGEST, LONGEST / (norm + EPS), torch.ones_like(norm))
    return rows


class MaxNormEmbedding(Function):
    @staticmethod
    def forward(ctx, weight):
        rows = weight[WORDS]
        ctx.num_rows = weight.size(0)
        out = renorm_(rows)
        ctx.save_for_backward(rows)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        (rows,) = ctx.saved_tensors
        norm = rows.norm(dim=-1, keepdim=True)
        scale = LONGEST / (norm + EPS)
        radial = (grad_out * rows).sum(dim=-1, keepdim=True) / (norm * (norm + EPS))
        grad_rows = torch.where(norm > LONGEST, scale * (grad_out - radial * rows), grad_out)
        grad_weight = grad_out.new_zeros(ctx.num_rows, rows.size(-1))
        return grad_weight.index_add_(0, WORDS.view(-1), grad_rows.view(-1, rows.size(-1)))


def sums_of_words(table):
    return (table[PADDED_WORDS.clamp(min=0)] * (PADDED_WORDS >= 0)[:, :, None]).sum(1)


class PaddedBagOfWords(Function):
    @staticmethod
    def forward(ctx, weight):
        ctx.size = weight.shape
        out = weight.new_zeros(PADDED_WORDS.size(0), weight.size(1))
        for b, words in enumerate(PADDED_WORDS):
            out[b] = weight[words[words != -1]].sum(dim=0)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        tokens = PADDED_WORDS.clamp(min=0)
        grad_weight = grad_out.new_zeros(ctx.size)
        per_token = grad_out.unsqueeze(1).expand(-1, tokens.size(1), -1)
        grad_weight.index_add_(0, tokens.reshape(-1), per_token.reshape(-1, ctx.size[1]))
        return grad_weight


def blocks_of_diagonals(coefficients):
    return coefficients[:, DIAGONALS.argsort()].reshape(-1, 3, 3)


class BlocksFunction(Function):
    @staticmethod
    def forward(ctx, coefficients):
        return blocks_of_diagonals(coefficients)

    @staticmethod
    def backward(ctx, g):
        return g.flatten(1)[:, DIAGONALS]


class InverseZigzag(Function):
    @staticmethod
    def forward(ctx, coefs):
        blocks = torch.empty(coefs.size(0), 9, dtype=coefs.dtype)
        blocks[:, DIAGONALS] = coefs
        return blocks.view(-1, 3, 3)

    @staticmethod
    def backward(ctx, grad_blocks):
        n = grad_blocks.size(0)
        flat = torch.as_strided(grad_blocks, (n, 9), (9, 1))
        return flat[:, DIAGONALS]


def sketched_product(x, y):
    of_x = x.new_zeros(len(x), 4).index_add(1, BINS_X, x * SIGNS_X)
    of_y = y.new_zeros(len(y), 4).index_add(1, BINS_Y, y * SIGNS_Y)
    return (of_x[:, None] * of_y[:, TURNS]).sum(2)


class SketchedProductFunction(Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return sketched_product(x, y)

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        bins = (BINS_X[:, None] + BINS_Y) % 4
        to_pairs = g[:, bins] * (SIGNS_X[:, None] * SIGNS_Y)
        return (to_pairs * y[:, None]).sum(2), (to_pairs * x[:, :, None]).sum(1)


class CompactBilinear(Function):
    @staticmethod
    def forward(ctx, x, y):
        sx = x.new_zeros(x.size(0), 4)
        sy = y.new_zeros(y.size(0), 4)
        for j in range(x.size(1)):
            sx[:, BINS_X[j]] += SIGNS_X[j] * x[:, j]
        for j in range(y.size(1)):
            sy[:, BINS_Y[j]] += SIGNS_Y[j] * y[:, j]
        ctx.save_for_backward(sx, sy)
        return torch.einsum("nj,nkj->nk", sx, sy[:, TURNS])

    @staticmethod
    def backward(ctx, grad):
        sx, sy = ctx.saved_tensors
        grad_sx = torch.einsum("nk,nkj->nj", grad, sy[:, TURNS])
        grad_sy = torch.einsum("nk,nkj->nj", grad, sx[:, TURNS])
        grad_x = grad_sx[:, BINS_X] * SIGNS_X
        grad_y = grad_sy[:, BINS_Y] * SIGNS_X
        return grad_x, grad_y


OPERATIONS = [
    Operation(
        "rows of bounded length, rows saved too late",
        BoundedRowsFunction,
        MaxNormEmbedding,
        bounded_rows,
        lambda: (torch.randn(6, 3),),
        named="the saved rows are those after the shortening, so backward finds none too long and scales none",
        kinds=("passes the incoming gradient through", "only for some values", "step left out", "another operand"),
        named_words=(r"LONGEST|1\.5", r"passes|unchanged", r"after|in.?place", r"length|norm"),
        located=(r"gradient of (table|weight|input 0)",),
    ),
    Operation(
        "blocks along diagonals, layout of the gradient",
        BlocksFunction,
        InverseZigzag,
        blocks_of_diagonals,
        lambda: (torch.randn(4, 9),),
        named="the incoming gradient is read as if it were contiguous: wrong for another layout, or an error",
        kinds=("only in one layout", "raises"),
        named_words=(r"layout|contiguous|stride|expanded|transposed", r"as_strided"),
        located=(r"gradient of (coef|input 0)",),
    ),
    Operation(
        "sketch of a product, signs of the other",
        SketchedProductFunction,
        CompactBilinear,
        sketched_product,
        lambda: {"x": torch.randn(3, 5), "y": torch.randn(3, 5)},
        named="y: the signs of x are taken, where those of y belong",
        kinds=("another operand", "only at some indices", "swapped", "factor by element"),
        named_words=(r"SIGNS", r"\bsign"),
        located=(r"gradient of y",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "sums of words, padding into row 0",
            PaddedBagOfWords.apply,
            sums_of_words,
            lambda: (torch.randn(6, 3),),
        ),
        named="row 0 gets the gradients of the padding, -1 clamped to 0, too: the mask is left out",
        kinds=("only at some indices", "few elements", "step left out"),
        named_words=(r"mask|padd|>= 0|clamp", r"row 0|index 0|\[0\b", r"too many|more than"),
        located=(r"gradient of (table|weight|input 0)",),
    ),
]
