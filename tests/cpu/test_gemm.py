"""Promise: the kernels for matrix products are right for every size, and a program runs region after region."""

from __future__ import annotations

import pytest
import torch

from manualgrad import kernels
from manualgrad.cpu import instruction_set, jit, team
from manualgrad.cpu.program import Program, WorkspaceLayout
from manualgrad.cpu.signature import BufferRef, KernelCall

INSTRUCTIONS = jit.instruction_sets() if kernels.available().instructions else ()
pytestmark = [
    pytest.mark.skipif(not INSTRUCTIONS, reason=str(kernels.available())),
    pytest.mark.usefixtures("restore_kernels"),
]
SIZES = [(1, 1, 1), (7, 17, 3), (32, 512, 128), (9, 100, 13), (300, 31, 7), (0, 16, 4), (5, 0, 4)]  # (N, in, out)


@pytest.fixture(params=INSTRUCTIONS)
def module(request):
    kernels.choose(request.param)
    yield instruction_set.current_module()
    kernels.choose("auto")


def every_case(test):
    """Run ``test`` with integers and fractions, one task and several, and all sizes."""
    test = pytest.mark.parametrize("sizes", SIZES, ids=str)(test)
    test = pytest.mark.parametrize("num_tasks", [1, 3])(test)
    return pytest.mark.parametrize("integers", [True, False])(test)


def random_tensor(*shape: int, integers: bool) -> torch.Tensor:
    return torch.randint(-3, 4, shape).float() if integers else torch.randn(shape)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, terms: int, integers: bool) -> None:
    """Sums of integers are exact; others differ at most by the rounding of ``terms`` terms."""
    if integers:
        assert torch.equal(actual.double(), expected)
    else:
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6 * max(1, terms) ** 0.5)


def run_gemm_nt(module, num_tasks, x, weight, bias, out) -> None:
    rows, out_features = out.shape
    team.run(
        module, "gemm_nt", num_tasks, x=x.data_ptr(), weight=weight.data_ptr(), bias=bias.data_ptr(),
        out=out.data_ptr(), rows=rows, share=-(-rows // num_tasks), in_features=x.shape[1], out_features=out_features,
    )  # fmt: skip


def run_gemm_strided(module, num_tasks, lhs, rhs, out) -> None:
    rows, columns = out.shape
    team.run(
        module, "gemm_strided", num_tasks, lhs=lhs.data_ptr(), row_stride=lhs.stride(0), inner_stride=lhs.stride(1),
        rhs=rhs.data_ptr(), out=out.data_ptr(), rows=rows, share=-(-rows // num_tasks), inner_size=len(rhs),
        columns=columns,
    )  # fmt: skip


@every_case
def test_gemm_nt(module, sizes, num_tasks, integers):
    rows, in_features, out_features = sizes
    x, w = (random_tensor(n, in_features, integers=integers) for n in (rows, out_features))
    b, out = random_tensor(out_features, integers=integers), torch.full((rows, out_features), torch.nan)
    run_gemm_nt(module, num_tasks, x, w, b, out)
    assert_close(out, torch.addmm(b.double(), x.double(), w.double().t()), in_features, integers)  # eq. (6), (17)


@every_case
def test_gemm_strided(module, sizes, num_tasks, integers):
    rows, in_features, out_features = sizes
    x, w = (random_tensor(n, in_features, integers=integers) for n in (rows, out_features))
    g = random_tensor(rows, out_features, integers=integers)
    dx, dw = torch.full((rows, in_features), torch.nan), torch.full((out_features, in_features), torch.nan)
    run_gemm_strided(module, num_tasks, g, w, dx)
    run_gemm_strided(module, num_tasks, g.t(), x, dw)
    assert_close(dx, g.double() @ w.double(), out_features, integers)  # eq. (7)
    assert_close(dw, g.double().t() @ x.double(), rows, integers)  # eq. (8)


@pytest.mark.parametrize("shape", [(1, 512, 64), (2000, 16, 16)], ids=str)
def test_errors_are_at_most_twice_natives(module, shape):
    rows, in_features, out_features = shape
    x, w, b = torch.randn(rows, in_features), torch.randn(out_features, in_features), torch.zeros(out_features)
    g, out, dw = torch.randn(rows, out_features), torch.empty(rows, out_features), torch.empty_like(w)
    run_gemm_nt(module, 1, x, w, b, out)
    run_gemm_strided(module, 1, g.t(), x, dw)
    for ours, native, exact in (
        (out, x @ w.t(), x.double() @ w.double().t()),
        (dw, g.t() @ x, g.double().t() @ x.double()),
    ):
        assert (ours - exact).norm() <= 2 * (native - exact).norm() + 1e-7 * exact.norm()


@pytest.mark.parametrize("numel", [0, 1, 15, 16, 50])
def test_relu_forward(module, numel):
    z = torch.randn(numel)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan])[:numel]
    z[: len(special)] = special
    out = torch.full((numel,), 7.0)
    team.run(module, "relu_forward", 2, z=z.data_ptr(), out=out.data_ptr(), numel=numel, share=-(-numel // 2))
    torch.testing.assert_close(out, z.clamp(min=0), rtol=0, atol=0, equal_nan=True)  # eq. (9)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_region_begins_when_the_region_before_is_done(module, threads):
    """Each of many regions reads what tasks of other threads wrote in the region before."""
    torch.set_num_threads(threads)
    numel, copies = 4096, 60
    layout = WorkspaceLayout(a=4 * numel, b=4 * numel)
    workspace = layout.allocate()
    one, start = torch.ones(1), torch.arange(numel, dtype=torch.float32)
    shift = numel // 4

    def rotated_copy(source: BufferRef, target: BufferRef) -> list[KernelCall]:
        """Two products with 1, which copy ``source``, rotated by ``shift``."""
        lhs = {"lhs": one.data_ptr(), "row_stride": 0, "inner_stride": 0, "rows": 1, "share": 1, "inner_size": 1}
        return [
            module.call("gemm_strided", rhs=source + 4 * shift, out=target, columns=numel - shift, **lhs),
            module.call("gemm_strided", rhs=source, out=target + 4 * (numel - shift), columns=shift, **lhs),
        ]

    regions = []
    for n in range(copies):
        source, target = BufferRef("start" if n == 0 else "ab"[n % 2]), BufferRef("ab"[(n + 1) % 2])
        regions += [team.ParallelRegion(1, [call]) for call in rotated_copy(source, target)]
    Program(module, threads, regions, ["start", "a", "b"]).run([start.data_ptr(), *layout.addresses(workspace)])
    result = layout.buffer(workspace, "ab"[copies % 2], (numel,))
    assert torch.equal(result, start.roll(-shift * copies))


def test_buffers_of_a_workspace_do_not_overlap():
    layout = WorkspaceLayout(a=1, b=0, c=65, d=4)
    assert list(layout.offsets.values()) == [0, 64, 64, 192]
    assert layout.allocate().shape == (layout.nbytes,) == (256,)
