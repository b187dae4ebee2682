"""Promise: kernels compute the same in forked and spawned processes and in several threads, and do not hang; where
they cannot run, formulas compute everything; available() reports the kernels in use and the reason.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.abc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from manualgrad import DocumentCNN, kernels
from manualgrad.cpu import instruction_set, jit, team
from manualgrad.functional import conv2d, max_pool2d
from manualgrad.ops.conv_relu_pool import conv2d_relu_max_pool2d

pytestmark = pytest.mark.usefixtures("restore_kernels")
needs_kernels = pytest.mark.skipif(kernels.available().instructions is None, reason=str(kernels.available()))
TIMEOUT = 60  # seconds; a test that takes longer hangs


@pytest.fixture
def backward_in_a_fork() -> None:
    """Skip where PyTorch refuses a backward in a fork, as it does after a backward on a machine with a GPU."""

    def run_backward() -> int:
        torch.ones((), requires_grad=True).backward()
        return 0

    run_backward()
    if exit_code_of_fork(run_backward):
        pytest.skip(
            "PyTorch refuses a backward in a fork of this process; before tests that compile a model, and with "
            "CUDA_VISIBLE_DEVICES= in the environment, this test runs"
        )


@cache
def network(seed: int) -> DocumentCNN:
    """A network, made once: its first weights take a lock of PyTorch's, which a fork may find taken for ever."""
    generator = torch.Generator().manual_seed(seed)
    model = DocumentCNN(hidden=(20,))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.1, 0.1, generator=generator)
    return model


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
    model = network(seed)
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
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_another_process_computes_the_same(method):
    assert_a_process_computes_the_same(method)


@needs_kernels
@pytest.mark.usefixtures("backward_in_a_fork")
def test_a_fork_computes_the_same():
    assert_a_process_computes_the_same("fork")


def assert_a_process_computes_the_same(method: str) -> None:
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
@pytest.mark.usefixtures("backward_in_a_fork")
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


def layers_digest(n: int) -> bytes:
    """Digest of outputs and gradients of general and depthwise convolutions and of max-pooling, of sizes by ``n``."""
    generator = torch.Generator().manual_seed(n)
    channels, size = (3, 40, 17, 24)[n % 4], (31, 8, 22)[n % 3]
    x = torch.randn(1 + n % 5, channels, size, size, generator=generator).requires_grad_()
    w = torch.randn(16, channels, 3, 3, generator=generator).requires_grad_()
    depthwise = torch.randn(16, 1, 3, 3, generator=generator).requires_grad_()
    z = max_pool2d(conv2d(x, w, padding=1, stride=1 + n % 2), 3, 2, 1)
    z = conv2d(z, depthwise, padding=1, groups=16)
    grads = torch.autograd.grad(z, (x, w, depthwise), z.detach())
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in (z.detach(), *grads))).digest()


@needs_kernels
def test_python_threads_compute_layers_of_growing_and_shrinking_sizes_the_same():
    torch.set_num_threads(2)
    expected = [layers_digest(n) for n in range(60)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(layers_digest, range(60), timeout=TIMEOUT)) == expected


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


def exit_code_of_fork(run: Callable[[], int]) -> int:
    """Return the exit code ``run()`` of a forked process, or −SIGALRM if it does not end."""
    pid = os.fork()
    if not pid:
        code = 99  # an exception, whose traceback is printed
        try:
            signal.alarm(TIMEOUT)
            code = run()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@needs_kernels
def test_a_signal_handler_may_fork_and_compute_during_a_compilation(monkeypatch):
    """The handler interrupts the thread that compiles, which cannot wait for itself. There, formulas compute."""
    torch.set_num_threads(1)
    x, w = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)
    load_module = instruction_set.load_module
    exits = []

    def check() -> int:
        nested_fork = exit_code_of_fork(lambda: int(not torch.equal(conv2d_relu_max_pool2d(x, w), expected)))
        return nested_fork or int("formulas compute everything: kernels are being" not in str(kernels.available()))

    def interrupted_load(instructions: str) -> jit.KernelModule:
        signal.raise_signal(signal.SIGUSR1)
        return load_module(instructions)

    def run() -> int:
        signal.signal(signal.SIGUSR1, lambda *_: exits.append(check()))
        instruction_set.current_module()
        return int(exits != [0] or instruction_set.current_module() is None)

    expected = conv2d_relu_max_pool2d(x, w)
    monkeypatch.setattr(instruction_set, "load_module", interrupted_load)
    for name, value in {"_choice": "", "_module": None, "_reason": ""}.items():  # as before the first call
        monkeypatch.setattr(instruction_set, name, value)
    assert exit_code_of_fork(run) == 0


