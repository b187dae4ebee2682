"""Promise: kernels compute the same in forked and spawned processes and in several threads, and do not hang; object
code is cached under a hash of all that it depends on; available() reports the kernels in use and the reason.
"""

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

pytestmark = pytest.mark.usefixtures("restore_kernels")
needs_kernels = pytest.mark.skipif(kernels.available().instructions is None, reason=str(kernels.available()))
TIMEOUT = 60  # seconds; a test that takes longer hangs


def results_digest(seed: int = 0) -> bytes:
    """Digest of outputs and gradients of conv2d_relu_max_pool2d and of DocumentCNN.

    The kernels have enough work for several threads. PyTorch's own operators have too little: in a fork of a process
    with threads, they would hang."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(14, 12, 12, 16, generator=generator).permute(0, 3, 1, 2).requires_grad_()
    w = torch.randn(32, 16, 5, 5, generator=generator).requires_grad_()
    out = conv2d_relu_max_pool2d(x, w)
    tensors = [out.detach(), *torch.autograd.grad(out, (x, w), out.detach())]
    images = torch.randn(40, 1, 28, 28, generator=generator)
    model = DocumentCNN(hidden=(20,))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.1, 0.1, generator=generator)
    z = model(images)
    tensors += [z.detach(), *torch.autograd.grad(z, list(model.parameters()), z.detach())]
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in tensors)).digest()


def put_results(queue) -> None:
    torch.set_num_threads(2)
    queue.put((results_digest(), team.single_thread_reason()))


class KernelOutputs(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, n: int) -> tuple[int, bytes]:
        return n, results_digest(n)


@needs_kernels
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_another_process_computes_the_same(method):
    torch.set_num_threads(2)
    expected = results_digest()  # starts the threads, which a fork does not copy
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=put_results, args=(queue,))
    child.start()
    try:
        digest, single_thread_reason = queue.get(timeout=TIMEOUT)
        child.join(TIMEOUT)
    finally:
        child.kill()  # or pytest would wait for a child that hangs
    assert child.exitcode == 0
    assert digest == expected
    assert ("forked" in single_thread_reason) if method == "fork" else single_thread_reason is None
    assert results_digest() == expected


@needs_kernels
def test_workers_of_a_data_loader_compute_the_same():
    torch.set_num_threads(1)  # as in a worker
    expected = [(n, results_digest(n)) for n in range(8)]
    torch.set_num_threads(2)
    results_digest()
    loader = DataLoader(
        KernelOutputs(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=TIMEOUT
    )
    assert [tuple(item) for item in loader] == expected


@needs_kernels
def test_python_threads_compute_the_same():
    torch.set_num_threads(2)
    expected = [results_digest(n) for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(lambda n: results_digest(n % 4), range(40), timeout=TIMEOUT))
    assert digests == expected * 10


@needs_kernels
def test_a_fork_waits_for_the_compiler():
    """In the child, locks that LLVM holds at the fork would never be released."""
    exits = []
    with instruction_set._lock:
        thread = threading.Thread(target=lambda: exits.append(os.waitpid(os.fork() or os._exit(0), 0)))
        thread.start()
        thread.join(0.3)
        assert not exits
    thread.join(TIMEOUT)
    assert exits


@needs_kernels
def test_fewer_threads_than_requested():
    """OpenMP may grant fewer threads; they run all tasks."""
    script = "import torch; torch.set_num_threads(3); from tests.cpu import test_processes as t; "
    script += "print(t.results_digest().hex())"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **limit},
        ).stdout
        for limit in ({}, {"OMP_THREAD_LIMIT": "2"}, {"OMP_THREAD_LIMIT": "1"})
    }  # fmt: skip
    assert len(outputs) == 1


# ----------------------------------------------------------------------------------------------------- cache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MANUALGRAD_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cached_object_code(text: str, instructions: str = "avx2") -> tuple[bytes, bool]:
    """Object code of ``text``, here its bytes, and True if it was compiled rather than read from the cache."""
    compiled = []
    content = jit._cached_object_code(text, instructions, lambda: compiled.append(text) or text.encode())
    return content, bool(compiled)


def test_the_cache_key_depends_on_text_and_instructions(cache):
    assert cached_object_code("one") == (b"one", True)
    assert cached_object_code("one") == (b"one", False)
    assert cached_object_code("two") == (b"two", True)
    assert cached_object_code("one", "avx512") == (b"one", True)
    assert len(list(cache.iterdir())) == 3


def test_a_damaged_file_is_compiled_again(cache):
    cached_object_code("one")
    (path,) = cache.iterdir()
    intact = path.read_bytes()
    for damaged in (intact[:-1], intact[1:], b"", b"x" + intact[1:]):
        path.write_bytes(damaged)
        assert cached_object_code("one") == (b"one", True)
        assert path.read_bytes() == intact


def test_without_a_writable_folder_kernels_are_compiled_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MANUALGRAD_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert cached_object_code("one") == cached_object_code("one") == (b"one", True)


@needs_kernels
def test_an_edit_to_any_source_changes_what_is_compiled(monkeypatch):
    """The cache key is a hash of LLVM's instructions: an edit that changes them, in any file, changes the key."""
    from manualgrad.cpu.ir import vectors
    from manualgrad.cpu.kernels import conv_pool_forward, relu

    before = jit.emit_llvm_ir(8)
    assert before == jit.emit_llvm_ir(8)
    for module, name, replacement in [
        (conv_pool_forward, "INACTIVE", 77),
        (conv_pool_forward, "BLOCK_K", 64),
        (relu, "_grad_z", lambda emit, grad_out, *_: grad_out),
        (vectors, "_alignment", lambda _: 1),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, replacement)
            assert jit.emit_llvm_ir(8) != before, name
    assert jit.emit_llvm_ir(8) == before


