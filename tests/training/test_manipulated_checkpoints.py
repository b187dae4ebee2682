"""Promise: a damaged or manipulated checkpoint is refused with one line, and no code in it runs."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manualgrad import data
from manualgrad.training import run_state
from manualgrad.training.checkpoints import (
    DIGEST_BYTES,
    MAGIC,
    CheckpointError,
    deserialize,
    serialize,
)
from manualgrad.training.nonfinite import NonFiniteError
from manualgrad.training.run import TrainingRun
from manualgrad.training.schema import printable, require_same_structure
from tests.training.checkpoint_runs import make_run, train


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
