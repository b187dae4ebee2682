"""Names of a factor: the sign, a 2, the size of a dimension; and the test of a name at another size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

from torch import Tensor

from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.native_calls import record_calls, results_by_name
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.run_variant import OUTPUT

RTOL = 1e-6
SIMPLE = {
    -1.0: "wrong sign", 2.0: "doubled", 0.5: "halved", -2.0: "wrong sign, doubled", -0.5: "wrong sign, halved",
    math.log(2): "log 2", 1 / math.log(2): "1/log 2", math.log(10): "log 10",
    1 / math.log(10): "1/log 10", math.pi: "pi", 1 / math.pi: "1/pi",
    math.sqrt(2): "sqrt 2", 1 / math.sqrt(2): "1/sqrt 2",
}  # fmt: skip
# Functions of a size N. Each may have the wrong sign too.
OF_SIZE: dict[str, Callable[[int], float]] = {
    "{n}": lambda n: n,
    "1/{n}": lambda n: 1 / n,
    "sqrt {n}": lambda n: math.sqrt(n),
    "1/sqrt {n}": lambda n: 1 / math.sqrt(n),
    "{n}/({n} - 1)": lambda n: n / (n - 1),
    "({n} - 1)/{n}": lambda n: (n - 1) / n,
    "{n} - 1": lambda n: n - 1,
    "1/({n} - 1)": lambda n: 1 / (n - 1),
    "2/{n}": lambda n: 2 / n,
    "{n}/2": lambda n: n / 2,
    "1/{n}²": lambda n: 1 / n**2,
    "{n}²": lambda n: n**2,
}


def name_factor(factor: float, mismatch: Mismatch, probe: Probe | None = None) -> str:
    """Names of ``factor``, in words; "" if there is none.

    Where several fit, such as 1/2 in a batch of 2, ours is asked again with one example or feature less, if native
    accepts that. Names that then still fit are given; the others are not.
    """
    names = [(text, None, 0) for value, text in SIMPLE.items() if _is(factor, value)]
    names += list(_names_by_size(factor, mismatch))
    if any(size for _, _, size in names) and probe is not None:
        names = _without_coincidences(factor, names, mismatch, probe)
    if not names and probe is not None and mismatch.oracle.count_nonzero() > 1:
        return _name_by_number(factor, mismatch, probe)
    return "; or ".join(dict.fromkeys(text for text, _, _ in names[:3]))


def _name_by_number(factor: float, mismatch: Mismatch, probe: Probe) -> str:
    """The factor as a number that native computes, such as a sum of weights, or over one; and a size beside it."""
    calls = [] if probe.case.native is None else record_calls(probe.case.native, mismatch.inputs, with_integers=True)
    numbers = {float(result): name for name, result in results_by_name(calls).items() if result.numel() == 1}
    names: dict[tuple[float, float], str] = {}
    for number, name in numbers.items():
        if abs(number) in (0.0, 1.0) or not math.isfinite(number):
            continue
        for value, words in ((number, f"times {name}"), (1 / number, f"divided by {name}")):
            rest = factor / value
            sizes = [text for text, _, n in _names_by_size(rest, mismatch) if _is(rest, n) or _is(rest, 1 / n)]
            if _is(rest, 1.0) or sizes:
                names[abs(number), rest] = "; ".join([words, *sizes[:1]])
    return next(iter(names.values())) if len(names) == 1 else ""  # of several, all but one are coincidences


def _names_by_size(factor: float, mismatch: Mismatch) -> Iterator[tuple[str, Callable[[int], float], int]]:
    for size, noun in _sizes(mismatch).items():
        if size < 2:
            continue
        is_product = noun.startswith("the number")
        letter = "B" if noun == "the batch size" else str(size)
        for pattern, function in OF_SIZE.items():
            if "sqrt" in pattern and math.isqrt(size) ** 2 == size:
                continue
            if is_product and pattern not in ("{n}", "1/{n}", "{n} - 1", "1/({n} - 1)", "{n}/({n} - 1)"):
                continue
            if (size == 2 and "-" in pattern) or (size % 2 == 0 and pattern in ("2/{n}", "{n}/2")):
                continue
            for sign in (1.0, -1.0):
                value = sign * function(size)
                if not _is(factor, value) or abs(value) == 1 or (size == 2 and ("2" in pattern or "²" in pattern)):
                    continue
                text = pattern.format(n=letter)
                text = f"{'minus ' if sign < 0 else ''}{text}"
                yield _phrase(text, pattern, letter, size, noun), (lambda n, f=function, s=sign: s * f(n)), size


def _phrase(text: str, pattern: str, letter: str, size: int, noun: str) -> str:
    if pattern == "{n}" and not text.startswith("minus"):
        return f"B = {size}, {noun}" if letter == "B" else f"{size} is {noun}"
    if pattern == "1/{n}" and not text.startswith("minus"):
        return f"1/{size} = 1/B, one over {noun}" if letter == "B" else f"1/{size}, one over {noun}"
    return f"{text}, where {letter} = {size} is {noun}" if letter == "B" else f"{text}, where {size} is {noun}"


def _sizes(mismatch: Mismatch) -> dict[int, str]:
    """Sizes above 1 and their meaning; the batch size first."""
    sizes: dict[int, str] = {}
    if mismatch.batch_size > 1:
        sizes[mismatch.batch_size] = "the batch size"
    output = mismatch.run.values.get(OUTPUT)
    tensors: list[tuple[str, Tensor]] = [("the output", output)] if output is not None else []
    tensors += list(mismatch.inputs.items())
    for name, tensor in tensors:
        for d, size in enumerate(tensor.shape):
            if size > 1:
                sizes.setdefault(size, f"the size of dimension {d} of {name}")
    for name, tensor in tensors:
        if tensor.numel() > 1:
            sizes.setdefault(tensor.numel(), f"the number of {name.removeprefix('the ')} elements")
        if tensor.dim() > 2:
            sizes.setdefault(tensor[0].numel(), f"the number of elements of one example of {name}")
        for a, b in itertools.combinations(range(tensor.dim()), 2):
            if tensor.shape[a] > 1 < tensor.shape[b]:
                words = f"the number of elements of {name} along dimensions {a} and {b}"
                sizes.setdefault(tensor.shape[a] * tensor.shape[b], words)
    return sizes


def _without_coincidences(
    factor: float, names: list[tuple[str, Callable[[int], float] | None, int]], mismatch: Mismatch, probe: Probe
) -> list[tuple[str, Callable[[int], float] | None, int]]:
    """The names that still fit where one size is smaller by one."""
    dimensions = {size for value in mismatch.inputs.values() for size in value.shape}
    for size in {size for _, _, size in names if size > 2 and size in dimensions}:
        other = factor_at(mismatch, probe, _shorter(mismatch.inputs, size))
        if other is None:
            continue
        fitting = [
            (text, function, n)
            for text, function, n in names
            if _is(other, factor if function is None or n != size else function(size - 1))
        ]
        names = fitting
    return names


def factor_at(mismatch: Mismatch, probe: Probe, inputs: dict[str, Tensor]) -> float | None:
    """The factor for other inputs; None if ours is no multiple of native's gradient there."""
    other = probe.compare(mismatch, inputs, probe.incoming(1))
    if other is None:
        return None
    square = float((other.oracle * other.oracle).sum())
    if not square or not other.ours.isfinite().all():
        return None
    factor = float((other.ours * other.oracle).sum()) / square
    return factor if other.equals(factor * other.oracle) else None


def _shorter(inputs: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """The inputs with every dimension of that size shorter by one."""
    shorter = {}
    for name, value in inputs.items():
        for d, n in enumerate(value.shape):
            if n == size:
                value = value.narrow(d, 0, size - 1)
        shorter[name] = value.contiguous()
    return shorter


def _is(a: float, b: float) -> bool:
    return abs(a - b) <= RTOL * abs(b)
