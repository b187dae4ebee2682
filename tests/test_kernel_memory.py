"""Promise: no kernel reads or writes outside its tensors; ``tests/guard_pages.py`` would notice."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from manualgrad.kernels import available

SCRIPT = Path(__file__).with_name("guard_pages.py")
pytestmark = pytest.mark.skipif(available().instructions is None, reason=str(available()))


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("calls", [250, pytest.param(10_000, marks=pytest.mark.slow)])
def test_nothing_outside_is_touched(calls):
    done = run(str(calls))
    assert done.returncode == 0, f"ended by signal {-done.returncode}\n{done.stderr}"
    assert f"{calls} calls" not in done.stdout, "both kinds of kernels were called"


@pytest.mark.parametrize("side", ["before", "after"])
def test_the_guards_notice(side):
    done = run("--overrun", side)
    assert done.returncode == -signal.SIGSEGV
    assert "nobody noticed" not in done.stdout
