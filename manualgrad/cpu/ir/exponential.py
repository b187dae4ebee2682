"""The exponential function of vectors of floats."""

from __future__ import annotations

from llvmlite import ir

from manualgrad.cpu.ir.values import INT32, Value
from manualgrad.cpu.ir.vectors import Emitter

_LOG2_E = 1.44269504088896341
_LN_2_HIGH, _LN_2_LOW = 0.693359375, -2.12194440e-4  # their sum is ln 2; products of the first with n are exact
_COEFFICIENTS = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_ROUND, _ROUND_BITS = 1.5 * 2.0**23, 0x4B400000  # x + 1.5·2^23 is x rounded to an integer, in the lowest bits
_SMALLEST = -104.0  # e to this power rounds to 0


def exp_nonpositive(emit: Emitter, x: Value) -> Value:
    """Return e^x for x ≤ 0, a vector or one float, with an error of at most 1 ulp; NaN for NaN, 0 for −∞.

    With n the integer nearest to x / ln 2 and r = x − n ln 2, e^x is 2^n e^r. e^r is Cephes' polynomial (expf) for
    |r| ≤ ½ ln 2. 2^n is the product of two powers, since n may lie below the exponents of normal floats."""
    float_type = x.raw.type
    int_type = ir.VectorType(INT32, emit.lanes) if isinstance(float_type, ir.VectorType) else INT32
    x = emit.select(x < _SMALLEST, emit.constant(float_type, _SMALLEST), x)
    shifted = emit.fma(x, emit.constant(float_type, _LOG2_E), emit.constant(float_type, _ROUND))
    n = shifted - _ROUND
    r = emit.fma(n, emit.constant(float_type, -_LN_2_HIGH), x)
    r = emit.fma(n, emit.constant(float_type, -_LN_2_LOW), r)
    polynomial = emit.constant(float_type, _COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        polynomial = emit.fma(polynomial, r, emit.constant(float_type, coefficient))
    exp_r = emit.fma(polynomial, r * r, r) + 1
    minus_n = emit.constant(int_type, _ROUND_BITS) - emit.bitcast(shifted, int_type)
    half = minus_n >> 1
    for part in (half, minus_n - half):
        exp_r = exp_r * emit.bitcast((emit.constant(int_type, 127) - part) << 23, float_type)
    return exp_r
