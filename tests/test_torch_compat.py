"""Promise: ``manualgrad/_torch_compat.py`` alone touches private names of PyTorch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, lr_scheduler

from manualgrad import _torch_compat

ROOT = Path(__file__).parents[1]
COMPAT = Path(_torch_compat.__file__)
SOURCES = sorted(path for path in [*COMPAT.parent.rglob("*.py"), ROOT / "train.py"] if path != COMPAT)
UNDOCUMENTED = {"BackwardCFunction"}  # no underscore, but not in PyTorch's documentation


def is_private(name: str) -> bool:
    """True for one leading underscore: double underscores are Python's own protocols."""
    return name.startswith("_") and not name.startswith("__") and name != "_"


def private_attributes() -> set[str]:
    """Private attributes of the objects of PyTorch that manualgrad handles."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))])
    schedule = lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    objects = (nn.Conv2d(1, 1, 1), nn.ModuleList(), Tensor(), optimizer, schedule)
    names = {name for obj in objects for name in (*dir(obj), *vars(obj)) if is_private(name)}
    return names | {nn.ModuleList.forward.__name__}


PRIVATE_ATTRIBUTES = private_attributes()


def names_from_torch(tree: ast.AST) -> set[str]:
    """Local names that are bound to torch, its modules or their contents."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = (alias for alias in node.names if alias.name.partition(".")[0] == "torch")
            names |= {alias.asname or "torch" for alias in modules}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def own_attributes(tree: ast.AST) -> set[ast.AST]:
    """``self._x`` in classes without a base class, which inherit nothing from PyTorch."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and not node.bases]
    attributes = [node for cls in classes for node in ast.walk(cls) if isinstance(node, ast.Attribute)]
    return {node for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "self"}


def private_names(source: str) -> set[str]:
    """Private names of PyTorch that ``source`` imports, reads as attributes or has as strings (for getattr, vars)."""
    tree = ast.parse(source)
    torch_names, own, names = names_from_torch(tree), own_attributes(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None) or ""
            for alias in node.names:
                parts = f"{module}.{alias.name}".strip(".").split(".")
                if parts[0] == "torch" and any(is_private(part) or part in UNDOCUMENTED for part in parts):
                    names.add(".".join(parts))
        elif isinstance(node, ast.Attribute) and node not in own:
            root = ast.unparse(node).partition(".")[0]
            belongs_to_torch = root in torch_names and is_private(node.attr)
            if belongs_to_torch or node.attr in PRIVATE_ATTRIBUTES or node.attr in UNDOCUMENTED:
                names.add(ast.unparse(node))
        elif isinstance(node, ast.Constant) and node.value in PRIVATE_ATTRIBUTES:
            names.add(node.value)
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_other_file_touches_a_private_name_of_torch(path):
    assert not private_names(path.read_text(encoding="utf-8"))


def test_the_names_of_torch_compat_are_private():
    names = private_names(COMPAT.read_text(encoding="utf-8"))
    assert {"torch._C._len_torch_dispatch_stack", "forward_ad._current_level", "module._forward_hooks"} <= names
    assert len(names) > 20


def test_the_keys_of_an_ordinary_tensor_are_those_of_no_other():
    x = torch.ones(2, 2)
    for ordinary in (x, nn.Parameter(x), x.double(), x.T, x.clone().requires_grad_() * 1):
        assert _torch_compat.dispatch_keys(ordinary).raw_repr() == _torch_compat.ORDINARY_CPU_KEYS
    for other in (x.to("meta"), x.to_sparse(), torch.view_as_complex(x).conj().imag):
        assert _torch_compat.dispatch_keys(other).raw_repr() != _torch_compat.ORDINARY_CPU_KEYS


def test_a_function_is_marked_for_the_compiler_as_torch_marks_it():
    def marked() -> bool:
        return True

    def expected() -> bool:
        return True

    _torch_compat.assume_constant_result(marked)
    torch.compiler.assume_constant_result(expected)
    assert vars(marked) == vars(expected) != {}


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch._C._are_functorch_transforms_active()",
        "import torch._dynamo",
        "from torch import _C",
        "from torch._C import _functorch",
        "from torch.utils._python_dispatch import TorchDispatchMode",
        "from torch.autograd import forward_ad\nforward_ad._current_level",
        "from torch import nn as layers\nlayers.modules.module._has_any_global_hook()",
        "import torch.nn.functional as F\nF._pad(x)",
        "from torch.autograd.function import BackwardCFunction",
        "import torch\ntorch.autograd.function.BackwardCFunction",
        "import torch\ntorch._foreach_add_(a, b)",
        "def hooks(model):\n    return model.layer._forward_hooks",
        "class Model(nn.Module):\n    def forward(self, x):\n        return self._modules",
        "optimizer._optimizer_step_pre_hooks",
        "x._version",
        "getattr(conv, '_conv_forward')",
        "vars(model)['_parameters'] = {}",
    ],
)
def test_a_private_name_is_noticed(source):
    assert private_names(source)


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.compiler.is_compiling()",
        "from torch.autograd import graph\ngraph.increment_version(x)",
        "class Plan:\n    def run(self):\n        return self._indices.__class__",
    ],
)
def test_public_names_and_names_of_our_own_are_allowed(source):
    assert not private_names(source)
