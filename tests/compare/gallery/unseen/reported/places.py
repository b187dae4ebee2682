"""Reported mistakes in indexing, scans, recurrences, distances and rotations."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

POWER = 3
STEPS = 4
COLUMNS = torch.tensor([[0, 0, 2], [1, 3, 1], [2, 2, 2], [3, 0, 0], [1, 2, 3]])
ROWS = torch.tensor([2, 0, 2, 1, 3, 2])


def gathered(x):
    return x.gather(1, COLUMNS)


class GatheredFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return gathered(x)

    @staticmethod
    def backward(ctx, g):
        return torch.zeros(ctx.shape, dtype=g.dtype).scatter_add(1, COLUMNS, g)


class Gather(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.size = x.size()
        return x.gather(1, COLUMNS)

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output.new_zeros(ctx.size).scatter_(1, COLUMNS, grad_output)


def picked_rows(x):
    return x[ROWS]


class PickedRowsFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.rows = len(x)
        return picked_rows(x)

    @staticmethod
    def backward(ctx, g):
        return torch.zeros(ctx.rows, g.shape[1], dtype=g.dtype).index_add(0, ROWS, g)


class GatherBackward(Function):
    @staticmethod
    def forward(ctx, source):
        ctx.extent = source.shape[0]
        return source.index_select(0, ROWS)

    @staticmethod
    def backward(ctx, grad_output):
        positions = torch.arange(ctx.extent) % len(ROWS)
        return grad_output[ROWS[positions]]


def picked_places(x):
    return x[ROWS, ROWS.flip(0)]


class PickedPlacesFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return picked_places(x)

    @staticmethod
    def backward(ctx, g):
        return torch.zeros(ctx.shape, dtype=g.dtype).index_put((ROWS, ROWS.flip(0)), g, accumulate=True)


class GatherNd(Function):
    @staticmethod
    def forward(ctx, data):
        ctx.save_for_backward(data)
        return data[ROWS, ROWS.flip(0)]

    @staticmethod
    def backward(ctx, g):
        (data,) = ctx.saved_tensors
        grad = torch.zeros_like(data)
        grad[ROWS, ROWS.flip(0)] = g
        return grad


def scaled_product(a, b, scale):
    return torch.sigmoid(a) * b * scale[:, None]


class ScaledProductFunction(Function):
    @staticmethod
    def forward(ctx, a, b, scale):
        ctx.save_for_backward(a, b, scale)
        return scaled_product(a, b, scale)

    @staticmethod
    def backward(ctx, g):
        a, b, scale = ctx.saved_tensors
        s = torch.sigmoid(a)
        inner = g * scale[:, None]
        return inner * b * s * (1 - s), inner * s, (g * s * b).sum(1)


class RowKernels(Function):
    @staticmethod
    def forward(ctx, a, b, scale):
        ctx.save_for_backward(a, b, scale)
        return torch.stack([torch.sigmoid(a[n]) * b[n] * scale[n] for n in range(len(a))])

    @staticmethod
    def backward(ctx, dc):
        a, b, scale = ctx.saved_tensors
        da, db, dscale = torch.zeros_like(a), torch.zeros_like(b), torch.zeros_like(scale)
        for row in range(len(a)):
            s = torch.sigmoid(a[row])
            gate = dc[row] * scale[row]
            da[0] = gate * b[row] * s * (1 - s)
            db[0] = gate * s
            dscale[row] = (dc[row] * s * b[row]).sum()
        return da, db, dscale


def half_turned(x):
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def rotated(x, cos, sin):
    return x * cos + half_turned(x) * sin


class RotatedFunction(Function):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(x, cos, sin)
        return rotated(x, cos, sin)

    @staticmethod
    def backward(ctx, g):
        x, cos, sin = ctx.saved_tensors
        return g * cos - half_turned(g * sin), (g * x).sum(0), (g * half_turned(x)).sum(0)


class RotaryEmbedding(Function):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(x, cos, sin)
        return x * cos + half_turned(x) * sin

    @staticmethod
    def backward(ctx, dl):
        x, cos, sin = ctx.saved_tensors
        dx = dl * cos - half_turned(dl) * sin
        return dx, (dl * x).sum(0), (dl * half_turned(x)).sum(0)


def distances(x, y):
    return (x[:, None] - y).abs().pow(POWER).sum(-1).pow(1 / POWER)


class DistancesFunction(Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return distances(x, y)

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        difference = x[:, None] - y
        ratio = difference.abs() / distances(x, y)[..., None]
        each = g[..., None] * difference.sign() * ratio ** (POWER - 1)
        return each.sum(1), -each.sum(0)


class PairwiseDistances(Function):
    @staticmethod
    def forward(ctx, x1, x2):
        dist = (x1.unsqueeze(1) - x2).abs().pow(POWER).sum(-1).pow(1 / POWER)
        ctx.save_for_backward(x1, x2, dist)
        return dist

    @staticmethod
    def backward(ctx, grad):
        x1, x2, dist = ctx.saved_tensors
        diff = x1.unsqueeze(1) - x2
        contribution = grad.unsqueeze(-1) * diff / dist.unsqueeze(-1)
        return contribution.sum(1), -contribution.sum(0)


def running_sum(x):
    return x.cumsum(1)


class RunningSumFunction(Function):
    @staticmethod
    def forward(ctx, x):
        return running_sum(x)

    @staticmethod
    def backward(ctx, g):
        return g.flip(1).cumsum(1).flip(1)


class Cumsum(Function):
    @staticmethod
    def forward(ctx, x):
        return torch.cumsum(x, dim=1)

    @staticmethod
    def backward(ctx, grad_output):
        grad_input = torch.cumsum(-grad_output, dim=1)
        end = grad_input.size(1) - 1
        return grad_input - grad_input.select(1, end).unsqueeze(1).expand_as(grad_input)


def recurrence(x, weight):
    h = torch.zeros_like(x[0])
    for t in range(STEPS):
        h = torch.tanh(x[t] + h @ weight.T)
    return h


class RecurrenceFunction(Function):
    @staticmethod
    def forward(ctx, x, weight):
        states = [torch.zeros_like(x[0])]
        for t in range(STEPS):
            states.append(torch.tanh(x[t] + states[-1] @ weight.T))
        ctx.save_for_backward(weight, torch.stack(states))
        return states[-1]

    @staticmethod
    def backward(ctx, g):
        weight, states = ctx.saved_tensors
        grad_x, grad_weight = torch.zeros_like(states[1:]), torch.zeros_like(weight)
        for t in reversed(range(STEPS)):
            delta = g * (1 - states[t + 1] ** 2)
            grad_x[t] = delta
            grad_weight += delta.T @ states[t]
            g = delta @ weight
        return grad_x, grad_weight


class RecurrentLayer(Function):
    @staticmethod
    def forward(ctx, x, weight):
        h = torch.zeros_like(x[0])
        hidden = []
        for step in x:
            hidden.append(h)
            h = torch.tanh(step + h @ weight.t())
        ctx.save_for_backward(x, weight, torch.stack(hidden), h)
        return h

    @staticmethod
    def backward(ctx, grad_h):
        x, weight, hidden, last = ctx.saved_tensors
        outputs = torch.cat([hidden[1:], last[None]])
        grad_x = torch.zeros_like(x)
        grad_weight = torch.zeros_like(weight)
        dh = grad_h
        for t in range(len(x) - 1, -1, -1):
            dz = dh * (1 - outputs[t] * outputs[t])
            grad_x[t] = dz
            grad_weight += dz.t() @ hidden[t]
            dh = torch.zeros_like(dh)
        return grad_x, grad_weight


def both_directions(x, decay):
    forward, backward = [], []
    h = torch.zeros_like(x[0])
    for t in range(STEPS):
        h = decay * h + x[t]
        forward.append(h)
    h = torch.zeros_like(x[0])
    for t in reversed(range(STEPS)):
        h = decay * h + x[t]
        backward.insert(0, h)
    return torch.stack(forward) + torch.stack(backward)


class BothDirectionsFunction(Function):
    @staticmethod
    def forward(ctx, x, decay):
        ctx.save_for_backward(x, decay)
        return both_directions(x, decay)

    @staticmethod
    def backward(ctx, g):
        x, decay = ctx.saved_tensors
        grad_x, grad_decay = torch.zeros_like(x), torch.zeros_like(decay)
        for order in (range(STEPS), range(STEPS - 1, -1, -1)):
            states, h = {}, torch.zeros_like(x[0])
            for t in order:
                states[t] = h
                h = decay * h + x[t]
            carry = torch.zeros_like(x[0])
            for t in reversed(order):
                carry = carry + g[t]
                grad_x[t] += carry
                grad_decay += (carry * states[t]).sum(0)
                carry = carry * decay
        return grad_x, grad_decay


class Bidirectional(Function):
    @staticmethod
    def forward(ctx, x, decay):
        ctx.save_for_backward(x, decay)
        return both_directions(x, decay)

    @staticmethod
    def backward(ctx, dy):
        x, decay = ctx.saved_tensors
        dy = dy.clone()
        ddecay = torch.zeros_like(decay)
        hidden = [torch.zeros_like(x[0])]
        for t in range(STEPS - 1):
            hidden.append(decay * hidden[t] + x[t])
        carry = torch.zeros_like(x[0])
        for t in reversed(range(STEPS)):
            carry = carry + dy[t]
            dy[t] = carry
            ddecay += (carry * hidden[t]).sum(0)
            carry = carry * decay
        hidden = [torch.zeros_like(x[0])]
        for t in reversed(range(1, STEPS)):
            hidden.insert(0, decay * hidden[0] + x[t])
        dx = dy.clone()
        carry = torch.zeros_like(x[0])
        for t in range(STEPS):
            carry = carry + dy[t]
            dx[t] += carry
            ddecay += (carry * hidden[t]).sum(0)
            carry = carry * decay
        return dx, ddecay


def complex_length(z):
    return (z.real**2 + z.imag**2).sum(-1).sqrt()


class ComplexLengthFunction(Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return complex_length(z)

    @staticmethod
    def backward(ctx, g):
        (z,) = ctx.saved_tensors
        return (g / complex_length(z))[..., None] * z


class ComplexNorm(Function):
    @staticmethod
    def forward(ctx, z):
        length = torch.sqrt((z.abs() ** 2).sum(-1))
        ctx.save_for_backward(z, length)
        return length

    @staticmethod
    def backward(ctx, g):
        z, length = ctx.saved_tensors
        return (g / length).unsqueeze(-1) * z.conj()


OPERATIONS = [
    Operation(
        "gather, repeated indices",
        GatheredFunction,
        Gather,
        gathered,
        lambda: (torch.randn(5, 4),),
        named="gradients of repeated indices are written over one another, not added (pytorch/pytorch #1631)",
        kinds=("missing term", "only at some indices", "another operand", "step left out"),
        named_words=(r"scatter_add", r"repeat|accumulat|once|added"),
        located=(r"gradient of x",),
    ),
    Operation(
        "rows by indices, taken in place of added",
        PickedRowsFunction,
        GatherBackward,
        picked_rows,
        lambda: (torch.randn(4, 3),),
        named="backward takes rows by the indices in place of adding to them (ooples/AiDotNet.Tensors #894)",
        kinds=("not transposed", "permuted", "missing term", "another operand", "step left out"),
        named_words=(r"not transposed|transpose", r"index_add|index_put", r"rows?"),
        located=(r"gradient of x",),
    ),
    Operation(
        "elements by indices, repeated ones",
        PickedPlacesFunction,
        GatherNd,
        picked_places,
        lambda: (torch.randn(4, 4),),
        named="an element that is picked twice gets one of its two gradients (apache/mxnet #9172)",
        kinds=("missing term", "only at some indices", "another operand", "step left out", "few elements"),
        named_words=(r"accumulate|index_put|\+=|added", r"\[2, 2\]|row 2|column 2"),
        located=(r"gradient of x",),
    ),
    Operation(
        "rows of a kernel, all into the first",
        ScaledProductFunction,
        RowKernels,
        scaled_product,
        lambda: (torch.randn(5, 4), torch.randn(5, 4), torch.randn(5)),
        named="every row's gradient is stored in the first row (ByteDance-Seed/Triton-distributed #180)",
        kinds=("zero", "only at some indices", "change of the source"),
        named_words=(r"row", r"da\[row\]"),
        located=(r"gradient of a", r"gradient of b"),
    ),
    Operation(
        "rotary embedding, order of the turn and the product",
        RotatedFunction,
        RotaryEmbedding,
        rotated,
        lambda: {"x": torch.randn(5, 6), "cos": torch.randn(6), "sin": torch.randn(6)},
        named="the gradient is turned before the product with sin, not after it (PaddlePaddle/Paddle #74716)",
        kinds=("permuted", "another operand", "step left out", "shifted", "change of the source"),
        named_words=(r"sin",),
        located=(r"gradient of x",),
    ),
    Operation(
        "distances of a power, as Euclidean ones",
        DistancesFunction,
        PairwiseDistances,
        distances,
        lambda: (torch.randn(4, 3), torch.randn(5, 3)),
        named="the derivative is that of Euclidean distances whatever the power (flagos-ai/FlagGems #5023)",
        kinds=("another operand", "step left out", "factor of one term"),
        named_words=(r"pow|power|square|exponent",),
        located=(r"gradient of x", r"gradient of y"),
        options={"whole_numbers": False},
    ),
    Operation(
        "running sum, own element",
        RunningSumFunction,
        Cumsum,
        running_sum,
        lambda: (torch.randn(5, 4),),
        named="each element's own gradient is missing from the sum of later ones (pytorch/pytorch #1122)",
        kinds=("missing term", "shifted", "another operand"),
        named_words=(r"diagonal|own|same|i = k|k = i|\+ grad_output|column",),
        located=(r"gradient of x",),
    ),
    Operation(
        "recurrence, hidden gradient dropped",
        RecurrenceFunction,
        RecurrentLayer,
        recurrence,
        lambda: (torch.randn(4, 3, 2), torch.randn(2, 2)),
        named="the gradient of the hidden state is set to 0 between the steps (ooples/AiDotNet #722)",
        kinds=("zero", "missing term", "only at some indices", "change of the source"),
        named_words=(r"earlier|before|later|first|index 3|last|constant|missing|zero|dz @ weight",),
        located=(r"gradient of x", r"gradient of weight"),
        options={"whole_numbers": False},
    ),
    Operation(
        "two directions, incoming gradient written over",
        BothDirectionsFunction,
        Bidirectional,
        both_directions,
        lambda: (torch.randn(4, 3, 2), torch.rand(2)),
        named="the second direction uses the first one's result as its incoming gradient (apache/mxnet #18203)",
        kinds=("another operand", "missing term", "step left out", "change of the source"),
        named_words=(r"incoming|twice|too many|counts|dy\b", r"missing|surplus|another"),
        located=(r"gradient of x",),
    ),
    Operation(
        "length of complex rows, conjugate",
        ComplexLengthFunction,
        ComplexNorm,
        complex_length,
        lambda: (torch.randn(5, 4, dtype=torch.complex128),),
        named="the gradient is the conjugate of the right one (HIPS/autograd #612)",
        kinds=("conjugated",),
        named_words=(r"conj",),
        located=(r"gradient of z",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
