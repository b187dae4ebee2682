"""Smaller networks: learned step sizes, scales from the largest value, students that learn from a teacher."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

LOWEST, HIGHEST = -4, 3
LEVELS = 7
WARMTH = 2.0
READ = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)


def rounded(v):
    return v + (v.round() - v).detach()


def quantized_with_step(x, step):
    share = (x.numel() * HIGHEST) ** -0.5
    step = step * share + (step - step * share).detach()
    return rounded((x / step).clamp(LOWEST, HIGHEST)) * step


class StepSizeFunction(Function):
    @staticmethod
    def forward(ctx, x, step):
        ctx.save_for_backward(x, step)
        return (x / step).clamp(LOWEST, HIGHEST).round() * step

    @staticmethod
    def backward(ctx, g):
        x, step = ctx.saved_tensors
        v = x / step
        inside = (v >= LOWEST) & (v <= HIGHEST)
        of_step = v.clamp(LOWEST, HIGHEST).round() - v * inside
        return g * inside, (g * of_step).sum() * (x.numel() * HIGHEST) ** -0.5


class LSQ(Function):
    """Learned step size quantization of weights to 3 bits, with the paper's gradient scale."""

    @staticmethod
    def forward(ctx, weight, alpha):
        ctx.save_for_backward(weight, alpha)
        ctx.grad_scale = 1.0 / (weight.numel() * HIGHEST) ** 0.5
        q_w = (weight / alpha).round().clamp(LOWEST, HIGHEST)
        return q_w * alpha

    @staticmethod
    def backward(ctx, grad_weight):
        weight, alpha = ctx.saved_tensors
        q_w = weight / alpha
        indicate_small = (q_w < LOWEST).to(q_w)
        indicate_big = (q_w > HIGHEST).to(q_w)
        indicate_middle = 1.0 - indicate_small - indicate_big
        grad_alpha = indicate_big * HIGHEST + indicate_middle * (q_w.round() - q_w)
        grad_alpha = (grad_alpha * grad_weight).sum() * ctx.grad_scale
        return indicate_middle * grad_weight, grad_alpha


def quantized_by_largest(x):
    scale = x.abs().amax(1, keepdim=True) / LEVELS
    return rounded(x / scale) * scale


class AbsMaxQuant(Function):
    """Per-row symmetric quantization; the scale is the row's largest magnitude, rounding is straight-through."""

    @staticmethod
    def forward(ctx, x):
        amax, idx = x.abs().max(dim=1, keepdim=True)
        scale = amax / LEVELS
        codes = torch.round(x / scale)
        ctx.save_for_backward(x, scale, codes, idx)
        return codes * scale

    @staticmethod
    def backward(ctx, grad_output):
        x, scale, codes, idx = ctx.saved_tensors
        grad_scale = (grad_output * (codes - x / scale)).sum(dim=1, keepdim=True)
        grad_x = grad_output.clone()
        return grad_x.scatter_add_(1, idx, grad_scale / LEVELS)


def token_distillation(student, teacher):
    log_q, p = (student / WARMTH).log_softmax(2), (teacher.detach() / WARMTH).softmax(2)
    each = (p * (p.log() - log_q)).sum(2)
    return WARMTH**2 * (each * READ).sum() / READ.sum()


class StudentFunction(Function):
    @staticmethod
    def forward(ctx, student, teacher):
        ctx.save_for_backward(student, teacher)
        return token_distillation(student, teacher)

    @staticmethod
    def backward(ctx, g):
        student, teacher = ctx.saved_tensors
        apart = (student / WARMTH).softmax(2) - (teacher / WARMTH).softmax(2)
        return g * WARMTH * apart * READ[:, :, None] / READ.sum(), None


class MaskedKDLoss(Function):
    @staticmethod
    def forward(ctx, student_logits, teacher_logits):
        s = torch.log_softmax(student_logits / WARMTH, dim=-1)
        t = torch.softmax(teacher_logits / WARMTH, dim=-1)
        kl = (t * (torch.log(t) - s)).sum(dim=-1)
        kl = kl[READ]
        ctx.save_for_backward(s, t)
        return kl.mean() * WARMTH**2

    @staticmethod
    def backward(ctx, grad_output):
        s, t = ctx.saved_tensors
        batch, length, _ = s.shape
        grad = (s.exp() - t) * WARMTH / (batch * length)
        grad[~READ] = 0
        return grad_output * grad, None


