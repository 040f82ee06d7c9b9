"""Tables and text rules that C-like printers share: ISAs, types, literals, and values that fold as they are printed."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from wpk.core.errors import InternalError


@dataclass(frozen=True)
class Isa:
    """A vector instruction set: bytes of its registers, and which lane counts (of 32-bit elements) have mask registers."""

    name: str
    bytes: int
    mask_lanes: tuple[int, ...] = ()


ISAS = {
    "avx512": Isa("avx512", 64, (4, 8, 16)),
    "avx2": Isa("avx2", 32),
    "neon": Isa("neon", 16),
    "scalar": Isa("scalar", 4),
}

#: dtype -> (C type, short name used in vector types and helpers, bytes)
C_TYPES = {
    "float32": ("float", "f32", 4), "float64": ("double", "f64", 8),
    "float16": ("_Float16", "f16", 2), "bfloat16": ("uint16_t", "bf16", 2),
    "int8": ("int8_t", "i8", 1), "uint8": ("uint8_t", "u8", 1), "bool": ("uint8_t", "u8", 1),
    "int16": ("int16_t", "i16", 2), "uint16": ("uint16_t", "u16", 2),
    "int32": ("int32_t", "i32", 4), "uint32": ("uint32_t", "u32", 4),
    "int64": ("int64_t", "i64", 8), "uint64": ("uint64_t", "u64", 8),
}  # fmt: skip

FLOATS = ("float32", "float64")

#: dtypes that are storage only, and the dtype their elements compute as
COMPUTE = {"float16": "float32", "bfloat16": "float32"}

#: names that generated C may not give to variables
RESERVED = frozenset(
    re.findall(
        r"\w+",
        """auto break case char const continue default do double else enum extern float for goto if inline int long
        register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while
        args begin ctx end main rt state thread workspace mine exp log pow sqrt floor ceil erf tanh abs""",
    )
)

# precedences of C operators, tightest highest
ATOM, UNARY, MUL, ADD, SHIFT, LESS, EQUAL, BITAND, AND, OR, TERNARY = 15, 14, 13, 12, 11, 10, 9, 8, 4, 3, 2


class Val:
    """A printed value: ``-text`` when ``neg``; ``lanes`` is 0 for a scalar; ``const`` when it is known."""

    __slots__ = ("const", "dtype", "lanes", "neg", "prec", "text")

    def __init__(
        self, text: str, prec: int, lanes: int, dtype: str, const: float | int | bool | None = None, neg: bool = False
    ) -> None:
        self.text, self.prec, self.lanes, self.dtype, self.const, self.neg = text, prec, lanes, dtype, const, neg

    def __str__(self) -> str:
        return self.text if not self.neg else "-" + within(self.text, self.prec, UNARY)

    def at(self, prec: int) -> str:
        """The text, in parentheses when an operator of precedence ``prec`` would take it apart."""
        if self.neg:
            return within(str(self), UNARY, prec)
        return self.text if self.prec >= prec else f"({self.text})"


def within(text: str, prec: int, outer: int) -> str:
    """``text`` of precedence ``prec`` as an operand of an operator of precedence ``outer``."""
    return text if prec >= outer else f"({text})"


def constant(value: float | int | bool, dtype: str) -> Val:
    """A literal. Negative numbers are kept as ``neg`` of their magnitude, so that they fold into subtractions."""
    if dtype in FLOATS:
        negative = value < 0
        magnitude = -value if negative else value
        return Val(float_literal(float(magnitude), dtype), ATOM, 0, dtype, value, negative)
    if dtype == "bool":
        return Val("1" if value else "0", ATOM, 0, dtype, bool(value))
    return Val(str(abs(int(value))), ATOM, 0, dtype, int(value), value < 0)


@lru_cache(4096)
def float_literal(value: float, dtype: str) -> str:
    """The shortest C literal that reads back as ``value`` in ``dtype``."""
    if math.isnan(value):
        return '__builtin_nanf("")'
    if math.isinf(value):
        return "__builtin_inff()" if value > 0 else "(-__builtin_inff())"
    return f"{np.float32(value)!s}f" if dtype == "float32" else repr(value)


def rounded(value: float, dtype: str) -> float:
    """A Python float as the nearest value of ``dtype``."""
    return float(np.float32(value)) if dtype == "float32" else value


def negate(a: Val) -> Val:
    """``-a``."""
    const = -a.const if a.const is not None else None
    return Val(a.text, a.prec, a.lanes, a.dtype, const, not a.neg)


def add(a: Val, b: Val) -> Val:
    """``a + b``; zeros vanish, a negated operand makes a subtraction."""
    if a.const is not None and b.const is not None:
        return constant(_arith(a, b, "+"), a.dtype)
    if a.const == 0:
        return b
    if b.const == 0:
        return a
    lanes = a.lanes or b.lanes
    if a.neg and b.neg:
        return Val(f"{a.text} + {b.text}" if a.prec >= ADD else f"({a.text}) + {b.text}", ADD, lanes, a.dtype, None, True)
    if b.neg:
        return Val(f"{a.at(ADD)} - {within(b.text, b.prec, MUL)}", ADD, lanes, a.dtype)
    if a.neg:
        return Val(f"{b.at(ADD)} - {within(a.text, a.prec, MUL)}", ADD, lanes, a.dtype)
    return Val(f"{a.at(ADD)} + {b.at(ADD)}", ADD, lanes, a.dtype)


def multiply(a: Val, b: Val) -> Val:
    """``a * b``; ones vanish, zero absorbs, the sign moves outward."""
    if a.const is not None:
        if b.const is not None:
            return constant(_arith(a, b, "*"), a.dtype)
        if a.const == 0:
            return a
        if a.const in (1, -1):
            return b if a.const == 1 else negate(b)
    elif b.const is not None:
        if b.const == 0:
            return b
        if b.const in (1, -1):
            return a if b.const == 1 else negate(a)
    left = a.text if a.prec >= MUL else f"({a.text})"
    right = b.text if b.prec > MUL else f"({b.text})"
    return Val(f"{left} * {right}", MUL, a.lanes or b.lanes, a.dtype, None, a.neg != b.neg)


def divide(a: Val, b: Val) -> Val:
    """``a / b`` of floats."""
    if b.const is not None and b.const != 0:
        if a.const is not None:
            return constant(_arith(a, b, "/"), a.dtype)
        if b.const in (1, -1):
            return a if b.const == 1 else negate(a)
    left, right = within(a.text, a.prec, MUL), within(b.text, b.prec, UNARY)
    return Val(f"{left} / {right}", MUL, a.lanes or b.lanes, a.dtype, None, a.neg != b.neg)


def _arith(a: Val, b: Val, op: str) -> float | int:
    assert a.const is not None and b.const is not None
    value = a.const + b.const if op == "+" else a.const * b.const if op == "*" else a.const / b.const
    return rounded(value, a.dtype) if a.dtype in FLOATS else value


def promote(a: str, b: str) -> str:
    """The dtype of an operation on ``a`` and ``b``: floats win over integers, wide over narrow."""
    if a == b:
        return a
    rank = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
    try:
        return a if rank.index(a) > rank.index(b) else b
    except ValueError:
        raise InternalError(f"no arithmetic on {a} and {b}") from None


def identifier(name: str) -> str:
    """A C identifier close to ``name``."""
    clean = re.sub(r"\W", "_", name)
    return f"{clean}_" if clean in RESERVED or not clean or clean[0].isdigit() else clean


def vector_type(dtype: str, lanes: int) -> str:
    """``f32x16``; the C scalar type when ``lanes`` is 0."""
    c, short, _ = C_TYPES[dtype]
    return f"{short}x{lanes}" if lanes else c
