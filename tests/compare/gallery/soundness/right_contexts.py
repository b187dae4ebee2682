"""Right Functions with several outputs, in place, with sparse gradients, and with caches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from compare.case import Case
from tests.compare.gallery.soundness.right_layers import right
from tests.compare.gallery.wrong_function import randn


class ScaleInPlace(Function):
    """Double the argument in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g


class ReLUInPlace(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        x.clamp_(min=0)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (ctx.saved_tensors[0] > 0)


class Embed(Function):
    """Rows of a table; its gradient is sparse."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = table.shape
        return table[index]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(index[None], g, ctx.shape, check_invariants=False), None


class MaxAndIndices(Function):
    """Maximum of each row and its index, which is not differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        values, index = x.max(1)
        ctx.save_for_backward(index)
        ctx.mark_non_differentiable(index)
        ctx.shape = x.shape
        return values, index

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> Tensor:
        return g.new_zeros(ctx.shape).scatter(1, ctx.saved_tensors[0][:, None], g[:, None])


class WithDetachedOutput(Function):
    """Square, and its largest element without a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        y = x * x
        largest = y.amax()
        ctx.mark_non_differentiable(largest)
        return y, largest

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> Tensor:
        return 2 * g * ctx.saved_tensors[0]


class OnlyTheFirst(Function):
    """Product whose second factor is a constant, so its gradient is None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(w)
        return x * w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g * ctx.saved_tensors[0], None


class UnmaterializedOutputs(Function):
    """Sine and cosine; backward allows None for an output that is not used."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        return x.sin(), x.cos()

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, h: Tensor | None) -> Tensor:
        (x,) = ctx.saved_tensors
        terms = [] if g is None else [g * x.cos()]
        terms += [] if h is None else [-h * x.sin()]
        return sum(terms)


class InFloat32(Function):
    """Sum of squares of each row, computed in float32 for half types, as autocast does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        return (wide * wide).sum(1).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        wide = torch.promote_types(x.dtype, torch.float32)
        return (2 * g.to(wide)[:, None] * x.to(wide)).to(x.dtype)


class ReversedSum(Function):
    """Sum of the rows in reversed order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        total = torch.zeros_like(x[0])
        for row in x.flip(0):
            total = total + row
        return total

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.expand(ctx.rows, *g.shape)


class CachedMask(Function):
    """Causal softmax; the mask, which depends on the shape alone, is cached by it."""

    masks: dict[int, Tensor] = {}  # noqa: RUF012 - the cache that is tested

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        n = x.shape[-1]
        mask = CachedMask.masks.setdefault(n, torch.ones(n, n, dtype=torch.bool).triu(1))
        y = x.masked_fill(mask, -torch.inf).softmax(-1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return y * (g - (g * y).sum(-1, keepdim=True))


class CachedByVersion(Function):
    """Linear layer that caches the transposed weight; a changed weight has another version."""

    last: tuple[Any, ...] = (None, -1, None)

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        kept, version, transposed = CachedByVersion.last
        if kept is not w or version != w._version:
            transposed = w.detach().T.contiguous()
            CachedByVersion.last = w, w._version, transposed
        return x @ transposed

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g @ w, g.T @ x


class CachedByValue(Function):
    """Exponential; the last result is kept with its input and serves the same values again."""

    last: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        last = CachedByValue.last
        if last is None or last[0].dtype != x.dtype or not torch.equal(last[0], x):
            CachedByValue.last = last = x.detach().clone(), x.detach().exp()
        ctx.y = last[1]
        return ctx.y.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.y


def doubled_in_place(x: Tensor) -> Tensor:
    return ScaleInPlace.apply(x.clone())


def relu_in_place(x: Tensor) -> Tensor:
    return ReLUInPlace.apply(3 * x)


def max_and_indices(x: Tensor) -> tuple[Tensor, Tensor]:
    values, index = x.max(1)
    return values, index


def embedding_inputs() -> dict[str, Tensor]:
    return {"table": torch.randn(5, 2), "index": torch.tensor([4, 0, 0, 2])}


def join(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x, y])


def causal_softmax(x: Tensor) -> Tensor:
    n = x.shape[-1]
    return x.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


RIGHT_CONTEXTS = [
    Case("right: doubled in place", doubled_in_place, lambda x: 2 * x, randn(x=(3, 4))),
    Case("right: ReLU in place", relu_in_place, lambda x: F.relu(3 * x), randn(x=(3, 4))),
    Case("right: embedding with a sparse gradient", Embed.apply, lambda table, index: table[index], embedding_inputs),
    Case("right: embedding beside a sparse gradient", Embed.apply,
         lambda table, index: F.embedding(index, table, sparse=True), embedding_inputs),
    Case("right: maximum and its index", MaxAndIndices.apply, max_and_indices, randn(x=(3, 4))),
    Case("right: output without a gradient", WithDetachedOutput.apply, lambda x: (x * x, (x * x).amax().detach()),
         randn(x=(3, 4))),
    Case("right: factor without a gradient", OnlyTheFirst.apply, lambda x, w: x * w.detach(),
         randn(x=(2, 3), w=(2, 3))),
    Case("right: outputs that may be unused", UnmaterializedOutputs.apply, lambda x: (x.sin(), x.cos()),
         randn(x=(2, 3))),
    Case("right: sums of squares in float32", InFloat32.apply, lambda x: (x * x).sum(1), randn(x=(3, 8))),
    Case("right: sum in reversed order", ReversedSum.apply, lambda x: x.sum(0), randn(x=(9, 3))),
    Case("right: mask cached by shape", CachedMask.apply, causal_softmax, randn(x=(2, 3, 3))),
    Case("right: weight cached by version", CachedByVersion.apply, F.linear, randn(x=(3, 2), w=(4, 2))),
    Case("right: result cached by value", CachedByValue.apply, torch.exp, randn(x=(3, 4))),
    right("one tensor empty", join, lambda g, x, y: (g[: len(x)], g[len(x) :]), randn(x=(0, 3), y=(2, 3))),
    right("three outputs of one matrix product", lambda x: (x.mT @ x, x.sum(1), x.mean()),
          lambda g, h, k, x: x @ (g + g.mT) + h[:, None] + k / x.numel(), randn(x=(3, 2))),
]  # fmt: skip
