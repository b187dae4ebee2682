"""Gates: squeeze and excitation, SwiGLU, the best of several experts."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


class Excitation(Function):
    """x * sigmoid(mean of x over dimension 2), for x (N, C, L)."""

    @staticmethod
    def forward(ctx, x):
        gate = x.mean(2, keepdim=True).sigmoid()
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    def grad_mean(ctx, g):
        x, gate = ctx.saved_tensors
        return (g * x).sum(2, keepdim=True) * gate * (1 - gate)

    @staticmethod
    def backward(ctx, g):
        x, gate = ctx.saved_tensors
        return g * gate + Excitation.grad_mean(ctx, g) / x.shape[2]


class ExcitationWrong(Excitation):
    @staticmethod
    def backward(ctx, g):
        _, gate = ctx.saved_tensors
        return g * gate + Excitation.grad_mean(ctx, g)


class SwiGLU(Function):
    """a * silu(b)."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b * b.sigmoid()

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        s = b.sigmoid()
        return g * b * s, g * a * s * (1 + b * (1 - s))


class SwiGLUWrong(SwiGLU):
    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        s = b.sigmoid()
        return g * b * s, g * a * s


class BestExpert(Function):
    """softmax(scores)[best] * experts[best], row by row, for scores (N, E) and experts (N, E, D)."""

    @staticmethod
    def forward(ctx, scores, experts):
        p = scores.softmax(1)
        best = scores.argmax(1)
        ctx.save_for_backward(p, best, experts)
        rows = torch.arange(len(best))
        return p[rows, best, None] * experts[rows, best]

    @staticmethod
    def grad_scores(p, chosen, index):
        rows = torch.arange(len(index))
        grad = -p * (chosen * p[rows, index])[:, None]
        grad[rows, index] += chosen * p[rows, index]
        return grad

    @staticmethod
    def backward(ctx, g):
        p, best, experts = ctx.saved_tensors
        rows = torch.arange(len(best))
        grad = torch.zeros_like(experts)
        grad[rows, best] = g * p[rows, best, None]
        return BestExpert.grad_scores(p, (g * experts[rows, best]).sum(1), best), grad


class BestExpertWrong(BestExpert):
    @staticmethod
    def backward(ctx, g):
        p, best, experts = ctx.saved_tensors
        rows = torch.arange(len(best))
        grad = torch.zeros_like(experts)
        grad[:, best[0]] = g * p[:, best[0], None]
        return BestExpert.grad_scores(p, (g * experts[rows, best]).sum(1), best), grad


def best_expert(scores, experts):
    """Best expert's output of operations that PyTorch differentiates."""
    best = scores.argmax(1)
    rows = torch.arange(len(best))
    return scores.softmax(1)[rows, best, None] * experts[rows, best]


OPERATIONS = [
    Operation(
        "excitation of channels",
        Excitation,
        ExcitationWrong,
        lambda x: x * x.mean(2, keepdim=True).sigmoid(),
        lambda: torch.randn(3, 4, 5),
        named="the gradient through the mean lacks its factor 1 / 5: four times that term too much",
        kinds=("missing term",),
        named_words=(
            r"(surplus|too many|too much|additional|extra|missing|wrong) (term|part|number)",
            r"(term|part)\b.*(surplus|too many|too much|additional|extra|missing|times|factor)",
            r"one .*(term|number).* (too many|too much)",
            r"(constant|same|one) (number|value|term).*(each|every|per) (row|channel|slice)",
            r"(differs|off) by .*(number|value|constant)",
        ),
        located=(r"gradient of (x|input 0)",),
    ),
    Operation(
        "SwiGLU",
        SwiGLU,
        SwiGLUWrong,
        lambda a, b: a * torch.nn.functional.silu(b),
        lambda: {"a": torch.randn(4, 5), "b": torch.randn(4, 5)},
        named="the gradient of b lacks the derivative of its sigmoid: the gate is detached",
        kinds=("missing term",),
        named_words=(
            r"missing (term|part)",
            r"(term|part)s? .*(is|are) missing",
            r"detached",
            r"(derivative|factor|slope|coefficient|ratio)s?\b.*(each|every|per) element",
            r"(each|every) element.*(factor|derivative|slope|coefficient|ratio)",
            r"(second|one|other|another) use",
        ),
        located=(r"gradient of b\b",),
    ),
    Operation(
        "best expert",
        BestExpert,
        BestExpertWrong,
        best_expert,
        lambda: {"scores": torch.randn(5, 3), "experts": torch.randn(5, 3, 4)},
        named="in every example the expert of the first example gets the gradient, instead of its own",
        kinds=("permuted", "zero"),
        named_words=(
            r"(another|wrong|other|first) (expert|slice|example|row|place|index)",
            r"(place|ind(ex|ices)|slice|position)s?\b.*(instead|in place|other|another|wrong|moved)",
            r"permut",
            r"example 0|row 0|first example",
        ),
        located=(r"gradient of experts", r"row|example|expert|\[\d|dimension|slice|index"),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
