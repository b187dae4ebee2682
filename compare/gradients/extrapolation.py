"""The derivative of a function by one of its inputs' numbers: central differences, extrapolated to the step 0.

Central differences D(h) = (f(x+h) − f(x−h)) / 2h are taken for falling steps h and extrapolated (Richardson; the
table and the choice of its best entry are Ridders'). The error of an entry has three parts:

- truncation: the difference to both entries from which it is extrapolated;
- rounding: the noise of the outputs, divided by the smallest step;
- the jump of the derivative at x, which central differences do not see: they give the mean of both sides. It is the
  limit of (f(x+h) − 2 f(x) + f(x−h)) / h, which is extrapolated from the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps

# The first step is 0.15 max(|x|, 1). Where differences change as they do beyond the range in which a function is
# smooth, or where the function is not defined, the step is divided by 16, up to FIRST_STEPS times. After STEPS_OF_ONE
# times it follows the size of the input, which may be far below 1.
FIRST_STEP, REDUCTION, FIRST_STEPS, STEPS_OF_ONE = 0.15, 16, 14, 4
# Steps then fall by RATIO. A whole number would agree with the stairs of a quantiser: 4, 2 and 1 stairs in h, h/2 and
# h/4 look like a straight line.
RATIO, MAX_STEPS = 1.9, 18
ORDERS = range(3, 8)  # numbers of steps of one extrapolation
ACCEPTED_ERROR = 1e-10  # relative; no further step is tried
POOR_ERROR = 1e-3  # relative; with a larger error after MAX_STEPS, or one that still falls, smaller ones are tried
# A jump above this fraction of the outputs' slopes is a kink at x, or too near to x to be told from one. If the next
# step finds the same jump within KINK_RTOL, no smaller step is tried.
KINK, KINK_RTOL = 1e-3, 1e-3
# Differences of entries overestimate the truncation of a table that converges. The factor is for one that converges
# slowly, and for roundings that cancel by chance.
TRUNCATION_SAFETY = 2.0
EXTRAPOLATION_NOISE = 2.5  # at least the sum of the absolute weights of the steps


@dataclass(frozen=True)
class Outputs:
    """One vector of all outputs of a function, with their incoming gradients.

    Attributes:
        value: at the inputs themselves.
        incoming: incoming gradient; 0 for outputs that are not part of the derivative.
        noise: bound on the rounding error of each output.
    """

    value: Tensor
    incoming: Tensor
    noise: Tensor


class Extrapolation:
    """Table of central differences of <incoming, outputs> by one number x, and its best entry.

    Attributes:
        derivative: the best entry; NaN without one.
        error: bound on its error; infinite at a kink and without an entry.
        largest_step: largest of the steps from which the best entry is extrapolated; infinite without one.
    """

    def __init__(self, outputs: Outputs, evaluate: Callable[[float], Tensor | None], x: float) -> None:
        """``evaluate`` returns the outputs for another number in place of x, and None outside of the domain."""
        self.outputs, self.evaluate, self.x = outputs, evaluate, x
        self.weight = outputs.incoming.abs()
        self._start(math.inf)

    def run(self, input_size: float, largest_step: float = math.inf) -> None:
        """Find a first step within the range where the function is smooth; reduce it until the error is small.

        Args:
            input_size: largest absolute value of the input to which x belongs.
            largest_step: bound on the first step.
        """
        step, has_stairs = min(FIRST_STEP * max(abs(self.x), 1.0), largest_step), False
        for attempt in range(FIRST_STEPS):
            if attempt == STEPS_OF_ONE and input_size:
                step = min(step, FIRST_STEP * max(abs(self.x), input_size))
            self._start(step)
            if self._add_step() and self._add_step() and not self._leaves_smooth_range():
                while len(self.steps) < MAX_STEPS and not self.is_accepted and self._add_step():
                    pass
                converges_still = self.best_end >= len(self.steps) - 2
                if self.is_accepted or (self.error <= POOR_ERROR * abs(self.derivative) and not converges_still):
                    is_constant = self.derivative == 0 and not self.second_differences[-1].any()
                    self.error = math.inf if self.is_kink or (has_stairs and is_constant) else self.error
                    return
            # Constant below 1e-5 of a range in which differences do not converge: numbers of fewer digits, in stairs.
            has_stairs = has_stairs or len(self.steps) == MAX_STEPS
            step = self.next_step * REDUCTION if len(self.steps) == MAX_STEPS else step / REDUCTION
        self.error = math.inf

    def _start(self, step: float) -> None:
        self.next_step = step
        self.steps: list[float] = []
        self.roundings: list[float] = []  # bounds on the rounding errors of the central differences
        self.second_differences: list[Tensor] = []  # (f(x+h) − 2 f(x) + f(x−h)) / h of each output
        self.table: list[list[float]] = []  # table[j][i]: extrapolated from steps i to j
        self.derivative, self.error, self.largest_step, self.spread = math.nan, math.inf, math.inf, 0.0
        self.best_end = -1
        self.jump, self.is_kink, self.is_accepted = math.nan, False, False

    def _add_step(self) -> bool:
        """Evaluate at x ± the next step; return False outside of the domain, and if x + h is not exact."""
        h = (abs(self.x) + self.next_step) - abs(self.x)
        if abs(h - self.next_step) > self.next_step / 1024:
            return False
        after, before = self.evaluate(self.x + h), self.evaluate(self.x - h)
        if after is None or before is None:
            return False
        value, change = self.outputs.value, after - before
        row = [0.0] * len(self.steps) + [float(self.outputs.incoming @ change) / (2 * h)]
        for i in reversed(range(len(row) - 1)):
            power = RATIO ** (2 * (len(row) - 1 - i))
            row[i] = (power * row[i + 1] - self.table[-1][i]) / (power - 1)
        self.table.append(row)
        self.steps.append(h)
        self.second_differences.append(((after - value) - (value - before)) / h)
        noise = torch.maximum(self.outputs.noise, 2 * EPS * torch.maximum(after.abs(), before.abs())) * self.weight
        # Outputs that do not change may depend on x below their rounding; these errors have independent signs.
        changed = noise * (change != 0)
        self.roundings.append((float(changed.sum()) + float((noise - changed).norm())) / h)
        self.next_step /= RATIO
        if len(row) >= ORDERS[0]:
            self._judge_entries(float(self.weight @ change.abs()) / (2 * h))
        return True

    def _judge_entries(self, slope: float) -> None:
        """Keep the best entry that ends with the last step, if it is better than the best one until then.

        ``slope`` is the sum of the outputs' absolute derivatives.
        """
        j = len(self.steps) - 1
        row, previous = self.table[j], self.table[j - 1]
        starts = [j + 1 - order for order in ORDERS if order <= j + 1]
        truncation, i = min((max(abs(row[i] - row[i + 1]), abs(row[i] - previous[i])), i) for i in starts)
        truncation, rounding = TRUNCATION_SAFETY * truncation, EXTRAPOLATION_NOISE * self.roundings[j]
        previous_jump, self.jump = self.jump, self._extrapolate_jump(i, j)
        error = truncation + rounding + self.jump
        # A smaller step contradicts an entry if its difference is farther from it than those that it is made of.
        if abs(row[j] - self.derivative) > self.error + 2 * self.spread + 4 * self.roundings[j]:
            self.error = math.inf
        if error < self.error:
            self.derivative, self.error, self.largest_step = row[i], error, self.steps[i]
            self.spread = max(abs(self.table[k][k] - row[i]) for k in range(i, j + 1))
            self.best_end = j
            self.is_kink = self.jump > max(KINK * slope, rounding)
        is_same_kink = self.jump > KINK * slope and abs(self.jump - previous_jump) <= KINK_RTOL * self.jump
        remaining = truncation if is_same_kink else truncation + self.jump
        self.is_accepted = remaining <= max(ACCEPTED_ERROR * abs(row[i]), rounding)

    def _extrapolate_jump(self, i: int, j: int) -> float:
        """Jump of the derivative at x, as far as it exceeds rounding, summed over the outputs without their signs."""
        weights = _jump_weights(j - i + 1)
        terms = [w * s for w, s in zip(weights, self.second_differences[i : j + 1], strict=True)]
        jump = torch.stack(terms).sum(0).abs()
        amplification = sum(4 * abs(w) / h for w, h in zip(weights, self.steps[i : j + 1], strict=True))
        return float(torch.where(jump > amplification * self.outputs.noise, jump, 0.0) @ self.weight)

    def _leaves_smooth_range(self) -> bool:
        """Return True if the second step changes the differences as it does for no smooth function and no kink at x.

        For a smooth function D(h) tends to a constant, or to 0 as h², and second differences to 0 as h. At a kink
        both tend to constants. Beyond the smooth range of a bounded function, say, differences grow as 1 / h.
        """
        first, second = self.table[0][0], self.table[1][1]
        first_bend, second_bend = (float(s.abs() @ self.weight) for s in self.second_differences)
        noise = 4 * max(self.roundings)
        if max(abs(first), abs(second)) > noise and (not first or not 0.2 <= second / first <= 1.6):
            return True
        return second_bend > max(1.4 * first_bend, 4 * noise)


@cache
def _jump_weights(count: int) -> list[float]:
    """Weights of second differences for falling steps: exact for a constant, 0 for h, h³, h⁵, ..."""
    steps = (1 / RATIO) ** torch.arange(count, dtype=torch.float64)
    exponents = torch.tensor([0, *range(1, 2 * count - 2, 2)], dtype=torch.float64)
    constant = torch.zeros(count, dtype=torch.float64)
    constant[0] = 1
    return torch.linalg.solve(steps[None] ** exponents[:, None], constant).tolist()
