"""Promise: the exit code and the report say what was found, and wrong use is told with file and line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from compare import Case, compare, isolation
from compare.__main__ import main
from compare.case import CaseError
from tests.compare.command_runs import FAST, CommandResult

ROOT = Path(__file__).parents[2]
CORRECT_FILE = "CASES = [compare.Case('mine', torch.exp, torch.exp, lambda: torch.randn(3, 4))]"
WRONG_FILE = (
    "case = compare.Case('mine', lambda x: 2 * x.exp().detach() - x.exp(), torch.exp, lambda: torch.randn(3, 4))"
)


def run_command(capsys, tmp_path: Path, *words: str, cases: str | None = None) -> CommandResult:
    """Run the command in this process: another one takes seconds to import torch."""
    if cases is not None:
        (tmp_path / "mine.py").write_text("import torch, compare\n" + textwrap.dedent(cases))
        words = (*words, "--cases", str(tmp_path / "mine.py"))
    try:
        returncode = main([*words, "--out", str(tmp_path / "out")])
    except SystemExit as error:  # argparse's
        returncode = error.code
    return CommandResult(returncode, *capsys.readouterr(), tmp_path / "out")


def test_a_correct_file_exits_with_0_and_writes_a_report(tmp_path):
    """As a process: the exit code and both streams are those of ``python -m compare``."""
    (tmp_path / "mine.py").write_text("import torch, compare\n" + CORRECT_FILE)
    words = ("gradients", *FAST, "--cases", str(tmp_path / "mine.py"), "--out", str(tmp_path / "out"))
    process = subprocess.run(
        [sys.executable, "-m", "compare", *words],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "and 0 are wrong" in " ".join(process.stdout.split())
    for name in ("report.html", "report.md", "report.json"):
        assert "mine" in (tmp_path / "out" / name).read_text()


def test_a_wrong_file_exits_with_1_and_names_the_mistake(capsys, tmp_path):
    result = run_command(capsys, tmp_path, "gradients", *FAST, cases=WRONG_FILE)
    assert result.returncode == 1, result.stderr
    assert "constant factor" in result.stdout
    assert "constant factor" in (result.out / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "cases", "message"),
    [
        (("gradients",), "", "has no compare.Case"),
        (("gradients",), "1 / 0", "raises when it is imported (mine.py, line 2): ZeroDivisionError"),
        (("gradients",), "x = (1,\ny = )", "raises when it is imported (mine.py, line 3): SyntaxError"),
        (("gradients",), "import nowhere_to_be_found", "imports nowhere_to_be_found, which is not installed"),
        (("gradients",), "raise SystemExit(0)", "raises when it is imported (mine.py, line 2): calls sys.exit(0)"),
        (("gradients", "--cases", "nowhere"), None, "there is no module nowhere"),
        (("gradients", "--cases", "nowhere.py"), None, "there is no file nowhere.py"),
        (("gradients", "--cases", "no\x1b[31m\ud800where.py"), None, r"there is no file no\x1b[31m\ud800where.py"),
        (("training",), CORRECT_FILE, "--cases is for gradients and capabilities"),
        (("gradients", "--seeds", "0"), None, "expected a whole number above 0"),
        (("gradients", "--dtype", "float8"), None, "invalid choice: 'float8'"),
        (("gradients", "--time-limit", "5"), None, "--time-limit needs --isolate"),
        (("training", "--isolate"), None, "--isolate is for cases, not for training"),
        (("everything",), None, "invalid choice: 'everything'"),
        (("training", "--data-dir", __file__), None, "expected a folder for the data, got a file"),
    ],
)
def test_wrong_use_exits_with_2_and_a_message(capsys, tmp_path, words, cases, message):
    result = run_command(capsys, tmp_path, *words, cases=cases)
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in result.stderr
    assert result.stderr.count("\n") <= 2, "no traceback, and no list of all options"


def test_a_folder_that_cannot_be_written_is_named(capsys, tmp_path):
    (tmp_path / "out").write_text("a file")
    result = run_command(capsys, tmp_path, "gradients", cases=CORRECT_FILE)
    assert result.returncode == 2
    assert "cannot be written to" in result.stderr


def test_an_interruption_ends_the_command(capsys, tmp_path):
    cases = """
    def interrupt(x): raise KeyboardInterrupt
    CASES = [compare.Case("a", interrupt, torch.sin, lambda: torch.randn(3))]
    """
    result = run_command(capsys, tmp_path, "gradients", cases=cases)
    assert result.returncode == 130
    assert not (tmp_path / "out" / "report.json").exists()


def test_isolated_cases_may_end_the_interpreter(capsys, tmp_path):
    cases = f"""
    import ctypes
    from pathlib import Path
    def interrupt(x): raise KeyboardInterrupt
    _file = Path({str(tmp_path / "imported")!r})
    CASES = [compare.Case("fine", torch.sin, torch.sin, lambda: torch.randn(3)),
             compare.Case("crash", lambda x: ctypes.string_at(0), torch.sin, lambda: torch.randn(3)),
             compare.Case("interrupted", interrupt, torch.sin, lambda: torch.randn(3)),
             compare.Case("gone", torch.sin, torch.sin, lambda: torch.randn(3))]
    CASES = CASES[: 3 if _file.exists() else 4]
    _file.touch()
    """
    result = run_command(capsys, tmp_path, "gradients", *FAST, "--isolate", cases=cases)
    assert result.returncode == 2
    end = "ended by signal SIGSEGV" if os.name == "posix" else "the process ended with exit code"
    assert f"crash: {end}" in result.stderr
    assert "(mine.py, line 8)" in result.stderr
    assert "interrupted: KeyboardInterrupt (mine.py, line 5)" in result.stderr
    assert "gone: " in result.stderr and "had this case when it was imported first" in result.stderr
    assert "\n3 cases could not be compared; no unexplained difference in the other 6 comparisons.\n" in result.stdout
    report = json.loads((result.out / "report.json").read_text())
    assert report["sections"]["gradients"]["compared"] > 0  # those of "fine"


def test_where_native_raises_in_every_variant_nothing_was_compared():
    def native(x):
        if x.dtype != torch.float64:
            raise TypeError("float64 only")
        return x.sin()

    case = Case("double", torch.cos, native, lambda: torch.randn(3))
    with pytest.raises(CaseError, match="double: nothing could be compared; in float32: TypeError: float64 only"):
        compare(case, dtypes=(torch.float32,))


def test_a_process_that_hangs_is_ended_and_the_line_is_named(tmp_path):
    path = tmp_path / "hanging.py"
    path.write_text("import time\n\ntime.sleep(1000)\n")
    with pytest.raises(CaseError, match=r"took longer than 1 s \(hanging.py, line 3\)"):
        run_load_names(path)


def test_a_process_that_exits_with_0_is_an_error(tmp_path):
    path = tmp_path / "leaving.py"
    path.write_text("import os\nos._exit(0)\n")
    with pytest.raises(CaseError, match="the process ended with exit code 0 before there was a result"):
        run_load_names(path)


def run_load_names(path: Path) -> object:
    from compare.run_cases import load_names

    return isolation.call(load_names, (str(path),), path.name, time_limit=1)


def test_a_reader_that_ends_is_one_line(monkeypatch, capsys):
    def run(options, words):
        raise BrokenPipeError

    monkeypatch.setattr("compare.__main__.run_comparisons", run)
    assert main(["gradients", "--quick"]) == 2
    assert capsys.readouterr().err == "compare: error: the reader of stdout ended before the report was complete\n"
