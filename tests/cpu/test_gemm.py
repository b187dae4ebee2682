"""Promise: the kernels for matrix products give them, whatever the sizes, and a program runs stage after stage."""

from __future__ import annotations

import pytest
import torch

from manualgrad import kernels
from manualgrad.cpu import instruction_set, jit, team
from manualgrad.cpu.program import BufferRef, Program, WorkspaceLayout

INSTRUCTIONS = jit.instruction_sets() if kernels.available().instructions else ()
pytestmark = pytest.mark.skipif(not INSTRUCTIONS, reason=str(kernels.available()))
SIZES = [(1, 1, 1), (7, 17, 3), (32, 512, 128), (9, 100, 13), (300, 31, 7), (0, 16, 4), (5, 0, 4)]  # B, I, J


@pytest.fixture(params=INSTRUCTIONS)
def code(request):
    kernels.choose(request.param)
    yield instruction_set.in_use()
    kernels.choose("auto")


def drawn(*shape: int, whole: bool) -> torch.Tensor:
    return torch.randint(-3, 4, shape).float() if whole else torch.randn(shape)


def close(found: torch.Tensor, right: torch.Tensor, terms: int, whole: bool) -> None:
    """Whole numbers are exact; else an error of the size that rounding each of the sums' terms makes."""
    if whole:
        assert torch.equal(found.double(), right)
    else:
        torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-6 * max(1, terms) ** 0.5)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_rows_with_rows(code, sizes, slots, whole):
    rows, inputs, outputs = sizes
    x, w, b = drawn(rows, inputs, whole=whole), drawn(outputs, inputs, whole=whole), drawn(outputs, whole=whole)
    out = torch.full((rows, outputs), torch.nan)
    arguments = [*(t.data_ptr() for t in (x, w, b, out)), rows, -(-rows // slots), inputs, outputs]
    team.run(code, "row_products", slots, arguments)
    close(out, torch.addmm(b.double(), x.double(), w.double().t()), inputs, whole)  # eq. (6), (17)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_rows_with_columns(code, sizes, slots, whole):
    rows, inputs, outputs = sizes
    x, w, g = drawn(rows, inputs, whole=whole), drawn(outputs, inputs, whole=whole), drawn(rows, outputs, whole=whole)
    dx, dw = torch.full((rows, inputs), torch.nan), torch.full((outputs, inputs), torch.nan)
    share = -(-rows // slots), -(-outputs // slots)
    arguments = [g.data_ptr(), outputs, 1, w.data_ptr(), dx.data_ptr(), rows, share[0], outputs, inputs]
    team.run(code, "column_products", slots, arguments)
    arguments = [g.data_ptr(), 1, outputs, x.data_ptr(), dw.data_ptr(), outputs, share[1], rows, inputs]
    team.run(code, "column_products", slots, arguments)
    close(dx, g.double() @ w.double(), outputs, whole)  # eq. (7)
    close(dw, g.double().t() @ x.double(), rows, whole)  # eq. (8)


@pytest.mark.parametrize("shape", [(1, 512, 64), (2000, 16, 16)], ids=str)
def test_their_error_is_at_most_twice_natives(code, shape):
    rows, inputs, outputs = shape
    x, w, b, g = (
        torch.randn(rows, inputs),
        torch.randn(outputs, inputs),
        torch.zeros(outputs),
        torch.randn(rows, outputs),
    )
    out, dw = torch.empty(rows, outputs), torch.empty(outputs, inputs)
    team.run(code, "row_products", 1, [*(t.data_ptr() for t in (x, w, b, out)), rows, rows, inputs, outputs])
    arguments = [g.data_ptr(), 1, outputs, x.data_ptr(), dw.data_ptr(), outputs, outputs, rows, inputs]
    team.run(code, "column_products", 1, arguments)
    for found, native, right in (
        (out, x @ w.t(), x.double() @ w.double().t()),
        (dw, g.t() @ x, g.double().t() @ x.double()),
    ):
        assert (found - right).norm() <= 2 * (native - right).norm() + 1e-7 * right.norm()


@pytest.mark.parametrize("floats", [0, 1, 15, 16, 50])
def test_relu_forward(code, floats):
    z = torch.randn(floats)
    strange = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan])[:floats]
    z[: len(strange)] = strange
    out = torch.full((floats,), 7.0)
    team.run(code, "relu_forward", 2, [z.data_ptr(), out.data_ptr(), floats, -(-floats // 2)])
    torch.testing.assert_close(out, z.clamp(min=0), rtol=0, atol=0, equal_nan=True)  # eq. (9)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_stage_begins_when_the_one_before_is_done(code, threads):
    """Each of many stages reads all that the one before wrote, in slots that other threads wrote."""
    torch.set_num_threads(threads)
    floats, stages = 4096, 60
    layout = WorkspaceLayout(a=4 * floats, b=4 * floats)
    piece = layout.new()
    one, start = torch.ones(1), torch.arange(floats, dtype=torch.float32)
    # out_i = 1 · v_(floats − share − i ...): each slot copies another slot's share
    share = floats // 4

    def copy(source: BufferRef, to: BufferRef) -> list[tuple[int, list]]:
        arguments = [one.data_ptr(), 0, 0, source, to, 1, 1, 1]
        kernel = code.addresses["column_products"]
        return [(kernel, [*arguments[:3], source + 4 * share, to, 1, 1, 1, floats - share]),
                (kernel, [*arguments[:3], source, to + 4 * (floats - share), 1, 1, 1, share])]  # fmt: skip

    program = []
    for n in range(stages):
        source, to = (BufferRef("start" if n == 0 else "ab"[n % 2]), BufferRef("ab"[(n + 1) % 2]))
        program += [team.ParallelRegion(1, [step]) for step in copy(source, to)]
    Program(code, threads, program, ["start", "a", "b"]).run([start.data_ptr(), *layout.addresses(piece)])
    last = "ab"[stages % 2]
    begin = layout.offsets[last]
    found = piece[begin : begin + 4 * floats].view(torch.float32)
    assert torch.equal(found, start.roll(-share * stages))


def test_parts_of_a_piece_do_not_overlap():
    layout = WorkspaceLayout(a=1, b=0, c=65, d=4)
    assert list(layout.offsets.values()) == [0, 64, 64, 192]
    assert layout.new().shape == (layout.bytes,) == (256,)
