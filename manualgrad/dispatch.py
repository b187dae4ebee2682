"""The one place that decides what computes a formula: a kernel for the tensors' device, or the formula itself.

A formula of ``ops/`` marked :func:`dispatched` is plain tensor algebra that a kernel may replace. A
:class:`FormulaKernel` names the formula, says which calls it does not support, and computes the others. The kernels
of a device stand in one module (``_PACKAGES``), which is imported when the first tensor of that device asks. The
device of a call is that of its first argument.

Nothing is remembered between calls but the table of kernels: what a tensor or a mode is, is looked at in every call.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from manualgrad import explanation
from manualgrad._torch_compat import assume_constant_result
from manualgrad.tensor_checks import active_eager_mode, active_mode, is_plain_tensor

P = ParamSpec("P")
R = TypeVar("R")

# The module with the ``KERNELS`` of each type of device.
_PACKAGES = {"cpu": "manualgrad.cpu.registration", "cuda": "manualgrad.cuda.registration"}


@dataclass(frozen=True)
class Backend:
    """The part that all kernels of a device share.

    Attributes:
        device: type of the device, such as "cpu".
        current_module: returns the compiled kernels in use, the first argument of every ``run``, or None if kernels
            are off. It is called only for supported calls, so that nothing is compiled for others.
        why_none: the reason why ``current_module`` returned None.
    """

    device: str
    current_module: Callable[[], Any]
    why_none: Callable[[], str]


@dataclass(frozen=True)
class FormulaKernel:
    """A faster way to compute one formula on one device.

    Attributes:
        formula: name of the function that is marked :func:`dispatched`.
        backend: its device.
        unsupported: called with the formula's arguments, returns the reason why the kernel does not compute them, ""
            if it does. torch.compile traces it with tensors that have no values, where there is an operator.
        run: called with ``backend.current_module()`` and the formula's arguments, returns the formula's result.
        declines: the reason for which ``run`` returns None after it ran, "" if it never does. The formula computes
            the result then. Only on the CPU, since elsewhere it takes a synchronisation to know.
    """

    formula: str
    backend: Backend
    unsupported: Callable[..., str]
    run: Callable[..., Any]
    declines: str = ""

    def __post_init__(self) -> None:
        if self.declines and self.backend.device != "cpu":
            raise ValueError(
                f"FormulaKernel: only a CPU kernel may decline, not {self.formula} on {self.backend.device}"
            )


# ------------------------------------------------------------------------------------------------ the table

_kernels: dict[tuple[str, str], FormulaKernel] = {}  # by formula and device
_loaded_devices: set[str] = set()
_why_no_kernels: dict[str, str] = {}  # by device: the reason why it has none, "" if it has
_operators: dict[str, Callable[..., Any]] = {}  # by formula
NO_KERNEL = "it has no kernel on this device"


def find_kernel(formula: str, device: str) -> FormulaKernel | None:
    """The kernel for ``formula``, a name, on the type of device; None if there is none."""
    if device not in _loaded_devices:
        if device in _PACKAGES:
            package = importlib.import_module(_PACKAGES[device])
            kernels = getattr(package, "KERNELS", None)
            if kernels is None:  # this is a signal handler that interrupted the import
                return None
            _why_no_kernels[device] = getattr(package, "WHY_NO_KERNELS", "")
            _kernels.update({(kernel.formula, device): kernel for kernel in kernels})
        _loaded_devices.add(device)
    return _kernels.get((formula, device))


@contextmanager
def registered(kernel: FormulaKernel) -> Iterator[None]:
    """Use ``kernel`` inside the block, instead of the one that its formula has on its device, if any."""
    key = (kernel.formula, kernel.backend.device)
    previous = find_kernel(*key)
    _kernels[key] = kernel
    try:
        yield
    finally:
        if previous is None:
            del _kernels[key]
        else:
            _kernels[key] = previous


def set_operator(formula: str, operator: Callable[..., Any]) -> None:
    """Make torch.compile record ``operator``, a call of a ``torch.library`` operator, in place of ``formula``, if a
    kernel supports the traced tensors. When the compiled code runs, the operator dispatches again."""
    _operators[formula] = operator


# ---------------------------------------------------------------------------------------------- the decision


def dispatched(formula: Callable[P, R]) -> Callable[P, R]:
    """Return a function that calls the kernel for ``formula``, or ``formula`` where no kernel computes the call.

    The arguments are positional, the first is a tensor. ``__wrapped__`` is ``formula`` itself.
    """
    name, compute = formula.__name__, cast("Callable[..., R]", formula)

    @functools.wraps(formula)
    def call(*args: Any) -> Any:
        result, reason = _run_kernel(name, args)
        if explanation.records is None or torch.compiler.is_compiling():
            return compute(*args) if result is None else result
        if result is not None:
            explanation.record(name, f"{args[0].device.type} kernel", "", *args)
            return result
        explanation.record(name, "formula", reason, *args)
        with explanation.indented():
            return compute(*args)

    return cast("Callable[P, R]", call)


def by_kernel(name: str, *args: Any) -> Any | None:
    """The result of the kernel registered for ``name``, or None if no kernel computes the call.

    For a kernel that computes several formulas at once, where the caller has another way to compute them. There is
    no record of it on a device that has no such kernel."""
    result, reason = _run_kernel(name, args)
    if explanation.records is not None and reason != NO_KERNEL and not torch.compiler.is_compiling():
        computed_by = "its parts, one by one" if result is None else f"{args[0].device.type} kernel"
        explanation.record(name, computed_by, reason, *args)
    return result


def has_kernel(name: str, *args: Any) -> bool:
    """Return True if a kernel would compute ``name`` of these arguments, outside of compilers."""
    kernel = find_kernel(name, args[0].device.type)
    if kernel is None or torch.compiler.is_compiling() or active_eager_mode() or kernel.unsupported(*args):
        return False
    return kernel.backend.current_module() is not None


def _run_kernel(name: str, args: tuple[Any, ...]) -> tuple[Any, str]:
    """The result of a kernel and "", or None and the reason."""
    x: Tensor = args[0]
    device = "cpu" if x.is_cpu else x.device.type  # is_cpu takes a fifth of the time
    if torch.compiler.is_compiling():
        return _run_operator(name, device, args)
    kernel = _kernels.get((name, device)) or find_kernel(name, device)
    if kernel is None:
        return None, _why_no_kernels.get(device) or NO_KERNEL
    if reason := active_eager_mode() or kernel.unsupported(*args):
        return None, reason
    module = kernel.backend.current_module()
    if module is None:
        return None, kernel.backend.why_none()
    result = kernel.run(module, *args)
    if result is None and not kernel.declines:
        raise RuntimeError(f"the kernel for {name} on {device} returned None, and declares no reason to decline")
    return result, "" if result is not None else f"the kernel ran and declined: {kernel.declines}"


def _run_operator(name: str, device: str, args: tuple[Any, ...]) -> tuple[Any, str]:
    """:func:`_run_kernel` while torch.compile traces: kernels are recorded as operators, where they have one."""
    if name not in _operators or not _kernels_in_use(name, device):
        return None, active_mode()
    reason = _kernels[name, device].unsupported(*args)
    return (None, reason) if reason else (_operators[name](*args), "")


@assume_constant_result
def _kernels_in_use(name: str, device: str) -> bool:
    kernel = find_kernel(name, device)
    return kernel is not None and kernel.backend.current_module() is not None


# -------------------------------------------------------- sizes and variants of formulas that suit a device

BLOCK_K = 64  # terms of a block; for K < 2,048 blocks of 32 have a smaller error, but take up to 12 % longer
CHUNK_NUMEL = 64 * 16 * 24 * 24  # 2.4 MB in float32: fits into the CPU's caches


def sum_block_length(x: Tensor) -> int | None:
    """Approximate number of terms that a matrix product of ``x`` sums at a time; None for all at once.

    Only float32 on the CPU is split: 16-bit numbers would be rounded to 16 bits after each block, float64 has enough
    digits, and on a GPU each block would be one more kernel launch."""
    return BLOCK_K if x.dtype == torch.float32 and x.device.type == "cpu" else None


def chunk_numel(*tensors: Tensor | None) -> int | None:
    """Numbers of an intermediate result that formulas compute at a time, from a part of the batch; None for all."""
    return CHUNK_NUMEL if _are_plain_on_cpu(tensors) else None


def uses_bit_masks(*tensors: Tensor | None) -> bool:
    """Return True if masks should be made of bits, by operators that PyTorch vectorises only on the CPU."""
    return _are_plain_on_cpu(tensors)


def _are_plain_on_cpu(tensors: tuple[Tensor | None, ...]) -> bool:
    return all(t is None or (t.is_cpu and is_plain_tensor(t)) for t in tensors)
