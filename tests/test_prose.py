"""Promise: names are the field's terms, and a docstring begins with its noun or an imperative."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "train.py"] + [
    file for folder in ("manualgrad", "compare", "tests", "scripts") for file in sorted((ROOT / folder).rglob("*.py"))
]

# A docstring that begins with one of these lacks its noun ("Of the weights."), or puts the sentence in another order.
FIRST_WORDS = re.compile(r"(What|Whether|Those|Of|How|All|By the|Where|Who|In which|That|Such)\b")

# Private words, and the field's term for each.
FIELD_TERMS = {
    "weigh": "dense_apply", "WeightedSums": "DenseFunction", "rectify": "relu_apply", "rectified": "relu_forward",
    "rectified_gradient": "relu_backward", "Rectification": "ReLUFunction", "soften": "softmax_apply",
    "RectificationGradient": "ReLUBackwardFunction", "turned": "swap_batch_rows", "kernels_of": "gemm_to_weight",
    "kernel_matrices": "weight_to_gemm", "overlap_add": "col2im", "long_sums": "blocked_sum", "PART": "BLOCK_K",
    "NEAR": "CHUNK_NUMEL", "in_turn": "batch_chunks", "owned": "as_non_view", "nothing_follows": "autograd_inactive",
    "as_one": "guards", "is_differentiated_as_one": "wants_all_parameter_grads_or_none", "parts_of": "guard_values",
    "is_served": "supports_tensors", "lies_dense": "is_contiguous_as", "is_all_there": "storage_covers",
    "row_products": "gemm_nt", "column_products": "gemm_strided", "odd": "nonfinite", "found": "result",
    "who": "thread_num", "how_many": "num_threads", "Verdict": "EvalResult", "examine": "evaluate",
    "TOLD": "TORCHRUN_ENV", "PATIENCE": "TIMEOUT", "meet": "rendezvous", "Ended": "CliExit",
    "there_and_back": "run_forward_backward", "kernels_as_before": "restore_kernels",
    "stages": "num_conv_blocks", "slot": "task", "look_at": "accumulate_nonfinite", "answers": "top1_stats",
    "saw": "record", "seen": "probabilities, weight_oihw",
}  # fmt: skip
PRIVATE_PREFIXES = re.compile(r"_*(pull_to_|pull_through_|push_from_|nobody_)")

# The same for names that are right as attributes (str.strip) or as variables, and private as functions or classes.
FIELD_TERMS_OF_DEFINITIONS = {
    "strip": "gemm_window", "place": "offset_view", "outer": "gemm_lead_dims",
    "arrange": "pack", "collect": "unpack_reduce", "Complete": "PositionalSignature",
    "Bound": "PositionalArguments", "Found": "LossAndSteps", "Taken": "StepStats",
    "Stage": "ParallelRegion", "Stages": "PlanBuilder", "At": "BufferRef",
    "Steps": "Updates, KernelCalls",
}  # fmt: skip


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def names(tree: ast.AST) -> Iterator[tuple[int, str, bool]]:
    """Line and text of every identifier, and True if it names a definition."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name, True
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id, False
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr, False
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            yield node.lineno, node.arg, False
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, (alias.asname or alias.name).rpartition(".")[2], False


def wrong_docstrings(source: str) -> list[str]:
    """The first line of every docstring that begins with one of FIRST_WORDS."""
    lines = [(line, text.splitlines()[0]) for line, text in docstrings(ast.parse(source))]
    return [f"{line}: {text}" for line, text in lines if FIRST_WORDS.match(text)]


def private_names(source: str) -> list[str]:
    """Every identifier that is a private word, with the field's term for it."""
    wrong = []
    for line, name, is_definition in names(ast.parse(source)):
        word = name.lstrip("_")
        term = FIELD_TERMS.get(word) or (FIELD_TERMS_OF_DEFINITIONS.get(word) if is_definition else None)
        if term or PRIVATE_PREFIXES.match(word):
            wrong.append(f"{line}: {name}, the field's term is {term or 'grad_input, relu_backward, has_no_hooks'}")
    return wrong


def violations(rule: Callable[[str], list[str]]) -> list[str]:
    """The violations of a rule in the whole repository, each with its file and line."""
    return [f"{file.relative_to(ROOT)}:{wrong}" for file in FILES for wrong in rule(file.read_text(encoding="utf-8"))]


def test_no_docstring_lacks_its_noun():
    assert violations(wrong_docstrings) == []


def test_no_name_is_a_private_word():
    assert violations(private_names) == []


def test_no_file_has_a_private_name():
    assert {file.stem for file in FILES} & (FIELD_TERMS.keys() | {"utils", "helpers"}) == set()


@pytest.mark.parametrize(
    "source",
    [
        '"""Of the weights."""',
        'class A:\n    """How a kernel lies on an image."""',
        'def f():\n    """Whether there are hooks."""',
        'async def f():\n    """By the layers."""',
    ],
)
def test_a_docstring_without_its_noun_is_noticed(source):
    assert len(wrong_docstrings(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        '"""Dtype of the weights."""',
        'def f():\n    """Whatever is left."""',
        "# Of the weights.",
        'x = "Of the weights."',
    ],
)
def test_other_docstrings_comments_and_strings_pass(source):
    assert wrong_docstrings(source) == []


@pytest.mark.parametrize(
    "source",
    [
        "weigh = 1",
        "self._soften()",
        "def pull_to_input(): ...",
        "class Verdict: ...",
        "f(how_many=1)",
        "def f(who): ...",
        "from package import long_sums",
        "from package import as_non_view as owned",
        "def strip(x): ...",
        "class _Found: ...",
    ],
)
def test_a_private_word_is_noticed(source):
    assert len(private_names(source)) == 1


@pytest.mark.parametrize(
    "source", ["text.strip()", "strip = 1", "number_of_odd_rows = 1", "# weigh and soften", "x = 'who meets whom'"]
)
def test_ordinary_names_and_prose_pass(source):
    assert private_names(source) == []