def relations(z):
    i, j = torch.triu_indices(len(z), len(z), 1)
    d = ((z[i] - z[j]) ** 2).sum(1).sqrt()
    return d / d.mean()


def relation_loss(z, teacher):
    return ((relations(z) - relations(teacher.detach())) ** 2).sum()


class RelationFunction(Function):
    @staticmethod
    def forward(ctx, z, teacher):
        ctx.save_for_backward(z, teacher)
        return relation_loss(z, teacher)

    @staticmethod
    def backward(ctx, g):
        z, teacher = ctx.saved_tensors
        i, j = torch.triu_indices(len(z), len(z), 1)
        apart = z[i] - z[j]
        d = (apart**2).sum(1).sqrt()
        to_relation = 2 * g * (d / d.mean() - relations(teacher))
        to_d = (to_relation - (to_relation * d).sum() / d.sum()) / d.mean()
        to_apart = (to_d / d)[:, None] * apart
        return torch.zeros_like(z).index_add(0, i, to_apart).index_add(0, j, -to_apart), None


class RKDDistance(Function):
    @staticmethod
    def forward(ctx, student, teacher):
        diff = student.unsqueeze(1) - student.unsqueeze(0)
        dist = diff.pow(2).sum(-1).sqrt()
        t_dist = (teacher.unsqueeze(1) - teacher.unsqueeze(0)).pow(2).sum(-1).sqrt()
        pairs = len(student) * (len(student) - 1)
        mu, t_mu = dist.sum() / pairs, t_dist.sum() / pairs
        err = dist / mu - t_dist / t_mu
        ctx.save_for_backward(diff, dist, mu, err)
        return err.pow(2).sum() / 2

    @staticmethod
    def backward(ctx, grad_output):
        diff, dist, mu, err = ctx.saved_tensors
        safe = dist + torch.eye(len(dist)).to(dist)
        grad_dist = grad_output * err / mu
        grad_diff = (grad_dist / safe).unsqueeze(-1) * diff
        return grad_diff.sum(1) - grad_diff.sum(0), None


OPERATIONS = [
    Operation(
        "quantized with a learned step, values below the range",
        StepSizeFunction,
        LSQ,
        quantized_with_step,
        lambda: {"x": torch.randn(6, 5), "step": 0.3 + 0.1 * torch.rand(())},
        named="the step: values below the range give LOWEST each, and they are left out",
        kinds=("missing term", "only for some values", "another operand", "wrong sum"),
        named_words=(r"LOWEST|indicate_small|below|-4\b", r"missing"),
        located=(r"gradient of (step|alpha)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "distillation of the tokens that are read, number of tokens",
        StudentFunction,
        MaskedKDLoss,
        token_distillation,
        lambda: {"student": torch.randn(3, 5, 4), "teacher": torch.randn(3, 5, 4)},
        named="forward takes the mean over the tokens of the mask, backward divides by the number of all tokens",
        kinds=("constant factor",),
        named_words=(r"factor", r"READ", r"batch|length|number|numel|mean", r"\b0\.6|\b1\.6|9 ?/ ?15|15 ?/ ?9"),
        located=(r"gradient of student",),
    ),
    Operation(
        "distances over their mean, the mean as a constant",
        RelationFunction,
        RKDDistance,
        relation_loss,
        lambda: {"z": torch.randn(5, 3), "teacher": torch.randn(5, 3)},
        named="the mean of the distances depends on the embeddings, and its derivative is missing",
        kinds=("missing term",),
        named_words=(r"missing", r"\bmu\b|mean", r"quotient|normali[sz]"),
        located=(r"gradient of (z|student)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "quantized by the largest value, its sign",
            AbsMaxQuant.apply,
            quantized_by_largest,
            lambda: {"x": torch.randn(4, 6)},
            whole_numbers=False,
        ),
        named="the scale is the largest magnitude, and the sign of the value there is left out",
        kinds=(
            "only for some values",
            "step left out",
            "another operand",
            "only at some indices",
            "factor of one term",
        ),
        named_words=(r"\bsign|\babs|magnitude", r"\bidx\b|largest|maximum", r"scatter_add|grad_scale"),
        located=(r"gradient of x\b",),
    ),
]
