"""What matrix instructions and TMA must give, case by case: for the emulator, and for a GPU, which has the last word.

Images of shared memory are laid out here by PTX's tables, independently of kernels and emulator. Numbers are small and whole, so
that every product and sum is exact in all of the formats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from cuda_texts import LDMATRIX, PIPELINE, TMA_BOX, TMA_STEPS, Text, mma, wgmma


@dataclass(frozen=True)
class Case:
    """A kernel, its arguments, and what those hold after it, by position; ``whole``: those that it writes throughout."""

    text: Text
    args: tuple[np.ndarray, ...]
    expected: dict[int, np.ndarray]
    whole: tuple[int, ...] = ()


def integers(*shape: int) -> np.ndarray:
    """From -4 to 4."""
    return np.random.default_rng(sum(shape)).integers(-4, 5, shape)


def as_bf16(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


STORED = {
    "f16": lambda x: x.astype(np.float16), "bf16": as_bf16, "float": lambda x: x.astype(np.float32),
    "int8_t": lambda x: x.astype(np.int8),
}  # fmt: skip

#: call, element, accumulator, k
MMA = (
    ("mma_m16n8k8_tf32", "float", "float", 8), ("mma_m16n8k16_f16", "f16", "float", 16),
    ("mma_m16n8k16_bf16", "bf16", "float", 16), ("mma_m16n8k32_s8", "int8_t", "int", 32),
)  # fmt: skip
#: call, element, a k-major, a's swizzle, b k-major, b's swizzle, n
WGMMA = (
    ("wgmma_m64k16_f16<64>", "f16", True, 0, True, 0, 64), ("wgmma_m64k16_f16<128>", "f16", True, 32, True, 32, 128),
    ("wgmma_m64k16_bf16<24>", "bf16", True, 32, True, 0, 24), ("wgmma_m64k16_f16<64, 1, 1>", "f16", False, 0, False, 0, 64),
    ("wgmma_m64k16_f16<64, 1, 1>", "f16", False, 32, False, 64, 64),
    ("wgmma_m64k16_bf16<128, 0, 1>", "bf16", True, 0, False, 128, 128),
    ("wgmma_m64k16_f16<256, 1, 0>", "f16", False, 128, True, 32, 256), ("wgmma_m64k8_tf32<64>", "float", True, 0, True, 32, 64),
)  # fmt: skip


def cases() -> dict[str, Case]:
    """All of them, by name."""
    found = {name: mma_case(name, *rest) for name, *rest in MMA}
    found |= {f"{call} {a_swizzle} {b_swizzle}": wgmma_case(call, element, a_k, a_swizzle, b_k, b_swizzle, n)
              for call, element, a_k, a_swizzle, b_k, b_swizzle, n in WGMMA}  # fmt: skip
    return {**found, "ldmatrix": ldmatrix_case(), "pipeline": pipeline_case(), "box": box_case(), "steps": steps_case()}


def mma_case(name: str, element: str, result: str, k: int) -> Case:
    """d += a·bᵀ of one fragment."""
    a, b = integers(16, k), integers(8, k)
    d = integers(16, 8).astype(np.int32 if result == "int" else np.float32)
    return Case(mma(name, element, result, k), (STORED[element](a), STORED[element](b), d), {2: d + a @ b.T})


def ldmatrix_case() -> Case:
    """Fragments by ldmatrix and its transpose."""
    a, b = integers(16, 16).astype(np.float16), integers(16, 8).astype(np.float16)
    c = np.zeros((16, 8), np.float32)
    return Case(LDMATRIX, (a, b, c), {2: a.astype(np.float32) @ b.astype(np.float32)}, (2,))


def wgmma_case(call: str, element: str, a_k: bool, a_swizzle: int, b_k: bool, b_swizzle: int, n: int) -> Case:
    """Twice the product of operands in one of PTX's layouts."""
    size = 4 if element == "float" else 2
    a, b = integers(64, 32 // size), integers(n, 32 // size)
    image_a, leading_a, stride_a = image(STORED[element](a), a_k, a_swizzle, size)
    image_b, leading_b, stride_b = image(STORED[element](b), b_k, b_swizzle, size)
    text = wgmma(
        call, element, image_a.nbytes, image_b.nbytes, f"{leading_a}, {stride_a}, {a_swizzle}",
        f"{leading_b}, {stride_b}, {b_swizzle}", n,
    )  # fmt: skip
    return Case(text, (image_a, image_b, np.zeros((64, n), np.float32)), {2: 2 * (a @ b.T)}, (2,))


def image(x: np.ndarray, k_major: bool, swizzle: int, size: int) -> tuple[np.ndarray, int, int]:
    """The bytes of an operand (rows × k) in PTX's canonical layout, and the leading and stride offsets in bytes.

    Shapes and strides as the table "Canonical Layouts" gives them, in elements; T elements are 16 bytes.
    """
    rows, depth = x.shape
    each, width = 16 // size, max(swizzle // 16, 1)
    leading, stride = _offsets(rows, depth, each, width, k_major, swizzle)
    data = np.zeros(rows * depth, x.dtype)
    for r in range(rows):
        for k in range(depth):
            if k_major:
                at = r % 8 * width * each + r // 8 * stride + k % each + k // each * (leading if not swizzle else each)
            elif not swizzle:
                at = r % each + r // each * stride + k % 8 * each + k // 8 * leading
            else:
                span = width * each
                at = r % span + r // span * leading + k % 8 * span + k // 8 * stride
            byte = at * size
            byte ^= (byte >> 7 & (width - 1)) << 4
            data[byte // size] = x[r, k]
    return data, leading * size, stride * size


def _offsets(rows: int, depth: int, each: int, width: int, k_major: bool, swizzle: int) -> tuple[int, int]:
    if k_major:
        assert not swizzle or depth == width * each, "the operand is as deep as the swizzle is wide"
        return (rows * each, 8 * each) if not swizzle else (0, 8 * width * each)
    if not swizzle:
        return rows * 8, 8 * each
    return (depth * width * each, 8 * width * each)


def pipeline_case() -> Case:
    """TMA and wgmma in a pipeline of a producer and consumers; its four stages go over k twice."""
    a, b = integers(96, 128).astype(np.float16), integers(64, 128).astype(np.float16)
    once = a.astype(np.float32) @ b.astype(np.float32).T
    return Case(PIPELINE, (a, b, np.zeros((96, 64), np.float32)), {2: 2 * once}, (2,))


def box_case() -> Case:
    """A box that hangs over the end: what is outside reads as zero, and is not stored."""
    a = np.arange(400, dtype=np.float32).reshape(10, 40)
    b, c = np.full((8, 32), np.nan, np.float32), np.full((10, 40), -1, np.float32)
    read, stored = np.zeros((8, 32), np.float32), c.copy()
    read[:6, :28] = a[4:, 12:]
    stored[4:, 12:] = np.arange(256).reshape(8, 32)[:6, :28]
    return Case(TMA_BOX, (a, b, c), {1: read, 2: stored}, (1,))


def steps_case() -> Case:
    """Each second pixel of an image from one before its first, and over its end; rows of 128 bytes, swizzled."""
    a = np.arange(7 * 9 * 32, dtype=np.float32).reshape(7, 9, 32) + 1
    around = np.pad(a, ((1, 4), (1, 4), (0, 0)))
    rows = around[0:10:2, 0:12:2].reshape(30, 8, 4)
    turned = np.stack([row[np.arange(8) ^ i % 8] for i, row in enumerate(rows)])
    return Case(TMA_STEPS, (a, np.full((30, 32), np.nan, np.float32)), {1: turned.reshape(30, 32)}, (1,))
