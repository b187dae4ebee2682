"""The kernels as machine code for the processor at hand, compiled once and kept in a cache folder.

The processor is looked at first: LLVM ends the process where it is asked for instructions that are not there. What a
cached file is named after is a hash of all that it was made of, the LLVM instructions themselves, so that no edit to
a kernel, to the vector layer or to LLVM's version leaves an old one in use."""

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

LANES = {"avx512": 16, "avx2": 8}
_PROCESSOR = {"avx512": "x86-64-v4", "avx2": "x86-64-v3"}  # as LLVM names them
_AVX2 = ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "popcnt", "sse4.2", "xsave")
NEEDED = {"avx512": (*_AVX2, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"), "avx2": _AVX2}


class Unavailable(Exception):
    """There are no kernels here; the message says why."""


@dataclass(frozen=True)
class KernelModule:
    """Addresses of the kernels, and what keeps them in memory."""

    instructions: str
    lanes: int
    addresses: dict[str, int]
    engine: object


@cache
def instruction_sets() -> tuple[str, ...]:
    """Those of LANES that this machine has, the best first; raises Unavailable where there is none."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Unavailable(f"kernels are for Linux on x86-64, this is {sys.platform} on {platform.machine()}")
    try:
        import llvmlite.binding as llvm
    except ImportError as error:
        raise Unavailable(f"llvmlite cannot be imported: {error}") from None
    features = llvm.get_host_cpu_features()
    found = tuple(name for name in LANES if all(features.get(feature) for feature in NEEDED[name]))
    if not found:
        missing = ", ".join(feature for feature in NEEDED["avx2"] if not features.get(feature))
        raise Unavailable(f"the processor lacks {missing}")
    return found


def emitted(lanes: int) -> str:
    """The kernels as LLVM instructions."""
    from llvmlite import ir

    from manualgrad.cpu.ir.vectors import Emitter
    from manualgrad.cpu.kernels import team_program

    module = ir.Module("manualgrad")
    module.triple = "x86_64-unknown-linux-gnu"
    for name, write in {**_kernels(), "program": team_program.program}.items():
        emit = Emitter(module, name, lanes)
        write(emit)
        emit.finish()
    return str(module)


def _kernels() -> dict[str, Callable]:
    from manualgrad.cpu.kernels import (
        conv_pool_backward,
        conv_pool_forward,
        gemm,
        pack_weight,
        relu,
        sgd_step,
        softmax_cross_entropy,
    )

    return {
        "forward": conv_pool_forward.forward,
        "backward": conv_pool_backward.backward,
        "arrange": pack_weight.arrange,
        "collect": pack_weight.collect,
        "class_rows": softmax_cross_entropy.class_rows,
        "cost_sum": softmax_cross_entropy.cost_sum,
        "targets": softmax_cross_entropy.targets,
        "relu_forward": relu.relu_forward,
        "relu_backward": relu.relu_backward,
        "row_products": gemm.gemm_nt,
        "column_products": gemm.gemm_strided,
        "gather": sgd_step.gather,
        "answers": sgd_step.answers,
        "descend": sgd_step.descend,
    }


@cache
def code(instructions: str) -> KernelModule:
    """The kernels in ``instructions``, which must be one of :func:`instruction_sets`."""
    import llvmlite.binding as llvm

    assert instructions in instruction_sets()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple("x86_64-unknown-linux-gnu")
    machine = target.create_target_machine(cpu=_PROCESSOR[instructions], opt=2, jit=True)
    lanes = LANES[instructions]
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    text = emitted(lanes)
    engine.add_object_file(llvm.ObjectFileRef.from_data(_cached(text, instructions, lambda: _compile(text, machine))))
    engine.finalize_object()
    addresses = {name: engine.get_function_address(name) for name in (*_kernels(), "program")}
    return KernelModule(instructions, lanes, addresses, engine)


def _compile(text: str, machine: object) -> bytes:
    import llvmlite.binding as llvm

    module = llvm.parse_assembly(text)
    module.verify()
    options = llvm.PipelineTuningOptions(speed_level=2)
    options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False  # it is all said already
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return machine.emit_object(module)


# -------------------------------------------------------------------------------------------------- cache


def cache_folder() -> Path:
    """MANUALGRAD_CACHE_DIR, or a folder of one's own where caches lie."""
    named = os.environ.get("MANUALGRAD_CACHE_DIR")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "manualgrad"


def _cached(text: str, instructions: str, make: Callable[[], bytes]) -> bytes:
    """``make()``, from the cache where it lies there whole, and left there where that can be written."""
    import llvmlite

    made_of = "\n".join((instructions, llvmlite.__version__, text))
    path = cache_folder() / f"{hashlib.sha256(made_of.encode()).hexdigest()[:32]}.o"
    try:
        kept = path.read_bytes()
    except OSError:
        kept = b""
    content, digest = kept[:-32], kept[-32:]
    if content and hashlib.sha256(content).digest() == digest:
        return content
    content = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content + hashlib.sha256(content).digest())
        os.replace(file.name, path)
    except OSError:
        pass  # a cache that cannot be written to is none; compiling takes a second
    return content
