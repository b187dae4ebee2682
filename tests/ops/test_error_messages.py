"""Wrong use raises an error that says what was expected and what came."""

from __future__ import annotations

import pytest
import torch
from torch import ones

import manualgrad
from tests.ops.calls import LABELS, LOGITS, META, B, Call, W, X, call

WRONG_USE = {
    ValueError: [
        (call("conv2d", X, ones(6, 3, 3, 3)), r"takes 3 input channels, got input of shape .* with 4"),
        (call("conv2d", X, ones(6, 1, 3, 3), groups=2), r"groups=2 takes 2 input channels, got .* with 4"),
        (
            call("conv2d", X, ones(6, 1, 3, 3), groups=4),
            "output channels must be divisible by groups, got 6 and groups=4",
        ),
        (call("conv2d", X, ones(6, 4, 6, 3)), "must fit into the padded input, got a kernel of 6x3.* on 5x6"),
        (call("conv2d", X, W, dilation=(1, 3)), "got a kernel of 3x7 .*on 5x6"),
        (call("conv2d", X, W.to(META)), "input and weight must be on one device, got cpu and meta"),
        (call("conv2d", X.to(META), W), "input and weight must be on one device, got meta and cpu"),
        (call("conv2d", X, W, ones(5)), r"bias must have shape \(6,\), got \(5,\)"),
        (call("conv2d", ones(5, 6), W), r"must have shape \(N, C, H, W\) or .*got shape \(5, 6\)"),
        (call("conv2d", X, ones(6, 4, 3)), r"weight must have shape \(out_channels.*got shape \(6, 4, 3\)"),
        (call("conv2d", X, W, stride=0), "stride must be .* >= 1, got 0"),
        (call("conv2d", X, W, padding=(1, -1)), r"padding must be .* >= 0, got \(1, -1\)"),
        (call("conv2d", X, W, padding="full"), "'same' or 'valid', got 'full'"),
        (call("conv2d", X, W, padding="same", stride=2), r"padding='same' requires stride 1, got stride \(2, 2\)"),
        (call("max_pool2d", X, 7), r"must fit .*got kernel_size \(7, 7\).* on 5x6"),
        (call("max_pool2d", X, 3, padding=2), r"at most half the kernel, got padding \(2, 2\).*\(3, 3\)"),
        (call("max_pool2d", X, (2, 2, 2)), r"kernel_size must be .*pair.*got \(2, 2, 2\)"),
        (call("max_pool2d", ones(5, 6)), r"must have shape \(N, C, H, W\).*got shape \(5, 6\)"),
        (call("flatten", ones(2, 3)), r"must have shape \(N, C, H, W\).*got shape \(2, 3\)"),
        (call("dense", ones(2, 3), ones(4, 5)), r"takes input of shape \(..., 5\), got input of shape \(2, 3\)"),
        (call("dense", ones(2, 3), ones(4, 3), ones(3)), r"bias must have shape \(4,\), got \(3,\)"),
        (call("dense", ones(2, 3), ones(4, 3, device=META)), "must be on one device, got cpu and meta"),
        (call("dense", ones(2, 3, device=META), ones(4, 3)), "must be on one device, got meta and cpu"),
        (
            call("dense", ones(2, 3), ones(1, 4, 3)),
            r"weight must have shape \(out_features, in_features\) or \(in_features,\), got shape \(1, 4, 3\)",
        ),
        (call("softmax_cross_entropy", LOGITS, LABELS[:1]), r"must have shape \(2,\), got \(1,\)"),
        (
            call("softmax_cross_entropy", LOGITS, LABELS.float()),
            r"shape of input, \(2, 3\), got \(2,\).*torch.float32",
        ),
        (call("softmax_cross_entropy", LOGITS, LABELS.to(META)), "must be on one device, got cpu and meta"),
        (call("softmax_cross_entropy", LOGITS, LABELS, ones(4)), r"weight must have shape \(3,\).*got \(4,\)"),
        (call("softmax_cross_entropy", LOGITS, LABELS, ones(3, device=META)), "on cpu as input is, got meta"),
        (call("softmax_cross_entropy", LOGITS, LABELS, reduction="avg"), "'mean', 'sum' or 'none', got 'avg'"),
        (call("softmax_cross_entropy", LOGITS, LABELS, label_smoothing=2), "between 0 and 1, got 2"),
        (call("softmax_cross_entropy", torch.tensor(1.0), LABELS), r"must have shape \(N, C\).*got a scalar"),
    ],
    TypeError: [
        (call("conv2d", X.byte(), W), r"input must be floating point, got torch.uint8.*input\.float\(\)"),
        (call("conv2d", X.cfloat(), W), "input must be floating point, got torch.complex64"),
        (call("conv2d", X, W.double()), "input and weight must have one dtype, got torch.float32 and torch.float64"),
        (call("conv2d", X, W, B.half()), "input and bias must have one dtype, got torch.float32 and torch.float16"),
        (call("conv2d", [[1.0]], W), "input must be a tensor, got list"),
        (call("conv2d", X, None), "weight must be a tensor, got NoneType"),
        (call("max_pool2d", X.bool()), "must be a tensor of real numbers, got torch.bool"),
        (call("max_pool2d", [1.0]), "input must be a tensor, got list"),
        (call("dense", ones(2, 3).int(), ones(4, 3)), r"input must be floating point, got torch.int32"),
        (call("dense", ones(2, 3), ones(4, 3).half()), "must have one dtype, got torch.float32 and torch.float16"),
        (call("relu", X.cfloat()), "must be a tensor of real numbers, got torch.complex64"),
        (call("relu", [1.0]), "must be a tensor, got list"),
        (call("softmax", X.int()), "must be floating point, got torch.int32"),
        (call("softmax_cross_entropy", LOGITS, LABELS.bool()), "target must be class indices .*, got torch.bool"),
        (call("softmax_cross_entropy", LOGITS, [0, 1]), "target must be class indices .*, got list"),
        (call("softmax_cross_entropy", LOGITS.int(), LABELS), "must be floating point, got torch.int32"),
        (call("softmax_cross_entropy", LOGITS, LABELS, [1.0, 1, 1]), "weight must be a tensor, got list"),
    ],
    IndexError: [
        (call("softmax", LOGITS, 2), "dim must lie between -2 and 1, got 2"),
        (call("softmax_cross_entropy", LOGITS, LABELS + 1), "a label must lie between 0 and 2, got 3"),
        (call("softmax_cross_entropy", LOGITS, LABELS - 1), "a label must lie between 0 and 2, got -1"),
    ],
}


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [(wrong, error, message) for error, cases in WRONG_USE.items() for wrong, message in cases],
    ids=[f"{wrong.function}: {message}" for cases in WRONG_USE.values() for wrong, message in cases],
)
def test_wrong_use_is_named(wrong: Call, error: type, message: str) -> None:
    with pytest.raises(error, match=f"^{wrong.function}: .*{message}"):
        getattr(manualgrad, wrong.function)(*wrong.args, **wrong.options)


def test_subgradient_outside_0_to_1_is_named() -> None:
    with pytest.raises(ValueError, match="subgradient must lie between 0 and 1, got 2"):
        manualgrad.relu(X, subgradient=2)
