"""Recommenders: products of features, soft trees, items of a batch as negatives, cosines of two towers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def products_of_features(features):
    i, j = torch.tril_indices(features.shape[1], features.shape[1], -1)
    return (features @ features.mT)[:, i, j]


class ProductsOfFeaturesFunction(Function):
    @staticmethod
    def forward(ctx, features):
        ctx.save_for_backward(features)
        return products_of_features(features)

    @staticmethod
    def backward(ctx, g):
        (features,) = ctx.saved_tensors
        i, j = torch.tril_indices(features.shape[1], features.shape[1], -1)
        grad = torch.zeros_like(features)
        grad.index_add_(1, i, g[..., None] * features[:, j])
        grad.index_add_(1, j, g[..., None] * features[:, i])
        return grad


class DotInteraction(Function):
    """DLRM's pairwise dot products, strictly lower triangle, one row for each example."""

    @staticmethod
    def forward(ctx, z):
        n = z.size(1)
        rows, cols = torch.tril_indices(n, n, offset=-1)
        gram = torch.bmm(z, z.transpose(1, 2))
        ctx.save_for_backward(z, rows, cols)
        return gram[:, rows, cols]

    @staticmethod
    def backward(ctx, grad_out):
        z, rows, cols = ctx.saved_tensors
        b, n, _ = z.shape
        grad_gram = grad_out.new_zeros(b, n, n)
        grad_gram[:, rows, cols] = grad_out
        return torch.bmm(grad_gram, z)


def soft_tree(z, response):
    right = torch.sigmoid(z)
    leaves = torch.ones_like(z[:, :1])
    for p in right.unbind(1):
        leaves = torch.stack([leaves * (1 - p)[:, None], leaves * p[:, None]], 2).flatten(1)
    return leaves @ response


class SoftTreeFunction(Function):
    @staticmethod
    def forward(ctx, z, response):
        ctx.save_for_backward(z, response)
        return soft_tree(z, response)

    @staticmethod
    def backward(ctx, g):
        z, response = ctx.saved_tensors
        right = torch.sigmoid(z)
        levels = [torch.ones_like(z[:, :1])]
        for p in right.unbind(1):
            levels.append(torch.stack([levels[-1] * (1 - p)[:, None], levels[-1] * p[:, None]], 2).flatten(1))
        grad_leaves, grad_right = g @ response.mT, torch.zeros_like(z)
        for level in reversed(range(z.shape[1])):
            to_left, to_right = grad_leaves.unflatten(1, (-1, 2)).unbind(2)
            p = right[:, level, None]
            grad_right[:, level] = (levels[level] * (to_right - to_left)).sum(1)
            grad_leaves = to_left * (1 - p) + to_right * p
        return grad_right * right * (1 - right), levels[-1].mT @ g


class ObliviousTree(Function):
    """One oblivious decision tree with sigmoid splits: (B, depth) logits, (2 ** depth, U) responses."""

    @staticmethod
    def forward(ctx, logits, response):
        depth = logits.shape[1]
        p = logits.sigmoid()
        bits = torch.arange(2**depth, device=logits.device)[:, None] >> torch.arange(depth - 1, -1, -1) & 1
        choice = torch.where(bits.bool(), p[:, None, :], 1 - p[:, None, :])
        leaf = choice.prod(dim=-1)
        ctx.save_for_backward(p, leaf, response)
        return leaf @ response

    @staticmethod
    def backward(ctx, grad_out):
        p, leaf, response = ctx.saved_tensors
        grad_leaf = grad_out @ response.t()
        grad_p = torch.empty_like(p)
        for d in range(p.shape[1]):
            went_right = (torch.arange(leaf.shape[1], device=p.device) >> d & 1).to(p.dtype)
            share = went_right * (1 - p[:, d : d + 1]) - (1 - went_right) * p[:, d : d + 1]
            grad_p[:, d] = (grad_leaf * leaf * share).sum(dim=1)
        return grad_p, leaf.t() @ grad_out


IDS = torch.tensor([7, 2, 7, 5, 2])


def batch_negatives(user, item, log_rate):
    scores = user @ item.mT - log_rate
    same = (IDS[:, None] == IDS) & ~torch.eye(len(IDS), dtype=torch.bool)
    return F.cross_entropy(scores.masked_fill(same, -torch.inf), torch.arange(len(IDS)))


