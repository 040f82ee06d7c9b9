"""Sum, mean, maximum or minimum over neighbouring axes for GPUs, in an order that never changes.

Rows as in :mod:`wpk.kernels.cuda.rows`. Where something lies inside the axes, a thread has a vector of it and every
``parts``-th element along them; the parts meet in shared memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Gpu, Target
from wpk.core.tensor import DTYPE_BYTES
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Reduce, Stage
from wpk.dsl.ir import Buffer, Const, Expr, Load, Select
from wpk.dsl.lower import lower
from wpk.dsl.schedule import Bind, ComputeAt, Fuse, Reorder, Split, Step, Unroll, Vectorize, schedule
from wpk.kernels.cuda.nests import fuse_all, gpu_of, width_of
from wpk.kernels.cuda.operands import STORED, GpuOperands, as_float32
from wpk.kernels.cuda.rows import RowTile, reduced_steps, row_space, shares, tile_of, total
from wpk.kernels.family import Built
from wpk.kernels.nests import nearest
from wpk.kernels.reduce import INIT
from wpk.kernels.reduce_axes import OPS, ReduceAxes, Shape, shape_of
from wpk.search.knobs import Knob, Ordered
from wpk.search.space import Space

#: loads that a thread has under way along the axes
IN_FLIGHT = 4


@dataclass(frozen=True)
class InnerTile:
    """A block has ``lanes`` vectors of ``width`` of what lies inside, and ``parts`` threads for each."""

    lanes: int
    parts: int
    width: int


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(workload: Workload, s: Shape, tile: RowTile) -> Algorithm:
    """out[r] = epilogue(op over k of x[r,k]), divided by their number for a mean."""
    op, (rb, ri) = OPS[s.kind], tile.axes[:2]
    stages = [
        *shares("part", tile, op, lambda r, k: Load("x", (r, k))),
        total("total", "part", tile, op),
    ]
    value = _finished(workload, s, Load("total", (rb.var, ri.var)), tile.row, Const(0))
    axes = (rb, ri, Axis("t", 1))
    out = Stage("out", axes, value, scatter=(tile.row, Const(0)), dtype=workload.outputs[0].dtype)
    return Algorithm("reduce", _params(workload, s, (s.outer, s.length)), (*stages, out))


def inner_algorithm(workload: Workload, s: Shape, t: InnerTile) -> Algorithm:
    """out[r,i] = epilogue(sum over p of part[r,p,i]) with part[r,p,i] = op over j of x[r,j*parts+p,i]."""
    op, init = OPS[s.kind], INIT[OPS[s.kind]]
    r, p, v = Axis("r", s.outer), Axis("p", t.parts), Axis("v", t.width)
    ib, il = Axis("ib", -(-s.inner // (t.lanes * t.width))), Axis("il", t.lanes)
    j = Axis("j", -(-s.length // t.parts))
    i, k = (ib.var * t.lanes + il.var) * t.width + v.var, j.var * t.parts + p.var
    place: tuple[Axis, ...] = (r, ib, p, il, v)
    x: Expr = Load("x", (r.var, k, i))
    if s.length % t.parts or s.inner % (t.lanes * t.width):
        x = Select((k < s.length) & (i < s.inner), x, Const(init, "float32"))
    at = tuple(a.var for a in place)
    stages = (
        Stage("share", place, x, Reduce(op, (j,), init)),
        Stage("part", place, Load("share", at)),
        Stage("total", (r, ib, il, v), Load("part", at), Reduce(op, (p,), init)),
    )
    whole = Load("total", (r.var, ib.var, il.var, v.var))
    value = _finished(workload, s, whole, r.var, i)
    where = None if s.inner % (t.lanes * t.width) == 0 else i < s.inner
    dtype = workload.outputs[0].dtype
    out = Stage("out", (r, ib, il, v), value, scatter=(r.var, i), where=where, dtype=dtype)
    return Algorithm("reduce", _params(workload, s, (s.outer, s.length, s.inner)), (*stages, out))


def _finished(workload: Workload, s: Shape, whole: Expr, r: Expr, i: Expr) -> Expr:
    value = whole * float(np.float32(1 / s.length)) if s.kind == "mean" else whole
    return GpuOperands(workload, 1, s.groups).value(value, (r, i))


def _params(workload: Workload, s: Shape, shape: tuple[int, ...]) -> tuple[Buffer, ...]:
    operands = GpuOperands(workload, 1, s.groups).buffers()
    out = Buffer("out", (s.outer, s.inner), workload.outputs[0].dtype, access="out")
    return (Buffer("x", shape, workload.inputs[0].dtype), *operands, out)


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def inner_space(s: Shape, widest: int, gpu: Gpu) -> Space:
    """Elements of a load, vectors of a block, threads that share a sum."""
    widths = tuple(w for w in (1, 2, 4, 8) if w <= widest)
    lanes = tuple(n for n in (4, 8, 16, 32, 64, 128) if n == 4 or n < 2 * s.inner)
    parts = tuple(n for n in (1, 2, 4, 8, 16, 32) if n <= s.length)
    vectors = s.outer * -(-s.inner // widths[-1])
    lane = nearest(lanes, min(32, max(vectors // gpu.sms, 8)))
    part = nearest(parts, max(32 / lane, min(256 / lane, gpu.sms * 512 / vectors)))
    knobs: tuple[Knob, ...] = (
        Ordered("width", widths, widths[-1]), Ordered("lanes", lanes, lane), Ordered("parts", parts, part),
    )  # fmt: skip
    return Space(knobs, (lambda c: 32 <= int(c["lanes"]) * int(c["parts"]) <= 1024 or c["parts"] == parts[-1],
                         lambda c: int(c["lanes"]) * int(c["parts"]) <= 1024))  # fmt: skip


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def inner_steps(t: InnerTile) -> list[Step]:
    """block: each thread's share; a thread for each vector: their sum."""
    fuse, one = fuse_all("part", ("p", "il"), "thread")
    return [
        Fuse("out", "r", "ib", "block"), Bind("out", "block", "block.x"), Bind("out", "il", "thread"), Vectorize("out", "v"),
        ComputeAt("part", "out", "block", "block"), *fuse, Bind("part", one, "thread"), Vectorize("part", "v"),
        ComputeAt("share", "part", one, "register"), Split("share", "j", IN_FLIGHT, "j_o", "j_u"),
        Reorder("share", ("r", "ib", "p", "il", "j_o", "j_u", "v")), Unroll("share", "j_u"), Vectorize("share", "v"),
        ComputeAt("total", "out", "il", "register"), Reorder("total", ("r", "ib", "il", "p", "v")), Vectorize("total", "v"),
        Unroll("total", "p"),
    ]  # fmt: skip


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CudaReduce:
    """Reductions over axes; see the module's docstring."""

    name: str = "cuda_reduce"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Reduce in layout ROW of 16 or 32-bit floats."""
        if gpu_of(target) is None:
            return f"target is {target.arch}, expected cuda"
        if workload.op == "reduce" and workload.inputs[0].dtype not in STORED:
            return f"{workload.inputs[0]}, expected floats"
        return ReduceAxes().matches(as_float32(workload), target)

    def space(self, workload: Workload, target: Target) -> Space:
        """Elements of a load, and threads."""
        assert target.gpu is not None
        s = shape_of(workload)
        size = max(DTYPE_BYTES[t.dtype] for t in (*workload.inputs, *workload.outputs))
        if s.inner > 1:
            return inner_space(s, width_of(s.inner, bytes_each=size), target.gpu)
        return row_space(s.outer, s.length, width_of(s.length, bytes_each=size), target.gpu)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s = shape_of(workload)
        name = f"reduce_{s.kind}_{s.outer}x{s.length}x{s.inner}__{target.isa}"
        if s.inner > 1:
            t = InnerTile(int(config["lanes"]), int(config["parts"]), int(config["width"]))
            return Built(lower(schedule(inner_algorithm(workload, s, t), inner_steps(t)), name), target.isa)
        tile = tile_of(s.outer, s.length, config)
        return Built(lower(schedule(algorithm(workload, s, tile), reduced_steps("part", tile, "total")), name), target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Epilogue constants with the dimensions merged."""
        return GpuOperands(workload, 1, shape_of(workload).groups).pack(constants, 0)
