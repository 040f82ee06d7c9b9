"""Runs scheduled kernels by the interpreter and, as CUDA text, in the emulator; both must give what NumPy gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wpk.core.target import Target
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.cuda import emulator, nvrtc
from wpk.dsl.codegen.cuda import emit
from wpk.dsl.interp import run as interpret
from wpk.dsl.ir import Kernel
from wpk.dsl.verify import verify
from wpk.settings import shipped_target

H200: Target = shipped_target("h200-sm_90a")
Arrays = dict[str, np.ndarray]


def product(m: int, n: int, k: int, trans_a: bool = False, trans_b: bool = False, dtype: str = "float32") -> Workload:
    """A gemm workload without epilogue."""
    a, b = (k, m) if trans_a else (m, k), (n, k) if trans_b else (k, n)
    types = TensorType(dtype, a), TensorType(dtype, b)
    return Workload("gemm", types, (TensorType(dtype, (m, n)),), (("trans_a", trans_a), ("trans_b", trans_b)))


def interpreted(kernel: Kernel, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """The output of a verified kernel with one output, its last parameter."""
    verify(kernel)
    names = [p.name for p in kernel.params]
    out = np.full(kernel.params[-1].shape, np.nan, inputs[0].dtype)
    interpret(kernel, {**dict(zip(names, inputs, strict=False)), names[-1]: out})
    return out


def emulated(kernel: Kernel, inputs: Sequence[np.ndarray], isa: str = "sm_90a", seed: int = 0) -> np.ndarray:
    """The same by the emulator."""
    verify(kernel)
    out = np.full(kernel.params[-1].shape, np.nan if inputs[0].dtype.kind == "f" else 0, inputs[0].dtype)
    emulator.run(emit(kernel, isa), [*inputs, out], seed=seed, outputs=[len(inputs)], arch=isa)
    return out


def compiled(kernel: Kernel, isa: str = "sm_90a") -> dict[str, nvrtc.Resources]:
    """What its functions take of the device, by NVRTC; empty where there is none."""
    return nvrtc.compile(emit(kernel, isa).text, isa).resources if nvrtc.available() else {}
