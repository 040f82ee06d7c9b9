"""NEON: fused multiply-add of 4 floats, by an element and by a vector."""

from __future__ import annotations

from wpk.dsl.instr import Instr, Operand, register
from wpk.kernels.instr.meaning import broadcast_fma, vector_fma

#: acc[l] += a * w[l]
FMA = register(
    Instr(
        "neon_fmla_element_f32x4", "neon",
        (Operand("acc", (4,), access="inout"), Operand("a", (), kind="scalar"), Operand("w", (4,))),
        broadcast_fma(4), "{acc} += {a} * {w};",
    )
)  # fmt: skip

#: acc[l] += a[l] * w[l]: depthwise convolution
FMA_VECTOR = register(
    Instr(
        "neon_fmla_f32x4", "neon",
        (Operand("acc", (4,), access="inout"), Operand("a", (4,)), Operand("w", (4,))),
        vector_fma(4), "{acc} += {a} * {w};",
    )
)  # fmt: skip
