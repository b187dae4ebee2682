"""Promise: each operation of the kernels' language computes what its docstring says, with 8 lanes and with 16."""

from __future__ import annotations

import pytest
import torch

from manualgrad.cpu import jit
from manualgrad.kernels import available

pytestmark = pytest.mark.skipif(available().instructions is None, reason=str(available()))
pytest.importorskip("llvmlite")
from manualgrad.cpu import team  # noqa: E402
from manualgrad.cpu.ir.exponential import exp_nonpositive  # noqa: E402
from manualgrad.cpu.ir.streams import end_streams, stream  # noqa: E402
from manualgrad.cpu.ir.values import FLOAT, INT64  # noqa: E402
from manualgrad.cpu.ir.vectors import Arguments, Emitter  # noqa: E402
from manualgrad.cpu.kernels.run_program import run_program  # noqa: E402
from manualgrad.cpu.signature import FLOAT32, INT, POINTER, kernel  # noqa: E402


@pytest.fixture(params=jit.LANES)
def run(request, monkeypatch, tmp_path):
    """run(body, **arguments) compiles the kernel ``body`` and runs it for every task."""
    if request.param not in jit.instruction_sets():
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("MANUALGRAD_CACHE_DIR", str(tmp_path))

    def compile_and_run(body, num_tasks=1, **arguments):
        monkeypatch.setattr(jit, "group_kernels", lambda group: {"body": body, "run_program": run_program})
        module = jit.load_module.__wrapped__(request.param)
        addresses = {name: a.data_ptr() for name, a in arguments.items() if isinstance(a, torch.Tensor)}
        team.run(module, "body", num_tasks, **(arguments | addresses))

    compile_and_run.lanes = jit.LANES[request.param]
    return compile_and_run


