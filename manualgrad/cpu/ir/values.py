"""What a kernel calculates with: values with Python's operators, each of which writes an instruction of LLVM's.

The operators are those of C, without a check: addresses count bytes, whole numbers are divided as if they had no
sign, comparisons of floats are false where a NaN is compared. A number of Python's becomes a constant of the other
side's type."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

BIT, BYTE, INT32, INT64, DOUBLE = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.DoubleType()
FLOAT, ADDRESS, VOID = ir.FloatType(), ir.PointerType(), ir.VoidType()

Number = int | float


class Value:
    """An LLVM value with Python's operators: an address, a whole number, a float, or a vector of them."""

    def __init__(self, builder: ir.IRBuilder, raw: ir.Value) -> None:
        self.builder, self.raw = builder, raw

    @property
    def _element(self) -> ir.Type:
        return self.raw.type.element if isinstance(self.raw.type, ir.VectorType) else self.raw.type

    def _same(self, other: Value | Number) -> ir.Value:
        return other.raw if isinstance(other, Value) else constant(self.raw.type, other)

    def _made(self, of_floats: str, of_ints: str, other: Value | Number) -> Value:
        operation = getattr(self.builder, of_floats if self._element in (FLOAT, DOUBLE) else of_ints)
        return Value(self.builder, operation(self.raw, self._same(other)))

    def __add__(self, other: Value | Number) -> Value:
        if self.raw.type == ADDRESS:
            offset = other.raw if isinstance(other, Value) else constant(INT64, other)
            return Value(self.builder, self.builder.gep(self.raw, [offset], source_etype=BYTE))
        return self._made("fadd", "add", other)

    def __sub__(self, other: Value | Number) -> Value:
        return self._made("fsub", "sub", other)

    def __mul__(self, other: Value | Number) -> Value:
        return self._made("fmul", "mul", other)

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other: Value | Number) -> Value:
        return Value(self.builder, self.builder.fdiv(self.raw, self._same(other)))

    def __floordiv__(self, other: Value | Number) -> Value:
        return self._made("fdiv", "udiv", other)

    def __mod__(self, other: Value | Number) -> Value:
        return self._made("frem", "urem", other)

    def __and__(self, other: Value | Number) -> Value:
        return self._made("and_", "and_", other)

    def __or__(self, other: Value | Number) -> Value:
        return self._made("or_", "or_", other)

    def __rshift__(self, other: Value | Number) -> Value:
        return self._made("lshr", "lshr", other)

    def __lshift__(self, other: Value | Number) -> Value:
        return self._made("shl", "shl", other)

    def _compared(self, sign: str, other: Value | Number) -> Value:
        compare = self.builder.fcmp_ordered if self._element == FLOAT else self.builder.icmp_signed
        return Value(self.builder, compare(sign, self.raw, self._same(other)))

    def __lt__(self, other: Value | Number) -> Value:
        return self._compared("<", other)

    def __gt__(self, other: Value | Number) -> Value:
        return self._compared(">", other)

    def __eq__(self, other: Value | Number) -> Value:  # type: ignore[override]
        return self._compared("==", other)

    __hash__ = None

    def below(self, other: Value) -> Value:
        """Less, both taken as numbers without a sign."""
        return Value(self.builder, self.builder.icmp_unsigned("<", self.raw, other.raw))

    def is_nan(self) -> Value:
        return Value(self.builder, self.builder.fcmp_unordered("uno", self.raw, self.raw))


class Variable:
    """A place that holds one value after another; LLVM keeps it in a register where one is free."""

    def __init__(self, builder: ir.IRBuilder, slot: ir.Value, type_: ir.Type) -> None:
        self.builder, self.slot, self.type = builder, slot, type_

    def get(self) -> Value:
        return Value(self.builder, self.builder.load(self.slot, typ=self.type))

    def set(self, value: Value) -> None:
        self.builder.store(value.raw, self.slot)

    def add(self, value: Value | Number) -> None:
        self.set(self.get() + value)


def constant(type_: ir.Type, number: Number | Sequence[int]) -> ir.Constant:
    """``number`` in every lane, or one of several numbers in each."""
    if isinstance(type_, ir.VectorType):
        numbers = number if isinstance(number, Sequence) else [number] * type_.count
        return ir.Constant(type_, [ir.Constant(type_.element, n) for n in numbers])
    return ir.Constant(type_, number)
