"""x w in many ways: a Function with every capability, and parts that take one of them away."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from manualgrad.ops.differentiable import differentiable, save, total


class Product(Function):
    """x w, element by element, with every capability."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        return x * w

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        save(ctx, *inputs, needed=(ctx.needs_input_grad[1], ctx.needs_input_grad[0]))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, w = ctx.saved_tensors
        for_x, for_w = ctx.needs_input_grad
        return product(g, w) if for_x else None, product(g, x) if for_w else None

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, w_t: Tensor | None) -> Tensor | None:
        x, w = ctx.saved_tensors
        return total(None if x_t is None else product(x_t, w), None if w_t is None else product(x, w_t))


product = differentiable(Product)


def but(**parts: Any) -> Callable[..., Any]:
    """:class:`Product` with other parts."""
    return differentiable(
        type("Lacking", (Product,), {k: staticmethod(v) if callable(v) else v for k, v in parts.items()})
    )


def both_gradients(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return product(g, w), product(g, x)


def keep_everything(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.save_for_forward(*inputs)


def keep_outside(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.x, ctx.w = inputs


def keep_a_copy(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.x, ctx.w = (tensor.clone() for tensor in inputs)


def keep_the_output(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    keep_everything(ctx, inputs, output)
    ctx.output = output  # which holds ctx


EVER_GROWING: list[Tensor] = []


def keep_in_a_list(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    keep_everything(ctx, inputs, output)
    EVER_GROWING.append(output.detach())


def keep_a_buffer(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    keep_everything(ctx, inputs, output)
    ctx.buffer = torch.empty_like(output)


def not_materialized(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    keep_everything(ctx, inputs, output)
    ctx.set_materialize_grads(False)


def from_outside(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    return both_gradients(g, ctx.x, ctx.w)


def detached(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    x, w = ctx.saved_tensors
    return both_gradients(g.detach(), x.detach(), w.detach())


def detached_factors(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    x, w = ctx.saved_tensors
    return both_gradients(g, x.detach(), w.detach())


def numbers_only(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    x, w = ctx.saved_tensors
    return no_tangents(g, w), no_tangents(g, x)


def all_the_same(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    return both_gradients(g, *ctx.saved_tensors)


def one_percent_off(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    for_x, for_w = both_gradients(g, *ctx.saved_tensors)
    return for_x, 1.01 * for_w


def looks_at_values(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    return both_gradients(g if g.sum() else torch.zeros_like(g), *ctx.saved_tensors)


def in_a_row(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    x, w = ctx.saved_tensors
    return both_gradients(g.view(-1).view(g.shape), x, w)


def rows_after_rows(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    """Takes it for granted that the gradient lies in memory row after row."""
    x, w = ctx.saved_tensors
    g = g.as_strided(g.shape, (g.shape[1], 1)) if g.untyped_storage().nbytes() >= g.nbytes else g * float("nan")
    return both_gradients(g, x, w)


def in_the_gradients_place(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    x, w = ctx.saved_tensors
    return g * w, g.mul_(x)


def in_one_buffer(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    x, w = ctx.saved_tensors
    return ctx.buffer.copy_(g * w), g * x


def past_the_engine(ctx: Any, g: Tensor) -> tuple[None, None]:
    ctx.x.grad, ctx.w.grad = both_gradients(g, ctx.x, ctx.w)
    return None, None


def past_the_engine_too(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    if ctx.x.grad is not None:
        ctx.x.grad += 1
    return from_outside(ctx, g)


def tangent_of_x_alone(ctx: Any, x_t: Tensor | None, w_t: Tensor | None) -> Tensor:
    x, w = ctx.saved_tensors
    return torch.zeros_like(x) if x_t is None else product(x_t, w)


def forward_of_old(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
    ctx.save_for_backward(x, w)
    return x * w


class OldStyle(Function):
    forward, backward = staticmethod(forward_of_old), staticmethod(all_the_same)


def flipped(info: Any, in_dims: tuple[int | None, ...], x: Tensor, w: Tensor) -> tuple[Tensor, int]:
    return product(*torch.broadcast_tensors(x, w)).flip(0), 0


def no_batch(x: Tensor, w: Tensor) -> Tensor:
    return x * w * (x.max() / x.max())


def as_memory(x: Tensor, w: Tensor) -> Tensor:
    return (x.view(-1) * w.view(-1)).view(x.shape)


def wrong_when_compiled(x: Tensor, w: Tensor) -> Tensor:
    return product(x, 2 * w) if torch.compiler.is_compiling() else product(x, w)


def depends_on_values(x: Tensor, w: Tensor) -> Tensor:
    return product(x, w) if x.sum() < 1e9 else product(w, x)


def random(x: Tensor, w: Tensor) -> Tensor:
    return product(x, w) + 1e-14 * torch.rand(())


SHARED: dict[str, Tensor] = {}


def through_a_global(x: Tensor, w: Tensor) -> Tensor:
    SHARED["x"] = x.clone()
    time.sleep(1e-4)
    return product(SHARED["x"], w)


class Rows(Function):
    """x wᵀ, which autocast lowers; its backward meets two dtypes then."""

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        return x.mm(w.t())

    setup_context = staticmethod(keep_everything)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g.mm(w), g.t().mm(x)


class Two(Function):
    """x w and x, whose gradients may be None and are not looked at."""

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return x * w, 2 * x

    setup_context = staticmethod(not_materialized)

    @staticmethod
    def backward(ctx: Any, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g * w + 2 * h, g * x


class Unpicklable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.function = lambda x, w: product(x, w)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return self.function(x, w)


class Picklable(nn.Module):
    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return x * w


def times(x: Tensor, w: Tensor) -> Tensor:
    return x * w


def not_lowered(x: Tensor, w: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return x @ w.t()


no_tangents = but(jvp=Function.jvp)
