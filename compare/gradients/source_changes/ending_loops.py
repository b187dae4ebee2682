"""Loops with ``while`` that end whatever an edit changes: those that take from a list, count or double."""

from __future__ import annotations

import ast

OF_ELEMENTS = {"int", "item", "tolist", "round", "ceil", "floor"}  # functions that make numbers of a tensor's


def ends_by_its_test(loop: ast.While, function: ast.AST) -> bool:
    """True for a loop that takes from a list, counts or doubles each time, whatever the other statements compute.

    One that runs until something has converged could become endless.
    """
    if any(isinstance(node, (ast.Break, ast.Continue, ast.Return)) for node in ast.walk(loop)):
        return False
    names = names_in(loop.test)
    if isinstance(loop.test, ast.Compare) and len(loop.test.ops) == 1:
        directions = {ast.Gt: ast.Sub, ast.GtE: ast.Sub, ast.Lt: ast.Add, ast.LtE: ast.Add}
        if _doubled(loop):
            return _starts_positive(_doubled(loop), function)
        return any(_counts(each, loop.test, directions.get(type(loop.test.ops[0]))) for each in loop.body)
    uses = [n for each in loop.body for n in ast.walk(each) if isinstance(n, ast.Name) and n.id in names]
    is_taken = any(isinstance(n, (ast.Assign, ast.Expr)) and _pops(n, names) for n in loop.body)
    return is_taken and len(names) == 1 and _pops(loop, names) == len(uses)  # nothing else can put something in


def _doubled(loop: ast.While) -> str:
    """The name that a loop doubles until it has reached what it is compared with; "" if there is none."""
    test = loop.test
    if not (isinstance(test, ast.Compare) and isinstance(test.left, ast.Name)):
        return ""
    if len(test.ops) != 1 or not isinstance(test.ops[0], (ast.Lt, ast.LtE)):
        return ""
    return test.left.id if any(_doubles(each, test.left.id) for each in loop.body) else ""


def _doubles(statement: ast.stmt, name: str) -> bool:
    if not (isinstance(statement, ast.AugAssign) and isinstance(statement.op, ast.Mult)):
        return False
    is_two = isinstance(statement.value, ast.Constant) and statement.value.value == 2
    return is_two and isinstance(statement.target, ast.Name) and statement.target.id == name


def _starts_positive(name: str, function: ast.AST) -> bool:
    """True if a function sets a name to positive whole numbers only, but for doubling it."""
    stored = [n for n in ast.walk(function) if isinstance(n, ast.Name) and n.id == name and not _is_read(n)]
    starts = [n for n in ast.walk(function) if isinstance(n, ast.Assign) and _is_count(n, name)]
    doubled = [n for n in ast.walk(function) if isinstance(n, ast.stmt) and _doubles(n, name)]
    return bool(starts) and len(stored) == len(starts) + len(doubled)


def _is_read(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Load)


def _is_count(statement: ast.Assign, name: str) -> bool:
    target, value = statement.targets[0], statement.value
    is_positive = isinstance(value, ast.Constant) and type(value.value) is int and value.value > 0
    return len(statement.targets) == 1 and isinstance(target, ast.Name) and target.id == name and is_positive


def starts_a_count(node: ast.AST, function: ast.AST) -> bool:
    """True for the number from which a loop doubles: from another one, such as 0, it would be endless."""
    if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
        return False
    loops = [each for each in ast.walk(function) if isinstance(each, ast.While)]
    return any(_doubled(loop) == node.targets[0].id for loop in loops)


def _counts(statement: ast.stmt, test: ast.Compare, operator: type[ast.operator] | None) -> bool:
    """True for a positive constant that is added to what is compared, or taken from it, towards the end."""
    if not (isinstance(statement, ast.AugAssign) and isinstance(statement.value, ast.Constant)):
        return False
    is_towards = operator is not None and isinstance(statement.op, operator) and statement.value.value in (1, 2)
    return is_towards and ast.unparse(statement.target) == ast.unparse(test.left)


def _pops(node: ast.AST, names: set[str]) -> int:
    """Number of calls that take an element from a list with one of the names."""
    owners = [n.value for n in ast.walk(node) if isinstance(n, ast.Attribute) and n.attr == "pop"]
    return sum(isinstance(owner, ast.Name) and owner.id in names for owner in owners)


def may_count_values(function: ast.AST) -> bool:
    """True if the number of a loop's steps may depend on a tensor's elements: others could make it huge."""
    nodes = list(ast.walk(function))
    if any(isinstance(node, ast.While) and isinstance(node.test, ast.Compare) for node in nodes):
        return True
    called = {
        call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
        for call in nodes
        if isinstance(call, ast.Call)
    }
    return "range" in called and bool(called & OF_ELEMENTS)


def names_in(node: ast.AST) -> set[str]:
    """The names in an expression or statement."""
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
