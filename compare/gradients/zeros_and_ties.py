"""Counts of exact zeros and equal neighbours: at these values a derivative is a matter of convention."""

from __future__ import annotations

import torch

from compare.case import Case
from compare.gradients.run_variant import run_variant
from compare.gradients.variants import Variant, round_inputs


def count_zeros_and_ties(case: Case, variant: Variant, seed: int = 0) -> dict[str, int]:
    """Count elements, exact zeros and equal neighbours (along rows and columns) of every floating-point input.

    Exact zeros of the output and the counts of ``case.census`` are included.
    """
    inputs = round_inputs(case.inputs(seed), variant)
    counts: dict[str, int] = {}
    for name, value in inputs.items():
        if not value.is_floating_point():
            continue
        counts[f"{name}: elements"] = value.numel()
        counts[f"{name}: exact zeros"] = int((value == 0).sum())
        differences = [value.diff(dim=dim) for dim in range(max(0, value.dim() - 2), value.dim())]
        counts[f"{name}: equal neighbours"] = sum(int((difference == 0).sum()) for difference in differences)
    output = run_variant(case.native or case.ours, inputs, Variant(device=variant.device), seed).values.get("output")
    if output is not None and output.is_floating_point():
        counts["output: exact zeros"] = int((output == 0).sum())
    if case.census is not None:
        with torch.no_grad():
            counts |= {name: int(count) for name, count in case.census(*inputs.values()).items()}
    return counts
