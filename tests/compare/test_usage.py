"""Promise: a case that is written wrongly is refused in one sentence, which says what to write instead."""

from __future__ import annotations

import subprocess
import sys
import traceback

import pytest
import torch

import compare
from compare.load_cases import load_cases


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.cos()


def draw() -> torch.Tensor:
    return torch.randn(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, torch.sin, torch.sin, draw), "expected a string as the name, got int"),
        (("sine", Sine, torch.sin, draw), "sine: ours is the class Sine; pass Sine.apply"),
        (("sine", torch.sin, Sine, draw), "sine: native is the class Sine; pass Sine.apply"),
        (("sine", None, torch.sin, draw), "sine: expected a function as ours, got None"),
        (("sine", torch.sin, "sin", draw), "sine: expected a function as native, got str"),
        (
            ("sine", torch.sin, torch.sin, torch.ones(3)),
            "sine: expected a function as make_inputs, got Tensor; write lambda: before the inputs",
        ),
        (("sine", torch.sin, torch.sin, draw, [torch.sin]), "expected a dict of functions as conventions, got list"),
        (("sine", torch.sin, torch.sin, draw, {"half": 0.5}), "expected a function as convention 'half', got float"),
        (("sine", torch.sin, torch.sin, draw, {}, 3), "expected a function as census, got int"),
    ],
)
def test_a_wrong_argument_of_a_case_is_named(arguments, message):
    with pytest.raises(compare.CaseError) as caught:
        compare.Case(*arguments)
    assert message in str(caught.value)


def test_what_is_no_case_is_refused():
    for function in (compare.compare, compare.assert_matches):
        with pytest.raises(TypeError, match=r"expected a compare.Case, got builtin_function"):
            function(torch.sin)


def test_a_failed_assertion_shows_the_lines_of_the_case_and_not_those_of_compare():
    def native(x):
        return torch.linalg.inv(x)

    with pytest.raises(compare.CaseError, match=r"native raises in float64.*test_usage.py, line") as caught:
        compare.assert_matches(compare.Case("inverse", torch.inverse, native, lambda: torch.randn(2, 3)))
    causes = [caught.value.__cause__, caught.value]
    of_cause, of_error = (traceback.extract_tb(error.__traceback__) for error in causes)
    assert __file__ in {frame.filename for frame in of_cause}
    assert not any(frame.filename.endswith("oracle.py") for frame in (*of_cause, *of_error))


def test_a_case_that_cannot_be_made_ends_the_command_without_a_traceback(tmp_path):
    file = tmp_path / "cases.py"
    file.write_text("import compare, torch\nCASE = compare.Case('sine', torch.sin, torch.sin, torch.ones(3))\n")
    command = [sys.executable, "-m", "compare", "gradients", "--cases", str(file), "--out", str(tmp_path / "report")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "write lambda: before the inputs" in done.stderr and "Traceback" not in done.stderr


def test_a_folder_is_no_module():
    with pytest.raises(compare.CaseError, match=r"^\. is no module; expected a module's name"):
        load_cases(".")
