"""Edits of calls: one left out or exchanged, its arguments exchanged or left out."""

from __future__ import annotations

import ast
import types
from collections.abc import Iterator
from itertools import combinations

from compare.gradients.source_changes.called_functions import CalledFunction
from compare.gradients.source_changes.edits import Edit, Site
from compare.gradients.source_changes.expression_edits import name, number, transposed

# Functions that are written in one another's place.
FAMILIES = (
    ("sum", "mean", "amax", "prod"),
    ("max", "amax", "min", "amin", "argmax", "argmin"),
    ("var", "std"),
    ("sin", "cos", "tan"), ("sinh", "cosh", "tanh", "sigmoid"), ("asin", "acos", "atan"),
    ("exp", "expm1", "exp2"), ("log", "log1p", "log2", "log10", "exp"),
    ("sqrt", "rsqrt", "square", "reciprocal"),
    ("abs", "sign", "neg", "relu"),
    ("floor", "round", "ceil", "trunc"),
    ("softmax", "log_softmax"), ("sigmoid", "tanh", "logsigmoid", "softplus"),
    ("cumsum", "cumprod", "logcumsumexp"),
    ("tril", "triu"), ("triu_indices", "tril_indices"),
    ("maximum", "minimum", "fmax", "fmin"), ("clamp_min", "clamp_max"),
    ("zeros_like", "ones_like"), ("zeros", "ones"), ("new_zeros", "new_ones"),
    ("real", "imag", "abs", "angle"),
    ("fft", "ifft"), ("rfft", "fft"), ("irfft", "ifft"), ("fft2", "ifft2"), ("fftn", "ifftn"),
    ("lt", "le", "gt", "ge", "eq", "ne"), ("add", "sub"), ("mul", "div"), ("add_", "sub_"), ("mul_", "div_"),
    ("scatter_add", "scatter", "scatter_reduce"), ("scatter_add_", "scatter_"), ("index_add", "index_copy"),
    ("index_add_", "index_copy_"), ("inv", "pinv"), ("outer", "ger"), ("logsumexp", "sum"),
    ("unsqueeze", "squeeze"), ("view", "reshape"), ("repeat", "repeat_interleave"), ("roll", "flip"),
    ("log_", "log1p_"), ("sum", "trace"), ("lgamma", "digamma"), ("erf", "erfc", "erfinv"), ("det", "logdet"),
    ("cross", "mul"), ("argsort", "sort"), ("mm", "mul"), ("bmm", "matmul"),
)  # fmt: skip
RELATIVES: dict[str, list[str]] = {}
for _family in FAMILIES:
    for _name in _family:
        RELATIVES.setdefault(_name, []).extend(n for n in _family if n != _name and n not in RELATIVES.get(_name, ()))
REDUCTIONS = {"sum", "mean", "amax", "amin", "max", "min", "logsumexp", "norm", "var", "std"}
PAIRS_OF_DIMENSIONS = ((0, 1), (-2, -1), (0, 2), (1, 2), (0, 2, 3))


def call_edits(site: Site, called: CalledFunction) -> Iterator[Edit]:
    """Every edit of a call, and of a transposition written as an attribute."""
    node = site.node
    if isinstance(node, ast.Attribute) and node.attr in ("T", "mT", "H", "mH"):
        yield site.edit(node.value, 1)
        other = {"T": "mH", "mT": "mH", "H": "mT", "mH": "mT"}[node.attr]
        yield site.edit(ast.Attribute(node.value, other, ast.Load()), 1)
    if isinstance(node, ast.Call):
        yield from _left_out(site, called)
        yield from _other_arguments(site)
        yield from _other_reductions(site)
        yield from _means_of_a_mask(site, called)
        yield from _other_ranges(site)
        yield from _scattered(site)
        yield from _from_the_end(site)
        yield from _repeated(site)
        yield from _half_diagonal(site)
        yield from _not_rolled_around(site)
        yield from _solved_with_the_transpose(site)