def test_vector_arithmetic_and_comparisons(run):
    x, y = torch.randn(run.lanes), torch.randn(run.lanes)
    x[0], y[1] = torch.nan, torch.nan
    x[2] = y[2]
    out = torch.zeros(9, run.lanes)

    @kernel(x=POINTER, y=POINTER, out=POINTER)
    def body(emit: Emitter, a: Arguments) -> None:
        x, y = emit.load(a.x, emit.float_vector), emit.load(a.y, emit.float_vector)
        one, zero = emit.constant(emit.float_vector, 1), emit.constant(emit.float_vector, 0)
        results = [x + y, x - y, x * y, x / y, emit.fma(x, y, x)]
        results += [emit.select(mask, one, zero) for mask in (x < y, x > y, x == y, x.is_nan())]
        for n, value in enumerate(results):
            emit.store(value, a.out + n * emit.vector_bytes)

    run(body, x=x, y=y, out=out)
    fma = (x.double() * y.double() + x.double()).float()  # a product of floats is exact in float64
    expected = [x + y, x - y, x * y, x / y, fma, x < y, x > y, x == y, x.isnan()]
    torch.testing.assert_close(out, torch.stack([e.float() for e in expected]), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("offset", [0, 4])
def test_stores_past_the_caches_write_at_any_address(run, offset):
    x, out = torch.randn(run.lanes), torch.zeros(run.lanes + 17)
    start = -out.data_ptr() % 64 + offset

    @kernel(x=POINTER, out=POINTER, start=INT)
    def body(emit: Emitter, a: Arguments) -> None:
        stream(emit, emit.load(a.x, emit.float_vector), a.out + a.start)
        end_streams(emit)

    run(body, x=x, out=out, start=start)
    assert torch.equal(out[start // 4 :][: run.lanes], x)
    assert out.count_nonzero() == run.lanes


def test_exp_of_nonpositive_numbers(run):
    x = -torch.cat(
        [torch.linspace(0, 110, 16 * 4096), torch.tensor([0.0, 1e-30, 87.3, 103.9, 104.1, 1e30, torch.inf, 1])]
    )
    x = torch.cat([x, torch.full((8,), torch.nan)])
    out, single = torch.zeros(2, len(x))

    @kernel(x=POINTER, out=POINTER, single=POINTER, numel=INT)
    def body(emit: Emitter, a: Arguments) -> None:
        with emit.loop(0, a.numel, emit.lanes) as n:
            emit.store(exp_nonpositive(emit, emit.load(a.x + n * 4, emit.float_vector)), a.out + n * 4)
        with emit.loop(0, a.numel) as n:
            emit.store(exp_nonpositive(emit, emit.load(a.x + n * 4, FLOAT)), a.single + n * 4)

    run(body, x=x, out=out, single=single, numel=len(x))
    expected = x.double().exp()
    ulp = torch.finfo(torch.float32).eps * 2 ** expected.log2().floor().clamp(min=-126)
    assert (((out - expected).abs() <= ulp) | x.isnan()).all()
    assert torch.equal(out.nan_to_num(7), single.nan_to_num(7))
    assert out.isnan().sum() == 8
    assert out[0] == 1
    assert out[-10] == 0, "e to the power of minus infinity"


@pytest.mark.parametrize("count", [1, 5, 7])
def test_masked_vectors_and_largest_lane(run, count):
    x, out = torch.randn(run.lanes), torch.zeros(3, run.lanes)

    @kernel(x=POINTER, out=POINTER, count=INT)
    def body(emit: Emitter, a: Arguments) -> None:
        vector = emit.masked_load(a.x, emit.first_lanes(a.count), -7)
        emit.store(vector, a.out)
        emit.masked_store(vector, a.out + emit.vector_bytes, emit.first_lanes(a.count))
        emit.store(emit.reduce_max(vector), a.out + 2 * emit.vector_bytes)

    run(body, x=x, out=out, count=count)
    loaded = torch.cat([x[:count], torch.full((run.lanes - count,), -7.0)])
    assert torch.equal(out[0], loaded)
    assert torch.equal(out[1], torch.where(torch.arange(run.lanes) < count, loaded, 0))
    assert out[2, 0] == loaded.max()


def test_integer_arithmetic(run):
    out = torch.zeros(9, dtype=torch.int64)

    @kernel(out=POINTER, x=INT, y=INT)
    def body(emit: Emitter, a: Arguments) -> None:
        results = [a.x + a.y, a.x - a.y, a.x * a.y, a.x // a.y, a.x % a.y, a.x & a.y, a.x | a.y, a.x >> 2, a.x << 2]
        for n, value in enumerate(results):
            emit.store(value, a.out + 8 * n)

    run(body, out=out, x=1234567, y=89)
    x, y = 1234567, 89
    assert out.tolist() == [x + y, x - y, x * y, x // y, x % y, x & y, x | y, x >> 2, x << 2]


def test_unsigned_and_signed_comparison(run):
    out = torch.zeros(2, dtype=torch.int64)

    @kernel(out=POINTER, minus_one=INT, five=INT)
    def body(emit: Emitter, a: Arguments) -> None:
        emit.store(emit.zext(a.minus_one.ult(a.five), INT64), a.out)
        emit.store(emit.zext(a.minus_one < a.five, INT64), a.out + 8)

    run(body, out=out, minus_one=-1, five=5)
    assert out.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("start", "stop", "step"), [(0, 5, 1), (2, 9, 3), (0, 0, 1), (7, 3, 1), (4, 5, 4), (-2, 1, 1)]
)
def test_loop(run, start, stop, step):
    out = torch.full((20,), -9, dtype=torch.int64)

    @kernel(out=POINTER, start=INT, stop=INT)
    def body(emit: Emitter, a: Arguments) -> None:
        count = emit.variable(emit.constant(INT64, 0))
        with emit.loop(a.start, a.stop, step) as n:
            emit.store(n, a.out + count.get() * 8)
            count.add(1)

    run(body, out=out, start=start, stop=stop)
    expected = list(range(start, stop, step))
    assert out.tolist() == expected + [-9] * (20 - len(expected))


@pytest.mark.parametrize(("count", "size"), [(10, 4), (8, 4), (3, 4), (0, 4), (5, 1)])
def test_block_loop(run, count, size):
    out = torch.full((20,), -9, dtype=torch.int64)

    @kernel(out=POINTER, count=INT)
    def body(emit: Emitter, a: Arguments) -> None:
        position = emit.variable(emit.constant(INT64, 0))
        with emit.block_loop(a.count, size) as block:
            for bound in block:
                emit.store(bound, a.out + position.get() * 8)
                position.add(1)

    run(body, out=out, count=count)
    expected = [n for start in range(0, count, size) for n in (start, min(start + size, count))]
    assert out.tolist() == expected + [-9] * (20 - len(expected))


@pytest.mark.parametrize("bits", [0, 1, 0b1010001, 1 << 63, (1 << 64) - 1])
def test_bit_loop(run, bits):
    out = torch.full((65,), -9, dtype=torch.int64)

    @kernel(out=POINTER, bits=INT)
    def body(emit: Emitter, a: Arguments) -> None:
        count = emit.variable(emit.constant(INT64, 0))
        with emit.bit_loop(a.bits) as bit:
            emit.store(bit, a.out + count.get() * 8)
            count.add(1)

    run(body, out=out, bits=bits - (bits >> 63 << 64))  # as a signed integer
    expected = [n for n in range(64) if bits >> n & 1]
    assert out.tolist() == expected + [-9] * (65 - len(expected))


def test_permute_reduce_add_bitmask_and_trunc(run):
    low, high = torch.randn(8), torch.randn(8)
    index = torch.randint(8, (run.lanes,), dtype=torch.int32)
    from_high = torch.randint(2, (run.lanes,), dtype=torch.int32)
    permuted, total, bits = torch.zeros(run.lanes), torch.zeros(2), torch.zeros(1, dtype=torch.int64)
    truncated = torch.zeros(run.lanes, dtype=torch.uint8)

    @kernel(
        low=POINTER,
        high=POINTER,
        index=POINTER,
        from_high=POINTER,
        permuted=POINTER,
        total=POINTER,
        bits=POINTER,
        truncated=POINTER,
    )
    def body(emit: Emitter, a: Arguments) -> None:
        from_high = emit.load(a.from_high, emit.int_vector) == 1
        values = emit.permute(a.low, a.high, emit.load(a.index, emit.int_vector), from_high)
        emit.store(values, a.permuted)
        emit.store(emit.reduce_add(values), a.total)
        emit.store(emit.bitmask(from_high), a.bits)
        emit.store(emit.trunc(emit.load(a.index, emit.int_vector) + 250, emit.byte_vector), a.truncated)
        extended = emit.zext(emit.load(a.truncated, emit.byte_vector), emit.int_vector)
        emit.store(emit.trunc(extended, emit.byte_vector), a.truncated)
        emit.store(emit.load(a.total, FLOAT), a.total + 4)

    run(
        body, low=low, high=high, index=index, from_high=from_high, permuted=permuted, total=total, bits=bits,
        truncated=truncated,
    )  # fmt: skip
    expected = torch.where(from_high == 1, high[index.long()], low[index.long()])
    assert torch.equal(permuted, expected)
    torch.testing.assert_close(total[0], expected.sum(), rtol=1e-6, atol=1e-6)  # the same sum in another order
    assert bits.item() == sum(1 << n for n in range(run.lanes) if from_high[n])
    assert truncated.tolist() == [(n + 250) % 256 for n in index.tolist()]


def test_arguments_tasks_and_splats(run):
    """A float argument, one row of results per task, splats of a value and of memory, and exp, log and double."""
    out = torch.zeros(5, run.lanes)

    @kernel(out=POINTER, source=POINTER, factor=FLOAT32)
    def body(emit: Emitter, a: Arguments) -> None:
        value = emit.load_splat(a.source + a.task * 4) * emit.splat(a.factor)
        emit.store(value, a.out + a.task * emit.vector_bytes)
        number = emit.fptrunc(emit.fpext(emit.log(emit.exp(emit.sitofp(a.task)))))
        with emit.if_then(a.task == 3):
            emit.store(number, a.out + a.task * emit.vector_bytes)

    source = torch.randn(5)
    run(body, num_tasks=5, out=out, source=source, factor=0.3)
    expected = (source * torch.tensor(0.3)).unsqueeze(1).repeat(1, run.lanes)
    expected[3, 0] = 3
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=0)
