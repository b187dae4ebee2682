"""LLVM values with Python's operators: each operator appends one LLVM instruction to the kernel.

The operators follow C and check nothing. Addresses count bytes, integer division is unsigned, and a comparison of
floats is false if an operand is NaN. A Python number becomes a constant of the other operand's type.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

BIT, BYTE, INT32, INT64, DOUBLE = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.DoubleType()
FLOAT, ADDRESS, VOID = ir.FloatType(), ir.PointerType(), ir.VoidType()

Number = int | float


class Value:
    """An LLVM value with Python's operators: an address, an integer, a float, or a vector of them."""

    def __init__(self, builder: ir.IRBuilder, raw: ir.Value) -> None:
        self.builder, self.raw = builder, raw

    @property
    def _element_type(self) -> ir.Type:
        return self.raw.type.element if isinstance(self.raw.type, ir.VectorType) else self.raw.type

    def _operand(self, other: Value | Number) -> ir.Value:
        return other.raw if isinstance(other, Value) else constant(self.raw.type, other)

    def _binary(self, float_instruction: str, int_instruction: str, other: Value | Number) -> Value:
        is_float = self._element_type in (FLOAT, DOUBLE)
        instruction = getattr(self.builder, float_instruction if is_float else int_instruction)
        return Value(self.builder, instruction(self.raw, self._operand(other)))

    def __add__(self, other: Value | Number) -> Value:
        if self.raw.type == ADDRESS:
            offset = other.raw if isinstance(other, Value) else constant(INT64, other)
            return Value(self.builder, self.builder.gep(self.raw, [offset], source_etype=BYTE))
        return self._binary("fadd", "add", other)

    def __sub__(self, other: Value | Number) -> Value:
        return self._binary("fsub", "sub", other)

    def __mul__(self, other: Value | Number) -> Value:
        return self._binary("fmul", "mul", other)

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other: Value | Number) -> Value:
        return Value(self.builder, self.builder.fdiv(self.raw, self._operand(other)))

    def __floordiv__(self, other: Value | Number) -> Value:
        return self._binary("fdiv", "udiv", other)

    def __mod__(self, other: Value | Number) -> Value:
        return self._binary("frem", "urem", other)

    def __and__(self, other: Value | Number) -> Value:
        return self._binary("and_", "and_", other)

    def __or__(self, other: Value | Number) -> Value:
        return self._binary("or_", "or_", other)

    def __rshift__(self, other: Value | Number) -> Value:
        return self._binary("lshr", "lshr", other)

    def __lshift__(self, other: Value | Number) -> Value:
        return self._binary("shl", "shl", other)

    def _compare(self, operator: str, other: Value | Number) -> Value:
        instruction = self.builder.fcmp_ordered if self._element_type == FLOAT else self.builder.icmp_signed
        return Value(self.builder, instruction(operator, self.raw, self._operand(other)))

    def __lt__(self, other: Value | Number) -> Value:
        return self._compare("<", other)

    def __gt__(self, other: Value | Number) -> Value:
        return self._compare(">", other)

    def __eq__(self, other: Value | Number) -> Value:  # type: ignore[override]  # a lane mask, not a bool
        return self._compare("==", other)

    def __ne__(self, other: Value | Number) -> Value:  # type: ignore[override]  # a lane mask, not a bool
        return self._compare("!=", other)

    __hash__ = None  # type: ignore[assignment]  # == emits an instruction, so values cannot be keys

    def ult(self, other: Value) -> Value:
        """Compare as unsigned integers: true if less than ``other``."""
        return Value(self.builder, self.builder.icmp_unsigned("<", self.raw, other.raw))

    def is_nan(self) -> Value:
        return Value(self.builder, self.builder.fcmp_unordered("uno", self.raw, self.raw))


class Variable:
    """A mutable value in stack memory, which LLVM promotes to a register if one is free."""

    def __init__(self, builder: ir.IRBuilder, pointer: ir.Value, type_: ir.Type) -> None:
        self.builder, self.pointer, self.type = builder, pointer, type_

    def get(self) -> Value:
        return Value(self.builder, self.builder.load(self.pointer, typ=self.type))

    def set(self, value: Value) -> None:
        self.builder.store(value.raw, self.pointer)

    def add(self, value: Value | Number) -> None:
        self.set(self.get() + value)


def constant(type_: ir.Type, number: Number | Sequence[int]) -> ir.Constant:
    """Return ``number`` as a constant: in every lane of a vector type, or lane by lane if it is a sequence."""
    if isinstance(type_, ir.VectorType):
        numbers = number if isinstance(number, Sequence) else [number] * type_.count
        return ir.Constant(type_, [ir.Constant(type_.element, n) for n in numbers])
    return ir.Constant(type_, number)
