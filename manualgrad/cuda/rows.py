"""Tensors as rows of classes for the kernels: (A, B, classes), views where possible, and the sizes of tiles."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from manualgrad.cuda.launch import MAX_GRID
from manualgrad.cuda.tensor_checks import MAX_OFFSET, needs_64_bits

TILE = 2048  # numbers of a tile
MAX_BLOCK = 4096  # classes of a tile, which has one row then
MAX_STRIDED_BLOCK = 64  # the same if neighbours in memory are of different rows: then a tile has many rows
MAX_CLASSES = MAX_GRID * MAX_STRIDED_BLOCK  # of a launch with a program for each tile of a row


def as_rows(x: Tensor, dim: int = -1) -> Tensor:
    """``x`` as (A, B, classes), where the classes lie along ``dim``: a view, or a copy if there is none."""
    dim = dim % x.dim()
    before, after, classes = math.prod(x.shape[:dim]), math.prod(x.shape[dim + 1 :]), x.shape[dim]
    if after > 1:
        return x.reshape(before, classes, after).transpose(1, 2)
    if x.dim() > 2:  # (N, d1, ..., C), which may be a view of (N, C, d1, ...)
        return x.reshape(x.shape[0], -1, classes)
    return x.reshape(1, before, classes)


def new_rows(x: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """A new tensor like ``x`` and its rows, a view; contiguous if rows in the memory order of x have no view."""
    for memory_format in (torch.preserve_format, torch.contiguous_format):
        result = torch.empty_like(x, memory_format=memory_format)
        rows = as_rows(result, dim)
        if rows.data_ptr() == result.data_ptr():
            break
    return result, rows


def one_for_each_row(x: Tensor, rows: Tensor) -> Tensor:
    """``x``, one number or one for each row, as (A, B)."""
    return x.expand(rows.shape[:2]) if x.dim() == 0 else x.reshape(rows.shape[:2])


def tiles(rows: Tensor, *others: Tensor) -> tuple[int, dict[str, Any]]:
    """The number of programs for all rows, and the constants of the kernels."""
    a, b, classes = rows.shape
    limit = MAX_BLOCK if rows.stride(2) == 1 else MAX_STRIDED_BLOCK
    block = max(2, min(1 << (classes - 1).bit_length(), limit))
    row_block = max(1, min(TILE // block, 1 << (a * b - 1).bit_length()))
    return -(-(a * b) // row_block), {
        "ROW_BLOCK": row_block, "BLOCK": block, "WIDE": needs_64_bits(rows, *others) or a * b >= MAX_OFFSET,
    }  # fmt: skip
