"""Promise: packages import one way, from the command down to the formulas, and manualgrad imports no tool or test.

Only ``manualgrad/__main__.py``, the command line, imports ``compare``.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import manualgrad

ROOT = Path(__file__).parents[1]
PACKAGE = Path(manualgrad.__file__).parent

# What each part of manualgrad may import of manualgrad, besides itself. A part is a folder or a file of the package.
ALLOWED = {
    "_torch_compat": set(),
    "_startup": set(),
    "extras": set(),
    "files": set(),
    "command_line": set(),
    "reference": set(),
    "explanation": set(),
    "pool_index": set(),
    "tensor_checks": {"_torch_compat"},
    "dispatch": {"_torch_compat", "explanation", "tensor_checks"},
    "cpu": {"_torch_compat", "dispatch", "pool_index", "tensor_checks"},
    "cuda": {"_torch_compat", "cpu", "dispatch", "pool_index", "tensor_checks"},
    "ops": {"_torch_compat", "dispatch", "pool_index", "tensor_checks"},
    "functional": {"ops"},
    "kernels": {"cpu", "cuda", "explanation"},
    "nn": {"functional", "ops"},
    "network": {"_torch_compat", "cpu", "cuda", "explanation", "nn", "ops", "tensor_checks"},
    "models": {"_torch_compat", "functional", "network", "nn", "ops"},
    "sequential": {"_torch_compat", "network"},
    "backprop_layers": {"ops"},
    "backprop": {"_torch_compat", "backprop_layers", "models", "nn", "ops"},
    "interop": {"_torch_compat", "functional", "models", "network", "nn", "ops", "sequential"},
    "data": set(),
    "training": {
        "_torch_compat", "backprop", "command_line", "data", "extras", "files", "functional", "kernels", "models",
        "network",
    },
    "__init__": {"_startup", "functional", "interop", "kernels", "models", "nn", "sequential"},
    "doctor": {"__init__", "command_line", "cpu", "data", "extras", "functional", "kernels", "models"},
    "follow": {"backprop", "command_line", "data", "extras", "files", "functional", "kernels", "models", "nn", "ops"},
    "__main__": {"__init__", "command_line", "doctor", "follow", "training"},
}  # fmt: skip
FORBIDDEN_EVERYWHERE = {"compare", "scripts", "tests", "train"}
EXCEPTIONS = {("__main__", "compare")}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The first folder or the file's name inside the package: "ops" for ops/conv2d.py."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def part_of_module(module: str) -> str:
    """The part that a module of the package belongs to: "ops" for manualgrad.ops.conv2d."""
    return f"{module}.__init__".split(".")[1]


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield every node that can run, inside functions too, without the bodies of ``if TYPE_CHECKING:``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield child
        yield from runtime_nodes(child)


def imported_modules(source: str, path: Path) -> set[str]:
    """Dotted names of the modules that ``source``, the content of ``path``, imports anywhere."""
    modules = set()
    for node in runtime_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            folder = path.relative_to(ROOT).parent.parts
            base = ".".join(folder[: len(folder) - node.level + 1]) if node.level else ""
            module = f"{base}.{node.module or ''}".strip(".")
            modules |= {f"{module}.{alias.name}" for alias in node.names} if module == "manualgrad" else {module}
    return modules


def violations(source: str, path: Path) -> set[str]:
    """Modules that ``path``, with the content ``source``, imports against the rules."""
    part = part_of(path)

    def is_allowed(module: str) -> bool:
        top = module.partition(".")[0]
        if top == "manualgrad":
            return part_of_module(module) in {part, *ALLOWED[part]}
        if part == "reference":
            return top in {"numpy", "__future__"}
        return top not in FORBIDDEN_EVERYWHERE or (part, top) in EXCEPTIONS

    return {module for module in imported_modules(source, path) if not is_allowed(module)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_what_its_part_may(path):
    assert not violations(path.read_text(encoding="utf-8"), path)


def test_the_rules_cover_the_package_and_have_no_cycle():
    assert {part_of(path) for path in SOURCES} == set(ALLOWED)
    remaining = dict(ALLOWED)
    while remaining:
        lowest = [part for part, allowed in remaining.items() if not allowed & set(remaining)]
        assert lowest, f"a cycle among {sorted(remaining)}"
        for part in lowest:
            del remaining[part]


def test_every_rule_is_in_use():
    used: dict[str, set[str]] = {part: set() for part in ALLOWED}
    for path in SOURCES:
        modules = imported_modules(path.read_text(encoding="utf-8"), path)
        used[part_of(path)] |= {
            part_of_module(module) for module in modules if module.partition(".")[0] == "manualgrad"
        }
    assert {part: names - {part} for part, names in used.items()} == ALLOWED


def test_train_py_imports_manualgrad_and_no_tool():
    modules = imported_modules((ROOT / "train.py").read_text(encoding="utf-8"), ROOT / "train.py")
    first_party = {module.partition(".")[0] for module in modules} - set(sys.stdlib_module_names) - {"torch"}
    assert first_party == {"manualgrad"}


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("ops/conv2d.py", "from manualgrad.cpu import conv_pool"),
        ("ops/conv2d.py", "from manualgrad.network import plan"),
        ("ops/conv2d.py", "from manualgrad import nn"),
        ("ops/conv2d.py", "import manualgrad.models"),
        ("ops/conv2d.py", "import manualgrad"),
        ("ops/conv2d.py", "def f():\n    from manualgrad.training.run import TrainingRun"),
        ("ops/conv2d.py", "from ..interop import from_torch"),
        ("cpu/jit.py", "from manualgrad.ops.relu import relu"),
        ("network/plan.py", "from manualgrad.models import DocumentCNN"),
        ("reference/network.py", "import torch"),
        ("reference/network.py", "from manualgrad.ops import relu"),
        ("training/run.py", "import compare"),
        ("doctor/command.py", "import compare"),
        ("__main__.py", "import tests"),
        ("training/run.py", "from compare.cases import CASES"),
        ("models.py", "if True:\n    import tests.operations"),
        ("models.py", "import train"),
    ],
)
def test_a_forbidden_import_is_noticed(file, source):
    assert violations(source, PACKAGE / file)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("ops/conv2d.py", "from manualgrad.dispatch import dispatched"),
        ("ops/conv2d.py", "from .relu import relu"),
        ("network/plan.py", "from manualgrad.ops.relu import relu"),
        ("network/guards.py", "if TYPE_CHECKING:\n    from manualgrad.models import DocumentCNN"),
        ("__main__.py", "def compare():\n    import compare.__main__"),
        ("reference/network.py", "import numpy as np\nfrom manualgrad.reference.operations import conv2d"),
    ],
)
def test_an_allowed_import_is_accepted(file, source):
    assert not violations(source, PACKAGE / file)
