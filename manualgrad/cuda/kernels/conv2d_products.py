"""Matrix products of tensor cores at three precisions.

"3xtf32": float32 numbers, each as a sum of two TF32 numbers, high + low. Three products, high·high + high·low +
low·high, have an error like that of float32. "tf32": one product of numbers rounded to TF32. "half": bfloat16 or
float16. Sums are in float32 in all of them.
"""

import triton
import triton.language as tl

INFINITY = tl.constexpr(float("inf"))


@triton.jit
def round_to_tf32(a):
    """float32 ``a`` to the nearest of TF32's numbers, which have 11 bits; those from 3.4012e38 on become infinite.

    Tensor cores drop the bits that TF32 lacks. All dropped parts would have the sign of their numbers, a bias. The
    minima keep the NaN that GPUs make, 0x7FFFFFFF, and its negative, 0xFFFFFFFF, from becoming 0: the first one of
    signed numbers, the second one of unsigned. A comparison would take 20 registers more."""
    bits = tl.minimum(a.to(tl.int32, bitcast=True), 0x7FFFE000)
    bits = tl.minimum(bits.to(tl.uint32, bitcast=True), 0xFFFFE000).to(tl.int32, bitcast=True)
    return ((bits + 4096) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def split_operand(b, PRECISION: tl.constexpr):
    """The two numbers as which :func:`multiply_add` takes its second operand: high and low part for "3xtf32"."""
    if PRECISION == "half":
        high = b
        low = b
    else:
        high = round_to_tf32(b)
        low = b - high
    return high, low


@triton.jit
def multiply_add(a, b, b_low, acc, PRECISION: tl.constexpr):
    """acc + a·b, with b and its low part as from :func:`split_operand`.

    The tensor core truncates after every addition, an error that grows with the length of the sum. So "3xtf32" begins
    a new sum in each call, and adds it to ``acc`` in float32, as it does with the small products. Where an operand is
    infinite, its low part is NaN and the small products have no meaning: high·high alone is the result."""
    if PRECISION == "3xtf32":
        a_high = round_to_tf32(a)
        small = tl.dot(a - a_high, b, input_precision="tf32")
        small = tl.dot(a_high, b_low, small, input_precision="tf32")
        small = tl.where(tl.abs(small) < INFINITY, small, 0.0)
        acc += tl.dot(a_high, b, small, input_precision="tf32")
    elif PRECISION == "tf32":
        acc = tl.dot(round_to_tf32(a), b, acc, input_precision="tf32")
    else:
        acc = tl.dot(a, b, acc)
    return acc
