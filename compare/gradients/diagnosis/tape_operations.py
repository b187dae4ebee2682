"""Changes of one elementary operation on a tape: left out, another one, other dimensions, another number."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from compare.gradients.diagnosis.option_words import changed_option, schema_names
from compare.gradients.diagnosis.substitutes import other_numbers
from compare.gradients.diagnosis.tape import Ref, Step, StepChange, Tape

aten = torch.ops.aten
# Operations that give the same elements in another form: they are never left out.
FORMS = {
    "view", "_unsafe_view", "reshape", "expand", "clone", "detach", "alias", "_to_copy", "new_zeros", "zeros_like",
    "as_strided", "contiguous", "squeeze", "unsqueeze", "copy_", "copy", "full", "zeros", "empty_like", "new_empty",
    "slice", "select", "view_as_real", "view_as_complex", "split", "unbind", "empty", "scalar_tensor", "full_like",
    "ones_like", "fill_", "arange", "lift_fresh", "zero_", "slice_scatter", "select_scatter", "diagonal",
}  # fmt: skip
# Operations with the same arguments that may stand in the place of one.
OTHERS: dict[str, tuple[str, ...]] = {
    "ge": ("gt", "lt", "le"), "gt": ("ge", "le", "lt"), "le": ("lt", "gt", "ge"), "lt": ("le", "ge", "gt"),
    "add": ("sub",), "sub": ("add",), "rsub": ("add",), "mul": ("div",), "div": ("mul",), "amax": ("amin",),
    "amin": ("amax",), "maximum": ("minimum",), "minimum": ("maximum",), "tril": ("triu",), "triu": ("tril",),
    "eq": ("ne",), "ne": ("eq",),
}  # fmt: skip
SIGNS = {
    "add": "+", "sub": "-", "rsub": "-", "mul": "*", "div": "/", "ge": ">=", "gt": ">", "le": "<=", "lt": "<",
    "eq": "==", "ne": "!=",
}  # fmt: skip
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp, "log": torch.log, "sin": torch.sin, "cos": torch.cos, "tanh": torch.tanh, "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt, "reciprocal": torch.reciprocal, "abs": torch.abs, "sign": torch.sign, "neg": torch.neg,
    "sigmoid": torch.sigmoid, "digamma": torch.digamma, "lgamma": torch.lgamma, "erf": torch.erf, "sgn": torch.sgn,
    "sinh": torch.sinh, "cosh": torch.cosh, "square": torch.square, "relu": torch.relu, "conj": torch.conj,
    "_conj": torch.conj, "i0": torch.special.i0, "special_i1": torch.special.i1, "acos": torch.acos,
    "special_i0e": torch.special.i0e, "special_i1e": torch.special.i1e, "erfc": torch.erfc,
    "special_erfcx": torch.special.erfcx, "special_log_ndtr": torch.special.log_ndtr,
    "atan": torch.atan, "asin": torch.asin, "log1p": torch.log1p, "expm1": torch.expm1,
}  # fmt: skip
SIGN_FUNCTIONS = ("sign", "sgn", "abs")
# People take these for each other, and not for a power or a sine.
SPECIAL_FUNCTIONS = {name for name in UNARY if name.startswith("special_")} | {
    "i0", "digamma", "lgamma", "erf", "erfc"
}  # fmt: skip
# Operations that read memory out of bounds, and may end the process, for sizes and options that do not fit: private
# ones leave the checks to the public function that calls them, but for CHECKED.
UNCHECKED = ("_", "native_", "as_strided")
CHECKED = {"_softmax", "_log_softmax", "_softmax_backward_data", "_log_softmax_backward_data"}
SHOWN_NUMBERS = {"mul": "by {}", "div": "by {}", "add": "of {}", "sub": "of {}", "pow": "by {}"}
NOUNS = {
    "mul": "the multiplication", "div": "the division", "add": "the addition", "sub": "the subtraction",
    "neg": "the sign", "tril": "the lower triangle (tril)", "triu": "the upper triangle (triu)", "pow": "the power",
    "transpose": "the transpose", "t": "the transpose", "where": "the mask (where)", "flip": "the flip",
    "masked_fill": "the mask (masked_fill)", "cumsum": "the running sum (cumsum)", "sum": "the sum",
}  # fmt: skip


def operation_words(step: Step, name: Callable[[Any], str]) -> str:
    """ "the multiplication by w", "exp"."""
    bare = step.name.rstrip("_").lstrip("_")
    noun = NOUNS.get(bare, bare)
    if bare not in SHOWN_NUMBERS or len(step.arguments) < 2:
        return noun
    other = step.arguments[1]
    words = name(other) if isinstance(other, Ref) else str(other)
    return f"{noun} {SHOWN_NUMBERS[bare].format(words)}"


def left_out(step: Step, tape: Tape) -> list[int]:
    """Positions of the arguments that may stand in the place of the result: those of its shape and dtype."""
    numbers = [number for number in step.results if number is not None]
    if step.name in FORMS or len(numbers) != 1:
        return []
    result = tape.values[numbers[0]]
    own = [(n, tape.values[a.number]) for n, a in enumerate(step.arguments) if isinstance(a, Ref)]
    return [n for n, value in own if value.shape == result.shape and value.dtype == result.dtype]


def removes_diagonal(step: Step, tape: Tape) -> bool:
    """True if the step is a triangle of a matrix whose other triangle is 0, without the diagonal."""
    if step.name.strip("_") not in ("tril", "triu") or not isinstance(step.arguments[0], Ref):
        return False
    numbers = [number for number in step.results if number is not None]
    difference = tape.values[step.arguments[0].number] - tape.values[numbers[0]]
    return torch.equal(difference, torch.diag_embed(difference.diagonal(dim1=-2, dim2=-1))) and bool(difference.any())


def passing(position: int) -> StepChange:
    """An argument in the place of the result."""
    return lambda step, flat: [flat[position] if step.name.endswith("_") else flat[position].clone()]


def other_operations(step: Step) -> Iterator[tuple[str, str, StepChange]]:
    """Kind, words, and the change, of another operation in the place of this one."""
    bare = step.name
    for other in OTHERS.get(bare, ()):
        words = f"{SIGNS.get(other, other)} is used instead of {SIGNS.get(bare, bare)}"
        yield "another operand", words, lambda s, flat, other=other: [getattr(aten, other)(*flat)]
    if bare == "where" and len(step.arguments) == 3:
        words = "the two values of where are exchanged (or its condition is inverted)"
        yield "another operand", words, lambda s, flat: s.call([flat[0], flat[2], flat[1]])
    if bare in UNARY:
        for name, function in UNARY.items():
            if name in SPECIAL_FUNCTIONS and bare not in SPECIAL_FUNCTIONS:
                continue
            # The sign of a positive tensor is 1, as where the factor is missing.
            if name != bare and (name not in SIGN_FUNCTIONS or bare in SIGN_FUNCTIONS):
                words = f"{name.removeprefix('special_')} is used instead of {bare.removeprefix('special_')}"
                yield "another operand", words, lambda s, flat, f=function: [f(flat[0])]
    if bare in SIGN_FUNCTIONS:
        for value, words in ((1.0, "1"), (-1.0, "-1")):
            yield (
                "only at ties", f"the sign is {words} instead of 0 where its argument is 0",
                lambda s, flat, v=value: [torch.where(flat[0] == 0, v, s.call(flat)[0])],
            )  # fmt: skip
    if bare in ("scatter", "scatter_add"):
        words = "the elements are gathered by the indices, as in forward, instead of put back to their places"
        yield "not transposed", words, lambda s, flat: [flat[3].gather(flat[1], flat[2])]
    if bare == "gather":
        words = "the elements are scattered by the indices instead of gathered"
        yield "not transposed", words, lambda s, flat: [torch.zeros_like(flat[0]).scatter_add(*flat[1:3], flat[0])]
    if bare in (
        "index_put",
        "index_put_",
        "_unsafe_index_put",
        "scatter_add",
        "index_add",
        "embedding_dense_backward",
    ):
        words = (
            "where an index occurs several times, the last contribution overwrites the others instead of being added"
        )
        yield "missing term", words, _overwriting
        yield "wrong sum", "the contributions to one index are averaged instead of added", _averaging
    if bare in ("cumsum", "logcumsumexp"):
        words = "is the sum of the elements before each one, without its own"
        yield "missing term", f"the running sum ({bare}) {words}", lambda s, flat: [s.call(flat)[0] - flat[0]]
        words = "runs from the first element instead of from the last, or the other way round"
        yield (
            "flipped", f"the running sum ({bare}) {words}",
            lambda s, flat: [s.call([flat[0].flip(flat[1]), *flat[1:]])[0].flip(flat[1])],
        )  # fmt: skip
    if bare == "constant_pad_nd":
        words = "the padding is at the other end"
        yield "shifted", words, lambda s, flat: s.call(_exchanged_ends(flat))
    if bare in ("sum", "mean"):
        yield from _other_sums(step)


def _exchanged_ends(flat: list[Any]) -> list[Any]:
    """The arguments of constant_pad_nd with the paddings before and after a dimension exchanged."""
    count = (len(flat) - 1) // 2 * 2
    pads = [flat[1 + (n ^ 1)] for n in range(count)]
    return [flat[0], *pads, *flat[1 + count :]]


def _averaging(step: Step, flat: list[Any]) -> list[Any]:
    """The sum for each index over the number of its contributions."""
    places = [n for n, value in enumerate(flat) if isinstance(value, Tensor) and value.is_floating_point()]
    place = places[0] if step.name == "embedding_dense_backward" else places[-1]
    ones = [*flat[:place], torch.ones_like(flat[place]), *flat[place + 1 :]]
    return [s / count.clamp(min=1) for s, count in zip(step.call(flat), step.call(ones), strict=True)]


def _overwriting(step: Step, flat: list[Any]) -> list[Any]:
    if step.name == "scatter_add":
        return [flat[0].scatter(*flat[1:])]
    if step.name == "index_add":
        return [flat[0].index_copy(*flat[1:4])]
    if step.name == "embedding_dense_backward":
        size = torch.zeros_like(step.call(flat)[0])
        return [size.index_put((flat[1].flatten(),), flat[0].reshape(-1, flat[0].shape[-1]))]
    return step.call([False if v is True else v for v in flat])


def _other_sums(step: Step) -> Iterator[tuple[str, str, StepChange]]:
    bare = step.name
    other = "mean" if bare == "sum" else "sum"
    yield "wrong sum", f"a {other} is taken instead of a {bare}", lambda s, flat: [_mean_or_sum(s, flat)]
    words = "one of several equal terms is taken instead of their sum"
    yield "wrong sum", words, lambda s, flat: [_of_one_term(s, flat)]
    dims = [a for a in step.arguments[1:] if isinstance(a, int) and not isinstance(a, bool)]
    if not dims:
        return
    for count in (1, 2, 3):
        for group in itertools.combinations(range(4), count):
            words = f"the {bare} is over dimension{'s' if count > 1 else ''} {' and '.join(map(str, group))}"
            words += f" instead of {' and '.join(map(str, dims))}"
            yield "wrong sum", words, lambda s, flat, d=group: [_over(s, flat, d)]
            words = words.replace(f"the {bare} is", "the mean is")
            if bare == "sum":
                yield "wrong sum", words, lambda s, flat, d=group: [_mean_over(s, flat, d)]


def _mean_or_sum(step: Step, flat: list[Any]) -> Tensor:
    result = step.call(flat)[0]
    count = flat[0].numel() / result.numel()
    return result / count if step.name == "sum" else result * count


def _of_one_term(step: Step, flat: list[Any]) -> Tensor:
    """The sum divided by the number of its terms that are not 0."""
    result = step.call(flat)[0]
    return result / step.call([(flat[0] != 0).to(result.dtype), *flat[1:]])[0].clamp(min=1)


def _over(step: Step, flat: list[Any], dims: tuple[int, ...]) -> Tensor:
    x, expected = flat[0], step.call(flat)[0]
    if max(dims) >= x.dim() or all(x.shape[d] == 1 for d in dims):
        raise ValueError("no such dimension")
    value = x.sum(dims, keepdim=True) if step.name == "sum" else x.mean(dims, keepdim=True)
    if expected.dim() == x.dim():
        is_smaller = all(n in (1, m) for n, m in zip(value.shape, expected.shape, strict=True))
        return value.expand_as(expected) if is_smaller and expected.numel() > 1 else value
    return x.sum(dims) if step.name == "sum" else x.mean(dims)


def _mean_over(step: Step, flat: list[Any], dims: tuple[int, ...]) -> Tensor:
    """A sum over other dimensions that is divided, later, by their number of elements."""
    x, expected = flat[0], step.call(flat)[0]
    return _over(step, flat, dims) * (x.numel() / expected.numel()) / math.prod(x.shape[d] for d in dims)


def other_arguments(step: Step, dims: int) -> Iterator[tuple[str, str, StepChange]]:
    """Kind, words, and the change, of another number, dimension or truth value in the place of one."""
    if step.name in FORMS and step.name not in ("squeeze", "unsqueeze"):
        return
    is_unchecked = step.name.startswith(UNCHECKED) and step.name not in CHECKED
    numbers = float if is_unchecked else (bool, int, float)
    names = {} if step.spec is None else schema_names(step.function, *tree_unflatten(step.arguments, step.spec))
    for n, value in enumerate(step.arguments):
        if isinstance(value, numbers):
            for instead in other_numbers(value, dims):
                kind, words = changed_option(names.get(n, ""), value, instead, step.name.strip("_"))
                yield kind, words, lambda s, flat, n=n, v=instead: s.call([*flat[:n], v, *flat[n + 1 :]])
