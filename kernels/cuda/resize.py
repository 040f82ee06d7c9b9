"""Resizing images for GPUs: a thread for each vector of channels (NHWC) or each pixel (ROW); tables in constant memory.

The algorithm is that of :mod:`wpk.kernels.resize`; arithmetic is float32 whatever the storage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.tensor import DTYPE_BYTES
from wpk.core.workload import Workload
from wpk.dsl.lower import lower
from wpk.dsl.schedule import schedule
from wpk.kernels.cuda.gather import copy_space, copy_steps
from wpk.kernels.cuda.nests import gpu_of, width_of
from wpk.kernels.cuda.operands import STORED
from wpk.kernels.family import Built
from wpk.kernels.resize import algorithm, shape_of
from wpk.search.space import Space

#: bytes of the tables that fit constant memory
CONSTANT = 60 << 10


# --- THE FAMILY: THE ALGORITHM is that of wpk.kernels.resize, THE SPACE and THE SCHEDULE those of copies ----------------


@dataclass(frozen=True)
class CudaResize:
    """Resizing; see the module's docstring."""

    name: str = "cuda_resize"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Images of 16 or 32-bit floats in one layout, ROW or NHWC, nothing fused."""
        if workload.op != "resize" or gpu_of(target) is None:
            return f"op is {workload.op} for {target.arch}, expected resize for cuda"
        x, y = workload.inputs[0], workload.outputs[0]
        if x.dtype not in STORED or (x.dtype, x.layout) != (y.dtype, y.layout) or x.layout not in ("ROW", "NHWC"):
            return f"{x} → {y}, expected floats in one layout, ROW or NHWC"
        if 12 * sum(y.shape[2:]) > CONSTANT:
            return f"tables of {y.shape[2:]} exceed constant memory"
        return None if workload.epilogue is None else "a resize with an epilogue"

    def space(self, workload: Workload, target: Target) -> Space:
        """Channels of a vector, vectors of a thread, threads of a block."""
        assert target.gpu is not None
        s = shape_of(workload)
        widest = width_of(s.inner, bytes_each=DTYPE_BYTES[workload.inputs[0].dtype]) if s.inner > 1 else 1
        return copy_space(s.planes * s.oh * s.ow * s.inner, widest, target.gpu)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s = shape_of(workload)
        lead, last = (("p", "y", "x"), "c") if s.inner > 1 else (("p", "y", "c"), "x")
        name = f"resize_{s.h}x{s.w}to{s.oh}x{s.ow}__{target.isa}"
        return Built(lower(schedule(algorithm(workload, s), copy_steps(lead, last, config)), name), target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Constants stay as they are; there are none."""
        return [np.ascontiguousarray(c) for c in constants]
