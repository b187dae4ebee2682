"""Another tensor, number or index in the derivative of one operation of native."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from compare.gradients.diagnosis import changed_native as changed
from compare.gradients.diagnosis.changed_native import NativeChange
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.native_calls import Call
from compare.gradients.diagnosis.native_paths import Hypothesis, NativePaths, Path
from compare.gradients.diagnosis.option_words import changed_option, option_names
from compare.gradients.diagnosis.source_text import source_text
from compare.gradients.diagnosis.substitutes import other_indices, other_numbers, recorded, with_number, with_tensor
from compare.gradients.diagnosis.transformations import transformations

# Functions that check indices; others could write outside of their memory.
CHECKS_INDICES = {
    "indexing", "gather", "take_along_dim", "index_select", "scatter", "scatter_add", "index_add", "index_copy",
    "index_fill", "index_put", "take", "embedding", "nll_loss", "cross_entropy", "one_hot",
}  # fmt: skip


def find_changed_operands(search: NativePaths) -> Iterator[Finding]:
    yield from search.findings(
        Hypothesis(kind, statement, change, path)
        for path in search.paths
        for kind, statement, change in _operands(search, path)
    )


def _operands(search: NativePaths, path: Path) -> Iterator[tuple[str, str, NativeChange]]:
    """Changes of one operand in the derivative by one argument."""
    site, position = path.call.site, path.position
    flat = path.call.flat
    for other, tensor in path.call.tensors:
        name = search.operand_name(path.call, other) or (
            "its own argument" if other == position else "its other argument"
        )
        for kind, words, lookup in _values(search, path.call, other, tensor, name):
            wrong = "the wrong operand: " if kind == "another operand" else ""
            statement = f"in the derivative through {path.words}, {wrong}{words}"
            yield kind, statement, NativeChange(site, position, changed.at_operand(other, lookup))
    options = option_names(path.call.args, path.call.kwargs)
    for number, value in enumerate(flat):
        is_checked = path.call.operation in CHECKS_INDICES
        if isinstance(value, Tensor) and value.dtype in (torch.int64, torch.int32) and is_checked:
            is_index = path.call.operation == "indexing" and number == 1 and isinstance(flat[0], Tensor)
            for words, lookup in other_indices(value, len(flat[0]) - 1 if is_index else None):
                change = NativeChange(site, position, with_tensor(number, lookup))
                yield "permuted", f"in the derivative through {path.words}, {words}", change
        for instead in other_numbers(value, path.call.result.dim()):
            kind, words = changed_option(options.get(number, ""), value, instead, "")
            statement = f"in the derivative through {path.words}, {words}"
            yield kind, statement, NativeChange(site, position, with_number(number, instead))

    if path.call.operation in changed.SLOPES and search.sites[site] > 1:
        for step, value in (
            ("previous", recorded(site, -1, lambda c: c.result)), ("next", recorded(site, 1, lambda c: c.result)),
            ("last", lambda c: c.records[site][-1]),
        ):  # fmt: skip
            statement = f"the derivative of {path.words} is computed from the result of the {step} step of the loop"
            yield "another operand", statement, NativeChange(site, position, changed.slope_from(value))
    if path.call.operation in changed.SLOPES:
        for key in search.candidates(path.call.result):
            words = key[1] if key[0] == "input" else search.site_name(key)
            if words != path.call.name:
                own = "its argument, " if search.names.get(id(flat[position])) == words else ""
                statement = f"the derivative of {path.words} is computed from {own}{words} instead of its result"
                change = NativeChange(site, position, changed.slope_from(recorded(key, 0, lambda c: c.result)))
                yield "another operand", statement, change
    if len(path.call.tensors) == 1 and path.call.result.shape == flat[position].shape:
        for name in changed.FUNCTIONS:
            if name != path.call.operation:
                statement = (
                    f"the derivative of {path.words} is taken to be {changed.DERIVATIVES[name]}, which is wrong"
                )
                yield "another operand", statement, NativeChange(site, position, changed.of_function(name))


def _values(
    search: NativePaths, call: Call, other: int, tensor: Tensor, name: str
) -> Iterator[tuple[str, str, Callable[[Call], Tensor]]]:
    own = lambda c: c.flat[other].detach()  # noqa: E731
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
    own_site = _site_of(search, call, tensor, name)
    for key in search.candidates(tensor):
        words = key[1] if key[0] == "input" else search.site_name(key)
        if words == name and own_site in (key, None):
            offsets: tuple[int, ...] = (-1, 1) if len(search.records[key]) > 1 else ()
        else:
            offsets = (0, -1, 1) if len(search.records[key]) > 1 else (0,)
        for offset in offsets:
            when = {0: "", -1: " (of the previous step)", 1: " (of the next step)"}[offset]
            lookup = recorded(key, offset, own)
            is_loop = bool(offset) and all(v.numel() == tensor.numel() for v in search.records[key])
            steps = _changed_steps(search, call, own, lookup) if is_loop else []
            if steps in ([0], [search.sites[call.site] - 1]) and search.sites[call.site] > 2:
                step = "first" if steps == [0] else "last"
                yield "missing term", f"the contribution of the {step} step of the loop is missing", lookup
                continue
            yield "another operand", _told_apart(key, when, words, own_site, name), lookup


def _site_of(search: NativePaths, call: Call, tensor: Tensor, name: str) -> Any:
    """Site of the call of this name whose result the tensor is; None without one."""
    own = (c for c in search.calls[: call.number] if c.name == name and c.result.data_ptr() == tensor.data_ptr())
    return next((c.site for c in own), None)


def _told_apart(key: Any, when: str, words: str, own: Any, name: str) -> str:
    """ "b is used instead of a", with the source text of both if they have the same words, but for such a text."""
    if words + when == name != words:
        return f"{name} is used instead of that of another step"
    texts = [] if own is None or key[0] == "input" else [source_text(site[0]) for site in (key, own)]
    same = " (of this step)" if when and key == own else ""
    # The words of both are the same, or are but for the text.
    line = name if words == name else _without(name, texts[-1:])
    if texts and all(texts) and line == (words if words == name else _without(words, texts[:1])):
        line = line.removeprefix("the result of ")
        return f"`{texts[0]}`{when} is used instead of `{texts[1]}`{same}, in {line}"
    if words != name:
        return f"{words}{when} is used instead of {name}"
    return f"{words}{when} is used instead of {'that of this step' if same else 'another one there'}"


def _without(words: str, texts: list[str]) -> str:
    return words.removesuffix(f", `{texts[0]}`") if texts else words


def _changed_steps(
    search: NativePaths, call: Call, own: Callable[[Call], Tensor], lookup: Callable[[Call], Tensor]
) -> list[int]:
    """Steps of a loop in which the value of ``lookup`` is another one than the operand's."""
    steps = [search.recording.with_records(step) for step in search.steps(call)]
    if len(steps) != search.sites[call.site] or len({own(step).shape for step in steps}) > 1:
        return []  # a line of a module's code that calls several functions is no loop; sizes may change in one
    return [n for n, step in enumerate(steps) if not torch.equal(own(step), lookup(step))]
