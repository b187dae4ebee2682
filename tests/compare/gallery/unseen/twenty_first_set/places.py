"""Places: distance in the Poincaré ball, boxes from anchors and offsets."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def points_in_ball(count, size):
    direction = torch.nn.functional.normalize(torch.randn(count, size), dim=1)
    return direction * (0.2 + 0.6 * torch.rand(count, 1))


def poincare_distance(x, y):
    square = (x - y).square().sum(-1)
    return torch.acosh(1 + 2 * square / ((1 - x.square().sum(-1)) * (1 - y.square().sum(-1))))


class DistanceInBallFunction(Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return poincare_distance(x, y)

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        a, b = 1 - x.square().sum(-1, keepdim=True), 1 - y.square().sum(-1, keepdim=True)
        ratio = 2 * (x - y).square().sum(-1, keepdim=True) / (a * b)
        g = g[..., None] / (ratio * (ratio + 2)).sqrt()
        pull = 4 * (x - y) / (a * b)
        return g * (pull + 2 * ratio * x / a), g * (2 * ratio * y / b - pull)


def gradient_of_first(u, v, alpha, beta, gamma):
    # Nickel & Kiela 2017, eq. (4)
    scale = 4 / (beta * torch.sqrt(gamma**2 - 1))
    along = (v.pow(2).sum(-1) - 2 * (u * v).sum(-1) + 1) / alpha**2
    return scale.unsqueeze(-1) * (along.unsqueeze(-1) * u - v / alpha.unsqueeze(-1))


class PoincareDistance(Function):
    @staticmethod
    def forward(ctx, u, v):
        alpha = 1 - u.pow(2).sum(-1)
        beta = 1 - v.pow(2).sum(-1)
        gamma = 1 + 2 * (u - v).pow(2).sum(-1) / (alpha * beta)
        ctx.save_for_backward(u, v, alpha, beta, gamma)
        return torch.log(gamma + torch.sqrt(gamma**2 - 1))

    @staticmethod
    def backward(ctx, grad):
        u, v, alpha, beta, gamma = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        grad_u = grad * gradient_of_first(u, v, alpha, beta, gamma)
        grad_v = grad * gradient_of_first(v, u, alpha, beta, gamma)
        return grad_u, grad_v


def boxes_from_anchors(deltas, anchors):
    size = anchors[:, 2:] * deltas[:, 2:].exp()
    centre = anchors[:, :2] + deltas[:, :2] * anchors[:, 2:]
    return torch.cat([centre - size / 2, centre + size / 2], 1)


class DecodeBoxes(Function):
    """(dx, dy, dw, dh) on anchors (cx, cy, w, h) to corners (x1, y1, x2, y2)."""

    @staticmethod
    def forward(ctx, deltas, anchors):
        shift, log_scale = deltas.chunk(2, dim=1)
        base = anchors[:, 2:]
        wh = base * torch.exp(log_scale)
        xy = anchors[:, :2] + shift * base
        ctx.save_for_backward(shift, log_scale, base)
        return torch.cat((xy - 0.5 * wh, xy + 0.5 * wh), dim=1)

    @staticmethod
    def backward(ctx, grad_boxes):
        shift, log_scale, base = ctx.saved_tensors
        low, high = grad_boxes.chunk(2, dim=1)
        grad_xy = low.add_(high)
        grad_wh = 0.5 * (high - low)
        scale = torch.exp(log_scale)
        grad_deltas = torch.cat((grad_xy * base, grad_wh * base * scale), dim=1)
        grad_anchors = torch.cat((grad_xy, grad_xy * shift + grad_wh * scale), dim=1)
        return grad_deltas, grad_anchors


OPERATIONS = [
    Operation(
        "distance in the hyperbolic ball, conformal factors of the other point",
        DistanceInBallFunction,
        PoincareDistance,
        poincare_distance,
        lambda: {"x": points_in_ball(6, 3), "y": points_in_ball(6, 3)},
        named="the second point's gradient comes from the first one's formula with alpha and beta not exchanged",
        kinds=("another operand", "swapped", "factor of one term", "factor by element"),
        named_words=(r"alpha|beta", r"exchanged|swapped"),
        located=(r"gradient of (y|v)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "boxes from anchors, sum of the gradients in place",
            DecodeBoxes.apply,
            boxes_from_anchors,
            lambda: {"deltas": 0.5 * torch.randn(6, 4), "anchors": 0.5 + torch.rand(6, 4)},
        ),
        named="add_ writes the sum of both corners' gradients into the incoming one, where the difference reads it",
        kinds=("changes the incoming gradient", "another operand", "missing term", "raises", "change of the source"),
        named_words=(r"add_", r"in.?place|clone", r"incoming gradient"),
        located=(r"gradients? of (deltas|anchors)\b|incoming gradient",),
    ),
]
