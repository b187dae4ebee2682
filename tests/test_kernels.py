"""Promise: a kernel computes what its formula does, on every branch, and each branch is seen to run."""

from __future__ import annotations

import pytest
import torch

from manualgrad.functions.selection import select
from manualgrad.kernels import cpu

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def strange(dtype):
    """Numbers of every kind, and the choice to keep each of them or not."""
    values = torch.tensor([0.0, -0.0, 1.5, -2.0, torch.inf, -torch.inf, torch.nan, 1e-8, 6e4], dtype=dtype)
    return torch.tensor([True, False]).repeat_interleave(len(values)), values.repeat(2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_select_is_where(dtype):
    condition, value = strange(dtype)
    assert cpu.takes(condition, value)
    expected = torch.where(condition, value, 0)
    for selected in (cpu.select(condition, value), select(condition, value)):
        assert selected.dtype == dtype
        assert torch.equal(selected.isnan(), expected.isnan())
        assert torch.equal(selected.nan_to_num(7), expected.nan_to_num(7))
        assert torch.equal(selected.signbit(), expected.signbit())


@pytest.mark.parametrize("shape", [(0, 3), (1,), (), (2, 3, 4, 5)], ids=str)
def test_select_of_any_layout(shape):
    value = torch.randn(shape)
    for layout in (
        value,
        value.T if value.dim() == 2 else value,
        value.expand(2, *shape),
        value.unsqueeze(0)[:, ...],
    ):
        condition = layout > 0
        assert torch.equal(cpu.select(condition, layout), torch.where(condition, layout, 0))


def test_the_formula_serves_where_the_kernel_does_not(monkeypatch):
    def refuse(*_):
        raise AssertionError("the kernel ran")

    monkeypatch.setattr(cpu, "select", refuse)
    value = torch.randn(2, 3)
    with pytest.raises(AssertionError, match="the kernel ran"):
        select(value > 0, value)
    assert torch.equal(select((value > 0)[:1], value), torch.where((value > 0)[:1], value, 0))  # broadcast
    whole = torch.arange(3)
    assert torch.equal(select(whole > 1, whole), torch.tensor([0, 0, 2]))
    batched = torch.vmap(lambda v: select(v > 0, v))(value)
    assert torch.equal(batched, torch.where(value > 0, value, 0))
    assert select(torch.ones(2, dtype=torch.bool, device="meta"), torch.ones(2, device="meta")).device.type == "meta"
