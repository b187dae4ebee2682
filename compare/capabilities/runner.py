"""Table of capabilities, and the run of all of them for our function and for the native one."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Protocol

import torch

from compare.capabilities import (
    arguments,
    autograd_engine,
    derivatives,
    needs_input_grad,
    side_effects,
    streams,
    transforms,
)
from compare.capabilities.function_under_test import FunctionUnderTest
from compare.capabilities.outcome import FAILS, NO_NATIVE, CapabilityResult, Check, run_check
from compare.case import Case

CAPABILITIES: dict[str, Check] = {
    "double backward": derivatives.double_backward,
    "forward mode": derivatives.forward_mode,
    "forward over reverse": derivatives.forward_over_reverse,
    "gradcheck, fast": derivatives.gradcheck_fast,
    "gradcheck, slow": derivatives.gradcheck_slow,
    "func.grad": transforms.func_grad,
    "vmap": transforms.vmap,
    "batched vjp": transforms.batched_vjp,
    "torch.compile": transforms.compiled,
    "autocast": transforms.autocast,
    "checkpoint": transforms.checkpointed,
    "non-contiguous inputs": arguments.input_layouts,
    "non-contiguous gradients": arguments.grad_output_layouts,
    "expanded gradient": arguments.expanded_grad_output,
    "undefined gradient": arguments.undefined_grad_output,
    "empty batch": arguments.empty_batch,
    "computes only what is needed": needs_input_grad.computes_only_what_is_needed,
    "saves only what is needed": needs_input_grad.saves_only_what_is_needed,
    "in-place changes": side_effects.in_place_changes,
    "arguments unchanged": side_effects.arguments_unchanged,
    "deterministic": side_effects.deterministic,
    "no memory leaks": side_effects.no_memory_leaks,
    "threads": side_effects.threads,
    "side stream": streams.side_stream,
    "backward twice": autograd_engine.backward_twice,
    "hooks": autograd_engine.hooks,
    "gradient accumulation": autograd_engine.gradient_accumulation,
    "deepcopy and pickle": autograd_engine.deepcopy_and_pickle,
}
FLOAT32 = (
    "torch.compile",
    "checkpoint",
    "non-contiguous inputs",
    "non-contiguous gradients",
    "expanded gradient",
    "undefined gradient",
    "empty batch",
    "in-place changes",
    "arguments unchanged",
    "deterministic",
    "threads",
    "side stream",
    "backward twice",
    "hooks",
    "gradient accumulation",
    "deepcopy and pickle",
)
"""Capabilities that run in float32 as well, in which compiled kernels serve.

The others run in float64 alone. gradcheck needs its digits. Kernels serve no tensors of torch.func, of forward mode
or of a second derivative, nor any tensor while operators are counted, so there the dtype cannot change the path.
Autocast starts from float32 as it is.
"""
QUICK = tuple(name for name in CAPABILITIES if name not in ("torch.compile", "gradcheck, slow", "vmap"))
"""Names of all capabilities but the three slowest."""


class Progress(Protocol):
    """Part of tqdm's interface that :func:`run_capabilities` uses."""

    total: float | None

    def update(self, n: int = 1) -> Any: ...

    def set_description_str(self, desc: str) -> Any: ...


def describe(capability: str) -> str:
    """Explain how a capability is run and judged: the docstring of its check, on one line."""
    return " ".join((CAPABILITIES[capability].__doc__ or "").replace("``", "").split())


def run_capabilities(
    case: Case, *, device: str = "cpu", only: Collection[str] = tuple(CAPABILITIES), progress: Progress | None = None
) -> list[CapabilityResult]:
    """Run every capability for the case's own function and for its native one, on the case's inputs in float64.

    Those in :data:`FLOAT32` run in float32 too; their result is that of float64, unless more fails in float32.

    Args:
        case: any function of tensors and its native counterpart.
        device: device of the inputs.
        only: names from :data:`CAPABILITIES`; :data:`QUICK` leaves the slowest out.
        progress: updated by 1 for each capability.

    Returns:
        one result for each capability, in the order of :data:`CAPABILITIES`. An exception of either function becomes
        an outcome.

    Raises:
        ValueError: ``only`` contains an unknown name.
    """
    unknown = sorted(set(only) - set(CAPABILITIES))
    if unknown:
        raise ValueError(f"unknown capability: {', '.join(unknown)}; expected names from {', '.join(CAPABILITIES)}")
    pairs = {
        dtype: [FunctionUnderTest(case, function, device, dtype) for function in (case.ours, case.native)]
        for dtype in (torch.float64, torch.float32)
    }
    results = []
    for name, check in CAPABILITIES.items():
        if name not in only:
            continue
        if progress is not None:
            progress.set_description_str(f"{case.name}: {name}")
        result = _run_pair(case, name, check, *pairs[torch.float64])
        if name in FLOAT32 and not result.is_lacking:
            in_float32 = _run_pair(case, name, check, *pairs[torch.float32])
            if _failures(in_float32) > _failures(result):
                result = in_float32.in_dtype(torch.float32)
        results.append(result)
        if progress is not None:
            progress.update(1)
    return results


def _run_pair(
    case: Case, name: str, check: Check, ours: FunctionUnderTest, native: FunctionUnderTest
) -> CapabilityResult:
    native_outcome, native_result = (NO_NATIVE, None) if case.native is None else run_check(check, native, None)
    our_outcome, _ = run_check(check, ours, native_result)
    return CapabilityResult(case.name, name, our_outcome, native_outcome)


def _failures(result: CapabilityResult) -> tuple[bool, bool, bool]:
    """Order results by what fails: ours where native does not, then ours, then native."""
    return result.is_lacking, result.ours.verdict == FAILS, result.native.verdict == FAILS


def compare_capabilities(
    cases: Iterable[Case],
    *,
    device: str = "cpu",
    only: Collection[str] = tuple(CAPABILITIES),
    progress: Progress | None = None,
) -> list[CapabilityResult]:
    """Call :func:`run_capabilities` for each case; ``progress.total`` is set to the number of results."""
    cases = list(cases)
    if progress is not None:
        progress.total = len(cases) * len(set(only))
    return [
        result for case in cases for result in run_capabilities(case, device=device, only=only, progress=progress)
    ]
