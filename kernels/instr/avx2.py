"""AVX2: fused multiply-add of 8 floats, and the byte dot product of AVX-VNNI."""

from __future__ import annotations

from wpk.dsl.instr import Instr, Operand, register
from wpk.kernels.instr.meaning import broadcast_fma, byte_dot

#: acc[l] += a * w[l]
FMA = register(
    Instr(
        "avx2_fma_f32x8", "avx2",
        (Operand("acc", (8,), access="inout"), Operand("a", (), kind="scalar"), Operand("w", (8,))),
        broadcast_fma(8), "{acc} += {a} * {w};",
    )
)  # fmt: skip

#: acc[l] += sum over q < 4 of a[q] * w[l, q]; activations unsigned bytes, weights signed, no saturation
VNNI = register(
    Instr(
        "avx2_vpdpbusd", "avx2",
        (
            Operand("acc", (8,), "int32", "inout"),
            Operand("a", (4,), "uint8", kind="pointer"),
            Operand("w", (8, 4), "int8", kind="pointer"),
        ),
        byte_dot(8),
        "{{ int32_t a4; __builtin_memcpy(&a4, {a}, 4); "
        '__asm__("%{{vex%}} vpdpbusd %2, %1, %0" : "+x"({acc}) : "x"((i32x8){{}} + a4), "x"(i32x8_at({w}))); }}',
        ("avx_vnni",),
    )
)  # fmt: skip
