"""Calls that ours accepts and native PyTorch refuses, or the other way round, each with the reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import ones

import manualgrad
from tests.ops.calls import LABELS, LOGITS, NATIVE, OURS, B, Call, W, X, call


@dataclass(frozen=True)
class Difference:
    """A call that only one side accepts, and the reason why ours differs on purpose."""

    call: Call
    accepted_by: Literal["ours", "native"]
    reason: str


DIFFERENCES = {
    "conv2d: no input channels": Difference(
        call("conv2d", ones(2, 0, 5, 6), ones(6, 0, 3, 3), B),
        "native",
        "PyTorch returns an output without the 6 channels",
    ),
    "conv2d: integers": Difference(
        call("conv2d", X.int(), W.int()),
        "native",
        "an image of integers usually lacks a .float(), and it has no gradient",
    ),
    "conv2d: complex": Difference(
        call("conv2d", X.cfloat(), W.cfloat()), "native", "the formula sheet's derivatives are real"
    ),
    "dense: integers": Difference(
        call("dense", ones(2, 3).long(), ones(4, 3).long()), "native", "as for conv2d, integers have no gradient"
    ),
    "dense: complex": Difference(
        call("dense", ones(2, 3).cfloat(), ones(4, 3).cfloat()), "native", "the formula sheet's derivatives are real"
    ),
    "dense: bias to broadcast": Difference(
        call("dense", ones(2, 3), ones(4, 3), ones(1)),
        "native",
        "the bias of equation (17) has one entry for each output; PyTorch does not document the broadcast",
    ),
    "dense: weight of one output, bias": Difference(
        call("dense", ones(2, 3), ones(3), torch.tensor(1.0)),
        "ours",
        "PyTorch takes a weight of shape (in,) without a bias only",
    ),
    "flatten: 2 dimensions": Difference(
        call("flatten", ones(2, 3)), "native", "the order of equation (5) is about channels, which are missing"
    ),
    "cross_entropy: no classes": Difference(
        call("softmax_cross_entropy", ones(2, 0), ones(2, 0)),
        "native",
        "softmax needs at least one class; PyTorch returns 0 or NaN",
    ),
    "cross_entropy: labels int32": Difference(
        call("softmax_cross_entropy", LOGITS, LABELS.int()), "ours", "integers of any width serve as labels"
    ),
    "cross_entropy: weight of another dtype": Difference(
        call("softmax_cross_entropy", LOGITS, LABELS, ones(3).double()),
        "ours",
        "PyTorch accepts it for probabilities, and so do we for both kinds of targets",
    ),
    "cross_entropy: integer weight": Difference(
        call("softmax_cross_entropy", LOGITS, ones(2, 3), ones(3).long()),
        "native",
        "PyTorch refuses it for labels, and so do we for both kinds of targets",
    ),
    "cross_entropy: label_smoothing below 0": Difference(
        call("softmax_cross_entropy", LOGITS, LABELS, label_smoothing=-0.1),
        "native",
        "a fraction lies between 0 and 1; PyTorch refuses only numbers above 1",
    ),
    "cross_entropy: label_smoothing NaN": Difference(
        call("softmax_cross_entropy", LOGITS, LABELS, label_smoothing=math.nan), "native", "NaN is no fraction"
    ),
}


@pytest.mark.parametrize("difference", DIFFERENCES.values(), ids=DIFFERENCES)
def test_intended_differences_from_native(difference: Difference) -> None:
    accepted = {"ours": difference.call.results(OURS), "native": difference.call.results(NATIVE)}
    assert [side for side, results in accepted.items() if results is not None] == [difference.accepted_by]


def test_impossible_class_costs_nothing_where_its_probability_is_0() -> None:
    """0 log 0 is taken as its limit, 0; PyTorch returns NaN."""
    z, y = torch.tensor([[0.0, -math.inf]]), torch.tensor([[1.0, 0.0]])
    assert manualgrad.softmax_cross_entropy(z, y) == 0
    assert F.cross_entropy(z, y).isnan()
