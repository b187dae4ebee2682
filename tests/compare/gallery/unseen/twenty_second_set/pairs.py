"""Pairs: a transport distance over directions, distances to proxies of classes, products of anchors and positives."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

ANGLES = torch.linspace(0.1, 2.9, 5)
DIRECTIONS = torch.stack([ANGLES.cos(), ANGLES.sin()])
EPS = 1e-6
TEMPERATURE = 0.5
PENALTY = 0.1


def sliced_distance(x, y):
    directions = DIRECTIONS.to(x)
    ordered = [(each @ directions).sort(dim=0, stable=True).values for each in (x, y)]
    return (ordered[0] - ordered[1]).square().mean()


class SlicedDistanceFunction(Function):
    @staticmethod
    def forward(ctx, x, y):
        directions = DIRECTIONS.to(x)
        ordered, places = zip(*[(each @ directions).sort(dim=0, stable=True) for each in (x, y)], strict=True)
        difference = ordered[0] - ordered[1]
        ctx.save_for_backward(directions, difference, *places)
        return difference.square().mean()

    @staticmethod
    def backward(ctx, g):
        directions, difference, *places = ctx.saved_tensors
        to_ordered = 2 * g * difference / difference.numel()
        to_projected = [torch.zeros_like(difference).scatter(0, each, to_ordered) for each in places]
        return to_projected[0] @ directions.mT, -to_projected[1] @ directions.mT


class SlicedWasserstein(Function):
    """SW_2^2 between two point clouds of the same size, over fixed projections."""

    @staticmethod
    def forward(ctx, x, y):
        theta = DIRECTIONS.to(device=x.device, dtype=x.dtype)
        x_sorted, x_idx = torch.sort(x @ theta, dim=0, stable=True)
        y_sorted, y_idx = torch.sort(y @ theta, dim=0, stable=True)
        diff = x_sorted - y_sorted
        ctx.save_for_backward(diff, x_idx, y_idx, theta)
        return (diff**2).mean()

    @staticmethod
    def backward(ctx, grad_output):
        diff, x_idx, y_idx, theta = ctx.saved_tensors
        grad_diff = grad_output * 2 * diff / diff.numel()
        # undo the sorting
        grad_xp = torch.gather(grad_diff, 0, x_idx)
        grad_yp = -torch.gather(grad_diff, 0, y_idx)
        return grad_xp @ theta.t(), grad_yp @ theta.t()


def unit(x):
    return x / (x.square().sum(1, keepdim=True) + EPS).sqrt()


def proxy_loss(x, proxies, labels):
    distances = (unit(x).unsqueeze(1) - unit(proxies)).square().sum(2)
    scores = -distances / TEMPERATURE
    return torch.nn.functional.cross_entropy(scores, labels)


class ProxyLossFunction(Function):
    @staticmethod
    def forward(ctx, x, proxies, labels):
        lengths = [(each.square().sum(1, keepdim=True) + EPS).sqrt() for each in (x, proxies)]
        u, v = x / lengths[0], proxies / lengths[1]
        scores = -(u.unsqueeze(1) - v).square().sum(2) / TEMPERATURE
        logs = scores - scores.logsumexp(1, keepdim=True)
        ctx.save_for_backward(u, v, *lengths, logs, labels)
        return -logs.gather(1, labels.unsqueeze(1)).mean()

    @staticmethod
    def backward(ctx, g):
        u, v, length_u, length_v, logs, labels = ctx.saved_tensors
        wanted = torch.zeros_like(logs).scatter(1, labels.unsqueeze(1), 1)
        to_distances = g * (wanted - logs.exp()) / TEMPERATURE / labels.numel()
        between = u.unsqueeze(1) - v
        to_between = 2 * to_distances.unsqueeze(2) * between
        to_u, to_v = to_between.sum(1), -to_between.sum(0)
        to_x = (to_u - u * (to_u * u).sum(1, keepdim=True)) / length_u
        to_proxies = (to_v - v * (to_v * v).sum(1, keepdim=True)) / length_v
        return to_x, to_proxies, None


class ProxyNCA(Function):
    """Proxy-NCA++ (Teh et al. 2020): softmax over negative squared distances of unit vectors."""

    @staticmethod
    def forward(ctx, x, proxies, labels):
        x_norm = torch.sqrt((x**2).sum(dim=1, keepdim=True) + EPS)
        p_norm = torch.sqrt((proxies**2).sum(dim=1, keepdim=True) + EPS)
        xn = x / x_norm
        pn = proxies / p_norm
        dist = ((xn[:, None, :] - pn[None, :, :]) ** 2).sum(dim=-1)
        prob = torch.softmax(-dist / TEMPERATURE, dim=1)
        ctx.save_for_backward(xn, pn, x_norm, p_norm, prob, labels)
        log_prob = torch.log_softmax(-dist / TEMPERATURE, dim=1)
        return -log_prob[torch.arange(len(labels), device=labels.device), labels].mean()

    @staticmethod
    def backward(ctx, grad_output):
        xn, pn, x_norm, p_norm, prob, labels = ctx.saved_tensors
        N = labels.size(0)
        d_logit = prob.clone()
        d_logit[torch.arange(N, device=labels.device), labels] -= 1
        d_dist = -d_logit / TEMPERATURE / N * grad_output
        # dist = |xn|^2 + |pn|^2 - 2 xn.pn
        d_xn = 2 * (d_dist.sum(dim=1, keepdim=True) * xn - d_dist @ pn)
        d_pn = 2 * (d_dist.sum(dim=0).unsqueeze(1) * pn - d_dist.t() @ xn)
        return d_xn / x_norm, d_pn / p_norm, None


def anchors_loss(anchors, positives, labels):
    same = (labels.unsqueeze(1) == labels).to(anchors)
    wanted = same / same.sum(1, keepdim=True)
    logs = torch.log_softmax(anchors @ positives.mT, 1)
    sizes = anchors.square().sum(1) + positives.square().sum(1)
    return (PENALTY * sizes - (wanted * logs).sum(1)).mean()


class AnchorsLossFunction(Function):
    @staticmethod
    def forward(ctx, anchors, positives, labels):
        same = (labels.unsqueeze(1) == labels).to(anchors)
        wanted = same / same.sum(1, keepdim=True)
        logs = torch.log_softmax(anchors @ positives.mT, 1)
        ctx.save_for_backward(anchors, positives, wanted, logs)
        sizes = anchors.square().sum(1) + positives.square().sum(1)
        return (PENALTY * sizes - (wanted * logs).sum(1)).mean()

    @staticmethod
    def backward(ctx, g):
        anchors, positives, wanted, logs = ctx.saved_tensors
        g = g / len(anchors)
        to_products = g * (logs.exp() - wanted)
        to_anchors = to_products @ positives + 2 * PENALTY * g * anchors
        to_positives = to_products.mT @ anchors + 2 * PENALTY * g * positives
        return to_anchors, to_positives, None


class NPairLoss(Function):
    """N-pair loss (Sohn 2016) with L2 regularisation of the embeddings."""

    @staticmethod
    def forward(ctx, anchor, positive, target):
        batch = anchor.size(0)
        target = target.view(-1, 1)
        target = (target == target.t()).to(anchor.dtype)
        target = target / target.sum(dim=1, keepdim=True)
        logit = torch.matmul(anchor, positive.t())
        log_p = logit.log_softmax(dim=1)
        ce = -(target * log_p).sum() / batch
        l2 = (anchor.pow(2).sum() + positive.pow(2).sum()) / batch
        ctx.save_for_backward(anchor, positive, target, log_p)
        return ce + PENALTY * l2

    @staticmethod
    def backward(ctx, grad_output):
        anchor, positive, target, log_p = ctx.saved_tensors
        batch = anchor.size(0)
        grad_logit = grad_output * (log_p.exp() - target) / batch
        grad_anchor = torch.matmul(grad_logit, positive)
        grad_positive = torch.matmul(grad_logit, anchor)
        grad_anchor = grad_anchor + grad_output * 2 * PENALTY * anchor / batch
        grad_positive = grad_positive + grad_output * 2 * PENALTY * positive / batch
        return grad_anchor, grad_positive, None


OPERATIONS = [
    Operation(
        "transport over directions, order undone by gathering",
        SlicedDistanceFunction,
        SlicedWasserstein,
        sliced_distance,
        lambda: {"x": torch.randn(5, 2), "y": torch.randn(5, 2)},
        named="the gradient of the sorted values is gathered at the places of the sort, where it must be scattered",
        kinds=("permuted", "another operand", "step left out"),
        named_words=(r"permut|scatter|gather|order|places", r"invers|argsort"),
        located=(r"gradient of x\b", r"gradient of y\b"),
    ),
    Operation(
        "proxies of classes, length as a constant",
        ProxyLossFunction,
        ProxyNCA,
        proxy_loss,
        lambda: {"x": torch.randn(6, 3), "proxies": torch.randn(4, 3), "labels": torch.randint(4, (6,))},
        named="the gradients of x and of proxies lack the part through the length that divides them",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"constant", r"norm|unit|length|sqrt|\bdiv\b"),
        located=(r"gradient of x\b", r"gradient of proxies\b"),
    ),
    Operation(
        "anchors and positives, products not transposed",
        AnchorsLossFunction,
        NPairLoss,
        anchors_loss,
        lambda: {"anchors": torch.randn(5, 3), "positives": torch.randn(5, 3), "labels": torch.randint(3, (5,))},
        named="the gradient of the products is not transposed before it multiplies the anchors",
        kinds=("not transposed", "transposed", "another operand"),
        named_words=(r"transpos|\.t\(\)|\.mT|\.T\b",),
        located=(r"gradient of positives?\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
