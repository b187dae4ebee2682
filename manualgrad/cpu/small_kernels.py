"""The smaller kernels as functions of tensors, each under the name of its formula in ``ops/``.

A function ``unsupported_...`` has the arguments of the formula, and returns the reason why the kernel does not
compute them, "" if it does. The kernel's function has the compiled module before these arguments; it relies on the
checks of ``unsupported_...``.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from manualgrad.cpu import memory, team
from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.program import Program, WorkspaceLayout
from manualgrad.cpu.signature import BufferRef
from manualgrad.cpu.team import ParallelRegion
from manualgrad.cpu.tensor_checks import unsupported_tensor

MAX_NUMEL = 1 << 13  # logits up to which a scalar loop is faster than PyTorch's vectorised operators
NUMEL_PER_THREAD = 1 << 15  # as in PyTorch
STREAM_NUMEL = 1 << 20  # of gradients that are stored past the caches


def _unsupported_logits(logits: Tensor, *others: Tensor) -> str:
    """Check ``logits``, (rows, classes), neither of them 0, and the other tensors."""
    if logits.dim() != 2:
        return "the logits are not (rows, classes)"
    if not 0 < logits.numel() <= MAX_NUMEL:
        return _NUMEL
    for t in (logits, *others):
        if reason := unsupported_tensor(t, contiguous=True):
            return reason
    return ""


_NUMEL = f"PyTorch's vectorised operators are faster for more than {MAX_NUMEL} logits, and there must be one"


def _softmax_cross_entropy(
    module: KernelModule, logits: Tensor, targets: Tensor | None, grad_out: Tensor | None, needs_loss: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return probabilities, losses and gradient; without ``needs_loss`` or ``grad_out`` the others are not valid."""
    rows, classes = logits.shape
    probs, losses = memory.new(rows, classes), memory.new(rows if needs_loss else 0)
    grad_logits = memory.new(rows, classes) if grad_out is not None else probs
    team.run(
        module, "softmax_cross_entropy", 1, logits=logits.data_ptr(), targets=_address(targets),
        grad_out=_address(grad_out), grad_out_stride=0 if grad_out is None else grad_out.dim(),
        probs=probs.data_ptr(), losses=losses.data_ptr(), grad_logits=grad_logits.data_ptr(),
        rows=rows, share=rows, classes=classes, needs_loss=needs_loss, needs_grad=grad_out is not None,
    )  # fmt: skip
    return probs, losses, grad_logits


def softmax_forward(module: KernelModule, logits: Tensor) -> Tensor:
    """Softmax of at most MAX_NUMEL ``logits``, (rows, classes), along the classes."""
    return _softmax_cross_entropy(module, logits, None, None, False)[0]


def unsupported_cross_entropy_forward(logits: Tensor, targets: Tensor, _: bool) -> str:
    return _unsupported_logits(logits, targets) if targets.shape == logits.shape else _TARGET_SHAPE


def cross_entropy_forward(module: KernelModule, logits: Tensor, targets: Tensor, summed: bool) -> Tensor:
    """Cross-entropy of ``logits``, (rows, classes), for target probabilities of that shape: (rows,), or their sum."""
    losses = _softmax_cross_entropy(module, logits, targets, None, True)[1]
    if not summed:
        return losses
    loss = memory.new()
    team.run(module, "sum_losses", 1, losses=losses.data_ptr(), loss=loss.data_ptr(), rows=len(losses))
    return loss


def unsupported_cross_entropy_backward(grad_out: Tensor, logits: Tensor, targets: Tensor) -> str:
    if targets.shape != logits.shape or grad_out.shape not in ((), logits.shape[:1]):
        return _TARGET_SHAPE
    return _unsupported_logits(logits, targets, grad_out)


