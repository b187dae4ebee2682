"""Promise: no kernel reads or writes outside its tensors, or in memory that was freed; ``tests/cpu/guard_pages.py``
would detect it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from manualgrad.kernels import available

SCRIPT = Path(__file__).with_name("guard_pages.py")
pytestmark = pytest.mark.skipif(available().instructions is None, reason=str(available()))


def run_script(*arguments: str) -> subprocess.CompletedProcess:
    # the script's folder is not the package's; threads that spin would keep each other from the cores
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_WAIT_POLICY": "passive"}
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("calls", [250, pytest.param(10_000, marks=pytest.mark.slow)])
def test_kernels_stay_within_their_tensors(calls):
    result = run_script(str(calls))
    assert result.returncode == 0, f"ended by signal {-result.returncode}\n{result.stderr}"
    assert not re.search(r"\b0 (calls|of)", result.stdout), "every kind of kernel was called"


@pytest.mark.slow  # each new process emits and loads the kernels of all groups, twice
def test_several_threads_use_no_memory_that_was_freed():
    """A program and its tables outlive their call, though another thread drops them from the caches meanwhile."""
    result = run_script("1500", "--python-threads", "3")
    assert result.returncode == 0, f"ended by signal {-result.returncode}\n{result.stderr}"


@pytest.mark.parametrize("options", [[], ["--buffer"]], ids=["tensor", "buffer"])
@pytest.mark.parametrize("side", ["before", "after"])
def test_the_guard_pages_detect_an_overrun(side, options):
    result = run_script("--overrun", side, *options)
    assert result.returncode == -signal.SIGSEGV
    assert "inside is allowed" in result.stdout
    assert "overrun was not detected" not in result.stdout
