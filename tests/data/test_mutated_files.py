"""Promise: a file with random changes is refused, or read correctly."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manualgrad.data import DataError, load
from manualgrad.data.sources import SOURCES
from tests.data.dataset_files import file_contents, idx, write_files

MUTATED = settings(
    max_examples=600, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def mutated(draw, contents):
    """Draw an index into ``contents`` and that content with a few changes: anywhere, or only after the header."""
    index = draw(st.integers(0, len(contents) - 1))
    changed = bytearray(contents[index])
    if draw(st.booleans()):
        kinds, positions = st.just("flip"), st.integers(16, len(changed) - 1)
    else:
        kinds = st.sampled_from(("set", "flip", "delete", "insert", "cut", "append"))
        positions = st.one_of(st.integers(0, 20), st.integers(0, len(changed)))
    for kind in draw(st.lists(kinds, max_size=3)):
        start, values = draw(positions), draw(st.binary(min_size=1, max_size=4))
        if kind == "set":
            changed[start : start + len(values)] = values
        elif kind == "flip":
            changed[start : start + 1] = bytes(byte ^ 1 << values[0] % 8 for byte in changed[start : start + 1])
        elif kind == "delete":
            del changed[start : start + len(values)]
        elif kind == "insert":
            changed[start:start] = values
        elif kind == "cut":
            del changed[start:]
        else:
            changed += values
    return index, bytes(changed)


def read_idx(content, num_dimensions, dtype):
    """Read an IDX file that has a valid header."""
    shape = np.frombuffer(content, ">u4", num_dimensions, 4)
    return np.frombuffer(content, dtype, offset=4 + 4 * num_dimensions).reshape(shape)


@pytest.mark.parametrize("name, label_format", [("fashion-mnist", (np.uint8, 1)), ("qmnist", (">i4", 2))])
def test_mutated_files_are_read_correctly_or_refused(tmp_path, name, label_format):
    """600 files for each format of labels: 1,200 in all."""
    contents = list(file_contents().values())
    if name == "qmnist":
        for position, count in ((1, 30), (3, 20)):
            contents[position] = idx(np.repeat(np.arange(count, dtype=np.int32) % 10, 8).reshape(count, 8))
    source = SOURCES[name]
    raw = write_files(tmp_path, dict(zip(source.files, contents, strict=True)), name)
    outcomes = Counter()

    @MUTATED
    @given(mutated(contents))
    def check(drawn):
        index, changed = drawn
        (raw / source.files[index]).write_bytes(changed)
        try:
            data = load(name, tmp_path, announce=pytest.fail)
        except DataError:
            data = None
        finally:
            (raw / source.files[index]).write_bytes(contents[index])
        outcomes["refused" if data is None else "read"] += 1
        if data is None:
            assert changed != contents[index], "a valid file was refused"
            return
        split = data.train if index < 2 else data.test
        if index % 2:
            actual, (dtype, num_dimensions) = split.labels.numpy(), label_format
            expected = read_idx(changed, num_dimensions, dtype)
            expected = expected if num_dimensions == 1 else expected[:, 0]
            assert expected.min() >= 0 and expected.max() <= 9
        else:
            actual, expected = split.images[:, 0].numpy(), read_idx(changed, 3, np.uint8)
        assert np.array_equal(actual, expected)

    check()
    assert min(outcomes["refused"], outcomes["read"]) > 50, "both outcomes occur"
