"""One element of the gradient if a step of a tape had another result, without a run of the steps after it.

Backward is linear in the incoming gradient, so the element changes by the change of the step's result times a
sensitivity: the derivative of the element by that result. One run with autograd gives the sensitivities of all steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compare.gradients.diagnosis.tape import Ref, StepChange, StepKey, Tape
from compare.gradients.numbers import as_real, has_gradient

RTOL = 1e-6


class Sensitivities:
    """Sensitivities of one element of the gradient to the results of the steps of backward.

    Args:
        place: index of the element in the flattened gradient.
    """

    def __init__(self, tape: Tape, place: int) -> None:
        self.tape, self.place = tape, place
        self._sensitivities = {} if tape.is_in_place else self._run()
        self._is_linear: dict[StepKey, bool] = {}

    def element(self, key: StepKey, change: StepChange) -> float | None:
        """The element after a change of one step; None if only a replay of the tape can tell."""
        if key not in self._sensitivities:
            return None
        if key not in self._is_linear:
            self._is_linear[key] = self._predicts(key)
        return self._element(key, change) if self._is_linear[key] else None

    @torch.no_grad()
    def _element(self, key: StepKey, change: StepChange) -> float | None:
        step = self.tape.backward[self.tape.positions[key]]
        old = self.tape.values[step.results[0] or 0]
        (new,) = change(step, self.tape.flat(step))
        self.tape.add_cost(new)
        if new.shape != old.shape:
            return None
        before = float(self.tape.gradient.flatten()[self.place])
        return before + float((as_real(self._sensitivities[key]) * as_real(new - old)).sum())

    def _predicts(self, key: StepKey) -> bool:
        """True if the prediction is right for a result whose elements are multiplied by different numbers."""
        generator = torch.Generator().manual_seed(0)

        def multiplied(step, flat):
            (value,) = step.call(flat)
            factors = 4 * torch.rand(value.shape, generator=generator.manual_seed(0), dtype=torch.float64) - 2
            return [value * factors.to(value.device)]

        replayed = self.tape.replay({key: multiplied})
        if replayed is None:
            return False
        expected = float(replayed.flatten()[self.place])
        predicted = self._element(key, multiplied)
        return predicted is not None and abs(predicted - expected) <= RTOL * abs(expected)

    def _run(self) -> dict[StepKey, Tensor]:
        """Derivatives of the element by the one result of a step, for each step that has one; none if that fails."""
        env: dict[int, Tensor] = {}
        results: dict[StepKey, Tensor] = {}
        try:
            with torch.enable_grad():
                for n in self.tape.needed:
                    step = self.tape.backward[n]
                    flat = [value.detach() if isinstance(value, Tensor) else value for value in self.tape.flat(step)]
                    for k, argument in enumerate(step.arguments):
                        if isinstance(argument, Ref):
                            flat[k] = env.get(argument.number, flat[k])
                    for number, value in zip(step.results, step.call(flat), strict=True):
                        if number is not None and has_gradient(value):
                            env[number] = value if value.requires_grad else value.detach().clone().requires_grad_()
                    if len(step.results) == 1 and step.results[0] in env and step.key is not None:
                        results[step.key] = env[step.results[0]]
                element = as_real(env[self.tape.result]).flatten()[self.place]
                grads = torch.autograd.grad(element, list(results.values()), allow_unused=True)
        except Exception:  # an operation that has no derivative: then the tape is replayed for every change
            return {}
        return {key: grad for key, grad in zip(results, grads, strict=True) if grad is not None}
