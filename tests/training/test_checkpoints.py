"""Promise: what was put down is taken up with the same bits, and a file that is not ours is refused, not believed."""

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
from manualgrad.files import UNFINISHED, write_whole
from manualgrad.training import run_state
from manualgrad.training.checkpoints import (
    KEPT,
    MAGIC,
    MOST_BYTES,
    SUM,
    CheckpointError,
    OtherRun,
    Store,
    read,
    seal,
    unseal,
)
from manualgrad.training.epochs import Epochs
from manualgrad.training.nonfinite import NonFinite
from manualgrad.training.run import Run
from manualgrad.training.steps import OPTIMIZERS, SCHEDULES, Verdict, step_sizes
from manualgrad.training.untrusted import printable, require_alike

VERDICT = Verdict(torch.zeros(1).long(), torch.zeros(1).long(), 0.0)  # the test images are not the matter here


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    return data.bundled_sample().limited(40)


def begin(
    dataset: data.Dataset,
    optimizer="adam",
    schedule="one-cycle",
    engine="autograd",
    epochs=2,
    batch_size=16,
    seed=0,
    shares=(1.0,),
    averaged=0,
    **sizes,
) -> Run:
    """A small run of 3 steps an epoch; the last batch of an epoch is half as large."""
    torch.manual_seed(seed)
    model = mg.DocumentCNN(channels=(2,), kernel_size=5, hidden=(6,), **sizes)
    steps = OPTIMIZERS[optimizer](model.parameters())
    every = Epochs(len(dataset.train), batch_size, epochs, shares)
    schedule = step_sizes(schedule, steps, every.steps)
    return Run(model, steps, schedule, dataset, epochs=every, seed=seed, averaged=averaged, engine=engine)


def go_on(run: Run, until: int | None = None) -> Run:
    while run.step < (run.steps if until is None else until):
        run.take_step()
        if run.place == 0:
            run.close_epoch(VERDICT)
    return run


def same_weights(a: Run, b: Run) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True))


# Put down and taken up


