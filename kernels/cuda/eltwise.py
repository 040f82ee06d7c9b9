"""Elementwise kernels for GPUs: any expression over operands that broadcast to the output, in memory order.

Dimensions along which every operand moves alike become one (:mod:`wpk.kernels.eltwise`); a thread takes a few vectors that
lie a block's width apart, so that a warp always touches whole lines. Arithmetic is float32 whatever the storage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Gpu, Target
from wpk.core.tensor import DTYPE_BYTES, TensorType, to_layout
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Stage
from wpk.dsl.ir import Buffer, Cast, Const, Expr, Load, Select
from wpk.dsl.lower import lower
from wpk.dsl.schedule import Bind, Reorder, Split, Step, Unroll, Vectorize, schedule
from wpk.kernels.cuda.nests import fuse_all, gpu_of, width_of
from wpk.kernels.eltwise import READ, Shape, shape_of, spread
from wpk.kernels.epilogue import ZERO, padded, to_expr
from wpk.kernels.family import Built
from wpk.kernels.nests import nearest
from wpk.search.knobs import Knob, Ordered
from wpk.search.space import Space

FLOATS = ("float32", "float16", "bfloat16")


def in_rows(workload: Workload) -> Workload:
    """The same workload with channels-last tensors seen as ROW tensors of the permuted shape."""
    out = workload.outputs[0]
    if out.layout != "NHWC":
        return workload
    rank = len(out.shape)
    types = tuple(_permuted(t, rank) for t in workload.inputs)
    return Workload(
        workload.op, types, (_permuted(out, rank),), workload.attrs, workload.epilogue, workload.constants
    )


def _permuted(t: TensorType, rank: int) -> TensorType:
    shape = padded(t.shape, rank)
    same = t.layout == "NHWC" or sum(n > 1 for n in shape) <= 1
    return TensorType(t.dtype, (shape[0], *shape[2:], shape[1]), "ROW" if same else t.layout + "?")


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(workload: Workload, s: Shape) -> Algorithm:
    """out[i…] = f(in0[i…], in1[i…], …), an operand's index 0 where it broadcasts; zero in padding lanes."""
    assert workload.epilogue is not None
    axes = tuple(Axis(f"i{d}", n) for d, n in enumerate(s.extents))
    whole: Expr = to_expr(workload.epilogue, None, lambda i: _operand(workload, i, s, axes))
    if s.channels is not None:
        at, block, channels = s.channels
        whole = Select(axes[at].var * block + axes[-1].var < channels, whole, ZERO)
    types = [t.dtype for t in workload.inputs]
    params = [Buffer(f"x{i}", shape, stored(types[i])) for i, shape in enumerate(s.operands)]
    out = Buffer("out", s.extents, stored(workload.outputs[0].dtype), access="out")
    whole = Cast("uint8", whole) if out.dtype == "uint8" else whole
    return Algorithm("eltwise", (*params, out), (Stage("out", axes, whole, dtype=out.dtype),))


def stored(dtype: str) -> str:
    """How a dtype lies in memory: a bool is a byte."""
    return "uint8" if dtype == "bool" else dtype


def _operand(workload: Workload, i: int, s: Shape, axes: tuple[Axis, ...]) -> Expr:
    index = (Const(0) if n == 1 else a.var for n, a in zip(s.operands[i], axes, strict=True))
    value = Load(f"x{i}", tuple(index))
    return value if workload.inputs[i].dtype in FLOATS else Cast("float32", value)


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(workload: Workload, s: Shape, gpu: Gpu) -> Space:
    """Elements of a load, vectors of a thread, threads of a block."""
    size = max(DTYPE_BYTES[t.dtype] for t in (*workload.inputs, *workload.outputs))
    widest = width_of(s.extents[-1], bytes_each=size)
    widths = tuple(w for w in (1, 2, 4, 8) if w <= widest)
    vectors = s.count // widest
    counts = tuple(n for n in (1, 2, 4, 8) if n == 1 or n * 32 <= vectors)
    knobs: tuple[Knob, ...] = (
        Ordered("width", widths, widths[-1]),
        Ordered("vectors", counts, nearest(counts, vectors / (gpu.sms * 1024))),
        Ordered("threads", (32, 64, 128, 256, 512), 128 if vectors < gpu.sms * 512 else 256),
    )
    return Space(knobs)


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(s: Shape, c: Config) -> list[Step]:
    """block: for each of ``vectors``: thread: one vector of the last dimension, all dimensions in memory order."""
    last, lead = f"i{len(s.extents) - 1}", tuple(f"i{d}" for d in range(len(s.extents) - 1))
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
class CudaEltwise:
    """Elementwise expressions; see the module's docstring."""

    name: str = "cuda_eltwise"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Operands in the output's layout, or where that is the same memory, or constant; integers are read as float32."""
        if workload.op != "eltwise" or workload.epilogue is None or gpu_of(target) is None:
            return f"op is {workload.op} for {target.arch}, expected eltwise with an expression for cuda"
        w = in_rows(workload)
        out = w.outputs[0]
        if out.dtype not in (*FLOATS, "bool") or 0 in out.shape:
            return f"output {out}, expected non-empty floats"
        for i, t in enumerate(w.inputs):
            found = spread(t, out, i in w.constants)
            if t.dtype not in (*FLOATS, *READ) or isinstance(found, str):
                return f"operand {i}: {found if isinstance(found, str) else t.dtype}"
        return None

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        assert target.gpu is not None
        w = in_rows(workload)
        return space(w, shape_of(w), target.gpu)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        w = in_rows(workload)
        s = shape_of(w)
        short = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "bool": "bool"}[w.outputs[0].dtype]
        name = f"{short}_eltwise_{'x'.join(map(str, s.extents))}__{target.isa}"
        kernel = lower(schedule(algorithm(w, s), steps(s, config)), name)
        inputs = enumerate(workload.inputs)
        same = tuple(i for i, t in inputs if t == workload.outputs[0] and i not in workload.constants)
        return Built(kernel, target.isa, same)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Constants in the output's memory order, channels zero-padded to the block."""
        out = workload.outputs[0]
        s = shape_of(in_rows(workload))
        return [
            _packed(c, out).reshape(s.operands[i]) for i, c in zip(workload.constants, constants, strict=True)
        ]


def _packed(array: np.ndarray, out: TensorType) -> np.ndarray:
    value = (array.view(np.uint8) if array.dtype == np.bool_ else array).reshape(padded(array.shape, len(out.shape)))
    blocked = out.layout != "ROW" and value.shape[1] > 1
    return to_layout(value, out.layout) if blocked else np.ascontiguousarray(value)
