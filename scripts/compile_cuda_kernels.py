"""Compile the kernels for CUDA without a GPU, and print what ptxas says of each: registers, spills, instructions.

    python scripts/compile_cuda_kernels.py [--arch 80 90 100] [--summary] [NAME ...]

A call of ``tests/cuda/kernel_calls.py`` is run with a launcher that only notes the kernels and their arguments.
Triton compiles these for each architecture, specialised as it would for the same arguments on a GPU.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["TRITON_INTERPRET"] = "0"  # before Triton is imported

import torch
from torch import Tensor

from manualgrad.cuda.launch import Launcher

COLUMNS = ("kernel", "arch", "warps", "registers", "spilled bytes", "shared bytes", "cp.async 16", "mma")
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64",
            torch.int32: "*i32", torch.int8: "*i8", torch.uint8: "*u8", torch.bool: "*i1"}  # fmt: skip
OPTIONS = {"num_warps", "num_stages", "num_ctas", "maxnreg", "launch_pdl"}


@dataclass(frozen=True)
class Compiled:
    """Facts from ptxas and the PTX about one kernel for one architecture; sizes in bytes, registers of one thread."""

    kernel: str
    arch: int
    warps: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    async_copies: int
    tensor_core_instructions: int


class RecordingLauncher(Launcher):
    """Notes launches and runs nothing."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, kernel: Any, grid: tuple[int, ...], x: Tensor, *args: Any, **constants: Any) -> None:
        """Note the launch."""
        self.launches.append((kernel, (x, *args), constants))


def record(call: Callable[[Launcher], Any]) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """The launches of ``call``."""
    launcher = RecordingLauncher()
    call(launcher)
    return launcher.launches


def compile_launch(kernel: Any, args: tuple[Any, ...], constants: dict[str, Any], arch: int) -> Compiled:
    """Compile one launch for compute capability ``arch`` / 10."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {name: value for name, value in constants.items() if name in OPTIONS}
    values = dict(zip(kernel.arg_names, args, strict=False))
    values |= {name: value for name, value in constants.items() if name not in OPTIONS}
    signature, fixed, attributes = {}, {}, {}
    for n, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[parameter.name], fixed[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            attributes[(n,)] = [["tt.divisibility", 16]]
        elif isinstance(value, bool | int):
            signature[parameter.name] = "i1" if isinstance(value, bool) else "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(n,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32"
    source = ASTSource(kernel, signature, fixed, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    ptx = compiled.asm["ptx"]
    registers, spilled = run_ptxas(ptx, arch)
    return Compiled(
        kernel.fn.__name__, arch, options.get("num_warps", 4), registers, spilled, compiled.metadata.shared,
        len(re.findall(r"cp\.async\.(?:ca|cg)[\w.:]* .*, (?:16|0x10)[,;]", ptx)),
        len(re.findall(r"^\s*(?:@\S+ )?(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)", ptx, re.MULTILINE)),
    )  # fmt: skip


def run_ptxas(ptx: str, arch: int) -> tuple[int, int]:
    """Registers of a thread and bytes of spill stores and loads, from ``ptxas -v``."""
    import triton

    binaries = Path(triton.__file__).parent / "backends/nvidia/bin"
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert target is not None
    ptxas = binaries / ("ptxas-blackwell" if arch >= 100 else "ptxas")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        command = [ptxas, "-v", f"-arch={target[1]}", path, "-o", Path(folder, "kernel.cubin")]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", text)
    return int(re.findall(r"Used (\d+) registers", text)[-1]), sum(map(int, spills))


def compile_calls(names: list[str], archs: list[int]) -> Iterator[tuple[str, Compiled]]:
    """Compile the launches of the named calls, or of all; each kind of launch once."""
    from tests.cuda.kernel_calls import CALLS

    for name in names or CALLS:
        for launch in record(CALLS[name]):
            for arch in archs:
                yield name, compile_launch(*launch, arch)


def summarize(results: Iterable[Compiled]) -> Iterator[str]:
    """A row for each kernel: the largest numbers of all its calls, registers and spills for each architecture."""
    by_kernel: dict[str, dict[int, list[Compiled]]] = {}
    for compiled in results:
        by_kernel.setdefault(compiled.kernel, {}).setdefault(compiled.arch, []).append(compiled)
    for kernel, by_arch in sorted(by_kernel.items()):
        registers, spilled = (
            ", ".join(str(max(getattr(compiled, name) for compiled in calls)) for _, calls in sorted(by_arch.items()))
            for name in ("registers", "spilled_bytes")
        )
        shared, copies, products = (
            max(getattr(compiled, name) for calls in by_arch.values() for compiled in calls)
            for name in ("shared_bytes", "async_copies", "tensor_core_instructions")
        )
        yield f"| {kernel} | {registers} | {spilled} | {shared:,} | {copies} | {products} |"


def main() -> None:
    """Print the table."""
    from tests.cuda.kernel_calls import CALLS

    parser = argparse.ArgumentParser(description="Compile the kernels for CUDA without a GPU.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"calls to compile (all): {', '.join(CALLS)}")
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90, 100], help="compute capabilities times 10")
    parser.add_argument("--summary", action="store_true", help="a row for each kernel, with the largest numbers")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(CALLS):
        parser.error(f"no such call: {', '.join(sorted(unknown))}; there are {', '.join(CALLS)}")
    if arguments.summary:
        archs = ", ".join(f"{arch / 10:.1f}" for arch in sorted(arguments.arch))
        print(f"| kernel | registers on {archs} | spilled bytes | shared bytes | cp.async 16 | mma |")
        print("| --- | --- | --- | ---: | ---: | ---: |")
        for row in summarize(compiled for _, compiled in compile_calls(arguments.names, arguments.arch)):
            print(row)
        return
    print("| call |", " | ".join(COLUMNS), "|")
    print("| --- " * (len(COLUMNS) + 1) + "|")
    for name, compiled in compile_calls(arguments.names, arguments.arch):
        print(f"| {name} |", " | ".join(map(str, vars(compiled).values())), "|", flush=True)


if __name__ == "__main__":
    main()
