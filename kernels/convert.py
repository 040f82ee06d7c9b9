"""Conversions between ROW, NHWC and channel-blocked layouts.

Spatial dimensions are one. Where the pixels are contiguous on one side and the channels on the other, tiles are transposed;
else rows of channels are copied. The space and the schedules are those of :mod:`wpk.kernels.copies`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.tensor import channel_block
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Stage
from wpk.dsl.ir import Buffer, Expr, Load, Select
from wpk.kernels.copies import Copy, build_copy, copy_space
from wpk.kernels.epilogue import ZERO, block_of
from wpk.kernels.family import Built
from wpk.search.space import Space


@dataclass(frozen=True)
class Shape:
    """``n`` images of ``c`` channels and ``pixels``; the layouts of input and output."""

    n: int
    c: int
    pixels: int
    source: str
    target: str

    def physical(self, layout: str) -> tuple[int, ...]:
        """Extents in memory."""
        if layout == "ROW":
            return (self.n, self.c, self.pixels)
        if layout == "NHWC":
            return (self.n, self.pixels, self.c)
        return (self.n, -(-self.c // block_of(layout)), self.pixels, block_of(layout))


def shape_of(workload: Workload) -> Shape:
    """The numbers of a convert workload."""
    x, y = workload.inputs[0], workload.outputs[0]
    return Shape(x.shape[0], x.shape[1], prod(x.shape[2:]), x.layout, y.layout)


def address(layout: str, n: Expr, c: Expr, p: Expr) -> tuple[Expr, ...]:
    """Where a layout has channel ``c`` of pixel ``p``."""
    if layout == "ROW":
        return (n, c, p)
    if layout == "NHWC":
        return (n, p, c)
    block = block_of(layout)
    return (n, c // block, p, c % block)


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(s: Shape) -> tuple[Algorithm, Copy]:
    """out[target of (n, c, p)] = x[source of (n, c, p)]; zero in padding lanes. And the loops of it."""
    n, p = Axis("n", s.n), Axis("p", s.pixels)
    block = block_of(s.target) if s.target.endswith("c") else block_of(s.source) if s.source.endswith("c") else 1
    c_o, c_i = Axis("cb", -(-s.c // block)), Axis("cv", block)
    channel: Expr = c_o.var * block + c_i.var
    if block == 1:
        c_o, c_i = Axis("one", 1), Axis("cv", s.c)
        channel = c_i.var
    value: Expr = Load("x", address(s.source, n.var, channel, p.var))
    padded, where = s.c % block != 0, None
    if padded and s.target.endswith("c"):
        value = Select(channel < s.c, value, ZERO)
    elif padded:
        where = channel < s.c
    pixels_last = s.target == "ROW" and s.pixels > 1
    axes = (n, c_o, c_i, p) if pixels_last else (n, p, c_o, c_i) if s.target == "NHWC" else (n, c_o, p, c_i)
    at = address(s.target, n.var, channel, p.var) if not s.target.endswith("c") else None
    out = Stage("out", axes, value, scatter=at, where=where)
    params = (Buffer("x", s.physical(s.source)), Buffer("out", s.physical(s.target), access="out"))
    contiguous = "p" if s.source == "ROW" and s.pixels > 1 else "cv"
    run = min((b for b in (block_of(s.source), block_of(s.target)) if b > 1), default=1 << 30)
    return Algorithm("convert", params, (out,)), Copy(tuple((a.name, a.extent) for a in axes), contiguous, run)


# --- THE FAMILY: THE SPACE and THE SCHEDULE are those of wpk.kernels.copies ---------------------------------------------


@dataclass(frozen=True)
class Convert:
    """Layout conversion; see the module's docstring."""

    name: str = "convert"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Float32 of rank 2 and above, between two different layouts."""
        if workload.op != "convert":
            return f"op is {workload.op}, expected convert"
        x, y = workload.inputs[0], workload.outputs[0]
        if x.dtype != "float32" or y.dtype != "float32" or x.shape != y.shape or len(x.shape) < 2 or 0 in x.shape:
            return f"{x} → {y}, expected the same float32 tensor of rank 2 or more"
        if x.layout == y.layout or any(t not in ("ROW", "NHWC") and channel_block(t) == 1 for t in (x.layout, y.layout)):
            return f"layouts {x.layout} → {y.layout}, expected two different known ones"
        return None if workload.epilogue is None else "a conversion with an epilogue"

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`wpk.kernels.copies.copy_space`."""
        return copy_space(algorithm(shape_of(workload))[1], target)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s = shape_of(workload)
        plain, copy = algorithm(s)
        return build_copy(plain, copy, config, f"f32_{s.source.lower()}_to_{s.target.lower()}")

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """A conversion has no constants."""
        return []
