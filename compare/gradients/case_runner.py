"""The runs of one case in all variants, and the mismatches between ours and native in them."""

from __future__ import annotations

import textwrap
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from compare.case import Case, CaseError
from compare.gradients.diagnosis.mismatch import NO_GRADIENT, NO_OUTPUT, WRONG_DTYPE, Mismatch, RerunNative
from compare.gradients.measure import EMPTY, EQUAL, REFUSED, WRONG, Row, measure
from compare.gradients.numbers import as_real, has_gradient
from compare.gradients.oracle import Oracle, Oracles
from compare.gradients.run_variant import OUTPUT, RunResult, run_variant
from compare.gradients.variants import Variant


@dataclass(frozen=True)
class ComparedTensors:
    """Ours and the oracle of one quantity, both in float64, in one variant."""

    variant: Variant
    status: str
    ours: Tensor
    oracle: Tensor


@dataclass(frozen=True)
class Judgement:
    """The row of one quantity; its mismatch if it is wrong, and the two tensors if there are two of one shape."""

    row: Row
    mismatch: Mismatch | None = None
    tensors: ComparedTensors | None = None


class CaseRunner:
    """Run one case variant by variant."""

    def __init__(self, case: Case, device: str, seed: int, dtypes: tuple[torch.dtype, ...]) -> None:
        self.case, self.seed = case, seed
        self.mismatches: list[Mismatch] = []
        self.examples: dict[str, ComparedTensors] = {}
        self.plain = Variant(dtypes[0], device=device)
        self.oracles = Oracles(case, device, seed, (torch.float64, dtypes[0]))
        differentiable = [value for value in self.oracles.inputs.values() if has_gradient(value)]
        if not differentiable:
            dtypes_drawn = sorted({str(value.dtype).removeprefix("torch.") for value in self.oracles.inputs.values()})
            drawn = f"only {' and '.join(dtypes_drawn)}" if dtypes_drawn else "no input"
            raise CaseError(f"{case.name}: expected a floating-point tensor from make_inputs, got {drawn}")
        values = self.oracles(self.plain).values
        outputs = [v for name, v in values.items() if name.startswith(OUTPUT) and v is not None]
        if not any(output.numel() for output in outputs):
            raise CaseError(f"{case.name}: the outputs have no elements, so there is nothing to compare")
        self._input_dims = [value.dim() for value in differentiable]
        self._output_dims = [output.dim() for output in outputs]

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs whose gradients are compared."""
        return [name for name, value in self.oracles.inputs.items() if has_gradient(value)]

    def has_layouts_of(self, variant: Variant) -> bool:
        """Return True if some tensor can have the variant's layouts; channels_last, say, needs four dimensions."""
        min_dims = {"contiguous": 0, "channels_last": 4, "transposed": 2, "expanded": 2}
        for layout, dims in ((variant.layout, self._input_dims), (variant.gradient_layout, self._output_dims)):
            exactly_four = layout == "channels_last"
            if layout != "contiguous" and not any(d == 4 if exactly_four else d >= min_dims[layout] for d in dims):
                return False
        return True

    def rows(self, variant: Variant) -> list[Row]:
        """Run ours and native in one variant; return a row for each output and gradient, and note the mismatches.

        A variant in which native raises has one row, "refused". Expanding an input's first row over all rows makes a
        square matrix singular, for example.
        """
        try:
            oracle = self.oracles(variant)
        except CaseError as error:
            return [
                Row(self.case.name, OUTPUT, variant, REFUSED, message=str(error).removeprefix(f"{self.case.name}: "))
            ]
        if variant.layout == "expanded" and _is_finite(self.oracles(self.plain)) and not _is_finite(oracle):
            message = "with equal rows, native's values are infinite or NaN"
            return [Row(self.case.name, OUTPUT, variant, REFUSED, message=message)]
        native = self.run_native(variant)
        if native.error is not None:
            return [Row(self.case.name, OUTPUT, variant, REFUSED, message=_first_line(native.error))]
        ours = run_variant(self.case.ours, oracle.inputs, variant, self.seed)
        if ours.error is not None:
            return [self._error_row(variant, ours, oracle)]
        judgements = self.judge(variant, ours, native)
        for judgement in judgements:
            if judgement.mismatch is not None:
                self.mismatches.append(judgement.mismatch)
            tensors, name = judgement.tensors, judgement.row.quantity
            if tensors is not None and self._is_better_example(name, tensors):
                self.examples[name] = tensors
        return [judgement.row for judgement in judgements]

    def run_native(self, variant: Variant, requires_grad: Collection[str] | None = None) -> RunResult:
        """Run native in one variant. Without a native function, return the oracle's values, correctly rounded."""
        oracle = self.oracles(variant)
        if self.case.native is not None:
            return run_variant(
                self.case.native, oracle.inputs, variant, self.seed, requires_grad=requires_grad, finds_changes=False
            )
        ours = run_variant(self.case.ours, oracle.inputs, variant, self.seed, finds_changes=False)
        rounded = {
            name: torch.view_as_complex(oracle.values[name]).to(value.dtype)
            if value is not None and value.is_complex()
            else None
            if value is None
            else oracle.values[name].to(value.dtype)
            for name, value in ours.values.items()
            if oracle.values.get(name) is not None
        }
        return RunResult(rounded)

    def judge(
        self, variant: Variant, ours: RunResult, native: RunResult, names: Collection[str] | None = None
    ) -> list[Judgement]:
        """Judge the quantities of a run; by default all of native's and ours.

        Before a quantity is called wrong, native is perturbed more often: a kink may have been overlooked.
        """
        oracle = self.oracles(variant)
        if names is None:
            names = dict.fromkeys((*oracle.values, *ours.values))
        judgements = [self._judge(name, variant, ours, native, oracle) for name in names]
        known = {m.quantity for m in self.mismatches if m.variant == self.plain}
        wrong = [j for j in judgements if j.mismatch is not None and not j.mismatch.message]
        if not oracle.has_more_trials and any(j.row.quantity not in known for j in wrong):
            oracle.add_trials()
            judgements = [self._judge(name, variant, ours, native, oracle) for name in names]
        return judgements

    def native_rerunner(self, variant: Variant) -> RerunNative:
        """Return a function that reruns native in float64 with other incoming gradients, or with other inputs."""
        return lambda gradients, inputs=None: self.oracles.rerun(variant, gradients, inputs)[0]

    def find_side_effects(self) -> dict[str, str]:
        """Run ours twice; return the kind of finding for each modified argument and each value that differs."""
        oracle = self.oracles(self.plain)
        first, second = (run_variant(self.case.ours, oracle.inputs, self.plain, self.seed) for _ in range(2))
        side_effects = {}
        for name in first.modified:
            is_gradient = name.startswith("the incoming")
            side_effects[name] = "changes the incoming gradient" if is_gradient else "changes its input"
        for name, value in first.values.items():
            repeated = second.values.get(name)
            if first.error is None and second.error is None and value is not None and repeated is not None:
                if value.shape != repeated.shape:
                    side_effects[name] = "not repeatable"
                    continue
                difference = (as_real(value).double() - as_real(repeated).double()).abs().nan_to_num(0.0)
                largest = float(difference.max()) if value.numel() else 0.0
                if largest > oracle.trials.sensitivity(name).max_change:
                    side_effects[name] = "not repeatable"
        return side_effects

    def check_native(self) -> None:
        """Run native twice, before something is said about ours.

        Raises:
            CaseError: native returns other values the second time.
        """
        if self.case.native is None:
            return
        inputs = self.oracles(self.plain).inputs
        first, second = (self.oracles.run_native(inputs, self.plain).values for _ in range(2))
        for name, value in first.items():
            again = second.get(name)
            if value is not None and again is not None and not torch.allclose(value, again, 1e-9, 0, equal_nan=True):
                raise CaseError(
                    f"{self.case.name}: native returns another {name} in a second call with the same arguments, so "
                    "there is nothing to compare with; seed the random numbers that it draws"
                )

    def _judge(self, name: str, variant: Variant, ours: RunResult, native: RunResult, oracle: Oracle) -> Judgement:
        got, native_value, expected = ours.values.get(name), native.values.get(name), oracle.values.get(name)
        if expected is None and got is not None and name in oracle.values:  # native has no gradient: the same as 0
            expected = torch.zeros_like(as_real(got), dtype=torch.float64)
        if got is None and expected is not None and name in ours.values and not expected.any():
            got = torch.zeros_like(
                native_value if native_value is not None else expected
            )  # no gradient: the same as 0
        if got is None and expected is None:
            return Judgement(Row(self.case.name, name, variant, EQUAL))
        message = _obstacle(name, got, native_value, expected)
        if message:
            mismatch = Mismatch(name, variant, got, expected, None, 0.0, oracle.inputs, ours, message)
            return Judgement(Row(self.case.name, name, variant, WRONG, message=message), mismatch)
        got = as_real(got)
        if not expected.is_floating_point():
            wrong = (got != expected).cpu()
            status = WRONG if wrong.any() else EQUAL if got.numel() else EMPTY
            row = Row(self.case.name, name, variant, status, got.numel(), unexplained=int(wrong.sum()))
        else:
            conventions = {
                key: values[name] for key, values in oracle.conventions.items() if values.get(name) is not None
            }
            native_value = as_real(native_value) if native_value is not None else torch.zeros_like(got)
            row, wrong = measure(
                self.case.name, name, variant, got, native_value, expected, oracle.trials.sensitivity(name),
                conventions, oracle.errors.get(name),
            )  # fmt: skip
        got, expected = got.double().cpu(), expected.double().cpu()
        if name in oracle.errors and got.shape == expected.shape:
            expected = torch.where(oracle.errors[name].cpu().isfinite(), expected, got)  # not determined
        tensors = ComparedTensors(variant, row.status, got, expected)
        if row.status != WRONG:
            return Judgement(row, None, tensors)
        mismatch = Mismatch(name, variant, got, expected, wrong, row.tolerance, oracle.inputs, ours)
        return Judgement(row, mismatch, tensors)

    def _is_better_example(self, name: str, tensors: ComparedTensors) -> bool:
        """True for the first wrong one; without one, for contiguous float32, in which errors are visible."""
        previous = self.examples.get(name)
        if tensors.status == WRONG:
            return previous is None or previous.status != WRONG
        is_plain = Variant(tensors.variant.dtype, device=tensors.variant.device) == tensors.variant
        return is_plain and (
            previous is None or (previous.status != WRONG and tensors.variant.dtype is torch.float32)
        )

    def _error_row(self, variant: Variant, ours: RunResult, oracle: Oracle) -> Row:
        """Row of a run in which ours raised; its quantity is the gradient whose shape autograd rejected, if any."""
        quantity = OUTPUT if OUTPUT not in ours.values else "backward"
        for name, gradient in ours.rejected_gradients.items():
            if oracle.values.get(name) is not None and not _sums_to(gradient.shape, oracle.values[name].shape):
                quantity = name
                break
        got, expected = ours.rejected_gradients.get(quantity), oracle.values.get(quantity)
        message = _first_line(ours.error)
        self.mismatches.append(Mismatch(quantity, variant, got, expected, None, 0.0, oracle.inputs, ours, message))
        return Row(self.case.name, quantity, variant, WRONG, message=message)


def _is_finite(oracle: Oracle) -> bool:
    return all(value is None or bool(value.isfinite().all()) for value in oracle.values.values())


def _obstacle(name: str, got: Tensor | None, native: Tensor | None, expected: Tensor | None) -> str:
    """Return what prevents a comparison of numbers: a missing tensor, another shape or dtype; "" if nothing does."""
    if expected is None and got is not None:
        return "native has no such output"
    if got is None and expected is not None:
        return NO_GRADIENT if name.startswith("gradient") else NO_OUTPUT
    shape = expected.shape if native is None else native.shape  # expected is complex numbers as pairs
    if got.shape != shape:
        return f"got shape {tuple(got.shape)}, expected {tuple(shape)}"
    if native is not None and got.dtype != native.dtype:
        names = [str(t.dtype).removeprefix("torch.") for t in (got, native)]
        return f"{WRONG_DTYPE} {names[0]}, expected {names[1]}"
    return ""


def _sums_to(shape: torch.Size, target: torch.Size) -> bool:
    """Return True if autograd would silently sum a gradient of ``shape`` to ``target``."""
    try:
        return torch.broadcast_shapes(shape, target) == shape
    except RuntimeError:
        return False


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {textwrap.shorten(lines[0], 160) if lines else ''}"
