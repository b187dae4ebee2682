"""e^x and log x in float32, to a few units in the last place.

Triton's ``exp(x)`` multiplies x by log2(e) and rounds, a relative error of |x| · 2⁻²⁴ in the result, and its
``log(x)`` is an approximation with an absolute error, which is large beside log x near x = 1. Here the exponent is
split off exactly, and the remainder is small.
"""

import triton
import triton.language as tl

_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
_LN_2_HIGH: tl.constexpr = tl.constexpr(0.693359375)  # 355/512: its products with whole numbers to 2¹⁵ are exact
_LN_2_LOW: tl.constexpr = tl.constexpr(-2.1219444005469057e-4)
_LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def exp_nonpositive(x):
    """e^x for x ≤ 0 or NaN, results below the normal numbers included."""
    x = tl.where(x < -104.0, -104.0, x)  # e^-104 rounds to 0
    n = tl.floor(x * _LOG2_E + 0.5)
    remainder = (x - n * _LN_2_HIGH) - n * _LN_2_LOW  # x - n·ln 2
    n = tl.where(n == n, n, 0.0).to(tl.int32)
    half = n >> 1  # 2^n = 2^half · 2^(n - half), which are both normal numbers
    power = ((half + 127) << 23).to(tl.float32, bitcast=True)
    rest = ((n - half + 127) << 23).to(tl.float32, bitcast=True)
    return tl.exp2(remainder * _LOG2_E) * power * rest


@triton.jit
def log_normal(x):
    """log x for normal numbers x > 0, ∞ and NaN: x = 2^n · (1 + f) with f from -1/3 to 1/3."""
    shift = (x.to(tl.int32, bitcast=True) - 0x3F2AAAAB) & -0x800000
    f = (x.to(tl.int32, bitcast=True) - shift).to(tl.float32, bitcast=True) - 1.0
    n = (shift >> 23).to(tl.float32)
    square = f * f
    # log(1 + f) = f - f²/2 + f³ · a polynomial
    odd_terms = -0.130310059 * square - 0.121483512
    even_terms = 0.140869141 * square + 0.139814854
    tail = odd_terms * f + even_terms
    tail = tail * f - 0.166846126
    tail = tail * f + 0.200120345
    tail = tail * f - 0.249996200
    tail = tail * f + 0.333331972
    tail = tail * f - 0.5
    result = n * _LN_2 + (tail * square + f)
    return tl.where(x < float("inf"), result, x)
