"""One operation of native left out, or called with another number, in backward alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from compare.gradients.diagnosis import changed_native as changed
from compare.gradients.diagnosis.changed_native import NativeChange
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.native_paths import MAX_SITES, Hypothesis, NativePaths, Path
from compare.gradients.diagnosis.option_words import option_names, show
from compare.gradients.diagnosis.substitutes import (
    argument_of,
    called_with,
    called_with_option,
    everywhere,
    options_not_given,
    other_indices,
    other_numbers,
)

MAX_INDICES = 8  # calls that return integers
SMOOTH = ("exp", "log", "tanh", "sigmoid", "sqrt", "rsqrt", "sin", "cos")  # no backward is right without them
MASKS = (
    "where", "masked_fill", "relu", "clamp", "clamp_min", "clamp_max", "maximum", "minimum", "hardtanh", "threshold",
    "leaky_relu", "prelu", "triu", "tril", "amax", "amin",
)  # fmt: skip


def find_passed_through(search: NativePaths) -> Iterator[Finding]:
    yield from search.findings(_passed_through(search))


def _passed_through(search: NativePaths) -> Iterator[Hypothesis]:
    for path in search.paths:
        site, position = path.call.site, path.position
        change = NativeChange(site, position, changed.passed_through)
        yield Hypothesis("missing term", _passed_words(path), change, path)
        if path.call.operation == "pow" and path.position == 0:
            statement = f"the derivative of {path.words} keeps its exponent: n x^n instead of n x^(n - 1)"
            yield Hypothesis("another operand", statement, NativeChange(site, position, changed.times_argument), path)
        statement = f"is computed with {path.words} applied again, instead of its transpose"
        yield Hypothesis("not transposed", statement, NativeChange(site, position, changed.transposed_map), path)


def find_passed_through_alone(search: NativePaths) -> Iterator[Finding]:
    """The gradient of an operation's result passed to one argument, and none to the others."""
    yield from search.findings(
        Hypothesis(
            "missing term", _passed_words(path) + "; the other arguments get no gradient",
            NativeChange(path.call.site, path.position, changed.passed_through, alone=True),
        )
        for path in search.paths
        if len(path.call.tensors) > 1
    )  # fmt: skip


def _passed_words(path: Path) -> str:
    if path.call.operation in MASKS:
        mask = f"the mask of {path.words} is ignored in backward"
        return f"{mask}: the gradient of all elements passes through it, also of those that it excludes"
    if path.argument:
        operation = path.call.name.removeprefix("the result of ")
        passes = f"the gradient passes through it unchanged, to its {path.argument}"
        return f"the derivative of {operation} is left out: {passes}"
    return f"the derivative of {path.words} is left out: the gradient passes through it unchanged"


def find_other_values(search: NativePaths) -> Iterator[Finding]:
    """The gradient of another function: native without one operation, or with another number or index in it."""
    tried: set[Any] = set()
    for call in (*search.composites, *search.calls):
        if call.site in tried or len(tried) > MAX_SITES or not any(t.requires_grad for _, t in call.tensors):
            continue
        tried.add(call.site)
        operation = call.name.removeprefix("the result of ")
        for number, tensor in call.tensors:
            if tensor.shape != call.result.shape or (len(call.tensors) == 1 and call.operation in SMOOTH):
                continue
            change = NativeChange(call.site, number, changed.omitted, argument_of(number))
            if search.explains(change):
                name = search.names.get(id(tensor), "one of its arguments")
                words = (
                    f"with {name} in the place of {call.name}" if len(call.tensors) > 1 else f"without {operation}"
                )
                statement = f"equals the gradient of the function {words}"
                yield Finding("step left out", search.mismatch.quantity, statement)
        flat = call.flat
        options = option_names(call.args, call.kwargs)
        for number, value in enumerate(flat):
            for instead in other_numbers(value, call.result.dim()):
                change = NativeChange(call.site, number, changed.omitted, called_with(number, instead))
                if search.explains(change):
                    option = f"{options[number]} = " if number in options and isinstance(value, (str, bool)) else ""
                    statement = f"equals the gradient of the function with {option}{show(instead)}"
                    statement += f" instead of {show(value)} in {operation}"
                    yield Finding("another operand", search.mismatch.quantity, statement)
        for name, value in options_not_given(call).items():
            for instead in other_numbers(value, call.result.dim()):
                change = NativeChange(call.site, 0, changed.omitted, called_with_option(name, instead))
                if search.explains(change):
                    statement = f"equals the gradient of the function with {name} = {show(instead)}"
                    statement += f" instead of {show(value)} in {operation}"
                    yield Finding("another operand", search.mismatch.quantity, statement)
    yield from _find_shared_numbers(search)
    for call in search.recording.indices[:MAX_INDICES]:
        for words, function in other_indices(call.result):
            change = NativeChange(call.site, 0, changed.omitted, lambda c, f=function: f(c.result))
            if search.explains(change):
                operation = call.name.removeprefix("the result of ")
                statement = f"equals the gradient of the function with other indices from {operation}: {words}"
                yield Finding("permuted", search.mismatch.quantity, statement)


def _find_shared_numbers(search: NativePaths) -> Iterator[Finding]:
    """A number that several calls of the same function share, such as a smoothing constant, changed in all."""
    sites: dict[tuple[str, Any], dict[Any, int]] = {}
    for call in search.calls:
        for value in call.flat:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                sites.setdefault((call.operation, value), {}).setdefault(call.site, call.result.dim())
    for (operation, value), shared in sites.items():
        if len(shared) < 2:
            continue
        first, *others = shared
        for instead in other_numbers(value, shared[first]):
            change = NativeChange(first, 0, changed.omitted, everywhere(value, instead), also=frozenset(others))
            if search.explains(change):
                statement = f"equals the gradient of the function with {show(instead)} instead of {show(value)}"
                statement += f" in all {len(shared)} places of {operation}"
                yield Finding("another operand", search.mismatch.quantity, statement)
