"""Training: distances of a teacher, erased frames."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

FRAMES = torch.tensor([False, True, True, False, False, False])


def distances_of_rows(x):
    i, j = torch.triu_indices(len(x), len(x), 1)
    return (x[i] - x[j]).norm(dim=1)


def relative_distances(student, teacher):
    own, other = distances_of_rows(student), distances_of_rows(teacher)
    return (own / own.mean() - (other / other.mean()).detach()).square().mean()


class RelativeDistancesFunction(Function):
    @staticmethod
    def forward(ctx, student, teacher):
        other = distances_of_rows(teacher)
        ctx.save_for_backward(student, other / other.mean())
        return relative_distances(student, teacher)

    @staticmethod
    def backward(ctx, g):
        student, other = ctx.saved_tensors
        i, j = torch.triu_indices(len(student), len(student), 1)
        own = distances_of_rows(student)
        d = 2 * g * (own / own.mean() - other) / len(own)
        d = d / own.mean() - (d * own).mean() / own.mean() ** 2
        to_pair = (d / own)[:, None] * (student[i] - student[j])
        return torch.zeros_like(student).index_add(0, i, to_pair).index_add(0, j, -to_pair), None


def pdist_with_diff(e):
    n = e.shape[0]
    i, j = torch.triu_indices(n, n, offset=1, device=e.device)
    diff = e[i] - e[j]
    return diff.pow(2).sum(dim=1).sqrt(), diff, i, j


class RKDDistance(Function):
    """Relational distillation: distances over their mean, squared error to those of the teacher."""

    @staticmethod
    def forward(ctx, student, teacher):
        t_d = pdist_with_diff(teacher)[0]
        t_d = t_d / t_d.mean()
        d, diff, i, j = pdist_with_diff(student)
        mu = d.mean()
        err = d / mu - t_d
        ctx.save_for_backward(student, d, diff, i, j, mu, err)
        return err.pow(2).mean()

    @staticmethod
    def backward(ctx, grad_output):
        student, d, diff, i, j, mu, err = ctx.saved_tensors
        g = grad_output * 2 * err / err.numel()
        gd = g / mu
        g_diff = (gd / d).unsqueeze(1) * diff
        grad_student = torch.zeros_like(student)
        grad_student.index_add_(0, i, g_diff)
        grad_student.index_add_(0, j, -g_diff)
        return grad_student, None


def erased_frames(x):
    return torch.where(FRAMES[:, None], x.mean((1, 2), keepdim=True), x)


class ErasedFramesFunction(Function):
    @staticmethod
    def forward(ctx, x):
        return erased_frames(x)

    @staticmethod
    def backward(ctx, g):
        erased = FRAMES[:, None]
        return g * ~erased + (g * erased).mean((1, 2), keepdim=True)


class TimeMaskMeanFill(Function):
    """SpecAugment: the masked frames get the mean of the spectrogram."""

    @staticmethod
    def forward(ctx, spec):
        mean = spec.mean(dim=(1, 2), keepdim=True)
        ctx.numel = spec[0].numel()
        out = spec.clone()
        out[:, FRAMES] = mean
        return out

    @staticmethod
    def backward(ctx, grad_out):
        grad = grad_out.clone()
        masked = grad[:, FRAMES]
        grad[:, FRAMES] = 0
        grad += masked.sum() / ctx.numel
        return grad


OPERATIONS = [
    Operation(
        "distances over their mean, mean as a constant",
        RelativeDistancesFunction,
        RKDDistance,
        relative_distances,
        lambda: {"student": torch.randn(5, 3), "teacher": torch.randn(5, 2)},
        named="the mean distance depends on the student too, and its part of the quotient rule is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"constant", r"\bmu\b|mean"),
        located=(r"gradient of student\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "erased frames get the mean, sum over the batch",
        ErasedFramesFunction,
        TimeMaskMeanFill,
        erased_frames,
        lambda: {"x": torch.randn(3, 6, 4)},
        named="each example has a mean of its own, and the erased frames' gradients are added over the batch",
        kinds=("wrong sum", "summed over the batch"),
        named_words=(r"sum", r"batch|dimension", r"keepdim"),
        located=(r"gradient of (x|spec)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