def cross_entropy_backward(module: KernelModule, grad_out: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Gradient of cross-entropy with respect to ``logits``, (rows, classes); ``grad_out`` is () or (rows,)."""
    return _softmax_cross_entropy(module, logits, targets, grad_out, False)[2]


_TARGET_SHAPE = "targets or incoming gradients do not have the shape of the logits"


def unsupported_targets_from_labels(
    labels: Tensor, logits: Tensor, weight: Tensor | None, classes: int, _: int, __: bool, label_smoothing: float
) -> str:
    if weight is not None or label_smoothing:
        return "there are class weights, or label smoothing"
    if logits.dtype is not torch.float32:
        return "the logits are not float32"
    return _unsupported_labels(labels, classes)


def targets_from_labels(
    module: KernelModule, labels: Tensor, _: Tensor, __: None, classes: int, ignore_index: int, mean: bool, ___: float
) -> tuple[Tensor, bool] | None:
    """Targets of equation (14) for ``labels`` (rows,) int64: (rows, classes) float32, and False: some label counts.

    None if a label is no class, or if all are ignored."""
    targets, counts = memory.new(len(labels), classes), (ctypes.c_int64 * 2)()
    team.run(module, "one_hot_targets", 1, **_target_arguments(labels, targets, counts, ignore_index, mean))
    return None if counts[1] or not counts[0] else (targets, False)


def cross_entropy_with_grad(
    module: KernelModule, logits: Tensor, labels: Tensor, ignore_index: int, mean: bool
) -> tuple[int, int, Tensor, Tensor]:
    """Sum of the losses () of at most MAX_NUMEL logits, and its gradient (rows, classes), from labels (rows,) int64.

    Before them, the number of labels that are not ignored, and how many of these are no class. The numbers are those
    of the kernels for targets, bit for bit."""
    counts, loss, grad_logits = (ctypes.c_int64 * 2)(), memory.new(), memory.new_like(logits)
    program, layout = _cross_entropy_with_grad_program(module, *logits.shape, ignore_index, mean)
    addresses = (
        logits.data_ptr(),
        labels.data_ptr(),
        ctypes.addressof(counts),
        loss.data_ptr(),
        grad_logits.data_ptr(),
    )
    program.run_in_workspace(layout, addresses)
    return counts[0], counts[1], loss, grad_logits


@lru_cache(maxsize=256)
def _cross_entropy_with_grad_program(
    module: KernelModule, rows: int, classes: int, ignore_index: int, mean: bool
) -> tuple[Program, WorkspaceLayout]:
    numel_bytes, row_bytes, sizes = 4 * rows * classes, 4 * rows, {"rows": rows, "share": rows, "classes": classes}
    layout = WorkspaceLayout(probs=numel_bytes, targets=numel_bytes, losses=row_bytes)
    logits, targets, losses = BufferRef("logits"), BufferRef("targets"), BufferRef("losses")
    calls = [
        module.call(
            "one_hot_targets", labels=BufferRef("labels"), targets=targets, counts=BufferRef("counts"),
            ignore_index=ignore_index, divides_by_count=mean, **sizes,
        ),
        module.call(
            "softmax_cross_entropy", logits=logits, targets=targets, grad_out=ctypes.addressof(_ONE),
            grad_out_stride=0, probs=BufferRef("probs"), losses=losses, grad_logits=BufferRef("grad_logits"),
            needs_loss=True, needs_grad=True, **sizes,
        ),
        module.call("sum_losses", losses=losses, loss=BufferRef("loss"), rows=rows),
    ]  # fmt: skip
    names = "logits", "labels", "counts", "loss", "grad_logits"
    return Program(module, 1, [ParallelRegion(1, calls)], names, layout), layout


_ONE = ctypes.c_float(1)  # the gradient of the loss with respect to itself


def _unsupported_labels(labels: Tensor, classes: int) -> str:
    if labels.dim() != 1:
        return "the labels are not (rows,)"
    if not 0 < labels.numel() * classes <= MAX_NUMEL:
        return _NUMEL
    return unsupported_tensor(labels, torch.int64, contiguous=True)


def _target_arguments(
    labels: Tensor, targets: Tensor, counts: ctypes.Array[ctypes.c_int64], ignore_index: int, mean: bool
) -> dict[str, int]:
    rows, classes = targets.shape
    return {
        "labels": labels.data_ptr(),
        "targets": targets.data_ptr(),
        "counts": ctypes.addressof(counts),
        "rows": rows,
        "share": rows,
        "classes": classes,
        "ignore_index": int(ignore_index),
        "divides_by_count": mean,
    }


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def unsupported_relu_backward(grad_out: Tensor, z: Tensor, _: float) -> str:
    """Check that the tensors have one shape, and that z is contiguous or channels_last."""
    if grad_out.shape != z.shape:
        return "the tensors do not have one shape"
    if reason := unsupported_tensor(grad_out, covered=True) or unsupported_tensor(z, covered=True):
        return reason
    return "" if _dense_format(z) is not None else "z is neither contiguous nor channels_last"


def _dense_format(t: Tensor) -> torch.memory_format | None:
    """Return the memory format in which ``t`` has no gaps, None if there is none."""
    if t.is_neg():
        return None
    if t.is_contiguous():
        return torch.contiguous_format
    return torch.channels_last if t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) else None


def relu_backward(module: KernelModule, grad_out: Tensor, z: Tensor, subgradient: float) -> Tensor:
    """Gradient of ReLU with respect to ``z``, in the memory format of ``z``; ``grad_out`` may have any strides."""
    memory_format = _dense_format(z)
    assert memory_format is not None, "unsupported_relu_backward was not called"
    grad_out, grad_z = grad_out.resolve_neg().contiguous(memory_format=memory_format), memory.new_like(z)
    program = _relu_backward_program(module, z.numel(), float(subgradient), torch.get_num_threads())
    program.run((grad_out.data_ptr(), z.data_ptr(), grad_z.data_ptr()))
    return grad_z


@lru_cache(maxsize=256)
def _relu_backward_program(module: KernelModule, numel: int, subgradient: float, threads: int) -> Program:
    num_tasks = max(1, min(threads, numel // NUMEL_PER_THREAD))
    num_vectors = -(-numel // module.lanes)  # a task has whole ones, which streams need
    name = "relu_backward_streams" if numel >= STREAM_NUMEL else "relu_backward"
    call = module.call(
        name, grad_out=BufferRef("grad_out"), z=BufferRef("z"), grad_z=BufferRef("grad_z"),
        numel=numel, share=-(-num_vectors // num_tasks) * module.lanes, has_subgradient=subgradient != 0,
        subgradient=subgradient,
    )  # fmt: skip
    return Program(module, num_tasks, [ParallelRegion(num_tasks, [call])], ("grad_out", "z", "grad_z"))
