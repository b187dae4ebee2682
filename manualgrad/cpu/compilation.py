"""From kernels to object code: what they emit, and how LLVM compiles it."""

from __future__ import annotations

from collections.abc import Mapping

import llvmlite.binding as llvm
from llvmlite import ir

from manualgrad.cpu.ir.vectors import Emitter
from manualgrad.cpu.signature import Kernel

TRIPLE = "x86_64-unknown-linux-gnu"
TARGET_CPU = {"avx512": "x86-64-v4", "avx2": "x86-64-v3"}  # LLVM's names


def target_machine(instructions: str) -> llvm.TargetMachine:
    """Return LLVM's description of processors with this instruction set."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_triple(TRIPLE).create_target_machine(cpu=TARGET_CPU[instructions], opt=2, jit=True)


def emit_llvm_ir(lanes: int, kernels: Mapping[str, Kernel]) -> str:
    """Return ``kernels``, by name, as LLVM assembly, for vectors of ``lanes`` floats."""
    module = ir.Module("manualgrad")
    module.triple = TRIPLE
    for name, kernel in kernels.items():
        kernel.emit(Emitter(module, name, lanes))
    return str(module)


def compile_kernels(machine: llvm.TargetMachine, assembly: str) -> bytes:
    """Compile LLVM assembly to object code."""
    module = llvm.parse_assembly(assembly)
    module.verify()
    options = llvm.PipelineTuningOptions(speed_level=2)
    # the kernels are written unrolled and vectorised
    options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    object_code: bytes = machine.emit_object(module)
    return object_code
