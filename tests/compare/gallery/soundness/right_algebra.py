"""Right Functions of linear algebra, and of cumulative and indexed operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compare.gallery.soundness.right_layers import right, right_from_output
from tests.compare.gallery.wrong_function import randn


def square_and_vector() -> dict[str, Tensor]:
    return {"a": torch.randn(3, 3) + 3 * torch.eye(3), "b": torch.randn(3, 2)}


def squares() -> dict[str, Tensor]:
    return {"a": torch.randn(2, 3, 3) + 3 * torch.eye(3)}


def solve_backward(g: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    grad_b = torch.linalg.solve(a.mT, g)
    return -grad_b @ torch.linalg.solve(a, b).mT, grad_b


def gram_cholesky(a: Tensor) -> Tensor:
    return torch.linalg.cholesky(a @ a.mT + torch.eye(len(a), dtype=a.dtype))


def gram_cholesky_backward(g: Tensor, lower: Tensor, a: Tensor) -> Tensor:
    """Murray's formula, then the gradient of the Gram matrix."""
    lower, g, a = lower.double(), g.double(), a.double()
    phi = (lower.mT @ g).tril()
    phi.diagonal().mul_(0.5)
    inverse = torch.linalg.inv(lower)
    grad = inverse.mT @ phi @ inverse
    return (grad + grad.mT) @ a


def cumprod_backward(g: Tensor, y: Tensor, x: Tensor) -> Tensor:
    return (g * y).flip(1).cumsum(1).flip(1) / x


def away_from_zero() -> dict[str, Tensor]:
    return {"x": torch.rand(3, 4) + 0.5}


def sort_backward(g: Tensor, _: Tensor, x: Tensor) -> Tensor:
    return torch.zeros_like(x).scatter(1, x.sort(1).indices, g)


def logcumsumexp_backward(g: Tensor, y: Tensor, x: Tensor) -> Tensor:
    return ((g[:, None, :] * (x[:, :, None] - y[:, None, :]).exp()).triu()).sum(2)


def gather_rows(x: Tensor, i: Tensor) -> Tensor:
    return x.gather(1, i)


def scattered(x: Tensor, i: Tensor) -> Tensor:
    return x.new_zeros(len(x), 5).scatter_add(1, i, x)


def indices(n: int, shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {"x": torch.randn(shape[0], n), "i": torch.randint(n, shape)}


X = randn(x=(3, 4))

RIGHT_ALGEBRA = [
    right("linear solve", torch.linalg.solve, solve_backward, square_and_vector, whole_numbers=False),
    right_from_output("inverse", torch.linalg.inv, lambda g, y, a: -y.mT @ g @ y.mT, squares, whole_numbers=False),
    right_from_output("determinant", torch.linalg.det,
                      lambda g, y, a: (g * y)[:, None, None] * torch.linalg.inv(a).mT, squares, whole_numbers=False),
    right_from_output("Cholesky factor of a Gram matrix", gram_cholesky, gram_cholesky_backward, randn(a=(3, 4))),
    right("transposed matrix", lambda x: x.mT.clone(), lambda g, x: g.mT, randn(x=(2, 3, 4))),
    right("columns first", lambda x: x.mT.contiguous().mT, lambda g, x: g, X),
    right("trace", torch.trace, lambda g, x: g * torch.eye(3, dtype=g.dtype), randn(x=(3, 3))),
    right("outer product", torch.outer, lambda g, a, b: (g @ b, a @ g), randn(a=(3,), b=(4,))),
    right("cross product", torch.linalg.cross, lambda g, a, b: (torch.linalg.cross(b, g), torch.linalg.cross(g, a)),
          randn(a=(4, 3), b=(4, 3))),
    right("cumulative sum", lambda x: x.cumsum(1), lambda g, x: g.flip(1).cumsum(1).flip(1), X),
    right_from_output("cumulative product", lambda x: x.cumprod(1), cumprod_backward, away_from_zero,
                      whole_numbers=False),
    right_from_output("cumulative logsumexp", lambda x: x.logcumsumexp(1), logcumsumexp_backward, X),
    right_from_output("sorted rows", lambda x: x.sort(1).values, sort_backward, X),
    right("gathered columns", gather_rows, lambda g, x, i: (torch.zeros_like(x).scatter_add(1, i, g), None),
          lambda: indices(4, (3, 6))),
    right("scattered columns", scattered, lambda g, x, i: (g.gather(1, i), None), lambda: indices(5, (3, 5))),
    right("reversed and rolled", lambda x: x.flip(0).roll(1, 1), lambda g, x: g.roll(-1, 1).flip(0), X),
    right("windows", lambda x: x.unfold(1, 3, 1).clone(),
          lambda g, x: sum(F.pad(g[:, :, k], (k, 2 - k)) for k in range(3)), randn(x=(2, 6))),
    right("diagonal matrices", torch.diag_embed, lambda g, x: g.diagonal(dim1=-2, dim2=-1), randn(x=(2, 3))),
]  # fmt: skip
