"""Gradients by finite differences in float64, with a bound on the error of every element.

They are the oracle of a case without a native function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from compare.gradients.extrapolation import EPS, Extrapolation, Outputs
from compare.random_state import set_seed

MAX_ELEMENTS = 500  # of all inputs together; of larger inputs, this many elements are drawn at random
SMALL_ERROR = 1e-9  # relative to the largest element until then
# The noise of the outputs is measured at inputs scaled by 1 + kδ: zeros and ties stay, and no kink at the inputs is
# crossed. Along such a line the fifth difference of a smooth function is 0, that of rounding errors is not (Hamming;
# Moré and Wild, 2011). NOISE_SAFETY is in standard deviations.
NOISE_STEP, NOISE_POINTS, NOISE_ORDER, NOISE_SAFETY = 1e-9, 9, 5, 4.0
MIN_NOISE = 2 * EPS  # relative; correctly implemented elementary functions have errors of up to a few roundings


@dataclass(frozen=True)
class FiniteDifference:
    """Gradient of one input by finite differences.

    Attributes:
        gradient: vector-Jacobian product in the shape of the input, float64 or complex128; NaN where it is unknown.
        error: float64 bound on the absolute error of each element. It is infinite where the gradient is not
            determined: at a kink or a tie, where no step stays inside the function's domain, and where ``checked`` is
            False.
        checked: False for the elements of large inputs that were not drawn.
    """

    gradient: Tensor
    error: Tensor
    checked: Tensor


def finite_differences(
    function: Callable[..., Any],
    inputs: dict[str, Tensor],
    incoming: Callable[[int, Tensor], Tensor],
    names: Iterable[str],
    seed: int = 0,
) -> dict[str, FiniteDifference]:
    """Differentiate the sum over n of <incoming(n, output n), output n> by each element of the inputs in ``names``.

    The function is run without autograd, on fresh copies of the inputs, each time from the same random state: about
    10 times for an element. Every element is varied alone; for a function that reads one triangle of a symmetric
    matrix, PyTorch's gradient follows another convention. For complex numbers the gradient is dL/dRe + i dL/dIm of
    L = Re sum conj(incoming) · output, as in PyTorch. If an output is infinite or NaN and its incoming gradient is
    not 0, no gradient is determined.

    Args:
        function: takes the inputs in order; returns a tensor or a tuple of tensors.
        inputs: by name; floating-point ones are converted to float64, complex ones to complex128.
        incoming: ``incoming(n, output)`` is the incoming gradient of output ``n``, in its shape; called for
            floating-point and complex outputs.
        names: inputs whose gradient is wanted.
        seed: of the random state in which the function runs, and of the choice of elements in large inputs.

    Raises:
        ValueError: a name is unknown or names an input of integers, or an incoming gradient has another shape.
        Exception: what ``function`` raises on the inputs themselves. A step to a point where it raises is outside of
            the function's domain.
    """
    names = list(names)
    unsuitable = [name for name in names if name not in inputs or not _is_continuous(inputs[name])]
    if unsuitable:
        raise ValueError(f"expected names of floating-point or complex inputs, got {unsuitable}")
    devices = sorted({tensor.get_device() for tensor in inputs.values() if tensor.is_cuda})
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        set_seed(seed)
        forward = _Forward(function, inputs, incoming, devices)
        elements = _choose_elements({name: inputs[name].numel() for name in names}, seed)
        return {name: _differentiate(forward, name, elements[name]) for name in names}


def _choose_elements(sizes: dict[str, int], seed: int) -> dict[str, list[int]]:
    """Return the positions in each input: all, or about MAX_ELEMENTS in all and at least one of every input."""
    generator, total = torch.Generator().manual_seed(seed), sum(sizes.values())
    if total <= MAX_ELEMENTS:
        return {name: list(range(size)) for name, size in sizes.items()}
    return {
        name: sorted(torch.randperm(size, generator=generator)[: max(1, MAX_ELEMENTS * size // total)].tolist())
        for name, size in sizes.items()
    }


def _differentiate(forward: _Forward, name: str, elements: list[int]) -> FiniteDifference:
    value = forward.inputs[name]
    numbers = _as_numbers(value)
    parts = 2 if value.is_complex() else 1
    input_size = float(numbers.abs().nan_to_num(0, 0, 0).max()) if len(numbers) else 0.0
    gradient, error = torch.full_like(numbers, math.nan), torch.full_like(numbers, math.inf)
    largest_step, previous, scale = math.inf, 1.0, 0.0
    for position in (parts * element + part for element in elements for part in range(parts)):
        x = float(numbers[position])
        if not (forward.is_determined and math.isfinite(x)):
            continue
        evaluate = partial(forward.at, name, position)
        result = Extrapolation(forward.outputs, evaluate, x)
        # Steps that suit an element mostly suit the next one. Where they give a larger error, all are tried.
        result.run(input_size, 8 * largest_step * max(1.0, abs(x) / previous))
        if largest_step < math.inf and not result.error <= SMALL_ERROR * max(scale, abs(result.derivative)):
            again = Extrapolation(forward.outputs, evaluate, x)
            again.run(input_size)
            result = again if again.error < result.error else result
        gradient[position], error[position] = result.derivative, result.error
        is_small = result.is_accepted and result.error < math.inf
        largest_step, previous = (result.largest_step, abs(x) or 1.0) if is_small else (math.inf, 1.0)
        scale = max(scale, abs(result.derivative)) if is_small else scale
    checked = torch.zeros(value.numel(), dtype=torch.bool)
    checked[elements] = True
    gradient, error = gradient.view(-1, parts), error.view(-1, parts).norm(dim=1)
    gradient = torch.view_as_complex(gradient) if value.is_complex() else gradient[:, 0]
    return FiniteDifference(*(t.view(value.shape).to(value.device) for t in (gradient, error, checked)))


class _Forward:
    """The function, as a function of one real number of its inputs and with all its outputs in one vector."""

    def __init__(
        self,
        function: Callable[..., Any],
        inputs: dict[str, Tensor],
        incoming: Callable[[int, Tensor], Tensor],
        devices: list[int],
    ) -> None:
        self.function = function
        self.random_state = torch.get_rng_state()
        self.device_states = {device: torch.cuda.get_rng_state(device) for device in devices}
        self.inputs = {name: _in_double(value.detach()) for name, value in inputs.items()}
        outputs = self._run(self.inputs)
        gradients = {n: incoming(n, output) for n, output in outputs.items()}
        for n, output in outputs.items():
            if gradients[n].shape != output.shape:
                shapes = [tuple(tensor.shape) for tensor in (output, gradients[n])]
                raise ValueError(f"incoming gradient of output {n}: expected shape {shapes[0]}, got {shapes[1]}")
        value, gradient = _concatenate(outputs), _concatenate({n: g.to(outputs[n]) for n, g in gradients.items()})
        self.finite = value.isfinite()
        self.is_determined = not bool(gradient[~self.finite].any())
        value, gradient = (torch.where(self.finite, vector, 0.0) for vector in (value, gradient))
        noise = torch.maximum(MIN_NOISE * value.abs(), NOISE_SAFETY * self._measure_noise(len(value)))
        self.outputs = Outputs(value, gradient, noise)

    def at(self, name: str, position: int, number: float) -> Tensor | None:
        """Outputs with one number of the input ``name`` replaced; None outside of the function's domain."""
        value = self.inputs[name].clone()
        numbers = torch.view_as_real(value) if value.is_complex() else value
        numbers.view(-1)[position] = number
        return self._vector({**self.inputs, name: value})

    def _vector(self, inputs: dict[str, Tensor]) -> Tensor | None:
        try:
            vector = _concatenate(self._run(inputs))
        except Exception:  # outside of the domain; on the inputs themselves the function did not raise
            return None
        if vector.shape != self.finite.shape:
            return None
        vector = torch.where(self.finite, vector, 0.0)
        return vector if bool(vector.isfinite().all()) else None

    def _run(self, inputs: dict[str, Tensor]) -> dict[int, Tensor]:
        """Run the function on copies; return its floating-point and complex outputs."""
        torch.set_rng_state(self.random_state)  # torch.manual_seed takes longer than most functions
        for device, state in self.device_states.items():
            torch.cuda.set_rng_state(state, device)
        result = self.function(*(value.clone() for value in inputs.values()))
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        return {n: o for n, o in enumerate(outputs) if isinstance(o, Tensor) and _is_continuous(o)}

    def _measure_noise(self, count: int) -> Tensor:
        """Standard deviation of the rounding error of each output; 0 if the scaled inputs are invalid."""
        for sign in (1, -1):
            factors = [1 + sign * NOISE_STEP * k for k in range(1, NOISE_POINTS + 1)]
            vectors = [
                self._vector({n: v * factor if _is_continuous(v) else v for n, v in self.inputs.items()})
                for factor in factors
            ]
            if count and all(vector is not None for vector in vectors):
                differences = torch.stack(vectors).diff(n=NOISE_ORDER, dim=0).abs().amax(0)
                return differences / math.sqrt(math.comb(2 * NOISE_ORDER, NOISE_ORDER))
        return torch.zeros(count, dtype=torch.float64)


def _is_continuous(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _in_double(value: Tensor) -> Tensor:
    """Convert to float64 or complex128, row-major; integers stay as they are."""
    dtype = torch.complex128 if value.is_complex() else torch.float64 if value.is_floating_point() else value.dtype
    return value.resolve_conj().resolve_neg().to(dtype).contiguous()


def _as_numbers(tensor: Tensor) -> Tensor:
    """Flatten to float64 on the CPU; a complex number becomes two."""
    tensor = tensor if tensor.layout is torch.strided else tensor.to_dense()
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.to("cpu", torch.float64).flatten()


def _concatenate(tensors: dict[int, Tensor]) -> Tensor:
    return torch.cat([*map(_as_numbers, tensors.values()), torch.zeros(0, dtype=torch.float64)])
