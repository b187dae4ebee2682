"""Compilation of the kernels for this machine's processor, and a cache of the object code.

``instruction_sets`` checks the processor first, since LLVM ends the process if it compiles for instructions that the
processor lacks. The name of a cached file is a hash of the kernels' LLVM instructions, of the instruction set and of
llvmlite's version: after an edit to a kernel or to ``ir/`` no old object code is used.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import llvmlite.binding as llvm

    from manualgrad.cpu.ir.vectors import Emitter

LANES = {"avx512": 16, "avx2": 8}  # floats in a vector
_TARGET_CPU = {"avx512": "x86-64-v4", "avx2": "x86-64-v3"}  # LLVM's names
_AVX2 = ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "popcnt", "sse4.2", "xsave")
REQUIRED_FEATURES = {"avx512": (*_AVX2, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"), "avx2": _AVX2}


class Unavailable(Exception):
    """The kernels cannot run on this machine; the message says why."""


@dataclass(frozen=True)
class KernelModule:
    """The compiled kernels of one instruction set.

    Attributes:
        instructions: "avx512" or "avx2".
        lanes: floats in a vector.
        addresses: the address of each kernel, by name.
        engine: LLVM's execution engine, which owns the machine code.
    """

    instructions: str
    lanes: int
    addresses: dict[str, int]
    engine: llvm.ExecutionEngine


@cache
def instruction_sets() -> tuple[str, ...]:
    """Keys of LANES that this machine supports, the fastest first; raises Unavailable if there are none."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Unavailable(f"kernels need Linux on x86-64, this is {sys.platform} on {platform.machine()}")
    try:
        import llvmlite.binding as llvm
    except ImportError as error:
        raise Unavailable(f"llvmlite cannot be imported: {error}") from None
    features = llvm.get_host_cpu_features()
    supported = tuple(name for name in LANES if all(features.get(feature) for feature in REQUIRED_FEATURES[name]))
    if not supported:
        missing = ", ".join(feature for feature in REQUIRED_FEATURES["avx2"] if not features.get(feature))
        raise Unavailable(f"the processor lacks {missing}")
    return supported


def emit_llvm_ir(lanes: int) -> str:
    """Return the kernels as LLVM assembly, for vectors of ``lanes`` floats."""
    from llvmlite import ir

    from manualgrad.cpu.ir.vectors import Emitter

    module = ir.Module("manualgrad")
    module.triple = "x86_64-unknown-linux-gnu"
    for name, emit_kernel in _kernels().items():
        emit = Emitter(module, name, lanes)
        emit_kernel(emit)
        emit.finish()
    return str(module)


def _kernels() -> dict[str, Callable[[Emitter], None]]:
    """The functions that emit the kernels, by the kernel's name."""
    from manualgrad.cpu.kernels.conv_pool_backward import conv_pool_backward
    from manualgrad.cpu.kernels.conv_pool_forward import conv_pool_forward
    from manualgrad.cpu.kernels.gather_images import gather_images
    from manualgrad.cpu.kernels.gemm import gemm_nt, gemm_strided
    from manualgrad.cpu.kernels.one_hot_targets import one_hot_targets
    from manualgrad.cpu.kernels.pack_weight import pack_weight, unpack_reduce_grads
    from manualgrad.cpu.kernels.relu import relu_backward, relu_forward
    from manualgrad.cpu.kernels.run_program import run_program
    from manualgrad.cpu.kernels.sgd_update import sgd_update
    from manualgrad.cpu.kernels.softmax_cross_entropy import softmax_cross_entropy, sum_losses
    from manualgrad.cpu.kernels.top1_stats import top1_stats

    kernels = (
        conv_pool_forward,
        conv_pool_backward,
        pack_weight,
        unpack_reduce_grads,
        softmax_cross_entropy,
        sum_losses,
        one_hot_targets,
        relu_forward,
        relu_backward,
        gemm_nt,
        gemm_strided,
        gather_images,
        top1_stats,
        sgd_update,
        run_program,
    )
    return {kernel.__name__: kernel for kernel in kernels}


@cache
def load_module(instructions: str) -> KernelModule:
    """Compile the kernels, or read them from the cache, for one of :func:`instruction_sets`."""
    import llvmlite.binding as llvm

    assert instructions in instruction_sets()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple("x86_64-unknown-linux-gnu")
    machine = target.create_target_machine(cpu=_TARGET_CPU[instructions], opt=2, jit=True)
    lanes = LANES[instructions]
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    text = emit_llvm_ir(lanes)
    object_code = _cached_object_code(text, instructions, lambda: _compile(text, machine))
    engine.add_object_file(llvm.ObjectFileRef.from_data(object_code))
    engine.finalize_object()
    addresses = {name: engine.get_function_address(name) for name in _kernels()}
    return KernelModule(instructions, lanes, addresses, engine)


def _compile(text: str, machine: llvm.TargetMachine) -> bytes:
    import llvmlite.binding as llvm

    module = llvm.parse_assembly(text)
    module.verify()
    options = llvm.PipelineTuningOptions(speed_level=2)
    # the kernels are written unrolled and vectorised
    options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    object_code: bytes = machine.emit_object(module)
    return object_code


# -------------------------------------------------------------------------------------------------- cache


def cache_folder() -> Path:
    """MANUALGRAD_CACHE_DIR, or a folder ``manualgrad`` in XDG_CACHE_HOME, which is ``~/.cache`` by default."""
    folder = os.environ.get("MANUALGRAD_CACHE_DIR")
    if folder:
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "manualgrad"


def _cached_object_code(text: str, instructions: str, compile_text: Callable[[], bytes]) -> bytes:
    """Return the cached object code of ``text``, or that of ``compile_text``, which is cached for the next time.

    A file ends with the SHA-256 digest of its content: a damaged file is compiled again."""
    import llvmlite

    key = "\n".join((instructions, llvmlite.__version__, text))
    path = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.o"
    try:
        cached = path.read_bytes()
    except OSError:
        cached = b""
    content, digest = cached[:-32], cached[-32:]
    if content and hashlib.sha256(content).digest() == digest:
        return content
    content = compile_text()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content + hashlib.sha256(content).digest())
        os.replace(file.name, path)
    except OSError:
        pass  # the folder cannot be written: the next process compiles again, which takes a second
    return content
