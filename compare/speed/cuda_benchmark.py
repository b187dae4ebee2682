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

from compare.speed.correctness import describe_mismatches, relative_error
from compare.speed.cuda_subjects import Step, Subject
from compare.speed.interleaving import interleave
from compare.speed.timer import Timer, num_steps_for, time_phases

SIDES = ("ours", "native")
PRECISIONS = {"float32": "float32, TF32 off on both sides", "default": "float32 tensors, PyTorch's default flags"}

Mode = Callable[[Step], Step]


@dataclass(frozen=True)
class CudaRow:
    """Times of one contender, in seconds, one for each round.

    Attributes:
        error: largest error of a result, relative to its norm, against ``Subject.expected``.
        peak_bytes: peak of memory of a step above its inputs; None where it is not measured.
    """

    subject: str
    precision: str
    side: str
    layout: str
    mode: str
    rounds: tuple[float, ...]
    error: float
    peak_bytes: int | None

    @property
    def seconds(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.rounds)


@dataclass
class CudaSpeed:
    """Results: rows; FLOPs, bytes and images of a step by subject; limits by precision; contenders without a time;
    subjects that ended with an error, each with what it says."""

    rows: list[CudaRow] = field(default_factory=list)
    flops: dict[str, int] = field(default_factory=dict)
    numbytes: dict[str, int] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=dict)
    bytes_per_second: float = 0.0
    flops_per_second: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    not_measured: list[tuple[str, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def capture(step: Step) -> Step:
    """``step`` as a CUDA graph: three steps on a stream of its own, then the capture. The graph keeps its tensors."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):  # restores the stream of a failed capture
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
    precisions: Sequence[str] = tuple(PRECISIONS),
    rounds: int = 7,
    seconds: float = 0.05,
    limit_size: int = 8192,
    progress: Any = None,
) -> CudaSpeed:
    """Measure every subject in each of ``precisions``, names of PRECISIONS.

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
        progress.total = len(precisions) * len(subjects)
    for precision in precisions:
        with flags(precision):
            _measure_limits(result, precision, timer, device, limit_size)
    for precision in precisions:
        with flags(precision):
            for subject in subjects:
                if progress is not None:
                    progress.set_description_str(subject.name)
                try:
                    _measure_subject(result, subject, precision, timer, device, modes, rounds, seconds)
                except RuntimeError as error:  # of native, or of every subject after a kernel that broke the context
                    result.errors.append(f"{subject.name}, {PRECISIONS[precision]}: {_first_line(error)}")
                if progress is not None:
                    progress.update(1)
    return result


@contextmanager
def flags(precision: str) -> Iterator[None]:
    """Inside the block TF32 is off for convolutions and matrix products, or as it is for "default".

    cuDNN measures its algorithms and takes the fastest, which it does not by default."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.benchmark = True
    if precision != "default":
        cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        if precision != "default":
            cudnn.allow_tf32, matmul.allow_tf32 = before[:2]
        cudnn.benchmark = before[2]


def _measure_subject(
    result: CudaSpeed, subject: Subject, precision: str, timer: Timer, device: str,
    modes: dict[str, tuple[bool, Mode]], rounds: int, seconds: float,
) -> None:  # fmt: skip
    native = subject.make("native", subject.layouts[0], False)
    if native is None:
        raise ValueError(f"{subject.name}: native must have an uncompiled step in the layout {subject.layouts[0]}")
    native_results = [t.clone() for t in native()]
    if subject.name not in result.flops:
        with FlopCounterMode(display=False) as counter:
            native()
        result.flops[subject.name] = counter.get_total_flops()
        if subject.numbytes is not None:
            result.numbytes[subject.name] = subject.numbytes
        if subject.batch is not None:
            result.batches[subject.name] = subject.batch
    errors: dict[tuple[str, str, str], float] = {}
    steps: dict[tuple[str, str, str], Step] = {}
    for side in SIDES:
        layouts = subject.our_layouts if side == "ours" and subject.our_layouts else subject.layouts
        for layout in layouts:
            results = subject.expected(side, layout) if subject.expected else native_results
            expected = {str(n): t for n, t in enumerate(results)}
            for mode, (compiled, make) in modes.items():
                label = f"{subject.name}: {side}, {layout}, {mode}"
                try:
                    uncaptured = subject.make(side, layout, compiled)
                    if uncaptured is None:
                        continue
                    step = make(uncaptured)
                    actual = {str(n): t for n, t in enumerate(step())}
                except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
                    result.not_measured.append((label, _first_line(error)))
                    continue
                if mismatches := describe_mismatches(actual, expected, subject.tolerance):
                    result.wrong.append(f"{label}, {PRECISIONS[precision]}: {mismatches[0]}")
                    continue
                steps[side, layout, mode] = step
                errors[side, layout, mode] = max(relative_error(actual[name], expected[name]) for name in expected)
    counts = {key: num_steps_for(_timed(step), seconds, timer) for key, step in steps.items()}
    times = interleave(
        {key: lambda key=key: time_phases(_timed(steps[key]), counts[key], timer)[0] for key in steps}, rounds
    )  # type: ignore[arg-type]
    for (side, layout, mode), step in steps.items():
        measured = times[side, layout, mode]  # type: ignore[index]
        peak = _peak_bytes(step) if device == "cuda" and mode == "eager" else None
        result.rows.append(
            CudaRow(subject.name, precision, side, layout, mode, tuple(measured), errors[side, layout, mode], peak)
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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
