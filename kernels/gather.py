"""Gather: rows of a table chosen by integers. Indices count from the end below 0; beyond the table they mean its ends,
so that no kernel reads what it should not (ONNX leaves that open).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Stage
from wpk.dsl.ir import Buffer, Const, Expr, Load, Select
from wpk.kernels.copies import Copy, build_copy, copy_space
from wpk.kernels.family import Built
from wpk.kernels.nests import ints
from wpk.search.space import Space

INDICES = ("int64", "int32")


@dataclass(frozen=True)
class Shape:
    """out[o, j, i] = x[o, index[j], i] with ``length`` rows to choose ``count`` from."""

    outer: int
    length: int
    count: int
    inner: int


def shape_of(workload: Workload) -> Shape:
    """The numbers of a gather workload."""
    x, axis = workload.inputs[0].shape, ints(workload, "axis")[0]
    return Shape(prod(x[:axis]), x[axis], prod(workload.inputs[1].shape), prod(x[axis + 1 :]))


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(s: Shape, index_dtype: str, dtype: str = "float32") -> Algorithm:
    """out[o,j,i] = x[o, clamp(index[j]), i]."""
    o, j, i = Axis("o", s.outer), Axis("j", s.count), Axis("i", s.inner)
    out = Stage("out", (o, j, i), Load("x", (o.var, chosen(j.var, s), i.var)), dtype=dtype)
    params = (
        Buffer("x", (s.outer, s.length, s.inner), dtype), Buffer("index", (s.count,), index_dtype),
        Buffer("out", (s.outer, s.count, s.inner), dtype, access="out"),
    )  # fmt: skip
    return Algorithm("gather", params, (out,))


def chosen(j: Expr, s: Shape) -> Expr:
    """The row that index j chooses: from the end where it is negative, the nearest one where there is none."""
    index = Load("index", (j,))
    counted = Select(index < 0, index + s.length, index)
    return Select(counted < 0, Const(0), Select(counted < s.length, counted, Const(s.length - 1)))


# --- THE FAMILY: THE SPACE and THE SCHEDULE are those of wpk.kernels.copies ---------------------------------------------


def copy_of(s: Shape) -> Copy:
    """The loops: rows are contiguous on both sides."""
    return Copy((("o", s.outer), ("j", s.count), ("i", s.inner)), "i")


@dataclass(frozen=True)
class Gather:
    """Gather along an axis; see the module's docstring."""

    name: str = "gather"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Float32 data in layout ROW by int64 or int32 indices, nothing fused."""
        if workload.op != "gather":
            return f"op is {workload.op}, expected gather"
        x, index = workload.inputs[:2]
        if x.dtype != "float32" or index.dtype not in INDICES or x.layout != "ROW" or 0 in (*x.shape, *index.shape):
            return f"{x} by {index}, expected non-empty float32 in layout ROW by int64 or int32"
        return None if workload.epilogue is None else "a gather with an epilogue"

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`wpk.kernels.copies.copy_space`."""
        return copy_space(copy_of(shape_of(workload)), target)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s = shape_of(workload)
        name = f"f32_gather_{s.outer}x{s.count}of{s.length}x{s.inner}"
        return build_copy(algorithm(s, workload.inputs[1].dtype), copy_of(s), config, name)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Constants stay as they are."""
        return [np.ascontiguousarray(c) for c in constants]
