"""Element-wise product x w: a Function with every capability, and parts that each remove one capability."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from manualgrad.ops.differentiable import differentiable, save_for_derivatives, sum_present


class Product(Function):
    """Element-wise product x w with every capability."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        return x * w

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        save_for_derivatives(ctx, *inputs, needed=(ctx.needs_input_grad[1], ctx.needs_input_grad[0]))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, w = ctx.saved_tensors
        needs_grad_x, needs_grad_w = ctx.needs_input_grad
        return product(g, w) if needs_grad_x else None, product(g, x) if needs_grad_w else None

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, w_t: Tensor | None) -> Tensor | None:
        x, w = ctx.saved_tensors
        return sum_present(None if x_t is None else product(x_t, w), None if w_t is None else product(x, w_t))


product = differentiable(Product)


def product_with(**attributes: Any) -> Callable[..., Any]:
    """Element-wise product by a subclass of :class:`Product` with these attributes."""
    return differentiable(
        type(
            "DefectiveProduct", (Product,), {k: staticmethod(v) if callable(v) else v for k, v in attributes.items()}
        )
    )


def product_grads(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return product(g, w), product(g, x)


def save_all_inputs(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.save_for_forward(*inputs)


def inputs_on_ctx(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.x, ctx.w = inputs


def input_copies_on_ctx(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.x, ctx.w = (tensor.clone() for tensor in inputs)


def output_on_ctx(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    save_all_inputs(ctx, inputs, output)
    ctx.output = output  # a reference cycle: the output refers to ctx


SAVED_OUTPUTS: list[Tensor] = []


def output_in_global_list(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    save_all_inputs(ctx, inputs, output)
    SAVED_OUTPUTS.append(output.detach())


def buffer_on_ctx(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    save_all_inputs(ctx, inputs, output)
    ctx.buffer = torch.empty_like(output)


def without_materialized_grads(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    save_all_inputs(ctx, inputs, output)
    ctx.set_materialize_grads(False)


def backward_from_ctx(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    return product_grads(g, ctx.x, ctx.w)


def backward_all_detached(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    x, w = ctx.saved_tensors
    return product_grads(g.detach(), x.detach(), w.detach())


def backward_factors_detached(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    x, w = ctx.saved_tensors
    return product_grads(g, x.detach(), w.detach())


def backward_without_jvp(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    x, w = ctx.saved_tensors
    return product_without_jvp(g, w), product_without_jvp(g, x)


def backward_without_needs_input_grad(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    return product_grads(g, *ctx.saved_tensors)


def backward_one_percent_off(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    grad_x, grad_w = product_grads(g, *ctx.saved_tensors)
    return grad_x, 1.01 * grad_w


def backward_with_control_flow(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    return product_grads(g if g.sum() else torch.zeros_like(g), *ctx.saved_tensors)


def backward_by_view(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    x, w = ctx.saved_tensors
    return product_grads(g.view(-1).view(g.shape), x, w)


def backward_assuming_contiguous(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    """Backward that takes the gradient for contiguous."""
    x, w = ctx.saved_tensors
    g = g.as_strided(g.shape, (g.shape[1], 1)) if g.untyped_storage().nbytes() >= g.nbytes else g * float("nan")
    return product_grads(g, x, w)


def backward_in_place(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    x, w = ctx.saved_tensors
    return g * w, g.mul_(x)


def backward_in_one_buffer(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    x, w = ctx.saved_tensors
    return ctx.buffer.copy_(g * w), g * x


def backward_that_sets_grad(ctx: Any, g: Tensor) -> tuple[None, None]:
    ctx.x.grad, ctx.w.grad = product_grads(g, ctx.x, ctx.w)
    return None, None


def backward_that_adds_to_grad(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    if ctx.x.grad is not None:
        ctx.x.grad += 1
    return backward_from_ctx(ctx, g)


def jvp_of_x_alone(ctx: Any, x_t: Tensor | None, w_t: Tensor | None) -> Tensor:
    x, w = ctx.saved_tensors
    return torch.zeros_like(x) if x_t is None else product(x_t, w)


def forward_with_ctx(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
    ctx.save_for_backward(x, w)
    return x * w


class ForwardWithCtx(Function):
    forward, backward = staticmethod(forward_with_ctx), staticmethod(backward_without_needs_input_grad)


def vmap_reversed(info: Any, in_dims: tuple[int | None, ...], x: Tensor, w: Tensor) -> tuple[Tensor, int]:
    return product(*torch.broadcast_tensors(x, w)).flip(0), 0


def product_with_max(x: Tensor, w: Tensor) -> Tensor:
    return x * w * (x.max() / x.max())


def product_by_view(x: Tensor, w: Tensor) -> Tensor:
    return (x.view(-1) * w.view(-1)).view(x.shape)


def product_wrong_when_compiled(x: Tensor, w: Tensor) -> Tensor:
    return product(x, 2 * w) if torch.compiler.is_compiling() else product(x, w)


def product_with_control_flow(x: Tensor, w: Tensor) -> Tensor:
    return product(x, w) if x.sum() < 1e9 else product(w, x)


def product_with_noise(x: Tensor, w: Tensor) -> Tensor:
    return product(x, w) + 1e-14 * torch.rand(())


SHARED: dict[str, Tensor] = {}


def product_through_a_global(x: Tensor, w: Tensor) -> Tensor:
    SHARED["x"] = x.clone()
    time.sleep(1e-4)
    return product(SHARED["x"], w)


class MatmulTransposed(Function):
    """x wᵀ, which autocast computes in a lower precision; its backward then receives two dtypes."""

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        return x.mm(w.t())

    setup_context = staticmethod(save_all_inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g.mm(w), g.t().mm(x)


class TwoOutputs(Function):
    """x w and 2 x; backward does not check whether their gradients are None."""

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return x * w, 2 * x

    setup_context = staticmethod(without_materialized_grads)

    @staticmethod
    def backward(ctx: Any, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g * w + 2 * h, g * x


class UnpicklableProduct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.function = lambda x, w: product(x, w)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return self.function(x, w)


class PicklableProduct(nn.Module):
    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return x * w


def multiply(x: Tensor, w: Tensor) -> Tensor:
    return x * w


def matmul_without_autocast(x: Tensor, w: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return x @ w.t()


product_without_jvp = product_with(jvp=Function.jvp)
