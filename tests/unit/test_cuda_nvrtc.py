"""NVRTC: real cubins for every compute capability, with no GPU."""

import sys
from pathlib import Path

import pytest
from cuda_texts import (
    ADD,
    ALL,
    GEMM,
    LAST_BLOCK,
    LDMATRIX,
    NAMED,
    PIPELINE,
    REDUCE,
    TMA_BOX,
    TRANSPOSE,
    Text,
    mma,
    wgmma,
)

from wpk.core.errors import ToolchainError
from wpk.cuda import nvrtc

pytestmark = pytest.mark.skipif(not nvrtc.available(), reason="no NVRTC for this system")

TEXTS = {
    "add": ADD, "transpose": TRANSPOSE, "reduce": REDUCE, "gemm": GEMM, "last block": LAST_BLOCK, "named": NAMED,
    "mma f16": mma("mma_m16n8k16_f16", "f16", "float", 16), "mma bf16": mma("mma_m16n8k16_bf16", "bf16", "float", 16),
    "mma tf32": mma("mma_m16n8k8_tf32", "float", "float", 8), "mma s8": mma("mma_m16n8k32_s8", "int8_t", "int", 32),
    "ldmatrix": LDMATRIX, "pipeline": PIPELINE, "tma": TMA_BOX,
    "wgmma tf32": wgmma("wgmma_m64k8_tf32<64>", "float", 2048, 2048, "1024, 128, 0", "1024, 128, 0"),
    "wgmma bf16 n-major": wgmma("wgmma_m64k16_bf16<256, 1, 1>", "bf16", 2048, 8192, "0, 1024, 128", "2048, 1024, 128", 256),
}  # fmt: skip

SPILLS = """#include "wpk_device.cuh"
extern "C" __global__ void __launch_bounds__(1024, 2) k(const float *a, float *b, char *workspace) {
  __shared__ float tile[1024];
  float x[64];
#pragma unroll
  for (int i = 0; i < 64; i++) x[i] = a[threadIdx.x * 64 + i];
  tile[threadIdx.x] = x[3];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; i++) b[threadIdx.x * 64 + i] = x[i] * x[(i * 7 + 1) % 64] + tile[i];
}
"""


@pytest.mark.parametrize("name", TEXTS)
def test_every_text_compiles_wherever_it_is_legal(name: str) -> None:
    text: Text = TEXTS[name]
    for arch in text.archs:
        compiled = nvrtc.compile(text.text, arch)
        assert compiled.cubin.startswith(b"\x7fELF")
        assert 8 <= compiled.resources["k"].registers <= 255
        assert nvrtc.losses(compiled.log) == []


SERIAL = """#include "wpk_device.cuh"
extern "C" __global__ void __launch_bounds__(128, 1) k(float *out, int n) {
  extern __shared__ __align__(1024) unsigned char wpk_shared[];
  float d[32];
  for (int i = 0; i < 32; i++) d[i] = 0;
  uint64_t a = matrix_desc(wpk_shared, 16, 1024, 128);
  for (int j = 0; j < n; j++) {
    wgmma_fence();
    wgmma_m64k16_f16<64>(d, a, a);
    wgmma_commit();
    TOUCH;
    wgmma_wait<0>();
  }
  for (int i = 0; i < 32; i++) out[i * 128 + threadIdx.x] = d[i];
}
"""


def test_what_ptxas_says_of_products_that_wait_is_found() -> None:
    touches = "", "d[3] *= 2", "d[j & 1] *= 2"
    said = {t: nvrtc.losses(nvrtc.compile(SERIAL.replace("TOUCH", t), "sm_90a").log) for t in touches}
    assert said[""] == [] and "injected" in said["d[3] *= 2"][0]
    assert any("serialized" in line for line in said["d[j & 1] *= 2"])
    lone = SERIAL.replace("TOUCH", "registers_raise<232>()").replace("(128, 1)", "(128)")
    assert any("setmaxnreg" in line for line in nvrtc.losses(nvrtc.compile(lone, "sm_90a").log))


@pytest.mark.parametrize("arch", ALL)
def test_resources_are_read_from_what_ptxas_says(arch: str) -> None:
    spilling = nvrtc.compile(SPILLS, arch).resources["k"]
    assert spilling.registers <= 32 and spilling.shared_bytes == 4096
    assert spilling.local_bytes > 0 and spilling.spill_bytes > 0
    modest = nvrtc.compile(TRANSPOSE.text, arch).resources["k"]
    assert modest.shared_bytes == 32 * 33 * 4 and modest.local_bytes == modest.spill_bytes == 0


def test_several_kernels_of_a_text_have_resources_each() -> None:
    second = ADD.body.replace("k(", "second(")
    assert set(nvrtc.compile(ADD.text + second, "sm_80").resources) == {"k", "second"}


def test_hopper_functions_are_refused_elsewhere() -> None:
    for arch in ("sm_80", "sm_100"):
        with pytest.raises(nvrtc.CudaCompileError, match=r"wgmma|mbarrier"):
            nvrtc.compile(PIPELINE.text, arch)


def test_an_error_names_the_line() -> None:
    with pytest.raises(nvrtc.CudaCompileError) as caught:
        nvrtc.compile(ADD.but("c[i] =", "d[i] =").text, "sm_80")
    assert caught.value.detail.splitlines()[0].startswith('kernel.cu(6): error: identifier "d" is undefined')


def test_an_unknown_compute_capability_is_told() -> None:
    with pytest.raises(ToolchainError, match="sm_17"):
        nvrtc.compile(ADD.text, "sm_17")


def test_the_cache_holds_the_same_and_is_used(tmp_path: Path) -> None:
    first = nvrtc.compile_cached(ADD.text, "sm_80", tmp_path)
    assert nvrtc.compile_cached(ADD.text, "sm_80", tmp_path) == first == nvrtc.compile(ADD.text, "sm_80")
    (cubin,) = tmp_path.glob("*.cubin")
    cubin.write_bytes(b"kept")
    assert nvrtc.compile_cached(ADD.text, "sm_80", tmp_path).cubin == b"kept"
    assert nvrtc.cache_key(ADD.text, "sm_80") != nvrtc.cache_key(ADD.text, "sm_90a")


def test_many_keep_their_order_and_their_errors(tmp_path: Path) -> None:
    broken = ADD.but("c[i] =", "d[i] =").text
    sources = [(ADD.text, "sm_80"), (broken, "sm_80"), (TRANSPOSE.text, "sm_90a")]
    with nvrtc.open_pool(2) as pool:
        first, second, third = nvrtc.compile_many(sources, pool, tmp_path)
    assert isinstance(second, nvrtc.CudaCompileError) and '"d" is undefined' in second.detail
    assert first == nvrtc.compile(*sources[0]) and third == nvrtc.compile(*sources[2])


def test_without_the_extra_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    nvrtc._bindings.cache_clear()
    try:
        assert not nvrtc.available()
        with pytest.raises(ToolchainError, match=r"wpk\[cuda-compile\]"):
            nvrtc.compile(ADD.text, "sm_80")
    finally:
        nvrtc._bindings.cache_clear()
