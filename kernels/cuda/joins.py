"""Concatenation and splitting by copying on GPUs, where the planner cannot give the parts their places in the whole.

Memory is rows of the whole, of which each part is a piece; each part is copied by a kernel of its own, in vectors as wide as
its pieces and their offsets allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.tensor import DTYPE_BYTES, TensorType, to_layout
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Stage
from wpk.dsl.ir import Buffer, Load
from wpk.dsl.lower import lower
from wpk.dsl.schedule import Step, schedule
from wpk.kernels.cuda.images import job_space, job_steps
from wpk.kernels.cuda.nests import gpu_of, width_of
from wpk.kernels.cuda.operands import STORED
from wpk.kernels.family import Built
from wpk.search.space import Space


@dataclass(frozen=True)
class Shape:
    """``outer`` rows of the whole; each part has ``sizes[i]`` neighbouring elements of a row."""

    outer: int
    sizes: tuple[int, ...]
    dtype: str

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each part starts in a row."""
        return (0, *accumulate(self.sizes))[:-1]


def shape_of(workload: Workload) -> Shape:
    """The numbers of a concat or split workload."""
    whole, parts = ends(workload)
    rank = len(whole.shape)
    axis = int(workload.attr("axis")) % rank  # type: ignore[arg-type]
    at = axis if whole.layout != "NHWC" else {0: 0, 1: rank - 1}.get(axis, axis - 1)
    return Shape(prod(whole.physical[:at]), tuple(prod(t.physical[at:]) for t in parts), whole.dtype)


def ends(workload: Workload) -> tuple[TensorType, tuple[TensorType, ...]]:
    """The whole, and its parts."""
    if workload.op == "concat":
        return workload.outputs[0], workload.inputs
    return workload.inputs[0], workload.outputs


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(op: str, s: Shape) -> Algorithm:
    """concat: out[o, offset_i + j] = x_i[o, j] for each part i; split: out_i[o, j] = x[o, offset_i + j]."""
    stages, parts = [], []
    whole = Buffer("out" if op == "concat" else "x", (s.outer, sum(s.sizes)), s.dtype, access="out" if op == "concat" else "in")
    for i, (size, offset) in enumerate(zip(s.sizes, s.offsets, strict=True)):
        o, j = Axis("o", s.outer), Axis("j", size)
        name = f"x{i}" if op == "concat" else f"out{i}"
        parts.append(Buffer(name, (s.outer, size), s.dtype, access="in" if op == "concat" else "out"))
        inner, outer = (o.var, j.var), (o.var, offset + j.var)
        source, target = (Load(name, inner), outer) if op == "concat" else (Load("x", outer), inner)
        to = "out" if op == "concat" else name
        stages.append(Stage(f"copy{i}", (o, j), source, scatter=target, output=to, dtype=s.dtype))
    return Algorithm(op, (*parts, whole) if op == "concat" else (whole, *parts), tuple(stages))


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(s: Shape, c: Config) -> list[Step]:
    """One part after another, each as jobs; vectors no wider than its pieces allow."""
    plan: list[Step] = []
    for i, (size, offset) in enumerate(zip(s.sizes, s.offsets, strict=True)):
        widest = width_of(size, offset, sum(s.sizes), bytes_each=DTYPE_BYTES[s.dtype])
        plan += job_steps(f"copy{i}", ("o",), "j", {**c, "width": min(int(c["width"]), widest)})
    return plan


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CudaJoin:
    """Concatenation or splitting; see the module's docstring. ``op`` is ``concat`` or ``split``."""

    name: str = "cuda_concat"
    version: int = 1
    op: str = "concat"
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Floats of one dtype in one layout, ROW or NHWC, any axis, nothing fused."""
        if workload.op != self.op or gpu_of(target) is None:
            return f"op is {workload.op} for {target.arch}, expected {self.op} for cuda"
        whole, parts = ends(workload)
        if whole.dtype not in STORED or whole.layout not in ("ROW", "NHWC") or any(0 in t.shape for t in parts):
            return f"{whole}, expected non-empty floats in ROW or NHWC"
        odd = next((t for t in parts if (t.dtype, t.layout) != (whole.dtype, whole.layout)), None)
        if odd is not None:
            return f"part {odd}, the whole is {whole}"
        return None if workload.epilogue is None else f"a {self.op} with an epilogue"

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`wpk.kernels.cuda.images.job_space`."""
        assert target.gpu is not None
        s = shape_of(workload)
        largest = max(s.sizes)
        return job_space(s.outer * largest, largest, DTYPE_BYTES[s.dtype], target.gpu)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernels, one a part. Raises InvalidConfig."""
        s = shape_of(workload)
        name = f"{self.op}{len(s.sizes)}_{s.outer}x{sum(s.sizes)}__{target.isa}"
        return Built(lower(schedule(algorithm(self.op, s), steps(s, config)), name), target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Constants in the layout of the whole."""
        return [to_layout(np.asarray(c), ends(workload)[0].layout) for c in constants]


def split() -> CudaJoin:
    """The family for splitting."""
    return CudaJoin("cuda_split", op="split")
