"""Promise: ``python -m manualgrad`` works in any folder; only plots and reports need the extra ``report``."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import manualgrad
from manualgrad import extras
from manualgrad.__main__ import main
from manualgrad.doctor import command, installation, self_test

ROOT = Path(__file__).parents[2]


def run(arguments: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run Python in ``folder``, with this repository on the path."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, encoding="utf-8", timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def test_without_a_command_the_help_lists_them(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"python -m manualgrad {name}" in text for name in ("train", "compare", "follow", "doctor"))


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--help"], 0, "usage: python -m manualgrad"),
        (["--version"], 0, f"manualgrad {manualgrad.__version__}\n"),
        (["dance"], 2, "invalid choice: 'dance'"),
        (["train", "--help"], 0, "usage: python -m manualgrad train"),
        (["train", "--epochs", "none"], 2, "python -m manualgrad train: error:"),
        (["compare", "--help"], 0, "usage: python -m manualgrad compare"),
        (["compare", "nothing"], 2, "python -m manualgrad compare: error:"),
        (["follow", "--help"], 0, "usage: python -m manualgrad follow"),
        (["follow", "--image", "one"], 2, "python -m manualgrad follow: error:"),
        (["doctor", "--help"], 0, "usage: python -m manualgrad doctor"),
    ],
)
def test_options_are_the_commands_own(arguments, code, expected, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    captured = capsys.readouterr()
    assert ended.value.code == code
    assert expected in (captured.err if code else captured.out)
    assert captured.err.count("\n") == code, "two lines about wrong use"


# ------------------------------------------------------------------------------------------- current folder

CASES = """
import torch
import compare
import neighbour

CASES = [compare.Case("mine", neighbour.square, torch.square, lambda: torch.randn(3, 4))]
"""
NEIGHBOUR = """
def square(x):
    import late_neighbour
    return late_neighbour.square(x)
"""


def test_modules_of_the_current_folder_replace_none_and_are_there_for_cases(tmp_path):
    for name in ("torch", "numpy", "compare", "llvmlite", "tqdm", "matplotlib", "tabulate", "manualgrad_doctor"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the current folder was imported')")
    (tmp_path / "my_cases.py").write_text(CASES)
    (tmp_path / "neighbour.py").write_text(NEIGHBOUR)
    (tmp_path / "late_neighbour.py").write_text("def square(x):\n    return x * x\n")
    result = run(
        ["-m", "manualgrad", "compare", "gradients", "--cases", "my_cases", "--dtype", "float32", "--out", "é"],
        tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "No unexplained difference in" in result.stdout
    assert "was imported" not in result.stdout + result.stderr
    assert "python -m manualgrad compare gradients --cases my_cases" in (tmp_path / "é/report.md").read_text("utf-8")


# ---------------------------------------------------------------------------------------------- extra report

WITHOUT_REPORT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))  # None: an import of the module raises ImportError
import torch, compare, manualgrad as mg
from manualgrad.__main__ import main
from manualgrad.doctor import installation

right = compare.Case("right", mg.softmax, lambda x: torch.softmax(x, -1), lambda: torch.randn(3, 4))
print(compare.compare(right, dtypes=[torch.float32]))
compare.assert_matches(right, dtypes=[torch.float32])
wrong = compare.Case("wrong", lambda x: 2 * mg.softmax(x), lambda x: torch.softmax(x, -1), lambda: torch.randn(3, 4))
try:
    compare.assert_matches(wrong, dtypes=[torch.float32])
except AssertionError as error:
    print(error)
print("compare", main(["compare", "gradients", "--quick", "--out", "compared"]))
data = ["--dataset", "fashion-mnist", "--data-dir", sys.argv[2], "--limit", "64"]
print("train", main(["train", *data, "--epochs", "1", "--out", "trained"]))
print(dict(installation.versions())["report"])
"""


def test_without_the_extra_report_all_but_plots_and_reports_works(tmp_path, digits):
    (tmp_path / "script.py").write_text(WITHOUT_REPORT)
    result = run(["script.py", ",".join(extras.REPORT), str(digits)], tmp_path)
    assert result.returncode == 0, result.stderr
    out = result.stdout
    assert "right: " in out and "none is wrong" in out
    assert "wrong: " in out and "are wrong" in out
    assert "compare 2\n" in out and not (tmp_path / "compared").exists()
    assert all(name in result.stderr for name in extras.REPORT) and extras.INSTALL_REPORT in result.stderr
    assert "train 0\n" in out and "plots   none: import of matplotlib halted" in out
    assert "weights.pt and metrics.json are in trained" in out
    assert {path.name for path in (tmp_path / "trained").iterdir()} == {"weights.pt", "metrics.json", "metrics.jsonl"}
    assert out.splitlines()[-1].endswith(f"Install what is missing with: {extras.INSTALL_REPORT}")


# ---------------------------------------------------------------------------------------------------- doctor


def test_the_doctor_describes_the_installation(capsys, digits):
    assert main(["doctor", "--data-dir", str(digits)]) == 0
    text = capsys.readouterr().out
    names = {line.split(" ", 1)[0] for line in text.splitlines()}
    assert names >= {"manualgrad", "python", *installation.REQUIRED, "report", "platform", "processor", "device",
                     "kernels", "cache", "data", "ok", "self-test"}  # fmt: skip
    assert f"data        fashion-mnist, complete, in {digits / 'FashionMNIST' / 'raw'}" in text
    assert "FAILED" not in text


def test_the_doctor_names_damaged_data(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(b"damaged")
    ((name, text),) = installation.data_facts(str(tmp_path))
    assert name == "data" and text.startswith("mnist is not usable: ")


class WrongSquare(torch.autograd.Function):
    """The square, with one wrong element in its gradient."""

    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad_out):
        (x,) = ctx.saved_tensors
        grad_x = 2 * x * grad_out
        grad_x[0, 0] = WrongSquare.element
        return grad_x


def raise_error(x):
    raise RuntimeError("no such operation")


@pytest.mark.parametrize(
    ("function", "element", "expected"),
    [
        (WrongSquare.apply, 0.01, "wrong, float64, cpu, beside finite differences: largest error"),
        (WrongSquare.apply, float("nan"), "largest error nan"),
        (raise_error, None, "RuntimeError: no such operation"),
    ],
)
def test_a_wrong_gradient_is_a_failure(function, element, expected, monkeypatch, capsys):
    monkeypatch.setattr(WrongSquare, "element", element, raising=False)
    monkeypatch.setattr(self_test, "OPERATIONS", {"wrong": (function, (3, 4)), "right": (torch.square, (3, 4))})
    tests = list(itertools.islice(self_test.tests(), 2))
    monkeypatch.setattr(self_test, "tests", lambda: tests)
    assert command.main([]) == 1
    failed, right = capsys.readouterr().out.splitlines()[-3:-1]
    assert failed.startswith("FAILED") and expected in failed
    assert right.startswith("ok          right, float64, cpu")


def test_a_wrong_gradient_in_float32_is_a_failure(monkeypatch):
    cost = manualgrad.DocumentCNN.cost

    def wrong_cost(self, x, labels):
        result = cost(self, x, labels)
        return result + 1e-3 * self.layers_with_weights()[0].weight.sum() if x.dtype is torch.float32 else result

    assert self_test._float32_error() < self_test.FLOAT32_LIMIT
    monkeypatch.setattr(manualgrad.DocumentCNN, "cost", wrong_cost)
    assert self_test._float32_error() > self_test.FLOAT32_LIMIT
