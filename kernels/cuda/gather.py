"""Gather for GPUs: a thread for each vector of the output, which finds its row by its index (:mod:`wpk.kernels.gather`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Gpu, Target
from wpk.core.tensor import DTYPE_BYTES
from wpk.core.workload import Workload
from wpk.dsl.lower import lower
from wpk.dsl.schedule import Bind, Reorder, Split, Step, Unroll, Vectorize, schedule
from wpk.kernels.cuda.nests import fuse_all, gpu_of, width_of
from wpk.kernels.cuda.operands import STORED
from wpk.kernels.family import Built
from wpk.kernels.gather import Gather, Shape, algorithm, shape_of
from wpk.kernels.nests import nearest
from wpk.search.knobs import Knob, Ordered
from wpk.search.space import Space

# --- THE ALGORITHM is that of wpk.kernels.gather -------------------------------------------------------------------------


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def copy_space(count: int, widest: int, gpu: Gpu) -> Space:
    """Elements of a load, vectors of a thread, threads of a block, for ``count`` elements of an output."""
    widths = tuple(w for w in (1, 2, 4, 8) if w <= widest)
    vectors = -(-count // widest)
    counts = tuple(n for n in (1, 2, 4, 8) if n == 1 or n * 32 <= vectors)
    knobs: tuple[Knob, ...] = (
        Ordered("width", widths, widths[-1]),
        Ordered("vectors", counts, nearest(counts, vectors / (gpu.sms * 1024))),
        Ordered("threads", (32, 64, 128, 256, 512), 64 if vectors < gpu.sms * 256 else 256),
    )
    return Space(knobs)


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def copy_steps(lead: tuple[str, ...], last: str, c: Config) -> list[Step]:
    """block: for each of ``vectors``: thread: one vector of the loop ``last``, all loops in the output's order."""
    threads = int(c["threads"])
    fuse, one = fuse_all("out", (*lead, "v_o"), "job")
    return [
        Split("out", last, int(c["width"]), "v_o", "v", "guard"), *fuse,
        Split("out", one, threads * int(c["vectors"]), "block", "some", "guard"),
        Split("out", "some", threads, "vector", "thread", "guard"),
        Reorder("out", ("block", "thread", "vector", "v")),
        Bind("out", "block", "block.x"), Bind("out", "thread", "thread"), Unroll("out", "vector"), Vectorize("out", "v"),
    ]  # fmt: skip


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CudaGather:
    """Gather along an axis; see the module's docstring."""

    name: str = "cuda_gather"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Floats of 16 or 32 bits in layout ROW by int64 or int32 indices, nothing fused."""
        if workload.op != "gather" or gpu_of(target) is None:
            return f"op is {workload.op} for {target.arch}, expected gather for cuda"
        x, y = workload.inputs[0], workload.outputs[0]
        if x.dtype not in STORED or y.dtype != x.dtype:
            return f"{x} → {y}, expected floats of one dtype"
        wide = (replace(x, dtype="float32"), workload.inputs[1])
        return Gather().matches(replace(workload, inputs=wide, outputs=(replace(y, dtype="float32"),)), target)

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`copy_space`."""
        assert target.gpu is not None
        s: Shape = shape_of(workload)
        widest = width_of(s.inner, bytes_each=DTYPE_BYTES[workload.inputs[0].dtype])
        return copy_space(s.outer * s.count * s.inner, widest, target.gpu)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s, (x, index) = shape_of(workload), workload.inputs[:2]
        name = f"gather_{s.outer}x{s.count}of{s.length}x{s.inner}__{target.isa}"
        made = schedule(algorithm(s, index.dtype, x.dtype), copy_steps(("o", "j"), "i", config))
        return Built(lower(made, name), target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Constants stay as they are."""
        return [np.ascontiguousarray(c) for c in constants]
