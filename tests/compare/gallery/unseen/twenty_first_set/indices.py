"""Indices: products by segment, products of two matrices at given places, a soft sort."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

SEGMENTS, CHUNK, TAU = 4, 4, 0.7


def segment_product(x, index):
    inside = index == torch.arange(SEGMENTS, device=x.device)[:, None]
    return torch.where(inside, x, torch.ones_like(x)).prod(1)


def factors_with_zeros():
    x = torch.randn(11)
    x[2] = x[7] = 0
    return {"x": x, "index": torch.tensor([0, 2, 1, 0, 2, 1, 3, 0, 1, 2, 0])}


class SegmentProductFunction(Function):
    @staticmethod
    def forward(ctx, x, index):
        ctx.save_for_backward(x, index)
        return segment_product(x, index)

    @staticmethod
    def backward(ctx, g):
        x, index = ctx.saved_tensors
        others = (index[:, None] == index) & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
        return g[index] * torch.where(others, x, torch.ones_like(x)).prod(1), None


class ScatterMul(Function):
    @staticmethod
    def forward(ctx, src, index):
        out = torch.ones(SEGMENTS, dtype=src.dtype, device=src.device)
        for i in range(src.numel()):
            out[index[i]] *= src[i]
        ctx.save_for_backward(src, index, out)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        src, index, out = ctx.saved_tensors
        grad_src = (grad_out * out).gather(0, index) / src
        grad_src = grad_src.masked_fill(torch.isnan(grad_src), 0)
        return grad_src, None


def products_at(values, a, b, row, col):
    return values * (a[row] * b[col]).sum(1)


class ProductsAtFunction(Function):
    @staticmethod
    def forward(ctx, values, a, b, row, col):
        ctx.save_for_backward(values, a, b, row, col)
        return products_at(values, a, b, row, col)

    @staticmethod
    def backward(ctx, g):
        values, a, b, row, col = ctx.saved_tensors
        weight = (g * values)[:, None]
        to_a = torch.zeros_like(a).index_add(0, row, weight * b[col])
        to_b = torch.zeros_like(b).index_add(0, col, weight * a[row])
        return g * (a[row] * b[col]).sum(1), to_a, to_b, None, None


class SDDMM(Function):
    """Sampled dense-dense product, a few nonzeros at a time so that the gathered rows stay small."""

    @staticmethod
    def forward(ctx, vals, A, B, row, col):
        dots = torch.cat([(A[r] * B[c]).sum(-1) for r, c in zip(row.split(CHUNK), col.split(CHUNK), strict=True)])
        ctx.save_for_backward(vals, A, B, row, col, dots)
        return vals * dots

    @staticmethod
    def backward(ctx, grad):
        vals, A, B, row, col, dots = ctx.saved_tensors
        grad_A = torch.zeros_like(A)
        grad_B = torch.zeros_like(B)
        scaled = grad * vals
        for i in range(row.numel() // CHUNK):
            part = slice(i * CHUNK, (i + 1) * CHUNK)
            r, c, s = row[part], col[part], scaled[part].unsqueeze(-1)
            grad_A.index_add_(0, r, s * B[c])
            grad_B.index_add_(0, c, s * A[r])
        return grad * dots, grad_A, grad_B, None, None


def soft_sort(scores, values):
    ordered = scores.sort(dim=1, descending=True).values
    return (-(ordered[:, :, None] - scores[:, None]).abs() / TAU).softmax(-1) @ values


class SoftSortFunction(Function):
    @staticmethod
    def forward(ctx, scores, values):
        ordered, order = scores.sort(dim=1, descending=True)
        difference = ordered[:, :, None] - scores[:, None]
        p = (-difference.abs() / TAU).softmax(-1)
        ctx.save_for_backward(values, order, difference.sign(), p)
        return p @ values

    @staticmethod
    def backward(ctx, g):
        values, order, sign, p = ctx.saved_tensors
        to_p = g @ values.mT
        to_difference = -sign * p * (to_p - (p * to_p).sum(-1, keepdim=True)) / TAU
        to_scores = -to_difference.sum(1)
        return to_scores.scatter_add(1, order, to_difference.sum(2)), p.mT @ g


class SoftSort(Function):
    """Prillo & Eisenschlos: P = softmax(-|sort(s) 1' - 1 s'| / tau), applied to values."""

    @staticmethod
    def forward(ctx, s, v):
        s_sorted, perm = torch.sort(s, dim=-1, descending=True)
        P = torch.softmax(-(s_sorted.unsqueeze(2) - s.unsqueeze(1)).abs() / TAU, dim=-1)
        ctx.save_for_backward(s, v, s_sorted, perm, P)
        return torch.bmm(P, v)

    @staticmethod
    def backward(ctx, grad_out):
        s, v, s_sorted, perm, P = ctx.saved_tensors
        grad_P = torch.bmm(grad_out, v.transpose(1, 2))
        grad_logits = P * (grad_P - (grad_P * P).sum(dim=-1, keepdim=True))
        side = torch.sign(s_sorted.unsqueeze(2) - s.unsqueeze(1)) / TAU
        grad_sorted = -(grad_logits * side).sum(dim=2)
        grad_s = (grad_logits * side).sum(dim=1)
        grad_s = grad_s + torch.gather(grad_sorted, -1, perm)
        return grad_s, torch.bmm(P.transpose(1, 2), grad_out)


OPERATIONS = [
    Operation(
        "products by segment, quotient at a zero",
        SegmentProductFunction,
        ScatterMul,
        segment_product,
        factors_with_zeros,
        named="the product divided by the factor is not the product of the others where the factor is zero",
        kinds=("only at zeros", "zero", "only for some values", "only at some indices"),
        named_words=(r"zero", r"\bnan\b|divi"),
        located=(r"gradient of (x|src)\b",),
    ),
    Operation(
        "products at given places, last chunk",
        ProductsAtFunction,
        SDDMM,
        products_at,
        lambda: {
            "values": torch.randn(11),
            "a": torch.randn(4, 3),
            "b": torch.randn(5, 3),
            "row": torch.tensor([0, 0, 1, 2, 2, 0, 1, 2, 1, 3, 3]),
            "col": torch.tensor([1, 4, 0, 2, 1, 3, 1, 0, 4, 3, 3]),
        },
        named="backward leaves out the places that do not fill a chunk; their terms of both matrices are missing",
        kinds=("missing term", "only at some indices", "wrong sum", "few elements"),
        named_words=(r"CHUNK", r"\blast\b", r"missing|left out", r"numel"),
        located=(r"gradients? of (a|b|A|B)\b",),
    ),
    Operation(
        "soft sort, order for its inverse",
        SoftSortFunction,
        SoftSort,
        soft_sort,
        lambda: {"scores": torch.randn(4, 7), "values": torch.randn(4, 7, 2)},
        named="the sorted scores' gradient is gathered by the order and not scattered by it, which is the inverse",
        kinds=("permuted", "another operand", "step left out"),
        named_words=(r"gather|scatter", r"perm|\border\b|argsort", r"inverse"),
        located=(r"gradient of (scores|s)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
