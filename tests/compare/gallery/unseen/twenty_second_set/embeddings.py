"""Embeddings: a cosine loss of pairs, a ranking of items, translations in a knowledge graph, learned positions."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

MARGIN = 0.2


def cosine_of_pairs(a, b, same):
    cos = (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()
    return torch.where(same, 1 - cos, (cos - MARGIN).clamp(min=0)).mean()


class CosineOfPairsFunction(Function):
    @staticmethod
    def forward(ctx, a, b, same):
        norms = [t.square().sum(1, keepdim=True).sqrt() for t in (a, b)]
        unit_a, unit_b = a / norms[0], b / norms[1]
        cos = (unit_a * unit_b).sum(1, keepdim=True)
        ctx.save_for_backward(unit_a, unit_b, cos, same, *norms)
        return torch.where(same, 1 - cos[:, 0], (cos[:, 0] - MARGIN).clamp(min=0)).mean()

    @staticmethod
    def backward(ctx, g):
        unit_a, unit_b, cos, same, norm_a, norm_b = ctx.saved_tensors
        slope = torch.where(same[:, None], -torch.ones_like(cos), (cos > MARGIN).to(cos.dtype))
        slope = slope * g / cos.size(0)
        return slope * (unit_b - cos * unit_a) / norm_a, slope * (unit_a - cos * unit_b) / norm_b, None


class CosineEmbeddingLoss(Function):
    @staticmethod
    def forward(ctx, x1, x2, same):
        n1 = x1.pow(2).sum(dim=1).sqrt()
        n2 = x2.pow(2).sum(dim=1).sqrt()
        cos = (x1 * x2).sum(dim=1) / (n1 * n2)
        loss = torch.where(same, 1 - cos, torch.clamp(cos - MARGIN, min=0))
        ctx.save_for_backward(x1, x2, n1, n2, cos, same)
        return loss.mean()

    @staticmethod
    def backward(ctx, grad_output):
        x1, x2, n1, n2, cos, same = ctx.saved_tensors
        grad_cos = torch.zeros_like(cos)
        grad_cos[same] = -1
        grad_cos[~same & (cos > MARGIN)] = 1
        grad_cos = grad_cos * grad_output / cos.numel()
        scale = (grad_cos / (n1 * n2)).unsqueeze(1)
        return scale * x2, scale * x1, None


def ranking_of_items(user, positive, negative):
    margin = (user * (positive - negative)).sum(1)
    return torch.log1p(torch.exp(-margin)).mean()


class BPRLoss(Function):
    """-log sigmoid(u.i - u.j), averaged over the triples."""

    @staticmethod
    def forward(ctx, user, pos, neg):
        diff = (user * pos).sum(dim=-1) - (user * neg).sum(dim=-1)
        ctx.save_for_backward(user, pos, neg, diff)
        return -torch.log(torch.sigmoid(diff)).mean()

    @staticmethod
    def backward(ctx, grad_output):
        user, pos, neg, diff = ctx.saved_tensors
        coef = -torch.sigmoid(diff) / diff.numel()
        coef = (grad_output * coef).unsqueeze(-1)
        return coef * (pos - neg), coef * user, -coef * user


def translations(entities, relations, triples):
    head, relation, tail = triples.unbind(1)
    return -(entities[head] + relations[relation] - entities[tail]).square().sum(1).sqrt()


class TranslationsFunction(Function):
    @staticmethod
    def forward(ctx, entities, relations, triples):
        head, relation, tail = triples.unbind(1)
        moved = entities[head] + relations[relation] - entities[tail]
        distance = moved.square().sum(1, keepdim=True).sqrt()
        ctx.save_for_backward(moved / distance, triples)
        ctx.sizes = entities.size(0), relations.size(0)
        return -distance[:, 0]

    @staticmethod
    def backward(ctx, g):
        direction, triples = ctx.saved_tensors
        step = -g[:, None] * direction
        to_entities, to_relations = (step.new_zeros(n, step.size(1)) for n in ctx.sizes)
        to_entities.index_add_(0, triples[:, 0], step).index_add_(0, triples[:, 2], step, alpha=-1)
        return to_entities, to_relations.index_add_(0, triples[:, 1], step), None


class TransE(Function):
    """score(h, r, t) = -||e_h + w_r - e_t||_2"""

    @staticmethod
    def forward(ctx, ent, rel, triples):
        h, r, t = triples[:, 0], triples[:, 1], triples[:, 2]
        diff = ent[h] + rel[r] - ent[t]
        score = -diff.pow(2).sum(-1).sqrt()
        ctx.save_for_backward(ent, rel, triples, diff)
        return score

    @staticmethod
    def backward(ctx, grad_score):
        ent, rel, triples, diff = ctx.saved_tensors
        h, r, t = triples[:, 0], triples[:, 1], triples[:, 2]
        grad_diff = -2 * diff * grad_score.unsqueeze(-1)
        grad_ent = torch.zeros_like(ent)
        grad_ent.index_add_(0, h, grad_diff)
        grad_ent.index_add_(0, t, -grad_diff)
        grad_rel = torch.zeros_like(rel)
        grad_rel.index_add_(0, r, grad_diff)
        return grad_ent, grad_rel, None


def tokens_at_places(table, places, tokens):
    return table[tokens] + places[: tokens.size(1)]


class TokenPositionEmbedding(Function):
    """GPT's input layer: wte[tokens] + wpe[:T]"""

    @staticmethod
    def forward(ctx, wte, wpe, tokens):
        ctx.save_for_backward(tokens)
        ctx.vocab, ctx.block = wte.size(0), wpe.size(0)
        return wte[tokens] + wpe[: tokens.size(1)]

    @staticmethod
    def backward(ctx, dout):
        (tokens,) = ctx.saved_tensors
        _, T, C = dout.shape
        dwte = torch.zeros(ctx.vocab, C, dtype=dout.dtype, device=dout.device)
        dwte.index_add_(0, tokens.reshape(-1), dout.reshape(-1, C))
        dwpe = torch.zeros(ctx.block, C, dtype=dout.dtype, device=dout.device)
        dwpe[:T] = dout.mean(dim=0)
        return dwte, dwpe, None


