"""Kernels over rows of logits as functions of tensors: softmax, and cross-entropy without a matrix of targets.

Functions ``unsupported_...`` and those that run a kernel are as in ``small_kernels.py``, whose kernels compute up to
MAX_NUMEL logits.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from manualgrad.cpu import memory, small_kernels, team
from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.program import Program, WorkspaceLayout
from manualgrad.cpu.signature import BufferRef
from manualgrad.cpu.small_kernels import MAX_NUMEL
from manualgrad.cpu.team import ParallelRegion
from manualgrad.cpu.tensor_checks import storage_covers, unsupported_tensor

NUMEL_PER_TASK = 1 << 14
MIN_CLASSES = 32  # of vectors: a shorter row takes as long as one of that length
MIN_GRAD_NUMEL = 1 << 15  # below, the gradient of softmax by the formula takes as long as a call of a kernel

LabelLoss = tuple[Tensor, Tensor | None, Tensor | None, float]  # of cross_entropy_from_labels


def _unsupported_rows(logits: Tensor, *others: Tensor) -> str:
    """Check float32 tensors of one shape, (rows, classes), neither of them 0."""
    if logits.dim() != 2 or not logits.numel():
        return _SHAPE
    for t in others:
        if t.shape != logits.shape:
            return _SHAPE
        if reason := unsupported_tensor(t, contiguous=True):
            return reason
    return unsupported_tensor(logits, contiguous=True)


def _tasks(rows: int, classes: int, threads: int) -> tuple[int, dict[str, int]]:
    """The number of tasks, and the arguments that say which rows a task computes."""
    num_tasks = max(1, min(threads, rows, rows * classes // NUMEL_PER_TASK))
    return num_tasks, {"rows": rows, "share": -(-rows // num_tasks), "classes": classes}


def unsupported_softmax_forward(logits: Tensor, dim: int) -> str:
    if reason := _unsupported_rows(logits) if dim in (-1, 1) else _DIM:
        return reason
    return _SHORT_ROWS if logits.numel() > MAX_NUMEL and logits.shape[1] < MIN_CLASSES else ""


def softmax_forward(module: KernelModule, logits: Tensor, _: int) -> Tensor:
    """Softmax of ``logits``, (rows, classes), along the classes."""
    if logits.numel() <= MAX_NUMEL:
        return small_kernels.softmax_forward(module, logits)
    probs = memory.new_like(logits)
    rows, classes = logits.shape
    num_tasks, sizes = _tasks(rows, classes, torch.get_num_threads())
    team.run(module, "softmax_rows", num_tasks, logits=logits.data_ptr(), probs=probs.data_ptr(), **sizes)
    return probs


def unsupported_softmax_backward(grad_out: Tensor, probs: Tensor, dim: int) -> str:
    if reason := _unsupported_rows(grad_out, probs) if dim in (-1, 1) else _DIM:
        return reason
    return "" if probs.numel() >= MIN_GRAD_NUMEL and probs.shape[1] >= MIN_CLASSES else _SHORT_ROWS


def softmax_backward(module: KernelModule, grad_out: Tensor, probs: Tensor, _: int) -> Tensor:
    """Gradient of softmax with respect to the logits, (rows, classes), from the results ``probs``."""
    grad_logits = memory.new_like(probs)
    rows, classes = probs.shape
    num_tasks, sizes = _tasks(rows, classes, torch.get_num_threads())
    team.run(
        module, "softmax_rows_grad", num_tasks, grad_out=grad_out.data_ptr(), probs=probs.data_ptr(),
        grad_logits=grad_logits.data_ptr(), **sizes,
    )  # fmt: skip
    return grad_logits


_SHAPE = "the tensors are not all (rows, classes), or they are empty"
_DIM = "the softmax is not along the last of two dimensions"
_SHORT_ROWS = "PyTorch's vectorised operators are faster for short rows, and for few logits"


def unsupported_cross_entropy_from_labels(
    logits: Tensor, labels: Tensor, weight: Tensor | None, ignore_index: int, _: str, label_smoothing: float
) -> str:
    if weight is not None or label_smoothing:
        return "there are class weights, or label smoothing"
    if reason := _unsupported_rows(logits):
        return reason
    if labels.shape != logits.shape[:1]:
        return "the labels are not one for each row of logits"
    if not -(1 << 63) <= ignore_index < 1 << 63:
        return "ignore_index does not fit into 64 bits"
    return unsupported_tensor(labels, torch.int64, contiguous=True)


def cross_entropy_from_labels(
    module: KernelModule, logits: Tensor, labels: Tensor, _: None, ignore_index: int, reduction: str, __: float
) -> LabelLoss | None:
    """Cross-entropy of ``logits``, (rows, classes), for labels (rows,) int64, and what its gradient is made of.

    Returns:
        The losses (rows,) for the reduction "none", otherwise their sum or mean (); their gradient (rows, classes),
        or None; if it is None, the maximum and the sum of the powers of each row, (rows, 2); and the target at a
        label, 1 or 1/B. None if a label is no class, or if all are ignored.
    """
    rows, classes = logits.shape
    if reduction != "none" and classes < MIN_CLASSES and rows * classes <= MAX_NUMEL:
        counted, invalid, loss, grad = small_kernels.cross_entropy_with_grad(
            module, logits, labels, ignore_index, reduction == "mean"
        )
        return None if invalid or not counted else (loss, grad, None, _target(counted, reduction))
    counts, row_stats = (ctypes.c_int64 * 2)(), memory.new(rows, 2)
    loss = memory.new(rows) if reduction == "none" else memory.new()
    program, layout = _label_loss_program(module, rows, classes, ignore_index, reduction, torch.get_num_threads())
    addresses = logits.data_ptr(), labels.data_ptr(), ctypes.addressof(counts), loss.data_ptr(), row_stats.data_ptr()
    program.run_in_workspace(layout, addresses)
    return None if counts[1] or not counts[0] else (loss, None, row_stats, _target(counts[0], reduction))


@lru_cache(maxsize=256)
def _label_loss_program(
    module: KernelModule, rows: int, classes: int, ignore_index: int, reduction: str, threads: int
) -> tuple[Program, WorkspaceLayout]:
    """A program that computes the loss, and the layout of its workspace: the losses of rows, if they are added."""
    num_tasks, sizes = _tasks(rows, classes, threads)
    is_summed = reduction != "none"
    layout = WorkspaceLayout(losses=4 * rows) if is_summed else WorkspaceLayout()
    losses = BufferRef("losses" if is_summed else "loss")
    regions = [ParallelRegion(num_tasks, [module.call(
        "label_losses", logits=BufferRef("logits"), labels=BufferRef("labels"), losses=losses,
        row_stats=BufferRef("row_stats"), counts=BufferRef("counts"), ignore_index=ignore_index,
        divides_by_count=reduction == "mean", **sizes,
    )])]  # fmt: skip
    if is_summed:
        call = module.call("sum_losses", losses=losses, loss=BufferRef("loss"), rows=rows)
        regions.append(ParallelRegion(1, [call]))
    names = "logits", "labels", "counts", "loss", "row_stats"
    return Program(module, num_tasks, regions, names, layout), layout


def _target(counted: int, reduction: str) -> float:
    return 1 / counted if reduction == "mean" else 1.0


def unsupported_cross_entropy_from_labels_backward(
    grad_out: Tensor, logits: Tensor, labels: Tensor, _: None, row_stats: Tensor, __: int, ___: float, ____: float
) -> str:
    if grad_out.shape not in ((), logits.shape[:1]):
        return "the incoming gradient is neither one number nor one for each row"
    if grad_out.is_neg() or not storage_covers(grad_out):
        return "the storage of a tensor is too small, or it is a negative view"
    return (
        unsupported_tensor(grad_out)
        or _unsupported_rows(logits)
        or unsupported_tensor(labels, torch.int64, contiguous=True)
        or unsupported_tensor(row_stats, contiguous=True)
    )


def cross_entropy_from_labels_backward(
    module: KernelModule, grad_out: Tensor, logits: Tensor, labels: Tensor, _: None, row_stats: Tensor,
    ignore_index: int, __: float, target: float,
) -> Tensor:  # fmt: skip
    """Gradient with respect to the logits, (rows, classes), from results of :func:`cross_entropy_from_labels`."""
    grad_logits = memory.new_like(logits)
    grad_out_stride = grad_out.stride(0) if grad_out.dim() else 0
    program = _label_loss_grad_program(
        module, *logits.shape, grad_out_stride, ignore_index, target, torch.get_num_threads()
    )
    program.run((
        grad_out.data_ptr(), logits.data_ptr(), labels.data_ptr(), row_stats.data_ptr(), grad_logits.data_ptr(),
    ))  # fmt: skip
    return grad_logits


@lru_cache(maxsize=256)
def _label_loss_grad_program(
    module: KernelModule,
    rows: int,
    classes: int,
    grad_out_stride: int,
    ignore_index: int,
    target: float,
    threads: int,
) -> Program:
    num_tasks, sizes = _tasks(rows, classes, threads)
    names = "grad_out", "logits", "labels", "row_stats", "grad_logits"
    call = module.call(
        "label_losses_grad", **{name: BufferRef(name) for name in names}, grad_out_stride=grad_out_stride,
        ignore_index=ignore_index, weight=target, **sizes,
    )  # fmt: skip
    return Program(module, num_tasks, [ParallelRegion(num_tasks, [call])], names)
