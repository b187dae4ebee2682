"""Demonstrations that a Function is wrong, by plain autograd in float64 and without ``compare``.

Each takes a function that makes the case, and returns True if ours differs from native in one of its situations.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from compare.case import Case

MakeCase = Callable[[], Case]
# Sizes of incoming gradients: a clipped one is large, one below a threshold small; 0 for one with zeros.
SCALES = (1.0, 1e3, 1e-4, 0.0)


def draw_inputs(case: Case, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Draw the inputs, in ``dtype`` or complex128."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inputs = case.make_inputs()
    values = inputs.values() if isinstance(inputs, Mapping) else (inputs,) if isinstance(inputs, Tensor) else inputs
    return [_cast(value.detach(), dtype) for value in values]


def is_differentiable(tensor: Tensor) -> bool:
    """Return True if autograd differentiates tensors of this dtype."""
    return tensor.is_floating_point() or tensor.is_complex()


def call(function: Callable, inputs: Sequence[Tensor], wanted: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Call ``function`` on copies of the inputs; return the outputs, and the leaves in the order of ``wanted``."""
    leaves = [value.clone().requires_grad_(n in wanted) for n, value in enumerate(inputs)]
    outputs = function(*leaves)
    outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
    return outputs, [leaves[n] for n in wanted]


def backward(
    outputs: Sequence[Tensor], leaves: Sequence[Tensor], seed: int = 0, scale: float = 1.0, only: int | None = None
) -> list[Tensor | None]:
    """Gradients of ``leaves`` for normal incoming gradients; ``only`` one of the outputs has one if it is given.

    With a ``scale`` of 0 the smallest elements are 0, and the others unchanged.
    """
    wanted = [n for n, output in enumerate(outputs) if output.requires_grad and only in (None, n)]
    if not wanted or not leaves:
        return [None] * len(leaves)
    generator = torch.Generator().manual_seed(1000 + seed)
    incoming = [
        torch.randn(outputs[n].shape, generator=generator, dtype=outputs[n].dtype) for n in wanted
    ]  # of the outputs' dtype, so complex for complex ones
    incoming = [scale * g if scale else torch.where(g.abs() < 0.5, 0, g) for g in incoming]
    differentiated = [outputs[n] for n in wanted]
    grads = torch.autograd.grad(differentiated, leaves, incoming, allow_unused=True, retain_graph=True)
    return [None if grad is None else grad.to_dense().detach() for grad in grads]


def differ(ours: Sequence[Tensor | None], native: Sequence[Tensor | None], tolerance: float = 1e-10) -> bool:
    """Return True if two values differ, where None is the same as 0."""
    return len(ours) != len(native) or any(_differ(a, b, tolerance) for a, b in zip(ours, native, strict=True))


def is_wrong_in_a_plain_call(
    make_case: MakeCase, scales: Sequence[float] = (1.0,), dtype: torch.dtype = torch.float64
) -> bool:
    """Return True for a mistake that shows with one incoming gradient that is independent of the inputs."""
    case = make_case()
    inputs = draw_inputs(case, dtype=dtype)
    wanted = _all_wanted(inputs)
    results = []
    for function in (case.ours, case.native):
        outputs, leaves = call(function, inputs, wanted)
        alone = range(len(outputs)) if len(outputs) > 1 and len(scales) > 1 else ()
        try:
            grads = [backward(outputs, leaves, scale=scale) for scale in scales]
            grads += [backward(outputs, leaves, only=n) for n in alone]
        except TypeError:
            return True
        results.append([*outputs, *itertools.chain(*grads)])
    return differ(*results, tolerance=1e-10 if dtype is torch.float64 else 1e-2)


def is_wrong_in_some_dtype(make_case: MakeCase) -> bool:
    """Return True for a mistake that shows in a plain call in float64 or float32."""
    return any(is_wrong_in_a_plain_call(make_case, dtype=dtype) for dtype in (torch.float64, torch.float32))


