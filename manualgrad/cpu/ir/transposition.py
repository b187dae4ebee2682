"""Square blocks of floats transposed in registers."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from manualgrad.cpu.ir.values import INT32, Value, constant
from manualgrad.cpu.ir.vectors import Emitter


def transposed(emit: Emitter, vectors: Sequence[Value]) -> list[Value]:
    """Transpose n vectors of n floats, n a power of two: the result's vector i has the lanes i of all vectors.

    The bits of a float's two numbers, of its vector and its lane, are exchanged one after the other."""
    vectors, size = list(vectors), len(vectors)
    bit = size // 2
    while bit:
        for low in (n for n in range(size) if not n & bit):
            pair = vectors[low], vectors[low | bit]
            lanes = [lane if not lane & bit else size + lane - bit for lane in range(size)]
            vectors[low] = _shuffle(emit, *pair, lanes)
            vectors[low | bit] = _shuffle(emit, *pair, [lane + bit for lane in lanes])
        bit //= 2
    return vectors


def _shuffle(emit: Emitter, a: Value, b: Value, lanes: list[int]) -> Value:
    """Return a vector of lanes of ``a``, and of ``b``, whose numbers begin behind those of ``a``."""
    mask = constant(ir.VectorType(INT32, len(lanes)), lanes)
    return Value(emit.builder, emit.builder.shuffle_vector(a.raw, b.raw, mask))
