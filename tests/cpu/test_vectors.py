"""Promise: each word of the kernels' language means what its docstring says, with 8 lanes and with 16."""

from __future__ import annotations

import pytest
import torch

from manualgrad.cpu import jit
from manualgrad.kernels import available

pytestmark = pytest.mark.skipif(available().instructions is None, reason=str(available()))
pytest.importorskip("llvmlite")
from manualgrad.cpu import team  # noqa: E402
from manualgrad.cpu.ir.values import FLOAT, INT64  # noqa: E402
from manualgrad.cpu.ir.vectors import Emitter  # noqa: E402


@pytest.fixture(params=jit.LANES)
def run(request, monkeypatch, tmp_path):
    """run(write, *arguments): compiles ``write(emit)`` and calls it."""
    if request.param not in jit.instruction_sets():
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("MANUALGRAD_CACHE_DIR", str(tmp_path))

    def compile_and_run(write, *arguments, slots=1):
        monkeypatch.setattr(jit, "_kernels", lambda: {"tried": write})
        code = jit.code.__wrapped__(request.param)
        team.run(code, "tried", slots, [a if isinstance(a, int) else a.data_ptr() for a in arguments])

    compile_and_run.lanes = jit.LANES[request.param]
    return compile_and_run


def test_vectors_are_added_multiplied_and_compared(run):
    a, b = torch.randn(run.lanes), torch.randn(run.lanes)
    a[0], b[1] = torch.nan, torch.nan
    a[2] = b[2]
    out = torch.zeros(9, run.lanes)

    def write(emit: Emitter) -> None:
        names = emit.named(("*a", "*b", "*out"))
        x, y = emit.load(names.a, emit.floats), emit.load(names.b, emit.floats)
        one, zero = emit.number(emit.floats, 1), emit.number(emit.floats, 0)
        results = [x + y, x - y, x * y, x / y, emit.fma(x, y, x)]
        results += [emit.select(c, one, zero) for c in (x < y, x > y, x == y, x.is_nan())]
        for n, value in enumerate(results):
            emit.store(value, names.out + n * emit.bytes_of_vector)

    run(write, a, b, out)
    exact = (a.double() * b.double() + a.double()).float()  # a product of floats is exact in float64
    expected = [a + b, a - b, a * b, a / b, exact, a < b, a > b, a == b, a.isnan()]
    torch.testing.assert_close(out, torch.stack([e.float() for e in expected]), rtol=0, atol=0, equal_nan=True)


