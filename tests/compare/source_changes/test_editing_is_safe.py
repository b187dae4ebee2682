"""Promise: the search for corrections leaves functions as they were, and edits only what computes."""

from __future__ import annotations

import ast
import functools
import importlib
import sys
import textwrap
from pathlib import Path
from types import CodeType

import pytest
import torch
from torch.autograd import Function

import manualgrad
from compare import Case, compare
from compare.gradients.source_changes.called_functions import CalledFunction, find_called_functions
from compare.gradients.source_changes.candidates import Candidates
from compare.gradients.source_changes.editable_function import EditableFunction, SourceUnknown, exchanged
from compare.gradients.source_changes.edits import find_sites
from compare.gradients.source_changes.search import search
from tests.compare.source_changes import effects, mistakes
from tests.compare.source_changes.test_corrections import case_of, corrections_of, matrix, run, texts

WRITTEN: list[str] = []
EFFECTS = (
    "WritesAFile", "SavesATensor", "MightWrite", "SetsThreads", "SetsTheSeed", "KeepsAnAttribute",
)  # fmt: skip


def called_by(run) -> dict[str, CalledFunction]:
    """The functions that ``run`` calls, by their names."""
    return {each.code.co_name: each for each in find_called_functions(run)[0]}


def run_backward(function, *inputs):
    def run():
        leaves = [x.clone().requires_grad_() for x in inputs]
        torch.autograd.grad(function(*leaves).sum(), leaves)

    return run


def codes_in(module) -> dict[str, CodeType]:
    return {
        f"{name}.{method}": getattr(value, method).__code__
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Function) and value is not Function
        for method in ("forward", "backward")
    }


def test_the_code_is_what_it_was_after_a_search():
    before = {name: id(code) for name, code in codes_in(mistakes).items()}
    corrections_of(case_of(mistakes.Scaled, lambda x: (mistakes.BETA * x).sin(), (matrix,)))
    assert {name: id(code) for name, code in codes_in(mistakes).items()} == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_the_code_and_the_tree_are_what_they_were_after_an_interrupt(error):
    backward = called_by(run_backward(mistakes.Tanh.apply, matrix()))["backward"]
    text, code = ast.unparse(EditableFunction(backward).node), mistakes.Tanh.backward.__code__
    candidate = next(Candidates([backward]).first())
    ((function, _),) = candidate.parts

    def interrupt():
        with candidate.made():
            codes = candidate.compiled()
            assert codes is not None and ast.unparse(function.node) != text
            with exchanged(codes):
                assert mistakes.Tanh.backward.__code__ is codes[function]
                raise error

    with pytest.raises(error):
        interrupt()
    assert mistakes.Tanh.backward.__code__ is code and ast.unparse(function.node) == text


