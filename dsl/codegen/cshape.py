"""The shape of a helper (ISA, element, lanes), and the text of what vectors and scalars spell differently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wpk.dsl.codegen.cstyle import C_TYPES, Isa, vector_type


@dataclass(frozen=True)
class Shape:
    """What a helper is printed for: an ISA, an element dtype and lanes (0: scalar)."""

    isa: Isa
    dtype: str
    lanes: int

    @property
    def suffix(self) -> str:
        """The end of helper names: ``f32x16``, or ``f32`` for scalars."""
        return vector_type(self.dtype, self.lanes) if self.lanes else C_TYPES[self.dtype][1]

    @property
    def type(self) -> str:
        """The C type of a value."""
        return vector_type(self.dtype, self.lanes)

    @property
    def ints(self) -> str:
        """The int32 type with as many lanes."""
        return vector_type("int32", self.lanes)

    @property
    def scalar(self) -> str:
        """The C type of an element."""
        return C_TYPES[self.dtype][0]

    @property
    def mask(self) -> str:
        """The C type of a lane mask; ``int`` for scalars."""
        if not self.lanes:
            return "int"
        return ("uint16_t" if self.lanes == 16 else "uint8_t") if self.has_k else self.ints

    @property
    def has_k(self) -> bool:
        """Masks are AVX-512 mask registers, one bit a lane; else they are int32 vectors of 0 and -1."""
        return self.lanes in self.isa.mask_lanes

    @property
    def native(self) -> int:
        """Bits of the x86 register that holds exactly this shape of 32-bit elements, else 0."""
        bits = 32 * self.lanes
        if C_TYPES[self.dtype][2] != 4 or self.isa.name not in ("avx512", "avx2") or bits > 8 * self.isa.bytes:
            return 0
        return bits if bits in (128, 256, 512) else 0

    def bit(self, mask: str, lane: str | int) -> str:
        """C text: is ``lane`` active in the mask named ``mask``?"""
        return f"({mask} >> {lane} & 1)" if self.has_k else f"{mask}[{lane}]"


#: prints one helper for a shape: its text, and the names of the helpers of the same shape that it calls
Helper = Callable[[Shape], tuple[str, tuple[str, ...]]]

CAST = ("bits", "real")
PICK = ("lt", "blend")


def splat(s: Shape, text: str) -> str:
    """A scalar text as a value of the shape."""
    return f"(({s.type}){{}} + {text})" if s.lanes else text


def real(s: Shape, bits: str) -> str:
    """int32 bits seen as float32."""
    return f"({s.type})({bits})" if s.lanes else f"real_{s.suffix}({bits})"


def bits(s: Shape, real: str) -> str:
    """float32 seen as int32 bits."""
    return f"({s.ints})({real})" if s.lanes else f"bits_{s.suffix}({real})"


def convert(s: Shape, ints: str) -> str:
    """int32 values as float32."""
    return f"__builtin_convertvector({ints}, {s.type})" if s.lanes else f"(float)({ints})"


def less(s: Shape, a: str, b: str) -> str:
    """A mask of ``a < b``, for :func:`_pick`."""
    return f"lt_{s.suffix}({a}, {b})"


def pick(s: Shape, mask: str, a: str, b: str) -> str:
    """``mask ? a : b``."""
    return f"blend_{s.suffix}({mask}, {a}, {b})"
