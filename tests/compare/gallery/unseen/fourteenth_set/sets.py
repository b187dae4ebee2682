"""Sets: spread of neighbours, a hypergraph, samples along a ray, valid points of a cloud."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

EPS = 0.1
SOURCE = torch.tensor([0, 1, 2, 3, 4, 0, 2, 3, 1])
TARGET = torch.tensor([1, 0, 0, 2, 2, 3, 3, 1, 2])
MEMBERS = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1], [0, 1, 0], [1, 0, 1]])
WIDTHS = torch.tensor([0.3, 0.2, 0.4, 0.25, 0.35])
VALID = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 1, 1, 1], [0, 1, 1, 0, 0]]).bool()


def neighbour_spread(x):
    count = torch.bincount(TARGET).to(x)[:, None]
    mean = x.new_zeros(len(count), x.shape[1]).index_add(0, TARGET, x[SOURCE]) / count
    square = x.new_zeros(len(count), x.shape[1]).index_add(0, TARGET, x[SOURCE] ** 2) / count
    return torch.sqrt(square - mean**2 + EPS)


class NeighbourStd(Function):
    @staticmethod
    def forward(ctx, x):
        deg = torch.bincount(TARGET).to(x.dtype).unsqueeze(1)
        messages = x[SOURCE]
        mean = torch.zeros(deg.size(0), x.size(1), dtype=x.dtype).index_add_(0, TARGET, messages) / deg
        sq_mean = torch.zeros(deg.size(0), x.size(1), dtype=x.dtype).index_add_(0, TARGET, messages**2) / deg
        std = (sq_mean - mean**2 + EPS).sqrt()
        ctx.save_for_backward(x, deg, std)
        return std

    @staticmethod
    def backward(ctx, grad_std):
        x, deg, std = ctx.saved_tensors
        grad_var = grad_std / (2 * std)
        grad_messages = (grad_var / deg)[TARGET] * 2 * x[SOURCE]
        return torch.zeros_like(x).index_add_(0, SOURCE, grad_messages)


def hypergraph(x, weight):
    members = MEMBERS.to(x)
    of_edges = members.T @ x / members.sum(0)[:, None]
    return members @ (weight[:, None] * of_edges) / (members @ weight)[:, None]


class HypergraphFunction(Function):
    @staticmethod
    def forward(ctx, x, weight):
        y = hypergraph(x, weight)
        ctx.save_for_backward(x, weight, y)
        return y

    @staticmethod
    def backward(ctx, g):
        x, weight, y = ctx.saved_tensors
        members = MEMBERS.to(x)
        size = members.sum(0)[:, None]
        to_edges = members.T @ (g / (members @ weight)[:, None])
        to_degree = -(g * y).sum(1) / (members @ weight)
        grad_weight = (to_edges * (members.T @ x / size)).sum(1) + members.T @ to_degree
        return members @ (weight[:, None] * to_edges / size), grad_weight


class HypergraphConv(Function):
    @staticmethod
    def forward(ctx, x, w):
        H = MEMBERS.to(x.dtype)
        edge_deg = H.sum(dim=0)
        node_deg = H @ w
        m = (H.t() @ x) / edge_deg.unsqueeze(1)
        out = (H @ (w.unsqueeze(1) * m)) / node_deg.unsqueeze(1)
        ctx.save_for_backward(H, edge_deg, node_deg, m, w, out)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        H, edge_deg, node_deg, m, w, out = ctx.saved_tensors
        grad_edges = H.t() @ grad_out
        grad_x = (H @ (w.unsqueeze(1) * grad_edges / edge_deg.unsqueeze(1))) / node_deg.unsqueeze(1)
        scaled = grad_out / node_deg.unsqueeze(1)
        grad_w = ((H.t() @ scaled) * m).sum(dim=1) - H.t() @ (scaled * out).sum(dim=1)
        return grad_x, grad_w


def along_ray(density, colour, background):
    passed = torch.exp(-density * WIDTHS.to(density))
    arriving = torch.cumprod(torch.cat([torch.ones_like(passed[:, :1]), passed], 1), 1)
    return (arriving[:, :-1] * (1 - passed) * colour).sum(1) + arriving[:, -1] * background


class AlongRayFunction(Function):
    @staticmethod
    def forward(ctx, density, colour, background):
        ctx.save_for_backward(density, colour, background)
        return along_ray(density, colour, background)

    @staticmethod
    def backward(ctx, g):
        density, colour, background = ctx.saved_tensors
        widths = WIDTHS.to(density)
        passed = torch.exp(-density * widths)
        grad_density, grad_colour = torch.zeros_like(density), torch.zeros_like(colour)
        arriving = torch.cumprod(torch.cat([torch.ones_like(passed[:, :1]), passed], 1), 1)
        behind = arriving[:, -1] * background
        for n in reversed(range(density.shape[1])):
            grad_colour[:, n] = g * arriving[:, n] * (1 - passed[:, n])
            grad_density[:, n] = g * widths[n] * (arriving[:, n + 1] * colour[:, n] - behind)
            behind = behind + arriving[:, n] * (1 - passed[:, n]) * colour[:, n]
        return grad_density, grad_colour, g * arriving[:, -1]


class VolumeRender(Function):
    @staticmethod
    def forward(ctx, sigma, rgb, bg):
        delta = WIDTHS.to(sigma.dtype)
        tau = torch.cumsum(sigma * delta, dim=1)
        trans = torch.exp(-torch.cat([torch.zeros_like(tau[:, :1]), tau], dim=1))
        weights = trans[:, :-1] - trans[:, 1:]
        ctx.save_for_backward(delta, trans, weights, rgb)
        return (weights * rgb).sum(dim=1) + trans[:, -1] * bg

    @staticmethod
    def backward(ctx, grad_out):
        delta, trans, weights, rgb = ctx.saved_tensors
        grad = grad_out.unsqueeze(1)
        radiance = weights * rgb
        occluded = radiance.sum(dim=1, keepdim=True) - radiance.cumsum(dim=1)
        grad_sigma = grad * delta * (trans[:, 1:] * rgb - occluded)
        return grad_sigma, grad * weights, grad_out * trans[:, -1]


def valid_summary(points):
    hidden = points.masked_fill(~VALID[:, :, None], -torch.inf)
    mean = (points * VALID[:, :, None]).sum(1) / VALID.sum(1)[:, None]
    return torch.cat([hidden.max(1).values, mean], 1)


class ValidSummaryFunction(Function):
    @staticmethod
    def forward(ctx, points):
        ctx.save_for_backward(points)
        return valid_summary(points)

    @staticmethod
    def backward(ctx, g):
        (points,) = ctx.saved_tensors
        to_largest, to_mean = g.chunk(2, 1)
        where = points.masked_fill(~VALID[:, :, None], -torch.inf).argmax(1, keepdim=True)
        grad = (to_mean / VALID.sum(1)[:, None])[:, None] * VALID[:, :, None]
        return grad.scatter_add(1, where, to_largest[:, None])


class MaskedSetPool(Function):
    @staticmethod
    def forward(ctx, x):
        mask = VALID.unsqueeze(2)
        count = mask.sum(dim=1)
        avg = x.mul(mask).sum(dim=1) / count
        top = x.masked_fill(~mask, float("-inf")).amax(dim=1)
        ctx.save_for_backward(x.argmax(dim=1), count)
        ctx.shape = x.shape
        return torch.cat([top, avg], dim=1)

    @staticmethod
    def backward(ctx, grad_out):
        argmax, count = ctx.saved_tensors
        grad_top, grad_avg = grad_out.split(ctx.shape[2], dim=1)
        grad_x = grad_out.new_zeros(ctx.shape)
        grad_x.scatter_(1, argmax.unsqueeze(1), grad_top.unsqueeze(1))
        grad_x += VALID.unsqueeze(2) * (grad_avg / count).unsqueeze(1)
        return grad_x


OPERATIONS = [
    Operation(
        "hypergraph, degree of the nodes",
        HypergraphFunction,
        HypergraphConv,
        hypergraph,
        lambda: {"x": torch.randn(5, 4), "weight": torch.rand(3) * 2 + 0.6},
        named="x: the division by the nodes' degree comes last, as in forward, where it belongs first",
        kinds=("not transposed", "step left out", "another operand", "permuted"),
        named_words=(r"transpos", r"divi", r"order of", r"node_deg|degree"),
        located=(r"gradient of x",),
    ),
    Operation(
        "samples along a ray, background",
        AlongRayFunction,
        VolumeRender,
        along_ray,
        lambda: {"density": torch.rand(3, 5) * 2, "colour": torch.rand(3, 5), "background": torch.rand(3) + 0.5},
        named="density: the part of the derivative through what is left for the background is missing",
        kinds=("missing term",),
        named_words=(r"missing", r"constant", r"detach", r"no effect"),
        located=(r"gradient of density",),
    ),
    Operation(
        "valid points of a cloud, largest of all",
        ValidSummaryFunction,
        MaskedSetPool,
        valid_summary,
        lambda: (torch.randn(3, 5, 4),),
        named="the gradient goes to the largest of all points, where only the valid ones count: the mask is left out",
        kinds=("step left out", "another operand", "only at some indices", "only for some values"),
        named_words=(r"mask", r"VALID", r"argmax"),
        located=(r"gradient of (points|input 0)",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "spread of neighbours, squared mean", NeighbourStd.apply, neighbour_spread, lambda: (torch.randn(5, 3),)
        ),
        named="the part of the derivative through the squared mean, which is subtracted, is missing",
        kinds=("missing term",),
        named_words=(r"missing", r"constant", r"detach", r"no effect"),
        located=(r"gradient of (x|input 0)",),
    ),
]
