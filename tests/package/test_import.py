"""Promise: ``import manualgrad`` imports no package that torch does not, and sets no environment variable.

A training run does not import PyTorch's compiler either."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os, sys, torch

modules, environment = set(sys.modules), dict(os.environ)
import manualgrad

added = {name.partition(".")[0] for name in set(sys.modules) - modules}
print("modules:", *sorted(added - sys.stdlib_module_names - {"manualgrad"}))
print("environment:", *sorted(dict(set(os.environ.items()) ^ set(environment.items()))))

from manualgrad.data import load
load("fashion-mnist", sys.argv[1])
print("for data in files:", *sorted({"torchvision", "torch._dynamo"} & set(sys.modules)))

from contextlib import redirect_stdout
from io import StringIO
from manualgrad.training.command import main
options = ["--limit", "16", "--batch-size", "8", "--epochs", "1", "--checkpoint-every", "1", "--no-allocator-tuning"]
with redirect_stdout(StringIO()):
    code = main(["--dataset", "fashion-mnist", "--data-dir", sys.argv[1], "--out", sys.argv[2], *options])
print("for a training run:", code, *sorted({"torchvision", "torch._dynamo"} & set(sys.modules)))

model, x = manualgrad.DocumentCNN(), torch.randn(2, 1, 28, 28)
compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
for network in (compiled, model):  # the compiled one first: the kernels are not chosen yet
    network(x).square().sum().backward()
    print(*(f"{parameter.grad.norm():.3f}" for parameter in model.parameters()))
    model.zero_grad()
"""


def test_the_import_is_light_and_layers_compile_although_torch_dynamo_comes_later(digits, tmp_path):
    # torchvision imports torch._dynamo, which imports sympy and inductor, takes as long as torch itself, and needs
    # 150 MB.
    command = [sys.executable, "-c", SCRIPT, str(digits), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    *imports, compiled_gradients, gradients = result.stdout.splitlines()
    assert imports == ["modules:", "environment:", "for data in files:", "for a training run: 0"]
    assert gradients == compiled_gradients
