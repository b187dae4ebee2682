r"""P(R(z)) of equations (4) and (9), with one byte for each window in place of z and R(z).

P⁻¹ sends each δ to one place of its window, and R' at that place is 1, ½ or 0. The *pooling index* of a window is
both in one byte:

    0 to kH·kW − 1   the maximum is positive (or NaN) and is at that index: δ goes there
    AT_ZERO          no value is positive, so R makes all values 0 and P takes the first; z is 0 there, and δ goes
                     there times R'(0)
    INACTIVE         no value is positive, and z is negative at the first place, where R' is 0: δ goes nowhere

So neither z nor R(z) is saved. With fixed pooling indices the map of δ is linear, as in ``max_pool2d.py``. Its
adjoint picks from the same places, times the same R'.
"""

from __future__ import annotations

import torch
from torch import Tensor

from manualgrad.dispatch import dispatched
from manualgrad.ops.conv_relu_pool_geometry import ConvReLUPoolGeometry
from manualgrad.ops.layout import from_nchw, to_nchw
from manualgrad.ops.linear_maps import linear_pair
from manualgrad.ops.max_pool2d import max_pool2d_forward
from manualgrad.ops.selection import compare, select
from manualgrad.ops.windows import offset_view
from manualgrad.pool_index import AT_ZERO, INACTIVE

# ----------------------------------------------------------------------------------------------- formulas


@dispatched
def relu_pool_forward(z: Tensor, geometry: ConvReLUPoolGeometry) -> tuple[Tensor, Tensor]:
    """P(R(z)) and the pooling indices, both (N, H_out, W_out, C), from z (N, H, W, C)."""
    maximum, pool_index = max_pool2d_forward(z, geometry.pooling)  # eq. (4), of z: R does not change the order
    maximum, pool_index = maximum.contiguous(), pool_index.contiguous()
    first = offset_view(z, geometry.pooling.windows, 0, 0, geometry.pooling.output_size)
    first_is_zero = compare(first, "==", 0).to(pool_index.dtype)
    not_positive = compare(maximum, "<=", 0).to(pool_index.dtype)
    special_index = not_positive * (INACTIVE - first_is_zero)  # INACTIVE, AT_ZERO = INACTIVE − 1, or 0
    pool_index = torch.maximum(pool_index, special_index)  # AT_ZERO and INACTIVE are larger than any index
    return maximum.clamp(min=0), pool_index  # eq. (9)


@dispatched
def relu_pool_backward(g: Tensor, pool_index: Tensor, geometry: ConvReLUPoolGeometry) -> Tensor:
    """P⁻¹(g) R': each g_ijk at the place of its pooling index, times R'. (N, C, H_out, W_out) to (N, C, H, W)."""
    g, pool_index, pooling = from_nchw(g), from_nchw(pool_index), geometry.pooling
    z = g.new_zeros(g.shape[0], *pooling.input_size, g.shape[3])
    for index, (p, q) in enumerate(pooling.windows.offsets()):
        values = select(compare(pool_index, "==", index), g)  # eq. (4), (10) with z > 0
        if index == 0 and geometry.subgradient:
            values += geometry.subgradient * select(compare(pool_index, "==", AT_ZERO), g)  # eq. (10) with z = 0
        offset_view(z, pooling.windows, p, q, pooling.output_size).copy_(values)  # windows do not overlap
    return to_nchw(z)


def relu_pool_jvp(z: Tensor, pool_index: Tensor, geometry: ConvReLUPoolGeometry) -> Tensor:
    """The adjoint of :func:`relu_pool_backward`: the value of each window at its pooling index, times R'."""
    z, pool_index, pooling = from_nchw(z), from_nchw(pool_index), geometry.pooling
    first = offset_view(z, pooling.windows, 0, 0, pooling.output_size)
    picked = geometry.subgradient * select(pool_index == AT_ZERO, first)
    for index, (p, q) in enumerate(pooling.windows.offsets()):
        picked = picked + select(pool_index == index, offset_view(z, pooling.windows, p, q, pooling.output_size))
    return to_nchw(picked.contiguous())


# ---------------------------------------------------------------------------------------------- Functions

relu_pool_backward_apply, relu_pool_jvp_apply = linear_pair(
    ("ReLUPoolBackwardFunction", "ReLUPoolJvpFunction"), relu_pool_backward, relu_pool_jvp
)
