"""The smaller kernels as functions of tensors, each under the name of its formula in ``ops/``.

Every function returns None if the kernel does not support the arguments, or if its result must not be used: then the
formula computes the result.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from manualgrad.cpu import instruction_set, memory, team
from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.tensor_checks import in_plain_eager_mode, is_contiguous_as, storage_covers, supports_tensors

MAX_NUMEL = 1 << 13  # logits up to which a scalar loop is faster than PyTorch's vectorised operators
NUMEL_PER_THREAD = 1 << 15  # as in PyTorch


def _module_for(logits: Tensor, *others: Tensor) -> KernelModule | None:
    """Return the kernels if they support ``logits``, (rows, classes), neither of them 0, and the other tensors."""
    supported = (
        logits.dim() == 2
        and 0 < logits.numel() <= MAX_NUMEL
        and in_plain_eager_mode()
        and all(is_contiguous_as(t, t.shape) for t in (logits, *others))
    )
    return instruction_set.current_module() if supported else None


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


def softmax_forward(logits: Tensor, dim: int) -> Tensor | None:
    """Softmax of ``logits``, (rows, classes), along the classes."""
    if dim not in (-1, 1) or (module := _module_for(logits)) is None:
        return None
    return _softmax_cross_entropy(module, logits, None, None, False)[0]


def cross_entropy_forward(logits: Tensor, targets: Tensor, summed: bool) -> Tensor | None:
    """Cross-entropy of ``logits``, (rows, classes), for target probabilities of that shape: (rows,), or their sum."""
    if targets.shape != logits.shape or (module := _module_for(logits, targets)) is None:
        return None
    losses = _softmax_cross_entropy(module, logits, targets, None, True)[1]
    if not summed:
        return losses
    loss = memory.new()
    team.run(module, "sum_losses", 1, losses=losses.data_ptr(), loss=loss.data_ptr(), rows=len(losses))
    return loss


def cross_entropy_backward(grad_out: Tensor, logits: Tensor, targets: Tensor) -> Tensor | None:
    """Gradient of cross-entropy with respect to ``logits``, (rows, classes); ``grad_out`` is () or (rows,)."""
    if targets.shape != logits.shape or grad_out.shape not in ((), logits.shape[:1]):
        return None
    if (module := _module_for(logits, targets, grad_out)) is None:
        return None
    return _softmax_cross_entropy(module, logits, targets, grad_out, False)[2]


def target_distribution(labels: Tensor, logits: Tensor, classes: int, ignore_index: int, mean: bool) -> Tensor | None:
    """Targets of equation (14) for ``labels`` (rows,) int64: (rows, classes) of the logits' dtype, float32.

    None also if a label is no class, or if all are ignored."""
    if logits.dtype is not torch.float32 or not _supports_labels(labels, classes):
        return None
    if (module := instruction_set.current_module()) is None:
        return None
    targets, counts = memory.new(len(labels), classes), (ctypes.c_int64 * 2)()
    team.run(module, "one_hot_targets", 1, **_target_arguments(labels, targets, counts, ignore_index, mean))
    return None if counts[1] or not counts[0] else targets


def cross_entropy_with_grad(
    logits: Tensor, labels: Tensor, ignore_index: int, mean: bool
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Targets (rows, classes), the sum of the losses (), and its gradient (rows, classes), from labels (rows,) int64.

    None also if a label is no class, or if all are ignored."""
    if not isinstance(logits, Tensor) or not isinstance(labels, Tensor) or (module := _module_for(logits)) is None:
        return None
    if labels.shape != logits.shape[:1] or not _supports_labels(labels, logits.shape[1]):
        return None
    if not -(1 << 63) <= ignore_index < 1 << 63:
        return None
    (rows, classes), counts = logits.shape, (ctypes.c_int64 * 2)()
    probs, targets, grad_logits = (memory.new_like(logits) for _ in range(3))
    losses, loss, grad_out = memory.new(rows), memory.new(), ctypes.c_float(1)
    team.run_calls(module, [
        module.call("one_hot_targets", **_target_arguments(labels, targets, counts, ignore_index, mean)),
        module.call(
            "softmax_cross_entropy", logits=logits.data_ptr(), targets=targets.data_ptr(),
            grad_out=ctypes.addressof(grad_out), grad_out_stride=0, probs=probs.data_ptr(), losses=losses.data_ptr(),
            grad_logits=grad_logits.data_ptr(), rows=rows, share=rows, classes=classes,
            needs_loss=True, needs_grad=True,
        ),
        module.call("sum_losses", losses=losses.data_ptr(), loss=loss.data_ptr(), rows=rows),
    ])  # fmt: skip
    return None if counts[1] or not counts[0] else (targets, loss, grad_logits)


def _supports_labels(labels: Tensor, classes: int) -> bool:
    return (
        labels.dim() == 1
        and 0 < labels.numel() * classes <= MAX_NUMEL
        and in_plain_eager_mode()
        and is_contiguous_as(labels, labels.shape, torch.int64)
    )


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


def relu_backward(grad_out: Tensor, z: Tensor, subgradient: float) -> Tensor | None:
    """Gradient of ReLU with respect to ``z``, for tensors of one shape, both contiguous or both channels_last."""
    if grad_out.shape != z.shape or not supports_tensors(grad_out, z) or grad_out.is_neg() or z.is_neg():
        return None
    if (module := instruction_set.current_module()) is None:
        return None
    contiguous = grad_out.is_contiguous() and z.is_contiguous()
    channels_last = z.dim() == 4 and all(t.is_contiguous(memory_format=torch.channels_last) for t in (grad_out, z))
    if not (contiguous or channels_last) or not storage_covers(grad_out) or not storage_covers(z):
        return None
    numel = z.numel()
    grad_z = memory.new(numel).as_strided(z.shape, z.stride())
    num_tasks = max(1, min(torch.get_num_threads(), numel // NUMEL_PER_THREAD))
    team.run(
        module, "relu_backward", num_tasks, grad_out=grad_out.data_ptr(), z=z.data_ptr(), grad_z=grad_z.data_ptr(),
        numel=numel, share=-(-numel // num_tasks), has_subgradient=bool(subgradient != 0),
        subgradient=float(subgradient),
    )  # fmt: skip
    return grad_z
