"""``scripts/seeds.py`` prints what its seconds include, and passes its arguments on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from manualgrad.training.command import CLOCK_NOTE
from scripts import seeds


def test_seeds_are_trained_in_turn_and_the_clock_is_explained(monkeypatch, capsys) -> None:
    commands = []

    def run(command, **_):
        commands.append(command)
        metrics = {
            "test_accuracy": 99.0 + len(commands), "epochs": [{"seconds": 0.5}], "dataset": "MNIST", "threads": 2
        }  # fmt: skip
        (Path(command[-1]) / "metrics.json").write_text(json.dumps(metrics))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(seeds.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["seeds.py", "2", "--recipe", "fast"])
    assert seeds.main() == 0
    assert [command[2:6] for command in commands] == [["--recipe", "fast", "--seed", str(n)] for n in range(2)]
    out = capsys.readouterr().out
    assert out.startswith(CLOCK_NOTE) and "capture of CUDA graphs" in CLOCK_NOTE
    assert "mean 100.500 %" in out and "median 0.50 s of training" in out
