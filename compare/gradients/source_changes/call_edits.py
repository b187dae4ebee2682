"""Edits of calls, subscripts and tuples."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from compare.gradients.source_changes.called_functions import CalledFunction
from compare.gradients.source_changes.edits import Edit, Site
from compare.gradients.source_changes.expression_edits import LEFT_OUT, MISSING, OPERAND, SURPLUS, name, number

# Functions that are written in one another's place.
FAMILIES = (
    ("sum", "mean", "amax", "prod", "nansum"),
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
    ("log_", "log1p_"), ("lgamma", "digamma"), ("erf", "erfc", "erfinv"), ("det", "logdet"),
    ("cross", "mul"), ("argsort", "sort"), ("mm", "mul"), ("bmm", "matmul"),
)  # fmt: skip
RELATIVES: dict[str, list[str]] = {}
for _family in FAMILIES:
    for _name in _family:
        RELATIVES.setdefault(_name, []).extend(n for n in _family if n != _name and n not in RELATIVES.get(_name, ()))
TRANSPOSITIONS = {"t", "transpose", "permute", "conj", "flip", "adjoint", "swapaxes", "movedim"}


def call_edits(site: Site) -> Iterator[Edit]:
    """A call left out or exchanged, its arguments exchanged or left out."""
    node = site.node
    if isinstance(node, ast.Attribute) and node.attr in ("T", "mT", "H", "mH", "real"):
        yield site.edit(node.value, 1, "transposed" if node.attr != "real" else OPERAND)
        if node.attr in ("T", "mT"):
            yield site.edit(ast.Attribute(node.value, "mH", ast.Load()), 1, "conjugated")
        if node.attr in ("H", "mH"):
            yield site.edit(ast.Attribute(node.value, "mT", ast.Load()), 1, "conjugated")
    if not isinstance(node, ast.Call):
        return
    function, arguments, keywords = node.func, node.args, node.keywords
    called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    kind = {"conj": "conjugated", "flip": "flipped", "roll": "shifted"}.get(called, SURPLUS)
    kind = "transposed" if called in TRANSPOSITIONS - {"conj", "flip"} else kind
    if isinstance(function, ast.Attribute) and not isinstance(function.value, ast.Name):
        yield site.edit(function.value, 1, kind)
    elif isinstance(function, ast.Attribute) and function.value.id not in ("torch", "F", "math", "np"):  # type: ignore[attr-defined]
        yield site.edit(function.value, 1, kind)
    elif arguments:
        yield site.edit(arguments[0], 1, kind)
    if called == "where" and len(arguments) == 3:
        condition, a, b = arguments
        for parts in ([condition, b, a], [condition, a, number(0)], [condition, number(0), b]):
            yield site.edit(ast.Call(function, parts, keywords), 1, "only for some values")
        yield site.edit(a, 1, "only for some values")
        yield site.edit(b, 1, "only for some values")
    elif len(arguments) >= 2 and not any(isinstance(a, ast.Starred) for a in arguments):
        for n in range(len(arguments) - 1):
            exchanged = [*arguments[:n], arguments[n + 1], arguments[n], *arguments[n + 2 :]]
            yield site.edit(ast.Call(function, exchanged, keywords), 1, OPERAND)
    for n in range(len(keywords)):
        yield site.edit(ast.Call(function, arguments, keywords[:n] + keywords[n + 1 :]), 1, OPERAND)
    for n in range(len(arguments)):
        if not isinstance(arguments[n], ast.Starred) and len(arguments) > (not isinstance(function, ast.Attribute)):
            yield site.edit(ast.Call(function, arguments[:n] + arguments[n + 1 :], keywords), 2, OPERAND)
    for other in RELATIVES.get(called, ()):
        if isinstance(function, ast.Attribute):
            exchanged_function = ast.Attribute(function.value, other, ast.Load())
            yield site.edit(ast.Call(exchanged_function, arguments, keywords), 1, OPERAND)
    if called in ("sum", "mean", "amax", "amin", "max", "min", "logsumexp", "norm", "cumsum", "softmax", "var", "std"):
        names = {keyword.arg for keyword in keywords}
        if isinstance(function, ast.Attribute) and "keepdim" not in names and called not in ("cumsum", "softmax"):
            with_keepdim = [*keywords, ast.keyword("keepdim", ast.Constant(True))]
            if arguments:
                yield site.edit(ast.Call(function, arguments, with_keepdim), 1, "wrong sum")
            else:
                for dim in (0, 1, 2, -1):
                    yield site.edit(ast.Call(function, [number(dim)], with_keepdim), 2, "wrong sum")
        if isinstance(function, ast.Attribute) and not names & {"dim", "axis"}:
            for dims in ((0, 1), (-2, -1), (0, 2), (1, 2), (0, 2, 3)):
                pair = ast.Tuple([number(d) for d in dims], ast.Load())
                yield site.edit(ast.Call(function, [pair], keywords), 2, "wrong sum")
    if called in ("var", "std"):
        yield site.edit(ast.Call(function, arguments, [*keywords, ast.keyword("unbiased", ast.Constant(False))]), 1, OPERAND)
    if called == "range" and len(arguments) <= 2:
        yield site.edit(ast.Call(name("reversed"), [node], []), 1, "another operand")
        first = [number(1)] if len(arguments) == 1 else [ast.BinOp(arguments[0], ast.Add(), number(1))]
        yield site.edit(ast.Call(function, [*first, arguments[-1]], []), 1, MISSING)
        for operator in (ast.Sub(), ast.Add()):
            last = ast.BinOp(arguments[-1], operator, number(1))
            yield site.edit(ast.Call(function, [*arguments[:-1], last], []), 1, MISSING)
        if len(arguments) == 2:
            yield site.edit(ast.Call(function, arguments[1:], []), 1, MISSING)


def subscript_edits(site: Site) -> Iterator[Edit]:
    """Slices moved, indices left out."""
    node = site.node
    if not isinstance(node, ast.Subscript):
        return
    if isinstance(node.ctx, ast.Load):
        yield site.edit(node.value, 2, SURPLUS)
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    for n, part in enumerate(parts):
        for other in _other_slices(part):
            changed = [*parts[:n], other, *parts[n + 1 :]]
            new = ast.Tuple(changed, ast.Load()) if isinstance(node.slice, ast.Tuple) else other
            yield site.edit(ast.Subscript(node.value, new, node.ctx), 1, "shifted")
    if len(parts) > 1:
        for n in range(len(parts) - 1):
            exchanged = [*parts[:n], parts[n + 1], parts[n], *parts[n + 2 :]]
            yield site.edit(ast.Subscript(node.value, ast.Tuple(exchanged, ast.Load()), node.ctx), 1, "transposed")


def _other_slices(part: ast.expr) -> Iterator[ast.expr]:
    if not isinstance(part, ast.Slice):
        return
    lower, upper, step = part.lower, part.upper, part.step
    if lower is not None and upper is None:
        yield ast.Slice(None, ast.UnaryOp(ast.USub(), lower), step)
    if upper is not None and lower is None:
        yield ast.Slice(ast.UnaryOp(ast.USub(), upper) if not isinstance(upper, ast.UnaryOp) else upper.operand, None, step)
        yield ast.Slice(upper, None, step)
    if lower is not None or upper is not None:
        yield ast.Slice(None, None, step)
    for bounds in ((lower, upper),):
        for operator in (ast.Add(), ast.Sub()):
            if lower is not None:
                yield ast.Slice(ast.BinOp(lower, operator, number(1)), upper, step)
            if upper is not None:
                yield ast.Slice(lower, ast.BinOp(upper, operator, number(1)), step)
            if lower is not None and upper is not None:
                yield ast.Slice(ast.BinOp(lower, operator, number(1)), ast.BinOp(upper, operator, number(1)), step)
    if step is not None:
        yield ast.Slice(lower, upper, None)
        yield ast.Slice(number(1), upper, step)
    if lower is None and upper is None:
        yield ast.Slice(number(1), None, step)
        yield ast.Slice(None, number(-1), step)


def tuple_edits(site: Site, called: CalledFunction) -> Iterator[Edit]:
    """Elements of a tuple or list exchanged or replaced, such as the returned gradients."""
    node = site.node
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "save_for_backward":
        for n, argument in enumerate(node.args):
            for other in called.tensor_names():
                if not (isinstance(argument, ast.Name) and argument.id == other):
                    changed = [*node.args[:n], name(other), *node.args[n + 1 :]]
                    yield site.edit(ast.Call(node.func, changed, []), 1, OPERAND)
    if not isinstance(node, (ast.Tuple, ast.List)) or not isinstance(node.ctx, ast.Load):
        return
    elements = node.elts
    make = type(node)
    for n in range(len(elements)):
        for m in range(n + 1, len(elements)):
            exchanged = list(elements)
            exchanged[n], exchanged[m] = elements[m], elements[n]
            yield site.edit(make(exchanged, ast.Load()), 1, "swapped")
        if isinstance(elements[n], ast.Constant) and elements[n].value is None:  # type: ignore[attr-defined]
            for other in called.tensor_names():
                yield site.edit(make([*elements[:n], name(other), *elements[n + 1 :]], ast.Load()), 2, LEFT_OUT)
