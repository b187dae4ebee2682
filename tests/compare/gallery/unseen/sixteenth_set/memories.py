"""Memories: rows that are erased and written, addresses made sharper, several rows for a word."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

WORDS = torch.tensor([0, 2, 1, 2])
ROWS = torch.tensor([[1, 4], [0, 3], [4, 2]])


def written(memory, weight, erase, add):
    return memory * (1 - weight[:, :, None] * erase[:, None]) + weight[:, :, None] * add[:, None]


class WrittenFunction(Function):
    @staticmethod
    def forward(ctx, memory, weight, erase, add):
        ctx.save_for_backward(memory, weight, erase, add)
        return written(memory, weight, erase, add)

    @staticmethod
    def backward(ctx, g):
        memory, weight, erase, add = ctx.saved_tensors
        w, e, a = weight[:, :, None], erase[:, None], add[:, None]
        grad_weight = (g * (a - memory * e)).sum(2)
        return g * (1 - w * e), grad_weight, -(g * memory * w).sum(1), (g * w).sum(1)


class NTMWrite(Function):
    @staticmethod
    def forward(ctx, M, w, e, a):
        w = w.unsqueeze(-1)
        erased = M * (1 - torch.matmul(w, e.unsqueeze(1)))
        ctx.save_for_backward(M, w, e, a)
        return erased + torch.matmul(w, a.unsqueeze(1))

    @staticmethod
    def backward(ctx, dM):
        M, w, e, a = ctx.saved_tensors
        dM_prev = dM * (1 - w * e.unsqueeze(1))
        d_erase = -(dM * M)
        de = torch.bmm(w.transpose(1, 2), d_erase).squeeze(1)
        da = torch.bmm(w.transpose(1, 2), dM).squeeze(1)
        dw = torch.bmm(dM, a.unsqueeze(-1)).squeeze(-1)
        return dM_prev, dw, de, da


def sharper(scores, exponent):
    powers = scores.clamp(min=0) ** exponent
    return powers / powers.sum(1, keepdim=True)


class SharperFunction(Function):
    @staticmethod
    def forward(ctx, scores, exponent):
        ctx.save_for_backward(scores, exponent)
        return sharper(scores, exponent)

    @staticmethod
    def backward(ctx, g):
        scores, exponent = ctx.saved_tensors
        weights = scores.clamp(min=0)
        total = (weights**exponent).sum(1, keepdim=True)
        shares = weights**exponent / total
        to_powers = (g - (g * shares).sum(1, keepdim=True)) / total
        grad_scores = to_powers * exponent * weights ** (exponent - 1)
        logs = torch.where(weights > 0, weights, 1).log()
        return grad_scores, (to_powers * total * shares * logs).sum(1, keepdim=True)


class SharpenAddress(Function):
    @staticmethod
    def forward(ctx, s, gamma):
        w = torch.relu(s)
        wg = w.pow(gamma)
        out = wg / wg.sum(dim=-1, keepdim=True)
        ctx.save_for_backward(s, gamma, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        s, gamma, out = ctx.saved_tensors
        w = torch.relu(s)
        grad_log = out * (grad - (grad * out).sum(dim=-1, keepdim=True))
        grad_s = grad_log * gamma / w * (s > 0)
        grad_gamma = (grad_log * torch.log(w)).sum(dim=-1, keepdim=True)
        return grad_s, grad_gamma


def mixed_rows(table, importance, projection):
    return (table[ROWS[WORDS]] * importance[WORDS][:, :, None]).sum(1) @ projection


class HashEmbedding(Function):
    """Svenstrup et al. 2017: a word is a weighted sum of the rows that its hashes give."""

    @staticmethod
    def forward(ctx, table, importance, projection):
        rows = table[ROWS[WORDS]]
        mixed = torch.einsum("bkd,bk->bd", rows, importance[WORDS])
        ctx.save_for_backward(table, importance, projection, rows, mixed)
        return mixed @ projection

    @staticmethod
    def backward(ctx, grad_output):
        table, importance, projection, rows, mixed = ctx.saved_tensors
        grads = []
        grad_mixed = grad_output @ projection.t()
        if ctx.needs_input_grad[0]:
            grad_rows = torch.einsum("bd,bk->bkd", grad_mixed, importance[WORDS])
            grad_table = torch.zeros_like(table)
            grads.append(grad_table.index_add_(0, ROWS[WORDS].flatten(), grad_rows.flatten(0, 1)))
        if ctx.needs_input_grad[1]:
            grad_weights = torch.einsum("bd,bkd->bk", grad_mixed, rows)
            grads.append(torch.zeros_like(importance).index_add_(0, WORDS, grad_weights))
        if ctx.needs_input_grad[2]:
            grads.append(mixed.t() @ grad_output)
        grads += [None] * (3 - len(grads))
        return tuple(grads)


def scores_of_both_signs():
    scores = torch.randn(4, 6)
    scores[:, 0] = 0.2 + torch.rand(4)
    return {"scores": scores, "exponent": 1.5 + torch.rand(4, 1)}


OPERATIONS = [
    Operation(
        "rows erased and written, erasing by weight",
        WrittenFunction,
        NTMWrite,
        written,
        lambda: {
            "memory": torch.randn(2, 4, 3),
            "weight": torch.rand(2, 4),
            "erase": torch.rand(2, 3),
            "add": torch.randn(2, 3),
        },
        named="weight: the part of its gradient through the erasing is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"eras|\be\b", r"\bM\b|memory"),
        located=(r"gradient of (weight|w)\b",),
    ),
    Operation(
        "sharper weights, scores below zero",
        SharperFunction,
        SharpenAddress,
        sharper,
        scores_of_both_signs,
        named="0 / 0 and 0 times the logarithm of 0, NaN, where a score is below 0 and its weight is 0",
        kinds=("not finite", "only at zeros", "only for some values", "few elements"),
        named_words=(r"\bnan\b|not finite", r"zero|\b0\b|negative"),
        located=(r"gradient of (scores|s)\b", r"gradient of (exponent|gamma)\b"),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "several rows for a word, places of the gradients",
            HashEmbedding.apply,
            mixed_rows,
            lambda: {
                "table": torch.randn(5, 3),
                "importance": torch.randn(3, 2),
                "projection": torch.randn(3, 4),
            },
        ),
        named="with a frozen input the gradients of the later ones are returned one place too early",
        kinds=("depends on which inputs require a gradient", "raises", "none", "swapped"),
        named_words=(r"requires? a gradient|requires_grad|needs_input_grad|require gradients|frozen", r"place|order"),
        located=(r"importance|projection",),
    ),
]
