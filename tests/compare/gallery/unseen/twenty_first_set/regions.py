"""Regions: scores with soft targets, boxes far from their targets."""

from __future__ import annotations

import torch
from torch.autograd import Function
from torch.nn.functional import softplus

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

QUALITY = torch.tensor([[0.0, 0.8, 0.0], [0.35, 0.0, 0.6], [0.0, 0.0, 0.0], [0.9, 0.2, 0.0]])


def quality_loss(logits):
    y = QUALITY.to(logits)
    return ((y - logits.sigmoid()) ** 2 * (softplus(logits) - y * logits)).sum(1)


class QualityFunction(Function):
    @staticmethod
    def forward(ctx, logits):
        ctx.save_for_backward(logits)
        return quality_loss(logits)

    @staticmethod
    def backward(ctx, g):
        (logits,) = ctx.saved_tensors
        y, p = QUALITY.to(logits), logits.sigmoid()
        entropy = softplus(logits) - y * logits
        return g[:, None] * (p - y) * ((p - y) ** 2 + 2 * p * (1 - p) * entropy)


class QualityFocalLoss(Function):
    @staticmethod
    def forward(ctx, pred):
        score = QUALITY.to(pred)
        pred_sigmoid = pred.sigmoid()
        scale_factor = (score - pred_sigmoid).abs()
        bce = pred.clamp(min=0) - pred * score + torch.log1p(torch.exp(-pred.abs()))
        ctx.save_for_backward(pred_sigmoid, score, scale_factor)
        return (bce * scale_factor.pow(2)).sum(dim=1)

    @staticmethod
    def backward(ctx, grad_output):
        pred_sigmoid, score, scale_factor = ctx.saved_tensors
        grad_pred = scale_factor.pow(2) * (pred_sigmoid - score)
        return grad_output[:, None] * grad_pred


def distance_overlap_loss(boxes, targets):
    low, high = torch.maximum(boxes[:, :2], targets[:, :2]), torch.minimum(boxes[:, 2:], targets[:, 2:])
    common = (high - low).clamp(min=0).prod(1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (targets[:, 2:] - targets[:, :2]).prod(1) - common
    apart = (boxes[:, :2] + boxes[:, 2:] - targets[:, :2] - targets[:, 2:]) / 2
    hull = torch.maximum(boxes[:, 2:], targets[:, 2:]) - torch.minimum(boxes[:, :2], targets[:, :2])
    return 1 - common / area + (apart**2).sum(1) / (hull**2).sum(1)


class DIoULoss(Function):
    """1 - IoU + d^2 / c^2 for boxes x1 y1 x2 y2; the targets are constants."""

    @staticmethod
    def forward(ctx, pred, target):
        lt = torch.max(pred[:, :2], target[:, :2])
        rb = torch.min(pred[:, 2:], target[:, 2:])
        wh = (rb - lt).clamp(min=0)
        inter = wh[:, 0] * wh[:, 1]
        size_p, size_t = pred[:, 2:] - pred[:, :2], target[:, 2:] - target[:, :2]
        union = size_p[:, 0] * size_p[:, 1] + size_t[:, 0] * size_t[:, 1] - inter
        delta = (pred[:, :2] + pred[:, 2:] - target[:, :2] - target[:, 2:]) / 2
        enclose = torch.max(pred[:, 2:], target[:, 2:]) - torch.min(pred[:, :2], target[:, :2])
        d2, c2 = (delta * delta).sum(1), (enclose * enclose).sum(1)
        ctx.save_for_backward(pred, target, wh, inter, union, delta, enclose, d2, c2)
        return 1 - inter / union + d2 / c2

    @staticmethod
    def backward(ctx, grad_loss):
        pred, target, wh, inter, union, delta, enclose, d2, c2 = ctx.saved_tensors
        lt_inside = (pred[:, :2] > target[:, :2]).to(pred)
        rb_inside = (pred[:, 2:] < target[:, 2:]).to(pred)
        other = wh.flip(1)
        d_inter = torch.cat([-lt_inside * other, rb_inside * other], dim=1)
        size = (pred[:, 2:] - pred[:, :2]).flip(1)
        d_union = torch.cat([-size, size], dim=1) - d_inter
        d_iou = (d_inter * union[:, None] - inter[:, None] * d_union) / union[:, None] ** 2
        d_d2 = delta.repeat(1, 2)
        d_c2 = torch.cat([-2 * enclose * (1 - lt_inside), 2 * enclose * (1 - rb_inside)], dim=1)
        d_penalty = (d_d2 * c2[:, None] - d2[:, None] * d_c2) / c2[:, None] ** 2
        return grad_loss[:, None] * (d_penalty - d_iou), None


def make_boxes():
    corner, place = torch.randn(8, 2), torch.randn(8, 2)
    boxes = torch.cat([corner, corner + 0.5 + torch.rand(8, 2)], 1)
    return {"boxes": boxes, "targets": torch.cat([place, place + 0.5 + torch.rand(8, 2)], 1)}


def distance_overlap_of_constants(boxes, targets):
    return distance_overlap_loss(boxes, targets.detach())


OPERATIONS = [
    Operation(
        "scores with soft targets, the focal factor as a constant",
        QualityFunction,
        QualityFocalLoss,
        quality_loss,
        lambda: {"logits": torch.randn(4, 3)},
        named="the focal factor depends on the scores, and the product rule's second term is missing",
        kinds=("missing term",),
        named_words=(r"missing|product rule|second term", r"scale_factor|focal|factor", r"bce|entropy"),
        located=(r"gradient of (logits|pred)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "boxes and the distance of their centres, boxes apart in one direction",
            DIoULoss.apply,
            distance_overlap_of_constants,
            make_boxes,
            whole_numbers=False,
        ),
        named="a side of the intersection that is cut at 0 gets a gradient as if it were not cut",
        kinds=("only for some values", "step left out", "missing term", "another operand"),
        named_words=(r"clamp|cut|\bmask", r"intersection|d_inter|\bwh\b|\bother\b", r"disjoint|apart|overlap"),
        located=(r"gradient of (boxes|pred)\b",),
    ),
]
