"""Speed on CUDA: each subject by ours and native, eager, in a CUDA graph, and compiled in a CUDA graph.

All contenders of a subject are measured in turn in one process, after a check that ours computes what native does.
Floating-point operations are counted by PyTorch's counter on native's step; the card's limits are measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from compare.speed.correctness import describe_mismatches
from compare.speed.cuda_subjects import Step, Subject
from compare.speed.interleaving import interleave
from compare.speed.timer import Timer, num_steps_for, time_phases

SIDES = ("ours", "native")
PRECISIONS = {"float32": "float32, TF32 off on both sides", "default": "float32 tensors, PyTorch's default flags"}

Mode = Callable[[Step], Step]


@dataclass(frozen=True)
class CudaRow:
    """Median time of one contender, in seconds, and the peak of memory of its step above its inputs, in bytes."""

    subject: str
    precision: str
    side: str
    layout: str
    mode: str
    seconds: float
    peak_bytes: int | None


@dataclass
class CudaSpeed:
    """Results: rows; FLOPs and bytes of a step by subject; limits by precision; contenders without a time."""

    rows: list[CudaRow] = field(default_factory=list)
    flops: dict[str, int] = field(default_factory=dict)
    numbytes: dict[str, int] = field(default_factory=dict)
    bytes_per_second: float = 0.0
    flops_per_second: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    not_measured: list[tuple[str, str]] = field(default_factory=list)


def capture(step: Step) -> Step:
    """``step`` as a CUDA graph: three steps on a stream of its own, then the capture. The graph keeps its tensors."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()

    def replay() -> Sequence[torch.Tensor]:
        graph.replay()
        return results

    return replay


# Name: whether the step is compiled, and what is made of it.
CUDA_MODES: dict[str, tuple[bool, Mode]] = {
    "eager": (False, lambda step: step),
    "CUDA graph": (False, capture),
    "compiled, CUDA graph": (True, capture),
}


def compare_cuda_speed(
    subjects: Sequence[Subject],
    timer: Timer,
    *,
    device: str = "cuda",
    modes: dict[str, tuple[bool, Mode]] = CUDA_MODES,
    rounds: int = 7,
    seconds: float = 0.05,
    limit_size: int = 8192,
    progress: Any = None,
) -> CudaSpeed:
    """Measure every subject in both precisions.

    Args:
        timer: measures phases of a step; tests pass one of their own.
        modes: name and (compiled, function that makes a step of the eager one); a mode that fails has no time, and
            the reason is a result.
        rounds, seconds: number of measurements of each contender, and the approximate duration of one.
        limit_size: rows of the square matrices whose product and copy give the card's limits.
        progress: tqdm bar, or None.
    """
    result = CudaSpeed()
    if progress is not None:
        progress.total = len(PRECISIONS) * len(subjects)
    for precision in PRECISIONS:
        with flags(precision):
            _measure_limits(result, precision, timer, device, limit_size)
            for subject in subjects:
                if progress is not None:
                    progress.set_description_str(subject.name)
                _measure_subject(result, subject, precision, timer, device, modes, rounds, seconds)
                if progress is not None:
                    progress.update(1)
    return result


@contextmanager
def flags(precision: str) -> Iterator[None]:
    """TF32 off for convolutions and matrix products inside the block, or all flags as they are."""
    if precision == "default":
        yield
        return
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _measure_subject(
    result: CudaSpeed, subject: Subject, precision: str, timer: Timer, device: str,
    modes: dict[str, tuple[bool, Mode]], rounds: int, seconds: float,
) -> None:  # fmt: skip
    native = subject.make("native", subject.layouts[0], False)
    expected = {str(n): t.clone() for n, t in enumerate(native())}
    if subject.name not in result.flops:
        with FlopCounterMode(display=False) as counter:
            native()
        result.flops[subject.name] = counter.get_total_flops()
        if subject.numbytes is not None:
            result.numbytes[subject.name] = subject.numbytes
    steps: dict[tuple[str, str, str], Step] = {}
    for side in SIDES:
        for layout in subject.layouts:
            for mode, (compiled, make) in modes.items():
                label = f"{subject.name}: {side}, {layout}, {mode}"
                try:
                    step = make(subject.make(side, layout, compiled))
                    actual = {str(n): t for n, t in enumerate(step())}
                except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
                    result.not_measured.append((label, (str(error).splitlines() or [type(error).__name__])[0]))
                    continue
                if mismatches := describe_mismatches(actual, expected, subject.tolerance):
                    result.wrong.append(f"{label}, {PRECISIONS[precision]}: {mismatches[0]}")
                    continue
                steps[side, layout, mode] = step
    counts = {key: num_steps_for(_timed(step), seconds, timer) for key, step in steps.items()}
    times = interleave(
        {key: lambda key=key: time_phases(_timed(steps[key]), counts[key], timer)[0] for key in steps}, rounds
    )  # type: ignore[arg-type]
    for (side, layout, mode), step in steps.items():
        median = statistics.median(times[side, layout, mode])  # type: ignore[index]
        peak = _peak_bytes(step) if device == "cuda" and mode == "eager" else None
        result.rows.append(CudaRow(subject.name, precision, side, layout, mode, median, peak))


def _timed(step: Step) -> Callable[[Callable[[], None]], None]:
    def timed(mark: Callable[[], None]) -> None:
        mark()
        step()
        mark()

    return timed


def _peak_bytes(step: Step) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _measure_limits(result: CudaSpeed, precision: str, timer: Timer, device: str, size: int) -> None:
    """Bytes per second of a copy, and FLOP per second of a matrix product with the flags that are set."""
    a, b, out = (torch.randn(size, size, device=device) for _ in range(3))
    product = _timed(lambda: [torch.mm(a, b, out=out)])
    copy = _timed(lambda: [out.copy_(a)])
    result.flops_per_second[precision] = 2 * size**3 / max(1e-12, time_phases(product, 5, timer)[0])
    result.bytes_per_second = 2 * 4 * size**2 / max(1e-12, time_phases(copy, 5, timer)[0])
