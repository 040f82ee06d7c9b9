"""What families on images share: physical order of axes, epilogue operands in either layout, jobs spread over blocks.

An NHWC tensor is seen as a ROW tensor of the permuted shape, so one algorithm serves both layouts: its axes stand in the order of
memory, the last one in vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Gpu, Target
from wpk.core.tensor import DTYPE_BYTES
from wpk.core.workload import Workload
from wpk.dsl.ir import Buffer, Expr
from wpk.dsl.schedule import Bind, Reorder, Split, Step, Unroll, Vectorize
from wpk.kernels.cuda.eltwise import in_rows
from wpk.kernels.cuda.nests import fuse_all, gpu_of, width_of
from wpk.kernels.cuda.operands import STORED, GpuOperands, as_float32
from wpk.kernels.epilogue import padded
from wpk.kernels.nests import nearest
from wpk.kernels.row_operands import RowOperands
from wpk.search.knobs import Knob, Ordered
from wpk.search.space import Space

#: every dimension of an image by itself
APART = ((0,), (1,), (2,), (3,))


def unfit(workload: Workload, op: str, target: Target, first: int = 1) -> str | None:
    """Why a family on images cannot take a workload: it wants floats in ROW or NHWC, the same in and out, on a GPU.

    Inputs ``first``… are the epilogue's.
    """
    if workload.op != op or gpu_of(target) is None:
        return f"op is {workload.op} for {target.arch}, expected {op} for cuda"
    x, y = workload.inputs[0], workload.outputs[0]
    if x.dtype not in STORED or y.dtype not in STORED or len(x.shape) != 4 or 0 in (*x.shape, *y.shape):
        return f"{x} → {y}, expected non-empty floats of rank 4"
    if x.layout != y.layout or x.layout not in ("ROW", "NHWC"):
        return f"layouts {x.layout} → {y.layout}, expected ROW or NHWC for both"
    return RowOperands(as_float32(_view(workload)), first, APART).reason()


def _view(workload: Workload) -> Workload:
    """Tensors as they lie in memory; constants, which :func:`pack` puts into that order, are ROW whatever they are."""
    view = in_rows(workload)
    inputs = tuple(replace(t, layout="ROW") if i in workload.constants else t for i, t in enumerate(view.inputs))
    return replace(view, inputs=inputs)


class ImageOperands:
    """Inputs ``first``… of a workload on images as parameters ``e<i>``."""

    def __init__(self, workload: Workload, first: int = 1) -> None:
        self._last = workload.outputs[0].layout == "NHWC"
        self._operands = GpuOperands(_view(workload), first, APART)

    def buffers(self) -> list[Buffer]:
        """Their parameters, in order."""
        return self._operands.buffers()

    def value(self, acc: Expr, n: Expr, c: Expr, h: Expr, w: Expr) -> Expr:
        """The epilogue at an output element."""
        return self._operands.value(acc, (n, h, w, c) if self._last else (n, c, h, w))

    def pack(self, constants: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The epilogue's constants in the order of memory."""
        images = [c.reshape(padded(c.shape)) for c in constants]
        return self._operands.pack([np.ascontiguousarray(np.moveaxis(c, 1, -1)) if self._last else c for c in images], 0)


def job_space(count: int, row: int, size: int, gpu: Gpu, extra: tuple[Knob, ...] = ()) -> Space:
    """Elements of a vector along rows of ``row`` elements of ``size`` bytes, vectors of a thread, threads of a block."""
    widest = width_of(row, bytes_each=size)
    widths = tuple(w for w in (1, 2, 4, 8) if w <= widest)
    vectors = max(count // widths[-1], 1)
    many = tuple(n for n in (1, 2, 4, 8) if n == 1 or n * 32 <= vectors)
    knobs: tuple[Knob, ...] = (
        Ordered("width", widths, nearest(widths, max(count / (gpu.sms * 256), 1))),
        Ordered("vectors", many, nearest(many, vectors / (gpu.sms * 1024))),
        Ordered("threads", (32, 64, 128, 256, 512), 64 if vectors < gpu.sms * 256 else 128),
        *extra,
    )  # fmt: skip
    return Space(knobs)


def job_steps(stage: str, lead: Sequence[str], last: str, c: Config) -> list[Step]:
    """block: for each of ``vectors``: thread: one vector along ``last``, loops in the order given; the thread is ``thread``."""
    threads = int(c["threads"])
    fuse, one = fuse_all(stage, (*lead, "v_o"), "job")
    return [
        Split(stage, last, int(c["width"]), "v_o", "v", "guard"), *fuse,
        Split(stage, one, threads * int(c["vectors"]), "block", "some", "guard"),
        Split(stage, "some", threads, "vector", "thread", "guard"),
        Reorder(stage, ("block", "thread", "vector", "v")),
        Bind(stage, "block", "block.x"), Bind(stage, "thread", "thread"), Vectorize(stage, "v"),
        *([Unroll(stage, "vector")] if int(c["vectors"]) > 1 else []),
    ]  # fmt: skip


def size_of(workload: Workload) -> int:
    """Bytes of the largest element."""
    return max(DTYPE_BYTES[t.dtype] for t in (*workload.inputs, *workload.outputs))


__all__ = ["APART", "ImageOperands", "job_space", "job_steps", "size_of", "unfit"]
