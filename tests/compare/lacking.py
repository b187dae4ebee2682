"""Functions that each lack one capability, to judge ``compare.capabilities`` by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from compare.case import Case
from tests.compare.lacking_parts import (
    OldStyle,
    Picklable,
    Rows,
    Two,
    Unpicklable,
    all_the_same,
    as_memory,
    but,
    depends_on_values,
    detached,
    detached_factors,
    flipped,
    from_outside,
    in_a_row,
    in_one_buffer,
    in_the_gradients_place,
    keep_a_buffer,
    keep_a_copy,
    keep_everything,
    keep_in_a_list,
    keep_outside,
    keep_the_output,
    looks_at_values,
    no_batch,
    no_tangents,
    not_lowered,
    not_materialized,
    numbers_only,
    one_percent_off,
    past_the_engine,
    past_the_engine_too,
    random,
    rows_after_rows,
    tangent_of_x_alone,
    through_a_global,
    times,
    wrong_when_compiled,
)


def inputs() -> dict[str, Tensor]:
    return {"x": torch.randn(3, 4), "w": torch.randn(3, 4)}


@dataclass(frozen=True)
class Lacking:
    """``function`` lacks ``capability``, and the reason that is found matches ``reason``."""

    name: str
    capability: str
    reason: str
    function: Callable[..., Any]
    native: Callable[..., Any] = times

    def case(self) -> Case:
        return Case(self.name, self.function, self.native, inputs)


KEPT_OUTSIDE = {"setup_context": keep_outside}
LACKING = [
    Lacking("once differentiable", "double backward", "once_differentiable",
            but(backward=once_differentiable(all_the_same))),
    Lacking("gradient detached", "double backward", "cut off from the graph", but(backward=detached)),
    Lacking("factors detached", "double backward", "gradient of x is off by", but(backward=detached_factors)),
    Lacking("no jvp", "forward mode", "jvp", no_tangents),
    Lacking("jvp forgets w", "forward mode", "for w alone: forward mode gives 0", but(jvp=tangent_of_x_alone)),
    Lacking("no jvp in backward", "forward over reverse", "jvp", but(backward=numbers_only)),
    Lacking("one percent off", "gradcheck, fast", "Jacobian", but(backward=one_percent_off)),
    Lacking("one percent off", "gradcheck, slow", "Jacobian mismatch", but(backward=one_percent_off)),
    Lacking("forward with ctx", "func.grad", "setup_context", OldStyle.apply),
    Lacking("no vmap rule", "vmap", "over x: .*vmap", but(generate_vmap_rule=False)),
    Lacking("vmap turns around", "vmap", "over x: output is off", but(generate_vmap_rule=False, vmap=flipped)),
    Lacking("control flow in backward", "rows of jacrev", "data-dependent control flow",
            but(backward=looks_at_values)),
    Lacking("control flow", "torch.compile", "Unsupported", depends_on_values),
    Lacking("other when compiled", "torch.compile", "output is off by", wrong_when_compiled),
    Lacking("two dtypes in backward", "autocast", "dtype", Rows.apply, F.linear),
    Lacking("float32 under autocast", "autocast", "float32, natively bfloat16", not_lowered, F.linear),
    Lacking("kept on ctx", "checkpoint", "bytes are kept", but(setup_context=keep_a_copy, backward=from_outside)),
    Lacking("view of inputs", "inputs in any layout", "inputs transposed: .*view", as_memory),
    Lacking("view of gradient", "gradients in any layout", "gradient transposed: .*view", but(backward=in_a_row)),
    Lacking("gradient taken for rows", "gradients in any layout", "is off by", but(backward=rows_after_rows)),
    Lacking("gradient taken for rows", "0-stride gradient", "is off by", but(backward=rows_after_rows)),
    Lacking("None not expected", "undefined gradient", "NoneType", but(setup_context=not_materialized)),
    Lacking("None of two", "undefined gradient", "NoneType", Two.apply, lambda x, w: (x * w, 2 * x)),
    Lacking("largest of none", "empty batch", "max", no_batch),
    Lacking("all gradients", "computes only what is asked", "without the gradient of x, computes 100 %",
            but(setup_context=keep_everything, backward=all_the_same)),
    Lacking("all kept", "keeps only what is needed", "without the gradient of x, keeps 100 %",
            but(setup_context=keep_everything)),
    Lacking("kept outside", "in-place changes", "x changed before backward: gradient of w is off",
            but(**KEPT_OUTSIDE, backward=from_outside)),
    Lacking("gradient overwritten", "arguments unchanged", "gradient of output was written into",
            but(backward=in_the_gradients_place)),
    Lacking("random", "deterministic", "output has other bits", random),
    Lacking("output on ctx", "no leaks", "bytes are still held", but(setup_context=keep_the_output)),
    Lacking("list that grows", "no leaks", "bytes are still held", but(setup_context=keep_in_a_list)),
    Lacking("global", "threads", "beside other threads", through_a_global),
    Lacking("one buffer", "backward again", "gradient of x was written over",
            but(setup_context=keep_a_buffer, backward=in_one_buffer)),
    Lacking("past the engine", "hooks", "hook of x was called 0 times",
            but(**KEPT_OUTSIDE, backward=past_the_engine)),
    Lacking("also past the engine", "accumulation", "after two runs",
            but(**KEPT_OUTSIDE, backward=past_the_engine_too)),
    Lacking("lambda inside", "copies", "pickle", Unpicklable(), Picklable()),
]  # fmt: skip