# --------------------------------------------------------------------------------------------------- choice


@needs_kernels
def test_available_reports_the_kernels_in_use_and_the_reason():
    for name in jit.instruction_sets():
        kernels.choose(name)
        assert kernels.available().instructions == name
        assert f"kernels in {name} (as chosen)" in str(kernels.available())
    kernels.choose("off")
    assert str(kernels.available()) == "no kernels, formulas compute everything: kernels are switched off"
    kernels.choose("auto")
    assert kernels.available().instructions == jit.instruction_sets()[0]


def test_choose_rejects_kernels_that_are_not_available(monkeypatch):
    with pytest.raises(ValueError, match="'auto', 'avx512', 'avx2', 'off', got 'neon'"):
        kernels.choose("neon")
    monkeypatch.setattr(instruction_set, "instruction_sets", lambda: ("avx2",))
    with pytest.raises(ValueError, match="does not support avx512, only avx2"):
        kernels.choose("avx512")


@pytest.mark.parametrize(
    ("change", "reason"),
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
def test_formulas_compute_everything_without_kernels(change, reason, monkeypatch):
    """On another platform or processor, or without LLVM, nothing is compiled."""
    expected = conv2d_relu_max_pool2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3))
    jit.instruction_sets.cache_clear()
    monkeypatch.setattr(instruction_set, "load_module", lambda _: pytest.fail("something was compiled"))
    with monkeypatch.context() as patch:
        change(patch)
        kernels.choose("auto")
        assert kernels.available().instructions is None
        assert reason in str(kernels.available())
        with pytest.raises(ValueError, match="kernels in avx2 are not available"):
            kernels.choose("avx2")
        assert torch.equal(conv2d_relu_max_pool2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)), expected)
    monkeypatch.undo()
    jit.instruction_sets.cache_clear()


@pytest.mark.parametrize("value", ["avx2", "off", "nonsense"])
def test_the_environment_variable_chooses(value):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), instruction_set.ENVIRONMENT_VARIABLE: value}
    script = "from manualgrad import kernels; print(kernels.available())"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    if value == "nonsense":
        assert "MANUALGRAD_KERNELS=nonsense: kernels must be one of 'auto'" in result.stderr
    else:
        assert result.returncode == 0
        assert value == "avx2" or "switched off" in result.stdout