class Logs(Function):
    """Writes a line in backward, and has a mistake."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        WRITTEN.append("backward")
        print("backward", x.shape, end="")
        return 3 * g * x


def test_calls_that_do_more_than_compute_are_never_edited():
    backward = called_by(run_backward(Logs.apply, matrix()))["backward"]
    function = EditableFunction(backward)
    edited = {ast.unparse(site.node) for site in find_sites(backward, function.node)}
    assert "3 * g * x" in edited
    assert not any(word in text for text in edited for word in ("print", "while", "shape", "WRITTEN", "0")), edited


def test_what_edited_runs_print_is_not_shown(capsys):
    case = Case("logs", Logs.apply, torch.square, lambda: (matrix(),))
    runner, rows = run(case)
    assert "backward torch.Size([5, 4])" in capsys.readouterr().out
    WRITTEN.clear()
    (correction,) = search(runner, runner.mismatches, list(dict.fromkeys(row.variant for row in rows))).corrections
    assert texts([correction]) == {("return 3 * g * x", "return 2 * g * x")}
    assert not WRITTEN
    assert not capsys.readouterr().out


@pytest.mark.parametrize("name", EFFECTS)
def test_a_function_that_does_more_than_compute_is_left_alone(name, tmp_path, monkeypatch):
    monkeypatch.setattr(effects, "FOLDER", str(tmp_path))
    function = getattr(effects, name)
    ours = function() if issubclass(function, torch.nn.Module) else function.apply
    assert corrections_of(Case(name, ours, torch.square, lambda: (matrix(),))) == []
    written = [file.stem for file in tmp_path.iterdir()]
    assert written == (["step1"] if name in ("WritesAFile", "SavesATensor") else [])


def test_the_same_function_without_the_effect_has_a_correction():
    """Or the test above could not fail."""
    (correction,) = corrections_of(Case("square", WrongSquare.apply, torch.square, lambda: (matrix(),)))
    assert [change.new for change in correction.changes] == ["return 2 * g * x"]


class WrongSquare(effects.Square):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * g * x


def test_a_function_that_seeds_its_own_generator_is_edited():
    result = corrections_of(Case("drop", effects.DropsOut.apply, effects.dropped_out, lambda: (matrix(),)))
    assert ("return g * mask", "return 2 * (g * mask)") in texts(result), result


def test_without_a_source_there_is_no_correction():
    source = """
        class Unsourced(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return 2 * x
            @staticmethod
            def backward(ctx, g):
                return 3 * g
    """
    scope = {"torch": torch, "__name__": "unsourced"}
    exec(compile_source(textwrap.dedent(source)), scope)
    case = Case("unsourced", scope["Unsourced"].apply, lambda x: 2 * x, lambda: (matrix(),))
    assert corrections_of(case) == []


def compile_source(source: str) -> CodeType:
    return compile(source, str(Path("nowhere", "unsourced.py")), "exec")


def test_a_source_that_has_changed_since_is_not_used(tmp_path, monkeypatch):
    file = tmp_path / "changed_functions.py"
    file.write_text("def double(x):\n    return 2 * x\n")
    scope: dict = {}
    exec(compile(file.read_text(), str(file), "exec"), scope)
    file.write_text("def double(x):\n    return 3 * x\n")
    with pytest.raises(SourceUnknown):
        EditableFunction(called_by(lambda: scope["double"](1))["double"])


def test_where_a_profiler_runs_there_is_no_search():
    previous = sys.getprofile()
    sys.setprofile(lambda *_: None)
    try:
        result = corrections_of(case_of(mistakes.Tanh, torch.tanh, (matrix,)))
    finally:
        sys.setprofile(previous)
    assert result == []


def closure(factor):
    def multiplied(g, x):
        return g * factor * x

    return multiplied


triple = closure(3)


def decorated(function):
    @functools.wraps(function)
    def wrapper(ctx, g):
        return function(ctx, g)

    return wrapper


class Closures(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 1.5 * x * x

    @staticmethod
    @decorated
    def backward(ctx, g):
        """The factor of the closure is right; the sign is not."""
        (x,) = ctx.saved_tensors
        return -triple(g, x)


def test_closures_and_decorated_functions_are_edited():
    result = corrections_of(Case("closures", Closures.apply, lambda x: 1.5 * x * x, lambda: (matrix(),)))
    assert {("return -triple(g, x)", "return triple(g, x)")} <= texts(result), result
    called = called_by(run_backward(Closures.apply, matrix()))
    function = EditableFunction(called["multiplied"])
    assert function.code.co_freevars == ("factor",)
    assert any(f.node.name == "multiplied" for c in Candidates([called["multiplied"]]).first() for f, _ in c.parts)


def test_a_closure_keeps_its_free_variables():
    called = called_by(lambda: triple(torch.ones(2), torch.ones(2)))["multiplied"]
    for candidate in Candidates([called]).first():
        with candidate.made():
            for code in (candidate.compiled() or {}).values():
                assert code.co_freevars == ("factor",)


def test_a_lambda_and_two_in_one_line():
    pair = (lambda x: 2 * x, lambda x: 3 * x)
    called = find_called_functions(lambda: pair[1](torch.ones(1)))[0]
    (function,) = [each for each in called if each.functions == [pair[1]]]
    assert ast.unparse(EditableFunction(function).node) == "lambda x: 3 * x"


def test_a_function_that_depends_on_its_calls_is_left_alone():
    case = Case("counts", Counts.apply, lambda x: 2 * x, lambda: (matrix(),))
    findings = compare(case, dtypes=(torch.float64,)).findings
    assert findings and not any(finding.correction or "source" in finding.kind for finding in findings)


class Counts(Function):
    calls = 0

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        Counts.calls += 1
        return 2 * g * (1 + 0.01 * Counts.calls)


def test_functions_of_libraries_are_not_the_users():
    names = called_by(lambda: torch.nn.functional.gelu(torch.ones(3)) + torch.nn.Linear(3, 3)(torch.ones(3)))
    assert set(names) == {"<lambda>"}


@pytest.mark.parametrize("module", ["ctypes", "torch.utils.cpp_extension"])
def test_where_machine_code_gets_addresses_nothing_is_edited(module, monkeypatch):
    """In float32 alone, say, so that no function that has run names it."""
    corrected = case_of(mistakes.Exchanged, torch.mul, (matrix, matrix))
    assert corrections_of(corrected)
    monkeypatch.setitem(vars(mistakes), "machine_code", importlib.import_module(module))
    assert not corrections_of(corrected)


def test_functions_of_manualgrad_are_not_edited():
    """An edited one could hand addresses of other tensors to its kernels, and end the process."""
    wrong = Case("twice", lambda x: 2 * manualgrad.softmax(x), lambda x: x.softmax(-1), lambda: (matrix(),))
    x = matrix()
    assert set(called_by(lambda: wrong.ours(x))) == {"<lambda>"}
    findings = compare(wrong, dtypes=(torch.float32,)).findings
    assert "should be `manualgrad.softmax(x)`" in findings[0].correction, findings


def takes_from_a_list(values):
    total, left = 0, list(values)
    while left:
        value = left.pop()
        total = total + 2 * value
    return total


def counts_down(values):
    total, n = 0, len(values) - 1
    while n >= 0:
        total = total + values[n]
        total = 2 * total
        n -= 1
    return total


def converges(values):
    x, error = values[0], 1.0
    while error > 1e-3:
        before = x
        x = x / 2
        error = abs(x - before)
    return x


def grows(values):
    left, total = list(values), 0
    while left:
        total = total + left.pop()
        if total < 3:
            left.append(total)
    return total


def counts_to_an_equal_number(values):
    total, n = 0, len(values)
    while n != 0:
        total = 2 * total
        n -= 1
    return total


def is_filled_again(values):
    left, total = list(values), 0
    while left:
        total = 2 * total
        taken = left.pop()
        left = [*left, *([taken / 8] if taken > 1 else [])]
    return total


def doubles(values):
    total, width = 0, 0
    width = 1
    while width <= len(values):
        total = total + width
        total = 2 * total
        width *= 2
    return total


def doubles_from_one(values):
    total = 0
    width = 1
    while width <= len(values):
        total = total + values[0]
        total = 2 * total
        width *= 2
    return total


LOOPS = [
    (doubles, 0),
    (doubles_from_one, 1),
    (takes_from_a_list, 1),
    (counts_down, 1),
    (converges, 0),
    (grows, 0),
    (counts_to_an_equal_number, 0),
    (is_filled_again, 0),
]


@pytest.mark.parametrize(("function", "count"), LOOPS)
def test_only_loops_that_end_in_any_case_are_edited(function, count):
    (called,) = (c for c in find_called_functions(lambda: function([1.0, 2.0]))[0] if c.code is function.__code__)
    node = EditableFunction(called).node
    (loop,) = (n for n in ast.walk(node) if isinstance(n, ast.While))
    sites = [site for site in find_sites(called, node) if any(a is loop for a in site.ancestors)]
    statements = [ast.unparse(site.node) for site in sites if isinstance(site.node, ast.stmt)]
    words = ("left", "n -=", "width")
    assert len(statements) == count and not any(word in text for text in statements for word in words), statements
    assert "width = 1" not in {ast.unparse(site.node) for site in find_sites(called, node)}


class Halves(Function):
    """Steps that are halved until they are small: an edit could make the loop endless."""

    forward = staticmethod(lambda ctx, x: 2 * x)

    @staticmethod
    def backward(ctx, g):
        step = 1.0
        while step > 1e-3:
            step = step / 2
        return 3 * g


class Grows(Function):
    """A list that grows while a loop goes over it."""

    forward = staticmethod(lambda ctx, x: 2 * x)

    @staticmethod
    def backward(ctx, g):
        todo = [3]
        for k in todo:
            if k == 0:
                break
            todo.append(k - 1)
        return 3 * g


@pytest.mark.parametrize("function", [Halves, Grows])
def test_a_function_with_a_loop_that_could_become_endless_is_left_alone(function):
    assert corrections_of(Case("loop", function.apply, lambda x: 2 * x, lambda: (matrix(),))) == []


def shared(x, factor):
    return factor * x


class SharedWithNative(Function):
    """A helper that native calls too: an edit of it would change what is right."""

    @staticmethod
    def forward(ctx, x):
        return shared(x, 2)

    @staticmethod
    def backward(ctx, g):
        return -shared(g, 2)


def test_what_native_calls_is_not_edited():
    case = Case("shared", SharedWithNative.apply, lambda x: shared(x, 2), lambda: (matrix(),))
    result = texts(corrections_of(case))
    assert ("return -shared(g, 2)", "return shared(g, 2)") in result, result
    assert not any("factor" in old for old, _ in result), result
