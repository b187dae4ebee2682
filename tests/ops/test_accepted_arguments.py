"""Promise: calls that PyTorch accepts are accepted and give its results; calls that it refuses are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, ones

from tests.ops.calls import LABELS, LOGITS, NATIVE, NO_LABELS, OURS, B, Call, W, X, call

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # PyTorch warns that it copies the input

CALLS = {
    # shapes
    "conv2d: empty batch": call("conv2d", ones(0, 4, 5, 6), W, B),
    "conv2d: no output channels": call("conv2d", X, ones(0, 4, 3, 3)),
    "conv2d: no rows": call("conv2d", ones(2, 4, 0, 6), W, padding=2),
    "conv2d: no rows, unbatched": call("conv2d", ones(4, 0, 6), W, padding=2),
    "conv2d: kernel of 0 rows": call("conv2d", X, ones(6, 4, 0, 3)),
    "conv2d: kernel too large": call("conv2d", ones(1, 4, 2, 2), W),
    "conv2d: dilated kernel too large": call("conv2d", X, W, dilation=3),
    "conv2d: kernel just fits": call("conv2d", ones(1, 4, 3, 3), W, B),
    "conv2d: kernel fits into the padding": call("conv2d", ones(1, 4, 1, 1), W, padding=1),
    "conv2d: 2 dimensions": call("conv2d", ones(5, 6), W),
    "conv2d: 5 dimensions": call("conv2d", ones(1, 2, 4, 5, 6), W),
    "conv2d: 0 dimensions": call("conv2d", torch.tensor(1.0), W),
    "conv2d: weight of 3 dimensions": call("conv2d", X, ones(6, 4, 3)),
    "conv2d: wrong channels": call("conv2d", X, ones(6, 3, 3, 3)),
    "conv2d: bias too short": call("conv2d", X, W, ones(5)),
    "conv2d: bias of 1": call("conv2d", X, W, ones(1)),
    "conv2d: bias of 2 dimensions": call("conv2d", X, W, ones(6, 1)),
    "conv2d: bias of 0 dimensions": call("conv2d", X, W, torch.tensor(1.0)),
    "max_pool2d: empty batch": call("max_pool2d", X[:0], 2),
    "max_pool2d: empty batch, indices": call("max_pool2d", X[:0], 2, return_indices=True),
    "max_pool2d: no channels": call("max_pool2d", X[:, :0], 2),
    "max_pool2d: no rows": call("max_pool2d", X[:, :, :0], 3, padding=1),
    "max_pool2d: empty batch, no rows": call("max_pool2d", X[:0, :, :0], 2),
    "max_pool2d: 2 dimensions": call("max_pool2d", ones(5, 6), 2),
    "max_pool2d: 5 dimensions": call("max_pool2d", ones(1, 2, 3, 5, 6), 2),
    "max_pool2d: window too large": call("max_pool2d", X, 7),
    "max_pool2d: window too large, ceil_mode": call("max_pool2d", X, 7, ceil_mode=True),
    "max_pool2d: window one row too large, ceil_mode": call("max_pool2d", X, 6, 5, ceil_mode=True),
    "flatten: empty batch": call("flatten", X[:0]),
    "flatten: no channels": call("flatten", X[:, :0]),
    "flatten: no rows": call("flatten", X[:, :, :0]),
    "dense: empty batch": call("dense", ones(0, 3), ones(4, 3), ones(4)),
    "dense: empty leading dimension": call("dense", ones(2, 0, 3), ones(4, 3), ones(4)),
    "dense: no inputs": call("dense", ones(2, 0), ones(4, 0), ones(4)),
    "dense: no inputs, one output": call("dense", ones(2, 0), ones(0)),
    "dense: no outputs": call("dense", ones(2, 5, 3), ones(0, 3)),
    "dense: 0 dimensions": call("dense", torch.tensor(1.0), ones(4, 3)),
    "dense: weight of 0 dimensions": call("dense", ones(2, 3), torch.tensor(1.0)),
    "dense: weight of 3 dimensions": call("dense", ones(2, 3), ones(2, 4, 3)),
    "dense: wrong features": call("dense", ones(2, 3), ones(4, 2)),
    "dense: bias too short": call("dense", ones(2, 3), ones(4, 3), ones(3)),
    "relu: 0 dimensions": call("relu", torch.tensor(1.0)),
    "relu: empty": call("relu", ones(0)),
    "softmax: 0 dimensions": call("softmax", torch.tensor(1.0), 0),
    "softmax: 0 dimensions, dim 1": call("softmax", torch.tensor(1.0), 1),
    "softmax: 0 dimensions, dim -2": call("softmax", torch.tensor(1.0), -2),
    "softmax: no classes": call("softmax", ones(2, 0), 1),
    "softmax: empty batch": call("softmax", ones(0, 3), 1),
    "softmax: empty batch, dim out of range": call("softmax", ones(0, 3), 2),
    "softmax: dim out of range": call("softmax", LOGITS, -3),
    "cross_entropy: 0 dimensions": call("softmax_cross_entropy", torch.tensor(1.0), torch.tensor(0)),
    "cross_entropy: wrong batch": call("softmax_cross_entropy", LOGITS, LABELS[:1]),
    "cross_entropy: labels of 2 dimensions": call("softmax_cross_entropy", LOGITS, LABELS[:, None]),
    "cross_entropy: one label for a batch": call("softmax_cross_entropy", LOGITS, LABELS[0]),
    "cross_entropy: transposed labels": call("softmax_cross_entropy", ones(2, 3, 4, 5), torch.zeros(2, 5, 4).long()),
    "cross_entropy: probabilities of wrong shape": call("softmax_cross_entropy", LOGITS, ones(2, 4)),
    "cross_entropy: probabilities to broadcast": call("softmax_cross_entropy", LOGITS, ones(1, 3)),
    "cross_entropy: weight too short": call("softmax_cross_entropy", LOGITS, LABELS, ones(2)),
    "cross_entropy: weight of 2 dimensions": call("softmax_cross_entropy", LOGITS, LABELS, ones(1, 3)),
    # numbers
    "conv2d: padding -1": call("conv2d", X, W, padding=-1),
    "conv2d: stride 0": call("conv2d", X, W, stride=0),
    "conv2d: stride -1": call("conv2d", X, W, stride=-1),
    "conv2d: dilation 0": call("conv2d", X, W, dilation=0),
    "conv2d: 0 groups": call("conv2d", X, W, groups=0),
    "conv2d: input channels that do not fit groups": call("conv2d", X, W, groups=2),
    "conv2d: groups that do not divide": call("conv2d", X, ones(6, 1, 3, 3), groups=4),
    "conv2d: stride in a list": call("conv2d", X, W, stride=[2, 1]),
    "conv2d: stride in a list of one": call("conv2d", X, W, stride=[2]),
    "conv2d: stride of three": call("conv2d", X, W, stride=(1, 1, 1)),
    "conv2d: stride of an empty tuple": call("conv2d", X, W, stride=()),
    "conv2d: stride a float": call("conv2d", X, W, stride=2.0),
    "conv2d: stride a bool": call("conv2d", X, W, stride=True),
    "conv2d: stride None": call("conv2d", X, W, stride=None),
    "conv2d: stride a NumPy integer": call("conv2d", X, W, stride=np.int64(2)),
    "conv2d: strides NumPy integers": call("conv2d", X, W, stride=(np.int64(2), np.int32(1))),
    "conv2d: strides in an array": call("conv2d", X, W, stride=np.array([2, 1])),
    "conv2d: NumPy float as stride": call("conv2d", X, W, stride=np.float64(2)),
    "conv2d: padding a NumPy integer": call("conv2d", X, W, padding=np.int64(1)),
    "conv2d: groups a NumPy integer": call("conv2d", X, W, groups=np.int64(1)),
    "conv2d: stride a tensor": call("conv2d", X, W, stride=torch.tensor(2)),
    "conv2d: huge stride": call("conv2d", X, W, stride=100),
    "conv2d: same, strided": call("conv2d", X, W, padding="same", stride=(1, 2)),
    "conv2d: same, unbatched": call("conv2d", X[0], W, padding="same"),
    "conv2d: same, empty": call("conv2d", X[:0], W, padding="same"),
    "conv2d: unknown padding name": call("conv2d", X, W, padding="SAME"),
    "conv2d: all options by position": call("conv2d", X, ones(6, 2, 3, 3), B, (2, 1), 1, (1, 2), 2),
    "max_pool2d: all options by position": call("max_pool2d", X, (3, 2), (2, 3), 1, (2, 1), True, True),
    "max_pool2d: kernel 0": call("max_pool2d", X, 0),
    "max_pool2d: stride 0": call("max_pool2d", X, 2, 0),
    "max_pool2d: padding -1": call("max_pool2d", X, 2, padding=-1),
    "max_pool2d: padding half the window": call("max_pool2d", X, 3, padding=1),
    "max_pool2d: padding more than half": call("max_pool2d", X, 3, padding=2),
    "max_pool2d: padding more than half, dilated": call("max_pool2d", X, 3, padding=2, dilation=2),
    "max_pool2d: dilation 0": call("max_pool2d", X, 2, dilation=0),
    "max_pool2d: lists": call("max_pool2d", X, [2, 3], [1, 2]),
    "max_pool2d: stride []": call("max_pool2d", X, 2, []),
    "max_pool2d: stride ()": call("max_pool2d", X, 2, ()),
    "max_pool2d: kernel of three": call("max_pool2d", X, (2, 2, 2)),
    "max_pool2d: kernel a float": call("max_pool2d", X, 2.0),
    "max_pool2d: kernel a bool": call("max_pool2d", X, True),
    "max_pool2d: kernel a NumPy integer": call("max_pool2d", X, np.int64(2), (np.int64(1), 2)),
    "max_pool2d: ceil_mode a string": call("max_pool2d", X, 2, ceil_mode="no"),
    "softmax: dim a NumPy integer": call("softmax", LOGITS, np.int64(1)),
    "softmax: dim a float": call("softmax", LOGITS, 1.0),
    "softmax: dim a string": call("softmax", LOGITS, "a"),
    "cross_entropy: smoothing 1.5": call("softmax_cross_entropy", LOGITS, LABELS, label_smoothing=1.5),
    "cross_entropy: smoothing 1": call("softmax_cross_entropy", LOGITS, LABELS, label_smoothing=1),
    "cross_entropy: unknown reduction": call("softmax_cross_entropy", LOGITS, LABELS, reduction="average"),
    "cross_entropy: ignore_index a NumPy integer": call(
        "softmax_cross_entropy", LOGITS, LABELS, ignore_index=np.int64(2)
    ),
    "cross_entropy: ignore_index a float": call("softmax_cross_entropy", LOGITS, LABELS, ignore_index=2.0),
    "cross_entropy: ignore_index beyond 64 bits": call(
        "softmax_cross_entropy", LOGITS, LABELS, ignore_index=(1 << 64) - 100
    ),
    # dtypes and devices
    "conv2d: two dtypes": call("conv2d", X.double(), W),
    "conv2d: bias of another dtype": call("conv2d", X, W, B.double()),
    "conv2d: bool": call("conv2d", X.bool(), W.bool()),
    "conv2d: on the meta device": call("conv2d", X.to("meta"), W.to("meta")),
    "dense: two dtypes": call("dense", ones(2, 3).double(), ones(4, 3)),
    "dense: bool": call("dense", ones(2, 3).bool(), ones(4, 3).bool()),
    "dense: on the meta device": call("dense", ones(2, 3, device="meta"), ones(4, 3, device="meta")),
    "max_pool2d: bool": call("max_pool2d", X.bool(), 2),
    "max_pool2d: complex": call("max_pool2d", X.cfloat(), 2),
    "max_pool2d: on the meta device": call("max_pool2d", X.to("meta"), 2),
    "relu: bool": call("relu", X.bool()),
    "relu: complex": call("relu", X.cfloat()),
    "relu: on the meta device": call("relu", X.to("meta")),
    "flatten: bool": call("flatten", X.bool()),
    "flatten: complex": call("flatten", X.cfloat()),
    "flatten: on the meta device": call("flatten", X.to("meta")),
    "softmax: integers": call("softmax", X.int(), 1),
    "softmax: on the meta device": call("softmax", X.to("meta"), 1),
    "cross_entropy: logits integers": call("softmax_cross_entropy", LOGITS.int(), LABELS),
    "cross_entropy: labels uint8": call("softmax_cross_entropy", LOGITS, LABELS.to(torch.uint8)),
    "cross_entropy: labels bool": call("softmax_cross_entropy", LOGITS, LABELS.bool()),
    "cross_entropy: labels complex": call("softmax_cross_entropy", LOGITS, LABELS.cfloat()),
    "cross_entropy: probabilities of float64": call("softmax_cross_entropy", LOGITS, ones(2, 3).double()),
    "cross_entropy: float16 logits, float32 probabilities": call("softmax_cross_entropy", LOGITS.half(), ones(2, 3)),
    "cross_entropy: labels on another device": call("softmax_cross_entropy", LOGITS, LABELS.to("meta")),
} | {
    # losses, with each reduction
    f"cross_entropy: {name}, {reduction}": call("softmax_cross_entropy", *args, **options, reduction=reduction)
    for reduction in ("mean", "sum", "none")
    for name, (args, options) in {
        "label too large": ((LOGITS, LABELS + 1), {}),
        "label too large, smoothed": ((LOGITS, LABELS + 1), {"label_smoothing": 0.1}),
        "label -1": ((LOGITS, LABELS - 1), {}),
        "label -1, ignored": ((LOGITS, LABELS - 1), {"ignore_index": -1}),
        "label 2, ignored": ((LOGITS, LABELS), {"ignore_index": 2}),
        "label too large, ignored": ((LOGITS, LABELS + 5), {"ignore_index": 7}),
        "all ignored": ((LOGITS, LABELS * 0 - 100), {}),
        "all weights 0": ((LOGITS, LABELS, torch.zeros(3)), {}),
        "weight negative": ((LOGITS, LABELS, torch.tensor([-1.0, 2, 3])), {}),
        "empty batch": ((ones(0, 3), NO_LABELS), {}),
        "empty batch, smoothed": ((ones(0, 3), NO_LABELS), {"label_smoothing": 0.1}),
        "empty batch of probabilities": ((ones(0, 3), ones(0, 3)), {}),
        "no positions": ((ones(2, 3, 0), ones(2, 0).long()), {}),
        "no positions, probabilities": ((ones(2, 3, 0), ones(2, 3, 0)), {}),
        "one example ignored": ((ones(3), torch.tensor(-100)), {}),
        "probabilities, ignore_index": ((LOGITS, ones(2, 3)), {"ignore_index": 1}),
        "probabilities negative": ((LOGITS, -ones(2, 3)), {}),
    }.items()
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_accepts_and_refuses_what_native_does(call: Call) -> None:
    ours, native = call.results(OURS), call.results(NATIVE)
    assert (ours is None) == (native is None)
    if native is not None:
        assert ours.keys() == native.keys()
        # ours alone adds float16 logits up in float32, so the results differ by float16's rounding
        has_float16 = any(isinstance(arg, Tensor) and arg.dtype == torch.float16 for arg in call.args)
        rtol, atol = (1e-3, 1e-3) if has_float16 else (1.3e-6, 1e-5)
        for name in native:
            torch.testing.assert_close(
                ours[name], native[name], rtol=rtol, atol=atol, equal_nan=True, msg=lambda m, name=name: name + m
            )
