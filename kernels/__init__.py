"""Kernel families, one file each. `families()` lists all; several may match one workload."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from wpk.kernels.family import Family

#: module of this package -> family class
_FAMILIES = {
    "conv_direct": "ConvDirect",
    "winograd": "Winograd",
    "gemm": "Gemm",
    "fc": "FullyConnected",
    "matmul": "MatMul",
    "attention": "Attention",
    "conv_row": "ConvRow",
    "conv_depthwise": "ConvDepthwise",
    "eltwise": "Eltwise",
    "pool": "Pool",
    "softmax": "Softmax",
    "lrn": "Lrn",
    "transpose": "Transpose",
    "convert": "Convert",
    "concat": "Concat",
    "norm": "Norm",
    "reduce_axes": "ReduceAxes",
    "gather": "Gather",
    "resize": "Resize",
}


@cache
def families() -> tuple[Family, ...]:
    """Every kernel family, in a fixed order."""
    return tuple(getattr(import_module(f"wpk.kernels.{m}"), c)() for m, c in _FAMILIES.items())
