"""Counts of what conventions are about: where a value is exactly 0, or two are equal, a derivative is a choice."""

from __future__ import annotations

import torch

from compare.case import Case
from compare.running import run
from compare.variants import Variant, with_values


def census(case: Case, variant: Variant, seed: int = 0) -> dict[str, int]:
    """Elements, exact zeros and equal neighbours (along rows and columns) of every float input; the case's own."""
    inputs = with_values(case.inputs(seed), variant)
    counts: dict[str, int] = {}
    for name, value in inputs.items():
        if not value.is_floating_point():
            continue
        counts[f"{name}: elements"] = value.numel()
        counts[f"{name}: exact zeros"] = int((value == 0).sum())
        pairs = [value.diff(dim=dim) for dim in range(max(0, value.dim() - 2), value.dim())]
        counts[f"{name}: equal neighbours"] = sum(int((pair == 0).sum()) for pair in pairs)
    output = run(case.native, inputs, Variant(device=variant.device), seed).values.get("output")
    if output is not None and output.is_floating_point():
        counts["output: exact zeros"] = int((output == 0).sum())
    if case.census is not None:
        with torch.no_grad():
            counts |= {name: int(count) for name, count in case.census(*inputs.values()).items()}
    return counts