def test_whole_numbers(run):
    out = torch.zeros(9, dtype=torch.int64)

    def write(emit: Emitter) -> None:
        a = emit.named(("*out", "a", "b"))
        results = [a.a + a.b, a.a - a.b, a.a * a.b, a.a // a.b, a.a % a.b, a.a & a.b, a.a | a.b, a.a >> 2, a.a << 2]
        for n, value in enumerate(results):
            emit.store(value, a.out + 8 * n)

    run(write, out, 1234567, 89)
    a, b = 1234567, 89
    assert out.tolist() == [a + b, a - b, a * b, a // b, a % b, a & b, a | b, a >> 2, a << 2]


def test_numbers_without_a_sign(run):
    out = torch.zeros(2, dtype=torch.int64)

    def write(emit: Emitter) -> None:
        a = emit.named(("*out", "minus", "five"))
        emit.store(emit.widened(a.minus.below(a.five), INT64), a.out)
        emit.store(emit.widened(a.minus < a.five, INT64), a.out + 8)

    run(write, out, -1, 5)
    assert out.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("start", "stop", "step"), [(0, 5, 1), (2, 9, 3), (0, 0, 1), (7, 3, 1), (4, 5, 4), (-2, 1, 1)]
)
def test_loops(run, start, stop, step):
    out = torch.full((20,), -9, dtype=torch.int64)

    def write(emit: Emitter) -> None:
        a = emit.named(("*out", "start", "stop"))
        count = emit.variable(emit.number(INT64, 0))
        with emit.loop(a.start, a.stop, step) as n:
            emit.store(n, a.out + count.get() * 8)
            count.add(1)

    run(write, out, start, stop)
    expected = list(range(start, stop, step))
    assert out.tolist() == expected + [-9] * (20 - len(expected))


@pytest.mark.parametrize(("count", "size"), [(10, 4), (8, 4), (3, 4), (0, 4), (5, 1)])
def test_parts(run, count, size):
    out = torch.full((20,), -9, dtype=torch.int64)

    def write(emit: Emitter) -> None:
        a = emit.named(("*out", "count"))
        at = emit.variable(emit.number(INT64, 0))
        with emit.each_part(a.count, size) as (start, end):
            for value in (start, end):
                emit.store(value, a.out + at.get() * 8)
                at.add(1)

    run(write, out, count)
    expected = [n for start in range(0, count, size) for n in (start, min(start + size, count))]
    assert out.tolist() == expected + [-9] * (20 - len(expected))


@pytest.mark.parametrize("bits", [0, 1, 0b1010001, 1 << 63, (1 << 64) - 1])
def test_each_bit(run, bits):
    out = torch.full((65,), -9, dtype=torch.int64)

    def write(emit: Emitter) -> None:
        a = emit.named(("*out", "bits"))
        count = emit.variable(emit.number(INT64, 0))
        with emit.each_bit(a.bits) as place:
            emit.store(place, a.out + count.get() * 8)
            count.add(1)

    run(write, out, bits - (bits >> 63 << 64))  # as a number with a sign
    expected = [n for n in range(64) if bits >> n & 1]
    assert out.tolist() == expected + [-9] * (65 - len(expected))


def test_lanes_are_picked_packed_summed_and_narrowed(run):
    low, high = torch.randn(8), torch.randn(8)
    place, from_high = (
        torch.randint(8, (run.lanes,), dtype=torch.int32),
        torch.randint(2, (run.lanes,), dtype=torch.int32),
    )
    picked, total, bits = torch.zeros(run.lanes), torch.zeros(2), torch.zeros(1, dtype=torch.int64)
    small = torch.zeros(run.lanes, dtype=torch.uint8)

    def write(emit: Emitter) -> None:
        a = emit.named(("*low", "*high", "*place", "*from_high", "*picked", "*total", "*bits", "*small"))
        chosen = emit.load(a.from_high, emit.ints) == 1
        values = emit.pick(a.low, a.high, emit.load(a.place, emit.ints), chosen)
        emit.store(values, a.picked)
        emit.store(emit.sum_lanes(values), a.total)
        emit.store(emit.bits(chosen), a.bits)
        emit.store(emit.narrowed(emit.load(a.place, emit.ints) + 250, emit.bytes), a.small)
        wide = emit.widened(emit.load(a.small, emit.bytes), emit.ints)
        emit.store(emit.narrowed(wide, emit.bytes), a.small)
        emit.store(emit.load(a.total, FLOAT), a.total + 4)

    run(write, low, high, place, from_high, picked, total, bits, small)
    expected = torch.where(from_high == 1, high[place.long()], low[place.long()])
    assert torch.equal(picked, expected)
    torch.testing.assert_close(total[0], expected.sum(), rtol=1e-6, atol=1e-6)  # the same sum in another order
    assert bits.item() == sum(1 << n for n in range(run.lanes) if from_high[n])
    assert small.tolist() == [(n + 250) % 256 for n in place.tolist()]


def test_arguments_slots_and_broadcasts(run):
    """A float among the arguments, one row of results for each slot, a number in every lane, and exp, log, double."""
    out = torch.zeros(5, run.lanes)

    def write(emit: Emitter) -> None:
        a = emit.named(("*out", "*source", "factor.0"))
        value = emit.broadcast(a.source + a.slot * 4) * emit.every_lane(a.factor)
        emit.store(value, a.out + a.slot * emit.bytes_of_vector)
        number = emit.rounded(emit.double_of(emit.log(emit.exp(emit.float_of(a.slot)))))
        with emit.when(a.slot == 3):
            emit.store(number, a.out + a.slot * emit.bytes_of_vector)

    source = torch.randn(5)
    run(write, out, source, team.float_bits(0.3), slots=5)
    expected = (source * torch.tensor(0.3)).unsqueeze(1).repeat(1, run.lanes)
    expected[3, 0] = 3
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=0)