def _name_of(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _left_out(site: Site, called: CalledFunction) -> Iterator[Edit]:
    """The call replaced by its operand, or another function called."""
    node = site.node
    function, arguments = node.func, node.args
    if isinstance(function, ast.Attribute):
        scope = called.functions[0].__globals__
        is_module = isinstance(function.value, ast.Name) and isinstance(
            scope.get(function.value.id), types.ModuleType
        )
        is_deeper = isinstance(function.value, ast.Attribute) and function.value.attr in ("linalg", "fft", "special")
        if not is_module and not is_deeper:
            yield site.edit(function.value, 1)
        elif arguments:
            yield site.edit(arguments[0], 1)
        for other in RELATIVES.get(function.attr, ()):
            exchanged = ast.Attribute(function.value, other, ast.Load())
            yield site.edit(ast.Call(exchanged, arguments, node.keywords), 1)
    elif arguments:
        is_users = isinstance(called.functions[0].__globals__.get(getattr(function, "id", "")), types.FunctionType)
        yield site.edit(arguments[0], 2 if is_users else 1)


def _other_arguments(site: Site) -> Iterator[Edit]:
    """Two arguments exchanged, one left out; the branches of ``where``."""
    node = site.node
    function, arguments, keywords = node.func, node.args, node.keywords
    if _name_of(node) == "where" and len(arguments) == 3:
        condition, a, b = arguments
        for parts in ([condition, b, a], [condition, a, number(0)], [condition, number(0), b]):
            yield site.edit(ast.Call(function, parts, keywords), 1)
        yield site.edit(a, 1)
        yield site.edit(b, 1)
        return
    for n in range(len(arguments) - 1):
        exchanged = [*arguments[:n], arguments[n + 1], arguments[n], *arguments[n + 2 :]]
        yield site.edit(ast.Call(function, exchanged, keywords), 1)
    if _name_of(node) == "permute":
        for n, m in combinations(range(len(arguments)), 2):
            exchanged = list(arguments)
            exchanged[n], exchanged[m] = arguments[m], arguments[n]
            yield site.edit(ast.Call(function, exchanged, keywords), 1)
    for n in range(len(keywords)):
        yield site.edit(ast.Call(function, arguments, keywords[:n] + keywords[n + 1 :]), 1)
    for n in range(len(arguments)):
        yield site.edit(ast.Call(function, arguments[:n] + arguments[n + 1 :], keywords), 2)


def _other_reductions(site: Site) -> Iterator[Edit]:
    """A sum that keeps its dimension, or is over another dimension or several; a variance with another divisor."""
    node = site.node
    function, arguments, keywords = node.func, node.args, node.keywords
    if _name_of(node) not in REDUCTIONS or not isinstance(function, ast.Attribute):
        return
    names = {keyword.arg for keyword in keywords}
    if "keepdim" not in names:
        kept = [*keywords, ast.keyword("keepdim", ast.Constant(True))]
        for parts in [arguments] if arguments or "dim" in names else [[number(dim)] for dim in (0, 1, 2, -1)]:
            yield site.edit(ast.Call(function, parts, kept), 1 if arguments else 2)
        if len(arguments) == 1 or names & {"dim", "axis"}:
            others = [keyword for keyword in kept if keyword.arg not in ("dim", "axis")]
            for dim in (0, 1, 2, -1):
                yield site.edit(ast.Call(function, [number(dim)], others), 2)
    if not names & {"dim", "axis"}:
        for dims in PAIRS_OF_DIMENSIONS:
            pair = ast.Tuple([number(dim) for dim in dims], ast.Load())
            yield site.edit(ast.Call(function, [pair], keywords), 2)
    if _name_of(node) == "mean" and len(arguments) == 1:
        summed = ast.Call(ast.Attribute(function.value, "sum", ast.Load()), arguments, keywords)
        shape = ast.Attribute(function.value, "shape", ast.Load())
        size = ast.Subscript(shape, arguments[0], ast.Load())
        yield site.edit(ast.BinOp(summed, ast.Div(), ast.BinOp(size, ast.Sub(), number(1))), 2)
    if _name_of(node) in ("var", "std") and "unbiased" not in names:
        biased = ast.keyword("unbiased", ast.Constant(False))
        yield site.edit(ast.Call(function, arguments, [*keywords, biased]), 1)


def _means_of_a_mask(site: Site, called: CalledFunction) -> Iterator[Edit]:
    """A sum over the number of elements that a mask keeps, in place of a mean over all."""
    node = site.node
    if _name_of(node) != "mean" or not isinstance(node.func, ast.Attribute):
        return
    summed = ast.Call(ast.Attribute(node.func.value, "sum", ast.Load()), node.args, node.keywords)
    for local, tensor in called.tensors.items():
        if ((tensor == 0) | (tensor == 1)).all():
            count = ast.Call(ast.Attribute(name(local), "sum", ast.Load()), [], [])
            yield site.edit(ast.BinOp(summed, ast.Div(), count), 2)


def _other_ranges(site: Site) -> Iterator[Edit]:
    """A loop in the other direction, or one step longer or shorter."""
    node = site.node
    if _name_of(node) != "range" or not 1 <= len(node.args) <= 2:
        return
    *first, last = node.args
    start = first[0] if first else number(0)
    yield site.edit(ast.Call(name("reversed"), [node], []), 1)
    yield site.edit(ast.Call(node.func, [ast.BinOp(start, ast.Add(), number(1)), last], []), 1)
    for operator in (ast.Sub(), ast.Add()):
        yield site.edit(ast.Call(node.func, [*first, ast.BinOp(last, operator, number(1))], []), 1)
    if first:
        yield site.edit(ast.Call(node.func, [last], []), 1)


def _scattered(site: Site) -> Iterator[Edit]:
    """Elements put to indices in place of elements taken from there, and the other way round."""
    node = site.node
    if not isinstance(node.func, ast.Attribute) or node.func.attr not in ("gather", "index_select"):
        return
    if len(node.args) == 2 and not node.keywords:
        zeros = ast.Call(
            ast.Attribute(ast.Name("torch", ast.Load()), "zeros_like", ast.Load()), [node.func.value], []
        )
        put = "scatter" if node.func.attr == "gather" else "index_add"
        yield site.edit(ast.Call(ast.Attribute(zeros, put, ast.Load()), [*node.args, node.func.value], []), 2)


def _from_the_end(site: Site) -> Iterator[Edit]:
    """A cumulative sum from the end, the transpose of one from the start; and the other way round."""
    node = site.node
    if _name_of(node) not in ("cumsum", "logcumsumexp") or len(node.args) != 1 or node.keywords:
        return
    if isinstance(node.func, ast.Attribute):
        axes = ast.List([node.args[0]], ast.Load())
        reverse = lambda value: ast.Call(ast.Attribute(value, "flip", ast.Load()), [axes], [])  # noqa: E731
        summed = ast.Call(ast.Attribute(reverse(node.func.value), node.func.attr, ast.Load()), node.args, [])
        yield site.edit(reverse(summed), 2)


def _repeated(site: Site) -> Iterator[Edit]:
    """Each element repeated in place of the whole."""
    node = site.node
    if _name_of(node) not in ("repeat", "tile") or not isinstance(node.func, ast.Attribute) or node.keywords:
        return
    counts = node.args[0].elts if len(node.args) == 1 and isinstance(node.args[0], ast.Tuple) else node.args
    result: ast.expr = node.func.value
    for n, count in enumerate(counts):
        if not (isinstance(count, ast.Constant) and count.value == 1):
            dim = number(n - len(counts))
            result = ast.Call(ast.Attribute(result, "repeat_interleave", ast.Load()), [count, dim], [])
    yield site.edit(result, 2)


def _half_diagonal(site: Site) -> Iterator[Edit]:
    """A triangle of a matrix with half of its diagonal."""
    node = site.node
    if _name_of(node) not in ("tril", "triu"):
        return
    upper = ast.Call(ast.Attribute(node, "triu", ast.Load()), [], [])
    diagonal = ast.Call(ast.Attribute(upper, "tril", ast.Load()), [], [])
    half = ast.BinOp(diagonal, ast.Div(), number(2))
    yield site.edit(ast.BinOp(node, ast.Sub(), half), 3)


def _not_rolled_around(site: Site) -> Iterator[Edit]:
    """A shift by one place with a 0 where ``roll`` puts what comes from the other end."""
    node = site.node
    if _name_of(node) != "roll":
        return
    given = [*node.args, *(keyword.value for keyword in node.keywords)]  # shifts, then dims; before them the tensor
    if len(given) < 2 or not isinstance(given[-2], (ast.Constant, ast.UnaryOp)):
        return
    place = number(-1 if isinstance(given[-2], ast.UnaryOp) else 0)
    index = ast.Call(ast.Attribute(ast.Name("torch", ast.Load()), "tensor", ast.Load()), [place], [])
    filled = ast.Attribute(node, "index_fill", ast.Load())
    yield site.edit(ast.Call(filled, [given[-1], index, number(0)], []), 2)


def _solved_with_the_transpose(site: Site) -> Iterator[Edit]:
    """A triangular system with the transposed matrix."""
    node = site.node
    if _name_of(node) != "solve_triangular" or len(node.args) < 2:
        return
    for n, keyword in enumerate(node.keywords):
        if keyword.arg == "upper" and isinstance(keyword.value, ast.Constant):
            other = ast.keyword("upper", ast.Constant(not keyword.value.value))
            keywords = [*node.keywords[:n], other, *node.keywords[n + 1 :]]
            yield site.edit(ast.Call(node.func, [transposed(node.args[0]), *node.args[1:]], keywords), 1)
