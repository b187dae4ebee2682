"""Alignments: labels without times, rows of unequal length side by side, values in the place of missing ones."""

from __future__ import annotations

import torch
from torch.autograd import Function
from torch.nn.functional import pad

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

EXTENDED = torch.tensor([0, 1, 0, 2, 0, 2, 0])  # the labels 1, 2, 2 with blanks between
MAY_SKIP = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
LENGTHS, LONGEST = (2, 4, 1, 3), 3
MISSING = torch.tensor([[0, 1, 1], [0, 0, 1], [1, 0, 0], [0, 0, 1]], dtype=torch.bool)


def label_paths(p):
    """Probability of all paths that end in each state of EXTENDED, at every time."""
    alpha = pad(p[:, 0, EXTENDED[:2]], (0, len(EXTENDED) - 2))
    steps = [alpha]
    for t in range(1, p.size(1)):
        alpha = alpha + pad(alpha, (1, 0))[:, :-1] + MAY_SKIP.to(p) * pad(alpha, (2, 0))[:, :-2]
        alpha = alpha * p[:, t, EXTENDED]
        steps.append(alpha)
    return torch.stack(steps, 1)


def label_loss(logits):
    return -label_paths(logits.softmax(2))[:, -1, -2:].sum(1).log()


class LabelLossFunction(Function):
    @staticmethod
    def forward(ctx, logits):
        ctx.save_for_backward(logits)
        return label_loss(logits)

    @staticmethod
    def backward(ctx, g):
        (logits,) = ctx.saved_tensors
        p = logits.softmax(2)
        paths = label_paths(p)
        to_p = torch.zeros_like(p)
        to_paths = torch.zeros_like(paths[:, 0])
        to_paths[:, -2:] = (-g / paths[:, -1, -2:].sum(1))[:, None]
        for t in range(p.size(1) - 1, -1, -1):
            emitted = p[:, t, EXTENDED]
            before = paths[:, t - 1] if t else None
            if t:
                arrived = before + pad(before, (1, 0))[:, :-1] + MAY_SKIP.to(p) * pad(before, (2, 0))[:, :-2]
            else:
                arrived = pad(torch.ones_like(emitted[:, :2]), (0, len(EXTENDED) - 2))
            to_p[:, t] = to_p[:, t].index_add(1, EXTENDED, to_paths * arrived)
            spread = to_paths * emitted
            to_paths = spread + pad(spread, (0, 1))[:, 1:] + pad(MAY_SKIP.to(p) * spread, (0, 2))[:, 2:]
        return p * (to_p - (to_p * p).sum(2, keepdim=True))


class CTCLoss(Function):
    """Connectionist temporal classification for one label sequence, by the forward-backward algorithm."""

    @staticmethod
    def forward(ctx, logits):
        probs = torch.softmax(logits, dim=-1)
        alpha = label_paths(probs)
        Z = alpha[:, -1, -1] + alpha[:, -1, -2]
        ctx.save_for_backward(probs, alpha, Z)
        return -torch.log(Z)

    @staticmethod
    def backward(ctx, grad_loss):
        probs, alpha, Z = ctx.saved_tensors
        B, T, _ = probs.shape
        S = len(EXTENDED)
        beta = torch.zeros_like(alpha)
        beta[:, T - 1, S - 1] = beta[:, T - 1, S - 2] = 1
        for t in range(T - 2, -1, -1):
            nxt = beta[:, t + 1] * probs[:, t + 1, EXTENDED]
            beta[:, t] = nxt
            beta[:, t, :-1] += nxt[:, 1:]
            beta[:, t, :-2] += (MAY_SKIP.to(probs) * nxt)[:, 2:]
        posterior = alpha * beta / Z.view(B, 1, 1)
        grad_logits = probs.clone()
        grad_logits[:, :, EXTENDED] -= posterior
        return grad_logits * grad_loss.view(B, 1, 1)


def side_by_side(values, scale):
    rows = torch.split(values, LENGTHS)
    return torch.stack(
        [pad(row[:LONGEST] * scale[: len(row)], (0, 0, 0, max(LONGEST - len(row), 0))) for row in rows]
    )


class JaggedToPadded(Function):
    """Packed rows to a padded batch, cut at a maximal length, with a learned scale for each position."""

    @staticmethod
    def forward(ctx, values, scale):
        lengths = torch.tensor(LENGTHS, device=values.device)
        offsets = torch.cumsum(lengths, 0) - lengths
        out = values.new_zeros(len(LENGTHS), LONGEST, values.size(1))
        lengths = lengths.clamp(max=LONGEST)
        for b, (start, n) in enumerate(zip(offsets.tolist(), lengths.tolist(), strict=True)):
            out[b, :n] = values[start : start + n] * scale[:n]
        ctx.save_for_backward(values, scale, lengths)
        return out

    @staticmethod
    def backward(ctx, grad_padded):
        values, scale, lengths = ctx.saved_tensors
        offsets = torch.cumsum(lengths, 0) - lengths
        grad_values, grad_scale = torch.zeros_like(values), torch.zeros_like(scale)
        for b, (start, n) in enumerate(zip(offsets.tolist(), lengths.tolist(), strict=True)):
            grad_values[start : start + n] = grad_padded[b, :n] * scale[:n]
            grad_scale[:n] += grad_padded[b, :n] * values[start : start + n]
        return grad_values, grad_scale


def filled_in(x, filler):
    places = (MISSING.flatten().cumsum(0) - 1).clamp(min=0).view_as(x)
    return torch.where(MISSING, filler[places], x)


class MaskedCopy(Function):
    """Write the elements of filler, in their order, where the mask is set."""

    @staticmethod
    def forward(ctx, x, filler):
        ctx.filler_size = filler.numel()
        return x.masked_scatter(MISSING, filler)

    @staticmethod
    def backward(ctx, grad_output):
        grad_x = grad_output.masked_fill(MISSING, 0)
        grad_filler = grad_output.masked_fill(~MISSING, 0).view(-1)[: ctx.filler_size]
        return grad_x, grad_filler


OPERATIONS = [
    Operation(
        "labels without times, blanks counted once",
        LabelLossFunction,
        CTCLoss,
        label_loss,
        lambda: {"logits": torch.randn(2, 6, 4)},
        named="several states have the same label, and only the last of them is subtracted, not their sum",
        kinds=("missing term", "only at some indices", "another operand"),
        named_words=(r"EXTENDED", r"index_add|scatter_add|accumulat|repeated|several|overwr"),
        located=(r"gradient of logits\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "rows side by side, offsets of the cut rows",
            JaggedToPadded.apply,
            side_by_side,
            lambda: {"values": torch.randn(sum(LENGTHS), 2), "scale": torch.randn(LONGEST, 2)},
        ),
        named="backward counts the places of the rows with their cut lengths, forward with their own",
        kinds=("permuted", "only at some indices", "another operand"),
        named_words=(r"lengths", r"offsets?", r"clamp"),
        located=(r"gradient of values\b", r"gradient of scale\b"),
    ),
    WrongFunction(
        Case(
            "values in the place of missing ones, order of the filler",
            MaskedCopy.apply,
            filled_in,
            lambda: {"x": torch.randn(4, 3), "filler": torch.randn(7)},
        ),
        named="filler: its elements are taken one after another, and their gradients stand at the mask's places",
        kinds=("permuted", "only at some indices", "another operand", "missing term"),
        named_words=(r"permut|in another order", r"grad_output\[MISSING\]|masked_select", r"MISSING"),
        located=(r"gradient of filler\b",),
    ),
]