OPERATIONS = [
    Operation(
        "cosine loss of pairs, norms as constants",
        CosineOfPairsFunction,
        CosineEmbeddingLoss,
        cosine_of_pairs,
        lambda: {
            "a": torch.randn(6, 4),
            "b": torch.randn(6, 4),
            "same": torch.tensor([True, False, True, False, True, False]),
        },
        named="the norms depend on the inputs too: the part of the cosine's derivative through them is missing",
        kinds=("missing term",),
        named_words=(r"missing", r"norm|\bn1\b|\bn2\b|sqrt"),
        located=(r"gradient of (a|x1)\b", r"gradient of (b|x2)\b"),
        options={"kinks": True, "whole_numbers": False},
    ),
    Operation(
        "translations in a knowledge graph, derivative of the squared distance",
        TranslationsFunction,
        TransE,
        translations,
        lambda: {
            "entities": torch.randn(5, 4),
            "relations": torch.randn(2, 4),
            "triples": torch.tensor([[0, 0, 1], [1, 1, 2], [3, 0, 0], [4, 1, 3], [2, 0, 4], [0, 1, 3]]),
        },
        named="the derivative is that of the squared distance: the factor is 2, and the division by it is missing",
        kinds=("step left out", "factor of one term", "another operand", "missing term", "factor by element"),
        named_words=(r"distance|norm|sqrt|score|divi", r"square"),
        located=(r"gradient of (entities|ent)\b", r"gradient of (relations|rel)\b"),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "ranking of items, sign in the sigmoid",
            BPRLoss.apply,
            ranking_of_items,
            lambda: {"user": torch.randn(5, 3), "positive": torch.randn(5, 3), "negative": torch.randn(5, 3)},
        ),
        named="the derivative of -log sigmoid(d) is -sigmoid(-d), and backward has -sigmoid(d)",
        kinds=("another operand", "flipped", "step left out", "factor by element", "missing term"),
        named_words=(r"sign\b|-diff|minus|negati|flipped", r"1 - |sigmoid\(-"),
        located=(r"gradient of user\b", r"gradient of (positive|pos)\b", r"gradient of (negative|neg)\b"),
    ),
    WrongFunction(
        Case(
            "tokens at learned positions, mean over the batch",
            TokenPositionEmbedding.apply,
            tokens_at_places,
            lambda: {
                "table": torch.randn(7, 3),
                "places": torch.randn(6, 3),
                "tokens": torch.randint(0, 7, (4, 5)),
            },
        ),
        named="places: every example has the same rows, and their gradients are averaged where they should be added",
        kinds=("constant factor", "wrong sum"),
        named_words=(r"mean", r"batch|examples", r"factor"),
        located=(r"gradient of (places|wpe)\b",),
    ),
]
