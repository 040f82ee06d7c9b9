"""Epilogue operands of ROW outputs in any float dtype: :class:`wpk.kernels.row_operands.RowOperands` for GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.dsl.ir import Buffer, Expr
from wpk.kernels.row_operands import RowOperands

#: dtypes in memory whose arithmetic is float32
STORED = ("float32", "float16", "bfloat16")


def as_float32(workload: Workload) -> Workload:
    """The workload with float operands of 16 bits seen as float32: what shapes and layouts allow does not depend on it."""

    def wide(t: TensorType) -> TensorType:
        return replace(t, dtype="float32") if t.dtype in STORED else t

    inputs, outputs = tuple(map(wide, workload.inputs)), tuple(map(wide, workload.outputs))
    return replace(workload, inputs=inputs, outputs=outputs)


def as_floats(array: np.ndarray, dtype: str) -> np.ndarray:
    """Stored values as float32 numbers; bfloat16 comes as such or as its bits."""
    if dtype != "bfloat16":
        return array.astype(np.float32)
    return (np.ascontiguousarray(array).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def as_stored(array: np.ndarray, dtype: str) -> np.ndarray:
    """float32 numbers as they are stored, rounded to nearest even; bfloat16 as its bits."""
    if dtype != "bfloat16":
        return array.astype(dtype)
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16).astype(np.uint16)


class GpuOperands:
    """Inputs ``first``… of a workload as parameters ``e<i>`` in their own dtypes; ``groups`` as in RowOperands."""

    def __init__(self, workload: Workload, first: int, groups: tuple[tuple[int, ...], ...]) -> None:
        self.workload = workload
        self.rows = RowOperands(as_float32(workload), first, groups)

    def buffers(self) -> list[Buffer]:
        """Their parameters, in order."""
        return [replace(b, dtype=self.workload.inputs[int(b.name[1:])].dtype) for b in self.rows.buffers()]

    def value(self, acc: Expr, at: Sequence[Expr]) -> Expr:
        """The epilogue at an output element, given its index in each group."""
        return self.rows.value(acc, at)

    def pack(self, constants: Sequence[np.ndarray], skip: int) -> list[np.ndarray]:
        """The constants that are epilogue operands; the first ``skip`` constants are the anchor's own."""
        packed = self.rows.pack(constants, skip)
        return [p.astype(c.dtype) for p, c in zip(packed, constants[skip:], strict=True)]


__all__ = ["STORED", "GpuOperands", "as_float32", "as_floats", "as_stored"]
