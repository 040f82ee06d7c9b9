"""Matrix units and TMA in the emulator against NumPy; shared-memory images are laid out here, independently of it."""

import numpy as np
import pytest
from cuda_texts import LDMATRIX, PIPELINE, TMA_BOX, mma, wgmma

from wpk.cuda import emulator

pytestmark = pytest.mark.skipif(not emulator.available(), reason="no C++ compiler")


def integers(*shape: int) -> np.ndarray:
    """Small whole numbers: every product and sum is exact in all of the formats."""
    return np.random.default_rng(sum(shape)).integers(-4, 5, shape)


def as_bf16(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


STORED = {
    "f16": lambda x: x.astype(np.float16), "bf16": as_bf16, "float": lambda x: x.astype(np.float32),
    "int8_t": lambda x: x.astype(np.int8),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "element", "result", "k"),
    [
        ("mma_m16n8k8_tf32", "float", "float", 8), ("mma_m16n8k16_f16", "f16", "float", 16),
        ("mma_m16n8k16_bf16", "bf16", "float", 16), ("mma_m16n8k32_s8", "int8_t", "int", 32),
    ],
)  # fmt: skip
def test_mma(name: str, element: str, result: str, k: int) -> None:
    a, b = integers(16, k), integers(8, k)
    d = integers(16, 8).astype(np.int32 if result == "int" else np.float32)
    expected = d + a @ b.T
    emulator.run(mma(name, element, result, k).source, [STORED[element](a), STORED[element](b), d])
    np.testing.assert_array_equal(d, expected)


def test_ldmatrix_and_its_transpose_feed_mma() -> None:
    a, b = integers(16, 16).astype(np.float16), integers(16, 8).astype(np.float16)
    c = np.zeros((16, 8), np.float32)
    emulator.run(LDMATRIX.source, [a, b, c], outputs=[2])
    np.testing.assert_array_equal(c, a.astype(np.float32) @ b.astype(np.float32))


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


CASES = [
    # call, element, bytes, a k-major, a swizzle, b k-major, b swizzle, n, depth of the image
    ("wgmma_m64k16_f16<64>", "f16", True, 0, True, 0, 64),
    ("wgmma_m64k16_f16<128>", "f16", True, 32, True, 32, 128),
    ("wgmma_m64k16_bf16<24>", "bf16", True, 32, True, 0, 24),
    ("wgmma_m64k16_f16<64, 1, 1>", "f16", False, 0, False, 0, 64),
    ("wgmma_m64k16_f16<64, 1, 1>", "f16", False, 32, False, 64, 64),
    ("wgmma_m64k16_bf16<128, 0, 1>", "bf16", True, 0, False, 128, 128),
    ("wgmma_m64k16_f16<256, 1, 0>", "f16", False, 128, True, 32, 256),
    ("wgmma_m64k8_tf32<64>", "float", True, 0, True, 32, 64),
]


@pytest.mark.parametrize(("call", "element", "a_k", "a_swizzle", "b_k", "b_swizzle", "n"), CASES)
def test_wgmma(call: str, element: str, a_k: bool, a_swizzle: int, b_k: bool, b_swizzle: int, n: int) -> None:
    size = 4 if element == "float" else 2
    depth = 32 // size
    a, b = integers(64, depth), integers(n, depth)
    image_a, leading_a, stride_a = image(STORED[element](a), a_k, a_swizzle, size)
    image_b, leading_b, stride_b = image(STORED[element](b), b_k, b_swizzle, size)
    text = wgmma(
        call, element, image_a.nbytes, image_b.nbytes, f"{leading_a}, {stride_a}, {a_swizzle}",
        f"{leading_b}, {stride_b}, {b_swizzle}", n,
    )  # fmt: skip
    c = np.zeros((64, n), np.float32)
    emulator.run(text.source, [image_a, image_b, c], outputs=[2])
    np.testing.assert_array_equal(c, 2 * (a @ b.T))


@pytest.mark.parametrize("seed", (0, 1, 2))
def test_tma_and_wgmma_in_a_pipeline_of_producer_and_consumers(seed: int) -> None:
    a, b = integers(96, 128).astype(np.float16), integers(64, 128).astype(np.float16)
    c = np.zeros((96, 64), np.float32)
    emulator.run(PIPELINE.source, [a, b, c], outputs=[2], seed=seed)
    once = a.astype(np.float32) @ b.astype(np.float32).T
    np.testing.assert_array_equal(c, 2 * once)  # the four stages go over k twice


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100"])
def test_tma_fills_with_zeros_and_stores_what_is_inside(arch: str) -> None:
    a = np.arange(400, dtype=np.float32).reshape(10, 40)
    b, c = np.full((8, 32), np.nan, np.float32), np.full((10, 40), -1, np.float32)
    emulator.run(TMA_BOX.source, [a, b, c], outputs=[1], arch=arch)
    expected = np.zeros((8, 32), np.float32)
    expected[:6, :28] = a[4:, 12:]
    np.testing.assert_array_equal(b, expected)
    stored = np.full((10, 40), -1, np.float32)
    stored[4:, 12:] = np.arange(256).reshape(8, 32)[:6, :28]
    np.testing.assert_array_equal(c, stored)
