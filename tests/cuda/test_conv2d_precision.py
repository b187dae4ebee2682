"""Promise: PyTorch's flags for native convolutions say whether convolution's kernels use TF32."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from manualgrad.cuda import conv2d as host
from manualgrad.cuda.conv2d_precision import allows_tf32
from manualgrad.cuda.launch import Launcher
from tests.cuda.conv2d_layers import LAYERS, operands


@pytest.mark.filterwarnings("error")
def test_the_flags_of_native_convolutions_say_whether_tf32_is_used() -> None:
    backends = torch.backends
    before = backends.fp32_precision, backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision
    try:
        for allowed in (False, True):
            backends.cudnn.allow_tf32 = allowed
            assert allows_tf32() is allowed
        backends.cudnn.conv.fp32_precision = "none"
        for precision in ("tf32", "ieee"):
            backends.fp32_precision = precision
            assert allows_tf32() is (precision == "tf32")
        backends.cudnn.conv.fp32_precision = "tf32"
        assert allows_tf32()
        backends.cuda.matmul.fp32_precision = "ieee"
        with backends.cudnn.flags(enabled=False):
            assert not allows_tf32()
    finally:
        backends.cudnn.allow_tf32 = True
        backends.fp32_precision, backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision = before


class PrecisionLauncher(Launcher):
    """Notes the precisions of products and runs nothing."""

    def __init__(self) -> None:
        self.precisions = set[str]()

    def __call__(self, *args: Any, **constants: Any) -> None:
        if "BM" in constants:
            self.precisions.add(constants["PRECISION"])


def test_the_most_specific_flag_that_is_set_gives_the_precision_of_all_three_products() -> None:
    """PyTorch's rule: the operation's flag, then that of the backend, then the general one; "none" is not set."""
    backends = torch.backends
    flags = backends.cudnn.conv, backends.cudnn, backends
    before = [flag.fp32_precision for flag in flags]
    x, w, b, geometry = operands(LAYERS["few channels, taps and channels on one axis"], "cpu")
    g = torch.randn(2, 6, 4, 5)
    try:
        for settings in itertools.product(("none", "ieee", "tf32"), repeat=3):
            for flag, precision in reversed([*zip(flags, settings, strict=True)]):
                flag.fp32_precision = precision
            launcher = PrecisionLauncher()
            host.conv2d_forward(launcher, x, w, b, geometry)
            host.conv2d_grad_input(launcher, g, w, geometry)
            host.conv2d_grad_weight_and_bias(launcher, g, x, geometry)
            first = next((precision for precision in settings if precision != "none"), "none")
            assert launcher.precisions == {"tf32" if first == "tf32" else "3xtf32"}, settings
    finally:
        for flag, precision in reversed([*zip(flags, before, strict=True)]):
            flag.fp32_precision = precision