class BatchNegativesFunction(Function):
    @staticmethod
    def forward(ctx, user, item, log_rate):
        ctx.save_for_backward(user, item, log_rate)
        return batch_negatives(user, item, log_rate)

    @staticmethod
    def backward(ctx, g):
        user, item, log_rate = ctx.saved_tensors
        eye = torch.eye(len(IDS), dtype=torch.bool)
        scores = (user @ item.mT - log_rate).masked_fill((IDS[:, None] == IDS) & ~eye, -torch.inf)
        grad = g * (torch.softmax(scores, 1) - eye.to(scores)) / len(IDS)
        return grad @ item, grad.mT @ user, -grad.sum(0)


class InBatchSampledSoftmax(Function):
    """In-batch softmax with logQ correction; the same item elsewhere in the batch is no negative."""

    @staticmethod
    def forward(ctx, user_emb, item_emb, log_q):
        ids = IDS.to(user_emb.device)
        n = ids.numel()
        logits = user_emb @ item_emb.t() - log_q[None, :]
        dup = ids[:, None].eq(ids[None, :]).fill_diagonal_(False)
        masked = logits.masked_fill(dup, float("-inf"))
        loss = (masked.logsumexp(dim=1) - masked.diagonal()).sum() / n
        ctx.save_for_backward(user_emb, item_emb, logits)
        return loss

    @staticmethod
    def backward(ctx, grad_output):
        user_emb, item_emb, logits = ctx.saved_tensors
        n = logits.size(0)
        d = logits.softmax(dim=1)
        d.diagonal().sub_(1)
        d = d * (grad_output / n)
        return d @ item_emb, d.t() @ user_emb, d.sum(0).neg()


class TowerCosine(Function):
    """Cosine of user and item vectors, times a fixed scale."""

    @staticmethod
    def forward(ctx, a, b):
        na = a.norm(dim=-1, keepdim=True)
        nb = b.norm(dim=-1, keepdim=True)
        cos = (a * b).sum(-1, keepdim=True) / (na * nb)
        ctx.save_for_backward(a, b, na, nb, cos)
        return 20.0 * cos.squeeze(-1)

    @staticmethod
    def backward(ctx, grad_output):
        a, b, na, nb, cos = ctx.saved_tensors
        g = 20.0 * grad_output.unsqueeze(-1)
        grad_a = g * (b / nb - cos * a / na) / na
        grad_b = g * (a / na - cos * b) / nb
        return grad_a, grad_b


OPERATIONS = [
    Operation(
        "products of features, second factor",
        ProductsOfFeaturesFunction,
        DotInteraction,
        products_of_features,
        lambda: {"features": torch.randn(2, 4, 3)},
        named="each product sends a gradient to the first of its two features only; the transpose is not added",
        kinds=("missing term", "wrong half"),
        named_words=(r"transpose", r"missing term|term .*missing", r"grad_gram\b", r"symmetri|half"),
        located=(r"gradient of (features|z)\b",),
    ),
    Operation(
        "soft tree, order of the levels",
        SoftTreeFunction,
        ObliviousTree,
        soft_tree,
        lambda: {"z": torch.randn(4, 3), "response": torch.randn(8, 2)},
        named="backward counts the levels from the last, forward from the first",
        kinds=("permuted", "another operand", "flipped", "swapped", "factor by element"),
        named_words=(r">> d", r"reversed|flipped|permuted|swapped", r"went_right"),
        located=(r"gradient of (z|logits)\b",),
    ),
    Operation(
        "items of a batch as negatives, the same item",
        BatchNegativesFunction,
        InBatchSampledSoftmax,
        batch_negatives,
        lambda: {"user": torch.randn(5, 3), "item": torch.randn(5, 3), "log_rate": -torch.rand(5)},
        named="backward's softmax is of the scores before the mask of equal items",
        kinds=("another operand", "step left out", "wrong intermediate value"),
        named_words=(r"\bmask", r"\bdup\b"),
        located=(r"gradient of (user|user_emb)\b", r"gradient of (item|item_emb)\b"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "cosine of two towers, length of one",
            TowerCosine.apply,
            lambda a, b: 20 * torch.cosine_similarity(a, b, -1),
            lambda: {"a": torch.randn(4, 3), "b": torch.randn(4, 3)},
            whole_numbers=False,
        ),
        named="the projection on b in b's gradient is not divided by b's length",
        kinds=("factor of one term", "step left out", "another operand"),
        named_words=(r"\bnb\b", r"norm of b|length of b"),
        located=(r"gradient of b\b",),
    ),
]
