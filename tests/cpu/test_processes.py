"""Promise: forks, spawned processes and several threads get the same numbers from the kernels, and do not hang; what
is cached is used only for what it was made of; and one is told which kernels there are."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from manualgrad import DocumentCNN, kernels
from manualgrad.cpu import instruction_set, jit, team
from manualgrad.ops.conv_relu_pool import conv2d_relu_max_pool2d

pytestmark = pytest.mark.usefixtures("kernels_as_before")
needs_kernels = pytest.mark.skipif(kernels.available().instructions is None, reason=str(kernels.available()))
TIMEOUT = 60  # seconds, after which something hangs


def numbers(seed: int = 0) -> bytes:
    """Outputs and gradients of one stage and of the network, enough work for several threads, of which torch's own
    operators have too little: those hang in a fork of a process that had threads."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(14, 12, 12, 16, generator=generator).permute(0, 3, 1, 2).requires_grad_()
    w = torch.randn(32, 16, 5, 5, generator=generator).requires_grad_()
    out = conv2d_relu_max_pool2d(x, w)
    found = [out.detach(), *torch.autograd.grad(out, (x, w), out.detach())]
    images = torch.randn(40, 1, 28, 28, generator=generator)
    model = DocumentCNN(hidden=(20,))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.1, 0.1, generator=generator)
    z = model(images)
    found += [z.detach(), *torch.autograd.grad(z, list(model.parameters()), z.detach())]
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in found)).digest()


def in_child(queue) -> None:
    torch.set_num_threads(2)
    queue.put((numbers(), team.single_thread_reason()))


class PlanBuilder(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, n: int) -> tuple[int, bytes]:
        return n, numbers(n)


@needs_kernels
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_another_process_gets_the_same(method):
    torch.set_num_threads(2)
    expected = numbers()  # so that there are threads, which a fork does not copy
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=in_child, args=(queue,))
    child.start()
    try:
        found, alone = queue.get(timeout=TIMEOUT)
        child.join(TIMEOUT)
    finally:
        child.kill()  # else a child that hangs would be waited for
    assert child.exitcode == 0
    assert found == expected
    assert ("forked" in alone) if method == "fork" else alone is None
    assert numbers() == expected


@needs_kernels
def test_workers_of_a_data_loader_get_the_same():
    torch.set_num_threads(1)  # as workers have it
    expected = [(n, numbers(n)) for n in range(8)]
    torch.set_num_threads(2)
    numbers()
    loader = DataLoader(
        PlanBuilder(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=TIMEOUT
    )
    assert [tuple(found) for found in loader] == expected


@needs_kernels
def test_threads_get_the_same():
    torch.set_num_threads(2)
    expected = [numbers(n) for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: numbers(n % 4), range(40), timeout=TIMEOUT))
    assert found == expected * 10


@needs_kernels
def test_a_fork_waits_for_the_compiler():
    """LLVM's locks, held at a fork, would stay so in the child."""
    seen = []
    with instruction_set._lock:
        thread = threading.Thread(target=lambda: seen.append(os.waitpid(os.fork() or os._exit(0), 0)))
        thread.start()
        thread.join(0.3)
        assert not seen
    thread.join(TIMEOUT)
    assert seen


@needs_kernels
def test_fewer_threads_than_were_asked_for():
    """OpenMP may grant fewer; every slot is computed all the same."""
    program = "import torch; torch.set_num_threads(3); import tests.cpu.test_processes as t; print(t.numbers().hex())"
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **limit},
        ).stdout
        for limit in ({}, {"OMP_THREAD_LIMIT": "2"}, {"OMP_THREAD_LIMIT": "1"})
    }  # fmt: skip
    assert len(found) == 1


# ----------------------------------------------------------------------------------------------------- cache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MANUALGRAD_CACHE_DIR", str(tmp_path / "made"))
    return tmp_path / "made"


def made(text: str, cache, instructions: str = "avx2") -> tuple[bytes, bool]:
    """What the cache gives for these instructions of LLVM's, and whether it had to be made."""
    fresh = []
    content = jit._cached(text, instructions, lambda: fresh.append(text) or text.encode())
    return content, bool(fresh)