def is_wrong_for_some_incoming_gradient(make_case: MakeCase) -> bool:
    """Return True for a mistake that shows with a normal, large or small gradient, or with that of one output."""
    return is_wrong_in_a_plain_call(make_case, SCALES)


def is_wrong_for_some_frozen_inputs(make_case: MakeCase) -> bool:
    """Return True for a mistake that shows if only some of the inputs want a gradient."""
    case = make_case()
    inputs = draw_inputs(case)
    everything = _all_wanted(inputs)
    for size in range(len(everything)):
        for wanted in itertools.combinations(everything, size):
            results = []
            for function in (case.native, case.ours):
                try:
                    outputs, leaves = call(function, inputs, wanted)
                    results.append([*outputs, *backward(outputs, leaves)])
                except (RuntimeError, TypeError, ValueError, AttributeError):
                    return True
            if differ(*results):
                return True
    return False


def is_wrong_in_a_later_call(make_case: MakeCase) -> bool:
    """Return True for a mistake that shows in one of several sequences of calls."""
    return any(differs(make_case()) for differs in (_repeated, _interleaved, _backward_twice, _updated_in_place))


def _repeated(case: Case) -> bool:
    """Run on the inputs A, B, A, A; what the first calls returned is compared after the last one."""
    results = []
    for function in (case.ours, case.native):
        values = []
        for seed in (0, 1, 0, 0):
            inputs = draw_inputs(case, seed)
            outputs, leaves = call(function, inputs, _all_wanted(inputs))
            values += [*outputs, *backward(outputs, leaves)]
        results.append(values)
    return differ(*results)


def _interleaved(case: Case) -> bool:
    """Run two forwards, then the two backwards in the same order."""
    results = []
    for function in (case.ours, case.native):
        drawn = [draw_inputs(case, seed) for seed in (0, 1)]
        calls = [call(function, inputs, _all_wanted(inputs)) for inputs in drawn]
        results.append(list(itertools.chain(*([*outputs, *backward(outputs, leaves)] for outputs, leaves in calls))))
    return differ(*results)


def _backward_twice(case: Case) -> bool:
    """Run two backwards of one forward."""
    results = []
    for function in (case.ours, case.native):
        inputs = draw_inputs(case)
        outputs, leaves = call(function, inputs, _all_wanted(inputs))
        results.append([*backward(outputs, leaves, seed=0), *backward(outputs, leaves, seed=1)])
    return differ(*results)


def _updated_in_place(case: Case) -> bool:
    """Run twice on the same leaves, which are halved between the calls."""
    results = []
    for function in (case.ours, case.native):
        inputs = draw_inputs(case)
        wanted = _all_wanted(inputs)
        leaves = [value.clone().requires_grad_(n in wanted) for n, value in enumerate(inputs)]
        values = []
        for _ in range(2):
            outputs = function(*leaves)
            outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
            values += [*(o.clone() for o in outputs), *backward(outputs, [leaves[n] for n in wanted])]
            with torch.no_grad():
                for n in wanted:
                    leaves[n].mul_(0.5)
        results.append(values)
    return differ(*results)


def _all_wanted(inputs: Sequence[Tensor]) -> list[int]:
    return [n for n, value in enumerate(inputs) if is_differentiable(value)]


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    if value.is_complex():
        return value.to(torch.complex128)
    return value.to(dtype) if value.is_floating_point() else value


def _differ(ours: Tensor | None, native: Tensor | None, tolerance: float) -> bool:
    if ours is None or native is None:
        present = ours if native is None else native
        return present is not None and bool(present.any())
    if ours.shape != native.shape or ours.dtype != native.dtype:
        return True
    if not is_differentiable(ours):
        return not torch.equal(ours, native)
    if not ours.numel():
        return False
    scale = max(1e-3, float(native.detach().abs().nan_to_num(0.0).max()))
    return not torch.allclose(ours, native, rtol=0.0, atol=tolerance * scale, equal_nan=True)
