"""The small kernels as functions of tensors, each under the name of its formula; None where the formula serves."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from manualgrad.cpu import instruction_set, team, workspace
from manualgrad.cpu.tensor_checks import in_plain_eager_mode, is_contiguous_as, storage_covers, supports_tensors

FEW = 1 << 13  # numbers, up to which a loop over single ones is quicker than operators on vectors
WORTH_A_THREAD = 1 << 15  # numbers; torch has the same


def _served(*tensors: Tensor) -> bool:
    """Whether all are dense, and the first is a small table of rows and classes, neither of them 0."""
    z = tensors[0]
    return (
        z.dim() == 2
        and 0 < z.numel() <= FEW
        and in_plain_eager_mode()
        and all(is_contiguous_as(t, t.shape) for t in tensors)
        and instruction_set.in_use() is not None
    )


def _run(z: Tensor, y: Tensor | None, g: Tensor | None, costs: bool) -> tuple[Tensor, Tensor, Tensor]:
    rows, classes = z.shape
    s, cost = workspace.new(rows, classes), workspace.new(rows if costs else 0)
    dz = workspace.new(rows, classes) if g is not None else s
    team.run(instruction_set.in_use(), "class_rows", 1, [
        z.data_ptr(), 0 if y is None else y.data_ptr(), 0 if g is None else g.data_ptr(), 0 if g is None else g.dim(),
        s.data_ptr(), cost.data_ptr(), dz.data_ptr(), rows, rows, classes, costs, g is not None,
    ])  # fmt: skip
    return s, cost, dz


def softmax_forward(z: Tensor, dim: int) -> Tensor | None:
    if dim not in (-1, 1) or not _served(z):
        return None
    return _run(z, None, None, False)[0]


def cross_entropy(z: Tensor, y: Tensor, summed: bool) -> Tensor | None:
    if y.shape != z.shape or not _served(z, y):
        return None
    costs = _run(z, y, None, True)[1]
    if not summed:
        return costs
    cost = workspace.new()
    team.run(instruction_set.in_use(), "cost_sum", 1, [costs.data_ptr(), cost.data_ptr(), len(costs)])
    return cost


def cross_entropy_backward(g: Tensor, z: Tensor, y: Tensor) -> Tensor | None:
    if y.shape != z.shape or g.shape not in ((), z.shape[:1]) or not _served(z, y, g):
        return None
    return _run(z, y, g, False)[2]


def labels_distribution(labels: Tensor, like: Tensor, classes: int, ignored: int, mean: bool) -> Tensor | None:
    """y of equation (14); None too where a label is no class, or no row counts, both of which are for the formula."""
    if like.dtype is not torch.float32 or not _are_labels(labels, classes) or instruction_set.in_use() is None:
        return None
    y, counts = workspace.new(len(labels), classes), (ctypes.c_int64 * 2)()
    team.run(instruction_set.in_use(), "targets", 1, _targets(labels, y, counts, ignored, mean))
    return None if counts[1] or not counts[0] else y


def cost_of_labels(z: Tensor, labels: Tensor, ignored: int, mean: bool) -> tuple[Tensor, Tensor, Tensor] | None:
    """y, J and its gradient; None where the formulas serve, which is also where a label is no
    class, or no row counts."""
    if not isinstance(z, Tensor) or not isinstance(labels, Tensor) or not _served(z):
        return None
    if labels.shape != z.shape[:1] or not _are_labels(labels, z.shape[1]) or not -(1 << 63) <= ignored < 1 << 63:
        return None
    code, (rows, classes), counts = instruction_set.in_use(), z.shape, (ctypes.c_int64 * 2)()
    s, y, dz, costs = workspace.like(z), workspace.like(z), workspace.like(z), workspace.new(rows)
    cost, number = workspace.new(), ctypes.c_float(1)
    steps = [
        ("targets", _targets(labels, y, counts, ignored, mean)),
        ("class_rows", [
            z.data_ptr(), y.data_ptr(), ctypes.addressof(number), 0, s.data_ptr(), costs.data_ptr(), dz.data_ptr(),
            rows, rows, classes, True, True,
        ]),
        ("cost_sum", [costs.data_ptr(), cost.data_ptr(), rows]),
    ]  # fmt: skip
    team.run_steps(code, steps)
    return None if counts[1] or not counts[0] else (y, cost, dz)


def _are_labels(labels: Tensor, classes: int) -> bool:
    return (
        labels.dim() == 1
        and 0 < labels.numel() * classes <= FEW
        and in_plain_eager_mode()
        and is_contiguous_as(labels, labels.shape, torch.int64)
    )


def _targets(labels: Tensor, y: Tensor, counts: ctypes.Array, ignored: int, mean: bool) -> list[int]:
    rows, classes = y.shape
    return [labels.data_ptr(), y.data_ptr(), ctypes.addressof(counts), rows, rows, classes, ignored, mean]


def relu_backward(g: Tensor, z: Tensor, subgradient: float) -> Tensor | None:
    """For tensors of any shape that lie alike, without gaps."""
    if (
        g.shape != z.shape
        or not supports_tensors(g, z)
        or g.is_neg()
        or z.is_neg()
        or instruction_set.in_use() is None
    ):
        return None
    alike = g.is_contiguous() and z.is_contiguous()
    last = g.dim() == 4 and all(t.is_contiguous(memory_format=torch.channels_last) for t in (g, z))
    if not (alike or last) or not storage_covers(g) or not storage_covers(z):
        return None
    dz, floats = workspace.new(z.numel()).as_strided(z.shape, z.stride()), z.numel()
    slots = max(1, min(torch.get_num_threads(), floats // WORTH_A_THREAD))
    share = -(-floats // slots)
    team.run(instruction_set.in_use(), "relu_backward", slots, [
        g.data_ptr(), z.data_ptr(), dz.data_ptr(), floats, share, subgradient != 0, team.float_bits(subgradient),
    ])  # fmt: skip
    return dz