def test_the_cache_notices_every_change(cache):
    assert made("one", cache) == (b"one", True)
    assert made("one", cache) == (b"one", False)
    assert made("two", cache) == (b"two", True)
    assert made("one", cache, "avx512") == (b"one", True)
    assert len(list(cache.iterdir())) == 3


def test_a_damaged_file_is_made_anew(cache):
    made("one", cache)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[1:], b"", b"x" + whole[1:]):
        path.write_bytes(damaged)
        assert made("one", cache) == (b"one", True)
        assert path.read_bytes() == whole


def test_without_a_place_to_write_kernels_are_made_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MANUALGRAD_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert made("one", None) == made("one", None) == (b"one", True)


@needs_kernels
def test_an_edit_to_any_source_changes_what_is_compiled(monkeypatch):
    """What is cached is named after LLVM's instructions: an edit that changes them, in whichever file, is seen."""
    from manualgrad.cpu.ir import vectors
    from manualgrad.cpu.kernels import conv_pool_forward, relu

    before = jit.emitted(8)
    assert before == jit.emitted(8)
    for module, name, other in [
        (conv_pool_forward, "DEAD", 77),
        (conv_pool_forward, "SUMMED", 64),
        (relu, "_derivative", lambda emit, g, *_: g),
        (vectors, "_alignment", lambda _: 1),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, other)
            assert jit.emitted(8) != before, name
    assert jit.emitted(8) == before


# ----------------------------------------------------------------------------------------------- what there is


@needs_kernels
def test_one_is_told_what_is_used_and_why():
    for name in jit.instruction_sets():
        kernels.choose(name)
        assert kernels.available().instructions == name
        assert f"kernels in {name} (as was chosen)" in str(kernels.available())
    kernels.choose("off")
    assert str(kernels.available()) == "no kernels, formulas serve: they were switched off"
    kernels.choose("auto")
    assert kernels.available().instructions == jit.instruction_sets()[0]


def test_what_is_not_there_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="'auto', 'avx512', 'avx2', 'off', got 'neon'"):
        kernels.choose("neon")
    monkeypatch.setattr(instruction_set, "instruction_sets", lambda: ("avx2",))
    with pytest.raises(ValueError, match="does not have what avx512 needs; it has avx2"):
        kernels.choose("avx512")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda patch: patch.setattr(sys, "platform", "darwin"), "this is darwin on"),
        (lambda patch: patch.setattr(jit.platform, "machine", lambda: "aarch64"), "on aarch64"),
        (lambda patch: patch.setitem(sys.modules, "llvmlite.binding", None), "llvmlite cannot be imported"),
        (
            lambda patch: patch.setattr("llvmlite.binding.get_host_cpu_features", lambda: {"avx": True}),
            "the processor lacks avx2, bmi",
        ),
    ],
)
def test_where_there_are_none_formulas_serve(change, why, monkeypatch):
    """The processor is looked at before anything is compiled: here it is another one, or LLVM is missing."""
    expected = conv2d_relu_max_pool2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3))
    jit.instruction_sets.cache_clear()
    monkeypatch.setattr(instruction_set, "code", lambda _: pytest.fail("something was compiled"))
    with monkeypatch.context() as patch:
        change(patch)
        kernels.choose("auto")
        assert kernels.available().instructions is None
        assert why in str(kernels.available())
        with pytest.raises(ValueError, match="no kernels in avx2 here"):
            kernels.choose("avx2")
        assert torch.equal(conv2d_relu_max_pool2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)), expected)
    monkeypatch.undo()
    jit.instruction_sets.cache_clear()


@pytest.mark.parametrize("value", ["avx2", "off", "nonsense"])
def test_the_environment_chooses(value):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), instruction_set.VARIABLE: value}
    program = "from manualgrad import kernels; print(kernels.available())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    if value == "nonsense":
        assert "MANUALGRAD_KERNELS=nonsense: kernels are 'auto'" in done.stderr
    else:
        assert done.returncode == 0
        assert value == "avx2" or "switched off" in done.stdout
