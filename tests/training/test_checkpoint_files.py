"""Promise: a checkpoint is written whole or not at all, and the newest intact one is loaded."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from manualgrad import files
from manualgrad.files import UNFINISHED_SUFFIX, write_atomic
from manualgrad.training import run_state
from manualgrad.training.checkpoints import (
    MAX_BYTES,
    NUM_KEPT,
    CheckpointError,
    CheckpointStore,
    read,
)
from manualgrad.training.nonfinite import NonFiniteError
from tests.training.checkpoint_runs import make_run, train


def test_a_failed_write_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"before")
    for function in ("fsync", "replace"):

        def fault(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(files.os, function, fault)
            with pytest.raises(OSError, match="No space left") as error:
                write_atomic(path, b"after")
        assert error.value.filename == str(path)
        assert path.read_bytes() == b"before"
        assert os.listdir(tmp_path) == ["file"]
    write_atomic(path, b"after")
    assert path.read_bytes() == b"after"


def test_a_file_is_flushed_to_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    calls = []
    for function in ("fsync", "replace"):
        original = getattr(os, function)
        monkeypatch.setattr(files.os, function, lambda *a, f=function, o=original: (calls.append(f), o(*a))[1])
    write_atomic(tmp_path / "file", b"content")
    assert calls == ["fsync", "replace", "fsync"], "content, new name, folder"


def test_the_newest_checkpoints_are_kept_and_unfinished_files_removed(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    for step in range(1, 8):
        store.save(step, {"step": step})
    assert [path.name for path in store.newest_first()] == [f"step-{n:09}.checkpoint" for n in (7, 6, 5)]
    assert len(store.newest_first()) == NUM_KEPT
    earlier = store.save(2, {"step": 2})
    assert earlier.exists(), "the checkpoint that was just written is never deleted"
    (store.folder / f"step-000000009.checkpoint{UNFINISHED_SUFFIX}").write_bytes(b"half")
    assert store.load_latest(lambda content, path: None, pytest.fail) == read(store.newest_first()[0])
    assert not list(store.folder.glob(f"*{UNFINISHED_SUFFIX}"))


def test_the_newest_intact_checkpoint_is_loaded(tmp_path, dataset):
    store, run = CheckpointStore(tmp_path / "checkpoints"), make_run(dataset)
    assert store.load_latest(pytest.fail, pytest.fail) is None
    for step in (1, 2, 3):
        store.save(step, run_state.state(train(run, step)))
    newest, middle, oldest = store.newest_first()
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    middle.write_bytes(b"")
    warnings, again = [], make_run(dataset)
    store.load_latest(lambda content, path: run_state.restore(again, content, path), warnings.append)
    assert again.step == 1 and store.last == oldest
    assert f"{newest} is damaged" in warnings[0] and f"{middle} is not a checkpoint" in warnings[1]
    with pytest.raises(CheckpointError, match="is damaged"):
        store.load(newest, lambda content, path: run_state.restore(again, content, path))
    oldest.write_bytes(oldest.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="none of the 3 checkpoints"):
        store.load_latest(lambda content, path: run_state.restore(again, content, path), warnings.append)


def test_unusable_paths_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        read(tmp_path / "none")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        read(tmp_path / "pipe")  # reading it would wait forever
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(CheckpointError, match="expected at most"):
        read(tmp_path / "hole")


def test_non_finite_weights_are_not_saved(dataset):
    run = train(make_run(dataset), 2)
    with torch.no_grad():
        run.model.dense1.weight[3, 5] = torch.inf
    message = r"after step 2; .* dense1.weight, 1 of .* values, the first inf at index \[3, 5\]"
    with pytest.raises(NonFiniteError, match=message):
        run_state.state(run)
