"""Compilation of the kernels for this machine's processor.

``instruction_sets`` checks the processor first, since LLVM ends the process if it compiles for instructions that the
processor lacks. ``require_executable_memory`` checks what the system permits. Object code is cached under a hash of
the Python code that emits the kernels (``emitter_key.py``), the instruction set and llvmlite's version: after an edit
to a kernel or to ``ir/`` no old object code is used.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from manualgrad.cpu.kernel_groups import NETWORK, group_kernels, group_lanes
from manualgrad.cpu.object_cache import cached_object_code
from manualgrad.cpu.signature import Address, Kernel, KernelCall, Signature

if TYPE_CHECKING:
    import llvmlite.binding as llvm


LANES = {"avx512": 16, "avx2": 8}  # floats in a vector
_AVX2 = ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "popcnt", "sse4.2", "xsave")
REQUIRED_FEATURES = {"avx512": (*_AVX2, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"), "avx2": _AVX2}
# Names in llvmlite.binding that another version may lack.
_LLVM_NAMES = ("ObjectFileRef", "PipelineTuningOptions", "create_mcjit_compiler", "create_pass_builder")


class Unavailable(Exception):
    """The kernels cannot run on this machine; the message says why."""


@dataclass(frozen=True, eq=False)
class KernelModule:
    """The compiled kernels of one instruction set.

    Attributes:
        instructions: "avx512" or "avx2".
        lanes: floats in a vector.
        addresses: the address of each kernel, by name.
        signatures: its arguments, by name.
        cache_problem: the reason why the object code is not cached, "" if it is.
        engine: LLVM's execution engine, which owns the machine code.
    """

    instructions: str
    lanes: int
    addresses: dict[str, int]
    signatures: dict[str, Signature]
    cache_problem: str
    engine: llvm.ExecutionEngine

    def call(self, kernel: str, /, **arguments: Address | float) -> KernelCall:
        """Encode a call of ``kernel`` for a program; TypeError names an argument that the kernel does not accept."""
        return self.addresses[kernel], self.signatures[kernel].encode(arguments)


@cache
def instruction_sets() -> tuple[str, ...]:
    """Keys of LANES that this machine supports, the fastest first; raises Unavailable if there are none."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Unavailable(f"kernels need Linux on x86-64, this is {sys.platform} on {platform.machine()}")
    try:
        import llvmlite

        _require_complete(Path(llvmlite.__file__).with_name("binding") / "libllvmlite.so")
        import llvmlite.binding as llvm
        import llvmlite.ir

        features = llvm.get_host_cpu_features()
    except Exception as error:  # a damaged package, or a library that does not match it, raises errors of any type
        raise Unavailable(f"llvmlite cannot be used: {type(error).__name__}: {error}") from None
    if missing_names := [name for name in _LLVM_NAMES if not hasattr(llvm, name)]:
        raise Unavailable(f"llvmlite has no {', '.join(missing_names)}: another version is needed")
    supported = tuple(name for name in LANES if all(features.get(feature) for feature in REQUIRED_FEATURES[name]))
    if not supported:
        missing = ", ".join(feature for feature in REQUIRED_FEATURES["avx2"] if not features.get(feature))
        raise Unavailable(f"the processor lacks {missing}")
    return supported


def _require_complete(library: Path) -> None:
    """Raise OSError if an ELF file ends before its table of sections, which is its last part, as after an interrupted
    installation. The attempt to load it would end the process with SIGBUS."""
    with library.open("rb") as file:
        header, size = file.read(64), file.seek(0, os.SEEK_END)
    if len(header) == 64 and header.startswith(b"\x7fELF"):
        offset, entry_bytes, entries = struct.unpack("<40xQ10xHH2x", header)
        if offset + entry_bytes * entries > size:
            raise OSError(f"{library} is truncated")


def require_executable_memory() -> None:
    """Raise Unavailable unless this process may make memory executable that it has written to.

    A security policy can forbid it, such as systemd's MemoryDenyWriteExecute. LLVM does not notice, and the first
    call of a kernel would end the process."""
    import mmap  # here, since Windows has other names in it

    libc = ctypes.CDLL(None, use_errno=True)
    page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE)
    address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    if libc.mprotect(address, ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_EXEC):
        reason = os.strerror(ctypes.get_errno())
        raise Unavailable(f"this process must not make memory executable ({reason}), which compiled kernels need")


@cache
def load_module(instructions: str, group: str = NETWORK) -> KernelModule:
    """Compile the kernels of a group, or read them from the cache, for one of :func:`instruction_sets`."""
    return load_kernels(instructions, group_kernels(group), group_lanes(group, LANES[instructions]))


def load_kernels(instructions: str, kernels: Mapping[str, Kernel], lanes: int | None = None) -> KernelModule:
    """Compile ``kernels``, by name, or read them from the cache, for one of :func:`instruction_sets`.

    Vectors have ``lanes`` floats, as many as the instruction set has by default."""
    import llvmlite
    import llvmlite.binding as llvm

    from manualgrad.cpu import compilation
    from manualgrad.cpu.emitter_key import emitter_key

    assert instructions in instruction_sets()
    lanes, machine = lanes or LANES[instructions], compilation.target_machine(instructions)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    emitters = emitter_key(kernels.values(), compilation) or compilation.emit_llvm_ir(lanes, kernels)
    key = "\n".join((instructions, str(lanes), llvmlite.__version__, emitters))
    object_code, cache_problem = cached_object_code(
        key, lambda: compilation.compile_kernels(machine, compilation.emit_llvm_ir(lanes, kernels))
    )
    engine.add_object_file(llvm.ObjectFileRef.from_data(object_code))
    engine.finalize_object()
    addresses = {name: engine.get_function_address(name) for name in kernels}
    signatures = {name: kernel.signature for name, kernel in kernels.items()}
    return KernelModule(instructions, lanes, addresses, signatures, cache_problem, engine)
