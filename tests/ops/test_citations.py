"""The code that computes an equation, (1) to (23), cites it, and the reference shares no code with the layers."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from manualgrad.reference import network as reference_network
from manualgrad.reference import operations as reference
from tests.ops.sheet_arrays import PACKAGE

CITED_BY = {
    1: ["ops/conv2d.py", "reference/operations.py"],
    2: ["ops/conv2d.py", "reference/operations.py"],
    3: ["ops/conv2d.py", "reference/operations.py"],
    4: ["ops/max_pool2d.py", "reference/operations.py"],
    5: ["ops/flatten.py", "reference/operations.py"],
    6: ["ops/dense.py", "reference/operations.py"],
    7: ["ops/dense.py", "reference/operations.py"],
    8: ["ops/dense.py", "reference/operations.py"],
    9: ["ops/relu.py", "reference/operations.py"],
    10: ["ops/relu.py", "reference/operations.py"],
    11: ["ops/softmax.py", "ops/softmax_cross_entropy.py", "reference/operations.py"],
    12: ["ops/softmax.py", "reference/operations.py"],
    13: ["ops/softmax_cross_entropy.py", "ops/targets.py", "reference/operations.py"],
    14: ["ops/softmax_cross_entropy.py", "reference/operations.py"],
    15: ["ops/softmax_cross_entropy.py", "reference/operations.py"],
    16: ["backprop.py", "models.py", "reference/network.py"],
    17: ["ops/bias.py", "ops/conv2d.py", "ops/dense.py", "models.py", "reference/operations.py"],
    18: ["backprop.py", "reference/network.py"],  # elsewhere autograd's engine computes (18) to (21)
    19: ["backprop.py", "reference/network.py"],
    20: ["backprop.py", "reference/network.py"],
    21: ["backprop.py", "reference/network.py"],
    22: ["models.py", "reference/network.py"],
    23: ["models.py", "reference/network.py"],
}


def citations(source):
    """Equations cited in comments at the end of a line of code, such as "# eq. (1), (17)"."""
    comments = re.findall(r"^ *[^\s#].*#(.*\beq\. \(.*)$", source, re.MULTILINE)
    return {int(number) for comment in comments for number in re.findall(r"\((\d+)\)", comment)}


@pytest.mark.parametrize(("equation", "file"), [(n, file) for n, files in CITED_BY.items() for file in files])
def test_each_equation_is_cited_by_the_code_that_computes_it(equation, file):
    assert equation in citations((PACKAGE / file).read_text(encoding="utf-8"))


def test_equations_1_to_23_and_no_others_are_cited():
    assert list(CITED_BY) == list(range(1, 24))
    files = PACKAGE.rglob("*.py")
    assert set().union(*(citations(file.read_text(encoding="utf-8")) for file in files)) == set(CITED_BY)


def test_a_citation_must_follow_code():
    assert citations("x = y  # eq. (1), (17)\n    return z  # the 1/B of eq. (13)\n") == {1, 13, 17}
    assert citations("# eq. (1)\n    # eq. (2)\nequation (3)\n") == set()


@pytest.mark.parametrize("module", [reference, reference_network])
def test_the_reference_shares_no_code_with_the_layers(module):
    imported = set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert imported <= {"__future__", "numpy", "manualgrad.reference.operations"}
