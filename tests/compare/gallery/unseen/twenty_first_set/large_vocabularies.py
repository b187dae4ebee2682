"""Large vocabularies: logits in chunks that are never whole, capped logits with a penalty, blocks run in reverse."""

from __future__ import annotations

import torch
from torch.autograd import Function
from torch.nn.functional import cross_entropy

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

CHUNK, UNUSED = 3, -100
LABELS = torch.tensor([2, 0, UNUSED, 4, 1, 1, UNUSED, 3])
CAP, PENALTY = 2.0, 0.15
WORDS = torch.tensor([1, 4, 0, 2])


def linear_loss(x, weight, bias):
    return cross_entropy(x @ weight.T + bias, LABELS, ignore_index=UNUSED, reduction="sum") / (LABELS != UNUSED).sum()


class ChunkedLossFunction(Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight, bias)
        return linear_loss(x, weight, bias)

    @staticmethod
    def backward(ctx, g):
        x, weight, bias = ctx.saved_tensors
        used = LABELS != UNUSED
        grad_x, grad_weight, grad_bias = torch.zeros_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
        for start in range(0, len(x), CHUNK):
            part = slice(start, start + CHUNK)
            p = (x[part] @ weight.T + bias).softmax(1)
            p[torch.arange(len(p)), LABELS[part].clamp(min=0)] -= 1
            p = p * used[part, None] * (g / used.sum())
            grad_x[part] = p @ weight
            grad_weight += p.T @ x[part]
            grad_bias += p.sum(0)
        return grad_x, grad_weight, grad_bias


class FusedLinearCrossEntropy(Function):
    """The gradients are computed chunk by chunk in forward, so that the logits are never held as a whole."""

    @staticmethod
    def forward(ctx, _input, weight, bias):
        grad_input = torch.zeros_like(_input)
        grad_weight = torch.zeros_like(weight)
        grad_bias = torch.zeros_like(bias)
        n_non_ignore = (LABELS != UNUSED).sum()
        loss = _input.new_zeros(())
        for x, gx, target in zip(_input.split(CHUNK), grad_input.split(CHUNK), LABELS.split(CHUNK), strict=True):
            keep = target != UNUSED
            logits = x @ weight.t() + bias
            log_probs = logits.log_softmax(dim=-1)
            safe_target = target.masked_fill(~keep, 0).unsqueeze(1)
            loss = loss - (log_probs.gather(1, safe_target).squeeze(1) * keep).sum()
            grad_logits = log_probs.exp()
            grad_logits.scatter_add_(1, safe_target, -torch.ones_like(grad_logits[:, :1]))
            grad_logits = grad_logits * keep.unsqueeze(1) / n_non_ignore
            gx.copy_(grad_logits @ weight)
            grad_weight.addmm_(grad_logits.t(), x)
            grad_bias.add_(grad_logits.sum(dim=0))
        ctx.save_for_backward(grad_input, grad_weight, grad_bias)
        return loss / n_non_ignore

    @staticmethod
    def backward(ctx, grad_output):
        grad_input, grad_weight, grad_bias = ctx.saved_tensors
        return grad_input * grad_output, grad_weight, grad_bias


def capped_loss(logits):
    capped = CAP * torch.tanh(logits / CAP)
    whole = capped.logsumexp(1)
    return whole - capped[torch.arange(len(WORDS)), WORDS] + PENALTY * whole**2


class CappedLossFunction(Function):
    @staticmethod
    def forward(ctx, logits):
        ctx.save_for_backward(logits)
        return capped_loss(logits)

    @staticmethod
    def backward(ctx, g):
        (logits,) = ctx.saved_tensors
        bent = torch.tanh(logits / CAP)
        whole = (CAP * bent).logsumexp(1, keepdim=True)
        grad = (CAP * bent - whole).exp() * (1 + 2 * PENALTY * whole)
        grad[torch.arange(len(WORDS)), WORDS] -= 1
        return g[:, None] * grad * (1 - bent**2)


