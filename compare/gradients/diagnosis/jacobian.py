"""The Jacobian of ours' backward beside native's: one row for each incoming gradient with a single 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.probe import Probe, relative_tolerance
from compare.gradients.run_variant import OUTPUT, output_name

MAX_ROWS = 256  # elements of one output; each costs a run of ours and one of native
MAX_ENTRIES = 400_000
MAX_OPERATIONS = 10_000  # of native, in all rows: some seconds. A limit in seconds would make results differ
MIN_ROWS = 16


@dataclass(frozen=True)
class Jacobian:
    """Derivatives of one output by one input, as backward computes them.

    Attributes:
        output: name of the output.
        output_shape, input_shape: shapes of the output and of the input's gradient.
        rows: positions of the output's elements that have a row; fewer than all if the Jacobian is capped.
        ours, expected: one row for each of ``rows``, one column for each element of the input.
        limit: largest difference of two entries that is no mistake.
    """

    output: str
    output_shape: torch.Size
    input_shape: torch.Size
    rows: Tensor
    ours: Tensor
    expected: Tensor
    limit: float

    @property
    def is_complete(self) -> bool:
        """True if every element of the output has a row."""
        return len(self.rows) == self.output_shape.numel()

    @property
    def wrong(self) -> Tensor:
        """Mask of the wrong entries."""
        return ~((self.ours - self.expected).abs() <= self.limit)

    @property
    def cap(self) -> str:
        """Words on what was not asked; "" if nothing."""
        total = self.output_shape.numel()
        return "" if self.is_complete else f"asked for {len(self.rows)} of {total:,} elements of the {self.output}"


def jacobians(mismatch: Mismatch, probe: Probe) -> list[Jacobian]:
    """The Jacobians of every output by the mismatch's input; none if a run raises. They are asked for once."""
    key = (mismatch.quantity, mismatch.draw)
    if key not in probe.jacobians:
        probe.jacobians[key] = _ask(mismatch, probe)
    return probe.jacobians[key]


def _ask(mismatch: Mismatch, probe: Probe) -> list[Jacobian]:
    matrices = []
    outputs = [(n, v) for n, v in enumerate(_outputs(mismatch)) if v.is_floating_point() and v.numel()]
    for n, output in outputs:
        jacobian = _jacobian(mismatch, probe, n, output)
        if jacobian is None:
            return []
        matrices.append(jacobian)
    return matrices


def _outputs(mismatch: Mismatch) -> list[Tensor]:
    values = mismatch.run.values
    names = [name for name in values if name.startswith(OUTPUT)]
    return [value for n in range(len(names)) if (value := values.get(output_name(n))) is not None]


def _jacobian(mismatch: Mismatch, probe: Probe, number: int, output: Tensor) -> Jacobian | None:
    total, columns = output.numel(), mismatch.oracle.numel()
    allowed = min(
        MAX_ROWS, max(1, MAX_ENTRIES // max(1, columns)), max(MIN_ROWS, MAX_OPERATIONS // probe.num_operations)
    )
    affordable = probe.affordable_runs() // 2  # a second draw confirms what the first one tells
    if affordable < min(total, MIN_ROWS):
        return None
    allowed = int(min(allowed, affordable))
    rows = torch.arange(total)
    if total > allowed:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randperm(total, generator=generator)[:allowed].sort().values
    ours, expected = [], []
    for row in rows.tolist():

        def one_hot(n: int, value: Tensor, row: int = row) -> Tensor:
            gradient = torch.zeros(value.numel(), dtype=torch.float64, device=value.device)
            if n == number:
                gradient[row] = 1.0
            return gradient.reshape(value.shape)

        got = probe.run_ours(mismatch.inputs, one_hot)
        native = probe.run_native(mismatch.inputs, one_hot)
        if got.error is not None or native is None:
            return None
        pair = got.values.get(mismatch.quantity), native.get(mismatch.quantity)
        pair = tuple(torch.zeros_like(mismatch.oracle) if t is None else t.detach().double().cpu() for t in pair)
        if any(t.numel() != columns for t in pair):
            return None
        ours.append(pair[0].flatten())
        expected.append(pair[1].flatten())
    if not ours:
        return None
    stacked = torch.stack(ours), torch.stack(expected)
    finite = stacked[1][stacked[1].isfinite()]
    size = float(finite.abs().max()) if finite.numel() else 0.0
    limit = 4 * relative_tolerance(mismatch) * max(size, 1e-300)
    return Jacobian(output_name(number), output.shape, mismatch.oracle.shape, rows, *stacked, limit)
