"""Losses of pairs: two views, sigmoids of all pairs, uniform directions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

TEMPERATURE = 0.5


def two_views(z):
    logits = z @ z.mT / TEMPERATURE
    logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(z) // 2))


class TwoViewsFunction(Function):
    @staticmethod
    def forward(ctx, z):
        logits = z @ z.mT / TEMPERATURE
        logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
        log = logits.log_softmax(1)
        partner = torch.arange(len(z)).roll(len(z) // 2)[:, None]
        ctx.save_for_backward(z, log, partner)
        return -log.gather(1, partner).mean()

    @staticmethod
    def backward(ctx, g):
        z, log, partner = ctx.saved_tensors
        to_logits = log.exp().scatter_add(1, partner, -torch.ones_like(partner).to(z)) * g / (len(z) * TEMPERATURE)
        return (to_logits + to_logits.mT) @ z


class NTXent(Function):
    """SimCLR loss of z = [view 1; view 2]."""

    @staticmethod
    def forward(ctx, z):
        n = z.shape[0]
        sim = torch.matmul(z, z.t()) / TEMPERATURE
        sim.fill_diagonal_(float("-inf"))
        pos = (torch.arange(n, device=z.device) + n // 2) % n
        prob = torch.softmax(sim, dim=1)
        ctx.save_for_backward(z, prob, pos)
        return F.nll_loss(torch.log_softmax(sim, dim=1), pos)

    @staticmethod
    def backward(ctx, grad_output):
        z, prob, pos = ctx.saved_tensors
        n = z.shape[0]
        grad_sim = prob.clone()
        grad_sim[torch.arange(n), pos] -= 1
        grad_sim = grad_sim * grad_output / (n * TEMPERATURE)
        return torch.matmul(grad_sim, z)


def sigmoid_pairs(image, text, log_scale, bias):
    logits = image @ text.mT * log_scale.exp() + bias
    signs = 2 * torch.eye(len(image), dtype=image.dtype) - 1
    return -F.logsigmoid(signs * logits).sum() / len(image)


class SigmoidPairsFunction(Function):
    @staticmethod
    def forward(ctx, image, text, log_scale, bias):
        signs = 2 * torch.eye(len(image), dtype=image.dtype) - 1
        cosines = image @ text.mT
        logits = cosines * log_scale.exp() + bias
        ctx.save_for_backward(image, text, log_scale, cosines, signs, logits)
        return -F.logsigmoid(signs * logits).sum() / len(image)

    @staticmethod
    def backward(ctx, g):
        image, text, log_scale, cosines, signs, logits = ctx.saved_tensors
        to_logits = -g * signs * torch.sigmoid(-signs * logits) / len(image)
        to_cosines = to_logits * log_scale.exp()
        return to_cosines @ text, to_cosines.mT @ image, (to_cosines * cosines).sum(), to_logits.sum()


class SigLIPLoss(Function):
    @staticmethod
    def forward(ctx, img, txt, t_prime, b):
        n = img.shape[0]
        t = t_prime.exp()
        dots = img @ txt.t()
        labels = -torch.ones_like(dots)
        labels.fill_diagonal_(1.0)
        z = labels * (t * dots + b)
        ctx.save_for_backward(img, txt, t, dots, labels, z)
        return F.softplus(-z).sum() / n

    @staticmethod
    def backward(ctx, grad_output):
        img, txt, t, dots, labels, z = ctx.saved_tensors
        dl = -labels * torch.sigmoid(-z) / img.shape[0] * grad_output
        d_img = t * dl @ txt
        d_txt = t * dl.t() @ img
        d_t = (dl * dots).sum()
        d_b = dl.sum()
        return d_img, d_txt, d_t, d_b


def uniformity(x):
    squares = (x[:, None] - x).square().sum(-1)
    i, j = torch.triu_indices(len(x), len(x), 1)
    return (-2 * squares[i, j]).exp().mean().log()


class UniformityFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return uniformity(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        difference = x[:, None] - x
        kernel = (-2 * difference.square().sum(-1)).exp().fill_diagonal_(0)
        return -8 * g * (kernel[..., None] * difference).sum(1) / kernel.sum()


class UniformLoss(Function):
    """Wang and Isola: log of the mean Gaussian potential of all pairs, with t = 2."""

    @staticmethod
    def forward(ctx, x):
        n = x.shape[0]
        i, j = torch.triu_indices(n, n, offset=1, device=x.device)
        diff = x[i] - x[j]
        pot = torch.exp(-2 * diff.pow(2).sum(dim=1))
        ctx.save_for_backward(x, i, j, diff, pot)
        return pot.mean().log()

    @staticmethod
    def backward(ctx, grad):
        x, i, j, diff, pot = ctx.saved_tensors
        per_pair = -4 * (pot / pot.numel()).unsqueeze(1) * diff * grad
        grad_x = torch.zeros_like(x)
        grad_x.index_add_(0, i, per_pair)
        grad_x.index_add_(0, j, -per_pair)
        return grad_x


OPERATIONS = [
    Operation(
        "two views in one batch, rows as partners",
        TwoViewsFunction,
        NTXent,
        two_views,
        lambda: {"z": torch.randn(6, 3)},
        named="each row is in the columns of the others' logits too, and that part of its gradient is missing",
        kinds=("missing term", "wrong half"),
        named_words=(r"missing", r"transpos|\.t\(\)|\.mT|\.T\b", r"symmetric"),
        located=(r"gradient of z\b",),
    ),
    Operation(
        "sigmoids of all pairs, exponential of the scale",
        SigmoidPairsFunction,
        SigLIPLoss,
        sigmoid_pairs,
        lambda: {
            "image": torch.randn(4, 3) / 2,
            "text": torch.randn(4, 3) / 2,
            "log_scale": 0.5 + torch.rand(()),
            "bias": -torch.rand(()),
        },
        named="the scale is an exponential, and its argument gets the gradient of the exponential itself",
        kinds=("step left out", "missing term", "factor by element", "another operand"),
        named_words=(r"exp\b", r"\bt \*|\* t\b", r"left out"),
        located=(r"gradient of (log_scale|t_prime)\b",),
    ),
    Operation(
        "uniform directions, derivative of the logarithm",
        UniformityFunction,
        UniformLoss,
        uniformity,
        lambda: {"x": torch.randn(5, 3) / 2},
        named="the mean's logarithm asks for a division by the mean, and only the number of pairs divides",
        kinds=("step left out", "wrong sum", "another operand", "factor by element"),
        named_words=(r"\blog\b", r"numel|number", r"pot\.sum|mean"),
        located=(r"gradient of x\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
