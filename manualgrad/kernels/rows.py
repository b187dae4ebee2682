"""The small kernels as functions of tensors, each under the name of its formula; None where the formula serves."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from manualgrad.kernels import machine, memory, parallel
from manualgrad.kernels.plain import is_all_there, is_served

FEW = 1 << 13  # numbers, up to which a loop over single ones is quicker than operators on vectors
WORTH_A_THREAD = 1 << 15  # numbers; torch has the same


def _served(*tensors: Tensor) -> bool:
    """Whether all are dense tables with rows and classes, neither of them 0, and small."""
    z = tensors[0]
    return (
        z.dim() == 2
        and 0 < z.numel() <= FEW
        and is_served(*tensors)
        and all(t.is_contiguous() and not t.is_neg() and is_all_there(t) for t in tensors)
        and machine.in_use() is not None
    )


def _run(z: Tensor, y: Tensor | None, g: Tensor | None, costs: bool) -> tuple[Tensor, Tensor, Tensor]:
    rows, classes = z.shape
    s, cost = memory.new(rows, classes), memory.new(rows + 1 if costs else 0)
    dz = memory.new(rows, classes) if g is not None else s
    parallel.run(machine.in_use(), "class_rows", 1, [
        z.data_ptr(), 0 if y is None else y.data_ptr(), 0 if g is None else g.data_ptr(), 0 if g is None else g.dim(),
        s.data_ptr(), cost.data_ptr(), dz.data_ptr(), rows, classes, costs, g is not None,
    ])  # fmt: skip
    return s, cost, dz


def softmax_values(z: Tensor, dim: int) -> Tensor | None:
    if dim not in (-1, 1) or not _served(z):
        return None
    return _run(z, None, None, False)[0]


def cross_entropy(z: Tensor, y: Tensor, summed: bool) -> Tensor | None:
    if y.shape != z.shape or not _served(z, y):
        return None
    cost = _run(z, y, None, True)[1]
    return cost[-1].clone() if summed else cost[:-1].clone()


def logits_gradient(g: Tensor, z: Tensor, y: Tensor) -> Tensor | None:
    if y.shape != z.shape or g.shape not in ((), z.shape[:1]) or not _served(z, y, g):
        return None
    return _run(z, y, g, False)[2]


def probabilities_cost_and_gradient(z: Tensor, y: Tensor, g: float) -> tuple[Tensor, Tensor, Tensor] | None:
    if y.shape != z.shape or not _served(z, y):
        return None
    s, cost, dz = _run(z, y, memory.new(1).fill_(g)[0], True)
    return s, cost[-1].clone(), dz


def labels_distribution(labels: Tensor, like: Tensor, classes: int, ignored: int, mean: bool) -> Tensor | None:
    """y of equation (14); None too where a label is no class, or no row counts, both of which are for the formula."""
    if labels.dim() != 1 or not 0 < labels.numel() * classes <= FEW or like.dtype is not torch.float32:
        return None
    if (
        not is_served(labels, dtype=torch.int64)
        or not labels.is_contiguous()
        or not is_all_there(labels)
        or machine.in_use() is None
    ):
        return None
    y, counts = memory.new(len(labels), classes), (ctypes.c_int64 * 2)()
    parallel.run(machine.in_use(), "targets", 1, [
        labels.data_ptr(), y.data_ptr(), ctypes.addressof(counts), len(labels), classes, ignored, mean,
    ])  # fmt: skip
    return None if counts[1] or not counts[0] else y


def rectified_gradient(g: Tensor, z: Tensor, subgradient: float) -> Tensor | None:
    """For tensors of any shape that lie alike, without gaps."""
    if g.shape != z.shape or not is_served(g, z) or g.is_neg() or z.is_neg() or machine.in_use() is None:
        return None
    alike = g.is_contiguous() and z.is_contiguous()
    last = g.dim() == 4 and all(t.is_contiguous(memory_format=torch.channels_last) for t in (g, z))
    if not (alike or last) or not is_all_there(g) or not is_all_there(z):
        return None
    dz, floats = memory.new(z.numel()).as_strided(z.shape, z.stride()), z.numel()
    slots = max(1, min(torch.get_num_threads(), floats // WORTH_A_THREAD))
    share = -(-floats // slots)
    parallel.run(machine.in_use(), "relu_backward", slots, [
        g.data_ptr(), z.data_ptr(), dz.data_ptr(), floats, share, subgradient != 0, parallel.as_float(subgradient),
    ])  # fmt: skip
    return dz