@pytest.mark.parametrize("at", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("engine", ["autograd", "document"])
def test_a_run_taken_up_ends_with_the_same_bits(dataset, engine, at):
    untouched = go_on(begin(dataset, engine=engine))
    content = seal(run_state.state(go_on(begin(dataset, engine=engine), at)))
    torch.manual_seed(99)
    again = begin(dataset, engine=engine)
    for parameter in again.model.parameters():
        torch.nn.init.normal_(parameter)  # nothing of what is taken up may come from how it began
    run_state.restore(again, content, "it")
    go_on(again)
    assert same_weights(again, untouched)
    assert again.costs == untouched.costs
    for mine, others in zip(again.history, untouched.history, strict=True):
        assert {**mine, "seconds": 0} == {**others, "seconds": 0}


@pytest.mark.parametrize("at", [1, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("engine", ["autograd", "document"])
def test_a_run_that_chooses_and_averages_is_taken_up(dataset, engine, at):
    """3 steps of all images, twice 2 of the hardest 0.6; of the last 3 steps the weights are averaged."""
    options = {"engine": engine, "epochs": 3, "shares": (1.0, 0.6), "averaged": 3}
    untouched = go_on(begin(dataset, **options))
    assert untouched.steps == 7
    again = begin(dataset, **options)
    run_state.restore(again, seal(run_state.state(go_on(begin(dataset, **options), at))), "it")
    assert same_weights(go_on(again), untouched)
    assert again.costs == untouched.costs
    assert torch.equal(again.choice.before, untouched.choice.before)
    for other in ({"averaged": 2}, {"shares": (1.0,)}):
        assert not same_weights(go_on(begin(dataset, **{**options, **other})), untouched)


@pytest.mark.parametrize(("place", "value", "words"), [
    (("costs", 3), torch.nan, "costs: expected finite"),
    (("history", 0, "cost"), torch.inf, r"history\[0\]: expected finite"),
    (("history", 0, "epoch"), 10**400, r"history\[0\].epoch: expected 1, found 1000"),
    (("seconds",), torch.nan, "seconds: expected finite"),
    (("right",), 10**400, "right: expected a number from 0 to 40"),
    (("right",), -1, "right: expected a number from 0 to 40"),
    (("model", "conv0.bias", 1), torch.nan, r"model.conv0.bias: expected finite"),
])  # fmt: skip
def test_numbers_that_no_run_saves_are_refused(dataset, place, value, words):
    state = run_state.state(go_on(begin(dataset), 4))
    inner = state
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(CheckpointError, match=words):
        run_state.restore(begin(dataset), seal(state), "it")


def test_a_mean_of_another_number_of_steps_is_refused(dataset):
    options = {"averaged": 3}
    state = run_state.state(go_on(begin(dataset, **options), 5))
    state["mean"]["n_averaged"] += 1
    with pytest.raises(CheckpointError, match=r"mean\.n_averaged: expected 2, found 3"):
        run_state.restore(begin(dataset, **options), seal(state), "it")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_is_taken_up(dataset, optimizer):
    content = seal(run_state.state(go_on(begin(dataset, optimizer), 4)))
    again = begin(dataset, optimizer)
    run_state.restore(again, content, "it")
    assert same_weights(go_on(again), go_on(begin(dataset, optimizer)))


@pytest.mark.parametrize("steps", [-3.0, 5.0, math.inf, math.nan])
def test_an_optimizer_that_counts_other_steps_is_refused(dataset, steps):
    state = run_state.state(go_on(begin(dataset, "adam"), 4))
    state["optimizer"]["state"][1]["step"].fill_(steps)
    with pytest.raises(CheckpointError, match=r"optimizer.state.1.step: expected 4, found"):
        run_state.restore(begin(dataset, "adam"), seal(state), "it")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_is_taken_up(dataset, schedule):
    content = seal(run_state.state(go_on(begin(dataset, "sgd", schedule), 4)))
    again = begin(dataset, "sgd", schedule)
    run_state.restore(again, content, "it")
    assert same_weights(go_on(again), go_on(begin(dataset, "sgd", schedule)))


def test_a_run_may_change_engines_between_two_steps(dataset):
    content = seal(run_state.state(go_on(begin(dataset, engine="document"), 4)))
    again = begin(dataset, engine="autograd")
    run_state.restore(again, content, "it")
    assert same_weights(go_on(again), go_on(begin(dataset, engine="document")))


@pytest.mark.parametrize("part", ["model", "optimizer", "schedule", "order"])
def test_every_part_is_needed(dataset, part):
    """Without it the weights are others: the tests above can fail."""
    saved = run_state.state(go_on(begin(dataset, "adam"), 4))
    again = begin(dataset, "adam")
    run_state._adopt(saved | {part: run_state.state(begin(dataset, "adam", seed=5))[part]}, again)
    assert not same_weights(go_on(again), go_on(begin(dataset, "adam")))


def test_generators_go_on_where_they_were(dataset):
    def draw() -> list[float]:
        return [torch.rand(()).item(), random.random(), random.gauss(), np.random.rand(), np.random.standard_normal()]

    run = begin(dataset)
    draw()  # of a pair of normal numbers, one is left over
    content = seal(run_state.state(run))
    expected = draw()
    draw()
    run_state.restore(begin(dataset), content, "it")
    assert draw() == expected


# Whose run is it?

OTHERS: dict[str, tuple[Callable[[data.Dataset], Run], str]] = {
    "seed": (lambda d: begin(d, seed=1), "seed is 0 there and 1 here"),
    "batch size": (lambda d: begin(d, batch_size=20), "batch size is 16 there and 20 here"),
    "epochs": (lambda d: begin(d, epochs=3), "epochs is 2 there and 3 here"),
    "optimizer": (lambda d: begin(d, "adamw"), "optimizer is 'Adam' there and 'AdamW' here"),
    "schedule": (
        lambda d: begin(d, schedule="cosine"),
        "schedule is 'OneCycleLR' there and 'CosineAnnealingLR' here",
    ),
    "architecture": (lambda d: begin(d, classes=11), "dense2.weight 11x6"),
    "subgradient": (lambda d: begin(d, subgradient=0.0), "derivative of ReLU at 0 is 0.5 there and 0.0 here"),
    "precision": (lambda d: begin(d, dtype=torch.float64), "precision is 'float32' there and 'float64' here"),
    "dataset": (lambda d: begin(replace(d, name="kmnist")), "and 'kmnist' here"),
    "images": (lambda d: begin(replace(d, train=replace(d.train, images=255 - d.train.images))), "SHA-256 of the"),
    "labels": (lambda d: begin(replace(d, train=replace(d.train, labels=9 - d.train.labels))), "SHA-256 of the"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_run_is_refused_and_the_difference_named(dataset, case):
    content = seal(run_state.state(go_on(begin(dataset), 1)))
    make, words = OTHERS[case]
    with pytest.raises(OtherRun, match=re.escape(words)) as error:
        run_state.restore(make(dataset), content, "FILE")
    assert "FILE belongs to another run" in str(error.value)
    assert str(error.value).count(" there and ") == 1, "only what differs is named"


# The file, and the folder


def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"before")
    for function in ("fsync", "replace"):

        def fault(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(files.os, function, fault)
            with pytest.raises(OSError, match="No space left") as error:
                write_whole(path, b"after")
        assert error.value.filename == str(path)
        assert path.read_bytes() == b"before"
        assert os.listdir(tmp_path) == ["file"]
    write_whole(path, b"after")
    assert path.read_bytes() == b"after"


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order = []
    for function in ("fsync", "replace"):
        original = getattr(os, function)
        monkeypatch.setattr(files.os, function, lambda *a, f=function, o=original: (order.append(f), o(*a))[1])
    write_whole(tmp_path / "file", b"content")
    assert order == ["fsync", "replace", "fsync"], "the content, the name, the folder"


def test_the_last_few_are_kept_and_leftovers_removed(tmp_path):
    store = Store(tmp_path / "checkpoints")
    for step in range(1, 8):
        store.save(step, {"step": step})
    assert [path.name for path in store.newest_first()] == [f"step-{n:09}.checkpoint" for n in (7, 6, 5)]
    assert len(store.newest_first()) == KEPT
    earlier = store.save(2, {"step": 2})
    assert earlier.exists(), "what was just written is never the one that goes"
    (store.folder / f"step-000000009.checkpoint{UNFINISHED}").write_bytes(b"half")
    assert store.take_up(lambda content, path: None, pytest.fail) == read(store.newest_first()[0])
    assert not list(store.folder.glob(f"*{UNFINISHED}"))


def test_of_damaged_ones_the_newest_sound_one_is_taken_up(tmp_path, dataset):
    store, run = Store(tmp_path / "checkpoints"), begin(dataset)
    assert store.take_up(pytest.fail, pytest.fail) is None
    for step in (1, 2, 3):
        store.save(step, run_state.state(go_on(run, step)))
    newest, middle, oldest = store.newest_first()
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    middle.write_bytes(b"")
    warnings, again = [], begin(dataset)
    store.take_up(lambda content, path: run_state.restore(again, content, path), warnings.append)
    assert again.step == 1 and store.last == oldest
    assert f"{newest} is damaged" in warnings[0] and f"{middle} is not a checkpoint" in warnings[1]
    with pytest.raises(CheckpointError, match="is damaged"):
        store.take(newest, lambda content, path: run_state.restore(again, content, path))
    oldest.write_bytes(oldest.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="none of the 3 checkpoints"):
        store.take_up(lambda content, path: run_state.restore(again, content, path), warnings.append)


def test_unusable_paths(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        read(tmp_path / "none")
    with pytest.raises(CheckpointError, match="is not a file"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is not a file"):
        read(tmp_path / "pipe")  # reading it would wait for ever
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(CheckpointError, match="expected at most"):
        read(tmp_path / "hole")


def test_weights_that_are_not_finite_are_not_saved(dataset):
    run = go_on(begin(dataset), 2)
    with torch.no_grad():
        run.model.dense1.weight[3, 5] = torch.inf
    with pytest.raises(NonFinite, match=r"after step 2, .* dense1.weight, 1 of .* values, the first inf at \[3, 5\]"):
        run_state.state(run)


# Files that nobody here wrote


def sealed(packed: bytes) -> bytes:
    """``packed`` with the right sum: whoever means harm can compute it as well."""
    return MAGIC + hashlib.sha256(packed).hexdigest().encode() + b"\n" + packed


class Harm:
    """Pickled, it makes a file when it is read by a pickle that believes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def archive_with(payload: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A checkpoint's archive, with another pickle in it."""
    packed = io.BytesIO()
    ours = io.BytesIO(seal({"step": 1})[len(MAGIC) + SUM :])
    with zipfile.ZipFile(ours) as old, zipfile.ZipFile(packed, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, payload if name.endswith("data.pkl") else old.read(name))
    return packed.getvalue()


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    mark = tmp_path / "harm"
    payloads = {
        "in the archive": archive_with(pickle.dumps({"step": Harm(mark)}, protocol=2)),
        "in torch's old format": pickle.dumps(Harm(mark), protocol=2),
        "as torch.save writes it": None,
    }
    packed = io.BytesIO()
    torch.save({"step": 1, "model": Harm(mark)}, packed)
    payloads["as torch.save writes it"] = packed.getvalue()
    for payload in payloads.values():
        with pytest.raises(CheckpointError, match="holds something other than tensors"):
            unseal(sealed(payload), "FILE")
        assert not mark.exists()
    torch.load(io.BytesIO(payloads["as torch.save writes it"]), weights_only=False)
    assert mark.exists(), "it would have been run by a reader that believes it"


def test_an_archive_that_unpacks_to_more_than_it_has_is_refused():
    bomb = archive_with(bytes(1 << 24), zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1 << 16
    with pytest.raises(CheckpointError, match="a compressed archive"):
        unseal(sealed(bomb), "FILE")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_what_is_well_formed_but_not_of_this_run_is_refused(dataset):
    good = run_state.state(go_on(begin(dataset), 4))
    loop: list = []
    loop.append(loop)
    wide = torch.zeros(1).expand(1 << 40)  # four bytes that claim to be four terabytes
    for change, words in (
        ({"step": -1}, "expected a number from 0 to 6, found -1"),
        ({"step": True}, "found True"),
        ({"step": 10**50}, "from 0 to 6"),
        ({"step": 5}, "costs: expected (5,)"),
        ({"costs": wide}, "costs: expected (4,)"),
        ({"costs": loop}, "costs: expected Tensor, found list"),
        ({"model": good["model"] | {"conv0.bias": torch.zeros(3)}}, "conv0.bias: expected (2,)"),
        ({"model": good["model"] | {"conv0.bias": torch.zeros(2, device="meta")}}, "found a tensor on meta"),
        ({"model": good["model"] | {"conv0.bias": torch.zeros(2).to_sparse()}}, "torch.sparse"),
        ({"model": good["model"] | {"\x1b[2Jx": torch.zeros(1)}}, "\\x1b[2Jx"),
        ({"schedule": good["schedule"] | {"step": 3}}, "checkpoint.schedule: 'step' has no place there"),
        ({"schedule": good["schedule"] | {"total_steps": 7}}, "schedule.total_steps: expected 6, found 7"),
        ({"schedule": good["schedule"] | {"_last_lr": [0.0]}}, "schedule._last_lr"),
        ({"optimizer": good["optimizer"] | {"state": {}}}, "optimizer.state: 0 is missing"),
        ({"order": torch.zeros(5056, dtype=torch.uint8)}, "FILE"),
        ({"generators": good["generators"] | {"numpy's position": 10**9}}, "cannot be at 1000000000"),
        ({"generators": good["generators"] | {"python": torch.full((625,), -1)}}, "FILE"),
        ({"settings": {**good["settings"], "seed": "\x1b[31m"}}, "settings.seed: expected int, found str"),
        ({"settings": None}, "settings: expected dict, found NoneType"),
        ({"extra": 1}, "checkpoint: 'extra' has no place there"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError) as error:
            run_state.restore(begin(dataset), seal(good | change), "FILE")
        assert words in str(error.value)
        assert str(error.value).isprintable(), "a message does nothing to a terminal"
    rules = {"maximize": True, "capturable": True}
    for rule in rules:
        groups = [{**group, rule: True} for group in good["optimizer"]["param_groups"]]
        with pytest.raises(CheckpointError, match=f"{rule}: expected False, found True"):
            run_state.restore(
                begin(dataset), seal(good | {"optimizer": good["optimizer"] | {"param_groups": groups}}), ""
            )
    run_state.restore(begin(dataset), seal(good), "FILE")


def test_printable_and_alike():
    assert printable("a\x1b[0m\nb\u202e") == "a\\x1b[0m\\nb\\u202e"
    assert len(printable("x" * 10**6)) == 201
    require_alike({"a": [1, (2.0, "x")]}, {"a": [7, (8.0, "y")]}, "it")
    with pytest.raises(ValueError, match=r"it.a\[1\]\[0\]: expected float, found int"):
        require_alike({"a": [1, (2, "x")]}, {"a": [7, (8.0, "y")]}, "it")
    with pytest.raises(ValueError, match=r"it\.a: expected 'y', found 'x'"):
        require_alike({"a": "x"}, {"a": "y"}, "it", equal=True)


@st.composite
def mutations(draw: st.DrawFn, size: int) -> Callable[[bytes], bytes]:
    """A few changes of a file of ``size`` bytes, more often near its ends, where headers and directories are."""
    place = st.one_of(st.integers(0, size), st.integers(0, 400), st.integers(size - 1500, size))
    kind = st.sampled_from(("set", "flip", "delete", "insert", "cut", "append", "swap"))
    changes = draw(st.lists(st.tuples(kind, place, st.binary(min_size=1, max_size=8), place), min_size=1, max_size=3))

    def mutate(content: bytes) -> bytes:
        changed = bytearray(content)
        for what, at, some, other in changes:
            if what == "set":
                changed[at : at + len(some)] = some
            elif what == "flip":
                changed[at : at + 1] = bytes(byte ^ (1 << some[0] % 8) for byte in changed[at : at + 1])
            elif what == "delete":
                del changed[at : at + some[0]]
            elif what == "insert":
                changed[at:at] = some
            elif what == "cut":
                del changed[at:]
            elif what == "append":
                changed += some
            else:
                a, b = sorted((at, other))
                changed[a : a + 4], changed[b : b + 4] = changed[b : b + 4], changed[a : a + 4]
        return bytes(changed)

    return mutate


class TestMutated:
    """Each file is refused with our own error, or read right: as the run that it says, which can go on."""

    run = begin(data.bundled_sample().limited(40))
    content = seal(run_state.state(go_on(run, 4)))

    def restored(self, content: bytes) -> Run | None:
        """The run that ``content`` gives; None where it is refused as it should be, and nothing else is raised."""
        again, refusal = begin(self.run.dataset), None
        try:
            run_state.restore(again, content, "FILE")
        except CheckpointError as error:
            refusal = str(error)
        assert refusal is None or refusal.isprintable()
        return again if refusal is None else None

    @settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(mutate=mutations(len(content)))
    def test_with_the_old_sum(self, mutate):
        changed = mutate(self.content)
        assert (self.restored(changed) is None) == (changed != self.content), "damage is found, and only damage"

    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(mutate=mutations(len(content) - len(MAGIC) - SUM))
    def test_with_a_new_sum(self, mutate):
        packed = mutate(self.content[len(MAGIC) + SUM :])
        again = self.restored(sealed(packed))
        if again is not None:
            said = torch.load(io.BytesIO(packed), weights_only=True)["model"]
            for name, weight in again.model.state_dict().items():
                assert torch.equal(weight.nan_to_num(), said[name].nan_to_num())
            with contextlib.suppress(NonFinite):  # where the file has such numbers, the run says so
                again.take_step()
