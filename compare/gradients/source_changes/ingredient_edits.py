"""Edits with expressions that stand elsewhere in the source: what one line lacks is often written in another."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Sequence

from compare.gradients.source_changes.called_functions import CalledFunction
from compare.gradients.source_changes.edits import Edit, Site
from compare.gradients.source_changes.ending_loops import names_in
from compare.gradients.source_changes.expression_edits import method, name
from compare.gradients.source_changes.insertion_edits import OPERATORS, is_value, is_whole

KEEPS = ("append", "save_for_backward")
MAX_LENGTH = 60  # of an expression's text
COMPOSITE = (ast.BinOp, ast.Call, ast.UnaryOp, ast.Compare, ast.Subscript, ast.Attribute)


def find_ingredients(sites: Sequence[Site]) -> dict[str, ast.expr]:
    """Expressions of several nodes by their text, the shortest first."""
    ingredients = {}
    for site in sites:
        node = site.node
        if isinstance(node, COMPOSITE) and isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
            text = ast.unparse(node)
            if len(text) <= MAX_LENGTH and text not in ingredients:
                ingredients[text] = copy.deepcopy(
                    node
                )  # or the tree would contain itself where its own part is replaced
    return dict(sorted(ingredients.items(), key=lambda item: len(item[0])))


def ingredient_edits(site: Site, called: CalledFunction, ingredients: dict[str, ast.expr]) -> Iterator[Edit]:
    """An expression replaced by another of the source, or times, divided by, plus or minus it."""
    node = site.node
    if not is_value(site, called):
        return
    text, known = ast.unparse(node), set(called.local_values) | set(called.functions[0].__globals__)
    of_ctx = {kept.partition(".")[2]: kept for kept in called.values if "." in kept}
    for other, ingredient in ingredients.items():
        missing = names_in(ingredient) - known
        if other == text or not missing <= of_ctx.keys():
            continue
        if missing:  # what forward has a name for, ctx may keep
            ingredient = _Renamed({each: of_ctx[each] for each in missing}).visit(copy.deepcopy(ingredient))
        yield site.edit(ingredient, 4)
        yield site.edit(ast.BinOp(ingredient, ast.Pow(), ast.Constant(2)), 5)
        if is_whole(site):
            for operator in OPERATORS:
                yield site.edit(ast.BinOp(node, operator, ingredient), 5)


def copy_edits(site: Site, called: CalledFunction) -> Iterator[Edit]:
    """A name that is kept copied, since it may be changed in place later."""
    parent = site.ancestors[-1]
    is_kept = isinstance(parent, ast.Call) and isinstance(parent.func, ast.Attribute) and parent.func.attr in KEEPS
    is_kept |= isinstance(parent, ast.Assign) and isinstance(parent.targets[0], (ast.Attribute, ast.Subscript))
    if is_kept and isinstance(site.node, ast.Name) and is_value(site, called):
        yield site.edit(method(site.node, "clone"), 2)


def saved_ingredient_edits(site: Site, ingredients: dict[str, ast.expr]) -> Iterator[Edit]:
    """Another expression of the source saved in the place of a name, such as the one with the next step made."""
    node = site.node
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return
    if node.func.attr != "save_for_backward":
        return
    for n, argument in enumerate(node.args):
        for ingredient in ingredients.values():
            if isinstance(argument, ast.Name) and argument.id in names_in(ingredient):
                changed = [*node.args[:n], ingredient, *node.args[n + 1 :]]
                yield site.edit(ast.Call(node.func, changed, []), 3)


class _Renamed(ast.NodeTransformer):
    """Replaces names by attributes of ctx."""

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return name(self._names[node.id]) if node.id in self._names else node
