"""Promise: every block of Python on a page runs or is in the source; commands, flags and paths on the pages exist."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from scripts.equations_page import LINK
from tests.docs.code_blocks import ROOT, check, pages, source_lines

PAGES = [page for page in pages() if ".template." not in page.name]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@every_page
def test_every_block_of_python_runs_or_is_in_the_source(page, monkeypatch, restore_kernels):
    monkeypatch.chdir(ROOT)
    check(page.read_text(encoding="utf-8"), page.name)


def block(code, before=""):
    return f"{before}\n\n```python\n{code}\n```\n"


RELU = "Code: [relu.py::relu_forward](../manualgrad/ops/relu.py):"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (block("undefined_name"), NameError),
        (block("x = 1") + block("y = x +"), SyntaxError),
        (block(">>> 1 + 1\n3"), AssertionError),
        (block("print(1)") + "\nIt prints:\n\n```\n2\n```\n", AssertionError),
        (block("return z.clamp(min=1)  # eq. (9)", RELU), AssertionError),
        (block("return z.clamp(min=0)  # eq. (9)\ndef relu_forward(z: Tensor) -> Tensor:", RELU), AssertionError),
        (block("pass", RELU.replace("relu_forward", "no_such_function")), LookupError),
        (block("return z.clamp(min=0)  # eq. (9)", "Code without a link:"), SyntaxError),
    ],
)
def test_a_wrong_block_is_noticed(text, error):
    with pytest.raises(error):
        check(text, "a page")


def test_right_blocks_pass_and_share_their_names():
    quote = block("return z.clamp(min=0)  # eq. (9)", RELU)
    assert check(block("x = 1") + quote + block(">>> x + 1\n2"), "a page")["x"] == 1
    check(block("print(1)") + "\nIt prints:\n\n```\n1\n```\n", "a page")


# ------------------------------------------------------------------------------ commands, flags and paths

# Flags of argparse, torchrun, ruff and mypy.
FOREIGN_FLAGS = {"--help", "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-id", "--rdzv-endpoint",
                 "--max-restarts", "--check", "--strict"}  # fmt: skip
FOLDERS = r"\.ci|compare|docs|manualgrad|scripts|tests|cpu|network|ops|reference|examples"


@cache
def string_constants(*paths):
    """The string constants in files and folders of the repository."""
    constants = set()
    for path in paths:
        for file in [ROOT / path] if path.endswith(".py") else (ROOT / path).rglob("*.py"):
            nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            constants |= {node.value for node in nodes if isinstance(node, ast.Constant)}
    return constants


def wrong_references(text):
    """Flags, sub-commands, scripts, paths and tests that a page names and the repository does not have."""
    flags = string_constants("train.py", "manualgrad/training", "compare", "scripts", "tests/cpu/guard_pages.py")
    wrong = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", re.sub(r"<!--.*?-->", "", text))) - flags - FOREIGN_FLAGS
    wrong |= set(re.findall(r"python -m compare (\w+)", text)) - string_constants("compare")
    wrong |= set(re.findall(r"python -m manualgrad (\w+)", text)) - string_constants("manualgrad/__main__.py")
    wrong |= {file for file in re.findall(r"python (train\.py|\S+/\S+\.py)", text) if not (ROOT / file).exists()}
    for name in re.findall(rf"`((?:{FOLDERS})/[^\s`]*)`", text):
        path, _, test = name.replace("NAME", "*").partition("::")
        files = [file for folder in (ROOT, ROOT / "manualgrad") for file in folder.glob(path)]
        definition = f"def {test.rpartition('::')[2]}("
        if not files or (test and not any(definition in file.read_text(encoding="utf-8") for file in files)):
            wrong.add(name)
    return wrong


@every_page
def test_flags_commands_and_paths_on_the_page_exist(page):
    text = page.read_text(encoding="utf-8")
    assert wrong_references(text) == set()
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for name, file in LINK.findall(text):
        assert source_lines(file, name)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("`--seed 1`", "--sead"),
        ("python -m compare all", "python -m compare nothing"),
        ("python -m manualgrad doctor", "python -m manualgrad nothing"),
        ("python scripts/seeds.py 5", "python scripts/no.py 5"),
        ("`ops/relu.py`", "`ops/no.py`"),
        ("`tests/docs/test_code_blocks.py::block`", "`tests/docs/test_code_blocks.py::no_such_test`"),
    ],
)
def test_a_wrong_reference_is_noticed(right, wrong):
    assert wrong_references(right) == set()
    (reference,) = wrong_references(wrong)
    assert reference in wrong
