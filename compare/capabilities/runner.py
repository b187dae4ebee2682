"""Table of capabilities, and the run of all of them for our function and for the native one."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Protocol

from compare.capabilities import arguments, autograd_engine, derivatives, needs_input_grad, side_effects, transforms
from compare.capabilities.function_under_test import FunctionUnderTest
from compare.capabilities.outcome import CapabilityResult, Check, run_check
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
    "backward twice": autograd_engine.backward_twice,
    "hooks": autograd_engine.hooks,
    "gradient accumulation": autograd_engine.gradient_accumulation,
    "deepcopy and pickle": autograd_engine.deepcopy_and_pickle,
}
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
    ours, native = (FunctionUnderTest(case, function, device) for function in (case.ours, case.native))
    results = []
    for name, check in CAPABILITIES.items():
        if name not in only:
            continue
        if progress is not None:
            progress.set_description_str(f"{case.name}: {name}")
        native_outcome, native_result = run_check(check, native, None)
        our_outcome, _ = run_check(check, ours, native_result)
        results.append(CapabilityResult(case.name, name, our_outcome, native_outcome))
        if progress is not None:
            progress.update(1)
    return results


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
