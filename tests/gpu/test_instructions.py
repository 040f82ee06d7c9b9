"""Matrix instructions and TMA on the GPU, one by one: where the emulator has misread the manual, this says which.

To be run first on a GPU of a new kind, in front of families and models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from cuda_texts import TMA_STEPS, Text
from instruction_cases import cases

from wpk.core.launch import TensorMap
from wpk.core.target import Target
from wpk.cuda import nvrtc
from wpk.runtime.cuda.device import Binary, Call, Span
from wpk.runtime.cuda.driver import CudaDevice

CASES = cases()


def run(device: CudaDevice, target: Target, text: Text, args: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The arguments after a kernel. Skips where the GPU has not its instructions."""
    if target.isa not in text.archs:
        pytest.skip(f"for {', '.join(text.archs)}")
    source = text.source
    cubin = nvrtc.compile(source.text, target.isa).cubin
    spans = [Span(device.allocate(x.nbytes), x.nbytes) for x in args]
    for span, x in zip(spans, args, strict=True):
        device.upload(span.pointer, x)
    binary = Binary(f"{abs(hash(source.text))}.cubin", cubin, source.text)
    device.bind(Call(binary, source.launches, source.tensor_maps, tuple(spans), Span(0, 0), 1))(device.stream)
    device.synchronize()
    found = [np.empty_like(x) for x in args]
    for span, x in zip(spans, found, strict=True):
        device.download(span.pointer, x)
        device.free(span.pointer)
    return found


@pytest.mark.parametrize("name", CASES)
def test_instructions(device: CudaDevice, target: Target, name: str) -> None:
    case = CASES[name]
    found = run(device, target, case.text, case.args)
    for index, expected in case.expected.items():
        np.testing.assert_array_equal(found[index], expected)


def test_tma_rounds_to_tf32(device: CudaDevice, target: Target) -> None:
    """To nearest, in whatever way ties go; wgmma alone would cut off what tf32 has not."""
    plain = TMA_STEPS.maps[0]
    rounded = TensorMap(plain.parameter, "tf32", plain.shape, plain.strides, (32, 9, 3), 0)
    text = Text(**{**TMA_STEPS.but("-1, -1", "0, 0").but("3840", "3456").__dict__, "maps": (rounded,)})
    a = np.random.default_rng(0).normal(size=(7, 9, 32)).astype(np.float32)
    found = run(device, target, text, [a, np.zeros((30, 32), np.float32)])[1].reshape(-1)[:864]
    wanted = a[:3].reshape(-1)
    assert not np.any(found.view(np.uint32) & 0x1FFF)
    assert np.abs(found / wanted - 1).max() <= 2**-11 * 1.001
