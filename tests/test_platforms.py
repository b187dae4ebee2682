"""Promise: where kernels cannot run (macOS, Windows, ARM, other devices), imports succeed and formulas compute."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import manualgrad as mg
from manualgrad import files
from manualgrad.cpu import team

ROOT = Path(__file__).parents[1]

# Imports the whole package in a process that lacks what Windows and macOS lack, then computes with every operation.
# Other packages are imported before: they have their own code for each system.
SCRIPT = """
import importlib, os, pkgutil, platform, signal, sys
import torch, torchvision.datasets, tqdm
try:
    import matplotlib.pyplot
except ImportError:
    pass

UNIX_MODULES = ("crypt", "fcntl", "grp", "nis", "pty", "pwd", "resource", "spwd", "syslog", "termios", "tty")
WINDOWS_OS = (  # names of os and signal that Windows has, of those that begin like this
    "O_APPEND", "O_BINARY", "O_CREAT", "O_EXCL", "O_RDONLY", "O_RDWR", "O_TRUNC", "O_WRONLY",
    "SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN",
)
for name in UNIX_MODULES:
    sys.modules[name] = None
for module in (os, signal):
    for name in dir(module):
        if name.startswith(("O_", "SIG")) and name not in WINDOWS_OS:
            delattr(module, name)
for name in ("chown", "fchmod", "fork", "getegid", "geteuid", "getgid", "getuid", "mkfifo", "mknod", "posix_fadvise",
             "register_at_fork", "sched_getaffinity", "sysconf", "uname", "wait", "waitpid"):
    delattr(os, name)
for name in ("alarm", "pthread_sigmask", "setitimer", "sigwait"):
    delattr(signal, name)
sys.modules["llvmlite"] = None
platform.libc_ver = lambda *_: ("", "")
sys.platform, platform.machine = "win32", lambda: "AMD64"

import manualgrad as mg
LLVM = tuple("manualgrad.cpu." + name for name in ("ir.", "kernels.", "compilation", "emitter_key"))  # in its terms
for module in pkgutil.walk_packages(mg.__path__, "manualgrad."):
    if not module.name.startswith(LLVM):
        importlib.import_module(module.name)

from manualgrad import kernels
from manualgrad.cpu import jit

for sys.platform, machine in (("win32", "AMD64"), ("darwin", "arm64"), ("linux", "aarch64")):
    platform.machine = lambda: machine
    kernels.choose("auto")
    print(kernels.available())
    model, x, labels = mg.DocumentCNN(), torch.randn(4, 1, 28, 28), torch.arange(4)
    model.cost(x, labels).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    logits = model.double()(x.double())
    torch.nn.functional.cross_entropy(logits, labels).backward()
    assert all(torch.allclose(p.grad, e.double(), atol=1e-5) for p, e in zip(model.parameters(), expected))
"""


def test_formulas_import_and_compute_on_other_systems():
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    reason = "no kernels, formulas compute everything: kernels need Linux on x86-64, this is"
    systems = ("win32 on AMD64", "darwin on arm64", "linux on aarch64")
    assert result.stdout.splitlines() == [f"{reason} {system}" for system in systems]


class NoFloat64(TorchDispatchMode):
    """Raises for a float64 tensor: MPS has none."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            assert not isinstance(t, Tensor) or t.dtype != torch.float64, operator
        return out


CALLS = {
    "conv2d": lambda x: mg.conv2d(x, x.new_ones(4, 3, 3, 3), x.new_ones(4), padding=1, stride=2),
    "max_pool2d": lambda x: mg.max_pool2d(x, 2),
    "flatten": mg.flatten,
    "dense": lambda x: mg.dense(x, x.new_ones(5, 8), x.new_ones(5)),
    "relu": mg.relu,
    "softmax": mg.softmax,
    "conv, relu, pool": lambda x: mg.nn.ConvReLUMaxPool2d(3, 4, 3).to(x.device)(x),
    "softmax_cross_entropy": lambda x: mg.softmax_cross_entropy(x.flatten(1), x.detach().flatten(1).abs()),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_tensors_of_another_device_get_the_formulas(call, monkeypatch):
    """The device "meta", whose tensors have no memory, stands for those that kernels do not support, such as MPS."""
    monkeypatch.setattr(team, "run_program", lambda *_: pytest.fail("a kernel ran"))
    x = torch.ones(2, 3, 8, 8, device="meta", requires_grad=True)
    with NoFloat64():
        out = call(x)
        (grad,) = torch.autograd.grad(out.sum(), x)
    assert (out.device.type, grad.device.type, grad.shape) == ("meta", "meta", x.shape)


# ------------------------------------------------------------------------------------------------------- files


def test_a_file_is_written_where_folders_cannot_be_opened(tmp_path, monkeypatch):
    """Windows opens no folders, and has no O_DIRECTORY."""
    open_file = os.open

    def open_no_folder(path, *args):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path, *args)

    monkeypatch.setattr(files.os, "open", open_no_folder)
    monkeypatch.delattr(files.os, "O_DIRECTORY")
    files.write_atomic(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
@pytest.mark.parametrize("make", ["link", "pipe"])
def test_a_file_is_not_written_through_a_link_or_pipe(tmp_path, make):
    """A folder that others can write to may have one under the temporary name."""
    temporary, target = tmp_path / f"file{files.UNFINISHED_SUFFIX}", tmp_path / "target"
    target.write_bytes(b"before")
    temporary.symlink_to(target) if make == "link" else os.mkfifo(temporary)
    files.write_atomic(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    assert not (tmp_path / "file").is_symlink()
    assert target.read_bytes() == b"before"
