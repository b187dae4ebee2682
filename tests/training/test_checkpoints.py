"""Promise: a resumed run ends with the same bits as an uninterrupted one; damaged or foreign files are refused."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import math
import os
import pickle
import random
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import manualgrad as mg
from manualgrad import data, files
from manualgrad.files import UNFINISHED_SUFFIX, write_atomic
from manualgrad.training import run_state
from manualgrad.training.checkpoints import (
    DIGEST_BYTES,
    MAGIC,
    MAX_BYTES,
    NUM_KEPT,
    CheckpointError,
    CheckpointStore,
    SettingsMismatchError,
    deserialize,
    read,
    serialize,
)
from manualgrad.training.epochs import EpochLayout
from manualgrad.training.evaluation import EvalResult
from manualgrad.training.nonfinite import NonFiniteError
from manualgrad.training.optimizers import OPTIMIZERS, SCHEDULES, make_lr_scheduler
from manualgrad.training.run import TrainingRun
from manualgrad.training.schema import printable, require_same_structure

NO_EVALUATION = EvalResult(torch.zeros(1).long(), torch.zeros(1).long(), 0.0)


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    return data.bundled_sample().limited(40)


def make_run(
    dataset: data.Dataset,
    optimizer="adam",
    schedule="one-cycle",
    engine="autograd",
    epochs=2,
    batch_size=16,
    seed=0,
    fractions=(1.0,),
    average_last=0,
    **model_options,
) -> TrainingRun:
    """Make a small run with 3 steps in an epoch; the last batch of an epoch is half as large."""
    torch.manual_seed(seed)
    model = mg.DocumentCNN(channels=(2,), kernel_size=5, hidden=(6,), **model_options)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    epochs = EpochLayout(len(dataset.train), batch_size, epochs, fractions)
    scheduler = make_lr_scheduler(schedule, optimizer, epochs.num_steps)
    return TrainingRun(
        model, optimizer, scheduler, dataset, epochs=epochs, seed=seed, average_last=average_last, engine=engine
    )


def train(run: TrainingRun, until: int | None = None) -> TrainingRun:
    """Train up to step ``until``, or to the end."""
    while run.step < (run.num_steps if until is None else until):
        run.train_step()
        if run.step_in_epoch == 0:
            run.end_epoch(NO_EVALUATION)
    return run


def same_weights(a: TrainingRun, b: TrainingRun) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True))


# Stopped and resumed


@pytest.mark.parametrize("step", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("engine", ["autograd", "document"])
def test_a_resumed_run_ends_with_the_same_bits(dataset, engine, step):
    uninterrupted = train(make_run(dataset, engine=engine))
    content = serialize(run_state.state(train(make_run(dataset, engine=engine), step)))
    torch.manual_seed(99)
    again = make_run(dataset, engine=engine)
    for parameter in again.model.parameters():
        torch.nn.init.normal_(parameter)  # no restored value may come from the initialization
    run_state.restore(again, content, "FILE")
    train(again)
    assert same_weights(again, uninterrupted)
    assert again.losses == uninterrupted.losses
    for epoch, expected in zip(again.history, uninterrupted.history, strict=True):
        assert {**epoch, "seconds": 0} == {**expected, "seconds": 0}


@pytest.mark.parametrize("step", [1, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("engine", ["autograd", "document"])
def test_a_run_with_subsets_and_averaging_resumes_with_the_same_bits(dataset, engine, step):
    """3 steps on all images, 2 epochs of 2 steps on the hardest 0.6, and the average over the last 3 steps."""
    options = {"engine": engine, "epochs": 3, "fractions": (1.0, 0.6), "average_last": 3}
    uninterrupted = train(make_run(dataset, **options))
    assert uninterrupted.num_steps == 7
    again = make_run(dataset, **options)
    run_state.restore(again, serialize(run_state.state(train(make_run(dataset, **options), step))), "FILE")
    assert same_weights(train(again), uninterrupted)
    assert again.losses == uninterrupted.losses
    assert torch.equal(again.sampler.label_probs, uninterrupted.sampler.label_probs)
    for change in ({"average_last": 2}, {"fractions": (1.0,)}):
        assert not same_weights(train(make_run(dataset, **{**options, **change})), uninterrupted)


@pytest.mark.parametrize(("keys", "value", "message"), [
    (("costs", 3), torch.nan, "costs: expected finite"),
    (("history", 0, "cost"), torch.inf, r"history\[0\]: expected finite"),
    (("history", 0, "epoch"), 10**400, r"history\[0\].epoch: expected 1, got 1000"),
    (("seconds",), torch.nan, "seconds: expected finite"),
    (("right",), 10**400, "right: expected a number from 0 to 40"),
    (("right",), -1, "right: expected a number from 0 to 40"),
    (("model", "conv0.bias", 1), torch.nan, r"model.conv0.bias: expected finite"),
])  # fmt: skip
def test_implausible_numbers_are_refused(dataset, keys, value, message):
    state = run_state.state(train(make_run(dataset), 4))
    parent = state
    for key in keys[:-1]:
        parent = parent[key]
    parent[keys[-1]] = value
    with pytest.raises(CheckpointError, match=message):
        run_state.restore(make_run(dataset), serialize(state), "FILE")


def test_an_average_over_a_wrong_number_of_steps_is_refused(dataset):
    options = {"average_last": 3}
    state = run_state.state(train(make_run(dataset, **options), 5))
    state["mean"]["n_averaged"] += 1
    with pytest.raises(CheckpointError, match=r"mean\.n_averaged: expected 2, got 3"):
        run_state.restore(make_run(dataset, **options), serialize(state), "FILE")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_with_any_optimizer_resumes_with_the_same_bits(dataset, optimizer):
    content = serialize(run_state.state(train(make_run(dataset, optimizer), 4)))
    again = make_run(dataset, optimizer)
    run_state.restore(again, content, "FILE")
    assert same_weights(train(again), train(make_run(dataset, optimizer)))


@pytest.mark.parametrize("step", [-3.0, 5.0, math.inf, math.nan])
def test_an_optimizer_state_of_another_step_is_refused(dataset, step):
    state = run_state.state(train(make_run(dataset, "adam"), 4))
    state["optimizer"]["state"][1]["step"].fill_(step)
    with pytest.raises(CheckpointError, match=r"optimizer.state.1.step: expected 4, got"):
        run_state.restore(make_run(dataset, "adam"), serialize(state), "FILE")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_with_any_schedule_resumes_with_the_same_bits(dataset, schedule):
    content = serialize(run_state.state(train(make_run(dataset, "sgd", schedule), 4)))
    again = make_run(dataset, "sgd", schedule)
    run_state.restore(again, content, "FILE")
    assert same_weights(train(again), train(make_run(dataset, "sgd", schedule)))


def test_a_run_resumes_with_the_other_engine(dataset):
    content = serialize(run_state.state(train(make_run(dataset, engine="document"), 4)))
    again = make_run(dataset, engine="autograd")
    run_state.restore(again, content, "FILE")
    assert same_weights(train(again), train(make_run(dataset, engine="document")))


@pytest.mark.parametrize("part", ["model", "optimizer", "schedule", "order"])
def test_every_part_of_the_state_is_needed(dataset, part):
    """With one part of another run the weights differ, so the tests above can fail."""
    saved = run_state.state(train(make_run(dataset, "adam"), 4))
    again = make_run(dataset, "adam")
    run_state._load(saved | {part: run_state.state(make_run(dataset, "adam", seed=5))[part]}, again)
    assert not same_weights(train(again), train(make_run(dataset, "adam")))


def test_random_generators_are_restored(dataset):
    def draw() -> list[float]:
        return [torch.rand(()).item(), random.random(), random.gauss(), np.random.rand(), np.random.standard_normal()]

    run = make_run(dataset)
    draw()  # generators of normal numbers make pairs, and keep the second number
    content = serialize(run_state.state(run))
    expected = draw()
    draw()
    run_state.restore(make_run(dataset), content, "FILE")
    assert draw() == expected


# Settings

OTHER_SETTINGS: dict[str, tuple[Callable[[data.Dataset], TrainingRun], str]] = {
    "seed": (lambda d: make_run(d, seed=1), "seed: 0 in the checkpoint, 1 in this run"),
    "batch size": (lambda d: make_run(d, batch_size=20), "batch size: 16 in the checkpoint, 20 in this run"),
    "epochs": (lambda d: make_run(d, epochs=3), "epochs: 2 in the checkpoint, 3 in this run"),
    "optimizer": (lambda d: make_run(d, "adamw"), "optimizer: 'Adam' in the checkpoint, 'AdamW' in this run"),
    "schedule": (
        lambda d: make_run(d, schedule="cosine"),
        "schedule: 'OneCycleLR' in the checkpoint, 'CosineAnnealingLR' in this run",
    ),
    "architecture": (lambda d: make_run(d, classes=11), "dense2.weight 11x6"),
    "subgradient": (
        lambda d: make_run(d, subgradient=0.0),
        "derivative of ReLU at 0: 0.5 in the checkpoint, 0.0 in this run",
    ),
    "precision": (
        lambda d: make_run(d, dtype=torch.float64),
        "precision: 'float32' in the checkpoint, 'float64' in this run",
    ),
    "dataset": (lambda d: make_run(replace(d, name="kmnist")), "'kmnist' in this run"),
    "images": (lambda d: make_run(replace(d, train=replace(d.train, images=255 - d.train.images))), "SHA-256 of the"),
    "labels": (lambda d: make_run(replace(d, train=replace(d.train, labels=9 - d.train.labels))), "SHA-256 of the"),
}


@pytest.mark.parametrize("case", OTHER_SETTINGS)
def test_a_checkpoint_with_other_settings_is_refused_and_the_difference_is_named(dataset, case):
    content = serialize(run_state.state(train(make_run(dataset), 1)))
    make, message = OTHER_SETTINGS[case]
    with pytest.raises(SettingsMismatchError, match=re.escape(message)) as error:
        run_state.restore(make(dataset), content, "FILE")
    assert "FILE was saved by a run with other settings" in str(error.value)
    assert str(error.value).count(" in the checkpoint, ") == 1, "settings that are equal are not listed"


# The file and the folder


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


# Manipulated files


def with_valid_digest(packed: bytes) -> bytes:
    """Add the magic and the SHA-256 to an archive, as an attacker can."""
    return MAGIC + hashlib.sha256(packed).hexdigest().encode() + b"\n" + packed


class MakesFolder:
    """Object whose pickle makes a folder when it is loaded without ``weights_only``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def archive_with(payload: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Archive of a checkpoint with its pickle replaced."""
    packed = io.BytesIO()
    original = io.BytesIO(serialize({"step": 1})[len(MAGIC) + DIGEST_BYTES :])
    with zipfile.ZipFile(original) as old, zipfile.ZipFile(packed, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, payload if name.endswith("data.pkl") else old.read(name))
    return packed.getvalue()


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    mark = tmp_path / "mark"
    payloads = {
        "in the archive": archive_with(pickle.dumps({"step": MakesFolder(mark)}, protocol=2)),
        "in torch's old format": pickle.dumps(MakesFolder(mark), protocol=2),
        "as torch.save writes it": None,
    }
    packed = io.BytesIO()
    torch.save({"step": 1, "model": MakesFolder(mark)}, packed)
    payloads["as torch.save writes it"] = packed.getvalue()
    for payload in payloads.values():
        with pytest.raises(CheckpointError, match="could not be read as tensors and plain values") as error:
            deserialize(with_valid_digest(payload), "FILE")
        assert not mark.exists()
        for advice in ("weights_only", "trust", "safe_globals"):  # torch's own message has all three
            assert advice not in str(error.value)
    torch.load(io.BytesIO(payloads["as torch.save writes it"]), weights_only=False)
    assert mark.exists(), "a load without weights_only runs the code"


def test_a_checkpoint_of_another_version_says_which():
    content = serialize({"step": 1})
    for version in (1, 3, 12):
        other = content.replace(b"checkpoint 2", b"checkpoint %d" % version, 1)
        with pytest.raises(
            CheckpointError, match=f"is a checkpoint of version {version}; this program reads version 2"
        ):
            deserialize(other, "FILE")


def test_a_compressed_archive_is_refused():
    bomb = archive_with(bytes(1 << 24), zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1 << 16
    with pytest.raises(CheckpointError, match="got a compressed archive"):
        deserialize(with_valid_digest(bomb), "FILE")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_a_well_formed_state_that_no_run_saves_is_refused(dataset):
    valid = run_state.state(train(make_run(dataset), 4))
    cycle: list = []
    cycle.append(cycle)
    expanded = torch.zeros(1).expand(1 << 40)  # 4 bytes with the shape of 4 terabytes
    for change, message in (
        ({"step": -1}, "expected a number from 0 to 6, got -1"),
        ({"step": True}, "got True"),
        ({"step": 10**50}, "from 0 to 6"),
        ({"step": 5}, "costs: expected shape (5,)"),
        ({"costs": expanded}, "costs: expected shape (4,)"),
        ({"costs": cycle}, "costs: expected Tensor, got list"),
        ({"model": valid["model"] | {"conv0.bias": torch.zeros(3)}}, "conv0.bias: expected shape (2,)"),
        ({"model": valid["model"] | {"conv0.bias": torch.zeros(2, device="meta")}}, "got torch.strided on meta"),
        ({"model": valid["model"] | {"conv0.bias": torch.zeros(2).to_sparse()}}, "torch.sparse"),
        ({"model": valid["model"] | {"\x1b[2Jx": torch.zeros(1)}}, "\\x1b[2Jx"),
        ({"schedule": valid["schedule"] | {"step": 3}}, "checkpoint.schedule: unexpected key 'step'"),
        ({"schedule": valid["schedule"] | {"total_steps": 7}}, "schedule.total_steps: expected 6, got 7"),
        ({"schedule": valid["schedule"] | {"_last_lr": [0.0]}}, "schedule._last_lr"),
        ({"optimizer": valid["optimizer"] | {"state": {}}}, "optimizer.state: key 0 is missing"),
        ({"order": torch.zeros(5056, dtype=torch.uint8)}, "FILE"),
        ({"generators": valid["generators"] | {"numpy's position": 10**9}}, "from 0 to 624, got 1000000000"),
        ({"generators": valid["generators"] | {"python": torch.full((625,), -1)}}, "FILE"),
        ({"settings": {**valid["settings"], "seed": "\x1b[31m"}}, "settings.seed: expected int, got str"),
        ({"settings": None}, "settings: expected dict, got NoneType"),
        ({"extra": 1}, "checkpoint: unexpected key 'extra'"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError) as error:
            run_state.restore(make_run(dataset), serialize(valid | change), "FILE")
        assert message in str(error.value)
        assert str(error.value).isprintable(), "no control characters reach the terminal"
    for flag in ("maximize", "capturable"):
        groups = [{**group, flag: True} for group in valid["optimizer"]["param_groups"]]
        with pytest.raises(CheckpointError, match=f"{flag}: expected False, got True"):
            run_state.restore(
                make_run(dataset), serialize(valid | {"optimizer": valid["optimizer"] | {"param_groups": groups}}), ""
            )
    run_state.restore(make_run(dataset), serialize(valid), "FILE")


def test_printable_and_require_same_structure():
    assert printable("a\x1b[0m\nb\u202e") == "a\\x1b[0m\\nb\\u202e"
    assert len(printable("x" * 10**6)) == 201
    require_same_structure({"a": [1, (2.0, "x")]}, {"a": [7, (8.0, "y")]}, "FILE")
    with pytest.raises(ValueError, match=r"FILE\.a\[1\]\[0\]: expected float, got int"):
        require_same_structure({"a": [1, (2, "x")]}, {"a": [7, (8.0, "y")]}, "FILE")
    with pytest.raises(ValueError, match=r"FILE\.a: expected 'y', got 'x'"):
        require_same_structure({"a": "x"}, {"a": "y"}, "FILE", equal=True)


@st.composite
def mutations(draw: st.DrawFn, size: int) -> Callable[[bytes], bytes]:
    """Draw a few changes of a file of ``size`` bytes, often near its ends, where headers and directories are."""
    position = st.one_of(st.integers(0, size), st.integers(0, 400), st.integers(size - 1500, size))
    kind = st.sampled_from(("set", "flip", "delete", "insert", "cut", "append", "swap"))
    changes = draw(
        st.lists(st.tuples(kind, position, st.binary(min_size=1, max_size=8), position), min_size=1, max_size=3)
    )

    def mutate(content: bytes) -> bytes:
        changed = bytearray(content)
        for kind, start, values, other in changes:
            if kind == "set":
                changed[start : start + len(values)] = values
            elif kind == "flip":
                changed[start : start + 1] = bytes(byte ^ (1 << values[0] % 8) for byte in changed[start : start + 1])
            elif kind == "delete":
                del changed[start : start + values[0]]
            elif kind == "insert":
                changed[start:start] = values
            elif kind == "cut":
                del changed[start:]
            elif kind == "append":
                changed += values
            else:
                a, b = sorted((start, other))
                changed[a : a + 4], changed[b : b + 4] = changed[b : b + 4], changed[a : a + 4]
        return bytes(changed)

    return mutate


class TestMutated:
    """Each mutated file is refused with a CheckpointError, or restored with the weights it holds."""

    run = make_run(data.bundled_sample().limited(40))
    content = serialize(run_state.state(train(run, 4)))

    def restored(self, content: bytes) -> TrainingRun | None:
        """Restore ``content`` to a new run; return None if it is refused. Any error but CheckpointError is raised."""
        again, refusal = make_run(self.run.dataset), None
        try:
            run_state.restore(again, content, "FILE")
        except CheckpointError as error:
            refusal = str(error)
        assert refusal is None or refusal.isprintable()
        return again if refusal is None else None

    @settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(mutate=mutations(len(content)))
    def test_with_the_original_digest(self, mutate):
        changed = mutate(self.content)
        assert (self.restored(changed) is None) == (changed != self.content), "refused if and only if damaged"

    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(mutate=mutations(len(content) - len(MAGIC) - DIGEST_BYTES))
    def test_with_a_valid_digest(self, mutate):
        packed = mutate(self.content[len(MAGIC) + DIGEST_BYTES :])
        again = self.restored(with_valid_digest(packed))
        if again is not None:
            stored = torch.load(io.BytesIO(packed), weights_only=True)["model"]
            for name, weight in again.model.state_dict().items():
                assert torch.equal(weight.nan_to_num(), stored[name].nan_to_num())
            with contextlib.suppress(NonFiniteError):  # the stored numbers may be that large
                again.train_step()
