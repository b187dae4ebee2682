"""The command: it prints one line for each fact, then the self-test, and returns the exit code."""

from __future__ import annotations

import time

from manualgrad.command_line import ArgumentParser
from manualgrad.doctor import installation, machine, self_test

DESCRIPTION = """Describe this installation: versions, machine, devices, kernels, cache and data. Then test that
gradients equal finite differences, and that kernels equal formulas. Exit codes: 0, or 1 if the self-test fails."""


def main(argv: list[str] | None = None, prog: str = "python -m manualgrad doctor") -> int:
    """Print the description, run the self-test, and return 0, or 1 if a test fails."""
    parser = ArgumentParser(prog=prog, description=DESCRIPTION)
    parser.add_argument("--data-dir", default="data", metavar="DIR", help="folder of the data (default: %(default)s)")
    options = parser.parse_args(argv)
    facts = [*installation.versions(), *machine.facts(), *installation.kernel_facts(),
             *installation.data_facts(options.data_dir)]  # fmt: skip
    for name, text in facts:
        print(f"{name:12}{text}")
    start = time.perf_counter()
    num_tests = num_failed = 0
    for test in self_test.tests():
        result = test()
        print(f"{'ok' if result.passed else 'FAILED':12}{result}")
        num_tests, num_failed = num_tests + 1, num_failed + (not result.passed)
    seconds = time.perf_counter() - start
    print(f"{'self-test':12}{num_tests - num_failed} of {num_tests} tests passed in {seconds:.1f} s")
    return 1 if num_failed else 0
