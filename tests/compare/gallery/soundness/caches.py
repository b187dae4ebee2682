"""Functions that are right when they are called once, and keep the values of a call for later ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from compare.case import Case
from tests.compare.gallery.soundness.wrong_gradient import WrongGradient, wrong_with_state
from tests.compare.gallery.wrong_function import randn

Apply = Callable[..., Any]


def make_mask_by_shape() -> Apply:
    masks: dict[tuple[int, ...], Tensor] = {}

    class ReLU(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.shape = x.shape
            masks.setdefault(tuple(x.shape), x > 0)
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g * masks[tuple(ctx.shape)]

    return ReLU.apply


def make_cache_by_address() -> Apply:
    transposed: dict[int, Tensor] = {}

    class Linear(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            ctx.w = transposed.setdefault(w.data_ptr(), w.detach().clone())
            return x @ w.T

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
            return g @ ctx.w.to(g), g.T @ ctx.saved_tensors[0]

    return Linear.apply


def make_cache_by_id() -> Apply:
    """Cache the square of the weight with the weight, which keeps its id."""
    squares: dict[int, tuple[Tensor, Tensor]] = {}

    class Scale(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            if id(w) not in squares:
                squares[id(w)] = w, w * w
            ctx.save_for_backward(x, w)
            return x * squares[id(w)][1]

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
            x, w = ctx.saved_tensors
            return g * w * w, 2 * g * x * w

    return Scale.apply


def make_first_input() -> Apply:
    """Choose the largest element in the first call for all calls."""
    first: list[int] = []

    class Largest(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.shape = x.shape
            first.append(int(x.argmax()))
            return x.max()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            grad = g.new_zeros(ctx.shape)
            grad.view(-1)[first[0]] = g
            return grad

    return Largest.apply


def make_first_scale() -> Apply:
    """Normalise by the spread of the first call's input."""
    scales: dict[torch.dtype, Tensor] = {}

    class Normalise(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            scale = scales.setdefault(x.dtype, x.detach().abs().amax())
            return x / scale

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            scale, largest = x.abs().amax(), x.abs() == x.abs().amax()
            return g / scale - (g * x).sum() / scale**2 * largest / largest.sum() * x.sign()

    return Normalise.apply


def make_labels_of_first_call() -> Apply:
    """One-hot labels of the first batch serve all batches of that size."""
    one_hot: dict[Any, Tensor] = {}

    class CrossEntropy(Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor, y: Tensor) -> Tensor:
            ctx.save_for_backward(z.softmax(1))
            ctx.one_hot = one_hot.setdefault(tuple(z.shape), F.one_hot(y, z.shape[1]))
            return F.cross_entropy(z, y)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
            (p,) = ctx.saved_tensors
            return g * (p - ctx.one_hot) / len(p), None

    return CrossEntropy.apply


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


class DenseFunction(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, transposed: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ transposed

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        x, w = ctx.saved_tensors
        return g @ w, g.T @ x, None


class StaleDense(Dense):
    """Dense layer that transposes its weight when it is first called, once for each dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.transposed: dict[torch.dtype, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        transposed = self.transposed.setdefault(x.dtype, self.weight.detach().T.contiguous())
        return DenseFunction.apply(x, self.weight, transposed)


def stale_dense() -> WrongGradient:
    def make_case() -> Case:
        return Case.from_modules("module: stale transposed weight", StaleDense(), Dense(), lambda: torch.randn(4, 3))

    return WrongGradient(make_case, "output")


def largest_scaled(x: Tensor) -> Tensor:
    return x / x.abs().amax()


def labelled() -> dict[str, Tensor]:
    return {"z": torch.randn(3, 4), "y": torch.randint(4, (3,))}


X = randn(x=(3, 4))
XW = randn(x=(4, 3), w=(2, 3))
PAIR = randn(x=(2, 3), w=(2, 3))

CACHES = [
    wrong_with_state("ReLU: mask cached by shape", "x", make_mask_by_shape, torch.relu, randn(x=(2, 2, 2, 3))),
    wrong_with_state("linear: weight cached by its address", "x", make_cache_by_address, F.linear, XW),
    wrong_with_state("scale: square of the weight cached by its id", "output", make_cache_by_id,
                     lambda x, w: x * (w * w), PAIR),
    wrong_with_state("maximum: index of the first call", "x", make_first_input, torch.max, randn(x=(4, 5))),
    wrong_with_state("scaling: largest element of the first call", "output", make_first_scale, largest_scaled, X),
    wrong_with_state("cross-entropy: labels of the first call", "z", make_labels_of_first_call, F.cross_entropy,
                     labelled),
    stale_dense(),
]  # fmt: skip
