"""Matrices: iterations towards an orthogonal one, reflections, a train of tensors."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def towards_orthogonal(x):
    for _ in range(2):
        x = 1.5 * x - 0.5 * x @ x.T @ x
    return x


class TowardsOrthogonalFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return towards_orthogonal(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        for each in (1.5 * x - 0.5 * x @ x.T @ x, x):
            g = 1.5 * g - 0.5 * (g @ each.T @ each + each @ g.T @ each + each @ each.T @ g)
        return g


class NewtonSchulz(Function):
    @staticmethod
    def forward(ctx, x):
        iterates = []
        for _ in range(2):
            iterates.append(x)
            x = 0.5 * x @ (3 * torch.eye(x.shape[1], dtype=x.dtype) - x.t() @ x)
        ctx.save_for_backward(*iterates)
        return x

    @staticmethod
    def backward(ctx, grad):
        for x in reversed(ctx.saved_tensors):
            gram = x.t() @ x
            grad = 1.5 * grad - 0.5 * (grad @ gram + x @ x.t() @ grad + x @ grad @ x)
        return grad


def reflected(x, vectors):
    for v in vectors:
        x = x - 2 * (x @ v)[:, None] * v / (v @ v)
    return x


class ReflectedFunction(Function):
    @staticmethod
    def forward(ctx, x, vectors):
        ctx.save_for_backward(x, vectors)
        return reflected(x, vectors)

    @staticmethod
    def backward(ctx, g):
        x, vectors = ctx.saved_tensors
        steps = [x]
        for v in vectors:
            steps.append(reflected(steps[-1], v[None]))
        grad_vectors = torch.empty_like(vectors)
        for k in reversed(range(len(vectors))):
            v, before = vectors[k], steps[k]
            square, along, to_along = v @ v, before @ v, g @ v
            grad_vectors[k] = -2 / square * (to_along @ before + along @ g - 2 * (along @ to_along) / square * v)
            g = g - 2 * to_along[:, None] * v / square
        return g, grad_vectors


class OrthogonalFlow(Function):
    @staticmethod
    def forward(ctx, x, vs):
        y = x
        for v in vs:
            y = y - 2 * (y @ v).unsqueeze(1) * v / v.square().sum()
        ctx.save_for_backward(x, vs)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, vs = ctx.saved_tensors
        grad_vs = torch.zeros_like(vs)
        for i in range(vs.size(0) - 1, -1, -1):
            v = vs[i]
            n = v.square().sum()
            xv, gv = x @ v, grad @ v
            grad_vs[i] = -2 * (x.t() @ gv + grad.t() @ xv) / n + 4 * xv.dot(gv) * v / n.square()
            grad = grad - 2 * gv.unsqueeze(1) * v / n
        return grad, grad_vs


def train(x, first, second):
    rows = x.view(len(x), 2, 3) if x.is_contiguous() else x.reshape(len(x), 2, 3)
    return torch.einsum("bij,ipr,rjq->bpq", rows, first, second).flatten(1)


class TrainFunction(Function):
    @staticmethod
    def forward(ctx, x, first, second):
        ctx.save_for_backward(x, first, second)
        return train(x, first, second)

    @staticmethod
    def backward(ctx, g):
        x, first, second = ctx.saved_tensors
        x, g = x.reshape(len(x), 2, 3), g.reshape(len(x), 2, 3)
        grad_x = torch.einsum("bpq,ipr,rjq->bij", g, first, second).flatten(1)
        grad_first = torch.einsum("bpq,bij,rjq->ipr", g, x, second)
        return grad_x, grad_first, torch.einsum("bpq,bij,ipr->rjq", g, x, first)


class TTLinear(Function):
    @staticmethod
    def forward(ctx, x, core1, core2):
        b = x.shape[0]
        x = x.reshape(b, 2, 3)
        half = torch.einsum("bij,ipr->bjpr", x, core1)
        ctx.save_for_backward(x, half, core1, core2)
        return torch.einsum("bjpr,rjq->bpq", half, core2).reshape(b, -1)

    @staticmethod
    def backward(ctx, grad_y):
        x, half, core1, core2 = ctx.saved_tensors
        grad_y = grad_y.reshape(-1, 2, 3)
        grad_core2 = torch.einsum("bjpr,bpq->rqj", half, grad_y)
        grad_half = torch.einsum("bpq,rjq->bjpr", grad_y, core2)
        grad_core1 = torch.einsum("bij,bjpr->ipr", x, grad_half)
        grad_x = torch.einsum("bjpr,ipr->bij", grad_half, core1)
        return grad_x.reshape(-1, 6), grad_core1, grad_core2


PAIR = {"x": (4, 3), "vectors": (3, 3)}
CORES = {"x": (4, 6), "first": (2, 2, 2), "second": (2, 3, 3)}

OPERATIONS = [
    Operation(
        "step towards an orthogonal matrix, transposed gradient",
        TowardsOrthogonalFunction,
        NewtonSchulz,
        towards_orthogonal,
        lambda: (torch.randn(3, 3) / 2,),
        named="the term of the middle factor has the gradient itself instead of its transpose",
        kinds=("transposed", "not transposed", "another operand", "wrong half"),
        named_words=(r"transpos|\bt\b|permute",),
        located=(r"gradient of (x|input 0)",),
    ),
    Operation(
        "chain of reflections, first rows for all",
        ReflectedFunction,
        OrthogonalFlow,
        reflected,
        lambda: {name: torch.randn(shape) for name, shape in PAIR.items()},
        named="vectors 1 and 2: the rows before any reflection are taken for those that this reflection reflects",
        kinds=("another operand", "step left out", "missing term"),
        named_words=(r"(\bx\b|input|first).*instead of", r"instead of.*(\bx\b|input)", r"left out"),
        located=(r"gradient of vectors",),
        options={"whole_numbers": False},
    ),
    Operation(
        "train of two tensors, order of indices",
        TrainFunction,
        TTLinear,
        train,
        lambda: {name: torch.randn(shape) for name, shape in CORES.items()},
        named="second: the last two dimensions of its gradient are exchanged",
        kinds=("transposed", "permuted"),
        named_words=(r"transpos|exchang|swap", r"permut|place"),
        located=(r"gradient of second",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
