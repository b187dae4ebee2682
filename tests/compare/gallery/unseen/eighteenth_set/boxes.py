"""Losses of detectors: distances of centres, shapes of boxes, quality of a score, distributions of an edge."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

BINS = 5
BETA = 2.0


def make_boxes():
    corner = torch.rand(6, 2)
    box = torch.cat([corner, corner + 0.5 + torch.rand(6, 2)], 1)
    other = torch.rand(6, 2)
    return {"box": box, "target": torch.cat([other, other + 0.5 + torch.rand(6, 2)], 1)}


def distance_of_centres(box, target):
    centres = (box[:, :2] + box[:, 2:] - target[:, :2] - target[:, 2:]) / 2
    hull = torch.maximum(box[:, 2:], target[:, 2:]) - torch.minimum(box[:, :2], target[:, :2])
    return centres.square().sum(1) / hull.square().sum(1)


class CentresFunction(Function):
    @staticmethod
    def forward(ctx, box, target):
        ctx.save_for_backward(box, target)
        return distance_of_centres(box, target)

    @staticmethod
    def backward(ctx, g):
        box, target = ctx.saved_tensors
        centres = (box[:, :2] + box[:, 2:] - target[:, :2] - target[:, 2:]) / 2
        hull = torch.maximum(box[:, 2:], target[:, 2:]) - torch.minimum(box[:, :2], target[:, :2])
        size = hull.square().sum(1, keepdim=True)
        g = g[:, None]
        to_centre = g * centres / size
        to_hull = -2 * g * hull * centres.square().sum(1, keepdim=True) / size.square()
        low, high = box[:, :2] < target[:, :2], box[:, 2:] > target[:, 2:]
        return (
            torch.cat([to_centre - to_hull * low, to_centre + to_hull * high], 1),
            torch.cat([-to_centre - to_hull * ~low, -to_centre + to_hull * ~high], 1),
        )


class DIoUPenalty(Function):
    """rho^2 / c^2 of DIoU: squared distance of the centres over the squared diagonal of the enclosing box."""

    @staticmethod
    def forward(ctx, pred, gt):
        px, py = (pred[:, 0] + pred[:, 2]) / 2, (pred[:, 1] + pred[:, 3]) / 2
        tx, ty = (gt[:, 0] + gt[:, 2]) / 2, (gt[:, 1] + gt[:, 3]) / 2
        dx, dy = px - tx, py - ty
        cw = torch.max(pred[:, 2], gt[:, 2]) - torch.min(pred[:, 0], gt[:, 0])
        ch = torch.max(pred[:, 3], gt[:, 3]) - torch.min(pred[:, 1], gt[:, 1])
        rho2, c2 = dx**2 + dy**2, cw**2 + ch**2
        ctx.save_for_backward(dx, dy, c2)
        return rho2 / c2

    @staticmethod
    def backward(ctx, grad):
        dx, dy, c2 = ctx.saved_tensors
        gx = grad * dx / c2
        gy = grad * dy / c2
        grad_pred = torch.stack([gx, gy, gx, gy], dim=1)
        return grad_pred, -grad_pred


def shape_penalty(size, target):
    v = 4 / math.pi**2 * (torch.atan(target[:, 0] / target[:, 1]) - torch.atan(size[:, 0] / size[:, 1])).square()
    overlap = torch.minimum(size, target).prod(1)
    iou = overlap / (size.prod(1) + target.prod(1) - overlap)
    return (v / (1 - iou + v)).detach() * v


class ShapePenaltyFunction(Function):
    @staticmethod
    def forward(ctx, size, target):
        difference = torch.atan(target[:, 0] / target[:, 1]) - torch.atan(size[:, 0] / size[:, 1])
        v = 4 / math.pi**2 * difference.square()
        overlap = torch.minimum(size, target).prod(1)
        iou = overlap / (size.prod(1) + target.prod(1) - overlap)
        weight = v / (1 - iou + v)
        ctx.save_for_backward(size, target, difference, weight)
        return weight * v

    @staticmethod
    def backward(ctx, g):
        size, target, difference, weight = ctx.saved_tensors
        to_angle = (g * weight * difference * 8 / math.pi**2)[:, None]
        own = torch.stack([-size[:, 1], size[:, 0]], 1) / size.square().sum(1, keepdim=True)
        other = torch.stack([target[:, 1], -target[:, 0]], 1) / target.square().sum(1, keepdim=True)
        return to_angle * own, to_angle * other


class CIoUAspect(Function):
    """alpha * v of CIoU for boxes with a common centre; alpha is a constant."""

    @staticmethod
    def forward(ctx, wh, wh_gt):
        w, h = wh.unbind(1)
        w_gt, h_gt = wh_gt.unbind(1)
        diff = torch.atan(w_gt / h_gt) - torch.atan(w / h)
        v = (4 / math.pi**2) * diff**2
        inter = torch.min(w, w_gt) * torch.min(h, h_gt)
        iou = inter / (w * h + w_gt * h_gt - inter)
        alpha = v / (1 - iou + v)
        ctx.save_for_backward(wh, wh_gt, diff, alpha)
        return alpha * v

    @staticmethod
    def backward(ctx, grad_output):
        wh, wh_gt, diff, alpha = ctx.saved_tensors
        common = grad_output * alpha * 8 / math.pi**2 * diff
        w, h = wh.unbind(1)
        dv_dw = common * h / (w**2 + h**2)
        dv_dh = -common * w / (w**2 + h**2)
        w, h = wh_gt.unbind(1)
        dv_dw_gt = common * h / (w**2 + h**2)
        dv_dh_gt = -common * w / (w**2 + h**2)
        return torch.stack([dv_dw, dv_dh], 1), torch.stack([dv_dw_gt, dv_dh_gt], 1)


def quality_loss(logits, quality):
    loss = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return loss * (quality - torch.sigmoid(logits)).abs() ** BETA


class QualityFocalLoss(Function):
    """|y - sigma|^beta * BCE(x, y), for soft labels y that are IoUs."""

    @staticmethod
    def forward(ctx, x, y):
        sigma = torch.sigmoid(x)
        bce = F.softplus(x) - x * y
        ctx.save_for_backward(x, y, sigma, bce)
        return (y - sigma).abs().pow(BETA) * bce

    @staticmethod
    def backward(ctx, grad):
        x, y, sigma, bce = ctx.saved_tensors
        dist = (y - sigma).abs()
        modulating = dist.pow(BETA)
        dmod = BETA * dist.pow(BETA - 1) * sigma * (1 - sigma)
        grad_x = grad * (modulating * (sigma - y) + dmod * bce)
        grad_y = grad * (BETA * dist.pow(BETA - 1) * (y - sigma).sign() * bce - modulating * x)
        return grad_x, grad_y


OPERATIONS = [
    Operation(
        "distance of centres over the hull, hull as a constant",
        CentresFunction,
        DIoUPenalty,
        distance_of_centres,
        make_boxes,
        named="the hull's diagonal depends on the boxes, and its part of the quotient rule is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"constant", r"c2|hull"),
        located=(r"gradients? of .*\b(box|pred|target|gt)\b",),
        options={"kinks": True, "whole_numbers": False},
    ),
    Operation(
        "shape of boxes, sign of the predicted one",
        ShapePenaltyFunction,
        CIoUAspect,
        shape_penalty,
        lambda: {"size": 0.5 + torch.rand(6, 2), "target": 0.5 + torch.rand(6, 2)},
        named="the predicted box's angle is subtracted, so its gradient has the other sign",
        kinds=("constant factor", "factor of one term", "another operand"),
        named_words=(r"-1|negat|sign|minus", r"-common", r"factor"),
        located=(r"gradient of (size|wh)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)


def edge_loss(logits, place):
    left = place.floor().clamp(max=BINS - 1)
    right = (left + 1).clamp(max=BINS - 1)
    log = logits.log_softmax(1)
    losses = [-log.gather(1, n.long()[:, None]).squeeze(1) for n in (left, right)]
    return (left + 1 - place) * losses[0] + (place - left) * losses[1]


class DistributionFocalLoss(Function):
    """Cross-entropy of the two bins beside the target, weighted by the distances; places after the last bin clamp."""

    @staticmethod
    def forward(ctx, pred, target):
        left = target.long().clamp(max=BINS - 1)
        right = (left + 1).clamp(max=BINS - 1)
        wl = left + 1 - target
        wr = target - left
        logp = torch.log_softmax(pred, dim=1)
        rows = torch.arange(pred.shape[0], device=pred.device)
        ctx.save_for_backward(logp, rows, left, right, wl, wr)
        return -(wl * logp[rows, left] + wr * logp[rows, right])

    @staticmethod
    def backward(ctx, grad):
        logp, rows, left, right, wl, wr = ctx.saved_tensors
        onehot = torch.zeros_like(logp)
        onehot[rows, left] = wl
        onehot[rows, right] = wr
        grad_pred = (torch.exp(logp) - onehot) * grad.unsqueeze(1)
        grad_target = grad * (logp[rows, left] - logp[rows, right])
        return grad_pred, grad_target


WRONG += [
    WrongFunction(
        Case(
            "score with a quality, sign of the distance",
            QualityFocalLoss.apply,
            quality_loss,
            lambda: {"logits": torch.randn(5, 4), "quality": torch.rand(5, 4)},
            kinks=True,
            whole_numbers=False,
        ),
        named="the derivative of the absolute distance is its sign, which the score's gradient lacks",
        kinds=("step left out", "factor by element", "only for some values", "factor of one term"),
        named_words=(r"abs|sign", r"y - sigma|sigma - y", r"-1|negat"),
        located=(r"gradient of (logits|x)\b",),
    ),
    WrongFunction(
        Case(
            "distribution of an edge, last bin twice",
            DistributionFocalLoss.apply,
            edge_loss,
            lambda: {"logits": torch.randn(8, BINS), "place": torch.rand(8) * (BINS - 0.1)},
            whole_numbers=False,
        ),
        named="in the last bin both neighbours are the same, and the second weight overwrites the first",
        kinds=("missing term", "only at some indices", "only for some values", "few elements"),
        named_words=(r"overwrit|assign|accumulat|\+=", r"onehot", r"\blast\b|\bbins?\b"),
        located=(r"gradient of (logits|pred)\b",),
    ),
]
