"""Functions that each lack one capability: ``compare.capabilities`` must find what is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from compare.case import Case
from tests.compare import defective_parts as parts
from tests.compare.defective_parts import multiply, product_with


def inputs() -> dict[str, Tensor]:
    return {"x": torch.randn(3, 4), "w": torch.randn(3, 4)}


@dataclass(frozen=True)
class DefectiveFunction:
    """A function that lacks ``capability``; the reported reason must match the pattern ``reason``."""

    name: str
    capability: str
    reason: str
    function: Callable[..., Any]
    native: Callable[..., Any] = multiply

    def case(self) -> Case:
        return Case(self.name, self.function, self.native, inputs)


INPUTS_ON_CTX = {"setup_context": parts.inputs_on_ctx}
DEFECTIVE_FUNCTIONS = [
    DefectiveFunction("once differentiable", "double backward", "once_differentiable",
                      product_with(backward=once_differentiable(parts.backward_without_needs_input_grad))),
    DefectiveFunction("gradient detached", "double backward", "cut off from the graph",
                      product_with(backward=parts.backward_all_detached)),
    DefectiveFunction("factors detached", "double backward", "gradient of x is off by",
                      product_with(backward=parts.backward_factors_detached)),
    DefectiveFunction("no jvp", "forward mode", "jvp", parts.product_without_jvp),
    DefectiveFunction("jvp ignores w", "forward mode", "for w alone: forward mode gives 0",
                      product_with(jvp=parts.jvp_of_x_alone)),
    DefectiveFunction("no jvp in backward", "forward over reverse", "jvp",
                      product_with(backward=parts.backward_without_jvp)),
    DefectiveFunction("one percent off", "gradcheck, fast", "Jacobian",
                      product_with(backward=parts.backward_one_percent_off)),
    DefectiveFunction("one percent off", "gradcheck, slow", "Jacobian mismatch",
                      product_with(backward=parts.backward_one_percent_off)),
    DefectiveFunction("forward with ctx", "func.grad", "setup_context", parts.ForwardWithCtx.apply),
    DefectiveFunction("no vmap rule", "vmap", "over x: .*vmap", product_with(generate_vmap_rule=False)),
    DefectiveFunction("vmap reverses the batch", "vmap", "over x: output is off",
                      product_with(generate_vmap_rule=False, vmap=parts.vmap_reversed)),
    DefectiveFunction("control flow in backward", "batched vjp", "data-dependent control flow",
                      product_with(backward=parts.backward_with_control_flow)),
    DefectiveFunction("control flow", "torch.compile", "Unsupported", parts.product_with_control_flow),
    DefectiveFunction("wrong when compiled", "torch.compile", "output is off by", parts.product_wrong_when_compiled),
    DefectiveFunction("two dtypes in backward", "autocast", "dtype", parts.MatmulTransposed.apply, F.linear),
    DefectiveFunction("float32 under autocast", "autocast", "float32, natively bfloat16",
                      parts.matmul_without_autocast, F.linear),
    DefectiveFunction("copies on ctx", "checkpoint", "bytes are kept",
                      product_with(setup_context=parts.input_copies_on_ctx, backward=parts.backward_from_ctx)),
    DefectiveFunction("view of inputs", "non-contiguous inputs", "inputs transposed: .*view",
                      parts.product_by_view),
    DefectiveFunction("view of gradient", "non-contiguous gradients", "gradient transposed: .*view",
                      product_with(backward=parts.backward_by_view)),
    DefectiveFunction("gradient assumed contiguous", "non-contiguous gradients", "is off by",
                      product_with(backward=parts.backward_assuming_contiguous)),
    DefectiveFunction("gradient assumed contiguous", "expanded gradient", "is off by",
                      product_with(backward=parts.backward_assuming_contiguous)),
    DefectiveFunction("None not handled", "undefined gradient", "NoneType",
                      product_with(setup_context=parts.without_materialized_grads)),
    DefectiveFunction("one None of two not handled", "undefined gradient", "NoneType", parts.TwoOutputs.apply,
                      lambda x, w: (x * w, 2 * x)),
    DefectiveFunction("maximum of an empty tensor", "empty batch", "max", parts.product_with_max),
    DefectiveFunction("computes all gradients", "computes only what is needed",
                      "without the gradient of x, computes 100 %",
                      product_with(setup_context=parts.save_all_inputs,
                                   backward=parts.backward_without_needs_input_grad)),
    DefectiveFunction("saves all inputs", "saves only what is needed", "without the gradient of x, keeps 100 %",
                      product_with(setup_context=parts.save_all_inputs)),
    DefectiveFunction("inputs on ctx", "in-place changes", "x changed before backward: gradient of w is off",
                      product_with(**INPUTS_ON_CTX, backward=parts.backward_from_ctx)),
    DefectiveFunction("gradient overwritten", "arguments unchanged", "gradient of output was modified",
                      product_with(backward=parts.backward_in_place)),
    DefectiveFunction("random", "deterministic", "output has other bits", parts.product_with_noise),
    DefectiveFunction("output on ctx", "no memory leaks", "bytes are still held",
                      product_with(setup_context=parts.output_on_ctx)),
    DefectiveFunction("growing list", "no memory leaks", "bytes are still held",
                      product_with(setup_context=parts.output_in_global_list)),
    DefectiveFunction("global variable", "threads", "while other threads run", parts.product_through_a_global),
    DefectiveFunction("reused buffer", "backward twice", "gradient of x was overwritten",
                      product_with(setup_context=parts.buffer_on_ctx, backward=parts.backward_in_one_buffer)),
    DefectiveFunction("writes .grad itself", "hooks", "hook of x was called 0 times",
                      product_with(**INPUTS_ON_CTX, backward=parts.backward_that_sets_grad)),
    DefectiveFunction("also writes .grad", "gradient accumulation", "after two runs",
                      product_with(**INPUTS_ON_CTX, backward=parts.backward_that_adds_to_grad)),
    DefectiveFunction("lambda in a module", "deepcopy and pickle", "pickle", parts.UnpicklableProduct(),
                      parts.PicklableProduct()),
]  # fmt: skip
