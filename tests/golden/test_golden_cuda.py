"""The CUDA text of small kernels, byte for byte, and their IR: a refactoring changes none of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from wpk.core.pointwise import parse
from wpk.core.result import Config
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.dsl.codegen.cuda import emit
from wpk.dsl.printer import show
from wpk.dsl.verify import verify
from wpk.kernels.cuda.eltwise import CudaEltwise
from wpk.kernels.cuda.gemm import CudaGemm
from wpk.kernels.cuda.gemm_mma import CudaGemmMma
from wpk.kernels.cuda.gemm_wgmma import CudaGemmWgmma
from wpk.kernels.family import Family
from wpk.settings import shipped_target

Golden = Callable[[str, str], None]

TILE: Config = {
    "tile_m": 4, "tile_n": 4, "lanes_m": 4, "warps_m": 1, "warps_n": 2, "tile_k": 16, "split_k": 1, "slices": 1, "pad": 4,
    "rows": "turned", "stages": 1, "unroll_k": 8, "order": "nm", "group": 1, "min_blocks": 2,
}  # fmt: skip


def _types(*shapes: tuple[int, ...], dtype: str = "float32") -> tuple[TensorType, ...]:
    return tuple(TensorType(dtype, s) for s in shapes)


_BIAS = Workload("eltwise", _types((2, 24, 14), (24, 1)), _types((2, 24, 14)), (), parse("relu(add(in0,in1))"), (1,))
_HALF = Workload("eltwise", _types((64, 96), dtype="float16"), _types((64, 96), dtype="float16"), (), parse("sigmoid(in0)"))
_PRODUCT = Workload(
    "gemm", _types((70, 48), (48, 64), (64,)), _types((70, 64)), (("trans_a", False), ("trans_b", False)),
    parse("relu(add(acc,in2))"), (1, 2),
)  # fmt: skip

_BRAIN = Workload(
    "gemm", _types((64, 96), (80, 96), dtype="bfloat16"), _types((64, 80), dtype="bfloat16"),
    (("trans_a", False), ("trans_b", True)),
)  # fmt: skip
_FRAGMENTS: Config = {
    "warps_m": 1, "warps_n": 2, "rows": 2, "columns": 2, "bytes_k": 64, "split_k": 1, "slices": 1, "stages": 3, "swizzle": True,
    "order": "nm", "group": 1, "min_blocks": 1,
}  # fmt: skip

_WEIGHTS = Workload(
    "gemm", _types((200, 192), (80, 192), dtype="float16"), _types((200, 80), dtype="float16"),
    (("trans_a", False), ("trans_b", True)), constants=(1,),
)  # fmt: skip
_GROUPS: Config = {
    "groups_m": 2, "groups_n": 1, "rows": 1, "columns": 32, "stages": 3, "split_k": 1, "fetch": 0, "order": "nm", "group": 1,
    "min_blocks": 1,
}  # fmt: skip

EXAMPLES: tuple[tuple[str, Family, Workload, Config], ...] = (
    ("eltwise_bias", CudaEltwise(), _BIAS, {"width": 2, "vectors": 1, "threads": 128}),
    ("eltwise_half", CudaEltwise(), _HALF, {"width": 8, "vectors": 2, "threads": 64}),
    ("gemm", CudaGemm(), _PRODUCT, TILE),
    ("gemm_split", CudaGemm(), _PRODUCT, {**TILE, "split_k": 3}),
    ("gemm_pipeline", CudaGemm(), _PRODUCT, {**TILE, "rows": "kept", "stages": 3, "unroll_k": 4, "tile_k": 8}),
    ("gemm_mma", CudaGemmMma(), _BRAIN, _FRAGMENTS),
    ("gemm_wgmma", CudaGemmWgmma(), _BRAIN, {**_GROUPS, "groups_m": 1, "stages": 2}),
    ("gemm_wgmma_fetch", CudaGemmWgmma(), _WEIGHTS, {**_GROUPS, "fetch": 1}),
    ("gemm_mma_stream", CudaGemmMma(), _BRAIN, {**_FRAGMENTS, "bytes_k": 32, "stages": 2, "stream": 4}),
)


@pytest.mark.parametrize(("name", "family", "workload", "config"), EXAMPLES, ids=lambda v: v if isinstance(v, str) else "")
def test_cuda(name: str, family: Family, workload: Workload, config: Config, golden: Golden) -> None:
    target = shipped_target("h200-sm_90a")
    assert family.matches(workload, target) is None
    built = family.build(workload, config, target)
    verify(built.kernel)
    golden(f"cuda/{name}.txt", show(built.kernel))
    golden(f"cuda/{name}.cu", emit(built.kernel, built.isa).text)
