"""Runs of cases for the report: an error ends its own case, and no other."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from compare import capabilities, isolation
from compare.case import Case
from compare.case_errors import CaseError, CaseFailure, as_failure, errors_name_the_case
from compare.cases import all_cases, network_cases, operation_cases
from compare.gradients.comparison import Comparison, compare
from compare.load_cases import load_cases
from compare.options import CASE_COMPARISONS, DTYPE_NAMES, TIME_LIMIT
from compare.printable import printable


@dataclasses.dataclass(frozen=True)
class CaseRun:
    """Cases to run, and how.

    Attributes:
        file: the user's cases, as :func:`compare.load_cases.load_cases` takes them; None for this project's.
        quick: True for fewer of this project's cases, and without the slowest capabilities.
        dtypes: names of the dtypes of the gradient comparison.
        time_limit: seconds for a case in a process of its own; None to run all cases in this process.
        cases: the user's cases, once they are loaded in this process.
        names: names of the user's cases.
    """

    file: str | None
    quick: bool
    dtypes: tuple[str, ...]
    device: str
    time_limit: int | None
    cases: tuple[Case, ...] = ()
    names: tuple[str, ...] = ()

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> CaseRun:
        """Load the user's cases; with --isolate, only their names, in another process.

        Raises:
            CaseError: they cannot be loaded.
        """
        time_limit = (options.time_limit or TIME_LIMIT) if options.isolate else None
        dtypes = tuple(options.dtype or DTYPE_NAMES)
        run = cls(options.cases, options.quick, dtypes, options.device, time_limit)
        if run.file and time_limit:
            return dataclasses.replace(
                run, names=tuple(isolation.call(load_names, (run.file,), run.file, time_limit))
            )
        return dataclasses.replace(run, cases=tuple(load_cases(run.file))) if run.file else run

    def select(self, comparison: str) -> list[Case]:
        """Cases of a comparison: the user's, or this project's."""
        if self.file:
            return list(self.cases or load_cases(self.file))
        if comparison == "capabilities":
            return [*operation_cases(), network_cases()[0]]
        return operation_cases() + network_cases()[:1] if self.quick else all_cases()

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Names of the capabilities to run."""
        return capabilities.QUICK if self.quick else tuple(capabilities.CAPABILITIES)


def run_cases(comparison: str, run: CaseRun, bar: Any) -> tuple[list[Any], list[CaseFailure]]:
    """Run every case of a comparison; return the results, and the cases that ended in an error."""
    cases = [] if run.names else run.select(comparison)
    names = run.names or [case.name for case in cases]
    counts_capabilities = comparison == "capabilities" and run.time_limit is None
    bar.total = len(names) * (len(run.capabilities) if counts_capabilities else 1)
    results, failures = [], []
    for index, name in enumerate(names):
        bar.set_description_str(f"{comparison}: {printable(name)}")
        if run.time_limit is None:
            outcome = attempt(comparison, run, cases[index], bar)
        else:
            arguments = (comparison, dataclasses.replace(run, cases=()), name)
            try:
                outcome = isolation.call(attempt_in_this_process, arguments, name, run.time_limit)
            except CaseError as error:
                outcome = as_failure(name, error)
            bar.update(1)
        (failures if isinstance(outcome, CaseFailure) else results).append(outcome)
    return results, failures


def attempt(comparison: str, run: CaseRun, case: Case, bar: Any = None) -> Any:
    """Run one case; return its result, or a :class:`CaseFailure`: an error of the case, or one inside compare."""
    try:
        return run_case(comparison, run, case, bar)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return as_failure(case.name, error)


def run_case(comparison: str, run: CaseRun, case: Case, bar: Any = None) -> Any:
    """Run one case: a Comparison for gradients, a list of CapabilityResults for capabilities.

    Raises:
        CaseError: the case cannot be compared.
    """
    with errors_name_the_case(case.name), torch_defaults_restored():
        if comparison == CASE_COMPARISONS[0]:
            dtypes = [DTYPE_NAMES[name] for name in run.dtypes]
            return compare(case, dtypes=dtypes, device=run.device, progress=bar)
        return capabilities.run_capabilities(case, device=run.device, only=run.capabilities, progress=bar)


def attempt_in_this_process(comparison: str, run: CaseRun, name: str) -> Any:
    """Load and attempt a case in a process of its own; the functions of the result's case stay there.

    Raises:
        CaseError: the cases cannot be loaded, or there is none of that name this time.
    """
    cases = {case.name: case for case in run.select(comparison)}
    if name not in cases:
        raise CaseError(f"{name}: {run.file} had this case when it was imported first, and has it no longer")
    case = cases[name]
    outcome = attempt(comparison, run, case)
    if isinstance(outcome, Comparison):
        return dataclasses.replace(outcome, case=Case(case.name, _elsewhere, _elsewhere, _elsewhere))
    return outcome


def load_names(file: str) -> list[str]:
    """Names of the user's cases."""
    return [case.name for case in load_cases(file)]


def _elsewhere(*arguments: Any) -> Any:
    raise RuntimeError("this function was left in the process in which the case ran")


@contextmanager
def torch_defaults_restored() -> Iterator[None]:
    """Restore what a case's functions may have set for all: the default dtype, and whether gradients are recorded."""
    dtype, grad_enabled = torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad_enabled)
