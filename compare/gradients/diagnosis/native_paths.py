"""A gradient that equals native's with one change in the derivative of one operation of native."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from compare.gradients.diagnosis import changed_native as changed
from compare.gradients.diagnosis.changed_native import NativeChange, gradient_of_changed
from compare.gradients.diagnosis.factors import name_factor
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import Mismatch, equal_up_to_rounding, solve_least_squares
from compare.gradients.diagnosis.native_calls import Call
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.diagnosis.transformations import transformations
from compare.gradients.diagnosis.wording import format_number
from compare.gradients.run_variant import gradient_name

MAX_SITES = 60  # places in native's code
MAX_CALLS = 40_000  # of native's operations, in all runs of changed native for one case: a second or two
MAX_INDICES = 8  # calls that return integers
MAX_OPERANDS = 14  # tensors that are tried in the place of an operand
SMOOTH = ("exp", "log", "tanh", "sigmoid", "sqrt", "rsqrt", "sin", "cos")  # no backward is right without them
MASKS = (
    "where", "masked_fill", "relu", "clamp", "clamp_min", "clamp_max", "maximum", "minimum", "hardtanh", "threshold",
    "leaky_relu", "prelu", "triu", "tril", "amax", "amin",
)  # fmt: skip
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


@dataclass
class _Path:
    """One argument of the calls of a site, on the way from the input to the output."""

    call: Call
    position: int
    words: str
    part: Tensor | None = None  # of the gradient, through this argument
    names: dict[int, str] = field(default_factory=dict)


class NativePaths:
    """Search for the change. The gradient must be explained in a second draw too."""

    def __init__(self, mismatch: Mismatch, probe: Probe) -> None:
        self.mismatch, self.probe = mismatch, probe
        self.change: NativeChange | None = None  # the last one that explains both draws
        self.recording = changed.record(mismatch, probe)
        self.calls, self.composites = self.recording.calls, self.recording.composites
        self.records = self.recording.records
        self.second = probe.mismatch(mismatch, 1)
        self.second_records = changed.record(self.second, probe).records if self.second is not None else {}
        self.sites = Counter(call.site for call in self.calls)
        self.names = _names(self.calls, mismatch)
        self.paths = self._find_paths()
        reference = gradient_of_changed(mismatch, probe, None)
        self.is_traced = (
            bool(self.paths)
            and reference is not None
            and reference.shape == mismatch.oracle.shape
            and equal_up_to_rounding(reference, mismatch.oracle, 4 * mismatch.tolerance)
        )

    def find(self) -> Iterator[Finding]:
        """Every finding that explains both draws; those with the fewest free numbers first."""
        if not self.is_traced:
            return
        for search in (
            self._scaled_paths, self._pairs_of_paths, self._passed_through, self._other_values, self._replaced,
            self._transformed,
        ):  # fmt: skip
            for finding in search():
                if self.change is not None:
                    self.probe.explanations[finding.kind, finding.statement] = self.change
                yield finding

    def _find_paths(self) -> list[_Path]:
        paths: dict[Any, _Path] = {}
        for call in self.calls:
            flat, _ = tree_flatten((call.args, call.kwargs))
            for position, tensor in call.tensors:
                if not tensor.requires_grad or (call.site, position) in paths:
                    continue
                paths[call.site, position] = _Path(call, position, self._words(call, position, flat))
        return list(paths.values())[::-1][: 2 * MAX_SITES]  # of equal explanations, that nearest to the output

    def _words(self, call: Call, position: int, flat: list[Any]) -> str:
        """The argument and the operation: "the first argument (x) of mul in line 4, `y = x * w`"."""
        operation = call.name.removeprefix("the result of ")
        positions = [n for n, _ in call.tensors]
        if len(positions) == 1:
            return operation
        name = self.names.get(id(flat[position]))
        tail = operation[operation.find(" in line") :]
        name = name and name.removesuffix(tail)  # the same line is not told twice
        ordinal = ORDINALS[min(positions.index(position), len(ORDINALS) - 1)]
        return f"the {ordinal} argument{f' ({name})' if name else ''} of {operation}"

    def _gradient(self, change: NativeChange) -> Tensor | None:
        if self._is_spent():
            return None
        self.probe.native_calls += len(self.calls)
        return gradient_of_changed(self.mismatch, self.probe, change, self.records)

    def _is_spent(self) -> bool:
        """True after ``MAX_CALLS``; then nothing more is tried. A limit in seconds would make results differ."""
        return self.probe.native_calls > MAX_CALLS

    def _explains(self, change: NativeChange, path: _Path | None = None) -> bool:
        if self._is_spent():
            return False
        self.probe.native_calls += 1
        if path is not None and self.sites[change.site] == 1 and path.part is not None:
            part = self.recording.derivative(path.call, change)
            if part is None or not self.mismatch.equals(self.mismatch.oracle - path.part + part):
                return False
        got = self._gradient(change)
        if got is None or got.shape != self.mismatch.ours.shape or not self.mismatch.equals(got):
            return False
        if self.second is not None:
            again = gradient_of_changed(self.second, self.probe, change, self.second_records)
            if again is None or not self.second.equals(again):
                return False
        self.change = change
        return True

    # ----------------------------------------------------------------------------- paths that count too much or not

    def _scaled_paths(self) -> Iterator[Finding]:
        difference = self.mismatch.ours - self.mismatch.oracle
        later: list[tuple[_Path, float, NativeChange]] = []
        for path in self.paths:
            omitted = NativeChange(path.call.site, path.position, changed.omitted)
            without = self._gradient(omitted)
            if without is None:
                continue
            part = self.mismatch.oracle - without
            path.part = part
            square = float((part * part).sum())
            if not square:
                continue
            weight = 1 + float((difference * part).sum()) / square
            weight = 0.0 if abs(weight) < 1e-9 else weight
            if not self.mismatch.equals(self.mismatch.oracle + (weight - 1) * part):
                continue
            change = NativeChange(path.call.site, path.position, changed.scaled(weight))
            if not self._confirms_weights({path.position: (path, weight)}):
                continue
            if self._changes_right_gradient(change):
                later.append((path, weight, change))
                continue
            self.change = change
            yield self._weight_finding(path, weight)
        for path, weight, change in later:
            self.change = change
            yield self._weight_finding(path, weight)

    def _changes_right_gradient(self, change: NativeChange) -> bool:
        """True if the change makes the gradient of another input wrong, which is right."""
        for name in self.probe.right_inputs:
            other = replace(self.mismatch, quantity=gradient_name(name))
            before, after = (gradient_of_changed(other, self.probe, c, self.records) for c in (None, change))
            if before is not None and after is not None and not torch.allclose(before, after, 1e-9, 1e-12):
                return True
        return False

    def _confirms_weights(self, weights: dict[int, tuple[_Path, float]]) -> bool:
        if self.second is None:
            return True
        expected = self.second.oracle.clone()
        for path, weight in weights.values():
            omitted = NativeChange(path.call.site, path.position, changed.omitted)
            without = gradient_of_changed(self.second, self.probe, omitted)
            if without is None:
                return False
            expected += (weight - 1) * (self.second.oracle - without)
        return self.second.equals(expected)

    def _weight_finding(self, path: _Path, weight: float) -> Finding:
        quantity = self.mismatch.quantity
        if weight == 0:
            statement = f"the part of the derivative through {path.words} is missing, as if it were a constant"
            return Finding("missing term", quantity, statement, "equals native's gradient with that path cut")
        name = name_factor(weight, self.mismatch, None)
        name = f" ({name})" if name else ""
        if abs(weight + 1) < 1e-6:
            statement = f"the part of the derivative through {path.words} has the wrong sign"
        else:
            statement = f"the part of the derivative through {path.words} is {format_number(weight)} times as large"
            statement += f" as it should be{name}"
        return Finding("factor of one term", quantity, statement, "all other parts are right")

    def _pairs_of_paths(self) -> Iterator[Finding]:
        """Two paths that are both missing, such as mean and variance."""
        self.change = None
        parts = [path for path in self.paths if path.part is not None and path.part.any()]
        difference = self.mismatch.ours - self.mismatch.oracle
        verbs = {0: "is missing", -1: "has the wrong sign", 2: "counts twice"}
        findings: list[tuple[int, Finding]] = []
        for a, b in itertools.combinations(parts[:40], 2):
            columns = torch.stack([a.part.flatten(), b.part.flatten()], 1)
            solution = solve_least_squares(columns, difference.flatten().unsqueeze(1))
            if solution is None:
                continue
            weights = [1 + float(w) for w in solution.flatten()]
            if any(min(abs(w - simple) for simple in verbs) > 1e-6 for w in weights):
                continue
            first, second = (round(w) for w in weights)
            if not self.mismatch.equals(self.mismatch.oracle + (columns @ solution).reshape(difference.shape)):
                continue
            if 0 not in (first, second) or not self._confirms_weights({0: (a, first), 1: (b, second)}):
                continue
            statement = f"the part of the derivative through {a.words} {verbs[first]}"
            statement += f", and the one through {b.words} {verbs[second]}"
            findings.append((abs(first) + abs(second), Finding("missing term", self.mismatch.quantity, statement)))
        yield from [finding for _, finding in sorted(findings, key=lambda pair: pair[0])][:1]

    # -------------------------------------------------------------------------------------- other operands

    def _passed_through(self) -> Iterator[Finding]:
        quantity = self.mismatch.quantity
        for path in self.paths:
            site, position = path.call.site, path.position
            if self._explains(NativeChange(site, position, changed.passed_through), path):
                yield Finding("missing term", quantity, self._passed_words(path))
            if len(path.call.tensors) > 1:
                alone = NativeChange(site, position, changed.passed_through, alone=True)
                if self._explains(alone):
                    yield Finding("missing term", quantity, self._passed_words(path) + ", and the others get none")
            if self._explains(NativeChange(site, position, changed.transposed_map), path):
                statement = f"is computed with {path.words} applied again, instead of its transpose"
                yield Finding("not transposed", quantity, statement)

    def _passed_words(self, path: _Path) -> str:
        if path.call.operation in MASKS:
            mask = f"the mask of {path.words} is ignored in backward"
            return f"{mask}: the gradient of all elements passes through it, also of those that it excludes"
        return f"the derivative of {path.words} is left out: the gradient passes through it unchanged"

    def _other_values(self) -> Iterator[Finding]:
        """The gradient of another function: native without one operation, or with another number or index in it."""
        for call in self.recording.indices[:MAX_INDICES]:
            for words, function in _other_indices(call.result):
                change = NativeChange(call.site, 0, changed.omitted, lambda c, f=function: f(c.result))
                if self._explains(change):
                    operation = call.name.removeprefix("the result of ")
                    statement = f"equals the gradient of the function with other indices from {operation}: {words}"
                    yield Finding("permuted", self.mismatch.quantity, statement)
        tried: set[Any] = set()
        for call in (*self.composites, *self.calls):
            if call.site in tried or len(tried) > MAX_SITES or not any(t.requires_grad for _, t in call.tensors):
                continue
            tried.add(call.site)
            operation = call.name.removeprefix("the result of ")
            for number, tensor in call.tensors:
                if tensor.shape != call.result.shape or (len(call.tensors) == 1 and call.operation in SMOOTH):
                    continue
                change = NativeChange(call.site, number, changed.omitted, _argument(number))
                if self._explains(change):
                    name = f" but for {self.names.get(id(tensor), 'one argument')}" if len(call.tensors) > 1 else ""
                    statement = f"equals the gradient of the function without {operation}{name}"
                    yield Finding("step left out", self.mismatch.quantity, statement)
            flat, _ = tree_flatten((call.args, call.kwargs))
            for number, value in enumerate(flat):
                for instead in _other_numbers(value, call.result.dim()):
                    change = NativeChange(call.site, number, changed.omitted, _called_with(number, instead))
                    if self._explains(change):
                        statement = (
                            f"equals the gradient of the function with {instead} instead of {value} in {operation}"
                        )
                        yield Finding("another operand", self.mismatch.quantity, statement)

    def _replaced(self) -> Iterator[Finding]:
        quantity = self.mismatch.quantity
        for path in self.paths:
            for kind, statement, change in self._operands(path):
                if self._explains(change, path):
                    yield Finding(kind, quantity, statement)

    def _operands(self, path: _Path) -> Iterator[tuple[str, str, NativeChange]]:
        """Changes of one operand in the derivative by one argument."""
        site, position = path.call.site, path.position
        flat, _ = tree_flatten((path.call.args, path.call.kwargs))
        for other, tensor in path.call.tensors:
            name = self.names.get(id(tensor), "its own argument" if other == position else "its other argument")
            for kind, words, lookup in self._values(path.call, other, tensor, name):
                wrong = "the wrong operand: " if kind == "another operand" else ""
                statement = f"in the derivative through {path.words}, {wrong}{words}"
                yield kind, statement, NativeChange(site, position, changed.at_operand(other, lookup))
        for number, value in enumerate(flat):
            if isinstance(value, Tensor) and not value.is_floating_point() and value.dtype is not torch.bool:
                for words, lookup in _other_indices(value):
                    change = NativeChange(site, position, _with_tensor(number, lookup))
                    yield "permuted", f"in the derivative through {path.words}, {words}", change
            for instead in _other_numbers(value, path.call.result.dim()):
                statement = f"in the derivative through {path.words}, {instead} is used instead of {value}"
                yield "another operand", statement, NativeChange(site, position, _with_number(number, instead))

        if path.call.operation in changed.SLOPES:
            for key in self._candidates(path.call.result):
                words = key[1] if key[0] == "input" else self._site_name(key)
                if words != path.call.name:
                    own = "its argument, " if self.names.get(id(flat[position])) == words else ""
                    statement = f"the derivative of {path.words} is computed from {own}{words} instead of its result"
                    change = NativeChange(site, position, changed.slope_from(_recorded(key, 0)))
                    yield "another operand", statement, change
        if len(path.call.tensors) == 1 and path.call.result.shape == flat[position].shape:
            for name in changed.FUNCTIONS:
                if name != path.call.operation:
                    statement = (
                        f"the derivative of {path.words} is taken to be {changed.DERIVATIVES[name]}, which is wrong"
                    )
                    yield "another operand", statement, NativeChange(site, position, changed.of_function(name))

    def _candidates(self, tensor: Tensor) -> list[Any]:
        """Keys of the recorded tensors of the same shape; the inputs first."""
        return [key for key, values in self.records.items() if values[0].shape == tensor.shape][:MAX_OPERANDS]

    def _values(
        self, call: Call, other: int, tensor: Tensor, name: str
    ) -> Iterator[tuple[str, str, Callable[[Call], Tensor]]]:
        own = lambda c: tree_flatten((c.args, c.kwargs))[0][other].detach()  # noqa: E731
        yield "missing term", f"the factor {name} is missing (1 is used instead)", lambda c: torch.ones_like(own(c))
        functions: dict[str, Callable[[Tensor], Tensor]] = {
            "the square of {}": torch.square, "1 over {}": torch.reciprocal, "minus {}": torch.neg,
            "|{}|": torch.abs, "1 - {}": lambda t: 1 - t, "the square root of {}": torch.sqrt,
        }  # fmt: skip
        for words, function in functions.items():
            replaced = f"{words.format(name)} is used instead of {name}"
            yield "another operand", replaced, lambda c, f=function: f(own(c))
        if tensor.dim() > 1:
            for t in transformations(tensor.shape):
                if t.kind in ("transposed", "flipped", "shifted"):
                    yield t.kind, f"{name} is {t.description}", lambda c, t=t: t.apply(own(c)).contiguous()
        for key in self._candidates(tensor):
            words = key[1] if key[0] == "input" else self._site_name(key)
            if words == name:
                offsets: tuple[int, ...] = (-1, 1) if len(self.records[key]) > 1 else ()
            else:
                offsets = (0, -1, 1) if len(self.records[key]) > 1 else (0,)
            for offset in offsets:
                when = {0: "", -1: " (of the previous step)", 1: " (of the next step)"}[offset]
                lookup = _recorded(key, offset)
                yield "another operand", f"{words}{when} is used instead of {name}", lookup

    def _site_name(self, site: Any) -> str:
        return next(call.name for call in self.calls if call.site == site)

    # ----------------------------------------------------------------------------- transformed gradients

    def _transformed(self) -> Iterator[Finding]:
        """The gradient at one operation transposed, flipped, shifted, averaged or summed."""
        tried: set[Any] = set()
        for path in self.paths:
            site, position = path.call.site, path.position
            flat, _ = tree_flatten((path.call.args, path.call.kwargs))
            places = [("with the gradient", flat[position].shape, changed.argument_gradient, "after")]
            if site not in tried:
                places.append(("with the gradient", path.call.result.shape, changed.with_gradient, "before"))
            tried.add(site)
            for words, shape, place, when in places:
                for t in transformations(shape):
                    change = NativeChange(site, position, place(t.apply))
                    if self._explains(change, path):
                        statement = (
                            f"equals the gradient {words} {t.description} {when} the derivative of {path.words}"
                        )
                        yield Finding(t.kind, self.mismatch.quantity, statement)


def _recorded(key: Any, offset: int) -> Callable[[Call], Tensor]:
    def lookup(call: Call) -> Tensor:
        values = call.records[key]
        number = (call.iteration if len(values) > 1 else 0) + offset
        if not 0 <= number < len(values):
            return torch.zeros_like(values[0])
        return values[number]

    return lookup


def _argument(number: int) -> Callable[[Call], Tensor]:
    return lambda call: tree_flatten((call.args, call.kwargs))[0][number]


def _called_with(number: int, instead: Any) -> Callable[[Call], Tensor]:
    def value(call: Call) -> Tensor:
        flat = list(tree_flatten((call.args, call.kwargs))[0])
        flat[number] = instead
        return changed.evaluate(call, flat)

    return value


def _other_numbers(value: Any, dims: int) -> list[Any]:
    """Numbers that may stand in the place of a number in a call."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        near = [value - 1, value + 1, -value, 0, 1, *range(-dims, 0)]
        return [n for n in dict.fromkeys(near) if n != value]
    if isinstance(value, float):
        near_by = [0.0, 1.0, -value, 2 * value, value / 2, value * value, -1e9]
        return [x for x in dict.fromkeys(near_by) if x != value]
    return []


