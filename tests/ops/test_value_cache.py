"""Promise: a cached result is that of the same values of the same types, and of nothing else."""

from __future__ import annotations

import pytest
import torch

from manualgrad import conv2d
from manualgrad.ops.conv2d_geometry import known_conv2d_geometry
from manualgrad.ops.value_cache import cached_by_value


def test_values_are_told_apart_by_type_and_only_exact_ones_are_cached():
    calls = []

    @cached_by_value
    def first(*values: object) -> object:
        calls.append(values)
        return values[0]

    for value in (1, True, 1.0, "1", (1, 2), torch.Size((3, 4)), None):
        for _ in range(2):
            assert first(value) == value and type(first(value)) is type(value)
    assert len(calls) == 7
    for value in ((1, True), (1.0, 2), [1, 2]):
        assert first(value) is value and first(value) is value
    assert len(calls) == 13


def test_an_argument_that_equals_a_cached_one_is_still_refused():
    x, w = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 2, 2)
    conv2d(x, w, None, (1, 1), 1, 1, 1)
    with pytest.raises(ValueError, match="groups must be an integer >= 1, got True"):
        conv2d(x, w, None, (1, 1), 1, 1, True)
    with pytest.raises(ValueError, match=r"stride must be .*got \(1.0, 1\)"):
        conv2d(x, w, None, (1.0, 1), 1, 1, 1)


def test_only_the_same_arguments_of_a_convolution_are_known():
    x, w, stride = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 2, 2), [1, 1]
    options = ((1, 1), 1, 1, 1, True, True)
    assert conv2d(x, w, None, *options[:4]).shape == (1, 3, 5, 5)
    geometry = known_conv2d_geometry(x, w, None, options)
    assert geometry is not None and geometry.windows.padding == (1, 1, 1, 1)
    others = ((x.double(), w, None), (x, w, torch.zeros(3)), (x, w, 1.0), (x.bfloat16(), w, None))
    for tensors in others:
        assert known_conv2d_geometry(*tensors, options) is None
    with torch.autocast("cpu"):
        assert known_conv2d_geometry(x, w, None, options) is None
        assert conv2d(x, w, None, *options[:4]).dtype is torch.bfloat16
    with pytest.raises(TypeError, match="one dtype"):
        conv2d(x.double(), w, None, *options[:4])
    assert conv2d(x, w, None, stride).shape == (1, 3, 3, 3)
    stride[:] = 2, 2  # a list can change
    assert conv2d(x, w, None, stride).shape == (1, 3, 2, 2)
