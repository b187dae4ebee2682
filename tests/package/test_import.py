"""Promise: ``import manualgrad`` imports no package that torch does not, and sets no environment variable."""

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

model, x = manualgrad.DocumentCNN(), torch.randn(2, 1, 28, 28)
compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
for network in (compiled, model):  # the compiled one first: the kernels are not chosen yet
    network(x).square().sum().backward()
    print(*(f"{parameter.grad.norm():.3f}" for parameter in model.parameters()))
    model.zero_grad()
"""


def test_the_import_is_light_and_layers_compile_although_torch_dynamo_comes_later(digits):
    # torchvision imports torch._dynamo, which imports sympy and inductor, takes as long as torch itself, and needs
    # 150 MB.
    result = subprocess.run([sys.executable, "-c", SCRIPT, str(digits)], capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    modules, environment, data, compiled_gradients, gradients = result.stdout.splitlines()
    assert (modules, environment, data) == ("modules:", "environment:", "for data in files:")
    assert gradients == compiled_gradients
