"""AVX-512: fused multiply-add of 16 floats, and the dot products of VNNI and BF16."""

from __future__ import annotations

from wpk.dsl.instr import Instr, Operand, register
from wpk.kernels.instr.meaning import bf16_dot, broadcast_fma, byte_dot

#: acc[l] += a * w[l]: the step of a register-tiled microkernel
FMA = register(
    Instr(
        "avx512_fma_f32x16", "avx512",
        (Operand("acc", (16,), access="inout"), Operand("a", (), kind="scalar"), Operand("w", (16,))),
        broadcast_fma(16), "{acc} += {a} * {w};",
    )
)  # fmt: skip

#: acc[l] += sum over q < 4 of a[q] * w[l, q]; activations unsigned bytes, weights signed, no saturation
VNNI = register(
    Instr(
        "avx512_vpdpbusd", "avx512",
        (
            Operand("acc", (16,), "int32", "inout"),
            Operand("a", (4,), "uint8", kind="pointer"),
            Operand("w", (16, 4), "int8", kind="pointer"),
        ),
        byte_dot(16),
        "{{ int32_t a4; __builtin_memcpy(&a4, {a}, 4); "
        '__asm__("vpdpbusd %2, %1, %0" : "+v"({acc}) : "v"((i32x16){{}} + a4), "v"(i32x16_at({w}))); }}',
        ("avx512_vnni",),
    )
)  # fmt: skip

#: acc[l] += a[0] * w[l, 0] + a[1] * w[l, 1] on bfloat16 pairs, summed in float32
BF16 = register(
    Instr(
        "avx512_vdpbf16ps", "avx512",
        (
            Operand("acc", (16,), access="inout"),
            Operand("a", (2,), "bfloat16", kind="pointer"),
            Operand("w", (16, 2), "bfloat16", kind="pointer"),
        ),
        bf16_dot(16),
        "{{ int32_t a2; __builtin_memcpy(&a2, {a}, 4); "
        '__asm__("vdpbf16ps %2, %1, %0" : "+v"({acc}) : "v"((i32x16){{}} + a2), "v"(i32x16_at({w}))); }}',
        ("avx512_bf16",),
    )
)  # fmt: skip
