"""Promise: no layer of PyTorch runs inside one of ours, neither in forward, backward, double backward nor jvp."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import manualgrad as mg
from tests.operations import SMALL_OPERATIONS, SmallOperation, operation_id

FORBIDDEN = re.compile(
    r"conv|pool|relu|threshold|softmax|nll_loss|cross_entropy|im2col|col2im|hardtanh|linear_backward|unfold_backward"
    r"|native_.*(norm|dropout)"
)


class OperatorRecorder(TorchDispatchMode):
    """Record the name of every operator that reaches the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[str] = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.operators.add(operator._schema.name)
        return operator(*args, **(kwargs or {}))

    def forbidden(self) -> set[str]:
        return {name for name in self.operators if FORBIDDEN.search(name.split("::")[1])}


def run_every_mode(function, inputs) -> None:
    """Run forward, backward, double backward and forward mode."""
    output = function(*inputs)
    gradients = torch.autograd.grad(output, inputs, torch.ones_like(output), create_graph=True)
    loss = sum((gradient * gradient).sum() for gradient in gradients)
    if loss.requires_grad:
        torch.autograd.grad(loss, inputs, allow_unused=True)
    plain = tuple(tensor.detach() for tensor in inputs)
    with torch.autograd.forward_ad.dual_level():
        tangents = (torch.autograd.forward_ad.make_dual(tensor, torch.ones_like(tensor)) for tensor in plain)
        torch.autograd.forward_ad.unpack_dual(function(*tangents))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operation", SMALL_OPERATIONS, ids=operation_id)
def test_no_native_layer_runs_in_ours(operation: SmallOperation, dtype, device):
    inputs = operation.inputs(dtype, device)
    with OperatorRecorder() as recorder:
        run_every_mode(operation.function, inputs)
    assert recorder.operators, "no operator was recorded"
    assert not recorder.forbidden()


def test_no_native_layer_runs_in_the_network(device):
    model = mg.DocumentCNN(image_size=16, channels=(2, 3), hidden=(5,), device=device)
    with OperatorRecorder() as recorder:
        model.cost(torch.randn(4, 1, 16, 16, device=device), torch.arange(4, device=device)).backward()
        model.probabilities(torch.randn(4, 1, 16, 16, device=device))
    assert len(recorder.operators) > 10
    assert not recorder.forbidden()


NATIVE = {
    "conv2d": (lambda x: F.conv2d(x, x), "convolution"),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), "max_pool2d"),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), "avg_pool2d"),
    "relu": (F.relu, "relu"),
    "softmax": (F.softmax, "softmax"),
    "log_softmax": (lambda x: F.log_softmax(x, -1), "log_softmax"),
    "cross_entropy": (lambda x: F.cross_entropy(x.flatten(1), torch.zeros(2, dtype=torch.long)), "nll_loss"),
    "unfold": (lambda x: F.unfold(x, 2), "im2col"),
}


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_a_native_layer_is_noticed(name):
    native, operator_part = NATIVE[name]
    x = torch.randn(2, 2, 4, 4, requires_grad=True)
    with OperatorRecorder() as forward:
        output = native(x)
    assert any(operator_part in operator for operator in forward.forbidden())
    with OperatorRecorder() as backward:
        output.sum().backward()
    assert backward.forbidden()


FORBIDDEN_CALLS = {"torch.autograd.grad", "torch.nn.grad", "torch.func.", "torch.nn.functional", "torch.enable_grad"}


def dotted_names(source: str) -> set[str]:
    """Dotted names used in ``source``, with aliases resolved: ``F.relu`` is ``torch.nn.functional.relu``."""
    tree = ast.parse(source)
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases.update({name.asname or name.name: name.name for name in node.names})
        elif isinstance(node, ast.ImportFrom):
            aliases.update({name.asname or name.name: f"{node.module}.{name.name}" for name in node.names})
    used = set(aliases.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            head, _, rest = ast.unparse(node).partition(".")
            used.add(f"{aliases.get(head, head)}.{rest}")
    return used


def forbidden_names(source: str) -> set[str]:
    return {name for name in dotted_names(source) if any(name.startswith(bad) for bad in FORBIDDEN_CALLS)}


SOURCES = sorted(
    path
    for pattern in ("ops/**/*.py", "cpu/**/*.py", "network/**/*.py", "dispatch.py", "tensor_checks.py")
    for path in Path(mg.__file__).parent.glob(pattern)
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(Path(mg.__file__).parent).as_posix())
def test_no_source_uses_autograd_or_native_layers(path):
    assert not forbidden_names(path.read_text())


@pytest.mark.parametrize(
    "line",
    [
        "import torch.nn.functional as F\nF.relu(x)",
        "from torch.nn import functional as F",
        "from torch.nn import grad",
        "import torch\ntorch.autograd.grad(y, x)",
        "from torch.func import vjp",
    ],
)
def test_a_forbidden_name_is_noticed(line):
    assert forbidden_names(line)