class SoftcapZLoss(Function):
    """Cross entropy of soft-capped logits, with a z-loss on the log of the partition function."""

    @staticmethod
    def forward(ctx, logits):
        t = torch.tanh(logits / CAP)
        z = CAP * t
        lse = torch.logsumexp(z, dim=-1, keepdim=True)
        ctx.save_for_backward(t, z, lse)
        nll = lse - z.gather(1, WORDS.unsqueeze(1))
        return (nll + PENALTY * lse.square()).squeeze(1)

    @staticmethod
    def backward(ctx, grad_loss):
        t, z, lse = ctx.saved_tensors
        probs = torch.exp(z - lse)
        one_hot = torch.zeros_like(probs).scatter_(1, WORDS.unsqueeze(1), 1)
        d_logits = (probs - one_hot) * (1 - t * t)
        d_logits += 2 * PENALTY * lse * probs
        return d_logits * grad_loss.unsqueeze(1)


def coupled_halves(a, b, f, g):
    upper = a + torch.tanh(b @ f)
    return upper, b + torch.tanh(upper @ g)


class ReversibleBlock(Function):
    """y1 = x1 + tanh(x2 F), y2 = x2 + tanh(y1 G); the inputs are reconstructed from the outputs."""

    @staticmethod
    def forward(ctx, x1, x2, F_weight, G_weight):
        y1 = x1 + torch.tanh(x2 @ F_weight)
        y2 = x2 + torch.tanh(y1 @ G_weight)
        ctx.save_for_backward(y1, y2, F_weight, G_weight)
        return y1, y2

    @staticmethod
    def backward(ctx, dy1, dy2):
        y1, y2, F_weight, G_weight = ctx.saved_tensors
        g_out = torch.tanh(y1 @ G_weight)
        x2 = y2 - g_out
        f_out = torch.tanh(x2 @ F_weight)
        dg = dy2 * (1 - g_out**2)
        df = dy1 * (1 - f_out**2)
        dx1 = dy1 + dg @ G_weight.t()
        dx2 = dy2 + df @ F_weight.t()
        return dx1, dx2, x2.t() @ df, y1.t() @ dg


OPERATIONS = [
    Operation(
        "linear layer and loss in chunks, loss times a factor",
        ChunkedLossFunction,
        FusedLinearCrossEntropy,
        linear_loss,
        lambda: {"x": torch.randn(8, 4), "weight": torch.randn(5, 4), "bias": torch.randn(5)},
        named="weight and bias: the gradients of forward are returned without the incoming gradient",
        kinds=("ignores the incoming gradient", "not linear in the incoming gradient"),
        named_words=(r"incoming gradient", r"grad_output"),
        located=(r"gradient of weight\b", r"gradient of bias\b"),
    ),
    Operation(
        "capped logits with a penalty, the cap's derivative",
        CappedLossFunction,
        SoftcapZLoss,
        capped_loss,
        lambda: {"logits": 2 * torch.randn(4, 6)},
        named="the penalty's gradient is added after the cap's derivative, which it lacks",
        kinds=("step left out", "missing term", "factor of one term", "another operand"),
        named_words=(r"1 - t \* t|tanh|derivative", r"PENALTY|\blse\b", r"d_logits"),
        located=(r"gradient of logits\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "coupled halves run in reverse, the first branch's gradient",
            ReversibleBlock.apply,
            coupled_halves,
            lambda: {
                "a": torch.randn(4, 3),
                "b": torch.randn(4, 3),
                "f": torch.randn(3, 3),
                "g": torch.randn(3, 3),
            },
        ),
        named="F's branch gets dy1 alone, and not what comes to y1 through G: dx1 belongs there",
        kinds=("another operand", "missing term", "step left out"),
        named_words=(r"\bdx1\b", r"\bdf\b|\bdy1\b", r"missing|through"),
        located=(r"gradient of (b|x2)\b", r"gradient of (f|F_weight)\b"),
    ),
]
