"""Calls of PyTorch's functions that native makes: their results, and native again with one of them changed."""

from __future__ import annotations

import linecache
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_flatten, tree_unflatten

from compare.gradients.diagnosis.decompositions import DECOMPOSITIONS
from compare.gradients.diagnosis.source_text import MAX_TEXT, source_text
from compare.gradients.numbers import has_gradient

MAX_CALLS = 400
ELEMENTS_OF_A_CALL = 5000  # a call that computes so many takes twice as long as a small one
PRODUCTS = {"matmul", "mm", "bmm", "linear", "einsum", "addmm", "baddbmm", "bilinear"}
OPERATORS = {
    "add": "+", "sub": "-", "rsub": "-", "mul": "*", "div": "/", "matmul": "@", "pow": "**", "neg": "-",
    "indexing": "[", "permute": ".", "where": "where", "T": ".T", "mT": ".mT",
}  # fmt: skip
NUMBER_FIRST = {"rdiv": "div", "rpow": "pow"}  # 1 / x and 2**x
# Files whose frames are not native's.
WATCHING_FILES = {__file__, str(Path(__file__).with_name("tape.py")), str(Path(__file__).parents[2] / "case.py")}
COMPOSITE = "composite"  # ends the site of a composite function as a whole
# Attributes and methods whose result is no new value.
IGNORED = {
    "__get__", "size", "dim", "numel", "detach", "item", "is_floating_point", "is_complex", "__len__", "new_zeros",
    "new_ones", "new_full", "new_empty", "new_tensor", "zeros_like", "ones_like", "empty_like", "arange", "zeros",
    "ones", "requires_grad_", "stride", "is_contiguous", "data_ptr", "element_size", "storage_offset", "tolist",
}  # fmt: skip


