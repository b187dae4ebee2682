"""The list of capabilities, and the run of all of them for ours and for native."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Protocol

from compare.capabilities import arguments, derivatives, economy, engine, safety, transforms
from compare.capabilities.outcome import Capability, Check, judge
from compare.capabilities.trial import Trial
from compare.case import Case

CAPABILITIES: dict[str, Check] = {
    "double backward": derivatives.double_backward,
    "forward mode": derivatives.forward_mode,
    "forward over reverse": derivatives.forward_over_reverse,
    "gradcheck, fast": derivatives.gradcheck_fast,
    "gradcheck, slow": derivatives.gradcheck_slow,
    "func.grad": transforms.func_grad,
    "vmap": transforms.vmap,
    "rows of jacrev": transforms.jacobian_rows,
    "torch.compile": transforms.compiled,
    "autocast": transforms.autocast,
    "checkpoint": transforms.checkpointed,
    "inputs in any layout": arguments.input_layouts,
    "gradients in any layout": arguments.gradient_layouts,
    "0-stride gradient": arguments.expanded_gradient,
    "undefined gradient": arguments.undefined_gradient,
    "empty batch": arguments.empty_batch,
    "computes only what is asked": economy.only_what_is_asked,
    "keeps only what is needed": economy.only_what_is_needed,
    "in-place changes": safety.in_place_changes,
    "arguments unchanged": safety.arguments_unchanged,
    "deterministic": safety.deterministic,
    "no leaks": safety.no_leaks,
    "threads": safety.threads,
    "backward again": engine.backward_again,
    "hooks": engine.hooks,
    "accumulation": engine.accumulation,
    "copies": engine.copies,
}
QUICK = tuple(name for name in CAPABILITIES if name not in ("torch.compile", "gradcheck, slow", "vmap"))
"""Without the slowest ones."""


class Progress(Protocol):
    """What of a tqdm bar is used."""

    total: float | None

    def update(self, n: int = 1) -> Any: ...

    def set_description_str(self, desc: str) -> Any: ...


def how(capability: str) -> str:
    """How a capability is run and judged, in a sentence."""
    return " ".join((CAPABILITIES[capability].__doc__ or "").replace("``", "").split())


def examine(
    case: Case, *, device: str = "cpu", only: Collection[str] = tuple(CAPABILITIES), progress: Progress | None = None
) -> list[Capability]:
    """Runs every capability for the case's own function and for its native one, on the case's inputs in float64.

    Args:
        case: any function of tensors beside its native counterpart.
        device: where.
        only: names of :data:`CAPABILITIES`; :data:`QUICK` leaves the slowest out.
        progress: moved on by 1 for each capability.

    Returns:
        one row for each capability, in the order of :data:`CAPABILITIES`. What the functions raise is an outcome.

    Raises:
        ValueError: a name in ``only`` that is none of them.
    """
    unknown = sorted(set(only) - set(CAPABILITIES))
    if unknown:
        raise ValueError(f"no capability is called {', '.join(unknown)}; there are {', '.join(CAPABILITIES)}")
    ours, native = (Trial(case, function, device) for function in (case.ours, case.native))
    rows = []
    for name, check in CAPABILITIES.items():
        if name not in only:
            continue
        if progress is not None:
            progress.set_description_str(f"{case.name}: {name}")
        expected, found = judge(check, native, None)
        rows.append(Capability(case.name, name, judge(check, ours, found)[0], expected))
        if progress is not None:
            progress.update(1)
    return rows


def compare_capabilities(
    cases: Iterable[Case],
    *,
    device: str = "cpu",
    only: Collection[str] = tuple(CAPABILITIES),
    progress: Progress | None = None,
) -> list[Capability]:
    """:func:`examine` for each case; ``progress.total`` is set to the number of cells."""
    cases = list(cases)
    if progress is not None:
        progress.total = len(cases) * len(set(only))
    return [row for case in cases for row in examine(case, device=device, only=only, progress=progress)]
