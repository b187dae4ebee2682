"""Promise: a case that raises, exits or has an odd name is an error about this case, and the others are reported."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from compare.__main__ import main
from compare.case import Case
from compare.printable import printable
from compare.run_cases import CaseRun, run_cases
from tests.compare.command_runs import FAST, CommandResult

BAD_CASES = r"""
import sys
import numpy
def boom(*tensors): raise ValueError("boom \x1b[31m")
def leave(*tensors): sys.exit(0)
def generate(): yield torch.randn(3)
class Leaving(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.sin()
    @staticmethod
    def backward(ctx, g): sys.exit(0)
def case(name, ours=torch.sin, native=torch.sin, make_inputs=lambda: torch.randn(3, 4), **options):
    return compare.Case(name, ours, native, make_inputs, **options)
t = torch.randn(3)
CASES = [
    case("fine"),
    case("ours raises", boom),
    case("ours exits", leave),
    case("backward exits", Leaving.apply),
    case("native exits", native=leave),
    case("native raises", native=boom),
    case("inputs exit", make_inputs=leave),
    case("inputs raise", make_inputs=boom),
    case("no inputs", make_inputs=lambda: None),
    case("generator", make_inputs=generate),
    case("nested", make_inputs=lambda: ((t,),)),
    case("array", make_inputs=lambda: numpy.ones(3)),
    case("number as key", make_inputs=lambda: {1: t}),
    case("sparse", make_inputs=lambda: {"x": t.to_sparse()}),
    case("census exits", census=leave),
    case("census raises", census=boom),
    case("convention exits", conventions={"c": leave}),
    case("same tensor twice", torch.mul, torch.mul, lambda: (t, t)),
    case("leaf", make_inputs=lambda: torch.randn(3, requires_grad=True)),
    case("red \x1b[31m|`x`\n<b>$x$ \u202e\ud800", lambda x: 3 * x.sin()),
    case("internal"),
]
"""


@pytest.fixture(scope="module")
def bad_cases_result(tmp_path_factory):
    """One run of all bad cases; in the last, compare itself raises."""
    from compare import run_cases as module

    source = "def compare_or_raise(case, **options):\n"
    source += "    return [][1] if case.name == 'internal' else compare(case, **options)\n"
    names = {"compare": module.compare}
    exec(compile(source, module.__file__, "exec"), names)  # a line of compare, and not of the user's code

    tmp_path = tmp_path_factory.mktemp("bad")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "compare", names["compare_or_raise"])
        patch.setattr(sys, "stderr", open(tmp_path / "stderr", "w", encoding="utf-8"))  # noqa: SIM115
        patch.setattr(sys, "stdout", open(tmp_path / "stdout", "w", encoding="utf-8"))  # noqa: SIM115
        (tmp_path / "mine.py").write_text("import torch, compare\n" + BAD_CASES)
        words = ["gradients", *FAST, "--cases", str(tmp_path / "mine.py"), "--out", str(tmp_path / "out")]
        returncode = main(words)
        sys.stderr.close(), sys.stdout.close()
    streams = ((tmp_path / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
    return CommandResult(returncode, *streams, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ours exits", "calls sys.exit(0) (mine.py, line 6)"),
        ("backward exits", "calls sys.exit(0) (mine.py, line 12)"),
        ("native exits", "calls sys.exit(0) (mine.py, line 6)"),
        ("native raises", r"ValueError: boom \x1b[31m (mine.py, line 5)"),
        ("inputs exit", "calls sys.exit(0) (mine.py, line 6)"),
        ("inputs raise", r"ValueError: boom \x1b[31m (mine.py, line 5)"),
        ("no inputs", "from make_inputs, got None (mine.py, line 25)"),
        ("generator", "from make_inputs, got generator (mine.py, line 7)"),
        ("nested", "got input 0 of type tuple (mine.py, line 27)"),
        ("array", "got ndarray (mine.py, line 28)"),
        ("number as key", "got 1 of type int (mine.py, line 29)"),
        ("sparse", "expected dense tensors from make_inputs, got a sparse one: x (mine.py, line 30)"),
        ("census exits", "calls sys.exit(0) (mine.py, line 6)"),
        ("census raises", r"ValueError: boom \x1b[31m (mine.py, line 5)"),
        ("convention exits", "calls sys.exit(0) (mine.py, line 6)"),
        ("internal", "internal error in compare: IndexError: list index out of range; please report it"),
    ],
)
def test_an_error_is_about_its_case(bad_cases_result, name, message):
    lines = [line for line in bad_cases_result.stderr.splitlines() if line.startswith(f"compare: error: {name}: ")]
    assert len(lines) == 1
    assert lines[0].endswith(message)


def test_every_other_case_is_reported_and_the_exit_code_is_2(bad_cases_result):
    assert bad_cases_result.returncode == 2
    report = json.loads((bad_cases_result.out / "report.json").read_text(encoding="utf-8"))
    assert report["headline"].startswith("16 cases could not be compared; ")
    cases = {case["case"]: case for case in report["sections"]["gradients"]["data"]}
    assert len(cases) == 21
    assert all(cases[name]["ok"] for name in ("fine", "same tensor twice", "leaf"))
    (finding,) = (f for f in cases["ours raises"]["findings"])
    assert finding["evidence"].endswith("(mine.py, line 5)")
    assert "compare_or_raise" in " ".join(cases["internal"]["traceback"])
    assert not cases["census exits"]["traceback"]


def test_names_bring_no_control_characters_and_no_markup_into_the_report(bad_cases_result):
    texts = [bad_cases_result.stdout, bad_cases_result.stderr]
    texts += [
        (bad_cases_result.out / f"report.{kind}").read_text(encoding="utf-8") for kind in ("json", "md", "html")
    ]
    for text in texts:
        assert r"\x1b[31m" in text.replace("\\\\", "\\").replace("\\[", "[")
        assert not {c for c in text if not c.isprintable()} - {"\n", "\u200b"}
    assert "<b>" not in texts[4].replace("<b>Details", "")
    rows = [line for line in texts[3].splitlines() if line.startswith("| ✗ red")]
    assert len(rows) >= 2  # findings, results by case
    assert all(row.replace("\\|", "").count("|") in (6, 9) for row in rows[:2])


def test_printable_escapes_what_changes_other_text():
    assert printable("é 漢 👩‍🔬\n") == "é 漢 👩‍🔬\n"
    assert printable("\x00\x1b\x7f\x9b\r\u200e\u202e\u2066\u2028\ufeff\ud800") == (
        r"\x00\x1b\x7f\x9b\r\u200e\u202e\u2066\u2028\ufeff\ud800"
    )


def test_an_error_in_capabilities_is_about_its_case():
    def leave(*tensors):
        sys.exit(0)

    def inputs():
        return torch.randn(3, dtype=torch.float64)

    cases = (
        Case("leaves", leave, torch.sin, inputs),
        Case("no inputs", torch.sin, torch.sin, lambda: None),
        Case("fine", torch.sin, torch.sin, inputs),
    )

    class Bar:
        total = None

        def update(self, n=1): ...

        def set_description_str(self, text): ...

    class OneCapability(CaseRun):
        capabilities = ("hooks",)

    results, failures = run_cases("capabilities", OneCapability("mine.py", True, (), "cpu", None, cases), Bar())
    assert [row.case for rows in results for row in rows] == ["fine"]
    assert [failure.case for failure in failures] == ["leaves", "no inputs"]
    assert "calls sys.exit(0) (test_bad_cases.py, line" in failures[0].message