class Site(NamedTuple):
    """Place of a call in native's code.

    Attributes:
        code, instruction, line: of the first frame outside of PyTorch and this package; None and 0 without one.
        module: path and class of a module of PyTorch that is called there, such as "2 (ReLU)"; "" without one.
    """

    code: Any
    instruction: int
    line: int
    module: str


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        number: place among all calls.
        site: places in the code, of composite functions and of the call in them; calls in a loop share it.
        function: PyTorch's function.
        name: in words, with the line of code: "the result of exp (line 7)".
        args, kwargs: arguments.
        result: detached.
        attached: the result with its derivatives, where calls are recorded with them.
        iteration: number of earlier calls of the same site.
        records: results of an earlier run on the same inputs, by site; inputs by name.
    """

    number: int
    site: Any
    function: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Tensor
    iteration: int = 0
    records: Mapping[Any, list[Tensor]] = field(default_factory=dict)
    attached: Tensor | None = None

    @property
    def operation(self) -> str:
        """Name of the function: "exp"."""
        return operation_name(self.function)

    @cached_property
    def _flattened(self) -> tuple[list[Any], Any]:
        return tree_flatten((self.args, self.kwargs))

    @property
    def flat(self) -> list[Any]:
        """Arguments of the call, flattened."""
        return list(self._flattened[0])

    def unflatten(self, flat: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional arguments and those by name, from flattened ones."""
        args, kwargs = tree_unflatten(flat, self._flattened[1])
        return args, kwargs

    @cached_property
    def tensors(self) -> list[tuple[int, Tensor]]:
        """Tensor arguments of real or complex numbers, and their positions among all flattened arguments."""
        return [(n, value) for n, value in enumerate(self.flat) if isinstance(value, Tensor) and has_gradient(value)]

    @cached_property
    def cost(self) -> int:
        """1 for a small call; more by the number of elements, or of products, that it computes."""
        sizes = sorted((t.numel() for _, t in self.tensors), reverse=True)[:2]
        work = max([self.result.numel(), *sizes])
        if len(sizes) == 2 and (self.operation in PRODUCTS or self.operation.startswith("conv")):
            work = max(work, math.isqrt(self.result.numel() * sizes[0] * sizes[1]) // 4)  # M·N·K of a matrix product
        return 1 + work // ELEMENTS_OF_A_CALL


# change(call, compute) returns the result to use instead. ``compute(flat arguments)`` calls the function.
Change = Callable[[Call, Any], Tensor]


class InterceptCalls(TorchFunctionMode):
    """Record every call, and let ``change`` replace results. Composite functions are taken apart."""

    def __init__(
        self,
        change: Change | None = None,
        records: Mapping[Any, list[Tensor]] | None = None,
        whole: Any = None,
        *,
        takes_apart: bool = True,
    ) -> None:
        """Begin a run; ``whole`` is the site of a composite function that is not taken apart."""
        super().__init__()
        self.takes_apart = takes_apart
        self.change, self.records, self.calls = change, records or {}, []
        self.whole, self.composites, self.indices = whole, [], []
        self._counts: Counter[Any] = Counter()
        self._nested: tuple[Any, ...] = ()  # sites of the composite functions that are being taken apart
        self._inside = ""  # name of the outermost of them

    calls: list[Call]
    composites: list[Call]
    indices: list[Call]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operation_name(function)
        if name == "__get__":
            name = getattr(function.__self__, "__name__", name)
        if name in IGNORED or len(self.calls) > MAX_CALLS:
            return function(*args, **kwargs)
        simple = DECOMPOSITIONS.get(name) if self.takes_apart else None
        site = (*self._nested, find_site())
        if simple is not None and (*site, COMPOSITE) != self.whole:
            value = self._decomposed(simple, function, args, kwargs, site)
            if value is not None:
                composite = (*site, COMPOSITE)
                words = describe(name, site, self._inside)
                number = -1 - len(self.composites)  # apart from those of simple calls
                call = Call(number, composite, function, words, args, kwargs, value.detach(), attached=value)
                self.composites.append(call)
                return value
        result = function(*args, **kwargs)
        if not isinstance(result, Tensor) or (name.endswith("_") and name[:2] != "__"):
            return result
        if not has_gradient(result):
            if result.dtype in (torch.int64, torch.int32):  # indices, such as those of the largest elements
                call = Call(-1, site, function, describe(name, site, self._inside), args, kwargs, result)
                self.indices.append(call)
                return result if self.change is None else self.change(call, result)
            return result
        call = Call(
            len(self.calls), (*site, COMPOSITE) if simple is not None else site, function,
            describe(name, site, self._inside), args, kwargs, result.detach(), self._counts[site], self.records,
            result,
        )  # fmt: skip
        self._counts[site] += 1
        self.calls.append(call)
        return result if self.change is None else self.change(call, result)

    def _decomposed(self, simple, function, args, kwargs, site):
        """The value by simpler functions, whose calls are recorded; None if that is another value."""
        with torch.no_grad():
            try:
                expected, got = function(*args, **kwargs), simple(*args, **kwargs)
            except (
                TypeError,
                RuntimeError,
                ValueError,
                NotImplementedError,
            ):  # an option that `simple` does not know
                return None
        if not isinstance(got, Tensor) or got.shape != expected.shape or got.dtype != expected.dtype:
            return None
        if not torch.allclose(got, expected, rtol=1e-9, atol=1e-12, equal_nan=True):
            return None
        outer, self._nested = (self._nested, self._inside), site
        self._inside = self._inside or operation_name(function)
        try:
            with self:
                return simple(*args, **kwargs)
        finally:
            self._nested, self._inside = outer


def operation_name(function: Callable[..., Any]) -> str:
    """Name without underscores: "add" for Tensor.__add__ too."""
    name = getattr(function, "__name__", None) or str(resolve_name(function) or function)
    bare = name.strip("_")
    if name.startswith("__") and name != "__get__":
        return {
            "truediv": "div",
            "rtruediv": "div",
            "radd": "add",
            "rmul": "mul",
            "rsub": "rsub",
            "getitem": "indexing",
        }.get(bare, bare)
    return name


def find_site() -> Site:
    """Place in native's code of the call that runs: see :class:`Site`. It is empty if native is builtin."""
    frame = sys._getframe(2)
    modules = []
    while frame is not None and (frame.f_code.co_filename in WATCHING_FILES or "/torch/" in frame.f_code.co_filename):
        modules += _module_of(frame)
        frame = None if frame.f_code is call_native.__code__ else frame.f_back
    site = (None, 0, 0) if frame is None else (frame.f_code, frame.f_lasti, frame.f_lineno)
    leaf = modules[0] if modules else None
    while leaf is not None and frame is not None and frame.f_code is not call_native.__code__:
        modules += _module_of(frame)
        frame = frame.f_back
    return Site(*site, "" if leaf is None else _path(leaf, modules[-1]))


def _module_of(frame: Any) -> list[nn.Module]:
    """The module whose forward runs in a frame."""
    own = frame.f_locals.get("self") if frame.f_code.co_name == "forward" else None
    return [own] if isinstance(own, nn.Module) else []


def _path(module: nn.Module, root: nn.Module) -> str:
    """ "2 (ReLU)": where a module is in another one; "" if it is that one."""
    path = next((path for path, own in root.named_modules() if own is module), "")
    return f"{path} ({type(module).__name__})" if path else ""


def call_native(native: Callable[..., Any], inputs: Iterable[Tensor]) -> Any:
    """Call native, by a frame that ends the search for the line of its code."""
    return native(*inputs)


def describe(name: str, site: tuple[Any, ...], inside: str) -> str:
    """The operation and the line of native's code that calls it."""
    code, line, module = site[0].code, site[0].line, site[0].module
    name = NUMBER_FIRST.get(name, name)
    name = f"{name} in {inside}" if inside else name
    name += f" in module {module}" if module else ""
    if code is None:
        return f"the result of {name}"
    text = " ".join(linecache.getline(code.co_filename, line).split())
    own = name.split()[0]
    sign = inside or (OPERATORS.get(own, own) if own not in text else own)
    # Where code was made by exec, the file may be another one: then the line does not have the operation.
    if len(text) > MAX_TEXT or sign not in text:
        text = source_text(site[0])
    shown = 0 < len(text) <= MAX_TEXT and sign in text
    return f"the result of {name} in line {line}" + (f", `{text}`" if shown else "")


def results_by_name(calls: Iterable[Call]) -> dict[str, Tensor]:
    """The first result of each site, by the name of the call, but for complex ones; same names are numbered."""
    named: dict[str, Tensor] = {}
    sites: dict[Any, str] = {}
    for call in calls:
        if call.site in sites or call.result.is_complex():
            continue
        same = sum(name == call.name for name in sites.values())
        sites[call.site] = call.name
        named[f"{call.name} (call {same + 1} there)" if same else call.name] = call.result
    return named


def record_calls(
    native: Callable[..., Any], inputs: Mapping[str, Tensor], *, with_integers: bool = False
) -> list[Call]:
    """The calls of native on these inputs, those that return integers if asked for; none if it raises."""
    mode = InterceptCalls()
    with torch.no_grad(), mode:
        try:
            call_native(native, inputs.values())
        except Exception:  # native raises only when it is watched: then its calls explain nothing
            return []
    calls = mode.calls + mode.indices if with_integers else mode.calls
    return calls if len(mode.calls) <= MAX_CALLS else []
