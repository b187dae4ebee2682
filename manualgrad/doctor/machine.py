"""Facts about the machine: operating system, processor, and the devices that PyTorch can use."""

from __future__ import annotations

import os
import platform
import re
import warnings
from pathlib import Path

import torch


def facts() -> list[tuple[str, str]]:
    """(name, text) of each fact."""
    return [
        ("platform", platform.platform()),
        ("processor", f"{processor()}, {cores()} cores; torch.get_num_threads() is {torch.get_num_threads()}"),
        *(("device", text) for text in devices()),
    ]


def processor() -> str:
    """Name of the processor, and the instruction set that PyTorch uses."""
    cpuinfo = Path("/proc/cpuinfo")  # Linux; platform.processor() is empty there
    names = re.findall(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else []
    return f"{(names or [platform.processor() or platform.machine()])[0]}, {torch.backends.cpu.get_cpu_capability()}"


def cores() -> int:
    """Number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def devices() -> list[str]:
    """A description of each device, and the reason if CUDA is not among them."""
    with warnings.catch_warnings(record=True) as caught:  # PyTorch warns, for example, if the driver is too old
        warnings.simplefilter("always")
        num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    descriptions = ["cpu"]
    for n in range(num_gpus):
        properties = torch.cuda.get_device_properties(n)
        descriptions.append(f"cuda:{n}, {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        descriptions.append("mps, for which the self-test has no float64")
    if not num_gpus:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        reasons = "".join(f"; {str(warning.message).splitlines()[0]}" for warning in caught)
        descriptions.append(f"no CUDA device, PyTorch is {built}{reasons}")
    return descriptions