@needs_kernels
@pytest.mark.usefixtures("backward_in_a_fork")
def test_forks_while_the_threads_compute():
    torch.set_num_threads(2)
    expected, done = results_digest(), threading.Event()

    def compute() -> bool:
        digests = {expected}
        while not done.is_set():
            digests.add(results_digest())
        return digests == {expected}

    with ThreadPoolExecutor(1) as pool:
        same = pool.submit(compute)
        exits = [exit_code_of_fork(lambda: int(results_digest() != expected)) for _ in range(5)]
        done.set()
    assert exits == [0] * 5
    assert same.result()


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


class UnloadableLlvm(importlib.abc.MetaPathFinder):
    """Makes ``import llvmlite.binding`` fail as it does if the shared library cannot be loaded."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "llvmlite.binding":
            raise OSError("Could not find/load shared object file")


def make_unloadable(patch: pytest.MonkeyPatch) -> None:
    patch.delitem(sys.modules, "llvmlite.binding")
    patch.setattr(sys, "meta_path", [UnloadableLlvm(), *sys.meta_path])


def raise_runtime_error() -> None:
    raise RuntimeError("feature detection is not implemented")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda patch: patch.setattr(sys, "platform", "darwin"), "this is darwin on"),
        (lambda patch: patch.setattr(jit.platform, "machine", lambda: "aarch64"), "on aarch64"),
        (lambda patch: patch.setitem(sys.modules, "llvmlite.binding", None), "llvmlite cannot be used: Mod"),
        (make_unloadable, "llvmlite cannot be used: OSError: Could not find/load shared object file"),
        (
            lambda patch: patch.setattr("llvmlite.binding.get_host_cpu_features", raise_runtime_error),
            "not implemented",
        ),
        (lambda patch: patch.delattr("llvmlite.binding.create_pass_builder"), "llvmlite has no create_pass_builder"),
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


@needs_kernels
def test_a_truncated_library_is_not_loaded(tmp_path, monkeypatch):
    """The attempt would end the process with SIGBUS."""
    import llvmlite

    intact = Path(llvmlite.__file__).parent / "binding" / "libllvmlite.so"
    library = tmp_path / "binding" / "libllvmlite.so"
    library.parent.mkdir()
    with intact.open("rb") as file:
        library.write_bytes(file.read(64))
    monkeypatch.setattr(llvmlite, "__file__", str(tmp_path / "__init__.py"))
    for num_missing, fault in {0: "", 1: "truncated", 1_000_000: "truncated"}.items():
        os.truncate(library, intact.stat().st_size - num_missing)
        jit.instruction_sets.cache_clear()
        kernels.choose("auto")
        assert (kernels.available().instructions is None) == bool(fault)
        assert fault in str(kernels.available())
    monkeypatch.undo()
    jit.instruction_sets.cache_clear()


@needs_kernels
def test_formulas_compute_where_memory_must_not_be_made_executable():
    """As under systemd's MemoryDenyWriteExecute: the first call of a kernel would end the process with SIGSEGV."""
    torch.set_num_threads(1)
    unsupported = 77

    def run() -> int:
        set_mdwe, refuse_exec_gain = 65, 1
        if ctypes.CDLL(None).prctl(set_mdwe, refuse_exec_gain, 0, 0, 0):
            return unsupported
        kernels.choose("auto")
        assert kernels.available().instructions is None
        assert "must not make memory executable (Permission denied)" in str(kernels.available())
        assert conv2d_relu_max_pool2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)).item() == 9
        return 0

    if (code := exit_code_of_fork(run)) == unsupported:
        pytest.skip("this kernel has no PR_SET_MDWE, which Linux 6.3 brought")
    assert code == 0


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
