"""Curves: a system with three diagonals, as splines need it, and slopes that keep a curve monotone."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def solve_diagonals(below, diagonal, above, right):
    """Eliminate downwards, then substitute upwards; shapes (B, N - 1), (B, N), (B, N - 1), (B, N)."""
    pivots, values = [diagonal[:, 0]], [right[:, 0]]
    for n in range(1, diagonal.size(1)):
        factor = below[:, n - 1] / pivots[-1]
        pivots.append(diagonal[:, n] - factor * above[:, n - 1])
        values.append(right[:, n] - factor * values[-1])
    x = [values[-1] / pivots[-1]]
    for n in reversed(range(diagonal.size(1) - 1)):
        x.append((values[n] - above[:, n] * x[-1]) / pivots[n])
    return torch.stack(x[::-1], 1)


class SolveDiagonalsFunction(Function):
    @staticmethod
    def forward(ctx, below, diagonal, above, right):
        x = solve_diagonals(below, diagonal, above, right)
        ctx.save_for_backward(below, diagonal, above, x)
        return x

    @staticmethod
    def backward(ctx, g):
        below, diagonal, above, x = ctx.saved_tensors
        grad_right = solve_diagonals(above, diagonal, below, g)
        grad_below = -grad_right[:, 1:] * x[:, :-1]
        grad_above = -grad_right[:, :-1] * x[:, 1:]
        return grad_below, -grad_right * x, grad_above, grad_right


def thomas(dl, d, du, b):
    """In-place Thomas algorithm: d is overwritten by the pivots, b by the solution."""
    n = d.shape[1]
    for i in range(1, n):
        m = dl[:, i - 1] / d[:, i - 1]
        d[:, i] -= m * du[:, i - 1]
        b[:, i] -= m * b[:, i - 1]
    b[:, n - 1] /= d[:, n - 1]
    for i in range(n - 2, -1, -1):
        b[:, i] = (b[:, i] - du[:, i] * b[:, i + 1]) / d[:, i]
    return b


class TridiagonalSolve(Function):
    """Solves A x = b; the adjoint solves with the transpose, the off-diagonals change places."""

    @staticmethod
    def forward(ctx, dl, d, du, b):
        d = d.clone()
        x = thomas(dl, d, du, b.clone())
        ctx.save_for_backward(dl, d, du, x)
        return x

    @staticmethod
    def backward(ctx, grad_x):
        dl, d, du, x = ctx.saved_tensors
        lam = thomas(du, d.clone(), dl, grad_x.clone())
        grad_d = -lam * x
        grad_dl = -lam[:, 1:] * x[:, :-1]
        grad_du = -lam[:, :-1] * x[:, 1:]
        return grad_dl, grad_d, grad_du, lam


def monotone_slopes(y):
    steps = y.diff(dim=1)
    left, right = steps[:, :-1], steps[:, 1:]
    monotone = left * right > 0
    both = torch.where(monotone, left + right, torch.ones_like(left))
    inner = torch.where(monotone, 2 * left * right / both, torch.zeros_like(left))
    return torch.cat([steps[:, :1], inner, steps[:, -1:]], 1)


class MonotoneSlopesFunction(Function):
    @staticmethod
    def forward(ctx, y):
        ctx.save_for_backward(y)
        return monotone_slopes(y)

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        steps = y.diff(dim=1)
        left, right = steps[:, :-1], steps[:, 1:]
        monotone = left * right > 0
        scale = 2 * g[:, 1:-1] * monotone / torch.where(monotone, left + right, torch.ones_like(left)) ** 2
        to_steps = torch.zeros_like(steps)
        to_steps[:, :-1] += scale * right**2
        to_steps[:, 1:] += scale * left**2
        to_steps[:, 0] += g[:, 0]
        to_steps[:, -1] += g[:, -1]
        grad = torch.zeros_like(y)
        grad[:, 1:] += to_steps
        grad[:, :-1] -= to_steps
        return grad


class PCHIPSlopes(Function):
    """Fritsch-Carlson slopes on a uniform grid: harmonic mean of neighbouring secants, 0 at a local extremum."""

    @staticmethod
    def forward(ctx, y):
        delta = y[:, 1:] - y[:, :-1]
        d0, d1 = delta[:, :-1], delta[:, 1:]
        m = torch.zeros_like(y)
        m[:, 0] = delta[:, 0]
        m[:, -1] = delta[:, -1]
        same_sign = torch.sign(d0) * torch.sign(d1) > 0
        harmonic = 2 * d0 * d1 / (d0 + d1)
        m[:, 1:-1] = torch.where(same_sign, harmonic, torch.zeros_like(harmonic))
        ctx.save_for_backward(delta)
        return m

    @staticmethod
    def backward(ctx, grad_m):
        (delta,) = ctx.saved_tensors
        d0, d1 = delta[:, :-1], delta[:, 1:]
        inner = grad_m[:, 1:-1]
        total = d0 + d1
        grad_delta = torch.zeros_like(delta)
        grad_delta[:, :-1] += inner * 2 * (d1 / total) ** 2
        grad_delta[:, 1:] += inner * 2 * (d0 / total) ** 2
        grad_delta[:, 0] += grad_m[:, 0]
        grad_delta[:, -1] += grad_m[:, -1]
        grad_y = torch.zeros_like(grad_m)
        grad_y[:, 1:] += grad_delta
        grad_y[:, :-1] -= grad_delta
        return grad_y


OPERATIONS = [
    Operation(
        "a system with three diagonals, pivots saved for the diagonal",
        SolveDiagonalsFunction,
        TridiagonalSolve,
        solve_diagonals,
        lambda: {
            "below": torch.randn(3, 4),
            "diagonal": 4 + torch.rand(3, 5),
            "above": torch.randn(3, 4),
            "right": torch.randn(3, 5),
        },
        named="forward saves the diagonal after the elimination, which overwrites it with the pivots",
        kinds=("another operand", "wrong intermediate value", "change of the source"),
        named_words=(
            r"pivot|eliminat",
            r"clone|in.?place|overwrit",
            r"(saved|changed|values?)\b.*\bd\b|\bd\b.*\b(saved|changed)\b",
        ),
        located=(r"gradient of (below|diagonal|above|right|dl|d|du|b)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "slopes of a monotone curve, extrema not masked",
        MonotoneSlopesFunction,
        PCHIPSlopes,
        monotone_slopes,
        lambda: {"y": torch.randn(5, 7)},
        named="the slope is 0 where the steps differ in sign, and backward sends a gradient through it there",
        kinds=("only for some values", "step left out", "factor by element"),
        named_words=(r"torch\.where|masked?\b|same_sign|\bsigns\b", r"> ?0"),
        located=(r"gradient of y\b",),
        options={"whole_numbers": False, "kinks": True},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
