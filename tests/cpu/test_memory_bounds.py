"""Promise: no kernel reads or writes outside its tensors; ``tests/cpu/guard_pages.py`` would notice."""

from __future__ import annotations

import re
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
    assert not re.search(r"\b0 (calls|of)", done.stdout), "every kind of kernel was called"


@pytest.mark.parametrize("part", [[], ["--part"]], ids=["a tensor", "a part"])
@pytest.mark.parametrize("side", ["before", "after"])
def test_the_guards_notice(side, part):
    done = run("--overrun", side, *part)
    assert done.returncode == -signal.SIGSEGV
    assert "inside is allowed" in done.stdout
    assert "nobody noticed" not in done.stdout
