"""What CUDA spells differently from C: element types, vectors in memory, the functions of its library."""

from __future__ import annotations

from wpk.core.errors import InternalError
from wpk.dsl.codegen.address import Unit
from wpk.dsl.codegen.cstyle import C_TYPES, Isa

#: elements that are structs of the device header
_STRUCTS = {"float16": "f16", "bfloat16": "bf16"}

_FLOAT = {
    "exp": "expf", "log": "logf", "sqrt": "sqrtf", "rsqrt": "rsqrtf", "erf": "erff", "tanh": "tanhf", "floor": "floorf",
    "ceil": "ceilf", "fabs": "fabsf", "max": "fmaxf", "min": "fminf", "pow": "powf",
}  # fmt: skip
_INTEGER = {"max": "max", "min": "min", "fabs": "abs"}

_HELPERS = {
    "floordiv": "{t} floordiv({t} a, {t} b) {{ return a / b - ((a % b != 0) & ((a < 0) != (b < 0))); }}",
    "floormod": "{t} floormod({t} a, {t} b) {{ {t} r = a % b; return r + (r != 0 && (r < 0) != (b < 0) ? b : 0); }}",
    "sigmoid": "{t} sigmoid({t} x) {{ return 1 / (1 + exp(-x)); }}",
}  # fmt: skip

#: literals of GNU C, as CUDA has them
LITERALS = {"__builtin_inff()": "as_float(0x7f800000u)", '__builtin_nanf("")': "as_float(0x7fc00000u)"}


class CudaUnit(Unit):
    """Helpers, tables and vector types of one CUDA text."""

    table_kind = "__constant__"

    def __init__(self, index_type: str) -> None:
        super().__init__(Isa("cuda", 16))
        self.index_type = index_type
        self.vectors: dict[str, str] = {}

    def need(self, name: str, dtype: str, lanes: int) -> str:
        """The CUDA function ``name`` on scalars of ``dtype``; a helper is printed with the text."""
        if lanes:
            raise InternalError(f"{name} on {lanes} lanes: threads compute scalars")
        real = dtype in ("float32", "float64")
        if name in _HELPERS:
            ctype = C_TYPES[dtype][0] if real else self.index_type
            text = f"static __device__ __forceinline__ {_HELPERS[name].format(t=ctype)}"
            self.helpers[name, dtype if real else "", 0] = text
            return name
        if real and name in _FLOAT:
            return _FLOAT[name] if dtype == "float32" else _FLOAT[name].removesuffix("f")
        if not real and name in _INTEGER:
            return _INTEGER[name]
        raise InternalError(f"no CUDA function {name} for {dtype}")

    def vector(self, dtype: str, lanes: int) -> str:
        """The struct of ``lanes`` elements, aligned so that it is read and written by up to 16 bytes at once."""
        _, short, size = C_TYPES[dtype]
        name = f"{short}x{lanes}"
        self.vectors[name] = f"struct __align__({min(lanes * size, 16)}) {name} {{ {element_type(dtype)} v[{lanes}]; }};"
        return name


def element_type(dtype: str) -> str:
    """The type of an element in memory."""
    return _STRUCTS.get(dtype) or C_TYPES[dtype][0]
