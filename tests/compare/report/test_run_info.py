"""Promise: the run info names the commit, the machine and the versions of a run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import torch

from compare import run_info


def test_the_run_info_of_this_process(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/home/somebody/cache")
    monkeypatch.setenv("LD_PRELOAD", "")
    info = run_info.collect_run_info(
        "python -m compare speed", seeds=range(3), dataset="mnist-sample", source="bundled"
    )
    assert info.seeds == (0, 1, 2) and info.threads == torch.get_num_threads() and info.device == "cpu"
    assert info.versions["torch"] == torch.__version__ and {"python", "numpy", "manualgrad"} <= set(info.versions)
    assert info.environment["OMP_NUM_THREADS"] == "1"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", info.utc)
    assert "somebody" not in str(info) and str(Path.home()) not in str(info)
    rows = dict(info.rows())
    assert rows["data"] == "mnist-sample: bundled" and rows["command"] == "python -m compare speed"
    assert info.cores >= 1 and info.processor and info.allocator


def test_the_run_info_leaves_out_unused_seeds_and_data():
    assert {"seeds", "data"}.isdisjoint(dict(run_info.collect_run_info("python -m compare capabilities").rows()))


def test_the_commit_is_that_of_the_clone_and_notes_changed_files(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        run = subprocess.run(["git", "-C", tmp_path, *author, *arguments], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    monkeypatch.setattr(run_info, "ROOT", tmp_path)
    assert run_info.collect_run_info("").commit is None  # not a repository
    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    assert run_info.collect_run_info("").commit == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert run_info.collect_run_info("").commit == git("rev-parse", "HEAD") + ", with changes"
    inside = tmp_path / "site-packages"
    inside.mkdir()
    monkeypatch.setattr(run_info, "ROOT", inside)
    assert run_info.collect_run_info("").commit is None  # installed inside another repository