def _other_indices(indices: Tensor) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """Wrong indices: the first for all, the last for all, in another order, one off."""
    if indices.numel() < 2:
        return
    yield "the first index is used instead of each one's own", lambda t: t.flatten()[0].expand_as(t).contiguous()
    yield "the last index is used instead of each one's own", lambda t: t.flatten()[-1].expand_as(t).contiguous()
    yield "an index one too small is used (off by one)", lambda t: (t - 1).clamp(min=0)
    yield "an index one too large is used (off by one)", lambda t: (t + 1).clamp(max=int(t.max()))
    for t in transformations(indices.shape):
        if t.kind in ("flipped", "shifted", "transposed", "permuted"):
            yield f"the indices are {t.description}", lambda v, t=t: t.apply(v).contiguous()


def _with_tensor(number: int, instead: Callable[[Tensor], Tensor]) -> Callable[[Call, list[Any], int], Tensor]:
    def derivative(call: Call, flat: list[Any], position: int) -> Tensor:
        replaced = list(flat)
        replaced[number] = instead(flat[number])
        return changed.evaluate(call, replaced)

    return derivative


def _with_number(number: int, instead: Any) -> Callable[[Call, list[Any], int], Tensor]:
    def derivative(call: Call, flat: list[Any], position: int) -> Tensor:
        replaced = list(flat)
        replaced[number] = instead
        return changed.evaluate(call, replaced)

    return derivative


def _names(calls: list[Call], mismatch: Mismatch) -> dict[int, str]:
    """Names of the tensors that are arguments of calls, by identity."""
    names: dict[int, str] = {}
    for call in calls:
        flat, _ = tree_flatten((call.args, call.kwargs))
        for value in flat:
            if isinstance(value, Tensor) and id(value) not in names:
                for name, source in mismatch.inputs.items():
                    if value.shape == source.shape and torch.equal(value.detach(), source):
                        names[id(value)] = name
                for other in calls[: call.number]:
                    same = value.shape == other.result.shape and value.data_ptr() == other.result.data_ptr()
                    if same and id(value) not in names:
                        names[id(value)] = other.name
    return names
